import io
import time
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from failing import fails
from pictures import noise, smooth

from mambair_cli.degradations.estimate import bandwidth, jpeg_quality, noise_sigma, stored_quality
from mambair_cli.degradations.jpeg import FULL_CHROMA, HALF_CHROMA, compress
from mambair_cli.images.io import decode_image

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"
DATA = Path(__file__).parents[1] / "data"
PHOTOS = ("photo", "osprey", "dragonfly")
ESTIMATES = (noise_sigma, jpeg_quality, bandwidth)
every_photo = pytest.mark.parametrize("name", PHOTOS)
every_estimate = pytest.mark.parametrize("estimate", ESTIMATES)


def photo(name="photo", mode="RGB"):
    return np.asarray(PIL.Image.open(DATA / f"{name}.png").convert(mode))


def noisy(pixels, sigma, seed=0):
    drawn = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.rint((pixels + drawn).clip(0, 255)).astype(np.uint8)


def enlarged(pixels, scale, method):
    height, width = pixels.shape[:2]
    small = PIL.Image.fromarray(pixels).resize(
        (width // scale, height // scale), PIL.Image.Resampling.BICUBIC
    )
    return np.asarray(small.resize((width, height), method))


# All of them


@every_estimate
@every_photo
def test_all_kinds_of_pixels(estimate, name):
    for pixels in (
        noisy(photo(name), 20),
        compress(photo(name), 20),
        compress(photo(name, "L"), 20),
    ):
        expected = estimate(pixels)
        assert expected is not None or estimate is jpeg_quality
        wide, real = pixels.astype(np.uint16) * 257, pixels.astype(np.float32) / 255
        for same in (wide, real, np.asfortranarray(pixels)):
            found = estimate(same)
            assert found == expected or found == pytest.approx(expected, rel=1e-3)


@every_estimate
def test_gray_may_be_stored_as_rgb(estimate):
    for gray in (noisy(photo(mode="L"), 20), compress(photo(mode="L"), 20)):
        colour = np.repeat(gray[:, :, None], 3, 2)
        assert estimate(colour) == estimate(gray) or estimate(colour) == pytest.approx(
            estimate(gray), rel=0.01
        )


@every_estimate
def test_the_same_answer_every_time(estimate):
    pixels = noisy(compress(photo(), 30), 2)
    kept = pixels.copy()
    assert estimate(pixels) == estimate(pixels)
    assert np.array_equal(pixels, kept)


@every_estimate
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (31, 500, 3), (500, 31)], ids=str)
def test_too_small_to_tell(estimate, shape):
    assert estimate(np.zeros(shape, np.uint8)) is None


@every_estimate
@pytest.mark.parametrize("value", [0, 100, 255])
def test_flat_images(estimate, value):
    for shape in ((64, 64), (70, 90, 3)):
        assert estimate(np.full(shape, value, np.uint8)) == (0 if estimate is noise_sigma else None)


