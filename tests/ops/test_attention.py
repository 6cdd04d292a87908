import itertools
import math

import pytest
import torch

from mambair_cli.ops import attention_numba, window_attention
from mambair_cli.ops.attention import across_edges

# Heads, channels of a head, side of a window.
SHAPES = [(1, 1, 8), (2, 12, 8), (3, 29, 8), (4, 12, 16), (2, 33, 16)]


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


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_attention(backend, shape, shifted):
    qkv, bias = inputs(*shape)
    before = qkv.clone()
    with torch.no_grad():
        found = window_attention(qkv, bias, shifted, backend=backend)
    expected = by_definition(qkv, bias, shifted)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 2), (1, 2, 1), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("side", [2, 8])
def test_few_windows_in_double_precision(size, side):
    qkv, bias = inputs(2, 3, side, size, torch.float64)
    for shifted in (False, True):
        found = window_attention(qkv, bias, shifted)
        assert (found - by_definition(qkv, bias, shifted)).abs().max() < 1e-12


@pytest.mark.parametrize(("backend", "calls"), [("auto", 1), ("numba", 1), ("reference", 0)])
def test_without_gradients_the_back_end_decides(monkeypatch, backend, calls):
    made, kernel = [], attention_numba.window_attention
    monkeypatch.setattr(
        attention_numba, "window_attention", lambda *v: made.append(1) or kernel(*v)
    )
    qkv, bias = inputs(2, 3, 8)
    with torch.no_grad():
        window_attention(qkv, bias, True, backend=backend)
    assert len(made) == calls
    window_attention(qkv.requires_grad_(), bias, True, backend=backend)
    assert len(made) == calls


@pytest.mark.parametrize("shifted", [False, True])
def test_gradients(shifted):
    qkv, bias = (v.requires_grad_() for v in inputs(2, 3, 2, (1, 2, 2), torch.float64))
    torch.autograd.gradcheck(lambda *v: window_attention(*v, shifted), (qkv, bias))


def test_threads_give_the_same():
    qkv, bias = inputs(2, 5, 8, (2, 2, 3))
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 40):
        torch.set_num_threads(n)
        with torch.no_grad():
            found.append(window_attention(qkv, bias, True, backend="numba"))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_large_scores_do_not_overflow():
    qkv, bias = inputs(2, 3, 8)
    with torch.no_grad():
        found = window_attention(100 * qkv, bias, False, backend="numba")
    expected = by_definition(100 * qkv, bias, False)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_not_a_number_stays_in_its_window():
    qkv, bias = inputs(2, 3, 8)
    qkv[0, 3, 9, 7] = torch.nan
    with torch.no_grad():
        found = window_attention(qkv, bias, False, backend="numba").isnan().any(-1)
    assert found[0, :, 8:16].all()
    assert found.sum() == 64


def test_pixels_that_an_edge_parts():
    inside, column, row, corner = across_edges(4)
    assert not inside.any()
    assert column[0].tolist() == [0, 0, -100, -100] * 4
    assert row[0].tolist() == [0] * 8 + [-100] * 8
    assert torch.equal(corner, torch.minimum(row, column))
    assert all(torch.equal(edge, edge.t()) for edge in (column, row, corner))
