"""The golden files: every published form, filled by rule, gives the stored output."""

import json

import numpy as np
import pytest
import torch
from networks import GOLDEN, assert_golden

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig, detect

PATHS = sorted(path for path in GOLDEN.glob("mambair_*.npz") if "unet" not in path.stem)
FORMS = {"genA": "light_a", "genB": "light_b", "light_x": "light_c"}


def config_of(path):
    words = json.loads(str(np.load(path)["config"]))
    form = next((form for mark, form in FORMS.items() if mark in path.stem), "classic")
    return MambaIRConfig(
        embed_dim=words["embed_dim"],
        depths=tuple(words["depths"]),
        d_state=words["d_state"],
        expand=words["mlp_ratio"],
        conv_block=form,
        upsampler=words.get("upsampler", ""),
        upscale=words["upscale"],
        in_chans=words.get("in_chans", 3),
        resi_connection=words.get("resi_connection", "1conv"),
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_golden(path):
    assert_golden(config_of(path), path, single=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_detect_recognises_every_form(path):
    config = config_of(path)
    found = detect(MambaIR(config).state_dict())
    assert found is not None
    MambaIR(found).load_state_dict(MambaIR(config).state_dict(), strict=True)
    assert (found.embed_dim, found.depths, found.inner, found.conv_block, found.upscale) == (
        config.embed_dim,
        config.depths,
        config.inner,
        config.conv_block,
        config.upscale,
    )


def test_detect_refuses_other_networks():
    assert detect({"conv_first.weight": torch.zeros(60, 3, 3, 3)}) is None
    assert detect({}) is None


@pytest.mark.parametrize(
    ("form", "expand", "scale", "parameters"),
    [
        ("light_a", 1.2, 2, 933_672),
        ("light_b", 1.5, 3, 1_371_435),
        ("light_c", 1.2, 4, 924_492),
        ("light_c", 1.2, 2, 905_016),
    ],
)
def test_light_parameter_counts(form, expand, scale, parameters):
    config = MambaIRConfig(
        60, (6, 6, 6, 6), 10 if form == "light_c" else 16, expand, form, "pixelshuffledirect", scale
    )
    assert sum(p.numel() for p in MambaIR(config).parameters()) == parameters


@pytest.mark.parametrize(
    ("scale", "parameters"), [(2, 20_421_863), (3, 20_606_503), (4, 20_569_575)]
)
def test_classic_parameter_counts(scale, parameters):
    assert sum(p.numel() for p in MambaIR(MambaIRConfig(upscale=scale)).parameters()) == parameters
