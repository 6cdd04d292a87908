import pytest
import torch
import torch.nn.functional as F
from failing import fails

from mambair_cli.archs.layers import (
    DilatedDepthwise,
    DropPath,
    FullPrecisionConv,
    Pointwise,
    pixel_shuffle,
    pointwise,
    scale_of_pixel_shuffle,
    to_image,
    to_tokens,
)


def gradients(function, inputs):
    output = function(*inputs)
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (2, 3, 7, 12), (1, 16, 16, 48)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_pointwise_is_a_linear_layer(shape, with_bias):
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape),
        torch.randn(9, shape[-1]),
        *([torch.randn(9)] if with_bias else []),
    ]
    inputs = [v.requires_grad_() for v in inputs]
    assert_same(gradients(pointwise, inputs), gradients(F.linear, [v.double() for v in inputs]))
    with torch.no_grad():
        assert_same([pointwise(*inputs)], [F.linear(*inputs)])


def test_pointwise_takes_non_contiguous_tokens():
    tokens = torch.randn(2, 6, 5, 8).transpose(1, 2)
    weight = torch.randn(3, 8)
    torch.testing.assert_close(pointwise(tokens, weight), F.linear(tokens, weight))


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_module_is_a_convolution(bias):
    module, image = Pointwise(6, 4, bias), torch.randn(2, 6, 5, 7)
    expected = F.conv2d(image, module.weight, module.bias)
    torch.testing.assert_close(module(image), expected)
    halves = [module.half_of(to_tokens(image), index) for index in (0, 1)]
    assert all(half.is_contiguous() for half in halves)
    torch.testing.assert_close(to_image(torch.cat(halves, 3)), expected)


@pytest.mark.parametrize(
    ("scale", "keys"), [(1, []), (2, [0]), (3, [0]), (4, [0, 2]), (8, [0, 2, 4])]
)
def test_pixel_shuffle(scale, keys):
    module = pixel_shuffle(5, scale)
    assert module(torch.randn(1, 5, 3, 4)).shape == (1, 5, 3 * scale, 4 * scale)
    state = {f"a.{key}": value for key, value in module.state_dict().items()}
    assert list(state) == [f"a.{i}.{kind}" for i in keys for kind in ("weight", "bias")]
    assert scale_of_pixel_shuffle(state, "a") == scale


@pytest.mark.parametrize("scale", [-2, 5, 6, 7, 12])
def test_scales_that_pixel_shuffle_does_not_reach(scale):
    fails(lambda: pixel_shuffle(5, scale), ValueError, f"x{scale}")


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (6, 8), (7, 9), (32, 31)])
def test_dilated_depthwise_has_the_gradients_of_the_plain_convolution(size):
    torch.manual_seed(0)
    module = DilatedDepthwise(5)
    image = torch.randn(2, 5, *size).to(memory_format=torch.channels_last).requires_grad_()

    def plain(x, w, b):
        return F.conv2d(x, w, b, padding=2, dilation=2, groups=5)

    inputs = [image, module.weight, module.bias]
    assert_same(
        gradients(lambda *_: module(image), inputs), gradients(plain, [v.double() for v in inputs])
    )


def test_tokens_and_image_are_views():
    tokens = torch.randn(2, 3, 4, 5)
    assert to_tokens(to_image(tokens)).data_ptr() == tokens.data_ptr()


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2)
    dropped = drop(x)
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_spares_the_outer_convolutions_alone(dtype):
    module, image = FullPrecisionConv(6, 4, 3, padding=1), torch.randn(2, 6, 5, 7)
    expected = F.conv2d(image, module.weight, module.bias, padding=1)
    tokens, weight = torch.randn(2, 3, 4, 6), torch.randn(5, 6)
    with torch.autocast("cpu", dtype):
        assert torch.equal(module(image), expected)
        assert torch.equal(module(image.to(dtype)), module(image.to(dtype).float()))
        found = pointwise(tokens, weight)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), tokens @ weight.t(), rtol=0.02, atol=0.05)
    assert module.double()(image.double()).dtype == torch.float64
