import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.training.config import LossConfig
from mambair_cli.training.losses import Adversary, Discriminator, PerceptualLoss, pixel_loss
from mambair_cli.training.parallel import SingleProcess

CPU = SingleProcess(torch.device("cpu"), False)


def picture(seed, side=32):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_pixel_losses():
    output, truth = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -1.0])
    assert pixel_loss(LossConfig(), output, truth).item() == 2
    charbonnier = LossConfig(pixel="charbonnier", epsilon=3.0)
    assert pixel_loss(charbonnier, output, truth).item() == (3 + 5) / 2
    assert LossConfig().epsilon ** 2 == pytest.approx(1e-3)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Random weights under torchvision's names, with the classifier that its file has too."""
    torch.manual_seed(0)
    state = PerceptualLoss().state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path, state


def test_vgg19_has_torchvisions_shapes(vgg):
    _, state = vgg
    convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    widths = [64, 64, 128, 128, 256, 256, 256, 256, *[512] * 8]
    shapes = {key: tuple(value.shape) for key, value in state.items() if key.startswith("features")}
    expected = {}
    for place, before, width in zip(convolutions, [3, *widths], widths, strict=False):
        expected |= {
            f"features.{place}.weight": (width, before, 3, 3),
            f"features.{place}.bias": (width,),
        }
    assert shapes == expected


def test_the_perceptual_loss_is_the_weighted_distance_of_features(vgg):
    """Computed once more from the weights, layer by layer."""
    path, state = vgg
    loss = PerceptualLoss()
    loss.load(path)
    a, b = picture(1), picture(2)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    # conv1_2, conv2_2, conv3_4, conv4_4, conv5_4
    weights = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
    x, y, expected = (a - mean) / std, (b - mean) / std, 0.0
    for place in range(35):
        if f"features.{place}.weight" in state:
            x, y = (
                F.conv2d(
                    v, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1
                )
                for v in (x, y)
            )
        elif place in (4, 9, 18, 27):
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        else:
            x, y = x.relu(), y.relu()
        if place in weights:
            expected += weights[place] * (x - y).abs().mean()
    assert loss(a, b).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(a, a).item() == 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_other_files_are_no_vgg19(tmp_path, vgg):
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"part\.safetensors is not torchvision's VGG19"):
        PerceptualLoss().load(tmp_path / "part.safetensors")
    with pytest.raises(CallError, match="is missing"):
        PerceptualLoss().load(tmp_path / "none.pth")


def test_the_discriminator_judges_each_pixel():
    model = Discriminator(4)
    assert model(picture(0, 24)).shape == (1, 1, 24, 24)
    norms = [
        torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for layer in (*model.down, *model.up)
    ]
    assert len(norms) == 6
    # iterations of the power method, one a pass
    for _ in range(30):
        model(picture(0, 24))
    for layer in (*model.down, *model.up):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(
            1, abs=0.1
        )


def test_both_sides_of_the_adversarial_loss(vgg):
    """A discriminator that is sure: who is right pays nothing."""
    adversary = Adversary(LossConfig(adversarial=0.5), None, CPU, torch.float32)

    class Sure(torch.nn.Module):
        def forward(self, image):
            # what is bright is real
            return 20 * torch.sign(image.mean((1, 2, 3), keepdim=True) - 0.5)

    adversary.discriminator = adversary._shared = Sure()
    bright, dark = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    assert adversary.generator_loss(bright, bright).item() == pytest.approx(0, abs=1e-6)
    assert adversary.generator_loss(dark, bright).item() == pytest.approx(0.5 * 20, rel=1e-4)
    assert adversary.discriminator_loss(dark, bright).item() == pytest.approx(0, abs=1e-6)
    assert adversary.discriminator_loss(bright, dark).item() == pytest.approx(40, rel=1e-4)


def test_the_network_pays_for_features_and_for_being_told(vgg):
    path, _ = vgg
    torch.manual_seed(0)
    both = Adversary(LossConfig(perceptual=2.0, adversarial=0.5), path, CPU, torch.float32)
    # so that its norms stay
    both.discriminator.eval()
    output, truth = picture(1).requires_grad_(), picture(2)
    loss = both.generator_loss(output, truth)
    features = both.perceptual(output, truth)
    expected = 2 * features + 0.5 * F.softplus(-both.discriminator(output)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert output.grad.abs().max() > 0
    assert all(p.grad is None and p.requires_grad for p in both.discriminator.parameters())
    both.discriminator_loss(output, truth).backward()
    assert all(p.grad is not None for p in both.discriminator.parameters())


def test_a_fresh_discriminator_tosses_a_coin():
    torch.manual_seed(0)
    adversary = Adversary(LossConfig(adversarial=1.0), None, CPU, torch.float32)
    assert adversary.discriminator_loss(picture(1), picture(2)).item() == pytest.approx(
        2 * math.log(2), abs=0.2
    )


def test_without_weights_it_says_which(tmp_path):
    with pytest.raises(
        CallError,
        match=r"needs VGG19's weights: give torchvision's file vgg19-dcbb9e9d\.pth as `vgg`",
    ):
        Adversary(LossConfig(perceptual=1.0), None, CPU, torch.float32)
