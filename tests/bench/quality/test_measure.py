import json
import math
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from failing import fails
from networks import network

from mambair_cli.bench.quality import measure as quality
from mambair_cli.bench.quality import sets
from mambair_cli.bench.quality.candidates import Candidate
from mambair_cli.bench.quality.measure import open_benchmark, run, saved_image
from mambair_cli.bench.quality.sets import DataSet, digest_of, hash_of
from mambair_cli.degradations.jpeg import compress
from mambair_cli.errors import CacheError, CallError, ImageError
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.images.metrics import psnr_y, scores, ssim_y
from mambair_cli.images.resize import bicubic, downscale, modcrop
from mambair_cli.models.published import published
from mambair_cli.models.weights import save_network
from mambair_cli.restore.restorer import load_restorer

DATA = Path(__file__).parents[2] / "data"
OSPREY, DRAGONFLY = read_rgb(DATA / "osprey.png"), read_rgb(DATA / "dragonfly.png")
EVAL = Path(os.environ.get("MAMBAIR_DATA", Path(__file__).parents[4] / "shared" / "data" / "eval"))
CROPS = {"a": OSPREY[20:69, 10:81], "b": DRAGONFLY[30:85, 60:109], "c": DRAGONFLY[:40, :64]}


@pytest.fixture
def folder(tmp_path):
    """Crops whose sides are no multiples of any scale, one of them in a folder of its own."""
    folder = tmp_path / "set"
    (folder / "deeper").mkdir(parents=True)
    for name, place in (("a", "a.png"), ("b", "deeper/b.png"), ("c", "c.png")):
        write_image(folder / place, Image(CROPS[name]))
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def pairs(tmp_path):
    """Rainy images: pairs of equal size."""
    for kind, change in (("target", 0), ("input", 60)):
        (tmp_path / "rain" / kind).mkdir(parents=True)
        for name, crop in CROPS.items():
            pixels = np.clip(
                crop.astype(int) + change * (np.arange(crop.shape[1]) % 7 == 0)[:, None], 0, 255
            )
            write_image(tmp_path / "rain" / kind / f"{name}.png", Image(pixels.astype(np.uint8)))
    return tmp_path / "rain"


@pytest.fixture
def stored(tmp_path):
    """Stores a small network of a form; its file."""

    def store(form, **changes):
        path = tmp_path / f"{form}.safetensors"
        model = network(form, **changes)
        save_network(path, model, model.state_dict(), {})
        return str(path)

    return store


def bench(folder, models=("tiny-x2",), *, images=None, tiler="auto", **call):
    names = ("scale", "noise", "quality", "pairs", "channel", "border", "seed")
    choices = {name: call.pop(name) for name in names if name in call}
    benchmark = open_benchmark(str(folder), None, images, **choices)
    candidates = [Candidate(model, benchmark.protocol, tiler, device="cpu") for model in models]
    return run(benchmark, candidates, **call)


# Numbers


@pytest.mark.parametrize(("model", "scale"), [("tiny-x2", 2), ("tiny-x4", 4), ("tiny-x4", 3)])
def test_super_resolution_by_hand(folder, model, scale):
    facts = bench(folder, [model], scale=scale)
    restorer = load_restorer(model, device="cpu")
    assert (facts.dataset, facts.setting, facts.channel, facts.border) == (
        "set",
        f"x{scale}",
        "y",
        scale,
    )
    baseline, result = facts.results
    assert (baseline.name, result.name, result.network.backend) == (
        "bicubic",
        model,
        restorer.backend,
    )
    assert [row.image for row in result.images] == ["a", "b", "c"]
    for enlarged, row, whole in zip(baseline.images, result.images, CROPS.values(), strict=True):
        high = modcrop(whole, scale)
        low = downscale(whole, scale)
        restored = restorer.restore(low)
        if restorer.scale != scale:
            restored = bicubic(restored, *high.shape[:2])
        assert row.scores["psnr"] == psnr_y(restored, high, border=scale)
        assert row.scores["ssim"] == ssim_y(restored, high, border=scale)
        assert enlarged.scores["psnr"] == psnr_y(bicubic(low, *high.shape[:2]), high, border=scale)
        assert enlarged.scores["ssim"] == ssim_y(bicubic(low, *high.shape[:2]), high, border=scale)
        assert (row.width, row.height) == high.shape[1::-1]
        assert row.seconds > 0
        assert row.peak_memory > 2**20
    for r in facts.results:
        for key in ("psnr", "ssim"):
            values = [row.scores[key] for row in r.images]
            assert r.mean[key] == pytest.approx(np.mean(values))
            assert r.interval[key][0] < r.mean[key] < r.interval[key][1]
    megapixels = sum(row.width * row.height for row in result.images) / 1e6
    assert result.megapixels_per_second == pytest.approx(megapixels / result.seconds)
    assert 0 < facts.network_seconds <= facts.seconds


