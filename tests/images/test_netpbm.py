import numpy as np
import pytest

from mambair_cli.images.io import decode_image


def read(data, **options):
    return decode_image(data, "input", **options)


@pytest.mark.parametrize("maximum", [300, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_deep_netpbm_of_any_maximum(kind, maximum):
    samples = np.random.default_rng(0).integers(
        0, maximum + 1, (4, 5, 3 if kind in {b"P3", b"P6"} else 1)
    )
    plain = " ".join(map(str, samples.ravel())).encode().replace(b" ", b" # a comment 9\n", 3)
    raster = plain if kind in {b"P2", b"P3"} else samples.astype(">u2").tobytes()
    image = read(kind + b"\n# a comment\n5 4\n%d\n" % maximum + raster)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_allclose(image.pixels, (samples / maximum * 65535).squeeze(), atol=0.5001)