@every_estimate
def test_odd_sizes_and_extreme_pictures(estimate):
    for shape in ((64, 65), (67, 2000, 3), (997, 71, 3)):
        for pixels in (noise(shape), smooth(shape), noise(shape) // 128 * 255):
            found = estimate(pixels)
            if estimate is jpeg_quality:
                assert found is None or (isinstance(found, int) and 5 <= found <= 95)
            elif estimate is bandwidth:
                assert found == (None if pixels.max() - pixels.min() < 240 else 1)
            else:
                assert isinstance(found, float)
                assert 0 <= found < 128


@every_estimate
def test_wrong_pixels(estimate):
    good = np.zeros((80, 80, 3), np.uint8)
    fails(
        lambda: estimate(good.astype(np.float64)), ValueError, "uint8, uint16 or float32", "float64"
    )
    fails(lambda: estimate(good[..., :2]), ValueError, "H x W x 3", "(80, 80, 2)")
    fails(lambda: estimate(good[None]), ValueError, "H x W x 3", "(1, 80, 80, 3)")
    broken = np.zeros((80, 80, 3), np.float32)
    broken[40, 40, 1] = np.nan
    fails(lambda: estimate(broken), ValueError, "NaN")


@every_estimate
def test_large_images_take_no_longer(estimate):
    # 31 megapixels
    pixels = np.tile(photo("dragonfly"), (40, 40, 1))
    start = time.process_time()
    estimate(pixels)
    # tens of milliseconds where nothing else runs
    assert time.process_time() - start < 0.5


# Noise


@every_photo
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_noise_of_photographs(name, mode, sigma):
    for seed in range(2):
        assert noise_sigma(noisy(photo(name, mode), sigma, seed)) == pytest.approx(
            sigma, abs=max(1.2, 0.1 * sigma)
        )


@every_photo
def test_clean_photographs_have_no_noise(name):
    assert noise_sigma(photo(name)) < 1.5
    assert noise_sigma(photo(name, "L")) < 3


def test_noise_without_a_picture():
    for sigma in (1, 10, 40):
        assert noise_sigma(noisy(np.full((200, 200, 3), 128), sigma)) == pytest.approx(
            sigma, rel=0.07
        )


def test_noise_may_leave_the_range_of_floats():
    pixels = (photo() / 255 + np.random.default_rng(0).normal(0, 50 / 255, photo().shape)).astype(
        np.float32
    )
    assert pixels.min() < -0.1
    assert noise_sigma(pixels) == pytest.approx(50, rel=0.06)


def test_strong_noise_shows_through_jpeg_with_half_chroma():
    wall = np.tile(photo("dragonfly"), (3, 3, 1))
    assert noise_sigma(compress(wall, 90)) < 3
    assert 12 < noise_sigma(compress(noisy(wall, 25), 90)) < 26
    assert noise_sigma(compress(noisy(wall, 50), 90)) > 25


# JPEG


@every_photo
@pytest.mark.parametrize("quality", [5, 10, 20, 30, 40, 60, 75])
def test_qualities_of_photographs(name, quality):
    for subsampling in (FULL_CHROMA, HALF_CHROMA):
        assert jpeg_quality(compress(photo(name), quality, subsampling)) == quality
    assert jpeg_quality(compress(photo(name, "L"), quality)) == quality


@pytest.mark.parametrize(("top", "left"), [(0, 1), (3, 0), (5, 3), (7, 7)])
def test_blocks_may_begin_anywhere(top, left):
    assert jpeg_quality(compress(photo(), 30)[top:, left:]) == 30


@every_photo
def test_what_is_no_jpeg(name):
    clean = photo(name)
    others = [
        clean,
        clean[1:, 2:],
        noisy(clean, 3),
        noisy(clean, 50),
        cv2.GaussianBlur(clean, (0, 0), 1.5),
    ]
    others += [enlarged(clean, 2, method) for method in PIL.Image.Resampling]
    others += [noisy(compress(clean, 30), 10), noise(clean.shape), smooth(clean.shape)]
    assert [jpeg_quality(pixels) for pixels in others] == [None] * len(others)


@every_photo
def test_tables_of_other_encoders(name):
    """JPEG_real/2.jpg has such steps at low frequencies: about those of quality 39."""
    flat = [24] * 64
    buffer = io.BytesIO()
    PIL.Image.fromarray(photo(name)).save(buffer, "JPEG", qtables=[flat, flat])
    image = decode_image(buffer.getvalue(), "x")
    stored = stored_quality(image.quantization)
    assert 20 < stored < 40
    assert jpeg_quality(image.pixels) == pytest.approx(stored, abs=1)


@pytest.mark.parametrize("quality", [1, 2, 10, 49, 50, 75, 95, 100])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_stored_quality(quality, mode):
    buffer = io.BytesIO()
    PIL.Image.fromarray(photo()).convert(mode).save(buffer, "JPEG", quality=quality)
    assert stored_quality(decode_image(buffer.getvalue(), "x").quantization) == quality


def test_compressed_twice():
    twice = compress(compress(photo(), 20), 95)
    # what did the harm, as the pixels tell; the file would say 95
    assert jpeg_quality(twice) == 20


# Enlargement


@every_photo
def test_bandwidth_of_photographs(name):
    full = bandwidth(photo(name))
    assert full == bandwidth(photo(name, "L")) == 1
    for method in (
        PIL.Image.Resampling.BICUBIC,
        PIL.Image.Resampling.LANCZOS,
        PIL.Image.Resampling.BILINEAR,
    ):
        shares = [bandwidth(enlarged(photo(name), scale, method)) for scale in (2, 3, 4)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] < 0.95
        assert shares[1] < 0.7
        assert shares[2] < 0.5


@every_photo
def test_bandwidth_of_blurred_photographs(name):
    shares = [bandwidth(cv2.GaussianBlur(photo(name), (0, 0), sigma)) for sigma in (1, 2, 3, 4, 6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert 0.1 < shares[-1] < 0.2


@pytest.mark.parametrize("depth", [20, 255])
@pytest.mark.parametrize("shape", [(200, 300), (1000, 1500, 3)])
def test_gradients_hold_too_little_to_tell(depth, shape):
    down, right = (np.linspace(0, 1, side) for side in shape[:2])
    for ramp in (
        np.add.outer(down, right) / 2,
        np.hypot.outer(down - 0.5, right - 0.5) * 1.4,
        np.outer(down, right),
    ):
        gray = (ramp * depth).round().astype(np.uint8)
        assert bandwidth(gray if len(shape) == 2 else np.repeat(gray[:, :, None], 3, 2)) is None


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_bandwidth_of_filtered_noise(share):
    spectrum = np.fft.fft2(noise((256, 256)) / 2 + 64)
    held = np.abs(np.fft.fftfreq(256)) < share / 2
    pixels = np.fft.ifft2(spectrum * held * held[:, None]).real.round().astype(np.uint8)
    # two of 32 steps
    assert bandwidth(pixels) == pytest.approx(share, abs=0.06)


def test_compression_hides_enlargement():
    assert bandwidth(compress(enlarged(photo(), 3, PIL.Image.Resampling.BICUBIC), 50)) > 0.7


# All evaluation images; figures of one run: see the asserts


def images(*sets):
    return [
        np.asarray(PIL.Image.open(f).convert("RGB"))
        for s in sets
        for f in sorted((EVAL / s / "HR").iterdir())
    ]


@pytest.mark.long
@pytest.mark.skipif(not EVAL.exists(), reason="needs the evaluation images")
def test_noise_of_evaluation_images():
    pictures = images("Kodak24", "McMaster", "Urban100", "BSD100")
    clean = np.array([noise_sigma(p) for p in pictures])
    print(f"clean: {np.percentile(clean, [0, 50, 95, 100])} of {len(clean)}")
    # the one above is gray, stored as RGB
    assert np.mean(clean < 3) > 0.98
    for sigma in (5, 10, 15, 25, 35, 50):
        found = np.array([noise_sigma(noisy(p, sigma, seed)) for seed, p in enumerate(pictures)])
        spread = f"{found.min():.1f} .. {np.median(found):.1f} .. {found.max():.1f}"
        print(f"sigma {sigma}: {spread} of {len(found)}")
        assert np.mean(np.abs(found - sigma) <= max(1.5, 0.15 * sigma)) > 0.98


@pytest.mark.long
@pytest.mark.skipif(not EVAL.exists(), reason="needs the evaluation images")
def test_qualities_of_evaluation_images():
    pictures = images("Kodak24", "McMaster", "Set14", "BSD100")
    clean = [quality for quality in map(jpeg_quality, pictures) if quality]
    print(f"clean: {clean} of {len(pictures)}")
    assert len(clean) <= 3
    for quality in (10, 20, 30, 40, 50, 60):
        found = [
            jpeg_quality(compress(p, quality, (FULL_CHROMA, HALF_CHROMA)[i % 2]))
            for i, p in enumerate(pictures)
        ]
        right = sum(q is not None and abs(q - quality) <= 1 for q in found)
        print(f"quality {quality}: {right} of {len(found)}")
        assert right >= 0.99 * len(found)


@pytest.mark.long
@pytest.mark.skipif(not EVAL.exists(), reason="needs the evaluation images")
def test_bandwidth_of_evaluation_images():
    pictures = images("Kodak24", "McMaster", "Set14", "BSD100", "Urban100")
    assert min(bandwidth(p) for p in pictures) == 1
    for scale, most in ((2, 0.95), (3, 0.7)):
        for method in (
            PIL.Image.Resampling.BICUBIC,
            PIL.Image.Resampling.LANCZOS,
            PIL.Image.Resampling.BILINEAR,
        ):
            found = np.array([bandwidth(enlarged(p, scale, method)) for p in pictures])
            print(
                f"x{scale} {method.name}: {np.percentile(found, [0, 50, 95, 100])} of {len(found)}"
            )
            assert np.mean(found < most) > 0.98
