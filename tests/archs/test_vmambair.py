from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from failing import fails
from networks import FORMS, GOLDEN, assert_golden, network, published

from mambair_cli.archs.ss2d import use_backend
from mambair_cli.archs.vmambair import (
    EFFN,
    OmniSelectiveScan,
    OSSBlock,
    VmambaIR,
    VmambaIRConfig,
    detect,
)
from mambair_cli.models.catalog import model_named
from mambair_cli.ops import scan_numba

PUBLISHED = {
    golden: (VmambaIRConfig(**model_named(name).config), parameters, tensors)
    for golden, name, parameters, tensors in (
        ("derain_32", "vmambair-derain", 28_709_875, 1281),
        ("derain_33", "vmambair-derain-variant", 28_699_461, 1281),
        ("sisr_x4", "vmambair-x4", 12_028_273, 1565),
        ("realsr_x4", "vmambair-real-x4", 10_497_813, 744),
    )
}
OMNI = [form for form in FORMS if detect(network(form).state_dict())]


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden(name):
    assert_golden(PUBLISHED[name][0], GOLDEN / f"vmambair_{name}.npz", single=3e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_nets(name):
    config, parameters, tensors = PUBLISHED[name]
    state = published(config).state_dict()
    assert sum(value.numel() for value in state.values()) == parameters
    assert len(state) == tensors
    found = detect(state)
    assert replace(found, ffn_expand=config.ffn_expand) == config
    widths = [48, 96, 192, 384]
    assert [found.hidden(width) for width in widths] == [config.hidden(width) for width in widths]


def test_small_forms_are_of_this_family():
    assert OMNI == ["derain", "derain_variant", "sisr", "real_sr"]


@pytest.mark.parametrize("form", OMNI)
@pytest.mark.parametrize("dim", [4, 12, 16, 24, 32])
def test_detect_recognises_small_nets(form, dim):
    config = replace(FORMS[form], dim=dim, blocks=(1, 2, 2, 3), d_state=8, ffn_expand=2.66)
    found = detect(published(config).state_dict())
    assert replace(found, ffn_expand=2.66) == config
    widths = [dim << level for level in range(4)]
    assert [found.hidden(width) for width in widths] == [config.hidden(width) for width in widths]


@pytest.mark.parametrize("form", ["light_c", "classic", "unet"])
def test_detect_refuses_other_networks(form):
    assert detect(network(form).state_dict()) is None


@pytest.mark.parametrize("width", [-1, 0, 3, 8])
def test_inner_widths_that_do_not_exist(width):
    fails(
        lambda: VmambaIR(replace(FORMS["derain"], channel_inner=width)),
        ValueError,
        "channel_inner",
        width,
    )


def scan_of_channels(module, y):
    """The channel scan of means y (B,L) as on paper: step by step, one direction after the other."""
    scans, N = [], module.Ac_logs.shape[1]
    inner = module.Dsc.shape[0] // 2
    for k, values in enumerate((y, y.flip(1))):
        h, out = torch.zeros(len(y), inner, N, dtype=y.dtype), []
        for value in values.unbind(1):
            # (B,1)
            x = value[:, None]
            if hasattr(module, "conv_cin"):
                # (B,inner)
                x = F.linear(x, module.conv_cin.weight.flatten(1), module.conv_cin.bias)
            projected = x @ module.xc_proj_weight[k].T
            dts, B, C = projected.split([projected.shape[1] - 2 * N, N, N], 1)
            # (B,inner)
            dt = F.softplus(dts @ module.dtc_projs_weight[k].T + module.dtc_projs_bias[k])
            A = -module.Ac_logs[k * inner : (k + 1) * inner].exp()
            h = torch.exp(dt[:, :, None] * A) * h + (dt * x)[:, :, None] * B[:, None]
            out.append((h * C[:, None]).sum(2) + module.Dsc[k * inner : (k + 1) * inner] * x)
        out = torch.stack(out, 1)
        scans.append(out.flip(1) if k else out)
    # (B,L,inner)
    c = scans[0] + scans[1]
    if hasattr(module, "conv_cout"):
        c = F.linear(c, module.conv_cout.weight.flatten(1), module.conv_cout.bias)
    return F.layer_norm(c[:, :, 0], (y.shape[1],), *module.channel_norm[0].parameters(), 1e-5)


@pytest.mark.parametrize("form", OMNI)
def test_the_channels_are_scanned_in_two_directions(form):
    module = network(form).double().latent[0].attn
    y = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = scan_of_channels(module, y.mean((1, 2)))
        torch.testing.assert_close(
            module.channels(y.mean((1, 2)))[:, 0, 0], expected, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("form", "adds"), [("derain", True), ("derain_variant", False), ("sisr", False)]
)
def test_what_becomes_of_the_channel_scan(monkeypatch, form, adds):
    assert FORMS[form].adds_channels == adds
    module, tokens = network(form).latent[0].attn, torch.randn(1, 2, 3, 64)
    with torch.no_grad():
        module.out_conv.weight.copy_(torch.eye(64)[:, :, None, None])
        module.out_conv.bias.zero_()
        c = torch.linspace(-2, 2, 64).expand(1, 1, 1, 64)
        monkeypatch.setattr(module, "channels", lambda y: torch.zeros_like(c))
        y = module(tokens)
        monkeypatch.setattr(module, "channels", lambda y: c)
        torch.testing.assert_close(module(tokens), y + c if adds else y * c + y)


@pytest.mark.parametrize(("backend", "calls"), [("numba", 3), ("reference", 0)])
def test_all_six_directions_run_on_the_back_end(monkeypatch, backend, calls):
    made, forward = [], scan_numba.forward
    monkeypatch.setattr(scan_numba, "forward", lambda *inputs: made.append(1) or forward(*inputs))
    module = OmniSelectiveScan(8, FORMS["derain"])
    module.backend = backend
    assert module(torch.randn(2, 3, 5, 8)).shape == (2, 3, 5, 8)
    assert len(made) == calls


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("form", OMNI)
def test_gradients_of_a_block(form, backend):
    torch.manual_seed(1)
    block = OSSBlock(12, FORMS[form])
    tokens = torch.randn(2, 5, 7, 12)
    target = torch.randn(2, 5, 7, 12)

    def gradients(block, tokens, target):
        return torch.autograd.grad(((block(tokens) - target) ** 2).sum(), list(block.parameters()))

    use_backend(block, backend)
    found = gradients(block, tokens, target)
    use_backend(block, "auto")
    expected = gradients(block.double(), tokens.double(), target.double())
    for (name, _), a, b in zip(block.named_parameters(), found, expected, strict=True):
        # a layer norm takes it away again
        if not name.endswith("conv_cout.bias"):
            # the mean of the channels is nearly zero
            assert (a - b).abs().max() < 1e-2 * b.abs().max(), name


@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_feed_forward_network_is_a_gate(with_gradients):
    torch.manual_seed(0)
    module, tokens = EFFN(6, 5), torch.randn(2, 4, 3, 6)
    image = F.conv2d(tokens.permute(0, 3, 1, 2), module.project_in.weight)
    first, second = F.conv2d(image, module.dwconv.weight, padding=1, groups=10).split(5, 1)
    expected = F.conv2d(F.gelu(first) * second, module.project_out.weight).permute(0, 2, 3, 1)
    with torch.set_grad_enabled(with_gradients):
        torch.testing.assert_close(module(tokens), expected)


def test_a_fresh_net_can_be_trained():
    torch.manual_seed(0)
    model = VmambaIR(FORMS["derain"])
    assert all(value.isfinite().all() for value in model.parameters())
    image = torch.rand(1, 3, 16, 16)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = (model(image) - image.flip(3)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
