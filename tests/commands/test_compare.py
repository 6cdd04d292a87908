from pathlib import Path

import pytest
from calls import fails, works
from folders import make

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_page_of_files(call):
    make("a.png", "b.png", "c.png")
    out = works(call("compare", "a.png", "b.png", "c.png"))
    assert out == "compare.html: 1 picture, before and after; open it in a browser\n"
    assert "after: c.png" in Path("compare.html").read_text("utf-8")
    assert works(call("compare", "a.png", "b.png", "-o", "page.html", "-q")) == ""
    assert Path("page.html").is_file()


def test_a_page_of_folders(call):
    make("in/a.png", "in/b.png", "out/a.png", "out/b_x4.png")
    assert "2 pictures" in works(call("compare", "in", "out", "-o", "page.html"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("a.png", "AFTER"),
        ("a.png no.png", "no.png: no such file"),
        ("a.png b.png -o page.png", "page.png: a page is called something.html"),
        ("a.png b.png -o no/page.html", "there is no folder"),
    ],
)
def test_bad_calls(call, words, told):
    make("a.png", "b.png")
    fails(call("compare", *words.split()), 2, told)
    assert not list(Path().glob("*.html"))
