import cv2
import numpy as np
import pytest
from failing import fails

from mambair_cli.errors import ImageError
from mambair_cli.images.io import decode_image, encode_image


def test_light_is_read_and_becomes_brightness():
    light = np.random.default_rng(0).random((24, 32, 3)).astype(np.float32)
    data = cv2.imencode(".hdr", light[..., ::-1])[1].tobytes()
    image = decode_image(data, "input")
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels, light, atol=0.01)
    assert image.colour.gamma == 1
    back = decode_image(encode_image(image, "bmp")[0], "")
    np.testing.assert_allclose((back.pixels / 255) ** 2.2, light, atol=0.03)
    fails(lambda: decode_image(data[:200], "input"), ImageError, "damaged")
    fails(lambda: decode_image(data, "input", max_pixels=99), ImageError, "32x24")


def rgbe(head, size, samples):
    """A Radiance file without compression."""
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n" + head + b"\n" + size + b"\n" + samples.tobytes()


SAMPLES = np.random.default_rng(0).integers(1, 255, (3, 4, 4), np.uint8)
SAMPLES[..., 3] = 129
# a mantissa of 8 bits, and 2 ** (129 - 128)
LIGHT = SAMPLES[..., :3] / 256 * 2


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (b"-Y 3 +X 4", LIGHT),
        (b"+Y 3 +X 4", LIGHT[::-1]),
        (b"-Y 3 -X 4", LIGHT[:, ::-1]),
        (b"+X 3 -Y 4", LIGHT.swapaxes(0, 1)),
        (b"-X 3 +Y 4", LIGHT[::-1, ::-1].swapaxes(0, 1)),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_rows_and_columns_in_any_order(size, wanted):
    image = decode_image(rgbe(b"", size, SAMPLES), "")
    np.testing.assert_allclose(image.pixels, wanted, atol=0.005)


def test_primaries_are_read_and_xyz_is_refused():
    head = b"PRIMARIES= .64 .33 .21 .71 .15 .06 .3127 .329\n"
    tags = decode_image(rgbe(head, b"-Y 3 +X 4", SAMPLES), "").colour
    assert tags.chromaticities == (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    data = rgbe(b"", b"-Y 3 +X 4", SAMPLES).replace(b"rgbe", b"xyze")
    fails(lambda: decode_image(data, "input"), ImageError, "of a kind that cannot be read", "XYZ")


def test_old_run_lengths_are_a_kind_and_too_few_pixels_are_damage():
    head = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n"
    runs = bytes([128, 90, 20, 129, 1, 1, 1, 63])
    fails(lambda: decode_image(head + runs, "input"), ImageError, "of a kind that cannot be read")
    fails(lambda: decode_image(head + runs[:4] * 9, "input"), ImageError, "damaged")
    plain = decode_image(head + runs[:4] * 64, "input")
    assert plain.pixels.shape == (8, 8, 3)
