"""Speed and error of the scan and of whole nets on the CPU, beside alternatives and the floor."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ...archs.complexity import multiply_adds
from ...archs.mambair import MambaIR, MambaIRConfig
from ...archs.ss2d import SS2D, use_backend
from ...models.catalog import bundled_models
from ...models.fetch import find_checkpoint
from ...models.recognise import load_network
from ...ops import ss2d_scan
from ...ops.scan_reference import ss2d_scan_sequential, ss2d_scan_vectorised
from .rows import Row, at_least, at_most, ratio
from .swinir import INSTALL, swinir_light
from .timing import single_thread, work_seconds

LIGHT = MambaIRConfig(60, (6, 6, 6, 6), 10, 1.2, "light_c", "pixelshuffledirect", 2)
# Bars
FORWARD_ERROR, GRADIENT_ERROR = 5e-6, 1e-5
SPEEDUP = 10
FLOOR, GROWTH, SWINIR = 2.5, 1.2, 0.6
TINY = 4
BUSY = 2
COMPILED, CACHED = 10.0, 0.5


def scan_report(quick: bool) -> list[Row]:
    """The bars of the CPU scan: a single thread, medians of process time."""
    with single_thread():
        torch.manual_seed(0)
        return [
            *error_rows(),
            *op_rows(quick),
            *net_rows(quick),
            *tiny_rows(quick),
            busy_row(),
            *compile_rows(),
        ]


def scan_inputs(side: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs of the scan as a fresh light net sees them: D = 72, N = 10, R = 4, K = 4."""
    module = SS2D(LIGHT.embed_dim, LIGHT.inner, LIGHT.d_state)
    x = torch.nn.functional.silu(torch.randn(1, side, side, LIGHT.inner))
    x_dbl = (x @ module.x_proj_weight.flatten(0, 1).t()).unflatten(-1, (4, -1))
    parameters = [module.dt_projs_weight, module.dt_projs_bias, module.A_logs, module.Ds]
    return [v.detach().to(dtype).requires_grad_() for v in (x, x_dbl, *parameters)]


