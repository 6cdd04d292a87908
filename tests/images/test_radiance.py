import cv2
import numpy as np
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
