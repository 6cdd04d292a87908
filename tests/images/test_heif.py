import PIL.Image
from failing import fails
from pictures import (
    noise,
)

from mambair_cli.errors import CallError, ImageError
from mambair_cli.images import heif
from mambair_cli.images.io import (
    Image,
    check_writable,
    decode_image,
    encode_image,
)


def test_heic_without_its_package(tmp_path, monkeypatch):
    image = Image(noise((32, 32, 3)))
    data, _ = encode_image(image, "heic")
    monkeypatch.setattr(heif, "pillow_heif", None)
    monkeypatch.setattr(PIL.Image, "ID", [name for name in PIL.Image.ID if name != "HEIF"])
    words = "HEIC", "pip install 'mambair[heif]'"
    fails(lambda: decode_image(data, "a.heic"), ImageError, "a.heic", *words)
    fails(lambda: encode_image(image, "heic"), CallError, *words)
    fails(lambda: check_writable(tmp_path / "a.heic"), CallError, "a.heic", *words)
    assert decode_image(encode_image(image, "avif")[0], "").pixels.shape == (32, 32, 3)
