"""`ss2d_scan` by the kernel of the package mamba-ssm, which the published networks run on.

Its selective_scan_fn knows plain sequences only, so the directions are laid out in memory first and
merged after it, as the published code does.
"""

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def _directions(image: Tensor, K: int) -> Tensor:
    """(B,K or 1,M,H,W) in image order -> (B,K,M,L) in the order of each direction."""
    rows, columns = image.flatten(3), image.transpose(3, 4).flatten(3)
    orders = [rows, columns, rows.flip(3), columns.flip(3)][:K]
    return torch.stack(
        [order[:, k if image.shape[1] > 1 else 0] for k, order in enumerate(orders)], 1
    )


def _merge(y: Tensor, H: int, W: int) -> Tensor:
    """(B,K,D,L) in the order of each direction -> (B,D,H,W), the sum in image order."""
    if y.shape[1] == 1:
        return y[:, 0].unflatten(2, (H, W))
    rows, columns = (y[:, :2] + y[:, 2:].flip(3)).unbind(1)
    return rows.unflatten(2, (H, W)) + columns.unflatten(2, (W, H)).transpose(2, 3)


def ss2d_scan(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
) -> Tensor:
    """Arguments and result as in `scan.ss2d_scan`; computed in float32."""
    batch, H, W, channels = x.shape
    K, _, R = dt_weight.shape
    N = A_log.shape[1]
    # (B,K,D,L)
    sequences = _directions(x.float().permute(0, 3, 1, 2)[:, None], K)
    # (B,K,R or N,L)
    dts, B, C = _directions(x_dbl.float().permute(0, 3, 4, 1, 2), K).split([R, N, N], 2)
    dt = torch.einsum("bkrl,kdr->bkdl", dts, dt_weight.float())
    y = selective_scan_fn(
        sequences.flatten(1, 2),
        dt.flatten(1, 2),
        -A_log.float().exp(),
        B.contiguous(),
        C.contiguous(),
        D.float(),
        delta_bias=dt_bias.float().flatten(),
        delta_softplus=True,
    )
    return (
        _merge(y.view(batch, K, channels, H * W), H, W).permute(0, 2, 3, 1).contiguous().to(x.dtype)
    )
