"""MambaIR's U-Net for real denoising (arXiv:2402.15648, section 4), with official tensor names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from .mambair import VSSBlock
from .unet import UNet, UNetConfig, read_shape


@dataclass(frozen=True)
class MambaIRUNetConfig(UNetConfig):
    """The shape of a net; as it stands, the one that was published last.

    At each lower level a channel has `state_growth` times as many states. The first published one,
    of 2024-03 to 07, has d_state 4, state_growth 2 and expand 2.
    """

    state_growth: int = field(default=1, metadata={"limits": (1, 4)})

    def states(self, width: int) -> int:
        """N, states a channel of the scan in a block of this width."""
        level = (width // self.dim).bit_length() - 1
        return self.d_state * self.state_growth**level


class MambaIRUNet(UNet):
    """A U-Net of residual state-space blocks."""

    def __init__(self, config: MambaIRUNetConfig):
        super().__init__(config, lambda C: VSSBlock(C, config.inner(C), config.states(C)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)


def detect(state: Mapping[str, Tensor]) -> MambaIRUNetConfig | None:
    """The configuration of a MambaIR U-Net's state dict, read off its tensors; None for another
    network's.
    """
    if not {"patch_embed.proj.weight", "encoder_level1.0.self_attention.A_logs"} <= state.keys():
        return None
    A_logs = "0.self_attention.A_logs"
    first, second = (state[f"encoder_level{i}.{A_logs}"].shape[1] for i in (1, 2))
    return MambaIRUNetConfig(
        **read_shape(state, "self_attention.A_logs"), state_growth=second // first
    )
