"""The adapter over mamba-ssm: its layout with a stand-in for the kernel on the CPU, and the kernel
itself on a GPU.
"""

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from scan_inputs import NAMES, assert_within_bars, definition, errors, scan_inputs, y_and_gradients

from mambair_cli.ops import resolve_backend

NAME = "mambair_cli.ops.scan_mamba_ssm"
SHAPES = [
    {"H": 5, "W": 7, "batch": 2},
    {"H": 1, "W": 9},
    {"H": 9, "W": 1},
    {"H": 1, "W": 1, "channels": 1, "N": 1, "R": 1},
    {"H": 4, "W": 6, "K": 1, "batch": 2},
]


def selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """What mamba_ssm documents of selective_scan_fn for B and C that vary along the sequence:

    u, delta (B,D,L); A (D,N); B, C (B,G,N,L), of which group g serves channels gD/G to (g+1)D/G; D,
    delta_bias (D).
    """
    batch, channels, L = u.shape
    groups, N = B.shape[1:3]
    assert delta.shape == u.shape
    assert A.shape == (channels, N)
    assert B.shape == C.shape == (batch, groups, N, L)
    assert D.shape == delta_bias.shape == (channels,)
    assert all(v.dtype == torch.float32 for v in (u, delta, A, B, C, D, delta_bias))
    assert delta_softplus is True
    delta = F.softplus(delta + delta_bias[:, None])
    # (B,D,N,L)
    B, C = (v.repeat_interleave(channels // groups, 1) for v in (B, C))
    h, y = u.new_zeros(batch, channels, N), []
    for t in range(L):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        y.append((h * C[..., t]).sum(2))
    return torch.stack(y, 2) + D[:, None] * u


@pytest.fixture
def scan(monkeypatch):
    """The adapter, around the stand-in."""
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).ss2d_scan
    sys.modules.pop(NAME)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_layout(scan, shape):
    assert_within_bars(scan, scan_inputs(**shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(scan, dtype):
    inputs = scan_inputs(3, 4)
    inputs[0] = inputs[0].to(dtype)
    y = scan(*inputs)
    assert y.dtype == dtype
    assert torch.equal(y, scan(inputs[0].float(), *inputs[1:]).to(dtype))


def test_non_contiguous_inputs(scan):
    inputs = scan_inputs(4, 5)
    expected = scan(*inputs)
    inputs[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    inputs[1] = inputs[1].permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(scan(*inputs), expected)


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("mamba_ssm") is None,
    reason="needs a GPU and mamba-ssm",
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu(shape):
    inputs = scan_inputs(**shape)
    found = y_and_gradients(
        lambda *v: resolve_backend("mamba-ssm", "cuda").scan(*(w.cuda() for w in v)).cpu(), inputs
    )
    for name, error in zip(("y", *NAMES), errors(found, definition(inputs)), strict=True):
        assert error <= (1e-5 if name == "y" else 1e-4), name
