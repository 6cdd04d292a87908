import importlib.util
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from failing import fails

from mambair_cli.bench.quality.perceptual import load_distance
from mambair_cli.errors import CallError

A = np.full((16, 12, 3), 51, np.uint8)
B = A.copy()
B[..., 0] = 255


class Recorder(torch.nn.Module):
    """Stands for a network of either package: says what it was made with and shown."""

    def __init__(self, **options):
        super().__init__()
        self.options, self.seen = options, []

    def forward(self, a, b):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append((a, b))
        return (a - b).abs().mean()


@pytest.fixture
def package(monkeypatch):
    """Install a package of one class; what was made of it."""
    made = []

    def install(name, kind):
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        setattr(module, kind, lambda **options: made.append(Recorder(**options)) or made[-1])
        monkeypatch.setitem(sys.modules, name, module)
        return made

    return install


@pytest.mark.parametrize(
    ("name", "module", "kind", "low", "mean"),
    [("lpips", "lpips", "LPIPS", -1, 2 * 0.8 / 3), ("dists", "DISTS_pytorch", "DISTS", 0, 0.8 / 3)],
)
def test_networks_see_their_range(package, name, module, kind, low, mean):
    made = package(module, kind)
    distance = load_distance(name)
    assert distance(A, B) == pytest.approx(mean)
    ((a, b),) = made[0].seen
    assert a.shape == b.shape == (1, 3, 16, 12)
    assert a[0, 0, 0, 0].item() == pytest.approx(low + (1 - low) * 0.2)
    assert b[0, 0, 0, 0].item() == 1
    assert b[0, 1, 0, 0].item() == pytest.approx(low + (1 - low) * 0.2)


def test_gray_images_are_seen_as_three_equal_channels(package):
    made = package("DISTS_pytorch", "DISTS")
    assert load_distance("dists")(A[..., 0], B[..., 0]) == pytest.approx(0.8)
    assert made[0].seen[0][0].shape == (1, 3, 16, 12)


def test_lpips_is_the_usual_one(package):
    made = package("lpips", "LPIPS")
    load_distance("lpips")
    assert made[0].options == {"net": "alex", "verbose": False}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no operator nms"), URLError("no host"), ImportError("no torchvision")],
    ids=repr,
)
def test_what_cannot_be_loaded(package, monkeypatch, error):
    def fail(**options):
        raise error

    package("lpips", "LPIPS")
    monkeypatch.setattr(sys.modules["lpips"], "LPIPS", fail)
    fails(
        lambda: load_distance("lpips"),
        CallError,
        "lpips cannot be loaded",
        str(error),
        "torchvision",
    )


def test_what_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(lambda: load_distance("lpips"), CallError, "pip install lpips")
    fails(lambda: load_distance("dists"), CallError, "pip install DISTS-pytorch")
    fails(lambda: load_distance("ssim"), CallError, "lpips or dists", "'ssim'", "always measured")
