from dataclasses import replace

import numpy as np
import pytest
from pictures import flat, photo

from mambair_cli.degradations.sensor import Sensor


def rng(seed=0):
    return np.random.default_rng(seed)


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
    """Of PolyU's Canon pairs, flat parts: deviation 2.9 2.6 3.0; lag 1 .71 .65 .72; lag 2 .39 .27
    .42; r-g .65.
    """
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
    # the tone curve's slope undone
    linear = np.array([dark, bright]) * 2.2 * light / np.array([0.3, 0.8])
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
    # gray, so that 4:2:0 takes nothing
    image = np.repeat(photo()[..., 1:2], 3, 2)
    for seed in range(3):
        assert np.abs(clean(image, rng(seed)) - image).max() * 255 < 3
    noisy = np.mean([Sensor()(flat(0.5), rng(seed)).mean() for seed in range(10)])
    assert noisy == pytest.approx(0.5, abs=0.004)
