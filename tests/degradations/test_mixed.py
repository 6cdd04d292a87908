import numpy as np
import pytest
from failing import fails
from pictures import flat, photo

from mambair_cli.degradations.jpeg import Jpeg, compress
from mambair_cli.degradations.mixed import Chain, Clean, Mixed
from mambair_cli.degradations.noise import Noise
from mambair_cli.errors import CallError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_happens_to_a_clean_image():
    image = photo()
    result = Clean()(image, rng())
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_one_after_the_other():
    """What leaves [0, 1] on the way is clipped."""
    image, random = flat(1, 16, 16), rng(3)
    noisy = Noise((50, 50))(image, random)
    expected = Jpeg((30, 30))(noisy.clip(0, 1), random)
    assert np.array_equal(Chain((Noise((50, 50)), Jpeg((30, 30))))(image, rng(3)), expected)
    assert noisy.max() > 1


def test_parts_come_by_their_shares():
    image = flat(0.5, 4, 4)
    mixed = Mixed((Noise((5, 5)), Clean(), Noise((50, 50))), (3, 6, 1))
    random = rng()
    found = [float(mixed(image, random).std() * 255) for _ in range(2000)]
    assert np.mean([deviation == 0 for deviation in found]) == pytest.approx(0.6, abs=0.04)
    assert np.mean([deviation > 25 for deviation in found]) == pytest.approx(0.1, abs=0.03)
    weak = [deviation for deviation in found if 0 < deviation < 25]
    assert np.mean(weak) == pytest.approx(5, abs=0.2)


def test_a_part_without_a_share():
    fails(lambda: Mixed((Clean(),), ()), CallError, "a share for each")
    fails(lambda: Mixed((), ()), CallError, "a share for each")
    fails(lambda: Mixed((Clean(),), (-1.0,)), CallError, "must not be negative")
    fails(lambda: Mixed((Clean(),), (0.0,)), CallError, "all zero")


def test_blocks_that_begin_in_the_corner():
    image, aligned = photo(), Jpeg((10, 10), aligned=1.0)
    pixels = (image * 255 + 0.5).astype(np.uint8)
    whole = [compress(pixels, 10, subsampling) / np.float32(255) for subsampling in (0, 2)]
    for seed in range(6):
        result = aligned(image, rng(seed))
        assert min(np.abs(result - expected).max() for expected in whole) < 1e-6
    half, random = Jpeg((10, 10), aligned=0.5), rng()
    results = [half(image, random) for _ in range(60)]
    share = np.mean([min(np.abs(r - w).max() for w in whole) < 1e-6 for r in results])
    assert 0.3 < share < 0.7
