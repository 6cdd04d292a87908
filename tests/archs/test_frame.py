"""The frame around the groups, with groups that change nothing or that are counted."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from failing import fails
from torch import nn

from mambair_cli.archs.frame import RGB_MEAN, Frame, read_frame, residual_conv, tail_floats
from mambair_cli.archs.layers import LEAST_TENSORS


def config(**changes):
    fields = {
        "embed_dim": 8,
        "depths": (2, 1),
        "upsampler": "pixelshuffledirect",
        "upscale": 2,
        "in_chans": 3,
        "resi_connection": "1conv",
        "multiple": 1,
        "padding": "reflect",
    }
    return SimpleNamespace(**fields | changes)


class Group(nn.Module):
    """Returns its input, and has a tensor for each block."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ParameterList(torch.ones(1) for _ in range(blocks))
        self.shapes = []

    def forward(self, tokens):
        self.shapes.append(tuple(tokens.shape))
        return tokens


def frame(**changes):
    torch.manual_seed(0)
    shape = config(**changes)
    return Frame(shape, lambda g: Group(shape.depths[g]))


def enlarged(net, image):
    with torch.no_grad():
        return net(image)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_net_enlarges_bilinearly(scale, channels):
    net = frame(upscale=scale, in_chans=channels)
    net.start_simply()
    image = torch.rand(2, channels, 7, 9)
    expected = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
    # At the border the convolution sees zeros.
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(enlarged(net, image)[inside], expected[inside])


def test_an_untrained_net_without_upsampler_returns_its_input():
    net, image = frame(upsampler="", upscale=1), torch.rand(1, 3, 5, 6)
    assert (enlarged(net, image) - image).abs().max() > 1e-3
    net.start_simply()
    torch.testing.assert_close(enlarged(net, image), image)


@pytest.mark.parametrize("changes", [{"upsampler": "pixelshuffle"}, {"resi_connection": "3conv"}])
def test_other_nets_start_as_they_are(changes):
    net = frame(**changes)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.start_simply()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("padding", ["reflect", "symmetric"])
def test_sides_become_multiples_and_the_rest_is_cut_off(padding):
    net, image = frame(multiple=4, padding=padding), torch.rand(1, 3, 5, 6)
    assert enlarged(net, image).shape == (1, 3, 10, 12)
    assert [group.shapes for group in net.layers] == [[(1, 8, 8, 8)], [(1, 8, 8, 8)]]


def test_gray_has_no_mean():
    assert net_mean(frame()) == pytest.approx(RGB_MEAN)
    assert net_mean(frame(in_chans=1)) == [0.0]


def net_mean(net):
    return net.mean.flatten().tolist()


def test_a_net_has_groups():
    fails(lambda: frame(depths=()), ValueError, "depths")


@pytest.mark.parametrize("form", ["1conv", "3conv"])
def test_the_convolution_of_a_group_keeps_the_shape(form):
    layer = residual_conv(form, 8)
    assert layer(torch.rand(1, 8, 3, 5)).shape == (1, 8, 3, 5)
    assert sum(isinstance(m, nn.Conv2d) for m in layer.modules()) == int(form[0])


@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
@pytest.mark.parametrize(
    ("upsampler", "scale"),
    [("", 1), ("pixelshuffle", 2), ("pixelshuffle", 3), ("pixelshuffle", 4)]
    + [("pixelshuffledirect", scale) for scale in (2, 3, 4)],
)
def test_a_frame_is_read_off_its_tensors(upsampler, scale, resi_connection):
    fields = {"upsampler": upsampler, "upscale": scale, "resi_connection": resi_connection}
    state = {
        # a block has one tensor of this kind
        f"{name}.skip_scale" if ".blocks." in name else name: value
        for name, value in frame(**fields).state_dict().items()
    }
    # the rest of what real blocks have
    state |= {f"layers.0.blocks.0.{i}": torch.ones(1) for i in range(3 * LEAST_TENSORS)}
    expected = {"embed_dim": 8, "depths": (2, 1), "in_chans": 3, **fields}
    assert read_frame(state, ".skip_scale") == expected


def test_groups_are_numbered_from_0_on():
    state = {"layers.1.blocks.0.skip_scale": torch.ones(1), "conv_first.weight": torch.ones(8, 3)}
    fails(lambda: read_frame(state, ".skip_scale"), ValueError, "not numbered from 0")
    fails(lambda: read_frame({}, ".skip_scale"), KeyError, "conv_first.weight")


def test_the_tail_grows_with_the_pixels_of_the_output():
    assert tail_floats("pixelshuffle", 4) == 4 * tail_floats("pixelshuffle", 2)
    assert tail_floats("pixelshuffledirect", 4) == 4 * tail_floats("pixelshuffledirect", 2)
