import math

import numpy as np
import pytest

from mambair_cli.images.metrics import psnr, psnr_y, scores, ssim, ssim_y, to_y, y_in_8_bits


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("colour", "luma"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 16 + 65.481),
        ((0, 255, 0), 16 + 128.553),
        ((0, 0, 255), 16 + 24.966),
        ((51, 102, 204), 16 + 65.481 / 5 + 128.553 * 2 / 5 + 24.966 * 4 / 5),
    ],
)
def test_luma_of_known_colours(colour, luma):
    for dtype in (np.uint8, np.float32):
        y = to_y(np.full((2, 3, 3), colour, dtype))
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, np.full((2, 3), luma), rtol=0, atol=1e-9)


def test_gray_counts_as_three_equal_channels():
    gray = noise(5, 6)
    np.testing.assert_allclose(to_y(gray), to_y(np.stack([gray] * 3, axis=-1)), rtol=0, atol=1e-9)


def test_luma_in_8_bits_is_rounded():
    # 16 + 219 / 255 * v is 16.86, 17.72 and 235
    pixels = np.array([[0, 1, 2, 255]], np.uint8)
    y = y_in_8_bits(np.stack([pixels] * 3, axis=-1))
    assert y.dtype == np.uint8
    assert y.tolist() == [[16, 17, 18, 235]]


def test_psnr_by_hand():
    a = np.zeros((4, 5, 3), np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 255) == 0
    assert psnr(a, a + 1) == pytest.approx(48.1308036, abs=1e-6)
    b = a.copy()
    # 3600 / 60 values = 60
    b[1, 2, 0] = 60
    assert psnr(a, b) == psnr(b, a) == pytest.approx(10 * math.log10(65025 / 60), abs=1e-9)


def test_the_border_is_left_out_on_all_four_sides():
    a = noise(20, 23)
    for row, column in [(1, 9), (18, 9), (9, 1), (9, 21)]:
        b = a.copy()
        b[row, column] ^= 128
        assert psnr(a, b, border=1) < math.inf
        assert psnr(a, b, border=2) == math.inf
        assert ssim(a, b, border=1) < 1
        assert ssim(a, b, border=2) == 1


def naive_ssim(a, b):
    """Wang et al. 2004, equations 13 to 16: loop over the windows."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (image[top : top + 11, left : left + 11].astype(float) for image in (a, b))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x = (window * (x - mean_x) ** 2).sum()
            variance_y = (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            values.append(
                (2 * mean_x * mean_y + c1)
                * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )
    return np.mean(values)


def test_ssim_equals_the_definition():
    a = noise(17, 14)
    b = np.clip(a + 60.0 * np.random.default_rng(1).standard_normal(a.shape), 0, 255)
    assert 0.2 < naive_ssim(a, b) < 0.95
    assert ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-10)
    assert ssim(b, a) == pytest.approx(ssim(a, b), abs=1e-12)
    flipped = (a[::-1, ::-1], b[::-1, ::-1])
    assert ssim(*flipped) == pytest.approx(ssim(a, b), abs=1e-12)


@pytest.mark.parametrize("shape", [(11, 11), (11, 40), (97, 64)])
def test_ssim_is_that_of_scikit_image(shape):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(2)
    a = rng.integers(0, 256, shape).astype(float)
    for b in (a + rng.normal(0, 20, shape), a * 0.5 + 60, 255 - a, rng.uniform(0, 255, shape)):
        theirs = structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(a, b) == pytest.approx(theirs, abs=1e-12)


def test_ssim_of_flat_images_by_hand():
    a, b = np.full((11, 11), 100.0), np.full((11, 11), 50.0)
    c1 = 2.55**2
    assert ssim(a, b) == pytest.approx((2 * 100 * 50 + c1) / (100**2 + 50**2 + c1), abs=1e-9)
    assert ssim(a, a) == 1


def test_on_luma_means_on_luma():
    a, b = noise(16, 18, 3), noise(16, 18, 3, seed=1)
    assert psnr_y(a, b, border=2) == psnr(to_y(a), to_y(b), border=2)
    assert ssim_y(a, b, border=2) == ssim(to_y(a), to_y(b), border=2)
    assert psnr_y(a, b, border=2) != psnr_y(a[..., ::-1], b[..., ::-1], border=2)


def test_scores_by_channel():
    a, b = noise(20, 22, 3), noise(20, 22, 3, seed=1)
    assert scores(a, b, channel="y", border=3) == (psnr_y(a, b, border=3), ssim_y(a, b, border=3))
    decibels, similarity = scores(a, b, channel="rgb", border=3)
    assert decibels == psnr(a, b, border=3)
    assert similarity == pytest.approx(
        np.mean([ssim(a[..., c], b[..., c], border=3) for c in range(3)])
    )
    gray = a[..., 0], b[..., 0]
    assert scores(*gray, channel="gray", border=0) == (psnr(*gray), ssim(*gray))
    assert scores(a, a, channel="rgb", border=0) == (math.inf, 1)
    with pytest.raises(ValueError, match="channel rgb"):
        scores(*gray, channel="rgb", border=0)
    with pytest.raises(ValueError, match="channel gray"):
        scores(a, b, channel="gray", border=0)


def test_wrong_calls():
    a = noise(12, 12)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="shapes"):
            measure(a, a[1:])
        with pytest.raises(ValueError, match="border"):
            measure(a, a, border=6)
        with pytest.raises(ValueError, match="border"):
            measure(a, a, border=-1)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(a, a, border=1)
    with pytest.raises(ValueError, match="one channel"):
        ssim(noise(12, 12, 3), noise(12, 12, 3))
    for measure in (psnr_y, ssim_y):
        with pytest.raises(ValueError, match="uint8"):
            measure(a / 255, a / 255, border=0)
    with pytest.raises(ValueError, match="shape"):
        to_y(noise(3, 3, 4))
