from pathlib import Path

import numpy as np
import pytest
from training import noise, save, sources

from mambair_cli.errors import CallError, ImageError
from mambair_cli.images.folders import list_images
from mambair_cli.images.metrics import to_y
from mambair_cli.images.resize import downscale
from mambair_cli.training.photos import Photos, Source, find_sources, read_photo, split

# Files


def test_held_out_images_are_not_trained_on(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").touch()
    found = sources(tmp_path)
    files, held_out = split(found, None, 8)
    assert len(held_out) == len(set(held_out)) == 8
    assert sorted(files + held_out) == found
    assert files == sorted(files)
    assert split(found, None, 8) == (files, held_out)
    # A resumed run relies on the choice, so it stays the same from version to version.
    assert sorted(int(source.high.stem) for source in held_out) == [0, 1, 2, 7, 8, 12, 15, 19]


def test_validation_images_within_the_data_are_not_trained_on(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.png", "val/c.png"):
        (tmp_path / name).touch()
    val = sources(tmp_path / "." / "val" / ".." / "val")
    files, held_out = split(sources(tmp_path), val, 8)
    assert [source.high for source in files] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert [source.high.name for source in held_out] == ["c.png"]
    with pytest.raises(CallError, match="none is left to train on"):
        split(val, val, 8)


def test_pairs_are_found_as_div2k_names_them(tmp_path):
    for name in ("HR/0001.png", "HR/sub/b.webp", "X2/0001x2.png", "X2/sub/b.png", "X2/other.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    high, low = tmp_path / "HR", tmp_path / "X2"
    assert find_sources(high, low, 2) == [
        Source(high / "0001.png", low / "0001x2.png"),
        Source(high / "sub" / "b.webp", low / "sub" / "b.png"),
    ]
    with pytest.raises(
        CallError,
        match=r"X2 holds no degraded form of .*0001\.png; its name would be 0001 or 0001x3",
    ):
        find_sources(high, low, 3)


# Decoding


def test_a_photo_is_cut_to_a_multiple_and_shrunk_as_the_benchmarks_do(tmp_path):
    source = Source(save(tmp_path, "a.png", noise(11, 14)))
    photo = read_photo(source, 3, 3, shrink=True)
    assert np.array_equal(photo.high, noise(11, 14)[:9, :12])
    assert np.array_equal(photo.low, downscale(noise(11, 14), 3))
    assert read_photo(source, 3, 3, shrink=False).low is None


def test_gray_is_the_luma_of_the_metrics(tmp_path):
    photo = read_photo(Source(save(tmp_path, "a.png", noise(9, 8))), 1, 1, shrink=False)
    assert (photo.high.shape, photo.high.dtype) == ((9, 8, 1), np.uint8)
    assert np.abs(photo.high[:, :, 0] - to_y(noise(9, 8))).max() <= 0.5 + 1e-9


def test_given_pairs_must_fit(tmp_path):
    high, low = save(tmp_path, "a.png", noise(9, 8)), save(tmp_path, "b.png", noise(4, 4, 1))
    assert np.array_equal(read_photo(Source(high, low), 2, 3, shrink=True).low, noise(4, 4, 1))
    with pytest.raises(ImageError, match=r"b\.png: has 4x4 pixels, but 8x9 belong to .*a\.png"):
        read_photo(Source(high, low), 1, 3, shrink=True)


# Holding


def photos(files, scale=2, smallest=8, memory=1e9):
    return Photos(
        [Source(path) for path in files], scale, 3, shrink=True, smallest=smallest, memory=memory
    )


def test_it_says_why_images_are_left_out(tmp_path):
    good = save(tmp_path, "good.png", noise(16, 17))
    small = save(tmp_path, "small.png", noise(15, 40))
    dot = save(tmp_path, "dot.png", noise(1, 1))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(good.read_bytes()[:20])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    held = photos([small, good, dot, damaged, text, empty])
    assert [source.high for source in held.sources] == [good]
    assert [Path(reason.split(": ")[0]) for reason in held.skipped] == [
        small,
        dot,
        damaged,
        text,
        empty,
    ]
    assert "smaller than 16 pixels" in held.skipped[0]
    assert "not an image" in held.skipped[3]
    with pytest.raises(
        CallError, match=r"none of 2 images .* first: .*small\.png: smaller than 16"
    ):
        photos([small, text])
    with pytest.raises(CallError, match="none of 0 images"):
        photos([])


def test_a_damaged_body_is_found_once(tmp_path):
    path = save(tmp_path, "a.png", noise(40, 40))
    path.write_bytes(path.read_bytes()[:-1000])
    held = photos([path])
    assert held.skipped == []
    assert [held.get(0), held.get(0)] == [None, None]
    assert len(held.skipped) == 1


def test_decoded_images_stay_within_the_limit(tmp_path, monkeypatch):
    """Each takes 960 bytes and its half 240; those used last stay."""
    reads = []
    monkeypatch.setattr(
        "mambair_cli.training.photos.read_photo",
        lambda s, *a, **k: reads.append(s.high.stem) or read_photo(s, *a, **k),
    )
    held = photos(
        [save(tmp_path, f"{i}.png", noise(16, 20, i)) for i in range(3)], memory=2.5 * 1200
    )
    for number in (0, 1, 0, 2, 0, 2, 1, 0):
        assert np.array_equal(held.get(number).high, noise(16, 20, number))
    assert reads == ["0", "1", "2", "1", "0"]


def test_the_files_listed_are_all_that_are_images(tmp_path):
    save(tmp_path, "a.png", noise(9, 9))
    (tmp_path / "notes.txt").touch()
    assert [source.high for source in sources(tmp_path)] == list_images(tmp_path)
