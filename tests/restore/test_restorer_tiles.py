"""Tiles, the memory that they need, and what happens where it runs out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from failing import fails
from networks import network
from restorers import PHOTO, SCENE, Local, as_type, load, restorer

from mambair_cli.archs.unet import UNetConfig
from mambair_cli.errors import CallError, MemoryLimitError, RestorationError
from mambair_cli.images.metrics import psnr
from mambair_cli.restore import restorer as engine
from mambair_cli.restore import tiling
from mambair_cli.restore.restorer import MEMORY_ERROR, MEMORY_SHARE, Restorer
from mambair_cli.system import scratch

# Tiles


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


class Local8(Local):
    """As Local, of images whose sides are multiples of 8."""

    config = UNetConfig(upscale=2)

    def forward(self, image):
        assert image.shape[2] % 8 == image.shape[3] % 8 == 0
        return super().forward(image)


@pytest.mark.parametrize("size", [(128, 96), (127, 89), (100, 41), (41, 96)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_tiles_of_a_net_that_needs_multiples(size, dtype):
    image = as_type(PHOTO[: size[0], : size[1]], dtype)
    whole = restorer(Local8()).restore(image)
    assert whole.shape == (2 * size[0], 2 * size[1], 3)
    r = restorer(Local8(), tile=45, tile_overlap=10)
    plan = r.plan(*size)
    assert max(plan.tile_height, plan.tile_width) <= 40
    assert all(
        side % 8 == 0 for side in (plan.tile_height, plan.tile_width, *plan.tops, *plan.lefts)
    )
    assert len(plan.boxes) >= 4
    np.testing.assert_allclose(
        r.restore(image), whole, rtol=0, atol=1e-6 if dtype == "float32" else 1
    )
    # Reflection shows at the last row and column only, as this network looks one pixel far.
    inside = (slice(2 * size[0] - 2), slice(2 * size[1] - 2))
    free = restorer(Local()).restore(image)
    np.testing.assert_allclose(
        whole[inside], free[inside], rtol=0, atol=1e-6 if dtype == "float32" else 1
    )


def test_a_tile_below_the_overlap_in_steps_of_the_multiple():
    r = restorer(Local8(), tile=20, tile_overlap=10)
    fails(lambda: r.restore(PHOTO), CallError, "tile of 20", "in steps of 8")


@pytest.mark.parametrize("form", ["unet", "derain"])
def test_a_u_net_in_tiles_gives_nearly_the_same(form):
    image = as_type(PHOTO[:90, :75], "float32")
    model = network(form)
    with torch.no_grad():
        model.output.weight.mul_(0.02)
    whole, r = restorer(model).restore(image), restorer(model, tile=64, tile_overlap=32)
    assert len(r.plan(90, 75).boxes) == 4
    difference = r.restore(image) - whole
    assert np.abs(difference).max() > 0
    assert np.abs(difference).mean() < 0.5 * np.abs(whole - image).mean()


def test_a_tile_of_the_size_of_the_image_changes_nothing(tiny):
    np.testing.assert_array_equal(
        load(tile=32, tile_overlap=16).restore(SCENE), tiny.restore(SCENE)
    )


@pytest.mark.parametrize("tile", ["48", 48, np.int64(48)])
def test_tiles_that_are_asked_for(tile):
    plan = restorer(Local(), tile=tile).plan(100, 40)
    # 3 * 39 - 2 * 8 = 101
    assert (plan.tile_height, plan.tile_width) == (39, 40)


@pytest.mark.parametrize(
    ("tile", "overlap", "word"),
    [
        *(
            (tile, 8, "`tile` must")
            for tile in ("", "of", "0", 0, -5, "-5", "12.5", 12.5, "1e2", True, None)
        ),
        *((tile, 32, "`tile_overlap`") for tile in (1, 31, "32")),
        *((tile, -1, "negative") for tile in ("auto", "off", 64)),
    ],
)
def test_wrong_tiles(tile, overlap, word):
    fails(lambda: restorer(Local(), tile=tile, tile_overlap=overlap), CallError, word)


# Batches of tiles, as on a GPU


def batched(model, size, **options):
    """A restorer that takes so many tiles at once, and begins a batch before it has the results of
    the last.
    """
    r = restorer(model, **options)
    r.largest_batch, r.runner.ahead = size, 1
    return r


@pytest.mark.parametrize(
    ("form", "gray", "size"),
    [("light_c", False, 2), ("light_c", True, 30), ("jpeg", False, 4), ("unet", False, 3)],
)
def test_batches_of_tiles_give_the_same(form, gray, size):
    image = as_type(PHOTO[:88, :72, 1] if gray else PHOTO[:88, :72], "float32")
    options = {"tile": 40, "tile_overlap": 16}
    expected = restorer(network(form), **options).restore(image)
    shares, r = [], batched(network(form), size, **options)
    np.testing.assert_allclose(r.restore(image, shares.append), expected, rtol=0, atol=1e-4)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_batch_begins_before_the_results_of_the_last_are_taken(monkeypatch):
    r, log = batched(Local(), 2, tile=40), []
    begin = r.runner.start

    def start(crops, dtype):
        number = len([entry for entry in log if entry[0] == "begun"])
        log.append(("begun", number, len(crops)))
        wait = begin(crops, dtype)
        return lambda: log.append(("taken", number)) or wait()

    monkeypatch.setattr(r.runner, "start", start)
    image = as_type(PHOTO[:100, :70], "float32")
    np.testing.assert_allclose(
        r.restore(image), restorer(Local()).restore(image), rtol=0, atol=1e-6
    )
    assert log == [
        ("begun", 0, 2), ("begun", 1, 2), ("taken", 0), ("begun", 2, 2), ("taken", 1), ("taken", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tile", "fitting", "size"),
    [(512, 99, 4), (128, 99, 64), (128, 3.9, 3), (128, 0.1, 1), (1024, 99, 1), (2048, 99, 1)],
)
def test_a_batch_fills_a_gpu_as_far_as_memory_allows(monkeypatch, tile, fitting, size):
    r = batched(network("light_c"), engine.BATCH_PIXELS)
    free = fitting * tile**2 * r.bytes_per_pixel() / MEMORY_SHARE
    monkeypatch.setattr(engine, "free_memory", lambda device: free)
    assert r._batch(tiling.plan(4096, 4096, tile, 0)) == size


def test_on_a_cpu_tiles_are_taken_one_by_one(monkeypatch):
    monkeypatch.setattr(Restorer, "_budget", lambda self: pytest.fail("nothing to be weighed"))
    assert restorer(Local(), tile=20)._batch(restorer(Local(), tile=20).plan(100, 100)) == 1


def test_a_batch_that_does_not_fit(monkeypatch, caplog):
    class Few(Local):
        def forward(self, image):
            counts.append(len(image))
            return super().forward(image) if len(image) <= 2 else torch.empty(1 << 50)

    counts, shares, r = [], [], batched(Few(), 8, tile=30)
    image = as_type(PHOTO, "float32")
    whole = restorer(Local()).restore(image)
    np.testing.assert_allclose(r.restore(image, shares.append), whole, rtol=0, atol=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory on cpu: going on with {count} tiles at once" for count in (4, 2)
    ]
    tiles = len(r.plan(*image.shape[:2]).boxes)
    assert sum(count for count in counts if count <= 2) == tiles
    assert shares[-1] == 1
    counts.clear()
    # it remembers
    r.restore(image)
    assert max(counts) == 2


def test_a_batch_of_tiles_each_of_which_does_not_fit(monkeypatch, caplog):
    monkeypatch.setattr(engine, "MIN_TILE", 16)
    image, model = as_type(PHOTO, "float32"), Starving(lambda count: 24)
    r = batched(model, 3, tile=40)
    np.testing.assert_allclose(
        r.restore(image), restorer(Local()).restore(image), rtol=0, atol=1e-6
    )
    assert (r.largest_batch, r.largest_tile) == (1, 19)
    assert max(map(max, model.shapes[-20:])) <= 19


def test_of_a_batch_only_the_tile_that_half_precision_cannot_hold_is_computed_again():
    class Overflows(Local):
        def forward(self, image):
            half = torch.is_autocast_enabled("cpu")
            calls.append((half, len(image)))
            bright = image.amax((1, 2, 3), keepdim=True) == 1
            return super().forward(image) * torch.where(bright & torch.tensor(half), torch.inf, 1.0)

    calls, image = [], np.zeros((64, 100), np.uint8)
    image[60, 95] = image[3, 3] = 255
    expected = restorer(Local(), tile=40).restore(image)
    r = batched(Overflows(), 4, tile=40)
    r.dtype = torch.bfloat16
    np.testing.assert_array_equal(r.restore(image), expected)
    assert sorted(calls) == [(False, 1), (False, 1), (True, 2), (True, 4)]


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
    seen = len(plan.boxes) * plan.tile_height * plan.tile_width
    # none is needlessly small
    assert size[0] * size[1] < seen < 1.5 * size[0] * size[1]


def test_a_result_counts_until_it_lies_on_disk(monkeypatch):
    r = with_memory(monkeypatch, 4096)
    tiles = tiling.plan(1000, 1000, 200, 32)
    assert r.peak_memory(tiles, 2) - r.peak_memory(tiles, 1) == 48e6
    monkeypatch.setattr(scratch, "LARGE", 60e6)
    assert r.peak_memory(tiles, 1) - r.peak_memory(tiles, 2) == 48e6


@pytest.mark.parametrize("limit", [400, 700])
def test_a_memory_limit(monkeypatch, limit):
    monkeypatch.setattr(engine, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(engine, "used_memory", lambda device: 200 * 2**20)
    plans = [
        restorer(network("light_c"), tile="auto", memory_limit=n).plan(1000, 800)
        for n in (limit * 2**20, None)
    ]
    budget = (limit - 200) * 2**20 / MEMORY_ERROR
    peaks = [restorer(network("light_c")).peak_memory(plan) for plan in plans]
    assert 0.3 * budget < peaks[0] <= budget < peaks[1]
    assert len(plans[1].boxes) == 1
    monkeypatch.setattr(engine, "free_memory", lambda device: 0)
    r = restorer(network("light_c"), tile="auto", memory_limit=limit * 2**20)
    fails(lambda: r.plan(1000, 800), MemoryLimitError, "`memory_limit`")


def test_a_memory_limit_below_what_the_program_takes(monkeypatch):
    monkeypatch.setattr(engine, "used_memory", lambda device: 300 * 2**20)
    r = restorer(network("light_c"), tile="auto", memory_limit=100 * 10**6)
    message = fails(
        lambda: r.plan(1000, 800),
        MemoryLimitError,
        "alone takes 0.29 GiB",
        "0.09 GiB of `memory_limit`",
    )
    assert "-0" not in message


@pytest.mark.parametrize("mebibytes", [0, 1, 10])
def test_an_image_that_cannot_fit(monkeypatch, mebibytes):
    r = with_memory(monkeypatch, mebibytes)
    fails(lambda: r.restore(PHOTO), MemoryLimitError, "96x128", "GiB", "`tile=64`")


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
        ("unet", "dim", (8, 16, 48)),
        ("unet", "expand", (2.0, 4.0)),
        ("derain", "dim", (8, 16, 48)),
        ("derain", "ffn_expand", (16.0, 24.0)),
        ("sisr", "upscale", (4, 8)),
    ],
)
def test_larger_networks_are_estimated_larger(form, key, values, backend):
    models = [network(form, **{key: value}) for value in values]
    estimates = [restorer(model, backend=backend).bytes_per_pixel() for model in models]
    # some equal, as the larger of the scan and the tail counts
    assert estimates == sorted(estimates)
    assert estimates[0] < estimates[-1]


PEAK = """
import sys, numpy as np
from mambair_cli import load_restorer
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
r = load_restorer(sys.argv[1], device="cpu", backend=sys.argv[2], tile="off")
r.restore(np.zeros((16, 16, 3), np.uint8))
before = memory("VmRSS")
r.restore(np.random.default_rng(0).integers(0, 256, (192, 192, 3), np.uint8))
print((memory("VmHWM") - before) / 192**2, r.bytes_per_pixel())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure it")
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("form", ["tiny-x2", "derain"])
def test_the_estimate_is_what_is_taken(tmp_path, form, backend):
    model = form
    if form != "tiny-x2":
        model, small = tmp_path / "small.pth", {"dim": 16, "blocks": (1, 1, 1, 1)}
        torch.save(network(form, **small).state_dict(), model)
    command = [sys.executable, "-c", PEAK, model, backend]
    taken, estimate = map(
        float, subprocess.run(command, capture_output=True, check=True).stdout.split()
    )
    # else `auto` would take more than is free
    assert taken < estimate / MEMORY_SHARE
    assert taken > estimate / 4


