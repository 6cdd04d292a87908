import copy
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from failing import fails
from networks import network, picture
from restorers import DATA, PHOTO, SCENE, WHITE, Local, as_type, load, restorer
from torch import nn

from mambair_cli.archs.layers import FullPrecisionConv, LayerNorm, Pointwise
from mambair_cli.archs.mambair import ResidualGroup, VSSBlock
from mambair_cli.archs.ss2d import SS2D
from mambair_cli.archs.vmambair import EFFN, OmniSelectiveScan, OSSBlock
from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.images.io import Image, read_image
from mambair_cli.images.metrics import psnr_y
from mambair_cli.images.resize import bicubic, downscale, modcrop
from mambair_cli.models.catalog import list_models
from mambair_cli.models.weights import bundled_folder, save_network
from mambair_cli.ops import scan_numba
from mambair_cli.restore import restorer as engine
from mambair_cli.restore.restorer import load_restorer
from mambair_cli.system import scratch
from mambair_cli.system.devices import resolve_device


def output_of(model, image):
    """What the module makes of a whole image, as float and not clipped."""
    white = WHITE[image.dtype.name]
    pixels = torch.from_numpy(image.astype(np.float32) / np.float32(white))
    gray = pixels.ndim == 2
    # (c,h,w)
    pixels = pixels[None] if gray else pixels.permute(2, 0, 1)
    with torch.no_grad():
        if model.config.in_chans == 1:
            out = torch.cat([model(channel[None, None])[0] for channel in pixels])
        else:
            out = model(pixels.expand(3, -1, -1)[None])[0]
            out = out.mean(0, keepdim=True) if gray else out
    out = out.permute(1, 2, 0).numpy()
    return out[..., 0] if gray else out


def by_hand(model, image):
    """What `restore` must return for a whole image: the module's output, clipped, in the image's
    type.
    """
    white, out = WHITE[image.dtype.name], output_of(model, image).clip(0, 1)
    return (
        out
        if white == 1
        else np.floor(out * np.float32(white) + np.float32(0.5)).astype(image.dtype)
    )


# One image


@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
@pytest.mark.parametrize("form", ["tiny", "classic", "denoise", "jpeg", "unet", "derain"])
def test_the_result_is_the_output_of_the_module(tiny, form, gray, dtype):
    r = tiny if form == "tiny" else restorer(network(form))
    image = as_type(SCENE[..., 1] if gray else SCENE, dtype)
    before = image.copy()
    result = r.restore(image)
    assert r.scale == r.model.config.upscale
    assert result.dtype == dtype
    assert result.shape == (r.scale * 24, r.scale * 32, *image.shape[2:])
    atol = {"uint8": 1, "uint16": 2, "float32": 2e-5}[dtype]
    np.testing.assert_allclose(result, by_hand(r.model, image), rtol=0, atol=atol)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
def test_types_agree(tiny, gray):
    image = SCENE[..., 1] if gray else SCENE
    results = {dtype: tiny.restore(as_type(image, dtype)) / WHITE[dtype] for dtype in WHITE}
    for dtype in ("uint8", "uint16"):
        assert np.abs(results[dtype] - results["float32"]).max() < 0.51 / WHITE[dtype]


def test_gray_goes_through_a_colour_network_as_three_equal_channels(tiny):
    gray = as_type(SCENE[..., 1], "float32")
    colour = tiny.restore(np.dstack([gray] * 3))
    clipped = ((colour == 0) | (colour == 1)).any(2)
    assert clipped.mean() < 0.5
    result = tiny.restore(gray)
    np.testing.assert_allclose(result[~clipped], colour.mean(2)[~clipped], rtol=0, atol=1e-6)