long = pytest.mark.long


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs the benchmark images in ../shared")
@pytest.mark.parametrize(
    ("name", "scale", "decibels", "similarity"),
    [
        ("Set5", 2, 33.673, 0.9303),
        ("Set5", 3, 30.403, 0.8689),
        ("Set5", 4, 28.429, 0.8111),
        ("Set14", 2, 30.325, 0.8699),
        ("Set14", 3, 27.631, 0.7759),
        ("Set14", 4, 26.088, 0.7048),
        pytest.param("B100", 2, 29.560, 0.8434, marks=long),
        pytest.param("B100", 3, 27.209, 0.7391, marks=long),
        pytest.param("B100", 4, 25.961, 0.6681, marks=long),
        pytest.param("Urban100", 2, 27.697, 0.8550, marks=long),
        pytest.param("Urban100", 3, 25.102, 0.7492, marks=long),
        pytest.param("Urban100", 4, 23.687, 0.6694, marks=long),
        ("Rain100H", None, 13.536, 0.3872),
    ],
)
def test_baselines_of_known_sets(name, scale, decibels, similarity):
    """Urban100's are of its ten images that are at hand, Rain100H's of twenty."""
    baseline = run(open_benchmark(name, EVAL, scale=scale), []).results[0].mean
    assert baseline["psnr"] == pytest.approx(decibels, abs=5.1e-4)
    assert baseline["ssim"] == pytest.approx(similarity, abs=5.1e-5)


def test_numbers_agree_with_the_saved_files(folder, tmp_path):
    """Computed from the PNGs with nothing of this package."""
    facts = bench(folder, ["tiny-x2"], scale=2, save=tmp_path / "out")
    for row, whole in zip(facts.results[1].images, CROPS.values(), strict=True):
        saved = np.asarray(
            PIL.Image.open(tmp_path / "out" / "set-x2" / "tiny-x2" / f"{row.image}.png"),
            np.float64,
        )
        truth = whole[: len(saved), : saved.shape[1]].astype(np.float64)
        weights = np.array([65.481, 128.553, 24.966]) / 255
        error = ((saved - truth) @ weights)[2:-2, 2:-2]
        assert row.scores["psnr"] == pytest.approx(
            10 * math.log10(255**2 / np.mean(error**2)), abs=1e-3
        )


def test_the_bundled_model_beats_bicubic(folder):
    baseline, result = bench(folder, scale=2).results
    assert result.mean["psnr"] > baseline.mean["psnr"] + 0.5
    assert result.mean["ssim"] > baseline.mean["ssim"]


def test_several_models_stand_side_by_side(folder):
    facts = bench(folder, ["tiny-x4", "tiny-x2"], scale=2)
    assert [r.name for r in facts.results] == ["bicubic", "tiny-x4", "tiny-x2"]
    alone = bench(folder, ["tiny-x2"], scale=2)
    assert alone.results[1].mean == facts.results[2].mean
    assert facts.results[1].mean != facts.results[2].mean


def test_tilers_give_their_own_numbers(folder, tmp_path):
    write_image(folder / "large.png", Image(np.tile(OSPREY, (4, 1, 1))[:420]))
    whole, parts = (bench(folder, scale=2, tiler=tiler) for tiler in ("whole", "published"))
    assert (whole.tiler, parts.tiler) == ("whole", "published")
    images = [
        {row.image: row.scores["psnr"] for row in facts.results[1].images}
        for facts in (whole, parts)
    ]
    assert images[0]["a"] == images[1]["a"]  # under 200 pixels there is one part
    assert images[0]["large"] != images[1]["large"]


# Other tasks than enlarging, with networks that stand for trained ones


