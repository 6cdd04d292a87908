import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from chromium import browsing, needs_chromium

from mambair_cli.bench.quality import page
from mambair_cli.bench.quality.candidates import Candidate
from mambair_cli.bench.quality.measure import open_benchmark, run
from mambair_cli.bench.quality.page import find_spot
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.images.resize import bicubic, downscale
from mambair_cli.restore.restorer import load_restorer

DATA = Path(__file__).parents[2] / "data"
NASTY = "</script><b>bold & 'quoted'"
DRAGONFLY = read_rgb(DATA / "dragonfly.png")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Facts, benchmark and candidates of two models on four crops."""
    folder = tmp_path_factory.mktemp("bench") / NASTY.replace("/", "∕")
    folder.mkdir()
    for i in range(4):
        crop = DRAGONFLY[16 * i : 16 * i + 80, 20 * i : 20 * i + 100]
        write_image(folder / f"<i>{i}.png", Image(crop))
    benchmark = open_benchmark(str(folder), scale=2)
    candidates = [
        Candidate(name, benchmark.protocol, device="cpu") for name in ("tiny-x2", "tiny-x4")
    ]
    return run(benchmark, candidates), benchmark, candidates


@pytest.fixture(scope="module")
def html(bench):
    return page.build(*bench)


def data_of(html):
    """What the page shows."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    )


def pixels(address):
    kind, _, text = address.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text))))


def test_the_page_holds_the_facts(bench, html):
    facts, data = bench[0], data_of(html)
    assert data["names"] == ["tiny-x2", "tiny-x4"]
    assert data["baseline"] == "bicubic"
    assert [point["image"] for point in data["points"]] == [f"<i>{i}" for i in range(4)]
    for i, point in enumerate(data["points"]):
        decibels = [r.images[i].scores["psnr"] for r in facts.results]
        assert point["x"] == decibels[0]
        assert point["gains"] == [value - decibels[0] for value in decibels[1:]]
    assert NASTY.replace("/", "∕") in data["title"]


def test_the_worst_and_the_best_are_shown(bench, html):
    facts, pictures = bench[0], data_of(html)["pictures"]
    order = sorted(facts.results[1].images, key=lambda row: row.scores["psnr"])
    assert [p["image"] for p in pictures] == [order[i].image for i in (0, 1, 3, 2)]
    assert [p["why"].split()[0] for p in pictures] == ["worst", "worst", "best", "best"]


def test_images_are_shown_without_loss(bench, html):
    facts, benchmark, _ = bench
    for picture in data_of(html)["pictures"]:
        source = next(s for s in benchmark.pairs if s.name == picture["image"])
        truth = read_rgb(source.truth)
        low = downscale(truth, 2)
        labels = [view["label"].split(" (")[0] for view in picture["views"]]
        assert labels == ["bicubic", "tiny-x2", "tiny-x4", "truth"]
        assert (picture["height"], picture["width"]) == truth.shape[:2]
        shown = [pixels(view["src"]) for view in picture["views"]]
        assert np.array_equal(shown[0], bicubic(low, *truth.shape[:2]))
        assert np.array_equal(shown[1], load_restorer("tiny-x2", device="cpu").restore(low))
        assert np.array_equal(shown[3], truth)
        row = next(r for r in facts.results[1].images if r.image == picture["image"])
        scores = f"PSNR {row.scores['psnr']:.3f}, SSIM {row.scores['ssim']:.4f}"
        assert scores in picture["views"][1]["label"]
        x, y, side = picture["spot"]
        assert (y, x, side) == find_spot(shown[1], truth, 64)
        assert side == 64
        assert 0 <= x <= picture["width"] - side
        assert 0 <= y <= picture["height"] - side


def test_large_images_are_cut_around_the_spot(bench, monkeypatch):
    monkeypatch.setattr(page, "LARGEST", 70)
    for picture in data_of(page.build(*bench))["pictures"]:
        assert (picture["width"], picture["height"]) == (70, 70)
        x, y, side = picture["spot"]
        assert 0 <= min(x, y) <= max(x, y) + side <= 70
        assert pixels(picture["views"][3]["src"]).shape == (70, 70, 3)


