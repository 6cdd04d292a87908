import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import FORMS, fails, network, picture
from torch import nn

from mambair_cli import engine
from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.archs.ss2d import SS2D
from mambair_cli.datasets import make_pair
from mambair_cli.engine import (
    MEMORY_ERROR,
    MEMORY_SHARE,
    Options,
    Restorer,
    Upscaler,
    load_restorer,
    resolve_device,
    resolve_dtype,
)
from mambair_cli.errors import BackendError, CallError, CheckpointError, MemoryLimitError, RestorationError
from mambair_cli.image_io import Image, read_image
from mambair_cli.metrics import psnr, psnr_y
from mambair_cli.ops import scan_numba
from mambair_cli.resize import Size, bicubic
from mambair_cli.weights import bundled_folder, save_network

PHOTO = read_image(Path(__file__).parent / "data" / "osprey.png").pixels  # 128 x 96
SCENE = PHOTO[40:64, 30:62]
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


def as_type(image, dtype):
    """The same picture in another type."""
    if dtype == "float32":
        return image.astype(np.float32) / 255
    return image.astype(dtype) * (257 if dtype == "uint16" else 1)


def restorer(model, *, tile="off", tile_overlap=8, **options):
    return Restorer(model, "small", Options(**{"device": "cpu"} | options, tile=tile, tile_overlap=tile_overlap))


