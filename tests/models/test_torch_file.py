"""Files of torch.save are read as torch reads them; what no network needs is refused quickly."""

import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from failing import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import FORMS, network, saved

from mambair_cli.errors import CheckpointError
from mambair_cli.models.torch_file import DEEPEST, MAGIC, read_torch_file

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8),
    *(torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128),
)


def read(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    return read_torch_file(path)


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert (type(found), len(found)) == (type(expected), len(expected))
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


def training_state():
    model = network()
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "iteration": 7}


CONTENTS = {
    **{form: network(form).state_dict() for form in FORMS},
    "a training's": training_state(),
    "types": {str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES},
    "views": {
        "whole": (whole := torch.arange(12.0).view(3, 4)),
        "part": whole.t()[1:],
        "parameter": torch.nn.Parameter(whole),
        "one": torch.tensor(3),
        "none": torch.zeros(0, 3),
    },
    "plain values": [None, True, False, 0, 255, -3, 2**16, 2**40, -(2**70), 0.5, "é", (), (1, "a")],
}


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "old format"])
@pytest.mark.parametrize("name", CONTENTS)
def test_the_content_is_what_torch_reads(tmp_path, name, zipped):
    content = saved(CONTENTS[name], _use_new_zipfile_serialization=zipped)
    assert_same(read(tmp_path, content), torch.load(io.BytesIO(content)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    assert_same(
        read(tmp_path, saved(CONTENTS["views"], pickle_protocol=protocol)), CONTENTS["views"]
    )


def test_types_without_a_storage_of_their_own(tmp_path):
    found = read(tmp_path, saved({"x": torch.ones(3).to(torch.float8_e4m3fn)}))
    assert found["x"].dtype == torch.float8_e4m3fn
    assert found["x"].float().tolist() == [1, 1, 1]


def archive(pickled, **members):
    """An archive as torch.save makes it, around a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in {"data.pkl": pickled, "version": b"3", **members}.items():
            written.writestr(f"archive/{name}", content)
    return file.getvalue()


def twice(count):
    """Tuples of the one before, twice, so often."""
    return b"K\x01" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(count)
    )


ATTACKS = {
    "deep key": (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "nested too deep"),
    "deep tuple": (b"\x80\x02)" + b"\x85" * 200_000 + b".", "nested too deep"),
    "deep list": (b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".", "nested too deep"),
    "deep dictionary": (b"\x80\x02" + b"}K\x01" * 100 + b"K\x01" + b"s" * 100 + b".", "deep"),
    "key of 2^30 pairs": (b"\x80\x02}" + twice(30) + b"K\x01s.", "a key is no text"),
    "key of 2^60 pairs": (b"\x80\x02}" + twice(60) + b"K\x01s.", "nested too deep"),
    "bytearray": (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "builtins.bytearray"),
    "bytearray of protocol 5": (b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b".", ""),
    "set": (b"\x80\x04\x8f.", "EMPTY_SET"),
    "system": (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "posix.system"),
    "stacked name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "name of numbers": (b"\x80\x04K\x01K\x02\x93.", "1.2"),
    "call of a type": (
        b"\x80\x02ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R.",
        "a call",
    ),
    "new object": (b"\x80\x02ctorch\nSize\n)\x81.", "NEWOBJ"),
    "attributes": (b"\x80\x02]}b.", "an object"),
    "text of 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", ""),
    "long of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f1.", ""),
    "no end": (b"\x80\x02}", ""),
    "empty stack": (b"\x80\x02a.", ""),
    "no mark": (b"\x80\x02}u.", ""),
    "unknown memo": (b"\x80\x02h\x05.", ""),
    "two values": (b"\x80\x02K\x01K\x02.", ""),
    "half a pair": (b"\x80\x02}(K\x01u.", ""),
    "endless": (b"\x80\x02" + b"K\x010" * 10 + b"N" * 2_100_000, ""),
    "foreign identity": (b"\x80\x02K\x01Q.", ""),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_at_once(tmp_path, name):
    content, words = ATTACKS[name]
    started = time.perf_counter()
    for file in (archive(content), pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) * 2 + content):
        fails(lambda f=file: read(tmp_path, f), CheckpointError, tmp_path / "file.pth", words)
    assert time.perf_counter() - started < 60


def test_nesting_to_the_limit_is_read(tmp_path):
    content = 1
    for _ in range(DEEPEST):
        content = [content]
    assert read(tmp_path, saved(content)) == content
    fails(lambda: read(tmp_path, saved([content])), CheckpointError, "nested too deep")


def test_of_two_directories_the_one_that_counts_is_read(tmp_path):
    """Of an archive behind another nothing of the first is read."""
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("archive/data.pkl", pickle.dumps({"x": bytes(2**26)}))
    plain = saved({"x": torch.ones(3)})
    assert_same(read(tmp_path, compressed.getvalue() + plain), {"x": torch.ones(3)})
    fails(lambda: read(tmp_path, plain + compressed.getvalue()), CheckpointError, "compressed")


def test_views_of_a_number_that_are_many(tmp_path):
    expanded = saved({f"y{i}": torch.zeros(1).expand(4000) for i in range(40)})
    fails(lambda: read(tmp_path, expanded), CheckpointError, "larger than the file")


@pytest.mark.parametrize("name", ["conv_first.weight", "norm.weight", "upsample.0.bias"])
def test_a_flipped_bit_is_noticed(tmp_path, name):
    content = bytearray(saved(CONTENTS["light_c"]))
    content[content.index(CONTENTS["light_c"][name].numpy().tobytes()) + 2] ^= 16
    fails(lambda: read(tmp_path, bytes(content)), CheckpointError, "damaged")


def test_other_endian(tmp_path):
    content = archive(pickle.dumps({}, 2), byteorder=b"big")
    fails(lambda: read(tmp_path, content), CheckpointError, "endian")


def test_memory_stays_bounded(tmp_path):
    """All attacks in a process that may have 1 GB more than torch takes."""
    for i, (content, _) in enumerate(ATTACKS.values()):
        (tmp_path / f"{i}.pth").write_bytes(archive(content))
    program = """
import sys
from pathlib import Path
from mambair_cli.errors import CheckpointError
from mambair_cli.models.torch_file import read_torch_file
for path in Path(sys.argv[1]).iterdir():
    try:
        read_torch_file(path)
        raise SystemExit(f"{path} was read")
    except CheckpointError as error:
        assert "MemoryError" not in str(error), error
# The peak of this process alone: ru_maxrss of a child begins at its parent's.
status = Path('/proc/self/status').read_text()
print(int(status.split('VmHWM:')[1].split()[0]) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1500


WHOLE = saved({"params": {"a.weight": torch.ones(3, 4), "b": torch.zeros(2).half()}})
OLD = saved({"a": torch.ones(3, 4)}, _use_new_zipfile_serialization=False)


def mutated(data, content):
    """The bytes with some of them changed, cut out or doubled."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "double"]))
        length = data.draw(st.integers(1, 40))
        if kind == "set" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place : place + length]
        else:
            content[place:place] = content[place : place + length]
    return bytes(content)


def check_mutation(tmp_path, data):
    base = data.draw(st.sampled_from([WHOLE, OLD, archive(pickle.dumps({"a": [1, ("b",)]}, 2))]))
    content = mutated(data, base)
    message = ""
    try:
        assert repr(read(tmp_path, content))
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@given(st.data())
@settings(max_examples=150, **FUZZ)
def test_changed_files_are_read_or_refused(tmp_path, data):
    check_mutation(tmp_path, data)


@pytest.mark.long
@given(st.data())
@settings(max_examples=20_000, **FUZZ)
def test_many_changed_files_are_read_or_refused(tmp_path, data):
    check_mutation(tmp_path, data)
