"""The losses: distances of pixels and of features, and what a discriminator says."""

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..errors import CallError, CheckpointError
from ..models.weights import read_state
from .config import LossConfig

VGG19 = (2, 2, 4, 4, 4)
"""Convolutions of each of five stages, of 64 to 512 channels."""
FEATURES = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
"""Weights of conv1_2, conv2_2, conv3_4, conv4_4 and conv5_4, by their places."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_loss(config: LossConfig, output: Tensor, truth: Tensor) -> Tensor:
    """L1, or Charbonnier's smooth form of it (LapSRN, Lai et al. 2017, equation 4), as a mean."""
    error = output - truth
    if config.pixel == "l1":
        return error.abs().mean()
    return (error.square() + config.epsilon**2).sqrt().mean()


class PerceptualLoss(nn.Module):
    """Weighted L1 distance of VGG19 features before activation.

    See ESRGAN (Wang et al. 2018), section 3.2.
    Tensor names are torchvision's, whose ImageNet weights `vgg19-dcbb9e9d.pth` fit; they stay as
    they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, count in enumerate(VGG19):
            channels = min(512, 64 * 2**stage)
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[: max(FEATURES) + 1]).requires_grad_(False)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def load(self, path: Path) -> None:
        """Take the weights of a file.

        Raises CallError where there is no such file, CheckpointError where it is not VGG19's.
        """
        state = read_state(path).state
        try:
            self.load_state_dict({key: state[key] for key in self.state_dict()})
        except (LookupError, RuntimeError):
            raise CheckpointError(
                f"{path} is not torchvision's VGG19; fetch vgg19-dcbb9e9d.pth"
            ) from None

    def _features(self, image: Tensor) -> list[Tensor]:
        x, found = (image - self.mean) / self.std, []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in FEATURES:
                found.append(x)
        return found

    def forward(self, output: Tensor, truth: Tensor) -> Tensor:
        """The distance of two images, (B,3,H,W) in [0,1]."""
        with torch.no_grad():
            wanted = self._features(truth)
        pairs = zip(FEATURES.values(), self._features(output), wanted, strict=True)
        return torch.stack([weight * F.l1_loss(a, b) for weight, a, b in pairs]).sum()


class Discriminator(nn.Module):
    """Tells real from made, for each pixel.

    A U-Net with spectral norm (Real-ESRGAN, Wang et al. 2021, section 3.2).
    """

    def __init__(self, width: int = 64):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False))
            for a, b in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            spectral_norm(nn.Conv2d(b, a, 3, padding=1, bias=False))
            for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        plain = [spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in range(2)]
        self.last = nn.Sequential(plain[0], nn.LeakyReLU(0.2), plain[1], nn.LeakyReLU(0.2))
        self.judge = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W), sides multiples of 8 -> (B,1,H,W), the logits of being real."""
        x = F.leaky_relu(self.first(image), 0.2)
        skips = []
        for layer in self.down:
            skips.append(x)
            x = F.leaky_relu(layer(x), 0.2)
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), 0.2) + skips.pop()
        return self.judge(self.last(x))


class Adversary:
    """A perceptual loss, and a discriminator that is trained along with the network.

    Args:
        config: the weights of both.
        vgg: file of VGG19's weights; may be None where the perceptual loss has no weight.
        engine: see `parallel.start`.
        dtype: of the network.

    Raises:
        CallError: the file is needed, but not named.
        CheckpointError: it is another network's.
    """

    def __init__(self, config: LossConfig, vgg: Path | None, engine: Any, dtype: torch.dtype):
        self.config = config
        if config.perceptual:
            if vgg is None:
                raise CallError(
                    "the perceptual loss of this recipe needs VGG19's weights:"
                    " give torchvision's file vgg19-dcbb9e9d.pth as `vgg`"
                )
            self.perceptual = PerceptualLoss()
            self.perceptual.load(vgg)
            self.perceptual.to(engine.device, dtype)
        self.discriminator = Discriminator().to(engine.device, dtype)
        # its gradients are those of all processes
        self._shared = engine.prepare(self.discriminator)
        self.optimiser = build_discriminator_optimiser(self.discriminator, config)

    def generator_loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """The network's loss beyond pixels: for features that differ, and for not looking real."""
        loss = output.new_zeros(())
        if self.config.perceptual:
            loss = self.config.perceptual * self.perceptual(output, truth)
        if self.config.adversarial:
            self.discriminator.requires_grad_(False)
            logits = self.discriminator(output)
            self.discriminator.requires_grad_(True)
            loss = loss + self.config.adversarial * F.softplus(-logits).mean()
        return loss

    def discriminator_loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """The discriminator's loss, for taking one for the other."""
        real, made = self._shared(torch.cat([truth, output.detach()])).chunk(2)
        return F.softplus(-real).mean() + F.softplus(made).mean()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])


def build_discriminator_optimiser(
    discriminator: Discriminator, config: LossConfig
) -> torch.optim.Adam:
    """Adam over all parameters of the discriminator."""
    return torch.optim.Adam(discriminator.parameters(), config.discriminator_lr, (0.9, 0.99))


def build_adversary(
    config: LossConfig, vgg: Path | None, engine: Any, dtype: torch.dtype
) -> Adversary | None:
    """What losses beyond pixels need; None where the recipe has none. Raises as `Adversary`."""
    if config.perceptual or config.adversarial:
        return Adversary(config, vgg, engine, dtype)
    return None


def network_loss(
    config: LossConfig, adversary: Adversary | None, output: Tensor, truth: Tensor
) -> Tensor:
    """The network's whole loss for its output and the truth, (B,C,H,W) both."""
    loss = pixel_loss(config, output, truth)
    return loss + adversary.generator_loss(output, truth) if adversary else loss
