import pytest
import torch
import torch.nn.functional as F

from mambair_cli.ops import pixelwise_numba
from mambair_cli.ops.simd import LANES

CHANNELS = sorted({1, 3, LANES - 1, LANES, LANES + 1, 60, 72})


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5)])
def test_layer_norm(channels, gated, shape):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, channels) * 3 + 10,
        torch.randn(channels),
        torch.randn(channels),
    )
    gate = torch.randn_like(x) * 20 if gated else None
    before = x.clone()
    found = pixelwise_numba.layer_norm(x, weight, bias, gate, 1e-5)
    expected = F.layer_norm(x.double(), (channels,), weight.double(), bias.double())
    if gate is not None:
        expected = expected * F.silu(gate.double())
    assert (found - expected).abs().max() <= 5e-6 * expected.abs().max()
    assert torch.equal(x, before)


def test_layer_norm_of_equal_values_is_the_bias():
    weight, bias = torch.randn(13), torch.randn(13)
    found = pixelwise_numba.layer_norm(torch.full((4, 13), 7.25), weight, bias, None, 1e-5)
    torch.testing.assert_close(found, bias.expand(4, 13))


@pytest.mark.parametrize("size", [0, 1, LANES - 1, LANES, 3 * LANES + 2])
def test_silu(size):
    buffer = torch.linspace(-200, 200, size + 2)
    expected = torch.cat([buffer[:1], F.silu(buffer[1:-1].double()).float(), buffer[-1:]])
    pixelwise_numba.silu_(buffer[1:-1])
    torch.testing.assert_close(buffer, expected, rtol=1e-6, atol=1e-6)


def test_threads_give_the_same():
    torch.manual_seed(0)
    x, gate, weight = torch.randn(3, 5, 7), torch.randn(3, 5, 7), torch.randn(7)
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 40):
        torch.set_num_threads(n)
        found.append(pixelwise_numba.layer_norm(x, weight, weight, gate, 1e-5))
        y = x.clone()
        pixelwise_numba.silu_(y)
        found.append(y)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, found[2:], strict=False))


def test_not_a_number_stays_in_its_pixel():
    x = torch.randn(3, 5)
    x[1, 2] = torch.nan
    found = pixelwise_numba.layer_norm(x, torch.ones(5), torch.zeros(5), None, 1e-5)
    assert found.isnan().all(1).tolist() == [False, True, False]