def test_denoising(folder, stored):
    for seed in (0, 5):
        facts = bench(folder, [stored("denoise")], noise=25.0, seed=seed)
        assert (facts.task, facts.setting, facts.channel, facts.seed) == (
            "denoise",
            "sigma25",
            "rgb",
            seed,
        )
        assert f"seed {seed}" in facts.inputs
        np.random.seed(seed)
        noisy = CROPS["a"][:, :, ::-1] / 255 + np.random.normal(0, 25 / 255, CROPS["a"].shape)
        shown = np.floor(noisy[:, :, ::-1].astype(np.float32).clip(0, 1) * 255 + 0.5)
        error = np.mean((shown - CROPS["a"]) ** 2)
        row = facts.results[0].images[0]
        assert facts.results[0].name == "input"
        assert row.scores["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)
        assert 19 < row.scores["psnr"] < 22


@pytest.mark.parametrize("form", ["jpeg", "denoise"])
def test_jpeg(folder, stored, form):
    facts = bench(folder, [stored(form)], quality=10)
    assert (facts.task, facts.setting, facts.channel) == ("dejpeg", "q10", "gray")
    gray = np.floor(16 + CROPS["a"] @ np.array([65.481, 128.553, 24.966]) / 255 + 0.5).astype(
        np.uint8
    )
    expected = scores(compress(gray, 10), gray, channel="gray", border=0)
    row = facts.results[0].images[0]
    assert (row.scores["psnr"], row.scores["ssim"]) == pytest.approx(expected)
    assert facts.results[1].images[0].scores["psnr"] != row.scores["psnr"]


def test_deraining_reads_both_and_offers_a_border(pairs, stored):
    model = stored("denoise")
    means = []
    for border in (None, 4):
        facts = bench(pairs, [model], pairs="derain", border=border)
        assert (facts.task, facts.border, facts.inputs) == (
            "derain",
            border or 0,
            "read from files",
        )
        rainy = read_rgb(pairs / "input" / "a.png")
        expected = psnr_y(rainy, CROPS["a"], border=border or 0)
        assert facts.results[0].images[0].scores["psnr"] == expected
        means.append(facts.results[1].mean["psnr"])
    assert means[0] != means[1]


def test_channels(pairs, stored):
    means = {}
    for channel in ("y", "rgb", "gray"):
        facts = bench(pairs, [stored("denoise")], pairs="denoise-real", channel=channel)
        means[channel] = facts.results[0].mean["psnr"]
    assert len(set(means.values())) == 3


def test_deep_tiff_and_large_files_take_part(folder):
    write_image(folder / "a.tif", Image(CROPS["a"].astype(np.uint16) * 257))
    (folder / "a.png").unlink()
    facts = bench(folder, [], scale=2)
    assert facts.results[0].images[0].scores["psnr"] == psnr_y(
        bicubic(downscale(CROPS["a"], 2), 48, 70), modcrop(CROPS["a"], 2), border=2
    )
    PIL.Image.new("1", (20_000, 10_000)).save(folder / "large.png")  # over the limit of Pillow
    assert open_benchmark(str(folder), scale=2).pixels[-1] == 2 * 10**8


# Known sets


@pytest.fixture
def known(folder, monkeypatch):
    """The folder as the known set Toy, beside it a published figure."""
    row = DataSet(
        "Toy", "upscale", 3, "none", "toys.example", digest_of(map(hash_of, CROPS.values()))
    )
    monkeypatch.setattr(sets, "SETS", (row,))
    monkeypatch.setenv("MAMBAIR_DATA", str(folder.parent))
    folder.rename(folder.parent / "toy")
    figures = published(["light_sr"], "x2", "Set5")
    monkeypatch.setattr(
        quality, "published", lambda tables, setting, name: [figures[0]] if name == "Toy" else []
    )
    return folder.parent / "toy"


def test_a_known_set_is_checked_and_stands_beside_what_is_published(known):
    facts = bench("Toy", scale=2)
    assert facts.copy == "all 3 images, pixels as known"
    assert facts.complete
    assert facts.folder == str(known)
    assert [row.method for row in facts.published] == ["CARN"]
    part = bench("Toy", scale=2, images=2)
    assert (part.copy, part.complete) == ("2 images", False)
    write_image(known / "a.png", Image(CROPS["a"] ^ 1))
    assert "not the pixels" in bench("Toy", scale=2).copy
    (known / "c.png").unlink()
    assert bench("Toy", scale=2).copy == "2 of its 3 images"
    write_image(known / "d.png", Image(CROPS["a"]))
    write_image(known / "e.png", Image(CROPS["a"]))
    fails(lambda: bench("Toy", scale=2), CallError, "holds 4 images", "Toy has 3")


def test_members_of_a_larger_set(known, monkeypatch):
    row = DataSet(
        "Part", "denoise", 2, "none", "toys.example", part_of="Toy", members=frozenset("ac")
    )
    monkeypatch.setattr(sets, "SETS", (*sets.SETS, row))
    benchmark = open_benchmark("Part", noise=25)
    assert [pair.name for pair in benchmark.pairs] == ["a", "c"]
    assert benchmark.pixels == [49 * 71, 40 * 64]


def test_low_resolution_files_are_taken_as_they_are(folder):
    made = bench(folder, scale=2)
    for name, crop in CROPS.items():
        (folder / "LR_bicubic" / "X2").mkdir(parents=True, exist_ok=True)
        write_image(folder / "LR_bicubic" / "X2" / f"{name}x2.png", Image(downscale(crop, 2)))
    read = bench(folder, scale=2)
    assert "made here" in made.inputs
    assert read.inputs == "read from files"
    for a, b in zip(made.results, read.results, strict=True):
        assert a.mean == b.mean


# Keeping results


def count_runs(monkeypatch):
    """The images that go through networks from now on."""
    measure, seen = Candidate.measure, []

    def counting(self, image, size, progress):
        seen.append((self.name, size))
        return measure(self, image, size, progress)

    monkeypatch.setattr(Candidate, "measure", counting)
    return seen


def test_results_are_kept_by_all_that_they_depend_on(folder, tmp_path, monkeypatch):
    cache, seen = tmp_path / "rows.sqlite", count_runs(monkeypatch)
    first = bench(folder, scale=2, cache=cache)
    assert len(seen) == 3
    again = bench(folder, scale=2, cache=cache)
    assert len(seen) == 3
    assert again.results == first.results
    assert again.network_seconds == 0
    for changes, runs in (
        ({"border": 0}, 3),
        ({"channel": "rgb"}, 3),
        ({"models": ["tiny-x4"]}, 3),
        ({"models": ["tiny-x4", "tiny-x2"]}, 0),
        ({"images": 2}, 0),
        ({"fresh": True}, 3),
    ):
        seen.clear()
        facts = bench(folder, **{"models": ["tiny-x2"], "scale": 2, "cache": cache} | changes)
        assert len(seen) == runs, changes
        assert len(facts.results[1].images) == changes.get("images", 3)
    seen.clear()
    write_image(folder / "a.png", Image(CROPS["a"] ^ 1))
    (folder / "c.png").rename(folder / "new.png")  # the same pixels
    facts = bench(folder, scale=2, cache=cache)
    assert len(seen) == 1
    assert [row.image for row in facts.results[1].images] == ["a", "b", "new"]


def test_results_of_other_code_are_not_taken(folder, tmp_path, monkeypatch):
    cache, seen = tmp_path / "rows.sqlite", count_runs(monkeypatch)
    bench(folder, scale=2, cache=cache, images=1)
    monkeypatch.setattr(quality, "code_digest", lambda: "after a fix")
    bench(folder, scale=2, cache=cache, images=1)
    bench(folder, scale=2, cache=cache, images=1)
    assert len(seen) == 2


def test_an_interrupted_run_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    cache, seen = tmp_path / "rows.sqlite", count_runs(monkeypatch)

    def stop(share, label):
        if label == "tiny-x2 c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(folder, scale=2, cache=cache, progress=stop)
    assert len(seen) == 2
    facts = bench(folder, scale=2, cache=cache)
    assert len(seen) == 3
    assert facts.results == bench(folder, scale=2, cache=cache).results


def test_a_kept_result_whose_image_is_wanted_is_computed_again(folder, tmp_path, monkeypatch):
    cache, seen = tmp_path / "rows.sqlite", count_runs(monkeypatch)
    bench(folder, scale=2, cache=cache)
    bench(folder, scale=2, cache=cache, save=tmp_path / "out")
    assert len(seen) == 6
    assert sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")
    ) == [f"set-x2/{name}/{image}.png" for name in ("bicubic", "tiny-x2") for image in "abc"]
    bench(folder, scale=2, cache=cache, save=tmp_path / "out")
    assert len(seen) == 6
    saved = saved_image(tmp_path / "out", open_benchmark(str(folder), scale=2), "tiny-x2", "b")
    whole = saved.read_bytes()
    for spoil in (
        saved.unlink,
        lambda: saved.write_bytes(whole[:-100]),
        lambda: write_image(saved, Image(CROPS["b"])),
    ):
        spoil()
        seen.clear()
        bench(folder, scale=2, cache=cache, save=tmp_path / "out")
        assert len(seen) == 1
        assert saved.read_bytes() == whole


