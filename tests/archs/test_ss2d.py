import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scan_inputs import errors

from mambair_cli.archs import ss2d
from mambair_cli.archs.ss2d import SS2D
from mambair_cli.ops import scan_numba
from mambair_cli.ops.scan_reference import ss2d_scan_sequential

GOLDEN = Path(__file__).parents[1] / "golden"


def module_and_tokens(H=5, W=7, width=20, inner=24, d_state=5, batch=2):
    """A module whose every tensor matters (no ones and zeros as initialised) and its input."""
    torch.manual_seed(0)
    module = SS2D(width, inner, d_state)
    with torch.no_grad():
        for value in (module.Ds, module.out_norm.weight, module.out_norm.bias, module.A_logs):
            value.add_(torch.randn_like(value), alpha=0.2)
    return module, torch.randn(batch, H, W, width)


def composed(
    tokens, in_proj, conv, conv_bias, x_proj, dt_weight, dt_bias, A_log, D, norm, shift, out_proj
):
    """SS2D step by step as in the published networks, each direction's projection on its own."""
    inner = len(conv)
    x, z = F.linear(tokens, in_proj).split(inner, -1)
    x = F.conv2d(x.permute(0, 3, 1, 2), conv, conv_bias, padding=1, groups=inner)
    x = F.silu(x).permute(0, 2, 3, 1)
    x_dbl = torch.stack([F.linear(x, x_proj[k]) for k in range(4)], 3)
    y = ss2d_scan_sequential(x, x_dbl, dt_weight, dt_bias, A_log, D)
    return F.linear(F.layer_norm(y, (inner,), norm, shift, 1e-5) * F.silu(z), out_proj)


def parts(module):
    """The parameters in the order of `composed`."""
    return [
        module.in_proj.weight,
        module.conv2d.weight,
        module.conv2d.bias,
        module.x_proj_weight,
        module.dt_projs_weight,
        module.dt_projs_bias,
        module.A_logs,
        module.Ds,
        module.out_norm.weight,
        module.out_norm.bias,
        module.out_proj.weight,
    ]


def outputs_and_gradients(function, leaves):
    output = function()
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)]


def expected_of(module, tokens):
    leaves = [v.detach().double().requires_grad_() for v in (tokens, *parts(module))]
    return outputs_and_gradients(lambda: composed(*leaves), leaves)


def found_by(module, tokens):
    tokens = tokens.detach().clone().requires_grad_()
    return outputs_and_gradients(lambda: module(tokens), [tokens, *parts(module)])


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (9, 1), (1, 1)], ids=str)
def test_double_precision(size):
    module, tokens = module_and_tokens(*size)
    expected = expected_of(module, tokens)
    assert all(e < 1e-11 for e in errors(found_by(module.double(), tokens.double()), expected))


@pytest.mark.parametrize("backend", ["auto", "numba", "reference"])
def test_single_precision(backend):
    module, tokens = module_and_tokens()
    module.backend = backend
    found = found_by(module, tokens)
    assert all(e < 2e-5 for e in errors(found, expected_of(module, tokens)))
    with torch.inference_mode():
        torch.testing.assert_close(module(tokens), found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("backend", "calls"), [("auto", 1), ("numba", 1), ("reference", 0)])
def test_back_end_that_runs(monkeypatch, backend, calls):
    made, forward = [], scan_numba.forward
    monkeypatch.setattr(scan_numba, "forward", lambda *inputs: made.append(1) or forward(*inputs))
    module, tokens = module_and_tokens()
    module.backend = backend
    assert module(tokens).shape == tokens.shape
    assert len(made) == calls


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=["fp16", "bf16"]
)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_half_precision(monkeypatch, backend, dtype, limit):
    """Projections and convolution in half, the scan's parameters and state and the norm in single
    precision.
    """
    module, tokens = module_and_tokens()
    module.backend = backend
    types, scan = [], ss2d.ss2d_scan

    def record(*inputs, backend):
        y = scan(*inputs, backend=backend)
        types.append([v.dtype for v in (*inputs, y)])
        assert torch.equal(
            y, scan(inputs[0].float(), inputs[1].float(), *inputs[2:], backend=backend).to(dtype)
        )
        return y

    monkeypatch.setattr(ss2d, "ss2d_scan", record)
    module.out_norm.register_forward_hook(
        lambda _, inputs, out: types.append([*(v.dtype for v in inputs), out.dtype])
    )
    with torch.no_grad():
        expected = composed(tokens.double(), *(v.double() for v in parts(module)))
        with torch.autocast("cpu", dtype):
            found = module(tokens)
    assert types == [[dtype, dtype, *[torch.float32] * 4, dtype], [dtype, dtype, torch.float32]]
    assert found.dtype == dtype
    assert 0 < (found - expected).abs().max() < limit * expected.abs().max()


def test_non_contiguous_tokens():
    module, tokens = module_and_tokens()
    strided = tokens.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided), module(tokens))


def test_images_of_a_batch_do_not_mix():
    module, tokens = module_and_tokens()
    torch.testing.assert_close(module(tokens)[1:], module(tokens[1:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("net", "sizes"), [("light_x2", (60, 72, 10)), ("classic_x2", (180, 360, 16))]
)
def test_tensors_are_those_of_the_published_checkpoints(net, sizes):
    prefix = "layers.0.residual_group.blocks.0.self_attention."
    every = np.load(GOLDEN / f"mambair_{net}.npz")["keys"]
    keys = [str(key).removeprefix(prefix) for key in every if key.startswith(prefix)]
    state = SS2D(*sizes).state_dict()
    assert len(keys) == 11
    assert [f"{name}:{tuple(value.shape)}" for name, value in state.items()] == keys


@pytest.mark.parametrize(("width", "rank"), [(16, 1), (17, 2), (60, 4), (180, 12)])
def test_rank_of_the_step_size(width, rank):
    assert SS2D(width, 8, 2).dt_projs_weight.shape == (4, 8, rank)


def test_initial_scan():
    torch.manual_seed(0)
    module = SS2D(60, 256, 16)
    steps = F.softplus(module.dt_projs_bias.double())
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 1.001e-1
    # Log-uniform: as many steps below the geometric mean as above.
    assert abs(steps.log().mean() - (math.log(1e-3) + math.log(1e-1)) / 2) < 0.2
    expected = -torch.arange(1.0, 17).expand(4 * 256, 16)
    torch.testing.assert_close(-module.A_logs.exp(), expected)
    assert torch.equal(module.Ds, torch.ones(4 * 256))
    for weight, fan_in in ((module.x_proj_weight, 256), (module.dt_projs_weight, 4)):
        assert 0.95 * fan_in**-0.5 < weight.abs().max() <= fan_in**-0.5
        assert abs(weight.mean()) < 0.05 * fan_in**-0.5


def test_reset_restores_the_initial_scan():
    module = SS2D(20, 24, 5)
    with torch.no_grad():
        for value in (
            module.x_proj_weight,
            module.dt_projs_weight,
            module.dt_projs_bias,
            module.A_logs,
        ):
            value.fill_(torch.nan)
    module.reset_scan()
    assert all(value.isfinite().all() for value in module.parameters())
