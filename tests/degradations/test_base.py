import io
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
from failing import fails

from mambair_cli.degradations.base import (
    FULL_CHROMA,
    HALF_CHROMA,
    Degradation,
    Jpeg,
    Noise,
    Sensor,
    compress,
    draw_log,
    published_noise,
    to_pixels,
)
from mambair_cli.degradations.rain import Rain
from mambair_cli.degradations.real_world import Pass, RealWorld
from mambair_cli.errors import CallError
from mambair_cli.images.metrics import psnr, ssim

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"
DATA = Path(__file__).parents[1] / "data"
ALL = (Noise(), Jpeg(), Sensor(), Rain(), RealWorld(scale=1), RealWorld(scale=4))
every_degradation = pytest.mark.parametrize("degradation", ALL, ids=lambda d: f"{type(d).__name__}")


def photo(name="photo"):
    return np.asarray(PIL.Image.open(DATA / f"{name}.png"), np.float32) / 255


def flat(value, height=128, width=128):
    return np.full((height, width, 3), value, np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


# What holds for all


@every_degradation
def test_the_result_depends_on_image_and_seed_alone(degradation):
    image = photo()
    kept = image.copy()
    first = degradation(image, rng(3))
    assert np.array_equal(first, degradation(image, rng(3)))
    assert not np.array_equal(first, degradation(image, rng(4)))
    assert np.array_equal(image, kept)
    assert first.dtype == np.float32
    assert not np.shares_memory(first, image)


@every_degradation
def test_draws_are_independent_of_the_global_state(degradation):
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    degradation(photo(), rng())
    assert np.array_equal(np.random.get_state()[1], state)


@every_degradation
@pytest.mark.parametrize("size", [(4, 4), (5, 131), (67, 6), (64, 80)], ids=str)
def test_any_size(degradation, size):
    scale = getattr(degradation, "scale", 1)
    for seed in range(8):
        result = degradation(rng(seed).random((*size, 3), np.float32), rng(seed))
        assert result.shape == (size[0] // scale, size[1] // scale, 3)
        assert np.isfinite(result).all()


@pytest.mark.parametrize("degradation", ALL[:5], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)], ids=str)
def test_the_smallest_images(degradation, size):
    for value in (0, 1, 0.5):
        result = degradation(flat(value, *size), rng())
        assert result.shape == (*size, 3)
        assert np.isfinite(result).all()


@pytest.mark.parametrize("degradation", ALL[1:], ids=lambda d: type(d).__name__)
def test_results_are_those_of_files(degradation):
    for seed in range(5):
        result = degradation(photo(), rng(seed))
        assert result.min() >= 0
        assert result.max() <= 1
        assert np.abs(result * 255 - np.rint(result * 255)).max() < 1e-4


@every_degradation
def test_wrong_images(degradation):
    good = flat(0.5, 8, 8)
    fails(
        lambda: degradation(good.astype(np.float64), rng()),
        ValueError,
        "expected float32, got float64",
    )
    fails(
        lambda: degradation((good * 255).astype(np.uint8), rng()),
        ValueError,
        "expected float32, got uint8",
    )
    fails(lambda: degradation(good.tolist(), rng()), ValueError, "expected float32, got list")
    fails(lambda: degradation(good[..., 0], rng()), ValueError, "H x W x 3", "(8, 8)")
    fails(lambda: degradation(good[..., :1], rng()), ValueError, "H x W x 3", "(8, 8, 1)")
    fails(lambda: degradation(good[:0], rng()), ValueError, "H x W x 3", "(0, 8, 3)")
    for value in (np.nan, np.inf, -0.01, 1.01, 255):
        wrong = good.copy()
        wrong[3, 4, 1] = value
        fails(lambda wrong=wrong: degradation(wrong, rng()), ValueError, "[0, 1]")


@pytest.mark.parametrize(
    "value", [(3,), (3, 2), 3, "34", (1, "2"), (float("nan"), 1), (0, float("inf")), [0, 1], None]
)
def test_wrong_ranges(value):
    fails(lambda: Noise(sigma=value), CallError, "noise: sigma must be two numbers from 0 to 255")


def test_every_range_of_every_degradation_has_limits():
    for degradation in (*ALL, Pass((1, 1), (1, 1), (1, 1), (1, 1), (50, 50))):
        ranges = {name for name, value in vars(degradation).items() if isinstance(value, tuple)}
        assert ranges == set(degradation.LIMITS)
        for name, (low, high) in degradation.LIMITS.items():
            for value in ((low - 1, high), (low, high + 1)):
                fails(
                    lambda d=degradation, n=name, v=value: replace(d, **{n: v}),
                    CallError,
                    name,
                    f"{low:g}",
                )