def test_saved_images_are_not_restored_again(bench, tmp_path, monkeypatch):
    _, benchmark, candidates = bench
    facts = run(benchmark, candidates, save=tmp_path)
    monkeypatch.setattr(Candidate, "restore", None)
    assert data_of(page.build(facts, benchmark, candidates, tmp_path)) == data_of(
        page.build(facts, benchmark, candidates, tmp_path)
    )


def test_few_images_are_shown_once(bench):
    _, benchmark, candidates = bench
    for count, shown in ((1, ["worst"]), (3, ["worst", "worst", "best"])):
        few = open_benchmark(str(benchmark.folder), images=count, scale=2)
        pictures = data_of(page.build(run(few, candidates), few, candidates))["pictures"]
        assert [p["why"].split()[0] for p in pictures] == shown


def test_gray_images_can_be_shown(bench, stored_gray):
    benchmark = open_benchmark(str(bench[1].folder), quality=10, images=2)
    candidates = [Candidate(stored_gray, benchmark.protocol, device="cpu")]
    (worst, best) = data_of(page.build(run(benchmark, candidates), benchmark, candidates))[
        "pictures"
    ]
    assert [view["label"].split(" (")[0] for view in worst["views"]] == ["input", "gray", "truth"]
    shown = pixels(best["views"][-1]["src"])
    assert (shown == shown[..., :1]).all()


@pytest.fixture
def stored_gray(tmp_path):
    from networks import network

    from mambair_cli.models.weights import save_network

    model = network("jpeg")
    save_network(tmp_path / "gray.safetensors", model, model.state_dict(), {})
    return str(tmp_path / "gray.safetensors")


# The place of an image that is shown enlarged


def test_the_spot_holds_the_largest_difference():
    a = np.full((60, 80, 3), 100, np.uint8)
    b = a.copy()
    b[40:45, 60:66, 1] = 90
    b[5, 5] = 120  # stronger, but less in sum
    top, left, side = find_spot(a, b, 16)
    assert side == 16
    assert 29 <= top <= 40
    assert 50 <= left <= 60
    assert find_spot(b[..., 1], a[..., 1], 16)[:2] == (top, left)


def test_a_spot_at_the_edge_lies_inside():
    a = np.zeros((20, 30), np.uint8)
    b = a.copy()
    b[-1, -1] = 255
    top, left, side = find_spot(a, b, 8)
    assert (top, left) == (12, 22)
    assert a[top : top + side, left : left + side].shape == (8, 8)


