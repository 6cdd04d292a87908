"""The speed, memory and error of the scan and of whole nets on a GPU.

Triton's kernels against mamba-ssm's, against the vectorised PyTorch form, and against what the GPU can do at most.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..archs.mambair import MambaIR, MambaIRConfig
from ..archs.ss2d import SS2D, use_backend
from ..devices import resolve_device
from ..errors import CallError
from ..ops import BACKENDS, resolve_backend, ss2d_scan
from ..ops.scan_reference import ss2d_scan_sequential
from .kernels import LIGHT

if TYPE_CHECKING:
    from .gpu_rates import Rates

Facts = dict[str, Any]
OURS, PUBLISHED, VECTORISED = "triton", "mamba-ssm", "reference"
NETS = {
    "light": LIGHT,
    "denoise": MambaIRConfig(expand=1.2, upsampler="", upscale=1),
    "classic": MambaIRConfig(),
}
SIZES = ((16, 64), (1, 256), (1, 1024))  # images of a batch, side
QUICK_SIZES = ((16, 64), (1, 256))
LONG = 4e7  # numbers of x from which the vectorised form is left out where gradients are wanted
BUDGET, REPEATS = 0.5, (3, 20)  # seconds for a measurement, but so often at least and at most
# Bars; the sides that they hold for. FORWARD, BACKWARD, NET: how many times faster than mamba-ssm's path.
LARGE, PATCH = 1024, 64
FORWARD, NET = {"light": 3.0, "classic": 2.5}, {"light": 2.5}
BACKWARD = 2.0
MEMORY, FLOOR = 0.35, 2.0  # of mamba-ssm's; times the floor
FORWARD_ERROR, GRADIENT_ERROR = 1e-5, 1e-4  # of the largest |y| and |gradient|


@dataclass(frozen=True)
class Cost:
    """Of a call: median seconds, and the most memory that it added in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.3g} ms, {self.memory / 2**20:.0f} MiB"


def scan_report(device: str, quick: bool) -> list[Facts]:
    """All measurements on one GPU: rows of what, value, bar and met.

    Raises CallError for a device that is no GPU, BackendError for one that is not there or does not run Triton.
    """
    gpu = resolve_device(device)
    if gpu.type != "cuda":
        raise CallError(f"mambair bench scan measures cpu or cuda, not {device}")
    torch.cuda.set_device(gpu)
    resolve_backend(OURS, gpu.type)
    from .gpu_rates import measure_rates

    rates, sizes = measure_rates(), QUICK_SIZES if quick else SIZES
    return [*_machine_rows(gpu, rates), *_error_rows(gpu), *_core_rows(gpu, rates, sizes), *_net_rows(gpu, sizes)]


def _row(what: str, value: str, bar: str = "", met: bool | None = None) -> Facts:
    return {"what": what, "value": value, "bar": bar, "met": met}


def measure(function: Callable[[], object]) -> Cost | str:
    """What a call on the current GPU costs, after one call to warm up; or why it does not run."""
    try:
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, times = torch.cuda.memory_allocated(), [0.0]
        while len(times) <= REPEATS[0] or (sum(times) < BUDGET and len(times) <= REPEATS[1]):
            start = time.perf_counter()
            function()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    return Cost(statistics.median(times[1:]), torch.cuda.max_memory_allocated() - before)


def _reason(backend: str, device: torch.device) -> str | None:
    return next(b.unavailable(device.type, torch.float32) for b in BACKENDS if b.name == backend)


def _measure(backend: str, device: torch.device, function: Callable[[], object]) -> Cost | str:
    return _reason(backend, device) or measure(function)


def _ratio(theirs: Cost | str, ours: Cost | str, what: str, least: float | None = None) -> Facts:
    """How many times longer theirs takes than ours."""
    bar = f">= {least:g}" if least else ""
    if isinstance(theirs, str) or isinstance(ours, str):
        return _row(what, f"not measured ({theirs if isinstance(theirs, str) else ours})", bar)
    ratio = theirs.seconds / ours.seconds
    text = f"{ratio:.2f} ({theirs.seconds * 1e3:.3g} / {ours.seconds * 1e3:.3g} ms)"
    return _row(what, text, bar, ratio >= least if least else None)


