from dataclasses import replace

import pytest
import torch
from networks import CLASSES, FORMS, network, published
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambair_cli.archs import ss2d, vmambair
from mambair_cli.archs.complexity import complexity, multiply_adds
from mambair_cli.archs.layers import LayerNorm
from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.archs.ss2d import SS2D, use_backend
from mambair_cli.archs.vmambair import OmniSelectiveScan

LIGHT_A = MambaIRConfig(60, (6, 6, 6, 6), 16, 1.2, "light_a", "pixelshuffledirect", 2)
LIGHT_B = replace(LIGHT_A, expand=1.5, conv_block="light_b")
LIGHT_C = replace(LIGHT_A, d_state=10, conv_block="light_c")


@pytest.mark.parametrize(
    ("scale", "parameters", "macs"),
    [
        (2, 529_896, 122.1129),
        (3, 538_011, 55.0158),
        (4, 549_372, 31.6480),
    ],  # printed: 530K/122.1, 538K/55.0, 549K/31.6
)
def test_the_printed_count_of_table_3(scale, parameters, macs):
    found = complexity(MambaIR(replace(LIGHT_A, upscale=scale)))
    assert found.leaf_parameters == parameters
    assert found.leaf_macs / 1e9 == pytest.approx(macs, abs=5e-5)


@pytest.mark.parametrize(
    ("config", "parameters", "macs"),
    [
        (LIGHT_A, (933_672, 941_787, 953_148), (417.8, 186.2, 105.6)),
        (LIGHT_B, (1_363_320, 1_371_435, 1_382_796), (567.5, 252.7, 143.0)),
        (LIGHT_C, (905_016, 913_131, 924_492), (334.1, 149.1, 84.6)),
    ],
    ids="ABC",
)
def test_the_full_count(config, parameters, macs):
    for scale, count, work in zip((2, 3, 4), parameters, macs, strict=True):
        found = complexity(published(replace(config, upscale=scale)))
        assert found.parameters == count
        assert round(found.macs / 1e9, 1) == work


def test_a_scan_by_hand():
    module = SS2D(8, 10, 3)  # rank 1, so 7 values a pixel and direction
    layers = 8 * 20 + 9 * 10 + 10 * 8
    projections = 4 * (10 * 7 + 10 * 1)
    recurrence = 4 * (9 * 10 * 3 + 10)
    leaf, full = module.macs(6).leaf, module.macs(6).full
    assert leaf == 6 * (layers + 4 * 10)
    assert full == 6 * (layers + 5 * 10 + projections + recurrence)


def test_an_omni_selective_scan_by_hand():
    # C = D = 8 and N = 2, so rank 1 for pixels; for channels width 4 and rank 6.
    module = OmniSelectiveScan(8, replace(FORMS["derain"], dim=8))
    layers = 8 * 16 + 9 * 8 + 8 * 8
    spatial = 4 * (8 * 5 + 8 * 1) + 4 * (9 * 8 * 2 + 8)
    channels = 2 * (4 * 10 + 4 * 6) + 2 * (9 * 4 * 2 + 4)
    leaf, full = module.macs(6).leaf, module.macs(6).full
    assert leaf == 6 * (layers + 4 * 8) + 8 * (4 + 4) + 4 * 8
    assert full == 6 * (layers + 5 * 8 + spatial) + 8 * (4 + 4) + 5 * 8 + 6 * 8 + 8 * channels


def test_a_small_net_by_hand():
    """Each convolution, projection and norm by its formula; C = D = 16, N = 2, R = 1, K = 4."""
    model = MambaIR(MambaIRConfig(16, (1,), 2, 1.0, "light_c", "pixelshuffledirect", 2))
    C = D = 16
    outer = 27 * C + 9 * C * C + 9 * C * 12  # conv_first, conv_after_body, upsample
    group = 9 * C * C
    scan = 2 * C * D + 9 * D + 4 * (1 + 2 * 2) * D + 4 * D + 4 * (9 * D * 2 + D) + C * D
    half = C * C // 2 + 9 * C // 2 + C // 2 * C + 9 * C
    norms = 5 * (4 * C + D)  # patch_embed, ln_1, ln_2, norm; out_norm
    pooling = C
    attention = 2 * C  # for all pixels together, C // 30 rounded up to 1
    pixels = 24 * 16
    expected = pixels * (outer + group + scan + half + norms + pooling) + attention
    assert multiply_adds(model, 24, 16).full == expected


class Small(nn.Module):
    """A network of what has a rule, at 1280x720."""

    def __init__(self):
        super().__init__()
        self.config = MambaIRConfig(upscale=1, upsampler="", in_chans=2)
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 3)
        self.bare = nn.Parameter(torch.ones(5))

    def forward(self, image):
        assert image.shape == (1, 2, 720, 1280)
        return self.linear(self.pool(self.conv(image)).flatten(1))


def test_layers_by_hand():
    found = complexity(Small())
    conv = 4 * 360 * 640 * 9  # one input channel a group
    assert found.leaf_macs == conv + 4 * (360 * 640 + 1) + 4 * 3
    assert found.macs == conv + 4 * 360 * 640 + 4 * 3
    assert found.leaf_parameters == 4 * 9 + 4 + 4 * 3 + 3
    assert found.parameters == found.leaf_parameters + 5


@pytest.mark.parametrize("form", FORMS)
def test_products_agree_with_the_counter_of_pytorch(form, monkeypatch):
    """It counts convolutions and matrix products; the scans let their inputs through."""
    for module in (ss2d, vmambair):
        monkeypatch.setattr(module, "ss2d_scan", lambda x, *inputs, **options: x)
    with torch.device("meta"):
        model = CLASSES[type(FORMS[form])](FORMS[form])
    use_backend(model, "reference")
    height, width = 720 // model.config.upscale, 1280 // model.config.upscale
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, model.config.in_chans, height, width, device="meta"))
    rest = 0
    sizes = {}

    def note(module, inputs, out):
        sizes[module] = inputs[0].shape

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.empty(1, model.config.in_chans, height, width, device="meta"))
    for module, shape in sizes.items():
        if isinstance(module, LayerNorm):
            rest += 5 * shape.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            rest += shape.numel()
        elif isinstance(module, ss2d.SelectiveScan):
            pixels, D = shape[:3].numel(), module.Ds.numel() // len(module.dt_projs_weight)
            rest += pixels * (
                module.dt_projs_weight.numel() + 9 * module.A_logs.numel() + module.Ds.numel()
            )
            if hasattr(module, "Dsc"):
                rest += pixels * D  # the mean over all pixels
                rest += D * (
                    module.dtc_projs_weight.numel()
                    + 9 * module.Ac_logs.numel()
                    + module.Dsc.numel()
                )
    assert complexity(model).macs == counter.get_total_flops() // 2 + rest


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_counted_and_is_left_as_it_was(form):
    model = network(form)
    image = torch.rand(1, model.config.in_chans, 16, 8)
    with torch.inference_mode():
        before = model(image)
        found = complexity(model)
        assert torch.equal(model(image), before)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < found.leaf_parameters < found.parameters
    assert 0 < found.leaf_macs < found.macs