def gradients(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The result of a scan, and the gradients of all inputs."""
    y = scan(*inputs)
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), inputs)]


def numba_scan(*inputs: Tensor) -> Tensor:
    """The scan that is measured."""
    return ss2d_scan(*inputs, backend="numba")


def error_rows(side: int = 48) -> list[Row]:
    """How far the scan is from float64, one step after the other."""
    found, exact = list[Tensor](), list[Tensor]()
    for scan, dtype, into in (
        (ss2d_scan_sequential, torch.float64, exact),
        (numba_scan, torch.float32, found),
    ):
        torch.manual_seed(1)
        into += gradients(scan, scan_inputs(side, dtype))
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, exact, strict=True)
    ]
    forward, backward = errors[0], max(errors[1:])
    size = f"({side}x{side})"
    what = f"scan, forward error, of max|y| {size}"
    forward_row = at_most(what, forward, FORWARD_ERROR, f"{forward:.1e}")
    what = f"scan, gradient error, of max|g| {size}"
    return [forward_row, at_most(what, backward, GRADIENT_ERROR, f"{backward:.1e}")]


def op_rows(quick: bool) -> list[Row]:
    """The scan alone, against the vectorised form and autograd through it."""
    rows = []
    for side in (64, 128):
        inputs = scan_inputs(side)
        with torch.no_grad():
            ours = work_seconds(partial(numba_scan, *inputs), 9)
            theirs = work_seconds(partial(ss2d_scan_vectorised, *inputs), 3)
        what, shown = f"scan {side}x{side}, vectorised PyTorch / numba", ratio(theirs, ours)
        if side == 64:
            rows.append(Row(what, shown))
        else:
            rows.append(at_least(what, theirs / ours, SPEEDUP, shown))
    side = 32 if quick else 64
    inputs = scan_inputs(side)
    ours = work_seconds(lambda: gradients(numba_scan, inputs), 7)
    theirs = work_seconds(lambda: gradients(ss2d_scan_vectorised, inputs), 3)
    what = f"scan {side}x{side} forward + backward, autograd / numba"
    return [*rows, at_least(what, theirs / ours, SPEEDUP, ratio(theirs, ours))]


def net_rows(quick: bool) -> list[Row]:
    """A whole light net, against the vectorised form, the floor, a larger size and SwinIR."""
    model = MambaIR(LIGHT).eval()
    small, large = torch.rand(1, 3, 128, 128), torch.rand(1, 3, 256, 256)
    repeats = 3 if quick else 5
    with torch.inference_mode():
        at_128 = work_seconds(lambda: model(small), repeats)
        at_256 = work_seconds(lambda: model(large), repeats)
        use_backend(model, "reference")
        vectorised = work_seconds(lambda: model(small), 1)
        use_backend(model, "auto")
        least = floor(model, small)
        swinir = swinir_light()
        theirs = work_seconds(lambda: swinir(large), repeats) if swinir else None
    at_floor, growth = at_128 / least, at_256 / at_128 / 4
    shown = f"{at_floor:.2f} (floor {least * 1e3:.0f} ms)"
    rows = [
        Row("light x2 net 128x128, vectorised PyTorch / numba", ratio(vectorised, at_128)),
        at_most("light x2 net 128x128, time / floor", at_floor, FLOOR, shown),
        at_most("light x2 net, time per pixel 256x256 / 128x128", growth, GROWTH, f"{growth:.2f}"),
    ]
    what = "light x2 net 256x256, time / SwinIR-light's"
    if theirs is None:
        return [*rows, Row(what, f"spandrel is not installed: {INSTALL}", f"<= {SWINIR:g}")]
    shown = f"{at_256 / theirs:.2f} ({at_256 * 1e3:.0f} / {theirs * 1e3:.0f} ms)"
    return [*rows, at_most(what, at_256 / theirs, SWINIR, shown)]


def tiny_rows(quick: bool) -> list[Row]:
    """How many times as long a light net takes as the bundled one, measured in turns."""
    image, rows = torch.rand(1, 3, 128, 128), []
    for row in bundled_models("upscale", real=False):
        light = MambaIR(replace(LIGHT, upscale=row.scale)).eval()
        tiny = load_network(find_checkpoint(row.name))[0]
        turns = []
        with torch.inference_mode():
            for _ in range(3 if quick else 7):
                turns.append([work_seconds(partial(net, image), 1) for net in (light, tiny)])
        theirs, ours = map(statistics.median, zip(*turns, strict=True))
        factor = statistics.median(slow / fast for slow, fast in turns)
        what = f"light x{row.scale} net / {row.name}, 128x128"
        shown = f"{factor:.1f} ({theirs * 1e3:.0f} / {ours * 1e3:.0f} ms)"
        rows.append(at_least(what, factor, TINY, shown))
    return rows


def floor(model: nn.Module, image: Tensor) -> float:
    """Seconds that nothing can beat here.

    Everything but the recurrence at the rate of oneDNN's best fp32 3x3 convolution, and 13 vector
    instructions for each update of a state at the rate of independent multiply-adds.

    Args:
        model: the network.
        image: (1,C,H,W) that it would see.
    """
    from ...ops.simd import LANES

    channels, side = 64, 128
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    conv = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = torch.rand(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    macs_a_second = conv.weight.numel() * side**2 / work_seconds(lambda: conv(sample), 9)
    height, width = image.shape[2:]
    pixels = height * width
    states = sum(m.A_logs.numel() for m in model.modules() if isinstance(m, SS2D))
    skips = sum(m.Ds.numel() for m in model.modules() if isinstance(m, SS2D))
    # Counted are 9 multiply-adds for an update of a state, and one for each skip.
    dense = multiply_adds(model, width, height).full - pixels * (9 * states + skips)
    return dense / macs_a_second + 13 * pixels * states / LANES * fma_seconds()


def fma_seconds() -> float:
    """Seconds for one of many independent vector multiply-adds."""
    from numba import njit

    from ...ops.simd import add, fma, load, store

    @njit(nogil=True)
    def chains(repeats, array):  # type: ignore[no-untyped-def]
        x = load(array, 0)
        a = b = c = d = e = f = g = h = i = j = x
        for _ in range(repeats):
            a, b, c, d, e = fma(a, x, x), fma(b, x, x), fma(c, x, x), fma(d, x, x), fma(e, x, x)
            f, g, h, i, j = fma(f, x, x), fma(g, x, x), fma(h, x, x), fma(i, x, x), fma(j, x, x)
        store(array, 0, add(add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h))), add(i, j)))

    array, repeats = np.full(16, 0.5, np.float32), 2_000_000
    return work_seconds(lambda: chains(repeats, array), 5) / repeats / 10


_RUN = """
import sys
import torch
from mambair_cli.archs.mambair import MambaIR
from mambair_cli.bench.cost.cpu import LIGHT
from mambair_cli.bench.cost.timing import median_seconds
from mambair_cli.system import runtime
runtime.keep_freed_memory()
torch.set_num_threads(int(sys.argv[1]))
model, image = MambaIR(LIGHT).eval(), torch.rand(1, 3, 96, 96)
with torch.inference_mode():
    print(median_seconds(lambda: model(image), 7))
"""


def _python(script: str, *arguments: str, **environment: str) -> str:
    """What a script prints in a new process that knows this package's settings."""
    command = [sys.executable, "-c", "import mambair_cli\n" + script, *arguments]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def busy_row() -> Row:
    """With one core kept busy, how long two threads take, against one thread (wall time)."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            two, one = float(_python(_RUN, "2")), float(_python(_RUN, "1"))
        finally:
            busy.kill()
    what = "light x2 net 96x96 beside a busy process, 2 threads / 1 thread"
    return at_most(what, two / one, BUSY, f"{two / one:.2f}")


_COMPILE = """
import time
import mambair_cli.ops
start = time.process_time()
from mambair_cli.ops import pixelwise_numba, scan_numba
scan_numba.compile_forward()
pixelwise_numba.compile_kernels()
print(time.process_time() - start)
"""


def compile_rows() -> list[Row]:
    """What a first result waits for beyond torch's import: numba's import and its kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for state, limit in (("compiled", COMPILED), ("from the cache", CACHED)):
            seconds = float(_python(_COMPILE, NUMBA_CACHE_DIR=folder))
            what = f"numba and its kernels, {state}"
            rows.append(at_most(what, seconds, limit, f"{seconds:.2f} s", "s"))
    return rows
