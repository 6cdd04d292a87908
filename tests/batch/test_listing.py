from pathlib import Path

import pytest
from folders import make

from mambair_cli.batch.listing import MANIFEST, count_passed_over, images_of, is_folder, natural_key
from mambair_cli.system.urls import Url

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_images_are_text_in_natural_order():
    make("in/b10.png", "in/b2.png", "in/a/x.jpg")
    Path("in/text.txt").touch()
    found = images_of([Path("in")], Path("out"), ["b*"], "", lambda message: None)
    assert [tuple(image) for image in found] == [
        ("in/a/x.jpg", "a/x.jpg", False),
        ("in/b2.png", "b2.png", True),
        ("in/b10.png", "b10.png", True),
    ]


def test_the_working_directory():
    make("a.png", "sub/b.png", "out/c.png")
    found = images_of([Path()], Path("out"), [], "", lambda message: None)
    assert [image.source for image in found] == ["a.png", "sub/b.png"]


@pytest.mark.parametrize("name", [MANIFEST, ".mambair-2-of-3.jsonl"])
def test_folders_with_results_are_left_out(name):
    make("in/a.png", "in/old/b.png", "in/old/deep/c.png")
    Path("in/old", name).touch()
    told = []
    found = images_of([Path("in")], Path("out"), [], "", told.append)
    assert [image.place for image in found] == ["a.png"]
    assert told == ["in/old: holds the results of an earlier run and is left out"]


def test_what_is_passed_over():
    make("in/a.png", "in/out/b.png")
    for name in ("in/x.txt", "in/sub.nef", "in/.hidden", "in/out/y.txt"):
        Path(name).touch()
    assert count_passed_over(["in"], "in/out") == 2
    assert count_passed_over(["in", "s3://bucket/in/"], "s3://bucket/out/") == 3


def test_natural_order_of_numbers():
    names = [
        "",
        "1.png",
        "01.png",
        "2.png",
        "10.png",
        "a",
        "a-1",
        "a1",
        "a1b",
        "A1c",
        "ab",
        "a٣",
        "9" * 300,
    ]
    ordered = sorted(names, key=natural_key)
    assert ordered.index("2.png") < ordered.index("10.png") < ordered.index("9" * 300)
    assert ordered.index("a") < ordered.index("a1") < ordered.index("a1b") < ordered.index("A1c")
    # a number comes before every other sign
    assert ordered.index("a٣") < ordered.index("a-1") < ordered.index("ab")


def test_folders():
    Path("in").mkdir()
    assert is_folder(Path("in"))
    assert not is_folder(Path("none"))
    assert is_folder(Url("s3://bucket/in/", is_folder=True))
    assert not is_folder(Url("s3://bucket/in"))