def test_small_images_are_shown_whole():
    assert find_spot(np.zeros((5, 9)), np.ones((5, 9)), 64) == (0, 0, 5)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory, html):
    """The page, opened."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(html, "utf-8")
    with browsing(folder / "profile") as opened:
        opened.open((folder / "report.html").as_uri())
        yield opened


@needs_chromium
def test_the_page_needs_nothing_else_and_runs_without_errors(browser, html):
    assert browser.evaluate("document.querySelectorAll('.picture').length") == 4
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.evaluate(loaded)
    assert browser.messages == []
    outside = [
        address for address in browser.requests if not address.startswith(("data:", "file:"))
    ]
    assert outside == []
    assert [
        address for address in browser.requests if address.startswith("file:")
    ] == browser.requests[:1]
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)


@needs_chromium
def test_names_are_text(browser):
    assert NASTY.replace("/", "∕") in browser.evaluate("document.title")
    assert browser.evaluate("document.querySelectorAll('b, i').length") == 0
    assert "<i>0" in browser.evaluate("document.getElementById('images').textContent")


@needs_chromium
def test_tables_and_scatter_show_every_result(browser, bench):
    facts = bench[0]
    assert browser.evaluate("document.querySelectorAll('#images tbody tr').length") == 4 + 1
    assert browser.evaluate("document.querySelectorAll('#summary tr.ours').length") == 3
    assert browser.evaluate("document.querySelectorAll('#scatter circle').length") == 8
    first = facts.results[1].mean["psnr"]
    assert f"{first:.3f}" in browser.evaluate(
        "document.querySelector('#summary tbody tr:nth-child(2)').textContent"
    )
    # A dot further right has a higher PSNR of the baseline, one further up a larger gain.
    place = "c => [+c.getAttribute('cx'), +c.getAttribute('cy')]"
    dots = browser.evaluate(
        f"[...document.querySelectorAll('#scatter circle')].slice(0, 4).map({place})"
    )
    rows = [
        (r.scores["psnr"], s.scores["psnr"] - r.scores["psnr"])
        for r, s in zip(*(x.images for x in facts.results[:2]), strict=True)
    ]
    assert np.argsort([x for x, _ in dots]).tolist() == np.argsort([x for x, _ in rows]).tolist()
    assert np.argsort([-y for _, y in dots]).tolist() == np.argsort([y for _, y in rows]).tolist()


STAGE = "document.querySelector('.stage')"
DIVIDER = f"{STAGE}.style.getPropertyValue('--at')"


@needs_chromium
def test_the_slider_moves_by_mouse_and_keys(browser):
    browser.evaluate(f"{STAGE}.scrollIntoView()")
    box = browser.evaluate(f"(b => [b.x, b.y, b.width, b.height])({STAGE}.getBoundingClientRect())")
    x, y, width, height = box

    def drag(start, end):
        browser.drag((x + start * width, y + height / 2), (x + end * width, y + height / 2))
        bar = browser.evaluate(
            f"(b => b.x + b.width / 2)({STAGE}.querySelector('.bar').getBoundingClientRect())"
        )
        return float(browser.evaluate(DIVIDER).rstrip("%")), 100 * (bar - x) / width

    for end in (0.2, 0.8):
        at, bar = drag(0.5, end)
        assert at == pytest.approx(100 * end, abs=3)  # the thumb of a slider has a width
        assert bar == pytest.approx(at, abs=0.5)
        clip = browser.evaluate(f"getComputedStyle({STAGE}.querySelector('.right')).clipPath")
        assert float(re.search(r"([\d.]+)%\)$", clip)[1]) == pytest.approx(at, abs=0.01)
    before = float(browser.evaluate(DIVIDER).rstrip("%"))
    browser.evaluate(f"{STAGE}.querySelector('input').focus()")
    browser.press("ArrowRight")
    assert float(browser.evaluate(DIVIDER).rstrip("%")) > before


@needs_chromium
def test_what_is_left_and_right_of_the_divider_is_what_was_chosen(browser, html):
    """By the colours of the screen."""
    picture = data_of(html)["pictures"][0]
    choose = (
        "(side, i) => { const s = document.querySelector(`select.${side}`);"
        " s.value = i; s.onchange(); }"
    )
    browser.evaluate(f"({choose})('left', 3)")
    browser.evaluate(f"({choose})('right', 0)")
    browser.evaluate(
        f"(() => {{ const r = {STAGE}.querySelector('input'); r.value = 50; r.oninput(); }})()"
    )
    browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    box = browser.evaluate(
        f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])({STAGE}.getBoundingClientRect())"
    )
    x, y, width, height = map(round, box)
    screen = np.asarray(PIL.Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
    stage = screen[y : y + height, x : x + width].astype(int)
    truth, blurred = (
        np.asarray(
            PIL.Image.fromarray(pixels(picture["views"][i]["src"])).resize(
                (width, height), PIL.Image.BILINEAR
            )
        )
        for i in (3, 0)
    )
    for columns, right, wrong in (
        (slice(0, width // 2 - 4), truth, blurred),
        (slice(width // 2 + 4, None), blurred, truth),
    ):
        distance = [
            np.abs(stage[:, columns] - image[:, columns].astype(int)).mean()
            for image in (right, wrong)
        ]
        assert distance[0] < 0.7 * distance[1]


@needs_chromium
def test_crops_enlarge_the_spot(browser, html):
    picture = data_of(html)["pictures"][0]
    crops = browser.evaluate(
        "[...document.querySelector('.crops').querySelectorAll('.crop')]"
        ".map(c => [c.style.backgroundPosition,"
        " c.style.backgroundSize, c.nextSibling.textContent])"
    )
    x, y, side = picture["spot"]
    zoom = 256 / side
    for (position, size, label), view in zip(crops, picture["views"], strict=True):
        assert [float(v[:-2]) for v in position.split()] == pytest.approx([-x * zoom, -y * zoom])
        assert [float(v[:-2]) for v in size.split()] == pytest.approx(
            [picture["width"] * zoom, picture["height"] * zoom]
        )
        assert label == view["label"]
