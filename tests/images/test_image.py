import numpy as np
import pytest
from pictures import (
    noise,
)

from mambair_cli.errors import ImageError, MambairError
from mambair_cli.images import image
from mambair_cli.images.image import Image, in_bands
from mambair_cli.system import scratch


def test_image_refuses_what_is_none():
    good = noise((4, 5))
    for pixels, alpha in (
        (good.astype(np.float64), None),
        (noise((4, 5, 4)), None),
        (noise(4), None),
        (good, noise((5, 4))),
        (good, noise((4, 5), "uint16")),
    ):
        with pytest.raises(ValueError, match="pixels"):
            Image(pixels, alpha)
    assert issubclass(ImageError, MambairError)


@pytest.mark.parametrize("on_disk", [False, True])
def test_bands_make_the_whole(monkeypatch, on_disk):
    monkeypatch.setattr(image, "BAND", 200)
    if on_disk:
        monkeypatch.setattr(scratch, "LARGE", 100)
    first, second = noise((11, 5, 3)), noise((11, 5))
    heights = []

    def change(a, b):
        heights.append(len(a))
        return a * 2.0 + b[..., None]

    result = in_bands(change, np.dtype(np.float32), first, second)
    np.testing.assert_array_equal(result, first * 2.0 + second[..., None])
    assert result.dtype == np.float32
    assert (
        heights == [11] if first[0].nbytes * 11 <= 200 else max(heights) == 200 // first[0].nbytes
    )