def _machine_rows(device: torch.device, rates: "Rates") -> Iterator[Facts]:
    yield _row("GPU", f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}")
    yield _row("copy", f"{rates.bytes / 1e9:.0f} GB/s read and written")
    yield _row("exponentials, multiply-adds", f"{rates.exponentials:.3g}, {rates.instructions:.3g} a second")
    yield _row(f"back end {PUBLISHED}", _reason(PUBLISHED, device) or "available")


def _module(config: MambaIRConfig, device: torch.device) -> SS2D:
    torch.manual_seed(0)
    return SS2D(config.embed_dim, config.inner, config.d_state).to(device)


def _by(backend: str) -> Callable[..., Tensor]:
    return partial(ss2d_scan, backend=backend)


def _scan_inputs(module: SS2D, x: Tensor) -> tuple[Tensor, ...]:
    """The six inputs of the scan for x (B,H,W,D), in the precision of x."""
    x_dbl = F.linear(x, module.x_proj_weight.flatten(0, 1).to(x.dtype)).unflatten(-1, (4, -1))
    weights = (module.dt_projs_weight, module.dt_projs_bias, module.A_logs, module.Ds)
    return x, x_dbl, *(v.to(x.dtype) for v in weights)


def _core(module: SS2D, x: Tensor, scan: Callable[..., Tensor]) -> Tensor:
    """The scan with the projection before it."""
    return scan(*_scan_inputs(module, x))


def _gradients(module: SS2D, x: Tensor, scan: Callable[..., Tensor]) -> list[Tensor]:
    """The result of `_core` and the gradients of x and all parameters."""
    y = _core(module, x, scan)
    used = (module.x_proj_weight, module.dt_projs_weight, module.dt_projs_bias, module.A_logs, module.Ds)
    return [y, *torch.autograd.grad((y * torch.cos(torch.arange(y.shape[-1], device=y.device))).sum(), (x, *used))]


def _error_rows(device: torch.device) -> Iterator[Facts]:
    """Against float64, one step after the other."""
    for name, config in NETS.items():
        module = _module(config, device)
        x = F.silu(torch.randn(1, 24, 24, config.inner, device=device)).requires_grad_()
        found = _gradients(module, x, _by(OURS))
        exact = _gradients(module, x.detach().double().requires_grad_(), ss2d_scan_sequential)
        errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]
        for what, error, bar in (
            ("forward", errors[0], FORWARD_ERROR),
            ("gradient", max(errors[1:]), GRADIENT_ERROR),
        ):
            yield _row(f"{name}, {what} error, of the largest", f"{error:.1e}", f"<= {bar:g}", error <= bar)