def test_saved_images_are_those_of_the_figures_whatever_was_saved_there_before(
    folder, tmp_path, stored
):
    """Runs of other noise and of another network of the same name come between."""
    (tmp_path / "other").mkdir()
    other = Path(stored("denoise", embed_dim=16)).rename(tmp_path / "other" / "denoise.safetensors")
    first = {"models": [stored("denoise")], "noise": 5.0}
    means = []
    for call in (
        first,
        first | {"noise": 60.0},
        first,
        first | {"seed": 1},
        first,
        first | {"models": [str(other)]},
        first,
    ):
        facts = bench(folder, save=tmp_path / "out", cache=tmp_path / "rows.sqlite", **call)
        place = open_benchmark(str(folder), noise=call["noise"])
        for result in facts.results:
            for row in result.images:
                saved = read_rgb(saved_image(tmp_path / "out", place, result.name, row.image))
                assert scores(saved, CROPS[row.image], channel="rgb", border=0) == (
                    row.scores["psnr"],
                    row.scores["ssim"],
                ), call
        means.append([result.mean["psnr"] for result in facts.results])
    assert means[0] == means[2] == means[4] == means[6]
    assert len({mean[1] for mean in means}) == 4


def test_a_broken_cache_is_an_error(folder, tmp_path):
    (tmp_path / "rows.sqlite").write_text("no data base" * 1000)
    fails(
        lambda: bench(folder, scale=2, cache=tmp_path / "rows.sqlite"),
        CacheError,
        "rows.sqlite",
        "delete it",
    )


