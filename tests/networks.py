"""Small networks of every published form; shared by tests."""

from dataclasses import replace

import torch
from golden.fill import fill_state

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig

SMALL = MambaIRConfig(embed_dim=12, depths=(1, 2), d_state=2)
FORMS = {
    "classic": replace(SMALL, upscale=3),
    "light_a": replace(SMALL, conv_block="light_a", expand=1.5, upsampler="pixelshuffledirect"),
    "light_b": replace(SMALL, conv_block="light_b", upsampler="pixelshuffledirect", upscale=3),
    "light_c": replace(SMALL, conv_block="light_c", expand=1.25, upsampler="pixelshuffledirect", upscale=4),
    "denoise": replace(SMALL, upsampler="", upscale=1),
    "jpeg": replace(SMALL, upsampler="", upscale=1, in_chans=1),
    "jpeg_3conv": replace(SMALL, upsampler="", upscale=1, in_chans=1, resi_connection="3conv"),
}


def network(form="light_c", **changes):
    """A network whose every tensor matters and whose values do not depend on the tests before."""
    model = MambaIR(replace(FORMS[form], **changes)).eval()
    fill_state(model.state_dict())
    return model


def picture(*size, channels=3, batch=1):
    """Random (B,C,H,W) in [0,1]."""
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0))
