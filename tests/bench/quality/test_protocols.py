import io

import numpy as np
import PIL.Image
import pytest
from failing import fails

from mambair_cli.bench.quality.protocols import (
    PAIRED,
    choose_protocol,
    denoising,
    jpeg,
    super_resolution,
)
from mambair_cli.bench.quality.sets import set_named
from mambair_cli.errors import CallError
from mambair_cli.images.metrics import to_y
from mambair_cli.images.resize import bicubic, downscale

TRUTH = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_super_resolution(scale):
    protocol = super_resolution(scale)
    assert (protocol.channel, protocol.border, protocol.scale, protocol.setting) == (
        "y",
        scale,
        scale,
        f"x{scale}",
    )
    assert np.array_equal(protocol.make(TRUTH), downscale(TRUTH, scale))
    low = protocol.make(TRUTH)
    assert np.array_equal(protocol.enlarge(low, (24, 36)), bicubic(low, 24, 36))
    assert (protocol.baseline, protocol.reads_inputs, protocol.seed) == ("bicubic", True, None)
    assert np.array_equal(protocol.prepare(TRUTH), TRUTH)


@pytest.mark.parametrize("seed", [0, 7])
def test_noise_is_drawn_as_published(seed):
    protocol = denoising(25, seed)
    assert (protocol.channel, protocol.border, protocol.setting, protocol.seed) == (
        "rgb",
        0,
        "sigma25",
        seed,
    )
    noisy = protocol.make(TRUTH)
    np.random.seed(seed)
    expected = TRUTH[:, :, ::-1] / 255 + np.random.normal(0, 25 / 255, TRUTH.shape)  # B, G, R
    assert noisy.dtype == np.float32
    assert np.array_equal(noisy, expected[:, :, ::-1].astype(np.float32))
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert np.array_equal(protocol.make(TRUTH), noisy)
    assert str(seed) in protocol.made
    shown = protocol.enlarge(noisy, (24, 36))
    assert np.array_equal(shown, np.floor(noisy.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    assert not protocol.reads_inputs


def test_jpeg_is_gray():
    protocol = jpeg(10)
    assert (protocol.channel, protocol.border, protocol.setting) == ("gray", 0, "q10")
    gray = protocol.prepare(TRUTH)
    assert np.array_equal(gray, np.floor(to_y(TRUTH) + 0.5).astype(np.uint8))
    file = io.BytesIO()
    PIL.Image.fromarray(gray).save(file, "JPEG", quality=10)
    assert np.array_equal(protocol.make(gray), np.asarray(PIL.Image.open(file)))
    equal = np.repeat(TRUTH[:, :, :1], 3, 2)
    assert np.array_equal(protocol.prepare(equal), TRUTH[:, :, 0])  # a gray file is taken as it is


def test_pairs_make_nothing():
    for protocol in PAIRED.values():
        assert protocol.make is None
        assert protocol.reads_inputs
        assert (protocol.scale, protocol.border) == (1, 0)
    assert (PAIRED["derain"].channel, PAIRED["denoise-real"].channel) == ("y", "rgb")


@pytest.mark.parametrize(
    ("name", "call", "task", "setting"),
    [
        (None, {}, "upscale", "x4"),
        (None, {"scale": 3}, "upscale", "x3"),
        (None, {"noise": 15.0}, "denoise", "sigma15"),
        (None, {"noise": 12.5}, "denoise", "sigma12.5"),
        (None, {"quality": 40}, "dejpeg", "q40"),
        (None, {"pairs": "derain"}, "derain", "-"),
        ("Urban100", {}, "upscale", "x4"),
        ("Urban100", {"noise": 50.0}, "denoise", "sigma50"),
        ("CBSD68", {"noise": 25.0}, "denoise", "sigma25"),
        ("CBSD68", {"scale": 2}, "upscale", "x2"),
        ("LIVE1", {"quality": 10}, "dejpeg", "q10"),
        ("Rain100L", {}, "derain", "-"),
        ("SIDD", {}, "denoise", "-"),
        ("Urban100", {"unspoilt": "derain"}, "derain", "clean"),
        (None, {"unspoilt": "dejpeg"}, "dejpeg", "clean"),
    ],
)
def test_what_a_call_asks_for(name, call, task, setting):
    protocol = choose_protocol(name and set_named(name), **call)
    assert (protocol.task, protocol.setting) == (task, setting)


def test_channel_border_and_seed_can_be_chosen():
    protocol = choose_protocol(set_named("Rain100H"), channel="rgb", border=4)
    assert (protocol.channel, protocol.border, protocol.task) == ("rgb", 4, "derain")
    assert choose_protocol(None, scale=2, border=0).border == 0
    assert choose_protocol(None, noise=15, seed=3).seed == 3
    assert choose_protocol(None, quality=10, channel="rgb").prepare(TRUTH).shape == TRUTH.shape


def test_clean_images_are_left_as_they_are():
    protocol = choose_protocol(None, unspoilt="denoise")
    assert protocol.make(TRUTH) is TRUTH
    assert (protocol.channel, protocol.scale, protocol.border) == ("rgb", 1, 0)


@pytest.mark.parametrize(
    ("name", "call", "model"),
    [
        (None, {"scale": 2}, "tiny-x2"),
        ("Urban100", {}, "tiny-x4"),
        ("CBSD68", {"noise": 50.0}, "tiny-denoise"),
        ("SIDD", {}, "tiny-denoise-real"),
        ("classic5", {"quality": 10}, "tiny-dejpeg"),
        ("Rain100L", {}, "tiny-derain"),
    ],
)
def test_by_default_a_model_is_measured_that_a_command_would_take(name, call, model):
    assert choose_protocol(name and set_named(name), **call).default_model == model


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        (None, {"scale": 2, "noise": 15}, ["exclude each other"]),
        ("Rain100H", {"pairs": "derain", "quality": 10}, ["exclude each other"]),
        (None, {"pairs": "upscale"}, ["pairs", "derain", "denoise-real", "'upscale'"]),
        (None, {"unspoilt": "upscale"}, ["clean", "denoise, derain, dejpeg", "'upscale'"]),
        (None, {"unspoilt": "derain", "scale": 2}, ["exclude each other"]),
        (None, {"channel": "z"}, ["channel", "y, rgb, gray", "'z'"]),
        ("CBSD68", {}, ["CBSD68", "`noise` 15, 25 or 50"]),
        ("classic5", {}, ["classic5", "`jpeg` 10, 20, 30 or 40"]),
    ],
)
def test_calls_that_do_not_fit(name, call, words):
    fails(lambda: choose_protocol(name and set_named(name), **call), CallError, *words)