def load(name="tiny-x2", **options):
    return load_restorer(name, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def tiny():
    return load(tile="off")


def output_of(model, image):
    """What the module makes of a whole image, as float and not clipped."""
    white = WHITE[image.dtype.name]
    pixels = torch.from_numpy(image.astype(np.float32) / np.float32(white))
    gray = pixels.ndim == 2
    pixels = pixels[None] if gray else pixels.permute(2, 0, 1)  # (c,h,w)
    with torch.no_grad():
        if model.config.in_chans == 1:
            out = torch.cat([model(channel[None, None])[0] for channel in pixels])
        else:
            out = model(pixels.expand(3, -1, -1)[None])[0]
            out = out.mean(0, keepdim=True) if gray else out
    out = out.permute(1, 2, 0).numpy()
    return out[..., 0] if gray else out


def by_hand(model, image):
    """What `restore` must return for a whole image: the module's output, clipped, in the image's type."""
    white, out = WHITE[image.dtype.name], output_of(model, image).clip(0, 1)
    return out if white == 1 else np.floor(out * np.float32(white) + np.float32(0.5)).astype(image.dtype)


# One image


@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
@pytest.mark.parametrize("form", ["tiny", "classic", "denoise", "jpeg"])
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


@pytest.mark.parametrize(
    "image",
    [
        *(np.zeros(shape, np.uint8) for shape in [(), (4,), (4, 5, 1), (4, 5, 2), (4, 5, 4), (1, 4, 5, 3)]),
        *(np.zeros(shape, np.uint8) for shape in [(0, 5), (5, 0), (0, 5, 3), (5, 0, 3), (0, 0)]),
        *(np.zeros((4, 5, 3), dtype) for dtype in ("bool", "int8", "int32", "float16", "float64", ">u2")),
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
    dim = as_type(SCENE, "float32") / 8  # what lies within stays as it is
    np.testing.assert_allclose(tiny.restore(dim), by_hand(tiny.model, dim), rtol=0, atol=2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tiny, value):
    image = as_type(SCENE, "float32")
    image[3, 4, 1] = value
    fails(lambda: tiny.restore(image), ValueError, "no numbers")
    fails(lambda: tiny.restore_rows(image), ValueError, "no numbers")


def test_rows_are_those_of_the_whole_result():
    r = restorer(network("light_c"), tile=24)
    rows = list(r.restore_rows(PHOTO))
    assert len(rows) == len(r.plan(*PHOTO.shape[:2]).tops) > 3
    np.testing.assert_array_equal(np.concatenate(rows), r.restore(PHOTO))


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
    output.mean().backward()  # also after `restore`
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)


# Tiles


class Local(nn.Module):
    """Looks one pixel far and treats the borders of its input as `merge` cannot know; then enlarges."""

    config = MambaIRConfig(upscale=2, upsampler="")

    def forward(self, image):
        mean = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
        return F.interpolate(mean, scale_factor=2, mode="nearest")


@pytest.mark.parametrize(("overlap", "exact"), [(4, True), (7, True), (3, False), (0, False)])
def test_tiles_are_exact_up_to_a_quarter_of_the_overlap(overlap, exact):
    image = as_type(PHOTO, "float32")
    whole = restorer(Local()).restore(image)
    r = restorer(Local(), tile=20, tile_overlap=overlap)
    assert len(r.plan(*image.shape[:2]).boxes) > 20
    difference = np.abs(r.restore(image) - whole).max()
    assert difference < 1e-6 if exact else difference > 1e-3


@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
def test_seams_of_a_real_network_are_small(tiny, gray):
    image = as_type(PHOTO[:72, :80], "float32")
    image = image[..., 0] if gray else image
    tiled = load(tile=40, tile_overlap=16)
    assert len(tiled.plan(72, 80).boxes) == 9
    difference = np.abs(tiled.restore(image) - tiny.restore(image))
    assert 0 < difference.max() < 16 / 255
    assert difference.mean() < 0.5 / 255


def test_a_tile_of_the_size_of_the_image_changes_nothing(tiny):
    np.testing.assert_array_equal(load(tile=32, tile_overlap=16).restore(SCENE), tiny.restore(SCENE))


@pytest.mark.parametrize("tile", ["48", 48, np.int64(48)])
def test_tiles_that_are_asked_for(tile):
    plan = restorer(Local(), tile=tile).plan(100, 40)
    assert (plan.tile_height, plan.tile_width) == (39, 40)  # 3 * 39 - 2 * 8 = 101


@pytest.mark.parametrize(
    ("tile", "overlap", "word"),
    [
        *((tile, 8, "--tile must") for tile in ("", "of", "0", 0, -5, "-5", "12.5", 12.5, "1e2", True, None)),
        *((tile, 32, "--tile-overlap") for tile in (1, 31, "32")),
        *((tile, -1, "negative") for tile in ("auto", "off", 64)),
    ],
)
def test_wrong_tiles(tile, overlap, word):
    fails(lambda: restorer(Local(), tile=tile, tile_overlap=overlap), CallError, word)


# Memory


def with_memory(monkeypatch, mebibytes, overlap=32):
    """A restorer where this much is free."""
    monkeypatch.setattr(engine, "free_memory", lambda device: int(mebibytes * 2**20))
    return restorer(network("light_c"), tile="auto", tile_overlap=overlap)


def test_an_image_that_fits_stays_whole(monkeypatch):
    assert with_memory(monkeypatch, 4096).plan(700, 900).boxes == [(0, 0)]


@pytest.mark.parametrize("size", [(3000, 4000), (500, 20_000), (20_000, 500)], ids=str)
@pytest.mark.parametrize("mebibytes", [3000, 4000, 6000])
def test_a_large_image_gets_tiles_that_fit(monkeypatch, size, mebibytes):
    r = with_memory(monkeypatch, mebibytes)
    plan = r.plan(*size)
    assert len(plan.boxes) > 1
    assert r.peak_memory(plan) <= MEMORY_SHARE * mebibytes * 2**20
    # None is needlessly small; and where the result is not held, there is room for larger ones.
    held, streamed = (len(p.boxes) * p.tile_height * p.tile_width for p in (plan, r.plan(*size, 0)))
    assert size[0] * size[1] < streamed < held < 1.5 * size[0] * size[1]


@pytest.mark.parametrize("limit", [400, 700])
def test_a_memory_limit(monkeypatch, limit):
    monkeypatch.setattr(engine, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(engine, "used_memory", lambda device: 200 * 2**20)
    plans = [restorer(network("light_c"), tile="auto", memory_limit=n).plan(1000, 800) for n in (limit * 2**20, None)]
    budget = (limit - 200) * 2**20 / MEMORY_ERROR
    peaks = [restorer(network("light_c")).peak_memory(plan) for plan in plans]
    assert 0.3 * budget < peaks[0] <= budget < peaks[1]
    assert len(plans[1].boxes) == 1
    monkeypatch.setattr(engine, "free_memory", lambda device: 0)
    r = restorer(network("light_c"), tile="auto", memory_limit=limit * 2**20)
    fails(lambda: r.plan(1000, 800), MemoryLimitError, "--memory-limit")


@pytest.mark.parametrize("mebibytes", [0, 1, 10])
def test_an_image_that_cannot_fit(monkeypatch, mebibytes):
    r = with_memory(monkeypatch, mebibytes)
    fails(lambda: r.restore(PHOTO), MemoryLimitError, "96x128", "GiB", "--tile 64")


@pytest.mark.parametrize("overlap", [8, 32, 80])
def test_no_tile_is_larger_than_memory_for_the_sake_of_the_overlap(monkeypatch, overlap):
    r = with_memory(monkeypatch, 0, overlap)
    for kibibytes in range(0, 40_000, 500):
        monkeypatch.setattr(engine, "free_memory", lambda device, free=kibibytes * 1024: free)
        try:
            plan = r.plan(*PHOTO.shape[:2])
        except MemoryLimitError:
            continue
        assert r.peak_memory(plan) <= MEMORY_SHARE * kibibytes * 1024
    assert plan.boxes == [(0, 0)]


@pytest.mark.parametrize("tile", ["off", 64])
def test_a_tile_that_is_asked_for_is_taken_whatever_is_free(monkeypatch, tile):
    monkeypatch.setattr(engine, "free_memory", lambda device: 0)
    assert len(restorer(Local(), tile=tile).plan(128, 96).boxes) == {"off": 1, 64: 6}[tile]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(
    ("form", "key", "values"),
    [
        ("light_a", "embed_dim", (12, 24, 60)),
        ("light_a", "d_state", (2, 16, 64)),
        ("light_a", "expand", (1.0, 2.0, 4.0)),
        ("classic", "upscale", (2, 3, 4, 8)),
        ("jpeg", "embed_dim", (12, 24, 60)),
    ],
)
def test_larger_networks_are_estimated_larger(form, key, values, backend):
    models = [MambaIR(replace(FORMS[form], **{key: value})) for value in values]
    estimates = [restorer(model, backend=backend).bytes_per_pixel() for model in models]
    assert estimates == sorted(set(estimates))


PEAK = """
import sys, numpy as np
from mambair_cli import load_restorer
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
r = load_restorer("tiny-x2", device="cpu", backend=sys.argv[1], tile="off")
r.restore(np.zeros((16, 16, 3), np.uint8))
before = memory("VmRSS")
r.restore(np.random.default_rng(0).integers(0, 256, (192, 192, 3), np.uint8))
print((memory("VmHWM") - before) / 192**2, r.bytes_per_pixel())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure it")
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_the_estimate_is_what_is_taken(backend):
    command = [sys.executable, "-c", PEAK, backend]
    taken, estimate = map(float, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert taken < estimate / MEMORY_SHARE  # else `auto` would take more than is free
    assert taken > estimate / 4


def proc_and_cgroup(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return lambda name: root / str(name).lstrip("/")


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable: 5000 kB\n"}
CGROUP = {
    "sys/fs/cgroup/memory.max": "3000000\n",
    "sys/fs/cgroup/memory.current": "2500000\n",
    "sys/fs/cgroup/memory.stat": "anon 1000000\ninactive_file 1400000\nactive_file 100000\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MEMINFO, 5000 * 1024),
        (MEMINFO | CGROUP, 1_900_000),
        (MEMINFO | CGROUP | {"sys/fs/cgroup/memory.max": "max\n"}, 5000 * 1024),
        (MEMINFO | CGROUP | {"sys/fs/cgroup/memory.max": "9000000\n"}, 5000 * 1024),
        (MEMINFO | CGROUP | {"sys/fs/cgroup/memory.max": "1000000\n"}, 0),
        (MEMINFO | CGROUP | {"sys/fs/cgroup/memory.stat": "anon 7\n"}, 5000 * 1024),
    ],
    ids=["machine", "group", "no limit", "high limit", "over", "no statistics"],
)
def test_free_memory(tmp_path, monkeypatch, files, free):
    monkeypatch.setattr(engine, "Path", proc_and_cgroup(tmp_path, files))
    assert engine.free_memory(torch.device("cpu")) == free


@pytest.mark.parametrize("files", [{}, {"proc/meminfo": "MemTotal: 9000 kB\n"}], ids=["no file", "no figure"])
def test_free_memory_of_other_systems(tmp_path, monkeypatch, files):
    monkeypatch.setattr(engine, "Path", proc_and_cgroup(tmp_path, files))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get, raising=False)
    assert engine.free_memory(torch.device("cpu")) == 1000 * 4096 // 2
    monkeypatch.delattr(os, "sysconf")
    assert engine.free_memory(torch.device("cpu")) == 4 * 2**30


def test_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert engine.free_memory(torch.device("cuda")) == 123


class Failing(Local):
    """A network that does something else first."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, image):
        self.act()
        return super().forward(image)


def raising(error):
    def act():
        raise error

    return act


class Starving(Local):
    """A network for which some inputs are too large; keeps the shapes of all, and the corners of the others."""

    def __init__(self, limit, act=lambda: torch.empty(1 << 50)):
        super().__init__()
        self.limit, self.act, self.shapes, self.corners = limit, act, [], []

    def forward(self, image):
        self.shapes.append(tuple(image.shape[2:]))
        if max(image.shape[2:]) > self.limit(len(self.shapes)):
            self.act()
        self.corners.append(image[0, :, 0, 0].tolist())
        return super().forward(image)


OUT_OF_MEMORY = {
    "torch": lambda: torch.empty(1 << 50),
    "numpy": lambda: np.empty(1 << 60, np.uint8),
    "cuda": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")),
    "mps": raising(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")),
}


@pytest.mark.parametrize("act", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_running_out_of_memory_goes_on_in_smaller_tiles(monkeypatch, caplog, act):
    monkeypatch.setattr(engine, "MIN_TILE", 16)
    image, model = as_type(PHOTO, "float32"), Starving(lambda count: 40, act)
    r = restorer(model)
    np.testing.assert_allclose(r.restore(image), restorer(Local()).restore(image), rtol=0, atol=1e-6)
    assert sum(max(shape) > 40 for shape in model.shapes) == len(caplog.records) == 2
    assert "going on with tiles of 26" in caplog.text  # half of the 53 that the tile of 64 became
    model.shapes.clear()
    r.restore(image)  # it remembers
    assert max(map(max, model.shapes)) <= 40
    assert len(caplog.records) == 2


def test_finished_tiles_are_kept_when_memory_runs_out(monkeypatch):
    monkeypatch.setattr(engine, "MIN_TILE", 16)
    image = np.random.default_rng(0).random((128, 96, 3), np.float32)
    model = Starving(lambda count: 48 if count <= 4 else 24)
    result = restorer(model, tile=48).restore(image)
    np.testing.assert_allclose(result, restorer(Local()).restore(image), rtol=0, atol=1e-6)
    assert min(min(shape) for shape in model.shapes[:5]) > 24 >= max(max(shape) for shape in model.shapes[5:])
    finished, later = model.corners[:4], model.corners[4:]
    assert not [corner for corner in finished if corner in later]


def test_a_network_in_tiles_forced_by_memory_gives_nearly_the_same(monkeypatch, tiny):
    r, forward = load(tile="off"), type(tiny.model).forward
    image = as_type(PHOTO, "float32")

    def starving(self, x):
        return torch.empty(1 << 50) if max(x.shape[2:]) > 64 else forward(self, x)

    monkeypatch.setattr(type(r.model), "forward", starving)
    result = r.restore(image)
    monkeypatch.undo()
    difference = result - tiny.restore(image)
    assert psnr(255 * difference, np.zeros_like(difference)) > 55
    assert difference.any()


@pytest.mark.parametrize("act", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize(("tile", "sides"), [("off", [300, 106, 57]), (200, [154, 57]), (50, [50])])
def test_not_even_small_tiles_fit(act, tile, sides):
    model = Starving(lambda count: 0, act)
    r = restorer(model, tile=tile)
    fails(lambda: r.restore(np.zeros((300, 40), np.uint8)), MemoryLimitError, "cpu", "--device")
    assert [height for height, _ in model.shapes] == sides


def test_results_that_are_no_numbers():
    class Broken(Local):
        def forward(self, image):
            return super().forward(image) * (float("nan") if image.max() == 1 else 1)

    image = np.zeros((64, 100), np.uint8)
    image[60, 95] = 255
    r = restorer(Broken(), tile=40)
    plan = r.plan(64, 100)
    place = f"({plan.lefts[-1]}, {plan.tops[-1]})"
    fails(lambda: r.restore(image), RestorationError, "small", f"{plan.tile_width}x{plan.tile_height}", place)
    r.dtype = torch.float16
    fails(lambda: r.restore(image), RestorationError, "--dtype fp32")
    assert place == "(61, 28)"


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), KeyboardInterrupt(), ValueError("no")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught:
        restorer(Failing(raising(error)), tile=40).restore(PHOTO)
    assert caught.value is error


# Progress


@pytest.mark.parametrize("tile", ["off", 16])
def test_progress_rises_to_one(tile):
    r, shares = restorer(network("light_c"), tile=tile), []
    r.restore(SCENE, shares.append)
    steps = 3 * len(r.plan(24, 32).boxes)  # a network of three blocks
    assert shares == pytest.approx([(i + 1) / steps for i in range(steps)])
    assert shares[-1] == 1
    r.restore(SCENE)  # reports to nobody
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
        patch.setattr(engine.tiling, "merge_rows", lambda plan, outputs, scale: (next(outputs), 1 / 0))
        with pytest.raises(ZeroDivisionError) as kept:
            r.restore(SCENE)
    assert kept.value  # and with it the frames, in which the generator of the tiles still waits
    assert not any(module._forward_hooks for module in r.model.modules())
    np.testing.assert_array_equal(r.restore(SCENE), restorer(network("light_c"), tile=16).restore(SCENE))


# Devices and back ends


@pytest.mark.parametrize(
    ("gpus", "mps", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
    ],
)
def test_devices(monkeypatch, gpus, mps, name, device):
    pretend(monkeypatch, gpus, mps)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(("rank", "device"), [("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_processes_of_torchrun_take_one_gpu_each(monkeypatch, rank, device):
    pretend(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device(device)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")


def pretend(monkeypatch, gpus, mps=False):
    """Make PyTorch see these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "CUDA", "xpu", "cpu:0", "mps:0", "cpu:", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "auto:0"],
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_unknown_devices(monkeypatch, gpus, name):
    pretend(monkeypatch, gpus)
    fails(lambda: resolve_device(name), CallError, repr(name), "cuda:N")


@pytest.mark.parametrize(
    ("gpus", "name", "words"),
    [
        (0, "cuda", ["'cuda'", "--device cpu"]),
        (0, "cuda:0", ["'cuda:0'", "--device cpu"]),
        (0, "mps", ["'mps'", "Apple", "--device cpu"]),
        (2, "cuda:2", ["cuda:2", "2 CUDA"]),
    ],
)
def test_devices_that_are_not_there(monkeypatch, gpus, name, words):
    pretend(monkeypatch, gpus)
    fails(lambda: load(device=name), BackendError, *words)


@pytest.mark.parametrize(("build", "reason"), [(None, "without CUDA"), ("12.4", "no GPU is visible")])
def test_why_cuda_is_not_there(monkeypatch, build, reason):
    pretend(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    fails(lambda: resolve_device("cuda"), BackendError, reason)


@pytest.mark.parametrize("asked", ["auto", "numba", "reference"])
def test_the_back_end_that_runs(monkeypatch, tiny, asked):
    runs = "numba" if asked == "auto" else asked
    made, forward = [], scan_numba.forward
    monkeypatch.setattr(scan_numba, "forward", lambda *inputs: made.append(1) or forward(*inputs))
    r = load(backend=asked, tile="off")
    assert r.backend == runs
    assert r.device == torch.device("cpu")
    result = r.restore(as_type(SCENE, "float32"))
    blocks = sum(isinstance(module, SS2D) for module in r.model.modules())
    assert len(made) == (blocks if runs == "numba" else 0)
    np.testing.assert_allclose(result, tiny.restore(as_type(SCENE, "float32")), rtol=0, atol=1e-5)


def test_unknown_back_end():
    fails(lambda: load(backend="fast"), CallError, "'fast'", "numba", "reference")


# Precision


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "mps", torch.float32),
        ("auto", "cuda", torch.float16),
        ("fp32", "cuda", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_names_of_types(name, device, dtype):
    assert resolve_dtype(name, torch.device(device)) == dtype


def test_types_that_there_are_not(monkeypatch):
    fails(lambda: load(dtype="int8"), CallError, "'int8'", "--dtype", "auto, fp32, fp16, bf16")
    fails(lambda: resolve_dtype("fp16", torch.device("mps")), BackendError, "mps", "fp16", "--dtype fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    fails(lambda: resolve_dtype("bf16", torch.device("cuda")), BackendError, "cuda", "bf16", "--dtype fp32")
    assert resolve_dtype("fp16", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_costs_less_than_a_hundredth_of_a_decibel(dtype):
    pair = make_pair("photo", read_image(Path(__file__).parent / "data" / "photo.png").pixels, 2)
    scores = [
        psnr_y(load(tile="off", dtype=name).restore(pair.low), pair.high, border=2) for name in ("fp32", dtype)
    ]
    print(f"PSNR-Y in {dtype} - fp32: {scores[1] - scores[0]:+.4f} dB")
    assert 0 < abs(scores[1] - scores[0]) < 0.01


@pytest.mark.parametrize("form", ["classic", "light_b", "light_c", "denoise"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_what_is_computed_in_half_precision(form, backend):
    r = restorer(network(form), dtype="bf16", backend=backend)
    seen = {}
    for name, module in r.model.named_modules():
        module.register_forward_hook(lambda m, _, out, name=name: seen.update({name: out.dtype}))
    r.restore(SCENE)
    block = "layers.0.residual_group.blocks.0"
    outer = {"conv_first", {"classic": "conv_last", "denoise": "conv_last"}.get(form, "upsample.0")}
    norms = {name for name in seen if name.endswith((".norm", "ln_1", "ln_2", "out_norm"))}
    for name in (*outer, *norms, "norm", block, "layers.0", ""):
        assert seen[name] == torch.float32, name
    convolutions = {n for n, m in r.model.named_modules() if isinstance(m, nn.Conv2d)} & set(seen) - outer
    for name in (*convolutions, f"{block}.self_attention"):
        assert seen[name] == torch.bfloat16, name
    assert len(convolutions) >= 10


# A picture with all that belongs to it


@pytest.mark.parametrize("dtype", WHITE)
def test_a_picture_keeps_all_that_belongs_to_it(dtype):
    r = restorer(network("light_c"))
    pixels, alpha = as_type(SCENE, dtype), as_type(SCENE[..., 2], dtype)
    assert alpha.min() > 0
    image = Image(pixels, alpha, b"profile", b"exif", b"xmp", (300, 300), {"Author": "me"}, ("note",))
    result = r.restore_image(image)
    np.testing.assert_array_equal(result.pixels, r.restore(pixels))
    np.testing.assert_array_equal(result.alpha, r.restore(alpha))
    assert replace(result, pixels=pixels, alpha=alpha).__dict__ == image.__dict__
    result = restorer(network("light_c"), alpha="bicubic").restore_image(image)
    np.testing.assert_array_equal(result.alpha, bicubic(alpha, 96, 128).clip(0, WHITE[dtype]))


@pytest.mark.parametrize("alpha", ["model", "bicubic"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_even_transparency_stays_as_it_is(tiny, alpha, value):
    result = load(tile="off", alpha=alpha).restore_image(Image(SCENE, np.full(SCENE.shape[:2], value, np.uint8)))
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
    assert np.abs(result.pixels[seen].astype(int) - colour).max() <= 6


def test_colour_under_transparency_comes_from_the_nearest():
    alpha = np.zeros((60, 60), np.uint8)
    alpha[:, :4], alpha[:, -4:] = 255, 255
    pixels = np.zeros((60, 60), np.uint8)
    pixels[:, :4], pixels[:, -4:] = 200, 100
    pixels[:, 4:-4] = np.random.default_rng(0).integers(0, 256, (60, 52))
    filled = engine._fill_transparent(pixels, alpha)
    np.testing.assert_array_equal(filled[:, [0, 3, -4, -1]], pixels[:, [0, 3, -4, -1]])
    assert (filled[:, 4:12] == 200).all()
    assert (filled[:, -12:-4] == 100).all()
    assert filled.min() >= 100
    assert filled.max() <= 200


def test_unknown_way_with_alpha():
    fails(lambda: load(alpha="sharp"), CallError, "'sharp'", "--alpha", "bicubic")


def test_a_picture_reports_progress():
    for image in (Image(SCENE), Image(SCENE, SCENE[..., 0])):
        shares = []
        restorer(network("light_c")).restore_image(image, shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1


# Any size

CHAINS = {1: ["tiny-x2"], 1.5: ["tiny-x2"], 2: ["tiny-x2"], 3: ["tiny-x4"], 8: ["tiny-x4", "tiny-x2"]}


@pytest.mark.parametrize("scale", CHAINS)
def test_any_factor_with_the_bundled_networks(scale):
    upscaler, shares = Upscaler(None, Options(device="cpu", tile="off")), []
    image = Image(SCENE[:7, :10], SCENE[:7, :10, 0])
    result = upscaler.restore_image(image, Size(scale), shares.append)
    assert result.pixels.shape == (round(7 * scale), round(10 * scale), 3)
    assert result.alpha.shape == result.pixels.shape[:2]
    assert [r.name for r in upscaler.chain(scale)] == CHAINS[scale] == list(upscaler.restorers)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    expected = image
    for name in CHAINS[scale]:
        expected = load(name, tile="off").restore_image(expected)
    size = result.pixels.shape[:2]
    np.testing.assert_array_equal(result.pixels, bicubic(expected.pixels, *size))
    np.testing.assert_array_equal(result.alpha, bicubic(expected.alpha, *size))


@pytest.mark.parametrize(("scale", "runs"), [(1, 1), (2, 1), (2.5, 2), (4, 2), (8, 3), (16, 4)])
def test_a_named_network_repeats(scale, runs):
    upscaler = Upscaler("tiny-x2", Options(device="cpu", tile="off"))
    assert [r.name for r in upscaler.chain(scale)] == ["tiny-x2"] * runs
    assert upscaler.tiles(Size(scale), 3, 4) == runs
    assert upscaler.restore_image(Image(SCENE[:3, :4, 0]), Size(scale)).pixels.shape == (
        round(3 * scale),
        round(4 * scale),
    )


def test_tiles_of_a_chain_are_counted():
    upscaler = Upscaler(None, Options(device="cpu", tile=48, tile_overlap=16))
    assert upscaler.tiles(Size(2), 48, 80) == 2
    assert upscaler.tiles(Size(8), 48, 80) == 2 + 6 * 10
    assert upscaler.tiles(Size(width=160), 48, 80) == 2


def test_a_network_that_does_not_enlarge(tmp_path):
    model = network("denoise")
    save_network(tmp_path / "denoise.safetensors", model, model.state_dict(), {})
    upscaler = Upscaler(tmp_path / "denoise.safetensors", Options(device="cpu"))
    assert len(upscaler.chain(1)) == 1
    fails(lambda: upscaler.chain(1.5), CallError, "denoise.safetensors", "-m")


def test_overshoot_of_the_resizing_stays_in_range():
    edge = np.zeros((24, 24), np.float32)
    edge[:, 12:] = 1
    assert bicubic(edge, 10, 10).max() > 1.01
    for low, high in ((0, 1), (-3, 7)):
        resized = engine._resized(low + (high - low) * edge, 10, 10)
        assert (resized.min(), resized.max()) == (low, high)


# Loading


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
    fails(lambda: load(tmp_path / "none.pth"), CallError, tmp_path / "none.pth")
    fails(lambda: load(tmp_path / "bad.pth"), CheckpointError, tmp_path / "bad.pth")
