import numpy as np
import pytest
from failing import fails
from pictures import (
    WHITE,
    noise,
    smooth,
)

from mambair_cli.errors import CallError
from mambair_cli.images.io import (
    OUTPUT_SUFFIXES,
    Image,
    decode_image,
    encode_image,
    read_image,
    write_image,
)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (130, 3)], ids=str)
def test_odd_sizes_and_every_bit(suffix, dtype, channels, size):
    pixels = noise(size if channels < 3 else (*size, 3), dtype)
    alpha = noise(size, dtype, seed=1) if channels in {2, 4} else None
    back = decode_image(encode_image(Image(pixels, alpha), suffix[1:])[0], "")
    if (suffix, dtype) == (".png", "float32"):
        pixels = np.rint(pixels * 65535)
        alpha = None if alpha is None else np.rint(alpha * 65535)
    np.testing.assert_array_equal(back.pixels, pixels)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_is_reduced_by_rounding_and_said(tmp_path, suffix, dtype):
    path = tmp_path / f"out{suffix}"
    pixels = smooth((16, 24, 3), dtype)
    notes = write_image(path, Image(pixels))
    back = read_image(path).pixels
    if back.dtype == pixels.dtype and suffix not in {".heic", ".heif"}:
        assert notes == []
    else:
        assert len(notes) == 1
        assert str(path) in notes[0]
        assert dtype in notes[0]
    lossy = (
        WHITE[back.dtype.name] * 0.03
        if suffix in {".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".jxl"}
        else 0.502
    )
    exact = pixels.astype(float) / WHITE[dtype] * WHITE[back.dtype.name]
    assert np.abs(back - exact).max() <= lossy


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif", "heic"])
def test_quality(tmp_path, suffix):
    # gray, as WebP keeps colours that change from pixel to pixel without loss
    image = Image(np.repeat(noise((64, 64, 1)), 3, axis=2))
    sizes = [len(encode_image(image, suffix, quality)[0]) for quality in (1, 50, None, 100)]
    assert sizes == sorted(set(sizes))
    write_image(tmp_path / f"out.{suffix}", image, quality=1)
    assert (tmp_path / f"out.{suffix}").stat().st_size == sizes[0]


def test_quality_that_makes_no_sense(tmp_path):
    image = Image(noise((4, 4)))
    for quality in (0, 101, -1):
        fails(
            lambda quality=quality: encode_image(image, "jpg", quality),
            CallError,
            "1 to 100",
            str(quality),
        )
    fails(lambda: write_image(tmp_path / "a.jpg", image, quality=0), CallError, "a.jpg", "1 to 100")
    assert "quality" in encode_image(image, "png", 50)[1][0]
