import numpy as np
import PIL.Image
import pytest
from failing import fails

from mambair_cli.errors import CallError, ImageError
from mambair_cli.images.folders import image_size, list_images, read_rgb, stored_size
from mambair_cli.images.io import Image, write_image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    write_image(folder / name, Image(pixels))
    return folder / name


# Files


def test_list_images_is_recursive_and_sorted(tmp_path):
    for name in ("b.PNG", "a.png", "sub/c.jpg", "notes.txt", "noextension"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [
        tmp_path / "a.png",
        tmp_path / "b.PNG",
        tmp_path / "sub" / "c.jpg",
    ]


def test_list_images_needs_a_folder_with_images(tmp_path):
    with pytest.raises(CallError, match="holds no image"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(CallError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(CallError, match="is not a folder"):
        list_images(tmp_path / "notes.txt")
    with pytest.raises(CallError, match="is not a folder"):
        list_images(tmp_path / "absent")


def test_read_rgb_brings_every_kind_to_8_bit_rgb(tmp_path):
    rgb = noise(5, 7)
    assert np.array_equal(read_rgb(save(tmp_path, "8.png", rgb)), rgb)
    gray = read_rgb(save(tmp_path, "gray.png", rgb[..., 0]))
    assert np.array_equal(gray, rgb[..., [0, 0, 0]])
    assert np.array_equal(read_rgb(save(tmp_path, "16.png", rgb.astype(np.uint16) * 257)), rgb)
    nearly = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    assert read_rgb(save(tmp_path, "round.png", nearly))[0, :, 0].tolist() == [
        0,
        0,
        1,
        254,
        255,
        255,
    ]
    assert np.array_equal(read_rgb(save(tmp_path, "f.tif", (rgb / 255).astype(np.float32))), rgb)
    rgba = Image(rgb, alpha=np.zeros((5, 7), np.uint8))
    write_image(tmp_path / "alpha.png", rgba)
    assert np.array_equal(read_rgb(tmp_path / "alpha.png"), rgb)


def test_the_size_of_all_that_is_read(tmp_path):
    deep = noise(5, 7).astype(np.uint16) * 257
    for name, pixels in (
        ("8.png", noise(5, 7)),
        ("16.png", deep),
        ("16.tif", deep),
        ("f.tif", deep / np.float32(65535)),
    ):
        assert image_size(save(tmp_path, name, pixels)) == (5, 7), name
    # where Pillow warns, and where it refuses
    for side in (10_000, 20_000):
        PIL.Image.new("1", (side, 10_000)).save(tmp_path / "large.png")
        assert image_size(tmp_path / "large.png") == (10_000, side)
    # what its head does not tell is no error before it is read
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8X")
    (tmp_path / "icon.icns").write_bytes(b"icns" + b"\xff" * 60)
    for name in ("text.png", "cut.webp", "icon.icns", "missing.png", "."):
        assert stored_size(tmp_path / name) is None
    fails(lambda: image_size(tmp_path / "text.png"), ImageError, "text.png", "not an image")
