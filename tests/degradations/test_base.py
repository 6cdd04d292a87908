from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from failing import fails
from pictures import flat, photo

from mambair_cli.degradations.base import Degradation, draw_log
from mambair_cli.degradations.jpeg import Jpeg
from mambair_cli.degradations.noise import Noise
from mambair_cli.degradations.rain import Rain
from mambair_cli.degradations.real_world import Pass, RealWorld
from mambair_cli.degradations.sensor import Sensor
from mambair_cli.errors import CallError

ALL = (Noise(), Jpeg(), Sensor(), Rain(), RealWorld(scale=1), RealWorld(scale=4))
every_degradation = pytest.mark.parametrize("degradation", ALL, ids=lambda d: f"{type(d).__name__}")


def rng(seed=0):
    return np.random.default_rng(seed)


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