# What goes wrong on the way


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
    """A network for which some inputs are too large; keeps the shapes of all, and the corners of
    the others.
    """

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


def test_smaller_tiles_are_in_multiples_too(monkeypatch):
    monkeypatch.setattr(engine, "MIN_TILE", 16)

    class Starving8(Starving):
        config = UNetConfig(upscale=2)

    image, model = as_type(PHOTO[:100, :90], "float32"), Starving8(lambda count: 40)
    result = restorer(model).restore(image)
    np.testing.assert_allclose(result, restorer(Local8()).restore(image), rtol=0, atol=1e-6)
    assert len(model.shapes) > 4
    assert all(height % 8 == width % 8 == 0 for height, width in model.shapes)


@pytest.mark.parametrize("act", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_running_out_of_memory_goes_on_in_smaller_tiles(monkeypatch, caplog, act):
    monkeypatch.setattr(engine, "MIN_TILE", 16)
    image, model = as_type(PHOTO, "float32"), Starving(lambda count: 40, act)
    r = restorer(model)
    np.testing.assert_allclose(
        r.restore(image), restorer(Local()).restore(image), rtol=0, atol=1e-6
    )
    assert sum(max(shape) > 40 for shape in model.shapes) == len(caplog.records) == 2
    # half of the 53 that the tile of 64 became
    assert "going on with tiles of 26" in caplog.text
    model.shapes.clear()
    # it remembers
    r.restore(image)
    assert max(map(max, model.shapes)) <= 40
    assert len(caplog.records) == 2


def test_finished_tiles_are_kept_when_memory_runs_out(monkeypatch):
    monkeypatch.setattr(engine, "MIN_TILE", 16)
    image = np.random.default_rng(0).random((128, 96, 3), np.float32)
    model = Starving(lambda count: 48 if count <= 4 else 24)
    result = restorer(model, tile=48).restore(image)
    np.testing.assert_allclose(result, restorer(Local()).restore(image), rtol=0, atol=1e-6)
    assert (
        min(min(shape) for shape in model.shapes[:5])
        > 24
        >= max(max(shape) for shape in model.shapes[5:])
    )
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
    fails(lambda: r.restore(np.zeros((300, 40), np.uint8)), MemoryLimitError, "cpu", "`device`")
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
    fails(
        lambda: r.restore(image),
        RestorationError,
        "small",
        f"{plan.tile_width}x{plan.tile_height}",
        place,
    )
    assert place == "(61, 28)"


def test_a_tile_that_half_precision_cannot_hold_is_computed_again(caplog):
    class Overflows(Local):
        def forward(self, image):
            half = torch.is_autocast_enabled("cpu")
            calls.append(half)
            return super().forward(image) * (float("inf") if half and image.max() == 1 else 1)

    calls, shares = [], []
    image = np.zeros((64, 100), np.uint8)
    image[60, 95] = image[3, 3] = 255
    r = restorer(Overflows(), tile=40)
    expected = r.restore(image)
    calls.clear()
    r.dtype = torch.bfloat16
    np.testing.assert_array_equal(r.restore(image, shares.append), expected)
    # the two tiles with something in them
    assert calls.count(False) == 2
    assert calls.count(True) == len(r.plan(64, 100).boxes)
    assert [record.getMessage() for record in caplog.records if "fp32" in record.getMessage()] == [
        "small gave NaN or infinite values in torch.bfloat16: these tiles are computed again in fp32"
    ]


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes do not match"), KeyboardInterrupt(), ValueError("no")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught:
        restorer(Failing(raising(error)), tile=40).restore(PHOTO)
    assert caught.value is error