# The rest


def test_progress_rises_over_the_whole_run(folder):
    said = []
    bench(
        folder,
        ["tiny-x2", "tiny-x4"],
        scale=2,
        progress=lambda share, label: said.append((share, label)),
    )
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert list(dict.fromkeys(label for _, label in said)) == [
        f"{model} {image}" for image in "abc" for model in ("tiny-x2", "tiny-x4")
    ]
    pixels = [crop.shape[0] * crop.shape[1] for crop in CROPS.values()]
    assert next(share for share, label in said if label == "tiny-x2 b") == pytest.approx(
        pixels[0] / sum(pixels)
    )


def test_without_models_the_baseline_is_measured(folder):
    facts = bench(folder, [], scale=4)
    assert [r.name for r in facts.results] == ["bicubic"]
    assert facts.tiler is None


def test_metrics_of_other_packages_stand_beside(folder, monkeypatch):
    monkeypatch.setattr(
        quality, "load_distance", lambda name: lambda a, b: float(np.abs(a.astype(int) - b).mean())
    )
    facts = bench(folder, scale=2, metrics=["lpips"])
    baseline, result = facts.results
    assert 0 < result.mean["lpips"] < baseline.mean["lpips"]
    assert result.interval["lpips"][0] < result.mean["lpips"]


def test_equal_images_have_an_infinite_psnr(folder):
    for image in folder.rglob("*.png"):
        write_image(image, Image(np.full((40, 40, 3), 90, np.uint8)))
    baseline = bench(folder, [], scale=2).results[0]
    assert baseline.mean["psnr"] == math.inf
    assert baseline.interval["psnr"] is None
    assert json.loads(json.dumps(baseline.to_json()))["mean"]["psnr"] == math.inf


def test_what_cannot_be_measured(folder, tmp_path, stored):
    fails(
        lambda: bench(tmp_path / "none", scale=2), CallError, "none is no data set and not a folder"
    )
    fails(lambda: bench(folder, ["tiny-x2"], scale=4), CallError, "2 times, not 4")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "tiny-x2.safetensors").write_bytes(
        Path(stored("light_c", upscale=2)).read_bytes()
    )
    same = [str(tmp_path / "copy" / "tiny-x2.safetensors"), "tiny-x2"]
    fails(
        lambda: bench(folder, same, scale=2),
        CallError,
        "two results would be called tiny-x2",
        "rename",
    )
    for name, form, call in (
        ("bicubic", "light_c", {"scale": 4}),
        ("input", "denoise", {"noise": 25.0}),
    ):
        file = Path(stored(form)).rename(tmp_path / f"{name}.safetensors")
        fails(
            lambda file=file, call=call: bench(folder, [str(file)], **call),
            CallError,
            f"would be called {name}",
            "rename",
        )
    (folder / "d.png").write_bytes(b"\x89PNG no image")
    fails(lambda: bench(folder, scale=2), ImageError, "d.png", "not an image")
    whole = (folder / "a.png").read_bytes()
    (folder / "d.png").write_bytes(whole[: len(whole) // 2])  # its head is that of an image
    fails(lambda: bench(folder, scale=2), ImageError, "d.png")
    write_image(folder / "d.png", Image(OSPREY[:14, :50]))
    fails(lambda: bench(folder, scale=2), CallError, "d.png", "50x14", "too small")
