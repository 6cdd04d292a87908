import pytest
import torch
import torch.nn.functional as F

from mambair_cli.bench.figures import scaling
from mambair_cli.bench.figures.scaling import HEADS, WIDTH, WINDOW, Attention, Cost, costs, draw
from mambair_cli.images.folders import read_rgb


def attention_by_hand(module, tokens):
    """Of (L,C): softmax(q k^T / sqrt(d)) v, head by head."""
    q, k, v = module.qkv(tokens).chunk(3, 1)
    d = WIDTH // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        heads.append(F.softmax(q[:, part] @ k[:, part].T / d**0.5, 1) @ v[:, part])
    return module.proj(torch.cat(heads, 1))


@pytest.mark.parametrize("windowed", [False, True])
def test_attention_by_hand(windowed):
    torch.manual_seed(0)
    module = Attention(windowed)
    tokens = torch.rand(1, 16, 24, WIDTH)
    with torch.inference_mode():
        found = module(tokens)
        if windowed:
            part = tokens[0, 8:, 16:].reshape(-1, WIDTH)
            expected, found = attention_by_hand(module, part), found[0, 8:, 16:].reshape(-1, WIDTH)
        else:
            expected, found = (
                attention_by_hand(module, tokens[0].flatten(0, 1)),
                found[0].flatten(0, 1),
            )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_counts():
    assert Attention(True).macs(256) == 4 * 256 * WIDTH**2 + 2 * 256 * WINDOW**2 * WIDTH
    assert Attention(False).macs(256) == 4 * 256 * WIDTH**2 + 2 * 256 * 256 * WIDTH


def test_costs_grow_as_they_must(monkeypatch):
    said = []
    found = costs((16, 32), report=lambda share, label: said.append(share))
    assert len(found) == 6
    by_method = [found[i : i + 2] for i in (0, 2, 4)]
    for small, large in by_method:
        assert small.method == large.method
        assert min(small.seconds, large.seconds) > 0
    ratios = [large.macs / small.macs for small, large in by_method]
    assert ratios[:2] == [4, 4]
    assert 4 < ratios[2] < 16
    assert said == sorted(said)


def test_what_takes_too_long_is_counted_only(monkeypatch):
    monkeypatch.setattr(
        scaling, "_seconds", lambda module, side, device: 5.0 if side == 16 else 0.1
    )
    found = costs((8, 16, 32, 64))
    assert [cost.seconds for cost in found[:4]] == [0.1, 5.0, None, None]
    assert all(cost.macs > 0 for cost in found)


def test_the_figure(tmp_path):
    found = [
        Cost(name, side, side**2, None if side > 32 else side / 1e3)
        for name in "ab"
        for side in (16, 32, 64)
    ]
    draw(found, tmp_path / "cost.svg", "cpu")
    text = (tmp_path / "cost.svg").read_text()
    assert text.count("<svg") == 1
    draw(found, tmp_path / "cost.png", "cpu")
    assert read_rgb(tmp_path / "cost.png").shape[1] > 1000
