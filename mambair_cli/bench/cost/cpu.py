"""The speed and the error of the scan and of whole nets on the CPU, against their alternatives and the floor."""

import gc
import importlib.machinery
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...archs.mambair import MambaIR, MambaIRConfig
from ...archs.ss2d import SS2D, use_backend
from ...models.catalog import bundled_models
from ...models.fetch import find_checkpoint
from ...models.recognise import load_network
from ...ops import ss2d_scan
from ...ops.scan_reference import ss2d_scan_sequential, ss2d_scan_vectorised
from ...system import runtime

LIGHT = MambaIRConfig(60, (6, 6, 6, 6), 10, 1.2, "light_c", "pixelshuffledirect", 2)
Facts = dict[str, Any]


def scan_report(quick: bool) -> list[Facts]:
    """The bars of the CPU scan (single thread, medians of process time): rows of what, value, bar and met."""
    runtime.keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        return [
            *_op_rows(quick),
            *_net_rows(quick),
            *_tiny_rows(quick),
            *_busy_rows(),
            *_compile_rows(),
        ]
    finally:
        torch.set_num_threads(threads)


def _row(what: str, value: str, bar: str = "", met: bool | None = None) -> Facts:
    return {"what": what, "value": value, "bar": bar, "met": met}


def _seconds(function: Callable[[], object], repeats: int) -> float:
    """Median process time; after one call to warm up."""
    function()
    times = []
    gc.collect()
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _scan_inputs(side: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs of the scan as a fresh light net sees them: D = 72, N = 10, R = 4, K = 4."""
    module = SS2D(LIGHT.embed_dim, LIGHT.inner, LIGHT.d_state)
    x = torch.nn.functional.silu(torch.randn(1, side, side, LIGHT.inner))
    x_dbl = (x @ module.x_proj_weight.flatten(0, 1).t()).unflatten(-1, (4, -1))
    parameters = [module.dt_projs_weight, module.dt_projs_bias, module.A_logs, module.Ds]
    return [v.detach().to(dtype).requires_grad_() for v in (x, x_dbl, *parameters)]


def _gradients(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    y = scan(*inputs)
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), inputs)]


def _numba(*inputs: Tensor) -> Tensor:
    return ss2d_scan(*inputs, backend="numba")


def _op_rows(quick: bool) -> list[Facts]:
    exact = _gradients(ss2d_scan_sequential, _scan_inputs_like(48, torch.float64))
    found = _gradients(_numba, _scan_inputs_like(48, torch.float32))
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, exact, strict=True)
    ]
    rows = [
        _row(
            "scan, forward error, of max|y| (48x48)",
            f"{errors[0]:.1e}",
            "<= 5e-6",
            errors[0] <= 5e-6,
        ),
        _row(
            "scan, gradient error, of max|g| (48x48)",
            f"{max(errors[1:]):.1e}",
            "<= 1e-5",
            max(errors[1:]) <= 1e-5,
        ),
    ]
    for side in (64, 128):
        inputs = _scan_inputs(side)
        with torch.no_grad():
            ours = _seconds(lambda i=inputs: _numba(*i), 9)  # type: ignore[misc]
            theirs = _seconds(lambda i=inputs: ss2d_scan_vectorised(*i), 3)  # type: ignore[misc]
        bar, met = ("", None) if side == 64 else (">= 10", theirs / ours >= 10)
        rows.append(
            _row(
                f"scan {side}x{side}, vectorised PyTorch / numba",
                f"{theirs / ours:.1f} ({theirs * 1e3:.0f} / {ours * 1e3:.1f} ms)",
                bar,
                met,
            )
        )
    side = 32 if quick else 64
    inputs = _scan_inputs(side)
    ours = _seconds(lambda: _gradients(_numba, inputs), 7)
    theirs = _seconds(lambda: _gradients(ss2d_scan_vectorised, inputs), 3)
    rows.append(
        _row(
            f"scan {side}x{side} forward + backward, autograd / numba",
            f"{theirs / ours:.1f} ({theirs * 1e3:.0f} / {ours * 1e3:.1f} ms)",
            ">= 10",
            theirs / ours >= 10,
        )
    )
    return rows


def _scan_inputs_like(side: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    return _scan_inputs(side, dtype)


def _net_rows(quick: bool) -> list[Facts]:
    model = MambaIR(LIGHT).eval()
    small, large = torch.rand(1, 3, 128, 128), torch.rand(1, 3, 256, 256)
    repeats = 3 if quick else 5
    with torch.inference_mode():
        at_128 = _seconds(lambda: model(small), repeats)
        at_256 = _seconds(lambda: model(large), repeats)
        use_backend(model, "reference")
        vectorised = _seconds(lambda: model(small), 1)
        use_backend(model, "auto")
        floor = _floor(model, small)
        rows = [
            _row(
                "light x2 net 128x128, vectorised PyTorch / numba",
                f"{vectorised / at_128:.1f} ({vectorised * 1e3:.0f} / {at_128 * 1e3:.0f} ms)",
            ),
            _row(
                "light x2 net 128x128, time / floor",
                f"{at_128 / floor:.2f} (floor {floor * 1e3:.0f} ms)",
                "<= 2.5",
                at_128 / floor <= 2.5,
            ),
            _row(
                "light x2 net, time per pixel 256x256 / 128x128",
                f"{at_256 / at_128 / 4:.2f}",
                "<= 1.2",
                at_256 / at_128 / 4 <= 1.2,
            ),
        ]
        swinir = _swinir_light()
        if swinir is None:
            rows.append(
                _row(
                    "light x2 net 256x256, time / SwinIR-light's",
                    "spandrel is not installed: pip install --no-deps spandrel, pip install einops",
                    "<= 0.60",
                )
            )
        else:
            theirs = _seconds(lambda: swinir(large), repeats)
            rows.append(
                _row(
                    "light x2 net 256x256, time / SwinIR-light's",
                    f"{at_256 / theirs:.2f} ({at_256 * 1e3:.0f} / {theirs * 1e3:.0f} ms)",
                    "<= 0.60",
                    at_256 / theirs <= 0.6,
                )
            )
    return rows


def _tiny_rows(quick: bool) -> list[Facts]:
    """How many times as long a light net takes as the bundled net of its scale, measured in turns."""
    image, rows = torch.rand(1, 3, 128, 128), []
    for row in bundled_models("upscale", real=False):
        nets = (
            MambaIR(replace(LIGHT, upscale=row.scale)).eval(),
            load_network(find_checkpoint(row.name))[0],
        )
        with torch.inference_mode():
            turns = [
                [_seconds(partial(net, image), 1) for net in nets] for _ in range(3 if quick else 7)
            ]
        theirs, ours = (statistics.median(seconds) * 1e3 for seconds in zip(*turns, strict=True))
        ratio = statistics.median(light / tiny for light, tiny in turns)
        value = f"{ratio:.1f} ({theirs:.0f} / {ours:.0f} ms)"
        rows.append(
            _row(f"light x{row.scale} net / {row.name}, 128x128", value, ">= 4", ratio >= 4)
        )
    return rows


def _floor(model: MambaIR, image: Tensor) -> float:
    """Seconds that nothing can beat here.

    Every convolution and linear layer at the rate of oneDNN's best fp32 3x3 convolution, and 13 vector
    instructions a state update at the rate of independent multiply-adds.
    """
    channels = 64
    conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = torch.rand(1, channels, 128, 128).contiguous(memory_format=torch.channels_last)
    rate = (
        conv.weight.numel() * 128 * 128 / _seconds(lambda: conv(sample), 9)
    )  # multiply-adds a second
    macs: list[int] = []
    hooks = [
        m.register_forward_hook(lambda m, _, out: macs.append(m.weight[0].numel() * out.numel()))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    tokens, updates = image.shape[2] * image.shape[3], 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            macs.append(module.weight.numel() * tokens)
        elif isinstance(module, SS2D):
            macs.append(module.x_proj_weight.numel() * tokens)
            updates += module.A_logs.numel() * tokens
    from ...ops.simd import LANES

    return sum(macs) / rate + 13 * updates / LANES * _fma_seconds()


def _fma_seconds() -> float:
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
    return _seconds(lambda: chains(repeats, array), 5) / repeats / 10


def _swinir_light() -> nn.Module | None:
    """SwinIR-light x2 with fresh weights, from spandrel; None where that is not installed.

    It imports torchvision, of which this network needs nothing, so an empty stand-in serves.
    """
    if importlib.util.find_spec("spandrel") is None or importlib.util.find_spec("einops") is None:
        return None
    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".ops", ".models", ".transforms", ".transforms.functional"):
            stand_in = types.ModuleType("torchvision" + name)
            stand_in.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
            stand_in.__spec__ = importlib.machinery.ModuleSpec(stand_in.__name__, None)
            sys.modules.setdefault(stand_in.__name__, stand_in)
    spandrel = importlib.import_module("spandrel.architectures.SwinIR")
    warnings.filterwarnings("ignore", "torch.meshgrid")  # by its constructor
    return spandrel.SwinIR(
        upscale=2, img_size=64, window_size=8, img_range=1.0, depths=[6] * 4, embed_dim=60, num_heads=[6] * 4,
        mlp_ratio=2, upsampler="pixelshuffledirect", resi_connection="1conv",
    ).eval()  # fmt: skip


_RUN = """
import sys, time
import torch
from mambair_cli import runtime
from mambair_cli.archs.mambair import MambaIR
from mambair_cli.bench.kernels import LIGHT
runtime.keep_freed_memory()
torch.set_num_threads(int(sys.argv[1]))
model, image = MambaIR(LIGHT).eval(), torch.rand(1, 3, 96, 96)
times = []
with torch.inference_mode():
    for _ in range(8):
        start = time.perf_counter()
        model(image)
        times.append(time.perf_counter() - start)
print(sorted(times[1:])[3])
"""


def _python(script: str, *arguments: str, **environment: str) -> str:
    """What a script prints in a new process that knows this package's settings."""
    command = [sys.executable, "-c", "import mambair_cli\n" + script, *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def _busy_rows() -> list[Facts]:
    """With one core kept busy, how long two threads take, against one thread (wall time)."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            two, one = float(_python(_RUN, "2")), float(_python(_RUN, "1"))
        finally:
            busy.kill()
    return [
        _row(
            "light x2 net 96x96 beside a busy process, 2 threads / 1 thread",
            f"{two / one:.2f}",
            "<= 2",
            two / one <= 2,
        )
    ]


_COMPILE = """
import time
import mambair_cli.ops
start = time.process_time()
from mambair_cli.ops import pixelwise_numba, scan_numba
scan_numba.compile_forward()
pixelwise_numba.compile_kernels()
print(time.process_time() - start)
"""


def _compile_rows() -> list[Facts]:
    """What a first result waits for beyond torch's import: numba's import and the kernels of inference."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for state, bar in (("compiled", 10.0), ("from the cache", 0.5)):
            seconds = float(_python(_COMPILE, NUMBA_CACHE_DIR=folder))
            rows.append(
                _row(
                    f"numba and its kernels, {state}",
                    f"{seconds:.2f} s",
                    f"<= {bar:g} s",
                    seconds <= bar,
                )
            )
    return rows
