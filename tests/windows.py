"""Inputs of window attention, and what it gives by its definition."""

import itertools
import math

import torch


def inputs(heads, width, side, size=(2, 1, 3), dtype=torch.float32):
    """qkv (B,H,W,3C) of windows and bias (h,n,n)."""
    torch.manual_seed(0)
    B, rows, columns = size
    qkv = torch.randn(B, rows * side, columns * side, 3 * heads * width)
    return qkv.to(dtype), torch.randn(heads, side**2, side**2).to(dtype)


def by_definition(qkv, bias, shifted):
    """Window after window, in its pixels' places; labels tell pixels apart that an edge of the
    image parts.
    """
    B, H, W, _ = qkv.shape
    heads, n, _ = bias.shape
    side, C = math.isqrt(n), qkv.shape[3] // 3
    shift = side // 2 if shifted else 0
    out = torch.zeros(B, H, W, C, dtype=torch.float64)
    for b, top, left in itertools.product(range(B), range(0, H, side), range(0, W, side)):
        places = [(top + i + shift, left + j + shift) for i in range(side) for j in range(side)]
        labels = torch.tensor([(y >= H) + 2 * (x >= W) for y, x in places])
        y, x = (
            torch.tensor(axis) for axis in zip(*((y % H, x % W) for y, x in places), strict=True)
        )
        q, k, v = qkv[b, y, x].double().unflatten(1, (3, heads, C // heads)).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(C // heads) + bias.double()
        scores = scores - 100.0 * (labels[:, None] != labels)
        out[b, y, x] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
    return out
