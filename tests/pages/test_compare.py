import base64
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from chromium import browsing, needs_chromium
from failing import fails
from folders import make

from mambair_cli.errors import CallError, ImageError
from mambair_cli.pages import compare
from mambair_cli.pages.compare import Scene, match_files, write_page

pytestmark = pytest.mark.usefixtures("empty_folder")


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text[1])


def pixels(address):
    data = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def stored(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


# Which files belong together


def test_files_are_taken_as_they_are_named(tmp_path):
    make("a.png", "b.png", "c.png")
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    assert match_files(a, [b, c]) == [Scene(a, (b, c))]


def test_folders_are_matched_by_name(tmp_path):
    make("in/a.png", "in/b_1.jpg", "in/sub/c.png", "in/lonely.png")
    make("out/a.png", "out/b_1_x4.png", "out/sub/c.png.png", "out/other.png")
    make("more/a_denoised.png")
    found = match_files(tmp_path / "in", [tmp_path / "out", tmp_path / "more"])
    names = {scene.before.name: [path.name for path in scene.results] for scene in found}
    assert names == {
        "a.png": ["a.png", "a_denoised.png"],
        "b_1.jpg": ["b_1_x4.png"],
        "c.png": ["c.png.png"],
    }


def test_what_cannot_be_matched_is_refused(tmp_path):
    make("in/a.png", "out/b.png", "c.png")
    before, after, file = tmp_path / "in", tmp_path / "out", tmp_path / "c.png"
    fails(lambda: match_files(before, [after]), CallError, "no image is called like one in")
    fails(lambda: match_files(file, [after]), CallError, "a folder with folders")
    fails(lambda: match_files(tmp_path / "no.png", [file]), CallError, "no.png: no such file")
    fails(lambda: match_files(file, [tmp_path / "no"]), CallError, "no: no such file")


# What the page holds


def test_the_images_are_exact_and_say_their_sizes(tmp_path):
    make("<i>a.png", size=16)
    make("b.png", size=32)
    write_page(tmp_path / "page.html", [Scene(tmp_path / "<i>a.png", (tmp_path / "b.png",))])
    data = data_of((tmp_path / "page.html").read_text("utf-8"))
    (picture,) = data["pictures"]
    assert data["title"] == "<i>a.png: before and after"
    assert (picture["width"], picture["height"]) == (32, 32)
    about = [view["about"] for view in picture["views"]]
    assert about == ["before: <i>a.png, 16x16", "after: b.png, 32x32"]
    for view, name in zip(picture["views"], ("<i>a.png", "b.png"), strict=True):
        assert np.array_equal(pixels(view["src"]), stored(name))


def test_several_results_have_names_of_their_own(tmp_path):
    make("a.png", "one/b.png", "two/b.png")
    results = (tmp_path / "one" / "b.png", tmp_path / "two" / "b.png")
    write_page(tmp_path / "page.html", [Scene(tmp_path / "a.png", results)])
    (picture,) = data_of((tmp_path / "page.html").read_text("utf-8"))["pictures"]
    labels = [view["label"] for view in picture["views"]]
    assert labels == ["before: a.png", "after: one/b.png", "after: two/b.png"]


def test_large_images_are_shown_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PIXELS", 2 * 2 * 2 * 8 * 8)
    make("a.png", "b.png", size=16)
    scene = Scene(tmp_path / "a.png", (tmp_path / "b.png",))
    write_page(tmp_path / "page.html", [scene, scene])
    for picture in data_of((tmp_path / "page.html").read_text("utf-8"))["pictures"]:
        assert pixels(picture["views"][1]["src"]).shape == (11, 11, 3)
        assert picture["views"][1]["about"] == "after: b.png, 16x16, shown at 71%"
        assert (picture["width"], picture["height"]) == (16, 16)


def test_what_else_files_hold_stays_out(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x8298] = "secret owner"
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    PIL.Image.fromarray(deep).save("deep.png")
    PIL.Image.new("RGBA", (16, 16), (9, 8, 7, 99)).save("a.png", exif=exif)
    write_page(tmp_path / "page.html", [Scene(tmp_path / "a.png", (tmp_path / "deep.png",))])
    page = (tmp_path / "page.html").read_text("utf-8")
    before, after = (view["src"] for view in data_of(page)["pictures"][0]["views"])
    assert b"secret" not in base64.b64decode(before.partition(",")[2])
    assert pixels(before)[0, 0].tolist() == [9, 8, 7, 99]
    assert np.array_equal(pixels(after)[..., 0], np.arange(256).reshape(16, 16))


def test_a_bad_file_leaves_no_page(tmp_path):
    make("a.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    scene = Scene(tmp_path / "a.png", (bad,))
    fails(lambda: write_page(tmp_path / "page.html", [scene]), ImageError, "bad.png")
    assert not (tmp_path / "page.html").exists()


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A page of two pictures, the first with two results, opened."""
    folder = tmp_path_factory.mktemp("compare")
    for name, gray, size in (("a", 40, 100), ("b", 120, 200), ("c", 200, 200)):
        PIL.Image.new("RGB", (2 * size, size), (gray,) * 3).save(folder / f"{name}.png")
    a, b, c = (folder / f"{name}.png" for name in "abc")
    write_page(folder / "page.html", [Scene(a, (b, c)), Scene(b, (c,))])
    with browsing(folder / "profile") as opened:
        opened.open((folder / "page.html").as_uri())
        yield opened


STAGE = "document.querySelector('.stage')"
BOX = f"(b => [b.x, b.y, b.width, b.height])({STAGE}.getBoundingClientRect())"


def divider(browser):
    return float(browser.evaluate(f"{STAGE}.style.getPropertyValue('--at')").rstrip("%"))


def zoom(browser):
    return float(browser.evaluate(f"{STAGE}.style.getPropertyValue('--zoom')"))


def press(browser, key):
    """Press a key anywhere on the page."""
    browser.evaluate(
        "document.activeElement.blur(), document.body.dispatchEvent("
        f"new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true}}))"
    )


def wheel(browser, x, y, delta):
    browser.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)
    browser.evaluate("new Promise(done => setTimeout(done, 100))")


@needs_chromium
def test_the_page_needs_nothing_else_and_runs_without_errors(browser):
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.evaluate(loaded)
    assert browser.messages == []
    assert all(a.startswith(("data:", "file:")) for a in browser.requests)
    assert sum(a.startswith("file:") for a in browser.requests) == 1
    assert "a.png, 200x100" in browser.evaluate("document.getElementById('sizes').textContent")


@needs_chromium
def test_the_divider_is_dragged(browser):
    x, y, width, height = browser.evaluate(BOX)
    for share in (0.25, 0.75):
        browser.drag((x + width / 2, y + height / 2), (x + share * width, y + height / 2))
        assert divider(browser) == pytest.approx(100 * share, abs=0.5)
    screen = np.asarray(PIL.Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    middle = int(y + height / 4)
    assert screen[middle, int(x + 0.6 * width)] == pytest.approx(40, abs=2)
    assert screen[middle, int(x + 0.9 * width)] == pytest.approx(120, abs=2)


@needs_chromium
def test_keys_move_the_divider_and_choose_results(browser):
    before = divider(browser)
    press(browser, "ArrowLeft")
    assert divider(browser) == pytest.approx(before - 5, abs=0.2)
    press(browser, " ")
    assert divider(browser) == 0
    press(browser, " ")
    assert divider(browser) == 100
    label = f"{STAGE}.querySelector('.right img').alt"
    for key, name in (("2", "c.png"), ("1", "b.png")):
        press(browser, key)
        assert browser.evaluate(label) == f"after: {name}"


@needs_chromium
def test_the_wheel_zooms_where_it_points(browser):
    x, y, width, height = browser.evaluate(BOX)
    image = f"{STAGE}.querySelector('.left img').getBoundingClientRect()"
    point = x + 0.25 * width
    wheel(browser, point, y + height / 2, -600)
    assert zoom(browser) > 2
    left, wide = browser.evaluate(f"(b => [b.x, b.width])({image})")
    assert wide == pytest.approx(zoom(browser) * width, rel=0.01)
    assert (point - left) / wide == pytest.approx(0.25, abs=0.01)
    # What is enlarged is moved, and never leaves the stage.
    browser.drag((x + 20, y + 20), (x + 30, y + 20))
    assert browser.evaluate(f"{image}.x") == pytest.approx(left + 10, abs=1)
    browser.drag((x + 20, y + 20), (x + width - 5, y + 20))
    browser.drag((x + 20, y + 20), (x + width - 5, y + 20))
    assert browser.evaluate(f"{image}.x") == pytest.approx(x, abs=0.5)
    press(browser, "0")
    assert zoom(browser) == 1


@needs_chromium
def test_two_fingers_zoom(browser):
    x, y, width, height = browser.evaluate(BOX)
    middle = y + height / 2

    def touch(kind, *places):
        points = [{"x": x + share * width, "y": middle, "id": i} for i, share in enumerate(places)]
        browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", 0.4, 0.6)
    touch("touchMove", 0.2, 0.8)
    touch("touchEnd")
    assert zoom(browser) == pytest.approx(3, abs=0.3)
    press(browser, "0")


@needs_chromium
def test_the_gallery_changes_the_picture(browser):
    name = "document.getElementById('name').textContent"
    assert browser.evaluate(name) == "a.png"
    press(browser, "n")
    assert browser.evaluate(name) == "b.png"
    assert "2 of 2" in browser.evaluate("document.getElementById('place').textContent")
    browser.evaluate("document.querySelector('#gallery button').click()")
    assert browser.evaluate(name) == "a.png"


@needs_chromium
def test_a_phone_shows_all_of_it(browser):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    try:
        x, _, width, _ = browser.evaluate(BOX)
        assert 0 <= x <= x + width <= 390
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")
    assert browser.messages == []
