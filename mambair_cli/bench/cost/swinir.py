"""SwinIR-light, the network that MambaIR-light is compared with, from the package spandrel."""

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NEEDED = ("spandrel", "einops")
INSTALL = "pip install " + " ".join(NEEDED)


def swinir_light(scale: int = 2) -> "nn.Module | None":
    """SwinIR-light with fresh weights; None where its packages are not installed.

    spandrel imports torchvision, of which this network needs nothing, so an empty stand-in serves.
    """
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        return None
    if importlib.util.find_spec("torchvision") is None:
        _stand_in_for_torchvision()
    spandrel = importlib.import_module("spandrel.architectures.SwinIR")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid")
        model: nn.Module = spandrel.SwinIR(
            upscale=scale,
            img_size=64,
            window_size=8,
            img_range=1.0,
            depths=[6] * 4,
            embed_dim=60,
            num_heads=[6] * 4,
            mlp_ratio=2,
            upsampler="pixelshuffledirect",
            resi_connection="1conv",
        )
    return model.eval()


def _stand_in_for_torchvision() -> None:
    for name in ("", ".ops", ".models", ".transforms", ".transforms.functional"):
        stand_in = types.ModuleType("torchvision" + name)
        stand_in.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
        stand_in.__spec__ = importlib.machinery.ModuleSpec(stand_in.__name__, None)
        sys.modules.setdefault(stand_in.__name__, stand_in)
