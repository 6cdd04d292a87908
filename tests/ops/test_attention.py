import pytest
import torch
from windows import by_definition, inputs

from mambair_cli.ops import attention_numba, window_attention
from mambair_cli.ops.attention import across_edges

# Heads, channels of a head, side of a window.
SHAPES = [(1, 1, 8), (2, 12, 8), (3, 29, 8), (4, 12, 16), (2, 33, 16)]


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


def test_pixels_that_an_edge_parts():
    inside, column, row, corner = across_edges(4)
    assert not inside.any()
    assert column[0].tolist() == [0, 0, -100, -100] * 4
    assert row[0].tolist() == [0] * 8 + [-100] * 8
    assert torch.equal(corner, torch.minimum(row, column))
    assert all(torch.equal(edge, edge.t()) for edge in (column, row, corner))
