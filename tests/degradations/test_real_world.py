import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from failing import fails

from mambair_cli.degradations.real_world import Pass, RealWorld, _kernel, _sinc
from mambair_cli.errors import CallError
from mambair_cli.images.metrics import psnr
from mambair_cli.images.resize import downscale
from mambair_cli.images.samples import to_uint8

DATA = Path(__file__).parents[1] / "data"

HARMLESS = Pass(
    blur=(0.05, 0.05), resize=(1, 1), gaussian=(0, 0), poisson=(0, 0), quality=(100, 100)
)


def photo():
    return np.asarray(PIL.Image.open(DATA / "photo.png"), np.float32) / 255


def rng(seed=0):
    return np.random.default_rng(seed)


def score(degradation, seeds=10):
    """Mean PSNR in dB against MATLAB's bicubic."""
    image = photo()
    truth = downscale(to_uint8(image), degradation.scale)
    return np.mean([psnr(to_uint8(degradation(image, rng(seed))), truth) for seed in range(seeds)])


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_results_are_scale_times_smaller_and_in_place(scale):
    image = photo()[:101, :94]
    mild = RealWorld(scale, HARMLESS, HARMLESS)
    for seed in range(5):
        result = mild(image, rng(seed))
        assert result.shape == (101 // scale, 94 // scale, 3)
    truth = downscale(to_uint8(photo()), scale)
    results = [to_uint8(mild(photo(), rng(seed))) for seed in range(10)]
    here, beside = (
        np.mean([psnr(r, np.roll(truth, by, axis)) for r in results for axis in (0, 1)])
        for by in (0, 1)
    )
    assert here > beside + 2


def test_images_smaller_than_the_scale():
    fails(
        lambda: RealWorld(4)(np.zeros((3, 9, 3), np.float32), rng()),
        ValueError,
        "at least 4 pixels",
        "(3, 9, 3)",
    )


@pytest.mark.parametrize("scale", [0, -1, 1.5, "2", None])
def test_wrong_scales(scale):
    fails(
        lambda: RealWorld(scale), CallError, "realworld: scale must be a whole number", repr(scale)
    )


def test_wrong_passes():
    fails(lambda: replace(HARMLESS, resize=(0, 1)), CallError, "pass: resize", "0.05")
    fails(lambda: replace(HARMLESS, quality=(50, 30)), CallError, "pass: quality", "(50, 30)")


@pytest.mark.parametrize(
    "worse",
    [
        {"blur": (3, 3)},
        {"resize": (0.2, 0.2)},
        {"gaussian": (30, 30), "poisson": (3, 3)},
        {"quality": (5, 5)},
    ],
)
@pytest.mark.parametrize("which", ["first", "second"])
def test_each_step_of_each_pass_does_harm(worse, which):
    mild = RealWorld(2, HARMLESS, HARMLESS)
    harmed = replace(mild, **{which: replace(HARMLESS, **worse)})
    assert score(harmed) < score(mild) - 1


def test_noise_is_gray_or_coloured_and_of_both_kinds():
    noisy = replace(HARMLESS, gaussian=(20, 20), poisson=(2, 2))
    image = np.concatenate([np.full((40, 80, 3), v, np.float32) for v in (0.1, 0.8)])
    gray, even = 0, 0
    for seed in range(60):
        noise = noisy.soil(image, rng(seed)) - image
        gray += np.ptp(noise, axis=2).max() < 1e-6
        even += noise[45:].std() < 1.3 * noise[:35].std()
    # two fifths
    assert 12 <= gray <= 36
    # half
    assert 18 <= even <= 42


def test_kernels_are_normalised_low_passes():
    for seed in range(100):
        kernel = _kernel((0.2, 3), rng(seed))
        assert kernel.sum() == pytest.approx(1, abs=1e-4)
        assert kernel.shape[0] == kernel.shape[1] in range(7, 22, 2)
        assert np.isfinite(kernel).all()
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
    wide = [np.abs(np.fft.fft2(_kernel((3, 3), rng(s)), (32, 32)))[16, 16] for s in range(20)]
    assert np.median(wide) < 0.01


def test_the_sinc_kernel_cuts_frequencies_and_rings():
    for seed in range(20):
        kernel = _sinc(rng(seed))
        cutoff = rng(seed).uniform(np.pi / 3, np.pi)
        middle = len(kernel) // 2
        ratio = kernel[middle, middle + 1] / kernel[middle, middle]
        terms = [
            (-((cutoff / 2) ** 2)) ** k / (math.factorial(k) * math.factorial(k + 1))
            for k in range(20)
        ]
        # J1(x) / (x / 2) by its series
        assert ratio == pytest.approx(sum(terms), abs=1e-4)
        assert kernel.min() < 0
