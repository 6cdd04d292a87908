import pytest
import torch
import torch.nn.functional as F

from mambair_cli.ops import layer_norm, pixelwise, pixelwise_numba, silu


@pytest.fixture
def calls(monkeypatch):
    """The kernels that ran."""
    ran = []
    for name in ("layer_norm", "silu_"):
        kernel = getattr(pixelwise_numba, name)
        monkeypatch.setattr(
            pixelwise_numba, name, lambda *v, n=name, k=kernel: ran.append(n) or k(*v)
        )
    return ran


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    return [
        v.to(dtype)
        for v in (torch.randn(2, 3, 4, 6), torch.randn(6), torch.randn(6), torch.randn(2, 3, 4, 6))
    ]


def chain(x, weight, bias, gate):
    return F.layer_norm(x, (6,), weight, bias) * F.silu(gate)


@pytest.mark.parametrize("backend", ["auto", "numba", "reference"])
def test_without_gradients_the_back_end_decides(calls, backend):
    values = inputs()
    with torch.no_grad():
        torch.testing.assert_close(layer_norm(*values, backend=backend), chain(*values))
        expected = F.silu(values[0])
        torch.testing.assert_close(silu(values[0], backend=backend), expected)
    assert calls == ([] if backend == "reference" else ["layer_norm", "silu_"])


def test_with_gradients_pytorch_computes(calls):
    values = [v.requires_grad_() for v in inputs()]
    for found, expected in (
        (layer_norm(*values), chain(*values)),
        (silu(values[0]), F.silu(values[0])),
    ):
        used = [v for v in values if v is values[0] or expected.grad_fn.name() == "MulBackward0"]
        pairs = zip(
            torch.autograd.grad(found.sum(), used),
            torch.autograd.grad(expected.sum(), used),
            strict=True,
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b)
    assert calls == []


@pytest.mark.parametrize("kind", ["float64", "not contiguous", "gate not contiguous"])
def test_what_the_kernels_do_not_take(calls, kind):
    x, weight, bias, gate = inputs(torch.float64 if kind == "float64" else torch.float32)
    x = x.transpose(1, 2) if kind == "not contiguous" else x
    gate = gate.transpose(1, 2) if "not contiguous" in kind else gate
    x = x.view(gate.shape) if kind.startswith("gate") else x
    with torch.no_grad():
        torch.testing.assert_close(layer_norm(x, weight, bias, gate), chain(x, weight, bias, gate))
        if not kind.startswith("gate"):
            expected = F.silu(x)
            torch.testing.assert_close(silu(x), expected)
    assert calls == []


@pytest.mark.parametrize("half", [(0,), (3,), (0, 3)], ids=["x", "gate", "both"])
def test_norms_of_half_precision_are_computed_in_that_of_the_weight(calls, half):
    values = inputs()
    for i in half:
        values[i] = values[i].bfloat16()
    with torch.no_grad():
        found = layer_norm(*values)
    assert found.dtype == torch.float32
    expected = chain(*[v.double() for v in values])
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-5 if 3 not in half else 0.01, atol=1e-5
    )
    assert calls == []


def test_operations_are_registered_rightly():
    x, weight, bias, gate = inputs()
    torch.library.opcheck(
        pixelwise._layer_norm_op, (x, weight, bias, gate), test_utils="test_schema"
    )
    torch.library.opcheck(
        pixelwise._layer_norm_op, (x, weight, bias, None), test_utils="test_faketensor"
    )
    torch.library.opcheck(pixelwise._silu_op, (x,), test_utils="test_schema")
