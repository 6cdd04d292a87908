import io

import numpy as np
import PIL.Image
import pytest
import torch
from failing import fails
from networks import network
from restorers import SCENE, as_type, restorer

from mambair_cli.images.io import Image
from mambair_cli.restore.kinds import unpack


@pytest.fixture(scope="module")
def small():
    return restorer(network("light_c", depths=(1,)))


@pytest.fixture(scope="module")
def gray():
    return restorer(network("jpeg", depths=(1,)))


# Pillow


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_an_image_of_pillow_is_restored_like_its_samples(small, mode):
    pixels = {"L": SCENE[..., 1], "RGB": SCENE, "I;16": as_type(SCENE[..., 1], "uint16")}[mode]
    result = small.restore(PIL.Image.fromarray(pixels))
    assert result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), small.restore(pixels))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_restored_as_that_of_a_file(small, mode):
    alpha = np.full(SCENE.shape[:2], 255, np.uint8)
    alpha[:8] = 0
    pixels = SCENE if mode == "RGBA" else SCENE[..., 1]
    expected = small.restore_image(Image(pixels, alpha))
    result = small.restore(PIL.Image.fromarray(np.dstack([pixels, alpha])))
    assert result.mode == mode
    samples = np.asarray(result)
    np.testing.assert_array_equal(samples[..., -1], expected.alpha)
    np.testing.assert_array_equal(samples[..., :-1].squeeze(), expected.pixels)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_gray_or_colour(small, mode):
    result = small.restore(PIL.Image.fromarray(SCENE).convert(mode))
    assert result.mode == ("L" if mode == "1" else "RGB")
    assert result.size == (4 * 32, 4 * 24)


def test_profile_and_exif_are_kept(small):
    image = PIL.Image.fromarray(SCENE)
    image.info.update(icc_profile=b"profile", exif=b"exif", dpi=(72, 72), gamma=2)
    assert small.restore(image).info == {
        "icc_profile": b"profile", "exif": b"exif", "dpi": (72, 72)
    }  # fmt: skip
    # It would not describe what the image becomes.
    image = image.convert("YCbCr")
    image.info.update(icc_profile=b"profile")
    assert "icc_profile" not in small.restore(image).info


def test_a_file_that_pillow_opened(small):
    file = io.BytesIO()
    PIL.Image.fromarray(SCENE).save(file, "PNG")
    with PIL.Image.open(file) as image:
        np.testing.assert_array_equal(np.asarray(small.restore(image)), small.restore(SCENE))


# Tensors


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tensors(small, dtype, batch, channels):
    image = torch.rand(*batch, channels, 9, 11).to(dtype).requires_grad_()
    result = small.restore(image)
    assert result.shape == (*batch, channels, 36, 44)
    assert result.dtype == dtype
    assert not result.requires_grad
    given = image.detach().float().view(-1, channels, 9, 11)
    for one, found in zip(given, result.view(-1, channels, 36, 44), strict=True):
        array = one[0].numpy() if channels == 1 else one.permute(1, 2, 0).numpy()
        expected = torch.from_numpy(small.restore(np.ascontiguousarray(array)))
        expected = expected[None] if channels == 1 else expected.permute(2, 0, 1)
        assert torch.equal(found, expected.to(dtype))


def test_a_tensor_is_what_the_network_computes(gray):
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        expected = gray.model(image).clip(0, 1)
    torch.testing.assert_close(gray.restore(image), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8),
        torch.zeros(4, 8, 8),
        torch.zeros(1, 1, 3, 8, 8),
        torch.zeros(3, 0, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(8, 8, 3),
    ],
    ids=lambda image: f"{image.dtype}{tuple(image.shape)}",
)
def test_other_tensors_are_refused(small, image):
    fails(lambda: small.restore(image), ValueError, "(B,C,H,W) of floats", tuple(image.shape))


def test_tensors_with_nan_are_refused(small):
    fails(lambda: small.restore(torch.full((3, 8, 8), torch.nan)), ValueError, "NaN")


@pytest.mark.parametrize("image", [None, "photo.png", [[1, 2], [3, 4]], b"bytes"])
def test_other_kinds_are_refused(image):
    fails(lambda: unpack(image), ValueError, "a numpy array, a Pillow image or a tensor")


# Several


def test_a_batch_is_restored_as_each_alone(small):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size, np.uint8) for size in [(8, 9, 3), (7, 5), (8, 9, 3)]]
    transparent = PIL.Image.fromarray(rng.integers(0, 256, (6, 6, 4), np.uint8))
    images = [*arrays, transparent, torch.rand(2, 3, 8, 9), as_type(arrays[0], "uint16")]
    shares = []
    results = small.restore_batch(images, shares.append)
    assert [type(result) for result in results] == [type(image) for image in images]
    for image, result in zip(images, results, strict=True):
        expected = small.restore(image)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert small.restore_batch([]) == []


def test_arrays_of_one_size_share_the_batches_of_a_gpu(small, monkeypatch):
    seen = []
    monkeypatch.setattr(small, "largest_batch", 8)
    small.model.register_forward_pre_hook(lambda model, inputs: seen.append(len(inputs[0])))
    images = [SCENE[:8, :8], SCENE[8:16, :8], SCENE[:8, 8:16], SCENE[:4, :8]]
    results = small.restore_batch(images)
    assert seen == [3, 1]
    for image, result in zip(images, results, strict=True):
        assert np.abs(result.astype(int) - small.restore(image)).max() <= 1


def test_a_bad_image_is_found_before_any_work(small):
    seen = []
    handle = small.model.register_forward_pre_hook(lambda *_: seen.append(1))
    bad = np.zeros((4, 4, 2), np.uint8)
    fails(lambda: small.restore_batch([SCENE, bad]), ValueError, "expected H x W")
    assert not seen
    handle.remove()


# The bar


def test_a_bar_is_shown(small, capfd):
    result = small.restore(SCENE, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert err.splitlines()[-1].split("\r")[-1].startswith("small: 100%|")
    np.testing.assert_array_equal(result, small.restore(SCENE, progress=False))
    assert capfd.readouterr() == ("", "")


def test_a_bar_of_several_tells_how_many(small, capfd):
    small.restore_batch([SCENE, SCENE], progress=True)
    assert "small, 2 images: 100%|" in capfd.readouterr().err


def test_a_bar_of_an_image_of_a_file(small, capfd):
    small.restore_image(Image(SCENE), progress=True)
    assert "small: 100%|" in capfd.readouterr().err
