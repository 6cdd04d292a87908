"""The fused kernels give what the modules give: for every form of a network, and each part against
PyTorch.
"""

import pytest
import torch
import torch.nn.functional as F
from networks import FORMS, network, picture

from mambair_cli.archs.layers import to_image, to_tokens
from mambair_cli.archs.mambairv2 import MambaIRv2Config
from mambair_cli.ops import fused

LIMIT = 5e-6
BLOCKS = ("classic", "light_a", "light_b", "light_c", "attention", "none", "mlp")
# Window attention is no part of these kernels, so MambaIRv2 runs as modules.
FUSED = [form for form, config in FORMS.items() if not isinstance(config, MambaIRv2Config)]


@pytest.fixture(autouse=True)
def uninitialised_memory_is_not_a_number():
    """torch.empty gives NaN, so that what is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def used(monkeypatch):
    """How often a block ran on the fused kernels."""
    calls, scan = [], fused.scan
    monkeypatch.setattr(fused, "scan", lambda *inputs: calls.append(1) or scan(*inputs))
    return calls


def both(model, image):
    """The output of the modules and that of the fused kernels."""
    takes = fused.takes
    with torch.inference_mode():
        fused.takes = lambda *_: False
        try:
            plain = model(image)
        finally:
            fused.takes = takes
        return plain, model(image)


def difference(plain, found):
    """The largest, in ranges of the first."""
    return ((plain - found).abs().max() / (plain.max() - plain.min())).item()


def blocks_of(model):
    return sum("scan_parameters" in dir(module) for module in model.modules())


@pytest.mark.parametrize("form", FUSED)
def test_every_published_form(form, used):
    model = network(form)
    plain, found = both(model, picture(19, 37, channels=model.config.in_chans, batch=2))
    assert difference(plain, found) < LIMIT
    assert len(used) == blocks_of(model) > 0


@pytest.mark.parametrize("conv_block", BLOCKS)
@pytest.mark.parametrize(("channels", "expand"), [(12, 1.25), (48, 1.0), (60, 1.2)])
def test_every_block_and_width(conv_block, channels, expand, used):
    model = network(
        "light_c", conv_block=conv_block, embed_dim=channels, expand=expand, d_state=3, upscale=2
    )
    plain, found = both(model, picture(11, 35))
    assert difference(plain, found) < LIMIT
    assert len(used) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (3, 130), (16, 64)])
@pytest.mark.parametrize("form", ["light_c", "derain"])
def test_every_size(size, form):
    config = FORMS[form]
    wide = {"embed_dim": 48, "expand": 1.0} if form == "light_c" else {"dim": 16}
    plain, found = both(network(form, **wide, d_state=4), picture(*size, channels=config.in_chans))
    assert (plain - found).abs().max() < LIMIT * plain.abs().max()


def test_rows_that_share_places_in_the_caches_lie_further_apart(monkeypatch):
    pitches, forward = [], fused.scan

    def scan(*inputs):
        scanned = forward(*inputs)
        pitches.append(scanned.planes.shape[3])
        return scanned

    monkeypatch.setattr(fused, "scan", scan)
    with torch.inference_mode():
        network("light_c", embed_dim=48, expand=1.0)(picture(4, 16))
        network("light_c", embed_dim=48, expand=1.0)(picture(4, 17))
    assert pitches == [17] * 3 + [17] * 3


def test_threads_do_not_change_the_output():
    block, before = (
        network("light_c", conv_block="mlp").layers[0].residual_group.blocks[0],
        torch.get_num_threads(),
    )
    found, tokens = [], torch.randn(2, 9, 21, 12)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found.append(block(tokens))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_where_the_modules_run(used):
    """In training, with gradients, on other back ends, in other precisions."""
    model, image = network("light_c"), picture(8, 8)
    model(image)
    with torch.inference_mode():
        model.train()(image)
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            model(image)
        model.double()(image.double())
        for module in model.float().modules():
            if hasattr(module, "backend"):
                module.backend = "reference"
        model(image)
    assert used == []


def test_results_follow_the_weights():
    """Nothing of a network is kept from one call to the next."""
    model, image = network("light_c"), picture(8, 8)
    with torch.inference_mode():
        first = model(image)
        for parameter in model.layers.parameters():
            parameter.data.mul_(1.1)
    plain, found = both(model, image)
    assert difference(plain, found) < LIMIT
    assert difference(first, found) > 100 * LIMIT


def test_not_a_number_does_not_vanish():
    with torch.inference_mode():
        model, image = network("light_c"), picture(8, 8)
        image[0, 0, 3, 3] = torch.nan
        assert model(image).isnan().any()


@pytest.mark.parametrize("channels", [1, 5, 24, 60])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (7, 150)])
def test_convolve(channels, dilation, size):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(2, *size, channels),
        torch.randn(channels, 1, 3, 3),
        torch.randn(channels),
    )
    plane = fused._plane(*x.shape)
    plane.copy_(x)
    found, means = fused.convolve(plane, (weight, bias), dilation)
    image, weight, bias = to_image(x).double(), weight.double(), bias.double()
    expected = F.conv2d(image, weight, bias, padding=dilation, dilation=dilation, groups=channels)
    torch.testing.assert_close(to_image(found).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means.double(), expected.mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("hidden", "out"), [(1, 1), (10, 7), (48, 24)])
@pytest.mark.parametrize("activation", ["gelu", "gate"])
@pytest.mark.parametrize("convolved", [False, True])
def test_feed(hidden, out, activation, convolved):
    torch.manual_seed(0)
    S = 2 * hidden if activation == "gate" else hidden
    x, u, skip = fused._plane(2, 3, 21, S), torch.randn(2, 3, 21, out), torch.randn(out)
    x.copy_(torch.randn(x.shape))
    conv = (torch.randn(S, 1, 3, 3), torch.randn(S)) if convolved else None
    into = torch.randn(out, hidden), torch.randn(out)
    v = x if conv is None else to_tokens(F.conv2d(to_image(x), *conv, padding=1, groups=S))
    v = F.gelu(v) if activation == "gelu" else F.gelu(v[..., :hidden]) * v[..., hidden:]
    expected = F.linear(v, *into)
    torch.testing.assert_close(
        fused.feed(x, conv, activation, into), expected, rtol=1e-4, atol=1e-4
    )
    found = fused.feed(x, conv, activation, into, u, skip)
    torch.testing.assert_close(found, expected + u * skip, rtol=1e-4, atol=1e-4)


def test_odd_numbers_of_states_and_ranks():
    """They are padded."""
    model = network("light_a", d_state=5, embed_dim=33, expand=1.0)
    plain, found = both(model, picture(6, 34))
    assert difference(plain, found) < LIMIT
