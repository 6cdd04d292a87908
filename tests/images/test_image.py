import numpy as np
import pytest
from pictures import (
    noise,
)

from mambair_cli.errors import ImageError, MambairError
from mambair_cli.images.image import Image


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
