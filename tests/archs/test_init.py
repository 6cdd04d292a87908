"""A new network takes one file and one row of ARCHITECTURES: a toy one goes everywhere."""

import ast
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from networks import FORMS, network
from torch import nn

import mambair_cli
from mambair_cli import archs
from mambair_cli.archs import ARCHITECTURES, Architecture, name_of
from mambair_cli.archs.complexity import complexity
from mambair_cli.archs.ss2d import use_backend
from mambair_cli.models.recognise import describe, load_network
from mambair_cli.models.weights import save_network
from mambair_cli.training.network import decays, recompute_blocks

PACKAGE = Path(mambair_cli.__file__).parent


@dataclass(frozen=True)
class ToyConfig:
    width: int = 4
    blocks: int = 2
    upscale: int = 2
    in_chans: int = 3
    multiple: ClassVar[int] = 1
    padding: ClassVar[str] = "reflect"

    def floats_per_pixel(self, backend):
        return self.width


class ToyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(width, width, 3, padding=1)
        self.position_table = nn.Parameter(torch.zeros(2, 2))
        self.backend = "auto"

    def forward(self, image):
        return image + self.layer(image)

    def start_as_identity(self):
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)


class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.toy_first = nn.Conv2d(config.in_chans, config.width, 1)
        self.toys = nn.Sequential(*(ToyBlock(config.width) for _ in range(config.blocks)))
        self.last = nn.Conv2d(config.width, config.in_chans * config.upscale**2, 1)

    def forward(self, image):
        tail = self.last(self.toys(self.toy_first(image)))
        return nn.functional.pixel_shuffle(tail, self.config.upscale)

    def start_simply(self):
        nn.init.zeros_(self.last.weight)


def detect(state):
    if "toy_first.weight" not in state:
        return None
    width, in_chans = state["toy_first.weight"].shape[:2]
    blocks = len({key.split(".")[1] for key in state if key.startswith("toys.")})
    scale = math.isqrt(state["last.weight"].shape[0] // in_chans)
    return ToyConfig(width, blocks, scale, in_chans)


@pytest.fixture
def toy(monkeypatch):
    row = Architecture(ToyConfig, Toy, detect, ToyBlock, undecayed=("bias", "_table"))
    monkeypatch.setitem(ARCHITECTURES, "toy", row)
    return Toy(ToyConfig()).eval()


def test_every_network_has_a_name():
    for form in FORMS:
        model = network(form)
        row = ARCHITECTURES[name_of(model)]
        assert type(model) is row.network
        assert type(model.config) is row.config
        assert any(type(module) is row.block for module in model.modules())
        assert row.detect(model.state_dict()) == model.config


def test_a_block_can_start_as_the_identity():
    for form in ("classic", "light_c", "unet", "derain"):
        model = network(form)
        kind = ARCHITECTURES[name_of(model)].block
        block = next(module for module in model.modules() if type(module) is kind)
        block.start_as_identity()
        width = next(
            p.shape[0] for name, p in block.named_parameters() if "norm" in name or "ln_1" in name
        )
        tokens = torch.rand(1, 5, 6, width)
        skip = getattr(block, "skip_scale", torch.ones(width))
        skip = skip * getattr(block, "skip_scale2", torch.ones(width))
        with torch.inference_mode():
            torch.testing.assert_close(block(tokens), tokens * skip, rtol=0, atol=1e-6)


def test_a_new_network_is_saved_recognised_and_described(toy, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_network(path, toy, toy.state_dict(), {"task": "upscale"})
    model, arch = load_network(path)
    assert (arch, type(model)) == ("toy", Toy)
    image = torch.rand(1, 3, 5, 4)
    with torch.inference_mode():
        assert torch.equal(model(image), toy(image))
    facts = describe(path)
    assert (facts["arch"], facts["scale"], facts["config"]["blocks"]) == ("toy", 2, 2)


def test_a_new_network_is_counted(toy):
    found = complexity(toy)
    pixels = 1280 * 720 // 4
    assert found.macs == pixels * (3 * 4 + 2 * 9 * 4 * 4 + 4 * 12)
    assert found.parameters == found.leaf_parameters + 2 * 4


def test_a_new_network_is_trained(toy):
    undecayed = ARCHITECTURES["toy"].undecayed
    decayed = [name for name, p in toy.named_parameters() if decays(name, p, undecayed)]
    assert all(name.endswith(".weight") for name in decayed)
    assert len(decayed) == 4
    image = torch.rand(1, 3, 5, 4)
    toy(image).sum().backward()
    expected = toy.toy_first.weight.grad.clone()
    toy.zero_grad()
    recompute_blocks(toy)
    toy(image).sum().backward()
    assert torch.equal(toy.toy_first.weight.grad, expected)


def test_a_new_network_runs_on_the_back_end_that_is_asked_for(toy):
    use_backend(toy, "reference")
    assert {block.backend for block in toy.toys} == {"reference"}


def test_networks_are_named_in_archs_alone():
    """But for benchmarks of one network, everything goes by the rows of ARCHITECTURES."""
    shared = {"complexity", "layers", "ss2d", "frame"}
    networks = {path.stem for path in Path(archs.__file__).parent.glob("*.py")} - shared
    networks -= {"__init__"}
    assert {"mambair", "vmambair"} <= networks
    places = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "archs" or path.is_relative_to(PACKAGE / "bench"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and "archs" in (node.module or ""):
                names = {*node.module.split("."), *(alias.name for alias in node.names)}
                if names & networks:
                    places.add(path.relative_to(PACKAGE).as_posix())
    assert places == set()
