import io
import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from failing import fails
from pictures import photo

from mambair_cli.degradations.jpeg import FULL_CHROMA, HALF_CHROMA, Jpeg, compress
from mambair_cli.images.metrics import psnr, ssim
from mambair_cli.images.samples import to_uint8

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("quality", [1, 10, 60, 100])
@pytest.mark.parametrize("subsampling", [FULL_CHROMA, HALF_CHROMA])
def test_compress_is_pillows_encoder(quality, subsampling):
    pixels = to_uint8(photo())
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
        padded = np.pad(to_uint8(image), ((up, 0), (left, 0), (0, 0)), "symmetric")
        result = compress(padded, quality, subsampling)[up:, left:]
        of_result[result.tobytes()] = up, left, quality, subsampling
    found = {of_result[to_uint8(Jpeg((30, 31))(image, rng(seed))).tobytes()] for seed in range(100)}
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
