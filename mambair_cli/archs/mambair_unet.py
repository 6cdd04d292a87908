"""MambaIR's U-Net for real denoising (arXiv:2402.15648, section 4), with the official tensor names."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .mambair import VSSBlock
from .unet import UNet, UNetConfig, read_shape


@dataclass(frozen=True)
class MambaIRUNetConfig(UNetConfig):
    """The shape of a net; the published one as it stands."""


class MambaIRUNet(UNet):
    """A U-Net of residual state-space blocks."""

    def __init__(self, config: MambaIRUNetConfig):
        super().__init__(config, lambda C: VSSBlock(C, config.inner(C), config.d_state))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)


def detect(state: Mapping[str, Tensor]) -> MambaIRUNetConfig | None:
    """The configuration of a MambaIR U-Net's state dict, read off its tensors; None for another network's."""
    if not {"patch_embed.proj.weight", "encoder_level1.0.self_attention.A_logs"} <= state.keys():
        return None
    return MambaIRUNetConfig(**read_shape(state, "self_attention.A_logs"))
