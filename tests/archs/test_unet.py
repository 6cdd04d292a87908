import numpy as np
import pytest
import torch
from failing import fails
from networks import FORMS, U_NETS, network, picture
from torch import nn

from mambair_cli.archs.ss2d import use_backend
from mambair_cli.archs.unet import UNet, UNetConfig, read_shape

SHAPE = UNetConfig(dim=4, blocks=(1, 1, 1, 1), refinement=1)


class Block(nn.Module):
    """Notes the shapes that it sees and adds half a pixel's mean over the channels."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, tokens):
        assert tokens.is_contiguous()
        self.seen.append(tuple(tokens.shape))
        return tokens + 0.5 * tokens.mean(-1, keepdim=True)


def skeleton(seen=None, **shape):
    return UNet(
        UNetConfig(**{"dim": 4, "blocks": (1, 2, 3, 4), "refinement": 2} | shape),
        lambda C: Block([]),
    )


def test_levels():
    seen, widths = [], []
    model = UNet(UNetConfig(4, (1, 2, 3, 4), 2), lambda C: widths.append(C) or Block(seen))
    assert model(picture(16, 24)).shape == (1, 3, 16, 24)
    counts = [(4, 1), (8, 2), (16, 3), (32, 4), (16, 3), (8, 2), (8, 1), (8, 2)]
    assert widths == [width for width, count in counts for _ in range(count)]
    sides = {4: (16, 24), 8: (8, 12), 16: (4, 6), 32: (2, 3)}
    down = [(1, *sides[width], width) for width, count in counts[:-2] for _ in range(count)]
    assert seen == [*down, *[(1, 16, 24, 8)] * 3]


@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 20), (3, 2), (8, 8), (9, 15), (17, 8)], ids=str)
def test_sides_are_padded_by_reflection(size, upscale):
    torch.manual_seed(0)
    model, image = skeleton(upscale=upscale).eval(), picture(*size, batch=2)
    pad = [(0, 0), (0, 0), *((0, -side % 8) for side in size)]
    aligned = torch.from_numpy(np.pad(image.numpy(), pad, mode="reflect"))
    with torch.no_grad():
        found, expected = model(image), model(aligned)
    assert found.shape == (2, 3, upscale * size[0], upscale * size[1])
    assert torch.equal(found, expected[:, :, : upscale * size[0], : upscale * size[1]])


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_without_its_last_layer_the_net_hands_the_image_on(upscale):
    model, image = skeleton(upscale=upscale), picture(8, 16)
    with torch.no_grad():
        for value in (model.output if upscale == 1 else model.tail[1]).parameters():
            value.zero_()
        expected = image.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
        assert torch.equal(model(image), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"dim": dim}, ("dim must be an even number", dim)) for dim in (-2, 0, 2, 7)),
        *(
            ({"blocks": blocks}, ("blocks must be four numbers", blocks))
            for blocks in ((), (1, 2, 3), (1,) * 5)
        ),
        ({"blocks": (1, 0, 1, 1)}, ("blocks must be four numbers from 1 on", (1, 0, 1, 1))),
        ({"refinement": -1}, ("refinement one from 0 on", -1)),
        *(({"upscale": scale}, (f"x{scale}",)) for scale in (-2, 5, 6)),
    ],
    ids=str,
)
def test_shapes_of_no_net(changes, words):
    fails(lambda: skeleton(**changes), ValueError, *words)


@pytest.mark.parametrize("form", U_NETS)
def test_shapes_are_read_off_a_state_dict(form):
    config = FORMS[form]
    found = read_shape(
        network(form).state_dict(), "self_attention.A_logs" if form == "unet" else "attn.A_logs"
    )
    assert {key: getattr(config, key) for key in found} == found
    assert len(found) == 7


@pytest.mark.parametrize("form", U_NETS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_reach_every_parameter_and_are_right(form, backend):
    model = network(form).train()
    for name, value in model.named_parameters():
        if name.endswith("attention.1.bias"):  # else some ReLUs let nothing through
            value.detach().fill_(5)
    image = picture(9, 14, channels=model.config.in_chans, batch=2)

    def gradients(model, image):
        output = model(image)
        weight = (
            picture(*output.shape[2:], channels=output.shape[1], batch=2).to(output.dtype) - 0.5
        )
        return torch.autograd.grad((output * weight).sum(), list(model.parameters()))

    use_backend(model, backend)
    found = gradients(model, image)
    use_backend(model, "auto")
    expected = gradients(model.double(), image.double())
    largest = max(gradient.abs().max() for gradient in expected)
    for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        if name.endswith("conv_cout.bias"):  # a layer norm takes it away again
            assert b.abs().max() < 1e-9, name
        else:
            assert b.abs().max() > 1e-6, name
            assert (a - b).abs().max() < 1e-3 * largest, name


@pytest.mark.parametrize("form", U_NETS)
def test_images_of_a_batch_do_not_mix(form):
    model, images = network(form), picture(8, 10, channels=FORMS[form].in_chans, batch=2)
    with torch.no_grad():
        together, alone = model(images)[1:], model(images[1:])
        value_range = (alone.max() - alone.min()).item()
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * value_range)
        model, images = model.double(), images.double()
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", U_NETS)
def test_back_ends_agree(form):
    model, image = network(form), picture(16, 24, channels=FORMS[form].in_chans)
    outputs = []
    for backend in ("numba", "reference"):
        use_backend(model, backend)
        with torch.inference_mode():
            outputs.append(model(image))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4 * outputs[1].abs().max()
