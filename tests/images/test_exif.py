import struct

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import MAKER_NOTE, THUMBNAIL, exif_block, exif_facts

from mambair_cli.images import exif
from mambair_cli.images.exif import (
    Entry,
    build,
    cleaned,
    header,
    integers,
    joined,
    parse,
    resolution,
)

BLOCKS = [exif_block(6, "<"), exif_block(8, ">"), exif_block(3, thumbnail=False)]


def directory(*entries, following=0):
    """A block of one directory, from (tag, type, count, four bytes)."""
    rows = b"".join(
        struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries
    )
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + struct.pack("<I", following)
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_read_is_written_again(order):
    block = exif_block(order=order, thumbnail=False)
    read = parse(block)
    assert (read.order, read.next, read.damaged) == (order, 0, False)
    assert read.numbers(exif.ORIENTATION) == (1,)
    assert read.entries[exif.EXIF].value[37500].value == MAKER_NOTE
    assert read.entries[exif.EXIF].value[exif.INTEROPERABILITY].value[1].value == b"R98\0"
    written = joined(order, read.entries)
    assert exif_facts(written) == exif_facts(block)
    again = parse(written)
    assert strip(again.entries) == strip(read.entries)
    big = parse(header(order, 16, True) + build(order, read.entries, 16, True))
    # pointers are of 64 bits
    assert strip(big.entries, kinds=False) == strip(read.entries, kinds=False)


def strip(entries, kinds=True):
    """Without places, which differ."""
    return {
        tag: (kind if kinds else 0, strip(value, kinds) if isinstance(value, dict) else value)
        for tag, (kind, value, _) in entries.items()
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_clean_blocks_are_upright_and_without_a_thumbnail(block):
    clean, damaged = cleaned(block)
    assert not damaged
    assert THUMBNAIL not in clean
    assert cleaned(clean) == (clean, False)
    wanted = exif_facts(block)
    wanted["main"][274] = 1
    assert exif_facts(clean) == wanted | {"thumbnail": {}}


def test_a_thumbnail_before_other_values_is_blanked():
    """So that offsets, also those in maker notes, stay right."""
    block = bytearray(exif_block())
    end = len(block)
    place = block.index(THUMBNAIL)
    block += MAKER_NOTE
    clean, _ = cleaned(bytes(block))
    assert len(clean) == len(block)
    assert clean[place:end] == bytes(len(THUMBNAIL))
    assert clean[end:] == MAKER_NOTE


@pytest.mark.parametrize(
    "thumbnail",
    [(8, 60), (0, 2**31), (2**32 - 1, 2**32 - 1), (10, 1)],
    ids=["the directory", "all", "outside", "the count"],
)
def test_a_thumbnail_where_none_can_be_takes_nothing_with_it(thumbnail):
    block = bytearray(exif_block(6))
    place = block.rindex(struct.pack("<HHI", 513, 4, 1)) + 8
    struct.pack_into("<I", block, place, thumbnail[0])
    struct.pack_into("<I", block, place + 12, thumbnail[1])
    clean, _ = cleaned(bytes(block))
    assert exif_facts(clean)["main"] == exif_facts(exif_block())["main"]


def test_what_is_whole_is_rescued():
    block = exif_block(6, thumbnail=False)
    # in the last value of the GPS directory
    clean, damaged = cleaned(block[:-20])
    assert damaged
    assert not parse(clean).damaged
    assert parse(clean).numbers(exif.ORIENTATION) == (1,)
    seen, wanted = exif_facts(clean), exif_facts(exif_block())
    assert seen["main"] == wanted["main"]
    assert seen["exif"] == wanted["exif"]
    assert seen["gps"].keys() < wanted["gps"].keys()


@pytest.mark.parametrize(
    ("data", "tags"),
    [
        (directory((271, 2, 4, b"abc\0"), (272, 99, 1, b"none")), {271}),
        (directory((271, 2, 4, b"abc\0"), (272, 2, 99, b"\x08\0\0\0")), {271}),
        (directory((271, 2, 4, b"abc\0"), (exif.EXIF, 2, 4, b"abc\0")), {271}),
        (directory((271, 2, 4, b"abc\0"), (exif.EXIF, 4, 1, b"\xff\xff\xff\xff")), {271}),
        (
            directory(*[(1000 + i, 7, 60, b"\0\0\0\0") for i in range(9)]),
            {1000, 1001},
            # more than the block
        ),
    ],
    ids=["type", "length", "pointer", "outside", "overlap"],
)
def test_damaged_entries_are_left_out(data, tags):
    block = parse(data)
    assert block.damaged
    assert block.entries.keys() == tags
    assert cleaned(data)[1]
    assert cleaned(cleaned(data)[0]) == (cleaned(data)[0], False)


@pytest.mark.parametrize(
    "data", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0"]
)
def test_no_block(data):
    fails(lambda: parse(data), ValueError)
    fails(lambda: cleaned(data), ValueError)


@pytest.mark.parametrize(
    ("across", "down", "unit", "dpi"),
    [
        ((300, 1), (150, 1), 2, (300, 150)),
        ((300, 1), (300, 1), None, (300, 300)),
        ((100, 1), (100, 1), 3, (254, 254)),
        ((300, 1), (300, 1), 1, None),
        ((300, 0), (300, 1), 2, None),
        ((1, 300), (1, 300), 2, None),
        ((2**32 - 1, 1), (300, 1), 2, None),
        ((300, 1), None, 2, None),
    ],
)
def test_resolution(across, down, unit, dpi):
    values = {exif.X_RESOLUTION: across, exif.Y_RESOLUTION: down}
    entries = {tag: Entry(5, struct.pack(">II", *value)) for tag, value in values.items() if value}
    if unit:
        entries[exif.RESOLUTION_UNIT] = integers(">", unit)
    assert resolution(parse(joined(">", entries))) == dpi
    if dpi:
        assert resolution(parse(joined("<", exif.of_resolution("<", dpi)))) == dpi


def test_integers_take_the_smallest_type():
    assert [integers("<", value).kind for value in (0, 65535, 65536, 2**32 - 1, 2**32)] == [
        3,
        3,
        4,
        4,
        16,
    ]
    assert integers(">", 1, 2).value == b"\0\x01\0\x02"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(BLOCKS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_any_block_gives_a_whole_one_or_none(block, flips, cut):
    data = bytearray(block)
    for place, bits in flips:
        data[place % min(200, len(data))] ^= bits
    try:
        clean, _ = cleaned(bytes(data[: len(data) - cut] if cut < 500 else data))
    except ValueError:
        return
    assert not parse(clean).damaged
    assert cleaned(clean) == (clean, False)