def test_a_new_degradation_needs_its_method_alone():
    @dataclass(frozen=True)
    class Dark(Degradation):
        share: tuple[float, float] = (0.5, 0.5)
        LIMITS: ClassVar = {"share": (0, 1)}

        def _degrade(self, image, rng):
            return image * np.float32(rng.uniform(*self.share))

    assert Dark()(flat(1), rng())[0, 0, 0] == 0.5
    fails(lambda: Dark((0, 2)), CallError, "dark: share")


def test_drawing_by_octaves():
    draws = np.array([draw_log(rng(seed), (0.25, 16)) for seed in range(3000)])
    shares = np.histogram(np.log2(draws), 6, (-2, 4))[0] / len(draws)
    assert np.abs(shares - 1 / 6).max() < 0.03


# Noise


@pytest.mark.parametrize("sigma", [1, 25, 55])
def test_noise_is_white_gaussian_and_not_clipped(sigma):
    image = flat(0.05, 200, 200)
    noise = (Noise((sigma, sigma))(image, rng()) - image) * 255
    assert noise.std() == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean()) < 0.02 * sigma
    assert abs((noise**3).mean()) / sigma**3 < 0.05  # not skewed, so not clipped
    assert (noise**4).mean() / sigma**4 == pytest.approx(3, abs=0.1)
    for a, b in (
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[..., 0], noise[..., 2]),
    ):
        assert abs((a * b).mean()) / sigma**2 < 0.02


def test_noise_levels_are_drawn_uniformly():
    image = flat(0.5, 32, 32)
    source = rng()
    found = [(Noise((10, 50))(image, source) - image).std() * 255 for _ in range(300)]
    assert min(found) > 9
    assert max(found) < 52
    assert np.mean(found) == pytest.approx(30, abs=2)
    assert np.array_equal(Noise((0, 0))(image, rng()), image)


def test_published_noise_by_value():
    drawn = [
        1.764052345967664,
        0.4001572083672233,
        0.9787379841057392,
        2.240893199201458,
    ]  # of seed 0, as is known
    noise = published_noise(2, 2, 25)
    assert (noise.shape, noise.dtype) == ((2, 2, 3), np.float64)
    expected = np.array(drawn) * 25 / 255
    np.testing.assert_allclose(noise[0, 0, ::-1], expected[:3], rtol=1e-13)  # blue, green, red
    np.testing.assert_allclose(noise[0, 1, 2], expected[3], rtol=1e-13)
    np.testing.assert_allclose(published_noise(2, 2, 50), 2 * noise, rtol=1e-13)
    assert published_noise(100, 90, 15).std() * 255 == pytest.approx(15, rel=0.02)


# JPEG


@pytest.mark.parametrize("quality", [1, 10, 60, 100])
@pytest.mark.parametrize("subsampling", [FULL_CHROMA, HALF_CHROMA])
def test_compress_is_pillows_encoder(quality, subsampling):
    pixels = to_pixels(photo())
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    assert np.array_equal(
        compress(pixels, quality, subsampling), np.asarray(PIL.Image.open(buffer))
    )
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 1]).save(buffer, "JPEG", quality=quality)
    assert np.array_equal(compress(pixels[..., 1], quality), np.asarray(PIL.Image.open(buffer)))


def test_compress_needs_pixels_and_a_quality():
    pixels = np.zeros((8, 8, 3), np.uint8)
    fails(lambda: compress(pixels.astype(np.float32), 50), ValueError, "uint8", "float32")
    fails(lambda: compress(pixels[..., :2], 50), ValueError, "(8, 8, 2)")
    for quality in (0, 101):
        fails(lambda quality=quality: compress(pixels, quality), ValueError, "1..100", str(quality))


def test_jpeg_qualities_subsamplings_and_block_positions_vary():
    image = photo()[:40, :40]
    of_result = {}
    for up, left, quality, subsampling in itertools.product(
        range(8), range(8), (30, 31), (FULL_CHROMA, HALF_CHROMA)
    ):
        padded = np.pad(to_pixels(image), ((up, 0), (left, 0), (0, 0)), "symmetric")
        result = compress(padded, quality, subsampling)[up:, left:]
        of_result[result.tobytes()] = up, left, quality, subsampling
    found = {
        of_result[to_pixels(Jpeg((30, 31))(image, rng(seed))).tobytes()] for seed in range(100)
    }
    assert [len(set(choices)) for choices in zip(*found, strict=True)] == [8, 8, 2, 2]
    assert len({(up, left) for up, left, *_ in found}) > 40


