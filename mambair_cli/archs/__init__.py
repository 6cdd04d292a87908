"""The networks, one file and one row of ARCHITECTURES each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import mambair, mambair_unet, mambairv2, vmambair


@dataclass(frozen=True)
class Architecture:
    """What the rest of the package has to know of a kind of network.

    A module that calls its layers as functions also has a method `macs`, see `complexity`.

    Attributes:
        config: its configuration, a frozen dataclass with `upscale`, `in_chans`, `multiple`,
            `padding` and `floats_per_pixel`.
        network: the module, built from a configuration. `start_simply` prepares it for training.
        detect: reads the configuration off a state dict; None for that of another network. Raises
            ValueError where it is of this family but of no known form.
        block: the module that is repeated, which training can compute twice to save memory.
            `start_as_identity` lets a new one begin by changing nothing.
        undecayed: endings of the names of tensors that are no weights of a product, so that weight
            decay leaves them alone.
    """

    config: type[Any]
    network: type[nn.Module]
    detect: Callable[[Mapping[str, Tensor]], Any]
    block: type[nn.Module]
    undecayed: tuple[str, ...] = ("bias", "A_logs")


ARCHITECTURES: dict[str, Architecture] = {
    "mambair": Architecture(
        config=mambair.MambaIRConfig,
        network=mambair.MambaIR,
        detect=mambair.detect,
        block=mambair.VSSBlock,
    ),
    "mambairv2": Architecture(
        config=mambairv2.MambaIRv2Config,
        network=mambairv2.MambaIRv2,
        detect=mambairv2.detect,
        block=mambairv2.AttentiveLayer,
        undecayed=("bias", "bias_table", "A_logs"),
    ),
    "mambair_unet": Architecture(
        config=mambair_unet.MambaIRUNetConfig,
        network=mambair_unet.MambaIRUNet,
        detect=mambair_unet.detect,
        block=mambair.VSSBlock,
    ),
    "vmambair": Architecture(
        config=vmambair.VmambaIRConfig,
        network=vmambair.VmambaIR,
        detect=vmambair.detect,
        block=vmambair.OSSBlock,
        undecayed=("bias", "A_logs", "Ac_logs"),
    ),
}


def name_of(model: nn.Module) -> str:
    """The name in ARCHITECTURES of a network."""
    return next(name for name, row in ARCHITECTURES.items() if type(model) is row.network)