def floor(config: MambaIRConfig, pixels: int, rates: "Rates") -> float:
    """Seconds that the chunked forward of a block's scan needs at least, in float32.

    x, x_dbl and y cross the memory once. Both passes over the sequence take an exponential for each state and
    one for each softplus. They issue 4 and 5 instructions for each state (multiply, exponential, multiply,
    multiply-add; and the output's multiply-add), and for each step size R multiply-adds and 12 of softplus and
    input; what loads and counts is left out.
    """
    D, N, R, K = config.inner, config.d_state, -(-config.embed_dim // 16), 4
    moved = 4 * (2 * D + K * (R + 2 * N))
    exponentials = 2 * K * D * (N + 1)
    instructions = K * D * (9 * N + 2 * (R + 12))
    slowest = max(moved / rates.bytes, exponentials / rates.exponentials, instructions / rates.instructions)
    return pixels * slowest


def _core_rows(device: torch.device, rates: "Rates", sizes: tuple[tuple[int, int], ...]) -> Iterator[Facts]:
    for name, config in NETS.items():
        module = _module(config, device)
        for batch, side in sizes:
            x = F.silu(torch.randn(batch, side, side, config.inner, device=device))
            with torch.inference_mode():
                yield from _forward_rows(name, module, x)
                if isinstance(scan := _measure(OURS, device, partial(_by(OURS), *_scan_inputs(module, x))), Cost):
                    least = floor(config, batch * side * side, rates)
                    text = f"{scan.seconds / least:.2f} ({scan.seconds * 1e3:.3g} / {least * 1e3:.3g} ms)"
                    bar, met = (f"<= {FLOOR:g}", scan.seconds <= FLOOR * least) if side == LARGE else ("", None)
                    yield _row(f"scan {_label(name, x)}, forward, {OURS} / floor", text, bar, met)
            yield from _backward_rows(name, module, x.requires_grad_())


def _label(name: str, x: Tensor) -> str:
    return f"{name} {x.shape[0]}x{x.shape[1]}x{x.shape[2]}"


def _forward_rows(name: str, module: SS2D, x: Tensor) -> Iterator[Facts]:
    what, side = f"core {_label(name, x)}, forward", x.shape[1]
    ours, theirs, plain = (
        _measure(b, x.device, partial(_core, module, x, _by(b))) for b in (OURS, PUBLISHED, VECTORISED)
    )
    yield _row(f"{what}, {OURS}", str(ours))
    yield _row(f"{what}, {PUBLISHED}", str(theirs))
    yield _ratio(theirs, ours, f"{what}, {PUBLISHED} / {OURS}", FORWARD.get(name) if side == LARGE else None)
    yield _ratio(plain, ours, f"{what}, vectorised PyTorch / {OURS}")
    if isinstance(ours, Cost) and isinstance(theirs, Cost):
        share = ours.memory / theirs.memory
        bar, met = (f"<= {MEMORY:g}", share <= MEMORY) if side == LARGE else ("", None)
        yield _row(f"{what}, memory, {OURS} / {PUBLISHED}", f"{share:.2f}", bar, met)


def _backward_rows(name: str, module: SS2D, x: Tensor) -> Iterator[Facts]:
    what = f"core {_label(name, x)}, forward + backward"
    others = [(PUBLISHED, PUBLISHED), *([(VECTORISED, "vectorised PyTorch")] if x.numel() < LONG else [])]
    ours = _measure(OURS, x.device, partial(_gradients, module, x, _by(OURS)))
    yield _row(f"{what}, {OURS}", str(ours))
    for backend, title in others:
        theirs = _measure(backend, x.device, partial(_gradients, module, x, _by(backend)))
        least = BACKWARD if title == PUBLISHED and x.shape[1] == PATCH else None
        yield _ratio(theirs, ours, f"{what}, {title} / {OURS}", least)


def _net_rows(device: torch.device, sizes: tuple[tuple[int, int], ...]) -> Iterator[Facts]:
    """Whole nets, with fresh weights, on our back end and on mamba-ssm's, in the same precision."""
    for name, config in NETS.items():
        model = MambaIR(config).to(device).eval()
        for dtype in (torch.float32, torch.float16):
            kind = str(dtype).removeprefix("torch.")
            for batch, side in sizes:
                image = torch.rand(batch, 3, side, side, device=device)
                costs = [_measure(b, device, _inference(model, image, b, dtype)) for b in (OURS, PUBLISHED)]
                label = f"net {name} {batch}x{side}x{side}, {kind}"
                yield _row(f"{label}, {OURS}", _speed(costs[0], image))
                bar = NET.get(name) if side == LARGE else None
                yield _ratio(costs[1], costs[0], f"{label}, {PUBLISHED} / {OURS}", bar)
        batch = 16 if name == "light" else 4
        image = torch.rand(batch, 3, PATCH, PATCH, device=device)
        costs = [_measure(b, device, _training(config, image, b)) for b in (OURS, PUBLISHED)]
        label = f"net {name} {batch}x{PATCH}x{PATCH}, float32, training step"
        yield _row(f"{label}, {OURS}", _speed(costs[0], image))
        yield _ratio(costs[1], costs[0], f"{label}, {PUBLISHED} / {OURS}")


def _speed(cost: Cost | str, image: Tensor) -> str:
    if isinstance(cost, str):
        return f"not measured ({cost})"
    megapixels = image.shape[0] * image.shape[2] * image.shape[3] / 1e6
    return f"{cost}, {megapixels / cost.seconds:.3g} megapixels of input a second"


def _inference(model: nn.Module, image: Tensor, backend: str, dtype: torch.dtype) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        use_backend(model, backend)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            model(image)

    return run


def _training(config: MambaIRConfig, image: Tensor, backend: str) -> Callable[[], None]:
    """A step with the loss and the optimiser of the published recipes."""
    model = MambaIR(replace(config, drop_path_rate=0.1)).to(image.device)
    use_backend(model, backend)
    optimiser = torch.optim.Adam(model.parameters(), 2e-4)

    def step() -> None:
        out = model(image)
        F.l1_loss(out, torch.zeros_like(out)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
