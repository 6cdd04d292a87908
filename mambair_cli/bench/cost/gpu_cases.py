"""What is measured on a GPU: scans, whole nets, training steps; and how, and what the scan needs at least."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...archs.mambair import MambaIR, MambaIRConfig
from ...archs.ss2d import SS2D, use_backend
from .cpu import LIGHT

if TYPE_CHECKING:
    from .gpu_rates import Rates

Scan = Callable[..., Tensor]
NETS = {
    "light": LIGHT,
    "classic": MambaIRConfig(),
    "denoise": MambaIRConfig(expand=1.2, upsampler="", upscale=1),
}
BUDGET, REPEATS = 0.5, (3, 20)  # seconds for a measurement, but so often at least and at most


@dataclass(frozen=True)
class Cost:
    """Of a call: median seconds, and the most memory that it added in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.3g} ms, {self.memory / 2**20:.0f} MiB"


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds that each call keeps the current GPU busy or waiting; the calls are not waited for in between."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def measure(function: Callable[[], object]) -> Cost | str:
    """What a call on the current GPU costs, after one call to warm up; or that it does not fit into memory."""
    try:
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (first,) = timed(function, 1)
        least, most = REPEATS
        times = [first, *timed(function, min(most, max(least, int(BUDGET / max(first, 1e-9)))) - 1)]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
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
    used = (
        module.x_proj_weight,
        module.dt_projs_weight,
        module.dt_projs_bias,
        module.A_logs,
        module.Ds,
    )
    return [
        y,
        *torch.autograd.grad(
            (y * torch.cos(torch.arange(y.shape[-1], device=y.device))).sum(), (x, *used)
        ),
    ]


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
