"""`ss2d_scan`: the 2-D selective scan (MambaIR, sections 3.4-3.5) as one operation, and its back ends."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import BackendError, CallError
from .scan_reference import ss2d_scan_vectorised

log = logging.getLogger(__name__)
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


# Defined by schema: torch.library.custom_op imports torch.compile's machinery, 2 seconds, at the first call.
_INPUTS = "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor dt_bias, Tensor A_log, Tensor D"
torch.library.define("mambair::ss2d_scan_numba", f"({_INPUTS}, bool save) -> (Tensor, Tensor)")
torch.library.define(
    "mambair::ss2d_scan_numba_backward",
    f"(Tensor gy, {_INPUTS}, Tensor states) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_numba_op = torch.ops.mambair.ss2d_scan_numba.default
_numba_backward_op = torch.ops.mambair.ss2d_scan_numba_backward.default


@torch.library.impl("mambair::ss2d_scan_numba", "cpu")
def _(*inputs_and_save):  # type: ignore[no-untyped-def]
    from . import scan_numba

    return scan_numba.forward(*inputs_and_save)


@torch.library.register_fake("mambair::ss2d_scan_numba")
def _(x, x_dbl, dt_weight, dt_bias, A_log, D, save):  # type: ignore[no-untyped-def]
    from .scan_numba import state_count

    states = state_count(x.shape, dt_weight.shape[0], A_log.shape[1]) if save else 0
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(states, dtype=torch.float32)


@torch.library.impl("mambair::ss2d_scan_numba_backward", "cpu")
def _(*gy_inputs_and_states):  # type: ignore[no-untyped-def]
    from . import scan_numba

    return scan_numba.backward(*gy_inputs_and_states)


@torch.library.register_fake("mambair::ss2d_scan_numba_backward")
def _(gy, *inputs_and_states):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in inputs_and_states[:6])


def _save_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.mark_non_differentiable(output[1])


def _numba_autograd(ctx, gy, _):  # type: ignore[no-untyped-def]
    return (*_numba_backward_op(gy, *ctx.saved_tensors), None)


def _no_second_derivative(ctx, *_):  # type: ignore[no-untyped-def]
    raise RuntimeError("the numba scan has no autograd formula for second derivatives; use the reference back end")


torch.library.register_autograd("mambair::ss2d_scan_numba_backward", _no_second_derivative)
torch.library.register_autograd("mambair::ss2d_scan_numba", _numba_autograd, setup_context=_save_for_backward)


def _scan_numba(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor) -> Tensor:
    inputs = (x, x_dbl, dt_weight, dt_bias, A_log, D)
    save = torch.is_grad_enabled() and any(v.requires_grad for v in inputs)
    y: Tensor = _numba_op(*inputs, save)[0]
    return y


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
    except Exception as error:  # whatever a foreign LLVM or a broken installation raises is the reason
        return f"it does not compile here: {type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of `ss2d_scan`: its name, function and, for a device and dtype, why it cannot run."""

    name: str
    scan: Scan
    unavailable: Callable[[str, torch.dtype], str | None]


# Fastest first: `auto` takes the first that can run.
BACKENDS: tuple[Backend, ...] = (
    Backend("numba", _scan_numba, _numba_unavailable),
    Backend("reference", ss2d_scan_vectorised, lambda device, dtype: None),
)


@lru_cache
def resolve_backend(name: str, device: str, dtype: torch.dtype = torch.float32) -> Backend:
    """The back end `name` (or the fastest that can run, for `auto`) on a device type such as `cpu`.

    Logs, once, what `auto` chose and why a faster one was passed over.
    Raises CallError for an unknown name, BackendError where a back end asked for by name cannot run.
    """
    if name != "auto":
        for backend in BACKENDS:
            if backend.name == name:
                if reason := backend.unavailable(device, dtype):
                    raise BackendError(f"the back end {name!r} cannot be used: {reason}; try --backend auto")
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


def ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The selective scan of an image in K directions, summed in image order.

    For each direction, channel d and state n, along the sequence t:
    dt_t = softplus(dt_weight @ dts_t + dt_bias), h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,
    y_t = sum_n C_t h_t + D x_t, with A = -exp(A_log) and h_0 = 0 (MambaIR, equations 1-3, with B
    discretised as dt * B). Computed in float32, or in float64 for float64 input.

    Args:
        x: (B,H,W,D), channels last.
        x_dbl: (B,H,W,K,R+2N), for each pixel and direction dts, B and C, in image order.
        dt_weight: (K,D,R), K is 4 (row-major, column-major and their reverses) or 1 (row-major).
        dt_bias: (K,D).
        A_log: (K*D,N), direction-major.
        D: (K*D).
        backend: `auto` or the name of a back end.

    Returns:
        y (B,H,W,D) in x's dtype.

    Raises:
        CallError: unknown back end. BackendError: a named one cannot run. ValueError: shapes do not fit.
    """
    K, channels, R = dt_weight.shape
    N = A_log.shape[-1]
    if K not in (1, 4) or x.ndim != 4 or x.shape[-1] != channels or x_dbl.shape != (*x.shape[:3], K, R + 2 * N):
        raise ValueError(f"x {tuple(x.shape)}, x_dbl {tuple(x_dbl.shape)}, dt_weight {(K, channels, R)} do not fit")
    if dt_bias.shape != (K, channels) or A_log.shape != (K * channels, N) or D.shape != (K * channels,):
        raise ValueError("dt_bias must be (K,D), A_log (K*D,N) and D (K*D)")
    return resolve_backend(backend, x.device.type, x.dtype).scan(x, x_dbl, dt_weight, dt_bias, A_log, D)
