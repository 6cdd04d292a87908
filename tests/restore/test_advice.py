import io
import os
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from calls import DATA, works

from mambair_cli.models.catalog import model_named
from mambair_cli.restore.advice import Advisor

EVAL = Path(os.environ.get("MAMBAIR_DATA", Path(__file__).parents[3] / "shared" / "data" / "eval"))
PHOTOS = {
    name: np.asarray(PIL.Image.open(DATA / f"{name}.png").convert("RGB"))
    for name in ("photo", "osprey", "dragonfly")
}
AT_ONCE = "if it is small and spoilt in more ways: mambair upscale 'a b.png' `degradation=real`"
CAMERAS = (
    "for the noise of cameras, which cannot be measured: mambair denoise 'a b.png' `noise=real`"
)
every_photo = pytest.mark.parametrize("name", PHOTOS)


def compressed(pixels, quality):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with PIL.Image.open(file) as image:
        return np.asarray(image)


def noisy(pixels, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def enlarged(pixels, factor):
    size = pixels.shape[1] * factor, pixels.shape[0] * factor
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))


def advise(model, pixels):
    row = model_named(model)
    return Advisor()(pixels, "a b.png", row)


@every_photo
@pytest.mark.parametrize(
    "model",
    [
        "tiny-x2",
        "tiny-denoise-real",
        "tiny-dejpeg",
        "tiny-derain",
        "mambair-jpeg-10",
        "mambair-real-x4",
    ],
)
def test_nothing_is_said_of_clean_photographs(name, model):
    photo = PHOTOS[name]
    for pixels in (
        photo,
        photo[:, :, 1],
        photo.astype(np.uint16) * 257,
        photo.astype(np.float32) / 255,
        photo[:9, :9],
    ):
        assert advise(model, pixels) is None


@every_photo
@pytest.mark.parametrize("sigma", [8, 25, 45])
def test_noise(name, sigma):
    said = advise("tiny-x4", noisy(PHOTOS[name], sigma))
    assert said.startswith("a b.png: looks noisy (sigma about ")
    assert abs(int(said.split("about ")[1].split(" ")[0]) - sigma) <= 2
    assert said.endswith(
        "which tiny-x4 enlarges with the rest; first: mambair denoise 'a b.png'; " + AT_ONCE
    )
    assert advise("mambair-real-x4", noisy(PHOTOS[name], sigma)) is None
    assert advise("vmambair-derain", noisy(PHOTOS[name], sigma)) is None


@every_photo
@pytest.mark.parametrize("quality", [10, 33, 75])
def test_compression(name, quality):
    said = advise("tiny-x2", compressed(PHOTOS[name], quality))
    assert said.startswith(
        f"a b.png: looks compressed as JPEG (quality about {quality}), which tiny-x2 enlarges"
    )
    assert said.endswith("; first: mambair dejpeg 'a b.png'; " + AT_ONCE)
    assert advise("tiny-x2", compressed(PHOTOS[name], 92)) is None


@every_photo
def test_an_enlarged_image(name):
    said = advise("tiny-x2", enlarged(PHOTOS[name], 3))
    assert "blurred or enlarged before" in said
    assert said.endswith("better: mambair upscale 'a b.png' `degradation=real`")


@every_photo
@pytest.mark.parametrize("sigma", [2.5, 4, 6])
def test_a_blurred_image(name, sigma):
    assert "looks blurred" in advise("tiny-x2", cv2.GaussianBlur(PHOTOS[name], (0, 0), sigma))


def test_plain_images_and_gradients_are_not_called_blurred():
    ramp = np.repeat(
        np.add.outer(np.linspace(0, 120, 200), np.linspace(0, 130, 300))[:, :, None], 3, 2
    ).round()
    for pixels in (np.full((200, 300, 3), 128), np.full((200, 300, 3), 255), ramp):
        assert advise("tiny-x2", pixels.astype(np.uint8)) is None


