"""`ss2d_scan`: the 2-D selective scan (MambaIR, sections 3.4-3.5) as one operation."""

import torch
from torch import Tensor

from .backends import resolve_backend


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
    discretised as dt * B). Computed in float32, or in float64 for float64 input, also under
    autocast.

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
        CallError: unknown back end. BackendError: a named one cannot run. ValueError: shapes do not
            fit.
    """
    K, channels, R = dt_weight.shape
    N = A_log.shape[-1]
    if (
        K not in (1, 4)
        or x.ndim != 4
        or x.shape[-1] != channels
        or x_dbl.shape != (*x.shape[:3], K, R + 2 * N)
    ):
        raise ValueError(
            f"x {tuple(x.shape)}, x_dbl {tuple(x_dbl.shape)}, dt_weight {(K, channels, R)} do not fit"
        )
    if (
        dt_bias.shape != (K, channels)
        or A_log.shape != (K * channels, N)
        or D.shape != (K * channels,)
    ):
        raise ValueError("dt_bias must be (K,D), A_log (K*D,N) and D (K*D)")
    chosen = resolve_backend(backend, x.device.type, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return chosen.scan(x, x_dbl, dt_weight, dt_bias, A_log, D)
