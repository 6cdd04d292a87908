"""The back ends of `ss2d_scan` as one table, and the choice between them."""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError, CallError
from .scan_reference import ss2d_scan_vectorised

log = logging.getLogger(__name__)
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _define(name: str, device: str) -> Scan:
    """The scan of ops/scan_NAME.py as operations of torch on one type of device.

    They are for autograd and torch.compile. The module has
    `forward(x, x_dbl, dt_weight, dt_bias, A_log, D, save) -> y, states`,
    `backward(gy, *the same six, states) -> their gradients` and `state_count(x.shape, K, N)`, and
    is imported when it is first used.
    """
    # Defined by schema: torch.library.custom_op imports torch.compile's machinery at the first
    # call, which takes 2 seconds.
    six = "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor dt_bias, Tensor A_log, Tensor D"
    forward, backward = f"mambair::ss2d_scan_{name}", f"mambair::ss2d_scan_{name}_backward"
    torch.library.define(forward, f"({six}, bool save) -> (Tensor, Tensor)")
    torch.library.define(
        backward, f"(Tensor gy, {six}, Tensor states) -> ({', '.join(['Tensor'] * 6)})"
    )
    forward_op = getattr(torch.ops.mambair, f"ss2d_scan_{name}").default
    backward_op = getattr(torch.ops.mambair, f"ss2d_scan_{name}_backward").default

    def module() -> Any:
        return importlib.import_module(f".scan_{name}", __package__)

    @torch.library.impl(forward, device)
    def _(*inputs_and_save):  # type: ignore[no-untyped-def]
        return module().forward(*inputs_and_save)

    @torch.library.register_fake(forward)
    def _(x, x_dbl, dt_weight, dt_bias, A_log, D, save):  # type: ignore[no-untyped-def]
        states = module().state_count(x.shape, dt_weight.shape[0], A_log.shape[1]) if save else 0
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
            states, dtype=torch.float32
        )

    @torch.library.impl(backward, device)
    def _(*gy_inputs_and_states):  # type: ignore[no-untyped-def]
        return module().backward(*gy_inputs_and_states)

    @torch.library.register_fake(backward)
    def _(gy, *inputs_and_states):  # type: ignore[no-untyped-def]
        return tuple(
            torch.empty_like(v, memory_format=torch.contiguous_format)
            for v in inputs_and_states[:6]
        )

    def save_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:6], output[1])
        ctx.mark_non_differentiable(output[1])

    def gradients(ctx, gy, _):  # type: ignore[no-untyped-def]
        return (*backward_op(gy, *ctx.saved_tensors), None)

    def no_second_derivative(ctx, *_):  # type: ignore[no-untyped-def]
        raise RuntimeError(f"the {name} scan has no second derivatives; use the reference back end")

    torch.library.register_autograd(backward, no_second_derivative)
    torch.library.register_autograd(forward, gradients, setup_context=save_for_backward)

    def scan(
        x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
    ) -> Tensor:
        inputs = (x, x_dbl, dt_weight, dt_bias, A_log, D)
        save = torch.is_grad_enabled() and any(v.requires_grad for v in inputs)
        y: Tensor = forward_op(*inputs, save)[0]
        return y

    return scan


def _scan_mamba_ssm(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
) -> Tensor:
    from . import scan_mamba_ssm

    return scan_mamba_ssm.ss2d_scan(x, x_dbl, dt_weight, dt_bias, A_log, D)


def _numba_unavailable(device: str, dtype: torch.dtype) -> str | None:
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    if dtype == torch.float64:
        return "it computes in float32, not in float64"
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    try:
        from .scan_numba import compile_forward

        compile_forward()
    except Exception as error:
        # Whatever a foreign LLVM or a broken installation raises is the reason.
        return f"it does not compile here: {type(error).__name__}: {error}"
    return None


def _gpu_only(device: str, dtype: torch.dtype, package: str, missing: str) -> str | None:
    if device != "cuda":
        return f"it runs on NVIDIA and AMD GPUs, not on {device}"
    if dtype == torch.float64:
        return "it computes in float32, not in float64"
    return None if importlib.util.find_spec(package) else missing


def _triton_unavailable(device: str, dtype: torch.dtype) -> str | None:
    missing = "triton is not installed, which comes with PyTorch's builds for CUDA and ROCm"
    if reason := _gpu_only(device, dtype, "triton", missing):
        return reason
    try:
        from .scan_triton import try_out

        try_out()
    except Exception as error:
        # Whatever a foreign driver, compiler or version of Triton raises is the reason.
        return f"it does not run here: {_first_line(error)}"
    return None


def _mamba_ssm_unavailable(device: str, dtype: torch.dtype) -> str | None:
    missing = "it needs the package mamba-ssm: pip install 'mambair[mamba-ssm]'"
    if reason := _gpu_only(device, dtype, "mamba_ssm", missing):
        return reason
    try:
        from . import scan_mamba_ssm  # noqa: F401
    except Exception as error:
        # Its extension fits one version of torch and CUDA only.
        return f"it cannot be imported here: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass(frozen=True)
class Backend:
    """One implementation of `ss2d_scan`.

    Attributes:
        name: what the user calls it.
        scan: the function.
        unavailable: why it cannot run on a type of device with a dtype; None where it can.
    """

    name: str
    scan: Scan
    unavailable: Callable[[str, torch.dtype], str | None]


# Fastest first: `auto` takes the first that can run.
BACKENDS: tuple[Backend, ...] = (
    Backend("numba", _define("numba", "cpu"), _numba_unavailable),
    Backend("triton", _define("triton", "cuda"), _triton_unavailable),
    Backend("mamba-ssm", _scan_mamba_ssm, _mamba_ssm_unavailable),
    Backend("reference", ss2d_scan_vectorised, lambda device, dtype: None),
)

# Not an lru_cache, through which torch.compile would look.
_resolved: dict[tuple[str, str, torch.dtype], Backend] = {}


def resolve_backend(name: str, device: str, dtype: torch.dtype = torch.float32) -> Backend:
    """The back end of a name, or for `auto` the fastest that can run on a type of device.

    Logs, once, what `auto` chose and why a faster one was passed over.
    Raises CallError for an unknown name, BackendError where the named back end cannot run.
    """
    asked = name, device, dtype
    if asked not in _resolved:
        _resolved[asked] = _resolve(*asked)
    return _resolved[asked]


def _resolve(name: str, device: str, dtype: torch.dtype) -> Backend:
    if name != "auto":
        for backend in BACKENDS:
            if backend.name == name:
                if reason := backend.unavailable(device, dtype):
                    raise BackendError(
                        f"the back end {name!r} cannot be used: {reason}; try the back end auto"
                    )
                return backend
        known = ", ".join(b.name for b in BACKENDS)
        raise CallError(f"no back end is called {name!r}; there are auto, {known}")
    passed_over = []
    for backend in BACKENDS:
        reason = backend.unavailable(device, dtype)
        if reason is None:
            break
        passed_over.append(f"{backend.name} passed over: {reason}")
    log.info("scan back end on %s: %s", device, "; ".join([backend.name, *passed_over]))
    return backend
