import numpy as np
import pytest
from failing import fails

from mambair_cli.errors import ImageError
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


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (b"P1 2 2 1 0 1 0", [[0, 255], [0, 255]]),
        (b"P1\n# a comment 1\n3 2\n101\n0 1#end\n0", [[0, 255, 0], [255, 0, 255]]),
        (b"P4 10 2\n\xaa\x80\x55\x40", [[0, 255] * 5, [255, 0] * 5]),
        (b"P2 2 1 3 0 2", [[0, 170]]),
        (b"P5 2 1 255\n\0\xff", [[0, 255]]),
        (b"P3 1 1 255 1 2 3", [[[1, 2, 3]]]),
        (b"P6 1 1 255\n\1\2\3", [[[1, 2, 3]]]),
    ],
    ids=["plain", "plain without spaces", "packed", "P2", "P5", "P3", "P6"],
)
def test_netpbm_of_8_bits_and_less(data, pixels):
    image = read(data)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.tolist() == pixels


@pytest.mark.parametrize("maximum", [1, 255, 65535])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pam(depth, maximum):
    samples = np.random.default_rng(0).integers(0, maximum + 1, (4, 5, depth))
    stored = samples.astype(">u2" if maximum > 255 else "u1")
    kind = {1: b"GRAYSCALE", 2: b"GRAYSCALE_ALPHA", 3: b"RGB", 4: b"RGB_ALPHA"}[depth]
    head = b"P7\n# made here\nWIDTH 5\nHEIGHT 4\nDEPTH %d\nMAXVAL %d\nTUPLTYPE %s\nENDHDR\n"
    image = read(head % (depth, maximum, kind) + stored.tobytes())
    white = 65535 if maximum > 255 else 255
    seen = samples * white // maximum
    np.testing.assert_array_equal(image.pixels, seen[..., :3] if depth > 2 else seen[..., 0])
    if depth in {2, 4}:
        np.testing.assert_array_equal(image.alpha, seen[..., -1])
    else:
        assert image.alpha is None


@pytest.mark.parametrize("kind", [b"PF", b"Pf"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm(kind, order):
    samples = np.random.default_rng(0).random((4, 5, 3) if kind == b"PF" else (4, 5)) * 2
    stored = samples[::-1].astype(order + "f4").tobytes()
    image = read(kind + b"\n5 4\n%s1.0\n" % (b"-" if order == "<" else b"") + stored)
    np.testing.assert_array_equal(image.pixels, samples.astype(np.float32))


@pytest.mark.parametrize(
    "data",
    [b"P6 3 3 255\n\0\0", b"P1 4 4 1 0", b"P4 9 9\n\0", b"Pf 4 4 1\n\0", b"P5 3", b"P5 2 2 0\n\0"],
)
def test_netpbm_that_is_truncated(data):
    fails(lambda: read(data), ImageError, "damaged")