def test_jpeg_is_worse_at_lower_quality():
    image = photo()
    errors = [np.abs(Jpeg((q, q))(image, rng()) - image).mean() for q in (10, 30, 60, 95)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1]


@pytest.mark.skipif(not EVAL.exists(), reason="needs the evaluation images")
@pytest.mark.parametrize(("quality", "published"), [(10, (27.82, 0.7595)), (20, (30.12, 0.8344))])
def test_published_baselines_of_jpeg(quality, published):
    images = [
        np.asarray(PIL.Image.open(file)) for file in sorted((EVAL / "classic5" / "HR").iterdir())
    ]
    scores = [
        (psnr(spoilt, image), ssim(spoilt, image))
        for image in images
        for spoilt in [compress(image, quality)]
    ]
    assert np.mean(scores, 0) == pytest.approx(published, abs=(5e-3 if quality == 10 else 1e-2))


# Sensor


def lag(noise, down, right):
    """Autocorrelation per channel at a distance."""
    height, width = noise.shape[:2]
    product = noise[down:, right:] * noise[: height - down, : width - right]
    return product.mean((0, 1)) / (noise**2).mean((0, 1))


def sensor_noise(sensor, value, seeds=12, side=128):
    noise = [
        (sensor(flat(value, side, side), rng(seed)) - np.float32(value)) * 255
        for seed in range(seeds)
    ]
    return [n - n.mean((0, 1)) for n in noise]


def test_sensor_noise_is_correlated_as_a_cameras():
    """Of PolyU's Canon pairs, flat parts: deviation 2.9 2.6 3.0; lag 1 .71 .65 .72; lag 2 .39 .27 .42; r-g .65."""
    noise = sensor_noise(Sensor(), 0.4, 40)
    deviation = np.mean([n.std((0, 1)) for n in noise], 0)
    assert deviation == pytest.approx([2.9, 2.6, 3.0], rel=0.3)
    first, second = (np.mean([(lag(n, 0, d) + lag(n, d, 0)) / 2 for n in noise], 0) for d in (1, 2))
    assert first == pytest.approx([0.71, 0.65, 0.72], abs=0.06)
    assert second == pytest.approx([0.39, 0.27, 0.42], abs=0.08)
    assert np.mean(
        [np.corrcoef(n[..., 0].ravel(), n[..., 1].ravel())[0, 1] for n in noise]
    ) == pytest.approx(0.65, abs=0.12)


def test_chroma_noise_is_coarser_than_luma_noise():
    noise = np.mean(
        [
            [lag(n.mean(2), 0, 2), lag(n[..., 0] - n[..., 1], 0, 2)]
            for n in sensor_noise(Sensor(), 0.4)
        ],
        0,
    )
    assert noise[1] > noise[0] + 0.3


def test_sensor_noise_depends_on_light_as_photons_do():
    plain = replace(
        Sensor(), read=(1e-6, 1e-6), contrast=(0, 0), quality=(100, 100), shot=(1e-3, 1e-3)
    )
    dark, bright = (np.mean([n.std() for n in sensor_noise(plain, v)]) for v in (0.3, 0.8))
    light = np.array([0.3, 0.8]) ** 2.2
    linear = (
        np.array([dark, bright]) * 2.2 * light / np.array([0.3, 0.8])
    )  # the tone curve's slope undone
    assert (linear[1] / linear[0]) ** 2 == pytest.approx(light[1] / light[0], rel=0.15)


def test_sensor_noise_grows_with_gain_of_its_sensor():
    levels = [
        np.mean([n.std() for n in sensor_noise(replace(Sensor(), shot=(s, s)), 0.5)])
        for s in (5e-4, 2e-3, 8e-3)
    ]
    assert levels[0] < 0.75 * levels[1] < 0.75**2 * levels[2]
    read = [
        np.mean([n.std() for n in sensor_noise(replace(Sensor(), read=(r, r)), 0.1)])
        for r in (5e-4, 5e-3)
    ]
    assert read[0] < 0.8 * read[1]


def test_the_image_of_a_sensor_stays_sharp_and_keeps_its_tones():
    clean = replace(Sensor(), shot=(1e-9, 1e-9), read=(1e-9, 1e-9), quality=(100, 100))
    image = np.repeat(photo()[..., 1:2], 3, 2)  # gray, so that 4:2:0 takes nothing
    for seed in range(3):
        assert np.abs(clean(image, rng(seed)) - image).max() * 255 < 3
    noisy = np.mean([Sensor()(flat(0.5), rng(seed)).mean() for seed in range(10)])
    assert noisy == pytest.approx(0.5, abs=0.004)
