from dataclasses import replace

import pytest
import torch
from networks import FORMS, network
from torch import nn

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.archs.ss2d import SS2D
from mambair_cli.bench.complexity import complexity, scan_macs

LIGHT_A = MambaIRConfig(60, (6, 6, 6, 6), 16, 1.2, "light_a", "pixelshuffledirect", 2)
LIGHT_B = replace(LIGHT_A, expand=1.5, conv_block="light_b")
LIGHT_C = replace(LIGHT_A, d_state=10, conv_block="light_c")


@pytest.mark.parametrize(
    ("scale", "parameters", "macs"),
    [(2, 529_896, 122.1129), (3, 538_011, 55.0158), (4, 549_372, 31.6480)],  # printed: 530K/122.1, 538K/55.0, 549K/31.6
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
        found = complexity(MambaIR(replace(config, upscale=scale)))
        assert found.parameters == count
        assert round(found.macs / 1e9, 1) == work


def test_a_scan_by_hand():
    module = SS2D(8, 10, 3)  # rank 1, so 7 values a pixel and direction
    layers = 8 * 20 + 9 * 10 + 10 * 8
    projections = 4 * (10 * 7 + 10 * 1)
    recurrence = 4 * (9 * 10 * 3 + 10)
    leaf, full = scan_macs(module, 6)
    assert leaf == 6 * (layers + 4 * 10)
    assert full == 6 * (layers + 5 * 10 + projections + recurrence)


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
def test_every_form_can_be_counted_and_is_left_as_it_was(form):
    model = network(form)
    image = torch.rand(1, model.config.in_chans, 12, 9)
    with torch.inference_mode():
        before = model(image)
        found = complexity(model)
        assert torch.equal(model(image), before)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < found.leaf_parameters < found.parameters
    assert 0 < found.leaf_macs < found.macs
