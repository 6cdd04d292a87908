from dataclasses import replace

import pytest
import torch
from networks import FORMS, GOLDEN, assert_golden, network, published, saved

from mambair_cli.archs.mambair_unet import MambaIRUNet, MambaIRUNetConfig, detect


def test_golden():
    assert_golden(MambaIRUNetConfig(), GOLDEN / "mambair_unet_realdn.npz", single=1e-4)


def test_the_published_net():
    state = published(MambaIRUNetConfig()).state_dict()
    assert sum(value.numel() for value in state.values()) == 26_779_480
    assert len(state) == 1110
    assert detect(state) == MambaIRUNetConfig()


def test_a_file_of_the_first_published_net(load):
    """Of 2024-03 to 07: states 4, 8, 16 and 32 by level, on the way up 16, 8 and 8."""
    config = MambaIRUNetConfig(d_state=4, state_growth=2, expand=2.0)
    shapes = published(config).state_dict()
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    levels += ("decoder_level3", "decoder_level2", "decoder_level1", "refinement")
    states = [shapes[f"{level}.0.self_attention.A_logs"].shape[1] for level in levels]
    assert states == [4, 8, 16, 32, 16, 8, 8, 8]
    assert len(shapes) == 1110
    model = load(saved({"params": {k: torch.zeros(v.shape) for k, v in shapes.items()}}))
    assert model.config == config
    assert sum(value.numel() for value in model.parameters()) == 31_506_136


@pytest.mark.parametrize(
    "changes",
    [{}, {"dim": 24, "blocks": (1, 2, 2, 3), "d_state": 8}, {"expand": 1.3}, {"state_growth": 2}],
    ids=str,
)
def test_detect_recognises_small_nets(changes):
    config = replace(FORMS["unet"], **changes)
    state = published(config).state_dict()
    found = detect(state)
    assert found is not None
    assert replace(found, expand=config.expand) == config
    assert [found.inner(width) for width in (8, 16, 48, 64)] == [
        config.inner(width) for width in (8, 16, 48, 64)
    ]


@pytest.mark.parametrize("form", ["light_c", "classic", "derain", "real_sr"])
def test_detect_refuses_other_networks(form):
    assert detect(network(form).state_dict()) is None


def test_a_fresh_net_can_be_trained():
    torch.manual_seed(0)
    model = MambaIRUNet(FORMS["unet"])
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
