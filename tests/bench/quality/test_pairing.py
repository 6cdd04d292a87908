from pathlib import Path

import numpy as np
import pytest
from failing import fails

from mambair_cli.bench.quality.pairing import Pair, find_pairs, load_sample
from mambair_cli.bench.quality.protocols import (
    PAIRED,
    choose_protocol,
    denoising,
    jpeg,
    super_resolution,
)
from mambair_cli.bench.quality.sets import hash_of
from mambair_cli.errors import CallError, ImageError
from mambair_cli.images.io import Image, write_image
from mambair_cli.images.resize import downscale

DERAIN = PAIRED["derain"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def put(folder, *names):
    """Empty files, which suffice to be paired."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Image(pixels))
    return path


def pairs(folder, protocol):
    """Name, truth and input (None: to be made), relative to the folder."""
    return [
        (
            s.name,
            s.truth.relative_to(folder).as_posix(),
            s.input and s.input.relative_to(folder).as_posix(),
        )
        for s in find_pairs(folder, protocol)
    ]


# Layouts: files, and what pairs at x2 or as pairs of equal size.

ENLARGING = {
    "alone": (["b.png", "a.jpg"], [("a", "a.jpg", None), ("b", "b.png", None)]),
    "a folder of truths": (["HR/a.png"], [("a", "HR/a.png", None)]),
    "EDSR": (
        ["HR/a.png", "LR_bicubic/X2/ax2.png", "LR_bicubic/X3/ax3.png"],
        [("a", "HR/a.png", "LR_bicubic/X2/ax2.png")],
    ),
    "DIV2K": (
        ["DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png"],
        [("0801", "DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png")],
    ),
    "BasicSR": (
        ["GTmod12/a.png", "LRbicx2/a.png", "LRbicx4/a.png"],
        [("a", "GTmod12/a.png", "LRbicx2/a.png")],
    ),
    "RCAN": (
        [
            "HR/x2/a_HR_x2.png",
            "LR/LRBI/x2/a_LRBI_x2.png",
            "HR/x3/a_HR_x3.png",
            "LR/LRBI/x3/a_LRBI_x3.png",
        ],
        [("a", "HR/x2/a_HR_x2.png", "LR/LRBI/x2/a_LRBI_x2.png")],
    ),
    "SelfExSR": (
        [f"image_SRF_{s}/img_001_SRF_{s}_{kind}.png" for s in (2, 4) for kind in ("HR", "LR")],
        [("img_001", "image_SRF_2/img_001_SRF_2_HR.png", "image_SRF_2/img_001_SRF_2_LR.png")],
    ),
    "one folder": (
        ["a.png", "ax2.png", "ax4.png", "b.png", "b_x2.png"],
        [("a", "a.png", "ax2.png"), ("b", "b.png", "b_x2.png")],
    ),
    "other scales only": (["HR/a.png", "LR_bicubic/X3/ax3.png"], [("a", "HR/a.png", None)]),
    "a photographer's names": (
        ["img_x4.png", "my_real.png", "max2.png", "rain-in-may.png"],
        [(stem, f"{stem}.png", None) for stem in ("img_x4", "max2", "my_real", "rain-in-may")],
    ),
    "equal names in several folders": (
        ["a/1.png", "b/1.png"],
        [("a/1", "a/1.png", None), ("b/1", "b/1.png", None)],
    ),
    "equal names in one folder": (
        ["a.png", "a.jpg"],
        [("a.jpg", "a.jpg", None), ("a.png", "a.png", None)],
    ),
    "small images alone": (
        ["LR/a.png", "LR/b.png"],
        [("a", "LR/a.png", None), ("b", "LR/b.png", None)],
    ),
}
EQUAL = {
    "input and target": (["input/1.png", "target/1.png"], [("1", "target/1.png", "input/1.png")]),
    "MPRNet's SIDD": (
        ["noisy/1.png", "groundtruth/1.png"],
        [("1", "groundtruth/1.png", "noisy/1.png")],
    ),
    "Rain100H as first published": (
        ["rainy/rain-001.png", "rainy/norain-001.png"],
        [("001", "rainy/norain-001.png", "rainy/rain-001.png")],
    ),
    "PolyU": (
        ["chair_11_mean.JPG", "chair_11_Real.JPG"],
        [("chair_11", "chair_11_mean.JPG", "chair_11_Real.JPG")],
    ),
    "by their ends": (["a_gt.png", "a_noisy.png"], [("a", "a_gt.png", "a_noisy.png")]),
}


@pytest.mark.parametrize(("files", "expected"), ENLARGING.values(), ids=ENLARGING)
def test_layouts_for_enlarging(tmp_path, files, expected):
    put(tmp_path, *files, "notes.txt")
    assert pairs(tmp_path, super_resolution(2)) == expected


@pytest.mark.parametrize(("files", "expected"), EQUAL.values(), ids=EQUAL)
def test_layouts_of_pairs(tmp_path, files, expected):
    put(tmp_path, *files)
    assert pairs(tmp_path, DERAIN) == expected


def test_noise_and_jpeg_are_made_even_where_inputs_are_there(tmp_path):
    put(tmp_path, "HR/a.png", "LR_bicubic/X2/ax2.png")
    for protocol in (denoising(25), jpeg(10)):
        assert pairs(tmp_path, protocol) == [("a", "HR/a.png", None)]


@pytest.mark.parametrize(
    ("files", "protocol", "words"),
    [
        (
            ["input/a.png", "target/a.png", "target/b.png"],
            DERAIN,
            ["without a partner: target/b.png"],
        ),
        (
            ["input/a.png", "input/b.png", "target/a.png"],
            DERAIN,
            ["without a partner: input/b.png"],
        ),
        (
            ["HR/a.png", "HR/b.png", "LR/X2/ax2.png"],
            super_resolution(2),
            ["without a partner: HR/b.png"],
        ),
        (
            ["input/a.png", *(f"target/{c}.png" for c in "abcdef")],
            DERAIN,
            ["b.png, target/c.png, target/d.png and 2 more"],
        ),
        (["target/a.png"], DERAIN, ["no inputs", "folder such as input"]),
        (["input/a.png"], DERAIN, ["without truths", "HR, GT or target"]),
        (
            ["HR/a.png", "HR/a.jpg", "LR/a.png"],
            super_resolution(2),
            ["HR/a.jpg and HR/a.png stand for the same"],
        ),
        (
            ["GTmod4/a.png", "GTmod12/a.png", "LRbicx2/a.png"],
            super_resolution(2),
            ["GTmod12/a.png", "GTmod4/a.png"],
        ),
        (["HR/x3/a_HR_x3.png"], super_resolution(2), ["no truths for x2"]),
        (["notes.txt"], super_resolution(2), ["holds no image"]),
    ],
)
def test_what_does_not_pair(tmp_path, files, protocol, words):
    put(tmp_path, *files)
    fails(lambda: find_pairs(tmp_path, protocol), CallError, tmp_path, *words)


# Samples


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_low_resolution_image_is_made_where_there_is_none(tmp_path, scale):
    sample = load_sample(Pair("a", save(tmp_path / "a.png", PIXELS)), super_resolution(scale))
    assert np.array_equal(sample.truth, PIXELS[: 40 - 40 % scale, : 52 - 52 % scale])
    assert np.array_equal(sample.input, downscale(PIXELS, scale))
    assert sample.pixels == hash_of(PIXELS)


def test_a_low_resolution_image_is_taken_as_it_is(tmp_path):
    other = downscale(PIXELS, 3) // 2
    source = Pair("a", save(tmp_path / "a.png", PIXELS), save(tmp_path / "ax3.png", other))
    sample = load_sample(source, super_resolution(3))
    assert np.array_equal(sample.input, other)
    assert sample.truth.shape == (39, 51, 3)


def test_pairs_noise_and_gray(tmp_path):
    truth, rainy = save(tmp_path / "t.png", PIXELS), save(tmp_path / "i.png", PIXELS // 2)
    sample = load_sample(Pair("a", truth, rainy), DERAIN)
    assert np.array_equal(sample.truth, PIXELS)
    assert np.array_equal(sample.input, PIXELS // 2)
    sample = load_sample(Pair("a", truth), denoising(50))
    assert (sample.truth.dtype, sample.input.dtype, sample.input.shape) == (
        np.uint8,
        np.float32,
        PIXELS.shape,
    )
    gray = load_sample(Pair("a", save(tmp_path / "g.png", PIXELS[..., 0])), jpeg(10))
    assert gray.truth.shape == gray.input.shape == (40, 52)
    assert np.array_equal(gray.truth, PIXELS[..., 0])
    colour = load_sample(Pair("a", truth), choose_protocol(None, quality=10, channel="rgb"))
    assert colour.input.shape == PIXELS.shape


def test_the_digest_is_of_what_is_measured(tmp_path):
    truth, other = save(tmp_path / "a.png", PIXELS), save(tmp_path / "b.png", PIXELS ^ 1)
    digests = [
        load_sample(Pair("a", truth), super_resolution(2)).digest,
        load_sample(Pair("b", save(tmp_path / "c.bmp", PIXELS)), super_resolution(2)).digest,
        load_sample(Pair("a", other), super_resolution(2)).digest,
        load_sample(Pair("a", truth), super_resolution(3)).digest,
        load_sample(Pair("a", truth), denoising(25, 0)).digest,
        load_sample(Pair("a", truth), denoising(25, 1)).digest,
        load_sample(Pair("a", truth, other), DERAIN).digest,
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 6


def test_samples_that_cannot_be_measured(tmp_path):
    truth = save(tmp_path / "truth.png", PIXELS)
    low = save(tmp_path / "low.png", downscale(PIXELS, 3))
    fails(
        lambda: load_sample(Pair("a", truth, low), super_resolution(2)),
        CallError,
        low,
        "17x13",
        "26x20",
        "x2",
    )
    fails(
        lambda: load_sample(Pair("a", truth, low), DERAIN),
        CallError,
        low,
        truth,
        "17x13",
        "52x40",
    )
    small = save(tmp_path / "small.png", PIXELS[:14])
    fails(
        lambda: load_sample(Pair("a", small), super_resolution(2)),
        CallError,
        small,
        "52x14",
        "too small",
        "11",
    )
    load_sample(Pair("a", save(tmp_path / "enough.png", PIXELS[:16])), super_resolution(2))
    fails(
        lambda: load_sample(Pair("a", save(tmp_path / "s.png", PIXELS[:10])), jpeg(10)),
        CallError,
        "too small",
    )
    bad = tmp_path / "bad.png"
    bad.write_bytes(truth.read_bytes()[:500])
    for source in (Pair("a", bad), Pair("a", truth, bad)):
        fails(
            lambda source=source: load_sample(source, DERAIN if source.input else jpeg(10)),
            ImageError,
            bad,
        )
    missing = Path(tmp_path / "missing.png")
    fails(lambda: load_sample(Pair("a", missing), jpeg(10)), CallError, missing)
