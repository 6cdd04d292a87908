import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from calls import DATA

from mambair_cli.images.image import Image
from mambair_cli.images.resize import downscale
from mambair_cli.restore.condition import UNKNOWN, advice, judge, judge_jpeg, judge_noise

EVAL = Path(os.environ.get("MAMBAIR_DATA", Path(__file__).parents[3] / "shared" / "data" / "eval"))
PHOTOS = {
    name: np.asarray(PIL.Image.open(DATA / f"{name}.png").convert("RGB"))
    for name in ("photo", "osprey", "dragonfly")
}
every_photo = pytest.mark.parametrize("name", PHOTOS)
needs_photos = pytest.mark.skipif(not EVAL.is_dir(), reason="needs the images in ../shared")


def compressed(pixels, quality):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with PIL.Image.open(file) as image:
        return np.asarray(image)


def noisy(pixels, sigma, width=0.0):
    noise = np.random.default_rng(0).normal(0, 1, pixels.shape)
    noise = cv2.GaussianBlur(noise, (0, 0), width) if width else noise
    return np.clip(pixels + sigma * noise / noise.std(), 0, 255).round().astype(np.uint8)


def enlarged(pixels, factor):
    size = pixels.shape[1] * factor, pixels.shape[0] * factor
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))


def blurred(pixels, sigma):
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def read(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@every_photo
def test_clean_photos_keep_the_clean_networks(name):
    photo = PHOTOS[name]
    for pixels in (
        photo,
        photo[:, :, 1],
        photo.astype(np.uint16) * 257,
        photo.astype(np.float32) / 255,
    ):
        found = judge(Image(pixels))
        assert (found.kind, found.words, found.real) == ("clean", "looks clean", False)


def test_what_is_too_small_is_not_judged():
    small = Image(PHOTOS["photo"][:9, :9])
    assert judge(small) == judge_noise(small) == UNKNOWN


SPOILT = {
    "noise 8": (lambda x: noisy(x, 8), "noisy", "sigma [78]"),
    "noise 25": (lambda x: noisy(x, 25), "noisy", "sigma 2[456]"),
    "jpeg 30": (lambda x: compressed(x, 30), "compressed", "JPEG 30"),
    "jpeg 75": (lambda x: compressed(x, 75), "compressed", "JPEG 7[3-7]"),
    "blur": (lambda x: blurred(x, 2), "blurred", "detail up to"),
    "enlarged": (lambda x: enlarged(x, 3), "blurred", "detail up to"),
    "blur, noise, jpeg": (lambda x: compressed(noisy(blurred(x, 1.5), 12), 50), "", "looks"),
}


@every_photo
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_photos_get_the_networks_for_real_photos(name, kind):
    spoil, expected, words = SPOILT[kind]
    found = judge(Image(spoil(PHOTOS[name])))
    assert found.real
    assert not expected or found.kind == expected
    assert re.search(words, found.words)


def test_the_file_tells_its_quality_where_pixels_do_not():
    table = [17, 18, 24, 47, 99, 99, 99, 99] * 8
    assert judge(Image(PHOTOS["photo"], quantization=table)).kind == "compressed"
    assert judge_jpeg(Image(PHOTOS["photo"])).level is None
    assert judge_jpeg(Image(compressed(PHOTOS["photo"], 33))).level == 33


def test_plain_images_and_gradients_are_not_called_blurred():
    ramp = np.add.outer(np.linspace(0, 120, 200), np.linspace(0, 130, 300)).round()
    for pixels in (np.full((200, 300, 3), 128), np.full((200, 300, 3), 255), ramp):
        assert not judge(Image(pixels.astype(np.uint8))).real


@every_photo
def test_which_noise(name):
    photo = PHOTOS[name]
    assert judge_noise(Image(photo)) == judge_noise(Image(photo.astype(np.uint16) * 257))
    assert judge_noise(Image(photo)).words == "looks clean"
    white = judge_noise(Image(noisy(photo, 25)))
    assert (white.kind, white.real, white.words) == ("noisy", False, "")
    assert white.level == pytest.approx(25, abs=2)
    camera = judge_noise(Image(compressed(noisy(photo, 8, width=0.8), 80)))
    assert (camera.real, camera.words) == (False, "looks like a camera's noise")


# What is left


@every_photo
def test_a_clean_result_needs_nothing(name):
    photo = Image(PHOTOS[name])
    assert advice(photo, 1, "denoise", False, "a.png") is None
    assert advice(Image(enlarged(PHOTOS[name], 2)), 2, "upscale", False, "a.png") is None


@every_photo
def test_noise_that_is_left(name):
    rest = Image(noisy(PHOTOS[name], 12))
    said = advice(rest, 1, "dejpeg", True, "a b.png")
    assert re.match(r"still looks noisy \(sigma about 1[123]\); what may help: ", said)
    assert said.endswith("mambair denoise 'a b.png'")
    # What was just done, or done before, is not advised again.
    assert "denoise" not in advice(rest, 1, "denoise", True, "a b.png")
    assert "denoise" not in advice(rest, 1, "upscale", True, "a_denoised.png")
    large = Image(enlarged(rest.pixels, 2))
    assert advice(large, 2, "upscale", False, "a.png").endswith(
        "`degradation=real`, and no `model`"
    )


@every_photo
def test_compression_that_is_left(name):
    rest = Image(compressed(PHOTOS[name], 40))
    said = advice(rest, 1, "derain", False, "a.png")
    assert said == "still looks compressed (JPEG 40); what may help: mambair dejpeg a.png"
    assert advice(rest, 1, "dejpeg", False, "a.png") == "still looks compressed (JPEG 40)"
    assert "dejpeg" not in advice(rest, 1, "upscale", True, "a_dejpeg.png")


# On photographs


@needs_photos
@pytest.mark.parametrize(
    ("folder", "most"), [("Set5", 0), ("Set14", 1), ("BSD100", 0), ("Kodak24", 0), ("McMaster", 0)]
)
def test_what_was_only_made_smaller_stays_clean(folder, most):
    """At most eight of each set, at every scale; over all 483 two are not, both of Set14."""
    files = sorted((EVAL / folder / "HR").iterdir())
    spoilt = 0
    for i, file in enumerate(files[:: max(1, len(files) // 8)][:8]):
        small = downscale(read(file), (2, 3, 4)[i % 3])
        spoilt += judge(Image(small)).real
    assert spoilt <= most


@needs_photos
def test_real_photos_get_the_networks_for_real_photos():
    files = sorted((EVAL / "RealSRSet" / "input").iterdir())
    real = {file.stem for file in files if judge(Image(read(file))).real}
    # Those that are left look as photos do that were only made smaller.
    left = {"butterfly2", "chip", "computer", "pattern", "ppt3", "tiger"}
    assert {file.stem for file in files} - real <= left
