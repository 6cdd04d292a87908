import numpy as np
import pytest
from pictures import flat

from mambair_cli.degradations.noise import Noise, published_noise


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sigma", [1, 25, 55])
def test_noise_is_white_gaussian_and_not_clipped(sigma):
    image = flat(0.05, 200, 200)
    noise = (Noise((sigma, sigma))(image, rng()) - image) * 255
    assert noise.std() == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean()) < 0.02 * sigma
    # not skewed, so not clipped
    assert abs((noise**3).mean()) / sigma**3 < 0.05
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
    # of seed 0, as is known
    drawn = [
        1.764052345967664,
        0.4001572083672233,
        0.9787379841057392,
        2.240893199201458,
    ]
    noise = published_noise(2, 2, 25)
    assert (noise.shape, noise.dtype) == ((2, 2, 3), np.float64)
    expected = np.array(drawn) * 25 / 255
    # blue, green, red
    np.testing.assert_allclose(noise[0, 0, ::-1], expected[:3], rtol=1e-13)
    np.testing.assert_allclose(noise[0, 1, 2], expected[3], rtol=1e-13)
    np.testing.assert_allclose(published_noise(2, 2, 50), 2 * noise, rtol=1e-13)
    assert published_noise(100, 90, 15).std() * 255 == pytest.approx(15, rel=0.02)
