import importlib.util

import pytest
import torch

from mambair_cli.bench.cost import swinir


@pytest.mark.parametrize("missing", ["spandrel", "einops"])
def test_without_its_packages_there_is_none(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == missing else find(name, *rest),
    )
    assert swinir.swinir_light() is None
    assert missing in swinir.INSTALL


@pytest.mark.parametrize("scale", [2, 4])
def test_the_network_enlarges(scale):
    model = swinir.swinir_light(scale)
    if model is None:
        pytest.skip(f"spandrel is not installed: {swinir.INSTALL}")
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 16, 24)).shape == (1, 3, scale * 16, scale * 24)
    assert 850_000 < sum(p.numel() for p in model.parameters()) < 950_000
