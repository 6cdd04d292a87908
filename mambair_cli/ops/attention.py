"""Attention among the pixels of each window of an image, with a bias for pairs of them (Swin,
arXiv:2103.14030).

Where the numba back end runs and no gradients are wanted, as a SIMD kernel that finds the pixels of
a window where they lie; else by PyTorch's attention, which needs the windows laid out one after the
other, twice.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixelwise import takes_kernels

# Added to the scores of pixels that are no neighbours in the image, as in the published networks.
APART = -100.0

# Defined by schema, as the scan is.
torch.library.define(
    "mambair::window_attention_numba", "(Tensor qkv, Tensor bias, bool shifted) -> Tensor"
)
_op = torch.ops.mambair.window_attention_numba.default


@torch.library.impl("mambair::window_attention_numba", "cpu")
def _(qkv, bias, shifted):  # type: ignore[no-untyped-def]
    from . import attention_numba

    return attention_numba.window_attention(qkv, bias, shifted)


@torch.library.register_fake("mambair::window_attention_numba")
def _(qkv, bias, shifted):  # type: ignore[no-untyped-def]
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def window_attention(qkv: Tensor, bias: Tensor, shifted: bool, *, backend: str = "auto") -> Tensor:
    """Softmax attention of several heads within windows, scores scaled by the root of a head's
    channels.

    In a shifted layer the windows lie half a window further down and to the right, cyclically;
    pixels that only meet across an edge of the image do not see each other.

    Args:
        qkv: (B,H,W,3C), sides multiples of the window; queries, keys and values one after the
            other, of all heads.
        bias: (h,n,n), of queries and keys among the n pixels of a window, row by row.
        shifted: whether the layer is.
        backend: of the scan beside it: `auto` or a name.

    Returns:
        (B,H,W,C).
    """
    if takes_kernels(qkv, backend) and bias.shape[-1] % 32 == 0:
        return _op(qkv, bias, shifted)
    return _composed(qkv, bias, shifted)


def across_edges(side: int, device: torch.device | None = None) -> Tensor:
    """What is added to the scores in the windows of a shifted layer.

    Args:
        side: of a window, whose n pixels come row by row.
        device: of the result.

    Returns:
        (4,n,n), APART between pixels that are no neighbours and 0 else: for windows inside, in the
        last column, in the last row, and in both.
    """
    second = torch.arange(side, device=device) >= side // 2
    below, right = second.repeat_interleave(side), second.repeat(side)
    rows, columns = (half[:, None] != half for half in (below, right))
    return APART * torch.stack([rows & False, columns, rows, rows | columns])


def _composed(qkv: Tensor, bias: Tensor, shifted: bool) -> Tensor:
    B, H, W, _ = qkv.shape
    h, n, _ = bias.shape
    side = math.isqrt(n)
    if shifted:
        qkv = qkv.roll((-(side // 2), -(side // 2)), (1, 2))
    windows = qkv.view(B, H // side, side, W // side, side, 3, h, -1)
    # (3,B,H/side,W/side,h,n,C/h)
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)

    def attend(rows: slice, columns: slice, bias: Tensor) -> Tensor:
        part = windows[:, :, rows, columns]
        q, k, v = part.flatten(1, 3)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])
        return out.view(part.shape[1:])

    if shifted:
        inner, last = slice(0, -1), slice(-1, None)
        edges = across_edges(side, bias.device).to(bias.dtype)[:, None] + bias
        out = torch.cat(
            [
                torch.cat([attend(inner, inner, edges[0]), attend(inner, last, edges[1])], 2),
                torch.cat([attend(last, inner, edges[2]), attend(last, last, edges[3])], 2),
            ],
            1,
        )
    else:
        out = attend(slice(None), slice(None), bias)
    out = out.unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6).reshape(B, H, W, -1)
    return out.roll((side // 2, side // 2), (1, 2)) if shifted else out
