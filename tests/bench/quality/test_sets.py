import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from failing import fails

from mambair_cli.bench.quality.sets import (
    SETS,
    DataSet,
    Files,
    check_files,
    describe_copy,
    digest_of,
    find_set,
    hash_of,
    known_set,
    set_named,
)
from mambair_cli.errors import CallError
from mambair_cli.images.folders import list_images, read_rgb
from mambair_cli.images.io import Image, write_image

EVAL = Path(os.environ.get("MAMBAIR_DATA", Path(__file__).parents[4] / "shared" / "data" / "eval"))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty folders for each place where sets are looked for: root, variable, cwd, cache/data."""
    for name in ("root", "variable", "cwd", "cache/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("MAMBAIR_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


# The table


def test_rows():
    names = [name for row in SETS for name in (row.name, *row.aliases)]
    assert len({re.sub("[^a-z0-9]", "", name.lower()) for name in names}) == len(names)
    for row in SETS:
        assert row.images > 0
        assert row.licence
        assert row.source
        assert row.name in row.layout
        assert re.fullmatch("([0-9a-f]{64})?", row.digest)
        assert row.task in ("upscale", "denoise", "dejpeg", "derain", "denoise-real")
        assert len(row.members) in (0, row.images)
        for address in row.addresses:
            assert address.url.startswith("https://")
            assert row.digest  # what is fetched is checked
            if isinstance(address, Files):
                assert len(set(address.names)) == row.images
                assert address.url.count("{}") == 1
        assert row.sizes.keys() <= row.members or not row.members
    asked = "Set5 Set14 B100 Urban100 Manga109 CBSD68 Kodak24 McMaster classic5 LIVE1 SIDD DND"
    asked += " Rain100H Rain100L Test100 Test1200 Test2800"
    assert set(asked.split()) <= {row.name for row in SETS}


@pytest.mark.parametrize(
    ("name", "found"), [("set5", "Set5"), ("BSD-100", "B100"), ("urban_100", "Urban100")]
)
def test_names_in_any_spelling(name, found):
    assert set_named(name).name == found


def test_names_of_no_set():
    assert set_named("Set6") is None
    assert set_named("") is None


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs the benchmark images in ../shared")
@pytest.mark.parametrize("name", [row.name for row in SETS if row.digest])
def test_the_known_pixels(name):
    row, folder = find_set(name, EVAL)
    inside = next((folder / part for part in ("HR", "gt") if (folder / part).is_dir()), folder)
    files = [path for path in list_images(inside) if not row.members or path.stem in row.members]
    images = {path.stem: read_rgb(path) for path in files}
    check_files(row, folder, {stem: image.shape[:2] for stem, image in images.items()})
    assert row.sizes.keys() <= images.keys()
    told = describe_copy(row, [hash_of(image) for image in images.values()])
    if name == "Urban100" and len(images) == 10:
        assert told == "10 of its 100 images"
    else:
        assert told == f"all {row.images} images, pixels as known"


# Finding


def test_a_set_is_found_in_each_place_first_come_first_served(places):
    order = [
        places / "cache" / "data" / "Set5",
        Path("set5"),
        places / "variable" / "benchmark" / "SET5",
    ]
    order += [places / "variable" / "Set-5", places / "root" / "Set5"]
    for folder in order:
        folder.mkdir(parents=True)
        row, found = find_set("Set5", places / "root")
        assert (row.name, found.resolve()) == ("Set5", folder.resolve())


def test_files_and_other_folders_are_no_set(places):
    (places / "root" / "Set5").write_text("")
    (places / "root" / "Set50").mkdir()
    fails(lambda: find_set("Set5", places / "root"), CallError, "Set5 is not in")


def test_a_set_is_taken_from_the_one_it_is_part_of(places):
    (places / "variable" / "BSD100").mkdir()
    row, folder = find_set("CBSD68")
    assert (row.name, folder.name) == ("CBSD68", "BSD100")
    (places / "cache" / "data" / "CBSD68").mkdir()
    assert find_set("CBSD68")[1].name == "CBSD68"


def test_any_folder(places):
    (places / "root" / "photos").mkdir()
    assert find_set(str(places / "root" / "photos")) == (None, places / "root" / "photos")
    # By its path, a set is a folder like any other: nothing is checked.
    (places / "root" / "Set5").mkdir()
    assert find_set(str(places / "root" / "Set5"))[0] is None


def test_what_cannot_be_found(places, monkeypatch):
    message = fails(
        lambda: find_set("Manga109"),
        CallError,
        "manga109.org",
        "MAMBAIR_DATA",
        "HR/*.png",
    )
    assert str(places / "variable") in message
    fails(lambda: find_set("Rain100H"), CallError, "MPRNet", "Rain100H/input", "Rain100H/target")
    fails(lambda: find_set("Kodak24"), CallError, "get it from", "FFDNet")
    fails(
        lambda: find_set("DND"), CallError, "truths are not given out", "noise.visinf.tu-darmstadt"
    )
    fails(lambda: find_set("Urban10"), CallError, "Urban10", "did you mean 'Urban100'?")
    fails(lambda: find_set("my/photos"), CallError, "my/photos", "Set5", "Test2800")
    fails(lambda: find_set("Set5", places / "none"), CallError, places / "none", "not a folder")
    monkeypatch.delenv("MAMBAIR_DATA")
    assert str(places / "variable") not in fails(lambda: find_set("Set5"), CallError, "Set5")


def test_what_is_not_here_is_fetched_where_that_is_possible(places):
    asked = []

    def fetch(row):
        asked.append(row.name)
        return places / row.name

    row, folder = find_set("urban100", None, fetch)
    assert (row.name, folder) == ("Urban100", places / "Urban100")
    row, folder = find_set("CBSD68", None, fetch)  # it is part of another
    assert (row.name, folder) == ("CBSD68", places / "B100")
    (places / "cache" / "data" / "Set5").mkdir()
    assert find_set("Set5", None, fetch)[1] == places / "cache" / "data" / "Set5"
    fails(lambda: find_set("Manga109", None, fetch), CallError, "manga109.org")
    assert asked == ["Urban100", "B100"]


def test_names_that_are_asked_for():
    assert known_set("bsd100").name == "B100"
    fails(
        lambda: known_set("Urban10"), CallError, "Urban10 is no data set; did you mean 'Urban100'?"
    )


# Wrong copies

ROW = DataSet("Toy", "upscale", 3, "none", "toys.example", sizes={"a": (40, 60), "b": (20, 20)})


def test_a_right_copy_passes():
    check_files(ROW, Path("toys"), {"a": (40, 60), "b": (20, 20), "c": (7, 7)})
    check_files(ROW, Path("toys"), {"c": (7, 7)})
    check_files(ROW, Path("toys"), {})


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"a": (20, 30)}, ["wrong copy of Toy at half size", "a has 30x20", "not 60x40"]),
        ({"a": (40, 60), "b": (20, 21)}, ["wrong copy of Toy:", "b has 21x20", "not 20x20"]),
        ({"a": (20, 60)}, ["wrong copy of Toy:", "60x20"]),
        (dict.fromkeys("wxyz", (9, 9)), ["holds 4 images", "Toy has 3"]),
    ],
)
def test_a_wrong_copy_is_named(sizes, words):
    fails(
        lambda: check_files(ROW, Path("toys"), sizes),
        CallError,
        "toys.example",
        "by its path",
        *words,
    )


def test_the_common_wrong_copies():
    fails(
        lambda: check_files(set_named("Urban100"), Path("u"), {"img_001": (322, 512)}),
        CallError,
        "at half size",
    )
    fails(
        lambda: check_files(set_named("Kodak24"), Path("k"), {"kodim01": (512, 768)}),
        CallError,
        "500x500 crops",
    )


def test_a_copy_in_words():
    hashes = [hash_of(PIXELS[i:]) for i in range(3)]
    row = replace(ROW, digest=digest_of(hashes))
    assert describe_copy(row, hashes[::-1]) == "all 3 images, pixels as known"
    assert describe_copy(row, hashes[:2]) == "2 of its 3 images"
    assert "not the pixels" in describe_copy(row, [*hashes[:2], hashes[1]])
    assert "cannot be checked" in describe_copy(ROW, hashes)


def test_a_hash_is_of_pixels_and_size_alone(tmp_path):
    for name in ("a.png", "b.webp", "c.bmp"):
        write_image(tmp_path / name, Image(PIXELS), quality=None)
    assert (
        hash_of(read_rgb(tmp_path / "a.png"))
        == hash_of(read_rgb(tmp_path / "c.bmp"))
        == hash_of(PIXELS)
    )
    assert hash_of(PIXELS.reshape(14, 12, 3)) != hash_of(PIXELS)