def test_colour_goes_through_a_gray_network_channel_by_channel():
    r, image = restorer(network("jpeg_3conv")), as_type(SCENE, "float32")
    channels = [r.restore(image[..., c]) for c in range(3)]
    np.testing.assert_allclose(r.restore(image), np.dstack(channels), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tile", ["off", "auto", 24])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (2, 31), (3, 5000)], ids=str)
def test_odd_sizes(size, tile):
    r = restorer(network("light_c", depths=(1,)), tile=tile)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = r.restore(image)
    assert result.shape == (4 * size[0], 4 * size[1], 3)
    if len(r.plan(*size).boxes) == 1:
        assert np.abs(result.astype(int) - by_hand(r.model, image)).max() <= 1


@pytest.mark.parametrize("tile", ["off", "auto", 24])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (25, 31)], ids=str)
@pytest.mark.parametrize("form", ["unet", "sisr", "v2_light"])
def test_odd_sizes_of_a_net_that_needs_multiples(form, size, tile):
    r = restorer(network(form, **{} if form == "v2_light" else {"blocks": (1,) * 4}), tile=tile)
    shapes = []
    r.model.register_forward_pre_hook(lambda model, inputs: shapes.append(inputs[0].shape))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = r.restore(image)
    assert result.shape == (r.scale * size[0], r.scale * size[1], 3)
    assert all(shape[2] % 8 == shape[3] % 8 == 0 for shape in shapes)
    if len(shapes) == 1:
        assert np.abs(result.astype(int) - by_hand(r.model, image)).max() <= 1


@pytest.mark.parametrize(
    "image",
    [
        *(
            np.zeros(shape, np.uint8)
            for shape in [(), (4,), (4, 5, 1), (4, 5, 2), (4, 5, 4), (1, 4, 5, 3)]
        ),
        *(np.zeros(shape, np.uint8) for shape in [(0, 5), (5, 0), (0, 5, 3), (5, 0, 3), (0, 0)]),
        *(
            np.zeros((4, 5, 3), dtype)
            for dtype in ("bool", "int8", "int32", "float16", "float64", ">u2")
        ),
    ],
    ids=lambda image: f"{image.dtype.str}{image.shape}",
)
def test_arrays_that_are_no_image(tiny, image):
    fails(lambda: tiny.restore(image), ValueError, "uint16 or float32", image.dtype, image.shape)


def test_floats_beyond_black_and_white_are_squeezed_and_stretched(tiny):
    image = as_type(SCENE, "float32") * 4 - 1.5
    low, high = image.min(), image.max()
    expected = low + (high - low) * tiny.restore((image - low) / (high - low))
    result = tiny.restore(image)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    assert result.max() > 1.5
    # what lies within stays as it is
    dim = as_type(SCENE, "float32") / 8
    np.testing.assert_allclose(tiny.restore(dim), by_hand(tiny.model, dim), rtol=0, atol=2e-5)


