"""Small networks of every published form, files of them, and the published ones on golden files;
shared by tests.
"""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from golden.fill import fill_state

from mambair_cli.archs import ARCHITECTURES
from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.archs.mambair_unet import MambaIRUNetConfig
from mambair_cli.archs.mambairv2 import MambaIRv2Config
from mambair_cli.archs.unet import UNetConfig
from mambair_cli.archs.vmambair import VmambaIRConfig

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {row.config: row.network for row in ARCHITECTURES.values()}
SMALL = MambaIRConfig(embed_dim=12, depths=(1, 2), d_state=2)
SMALL_V2 = MambaIRv2Config(
    embed_dim=12, depths=(1, 2), heads=2, d_state=2, inner_rank=3, tokens=5, window=8
)
SMALL_OMNI = VmambaIRConfig(dim=8, blocks=(1, 2, 1, 3), refinement=1, d_state=2, ffn_expand=2.5)
FORMS = {
    "classic": replace(SMALL, upscale=3),
    "light_a": replace(SMALL, conv_block="light_a", expand=1.5, upsampler="pixelshuffledirect"),
    "light_b": replace(SMALL, conv_block="light_b", upsampler="pixelshuffledirect", upscale=3),
    "light_c": replace(
        SMALL, conv_block="light_c", expand=1.25, upsampler="pixelshuffledirect", upscale=4
    ),
    "denoise": replace(SMALL, upsampler="", upscale=1),
    "jpeg": replace(SMALL, upsampler="", upscale=1, in_chans=1),
    "jpeg_3conv": replace(SMALL, upsampler="", upscale=1, in_chans=1, resi_connection="3conv"),
    "v2": replace(SMALL_V2, upscale=4, kernel=3),
    "v2_light": replace(
        SMALL_V2, heads=3, expand=1.5, ffn="gated", upsampler="pixelshuffledirect", upscale=3
    ),
    "v2_jpeg": replace(SMALL_V2, window=4, upsampler="", upscale=1, in_chans=1),
    "unet": MambaIRUNetConfig(dim=8, blocks=(1, 2, 1, 3), refinement=1, d_state=2),
    "derain": replace(SMALL_OMNI, refinement=2),
    "derain_variant": replace(SMALL_OMNI, channel_inner=2),
    "sisr": replace(SMALL_OMNI, blocks=(2, 1, 1, 1), upscale=4),
    "real_sr": replace(SMALL_OMNI, upscale=2, channel_inner=1, in_chans=1),
}
U_NETS = [form for form, config in FORMS.items() if isinstance(config, UNetConfig)]


def network(form="light_c", **changes):
    """A network whose every tensor matters and whose values do not depend on the tests before."""
    config = replace(FORMS[form], **changes)
    model = CLASSES[type(config)](config).eval()
    fill_state(model.state_dict())
    return model


def published(config):
    """A network of any size without values, for its shapes."""
    with torch.device("meta"):
        return CLASSES[type(config)](config)


def assert_golden(config, path, single):
    """The network has the tensors of a golden file and its output: within 1e-6 in float64, `single`
    in float32.
    """
    stored = np.load(path)
    image, expected = (torch.from_numpy(stored[name]).double() for name in ("input", "output"))
    model = CLASSES[type(config)](config).double().eval()
    fill_state(model.state_dict())
    state = model.state_dict()
    # The integers that a network computes itself are no part of the files.
    keys = [f"{k}:{tuple(v.shape)}" for k, v in state.items() if v.is_floating_point()]
    assert sorted(keys) == sorted(str(k) for k in stored["keys"])
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, single)):
        with torch.no_grad():
            output = model.to(dtype)(image.to(dtype)).double()
        assert (output - expected).abs().max() < limit * expected.abs().max(), dtype


def picture(*size, channels=3, batch=1):
    """Random (B,C,H,W) in [0,1]."""
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0))


STATE = network().state_dict()


def saved(content, **options):
    """The bytes of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def safe(state=STATE, arch="mambair", text=None, **changes):
    """The bytes of a safetensors file as training writes it; changes: of the configuration, text:
    instead.
    """
    text = text or json.dumps(asdict(FORMS["light_c"]) | changes)
    return safetensors.torch.save(dict(state), {"mambair.arch": arch, "mambair.config": text})


def assert_same_network(found, expected):
    """Ready to use, with the same configuration and results."""
    assert type(found) is type(expected)
    assert found.config == expected.config
    assert not found.training
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    image = picture(7, 9, channels=expected.config.in_chans)
    with torch.inference_mode():
        assert torch.equal(found(image), expected(image))
