"""What is measured on a GPU: scans, nets, training steps; and what a scan needs at least."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...archs.mambair import MambaIR, MambaIRConfig
from ...archs.ss2d import SS2D, use_backend
from .cpu import LIGHT
from .timing import gpu_seconds

Scan = Callable[..., Tensor]
NETS = {
    "light": LIGHT,
    "classic": MambaIRConfig(),
    "denoise": MambaIRConfig(expand=1.2, upsampler="", upscale=1),
}
BUDGET = 0.5
"""Seconds that a measurement may take."""
LEAST, MOST = 3, 20
"""Calls of a measurement, whatever they take."""


@dataclass(frozen=True)
class Cost:
    """Median seconds of a call, and the most memory that it added in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.3g} ms, {self.memory / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Failed:
    """Why something was not measured."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second: bytes moved, exponentials and multiply-adds of single lanes."""

    bytes: float
    exponentials: float
    instructions: float


def measure(function: Callable[[], object]) -> Cost | Failed:
    """What a call on the current GPU costs, after one to warm up; Failed where memory runs out."""
    try:
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (first,) = gpu_seconds(function, 1)
        calls = min(MOST, max(LEAST, int(BUDGET / max(first, 1e-9))))
        times = [first, *gpu_seconds(function, calls - 1)]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Failed("out of memory")
    return Cost(statistics.median(times), torch.cuda.max_memory_allocated() - before)


def scan_module(config: MambaIRConfig, device: torch.device) -> SS2D:
    """The scanning module of a net, with fresh weights that are always the same."""
    torch.manual_seed(0)
    return SS2D(config.embed_dim, config.inner, config.d_state).to(device)


def scan_inputs(module: SS2D, x: Tensor) -> tuple[Tensor, ...]:
    """The six inputs of the scan for x (B,H,W,D), in the precision of x."""
    x_dbl = F.linear(x, module.x_proj_weight.flatten(0, 1).to(x.dtype)).unflatten(-1, (4, -1))
    weights = (module.dt_projs_weight, module.dt_projs_bias, module.A_logs, module.Ds)
    return x, x_dbl, *(v.to(x.dtype) for v in weights)


def core(module: SS2D, x: Tensor, scan: Scan) -> Tensor:
    """The scan with the projection before it."""
    return scan(*scan_inputs(module, x))


def gradients(module: SS2D, x: Tensor, scan: Scan) -> list[Tensor]:
    """The result of `core` and the gradients of x and all parameters."""
    y = core(module, x, scan)
    weights = (module.x_proj_weight, module.dt_projs_weight, module.dt_projs_bias)
    weighted = y * torch.cos(torch.arange(y.shape[-1], device=y.device))
    return [y, *torch.autograd.grad(weighted.sum(), (x, *weights, module.A_logs, module.Ds))]


def floor(config: MambaIRConfig, pixels: int, rates: Rates) -> float:
    """Seconds that the chunked forward of a block's scan needs at least, in float32.

    x, x_dbl and y cross the memory once. Both passes over the sequence take an exponential for each
    state and one for each softplus. They issue 4 and 5 instructions for each state (multiply,
    exponential, multiply, multiply-add; and the output's multiply-add), and for each step size R
    multiply-adds and 12 of softplus and input. Loads and loop counters are left out.
    """
    D, N, R, K = config.inner, config.d_state, -(-config.embed_dim // 16), 4
    moved = 4 * (2 * D + K * (R + 2 * N))
    exponentials = 2 * K * D * (N + 1)
    instructions = K * D * (9 * N + 2 * (R + 12))
    slowest = max(
        moved / rates.bytes, exponentials / rates.exponentials, instructions / rates.instructions
    )
    return pixels * slowest


def inference(
    model: nn.Module, image: Tensor, backend: str, dtype: torch.dtype
) -> Callable[[], None]:
    """A call of a net on a back end, with convolutions and linear layers in a precision."""

    @torch.inference_mode()
    def run() -> None:
        use_backend(model, backend)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            model(image)

    return run


def training(config: MambaIRConfig, image: Tensor, backend: str) -> Callable[[], None]:
    """A training step with the loss and the optimiser of the published recipes."""
    model = MambaIR(replace(config, drop_path_rate=0.1)).to(image.device)
    use_backend(model, backend)
    optimiser = torch.optim.Adam(model.parameters(), 2e-4)

    def step() -> None:
        out = model(image)
        F.l1_loss(out, torch.zeros_like(out)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
