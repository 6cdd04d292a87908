"""What spandrel has to know of an architecture, made from a row of ARCHITECTURES."""

from pathlib import Path
from typing import Any

import spandrel
from torch import Tensor, nn

from ..archs import ARCHITECTURES
from ..models.recognise import build_network, is_of
from ..models.weights import Checkpoint, without_prefix


class _Architecture(spandrel.Architecture[nn.Module]):
    """An architecture of this package for spandrel."""

    def __init__(self, arch: str):
        super().__init__(id=arch, name=ARCHITECTURES[arch].network.__name__, detect=self._detects)

    def _detects(self, state: dict[str, Any]) -> bool:
        return is_of(self.id, without_prefix(state)[0])

    def load(self, state_dict: dict[str, Any]) -> spandrel.ImageModelDescriptor[nn.Module]:
        """Build the network of a state dict. Raises CheckpointError where it does not fit."""
        state, prefix = without_prefix(state_dict)
        model, _ = build_network(Checkpoint(state, {}, prefix), Path("the state dict"))
        config: Any = model.config
        return spandrel.ImageModelDescriptor(
            model,
            # Files may lack the integers that a network computes itself.
            model.state_dict(),
            architecture=self,
            purpose="SR" if config.upscale > 1 else "Restoration",
            tags=_tags(model),
            supports_half=True,
            supports_bfloat16=True,
            scale=config.upscale,
            input_channels=config.in_chans,
            output_channels=config.in_chans,
            # The network pads as it was trained to; these spare it the work.
            size_requirements=spandrel.SizeRequirements(multiple_of=config.multiple),
            tiling=spandrel.ModelTiling.SUPPORTED,
            call_fn=_call,
        )


def _call(model: nn.Module, image: Tensor) -> Tensor:
    result: Tensor = model(image)
    # A view of a padded result would be changed in place.
    return result.to(image.dtype).contiguous()


def _tags(model: nn.Module) -> list[str]:
    config: Any = model.config
    width = getattr(config, "embed_dim", None) or config.dim
    blocks = sum(getattr(config, "depths", None) or config.blocks)
    return [f"{width}dim", f"{blocks}blocks", f"{config.d_state}states"]


def install(registry: spandrel.ArchRegistry = spandrel.MAIN_REGISTRY) -> list[str]:
    """Let spandrel load the networks of this package; to call it again changes nothing.

    They are recognised before all others. Needs the extra mambair[spandrel].

    Args:
        registry: of spandrel, in which they are entered.

    Returns:
        The names of the architectures that were added.
    """
    known = [row.architecture.id for row in registry]
    others = tuple(name for name in known if name not in ARCHITECTURES)
    rows = [
        spandrel.ArchSupport.from_architecture(_Architecture(arch), others)
        for arch in ARCHITECTURES
    ]
    added = registry.add(*rows, ignore_duplicates=True)
    return [row.architecture.id for row in added]