def test_floats_beyond_black_and_white_can_be_shown_as_they_are(tiny):
    image = as_type(SCENE, "float32") * 1.5 - 0.25
    result = tiny.restore(image, squeeze=False)
    with torch.inference_mode():
        seen = (
            tiny.model(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
            .permute(1, 2, 0)
            .numpy()
        )
    assert seen.min() < 0
    assert seen.max() > 1
    np.testing.assert_allclose(result, seen.clip(0, 1), rtol=0, atol=2e-5)
    assert np.abs(result - tiny.restore(image).clip(0, 1)).max() > 1e-3
    pixels = as_type(SCENE, "uint8")
    np.testing.assert_array_equal(tiny.restore(pixels, squeeze=False), tiny.restore(pixels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tiny, value):
    image = as_type(SCENE, "float32")
    image[3, 4, 1] = value
    for squeeze in (True, False):
        fails(
            lambda squeeze=squeeze: tiny.restore(image, squeeze=squeeze),
            ValueError,
            "NaN or infinite values",
        )


def test_a_large_result_is_the_same(tiny, monkeypatch):
    small = tiny.restore(PHOTO)
    used = []
    monkeypatch.setattr(scratch, "LARGE", 1000)
    monkeypatch.setattr(scratch, "folder", lambda: used.append(1) or tempfile.gettempdir())
    large = tiny.restore(PHOTO)
    assert used
    np.testing.assert_array_equal(large, small)


@pytest.mark.parametrize("form", ["light_c", "jpeg"])
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
def test_the_ensemble_is_the_mean_over_the_symmetries(form, gray):
    image = as_type(SCENE[..., 1] if gray else SCENE, "float32")
    model = network(form)
    outputs = []
    for turned in (image, image.swapaxes(0, 1)):
        for rows in (1, -1):
            for columns in (1, -1):
                seen = np.ascontiguousarray(turned[::rows, ::columns])
                out = output_of(model, seen)[::rows, ::columns]
                outputs.append(out if turned is image else out.swapaxes(0, 1))
    result = restorer(model, ensemble=True).restore(image)
    np.testing.assert_allclose(result, np.mean(outputs, axis=0).clip(0, 1), rtol=0, atol=2e-5)
    assert np.abs(result - outputs[0].clip(0, 1)).max() > 1e-3


def test_any_memory_layout(tiny):
    expected = tiny.restore(SCENE)
    strided = np.zeros((48, 64, 3), np.uint8)
    strided[::2, ::2] = SCENE
    locked = SCENE.copy()
    locked.flags.writeable = False
    mirrored = SCENE[::-1, ::-1].copy()
    for image in (strided[::2, ::2], locked, np.asfortranarray(SCENE), mirrored[::-1, ::-1]):
        np.testing.assert_array_equal(tiny.restore(image), expected)


def test_nothing_stays_behind(tiny):
    state = copy.deepcopy(tiny.model.state_dict())
    first = tiny.restore(SCENE)
    tiny.restore(SCENE[:7, :5, 0])
    np.testing.assert_array_equal(tiny.restore(SCENE), first)
    assert all(torch.equal(value, state[key]) for key, value in tiny.model.state_dict().items())
    np.testing.assert_array_equal(load(tile="off").restore(SCENE), first)
    first[:] = 0
    assert tiny.restore(SCENE).any()


def test_the_model_is_a_plain_module(tiny):
    tiny.restore(SCENE)
    model = tiny.model
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    output = model(picture(6, 7, batch=2))
    assert output.shape == (2, 3, 12, 14)
    # also after `restore`
    output.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)


# Progress


@pytest.mark.parametrize("tile", ["off", 16])
def test_progress_rises_to_one(tile):
    r, shares = restorer(network("light_c"), tile=tile), []
    r.restore(SCENE, shares.append)
    # a network of three blocks
    steps = 3 * len(r.plan(24, 32).boxes)
    assert shares == pytest.approx([(i + 1) / steps for i in range(steps)])
    assert shares[-1] == 1
    # reports to nobody
    r.restore(SCENE)
    assert len(shares) == steps


def test_an_interrupted_restoration_leaves_no_hooks(monkeypatch):
    r, shares = restorer(network("light_c"), tile=16), []

    def interrupt(share):
        shares.append(share)
        if len(shares) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        r.restore(SCENE, interrupt)
    assert len(shares) == 5
    assert not any(module._forward_hooks for module in r.model.modules())
    with monkeypatch.context() as patch:
        patch.setattr(
            engine.tiling, "merge_rows", lambda plan, outputs, scale: (next(outputs), 1 / 0)
        )
        with pytest.raises(ZeroDivisionError) as kept:
            r.restore(SCENE)
    # and with it the frames, in which the generator of the tiles still waits
    assert kept.value
    assert not any(module._forward_hooks for module in r.model.modules())
    np.testing.assert_array_equal(
        r.restore(SCENE), restorer(network("light_c"), tile=16).restore(SCENE)
    )


# Precision


@pytest.mark.parametrize(("dtype", "near"), [("fp16", 90), ("bf16", 70)])
@pytest.mark.parametrize("name", ["osprey", "photo"])
def test_half_precision_costs_less_than_a_hundredth_of_a_decibel(name, dtype, near):
    photo = read_image(DATA / f"{name}.png").pixels
    low, high = downscale(photo, 2), modcrop(photo, 2)
    single, half = (
        load(tile="off", dtype=kind).restore(as_type(low, "float32")).astype(np.float64)
        for kind in ("fp32", dtype)
    )
    error = 10 * np.log10(((half - single) ** 2).mean())
    scores = [
        psnr_y(np.rint(255 * result).astype(np.uint8), high, border=2) for result in (single, half)
    ]
    print(f"{dtype}: {-error:.1f} dB from fp32, PSNR-Y {scores[1] - scores[0]:+.4f} dB")
    assert near < -error < near + 20
    assert 0 < abs(scores[1] - scores[0]) < 0.01


@pytest.mark.parametrize("name", [row.name for row in list_models() if row.bundled])
def test_bundled_nets_stay_within_half_precision(name, caplog):
    load(name, tile="off", dtype="fp16").restore(read_image(DATA / "osprey.png").pixels)
    # no tile was computed again
    assert not caplog.records


@pytest.mark.parametrize(
    "form", ["classic", "light_b", "light_c", "denoise", "unet", "derain", "sisr"]
)
@pytest.mark.parametrize(
    ("backend", "dtype"), [("numba", torch.bfloat16), ("reference", torch.float16)]
)
def test_what_is_computed_in_half_precision(form, backend, dtype):
    r, seen = (
        restorer(network(form), dtype={torch.bfloat16: "bf16"}.get(dtype, "fp16"), backend=backend),
        {},
    )
    for name, module in r.model.named_modules():
        module.register_forward_hook(
            lambda m, _, out, name=name: seen.update({name: (type(m), out.dtype)})
        )
    r.restore(SCENE)
    outer = {dtype for kind, dtype in seen.values() if kind is FullPrecisionConv}
    stream = {
        dtype
        for kind, dtype in seen.values()
        if kind in (VSSBlock, ResidualGroup, OSSBlock, LayerNorm)
    }
    inner = [
        dtype
        for kind, dtype in seen.values()
        if kind in (nn.Conv2d, Pointwise, SS2D, OmniSelectiveScan, EFFN)
    ]
    assert outer == stream == {seen[""][1]} == {torch.float32}
    assert set(inner) == {dtype}
    assert len(inner) >= 10
    assert sum(kind is FullPrecisionConv for kind, _ in seen.values()) == 2


# A picture with all that belongs to it


@pytest.mark.parametrize("dtype", WHITE)
def test_a_picture_keeps_all_that_belongs_to_it(dtype):
    r = restorer(network("light_c"))
    pixels, alpha = as_type(SCENE, dtype), as_type(SCENE[..., 2], dtype)
    assert alpha.min() > 0
    image = Image(
        pixels, alpha, b"profile", b"exif", b"xmp", (300, 300), {"Author": "me"}, ("note",)
    )
    result = r.restore_image(image)
    np.testing.assert_array_equal(result.pixels, r.restore(pixels))
    plain = bicubic(alpha, 96, 128).clip(0, WHITE[dtype])
    whole = (plain == 0) | (plain == WHITE[dtype])
    np.testing.assert_array_equal(result.alpha, np.where(whole, plain, r.restore(alpha)))
    assert replace(result, pixels=pixels, alpha=alpha).__dict__ == image.__dict__
    result = restorer(network("light_c"), alpha="bicubic").restore_image(image)
    np.testing.assert_array_equal(result.alpha, bicubic(alpha, 96, 128).clip(0, WHITE[dtype]))


@pytest.mark.parametrize("alpha", ["model", "bicubic"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_even_transparency_stays_as_it_is(tiny, alpha, value):
    result = load(tile="off", alpha=alpha).restore_image(
        Image(SCENE, np.full(SCENE.shape[:2], value, np.uint8))
    )
    assert (result.alpha == value).all()
    np.testing.assert_array_equal(result.pixels, tiny.restore(SCENE))


@pytest.mark.parametrize("alpha", ["model", "bicubic"])
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
def test_transparent_black_leaves_no_dark_fringe(alpha, gray):
    opaque = np.zeros((40, 40), np.uint8)
    opaque[12:28, 12:28] = 255
    colour = np.uint8(230) if gray else np.array([240, 200, 160], np.uint8)
    pixels = (opaque[..., None] // 255 * colour).reshape(40, 40, -1).squeeze()
    result = load(tile="off", alpha=alpha).restore_image(Image(pixels, opaque))
    seen = result.alpha > 0
    assert 30**2 < seen.sum() < 40**2
    assert (result.alpha[26:54, 26:54] == 255).all()
    assert not np.delete(result.alpha, np.s_[18:62], 0).any()
    assert np.abs(result.pixels[seen].astype(int) - colour).max() <= 6


def test_unknown_way_with_alpha():
    fails(lambda: load(alpha="sharp"), CallError, "'sharp'", "`alpha`", "bicubic")


def test_a_picture_reports_progress():
    for image in (Image(SCENE), Image(SCENE, SCENE[..., 0])):
        shares = []
        restorer(network("light_c")).restore_image(image, shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_overshoot_of_the_resizing_stays_in_range():
    edge = np.zeros((24, 24), np.float32)
    edge[:, 12:] = 1
    assert bicubic(edge, 10, 10).max() > 1.01
    for low, high in ((0, 1), (-3, 7)):
        resized = engine.resized(low + (high - low) * edge, 10, 10)
        assert (resized.min(), resized.max()) == (low, high)


# Loading


@pytest.mark.parametrize("asked", ["auto", "numba", "reference"])
def test_the_back_end_that_runs(monkeypatch, tiny, asked):
    runs = "numba" if asked == "auto" else asked
    made, forward = [], scan_numba.forward_planes
    monkeypatch.setattr(
        scan_numba, "forward_planes", lambda *inputs: made.append(1) or forward(*inputs)
    )
    r = load(backend=asked, tile="off")
    assert r.backend == runs
    assert r.device == torch.device("cpu")
    result = r.restore(as_type(SCENE, "float32"))
    blocks = sum(isinstance(module, SS2D) for module in r.model.modules())
    assert len(made) == (blocks if runs == "numba" else 0)
    np.testing.assert_allclose(result, tiny.restore(as_type(SCENE, "float32")), rtol=0, atol=1e-5)


def test_unknown_back_end():
    fails(lambda: load(backend="fast"), CallError, "'fast'", "numba", "reference")


def test_load_by_name_or_file(tmp_path, tiny):
    file = bundled_folder() / "tiny-x2.safetensors"
    for name in ("tiny-x2", file, str(file)):
        r = load(name, tile="off")
        assert (r.name, r.scale) == (str(name), 2)
        np.testing.assert_array_equal(r.restore(SCENE), tiny.restore(SCENE))
    model = network("classic")
    torch.save({"params_ema": model.state_dict()}, tmp_path / "official.pth")
    save_network(tmp_path / "own.safetensors", model, model.state_dict(), {})
    for name in ("official.pth", "own.safetensors"):
        r = load(tmp_path / name)
        assert r.scale == 3
        np.testing.assert_array_equal(r.restore(SCENE), restorer(model).restore(SCENE))


def test_everything_by_default():
    r = load_restorer("tiny-x2")
    assert (r.tile, r.tile_overlap, r.device) == ("auto", 32, resolve_device("auto"))
    assert r.restore(SCENE).shape == (48, 64, 3)


def test_freed_memory_is_kept_on_the_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(engine.runtime, "keep_freed_memory", lambda: calls.append(1))
    restorer(Local())
    assert calls == [1]


def test_load_errors(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"bad")
    fails(lambda: load("tiny-x9"), CallError, "tiny-x9")
    fails(lambda: load(device="cuda:x"), CallError, "'cuda:x'")
    fails(lambda: load(tmp_path / "none.pth"), CallError, tmp_path / "none.pth")
    fails(lambda: load(tmp_path / "bad.pth"), CheckpointError, tmp_path / "bad.pth")


# Routing that is drawn at random


def test_a_seed_draws_the_routing_of_mambairv2():
    model = network("v2", depths=(1,))
    image = picture(16, 16)
    plain = restorer(model).restore(image)
    drawn = [restorer(model, seed=seed).restore(image) for seed in (1, 2, 1)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], plain)
    model.seed = 1
    with torch.no_grad():
        expected = model(image).clip(0, 1)
    torch.testing.assert_close(drawn[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["light_c", "unet"])
def test_networks_that_draw_nothing_refuse_a_seed(form):
    fails(lambda: restorer(network(form), seed=0), CallError, "small draws nothing", "`seed`")