@every_photo
def test_another_level_or_task_than_the_model_is_for(name):
    photo = PHOTOS[name]
    assert advise("mambair-denoise-15", noisy(photo, 18)) is None
    assert advise("mambair-denoise-15", noisy(photo, 45)).endswith(
        "better: mambair denoise 'a b.png'"
    )
    assert advise("mambair-denoise-15", compressed(photo, 30)).endswith(
        f"rather than evenly noisy; {CAMERAS}; if there is none: mambair dejpeg 'a b.png'"
    )
    assert advise("mambair-jpeg-40", compressed(photo, 35)) is None
    assert advise("mambair-jpeg-40", compressed(photo, 12)).endswith(
        "better: mambair dejpeg 'a b.png'"
    )
    assert advise("mambair-jpeg-10", noisy(photo, 25)).endswith("better: mambair denoise 'a b.png'")


@every_photo
def test_the_noise_of_cameras_is_not_seen(name):
    said = advise("tiny-denoise", PHOTOS[name])
    assert said.startswith("a b.png: shows hardly any even noise (sigma about ")
    assert said.endswith(f" of 255); {CAMERAS}")
    assert advise("tiny-denoise-real", PHOTOS[name]) is None
    assert advise("tiny-denoise", noisy(PHOTOS[name], 8)) is None


def test_it_is_said_once():
    advisor, model = Advisor(), model_named("tiny-x4")
    assert advisor(PHOTOS["photo"], "a.png", model) is None
    assert advisor(noisy(PHOTOS["photo"], 25), "b.png", model).startswith("b.png: ")
    assert advisor(noisy(PHOTOS["photo"], 25), "c.png", model) is None


# In the commands


@pytest.fixture
def inputs(empty_folder):
    """The working directory, with photographs in it."""
    for name, pixels in PHOTOS.items():
        PIL.Image.fromarray(noisy(pixels[:64, :64], 25)).save(f"{name}.png")
    return empty_folder


def test_one_line_on_stderr(call, inputs):
    code, out, err = call("upscale", "photo.png", "-s", 2, "-o", "out.png")
    assert code == 0
    assert "128x128" in out
    (line,) = err.splitlines()
    assert line.startswith(
        "mambair: photo.png: looks noisy (sigma about 25 of 255), which tiny-x2 enlarges"
    )
    assert "first: mambair denoise photo.png" in line


def test_one_line_in_a_folder(call, inputs):
    code, _, err = call("upscale", ".", "-s", 2, "-o", "out/")
    assert code == 0
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet(call, inputs, option):
    works(call("upscale", "photo.png", "-s", 2, "-o", "out.png", option))
    fails_still = call("upscale", "missing.png", option)
    assert fails_still[0] == 2
    assert "missing.png" in fails_still[2]


def test_of_a_file_nobody_knows_what_it_was_trained_for(call, inputs):
    from mambair_cli.models.weights import bundled_folder

    works(
        call(
            "upscale", "photo.png", "-m", bundled_folder() / "tiny-x2.safetensors", "-o", "out.png"
        )
    )


# On photographs


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs the benchmark images in ../shared")
@pytest.mark.parametrize(
    ("folder", "least", "most"),
    [
        ("Set5/HR", 0, 1),
        ("Set5/LR_bicubic", 0, 0),
        ("Set14/HR", 0, 3),
        ("BSD100/HR", 0, 1),
        ("Kodak24/HR", 0, 0),
        ("McMaster/HR", 0, 0),
        ("Urban100/HR", 0, 0),
        ("PolyU/noisy", 10, 10),
        ("RealRain147/input", 8, 10),
        ("JPEG_real/input", 4, 6),
    ],
)
def test_how_many_photographs_of_the_usual_sets_get_advice(folder, least, most):
    """Of ten at most. The last three were compressed as JPEG before they were published."""
    files = sorted(path for path in (EVAL / folder).rglob("*") if path.is_file())
    said = 0
    for file in files[:: max(1, len(files) // 10)][:10]:
        with PIL.Image.open(file) as image:
            said += (
                Advisor()(np.asarray(image.convert("RGB")), "x", model_named("tiny-x4")) is not None
            )
    assert files
    assert least <= said <= most
