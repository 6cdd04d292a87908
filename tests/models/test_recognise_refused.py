"""Tensors and metadata of no network known here: each file is refused with one line."""

import json
from dataclasses import asdict

import pytest
import safetensors.torch
import torch
from networks import FORMS, STATE, network, safe, saved

OTHER, NO_FIT = "another architecture", "does not fit"
BLOCK = "layers.0.residual_group.blocks.0"
CAB = f"{BLOCK}.conv_blk.cab.0.weight"
BAD_TENSORS = {
    "another": (
        {"conv_first.weight": torch.zeros(60, 3, 3, 3), "body.0.weight": torch.zeros(3)},
        OTHER,
    ),
    "number keys": (dict(enumerate(STATE.values())), OTHER),
    "one tensor of MambaIRv2": (
        {"layers.0.residual_group.layers.0.embeddingA.weight": torch.zeros(3, 2)},
        OTHER,
    ),
    "missing": ({k: v for k, v in STATE.items() if k != "norm.weight"}, "missing: norm.weight"),
    "two missing": (
        {k: v for k, v in STATE.items() if k[:5] != "norm."},
        "missing: norm.weight and 1 more",
    ),
    "extra": (STATE | {"norm.scale": torch.zeros(3)}, "unexpected: norm.scale"),
    "shape": (
        STATE | {"norm.weight": torch.zeros(3)},
        "of another shape: norm.weight, (3,) instead of (12,)",
    ),
    "all of it": (
        {k: v for k, v in STATE.items() if k[:5] != "norm."}
        | {"a.b": STATE["norm.bias"], "upsample.0.bias": torch.zeros(1)},
        "missing: norm.weight and 1 more; unexpected: a.b;"
        " of another shape: upsample.0.bias, (1,) instead of (48,)",
    ),
    "the first is missing": (
        {k: v for k, v in STATE.items() if k != "conv_first.weight"},
        "the closest is mambair, as in mambair-light-c-x2: missing: conv_first.weight",
    ),
    "another first": (
        {k.replace("conv_first", "first"): v for k, v in network("classic").state_dict().items()},
        "the closest is mambair, as in mambair-classic-x2: missing: conv_first.weight and 1 more;"
        " unexpected: first.",
    ),
    "too wide": (STATE | {"conv_first.weight": torch.zeros(3000, 3, 3, 3)}, NO_FIT),
    "too wide for its tensors": (
        STATE
        | {"conv_first.weight": torch.zeros(3000, 1, 1, 1), CAB: torch.zeros(1500, 3000, 1, 1)[:0]},
        NO_FIT,
    ),
    "integers": ({k: v.to(torch.int8) for k, v in STATE.items()}, "floating"),
    "booleans": (
        STATE | {"norm.weight": torch.ones(12, dtype=torch.bool)},
        "instead of floating-point numbers",
    ),
    "complex": (
        STATE | {"norm.weight": torch.ones(12, dtype=torch.complex64)},
        "instead of floating-point numbers",
    ),
    "one integer": (STATE | {"norm.weight": torch.ones(12, dtype=torch.int64)}, "floating"),
    "nan": (
        STATE | {"norm.weight": torch.full((12,), torch.nan)},
        "norm.weight holds NaN or infinite",
    ),
    "infinite": (
        STATE | {"norm.weight": torch.full((12,), torch.inf)},
        "norm.weight holds NaN or infinite",
    ),
    "first of one axis": (
        STATE | {"conv_first.weight": torch.zeros(12)},
        "the closest is mambair, as in mambair-light-c-x2:"
        " of another shape: conv_first.weight, 1 axes instead of 4",
    ),
    "first of no axis": (STATE | {"conv_first.weight": torch.tensor(1.0)}, NO_FIT),
    "no channels": (STATE | {"conv_first.weight": torch.zeros(12, 0, 3, 3)}, NO_FIT),
    "states of one axis": (STATE | {f"{BLOCK}.self_attention.A_logs": torch.zeros(60)}, NO_FIT),
    "block of no form": (STATE | {f"{BLOCK}.conv_blk.cab.0.weight": torch.zeros(5, 12)}, "(5, 12)"),
    "no block": ({k: v for k, v in STATE.items() if not k.endswith("skip_scale")}, NO_FIT),
    "group of no number": (STATE | {"layers.x.skip_scale": torch.zeros(12)}, NO_FIT),
    "group far away": (STATE | {"layers.9.skip_scale": torch.zeros(12)}, NO_FIT),
    "scale of no upsampler": (
        network("classic").state_dict() | {"upsample.0.weight": torch.zeros(64 * 49, 64, 3, 3)},
        "x7",
    ),
}
OMNI = network("derain").state_dict()
U_NET = network("unet").state_dict()
BAD_TENSORS |= {
    "Restormer": (
        {k: v for k, v in OMNI.items() if ".attn." not in k}
        | {"a.attn.temperature": torch.ones(1)},
        OTHER,
    ),
    "U-Net of one convolution": ({"patch_embed.proj.weight": torch.zeros(48, 3, 3, 3)}, OTHER),
    "two networks": (U_NET | STATE, "mambair, but does not fit"),
    "two U-Nets": (U_NET | OMNI, "mambair_unet, but does not fit"),
    "two ends": (OMNI | {"tail.0.0.weight": torch.zeros(64, 16, 3, 3)}, NO_FIT),
    "no latent level": ({k: v for k, v in OMNI.items() if not k.startswith("latent")}, NO_FIT),
    "no first level": (
        {k: v for k, v in U_NET.items() if not k.startswith("encoder_level1")},
        "the closest is mambair_unet, as in mambair-denoise-real: missing: encoder_level1.0.",
    ),
    "no decoder": (
        {k: v for k, v in U_NET.items() if not k.startswith("decoder_level2")},
        "decoder_level2",
    ),
    "no block between": (
        {k: v for k, v in OMNI.items() if not k.startswith("encoder_level2.0.")},
        "encoder_level2",
    ),
    "odd width": (OMNI | {"patch_embed.proj.weight": torch.zeros(9, 3, 3, 3)}, "even number"),
    "no width": (OMNI | {"patch_embed.proj.weight": torch.zeros(0, 3, 3, 3)}, NO_FIT),
    "flat convolution": (U_NET | {"patch_embed.proj.weight": torch.zeros(8)}, NO_FIT),
    "three inner channels": (OMNI | {"latent.0.attn.Dsc": torch.zeros(6)}, "channel_inner"),
    "another inner width": (OMNI | {"latent.0.attn.Dsc": torch.zeros(4)}, NO_FIT),
    "no gate": (OMNI | {"latent.0.ffn.project_out.weight": torch.zeros(64, 0, 1, 1)}, NO_FIT),
    "a scalar scan": (U_NET | {"latent.0.self_attention.A_logs": torch.tensor(1.0)}, NO_FIT),
    "nan in a U-Net": (
        U_NET | {"output.weight": U_NET["output.weight"] * torch.nan},
        "NaN or infinite",
    ),
}
BAD_METADATA = {
    "broken": {"text": "{"},
    "deep": {"text": "[" * 100_000},
    "list": {"text": "[1, 2]"},
    "null": {"text": "null"},
    "unknown key": {"embed_dims": 12},
    "nan": {"expand": float("nan")},
    "negative": {"expand": -1.0},
    "huge": {"expand": 1e300},
    "words": {"drop_path_rate": "much"},
    **{f"embed_dim {value}": {"embed_dim": value} for value in (-1, 0, 10**9, "12", None)},
    **{f"d_state {value}": {"d_state": value} for value in (-1, 0, 10**9)},
    **{
        f"depths {value}": {"depths": value}
        for value in (3, [], [[3]], ["a"], [-1], [2, 2], [10**9], "12")
    },
    **{f"upscale {value}": {"upscale": value} for value in (-2, -4, 0, 2, 7, 1.5, 10**9, "4")},
    **{f"in_chans {value}": {"in_chans": value} for value in (0, 1, 4)},
    **{f"{key} x": {key: "x"} for key in ("conv_block", "upsampler", "resi_connection")},
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_of_no_network(refuse, case):
    state, words = BAD_TENSORS[case]
    if case == "number keys":  # which safetensors cannot hold
        refuse(saved(state), "file.pth", words)
    else:
        refuse(safetensors.torch.save(state), "file.safetensors", words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(12).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(12, device="meta"), "_rebuild_meta_tensor"),
    ],
    ids=["sparse", "no values"],
)
def test_tensors_of_other_kinds(refuse, value, words):
    refuse(saved(STATE | {"norm.weight": value}), "file.pth", words, "refused")


def test_numbers_of_8_bits(refuse):
    eighths = {key: value.to(torch.float8_e4m3fn) for key, value in STATE.items()}
    refuse(saved(eighths), "file.pth", "holds float8_e4m3fn instead of floating-point numbers")


CLAIMS = {
    "blocks by name": (
        STATE
        | {f"layers.0.residual_group.blocks.{i}.skip_scale": torch.ones(12) for i in range(400)},
        "too few for 40",
    ),
    "blocks of a U-Net by name": (
        U_NET | {f"refinement.{i}.skip_scale": torch.ones(16) for i in range(400)},
        "too few for 40",
    ),
    "states": (
        STATE | {f"{BLOCK}.self_attention.A_logs": torch.zeros(60, 500_000)},
        "its network would take",
    ),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_nets_are_not_built_before_they_fit(refuse, case, monkeypatch):
    state, words = CLAIMS[case]
    sizes = []
    empty = torch.empty

    def counted(*size, **options):
        tensor = empty(*size, **options)
        sizes.append(0 if tensor.is_meta else tensor.numel())
        return tensor

    content = saved(state)
    monkeypatch.setattr(torch, "empty", counted)
    refuse(content, "file.pth", NO_FIT, words)
    assert sum(sizes) == 0


@pytest.mark.parametrize("expand", [1e5, 1e9])
def test_metadata_of_a_wide_net_take_no_memory(refuse, expand):
    refuse(safe(expand=expand), "file.safetensors", NO_FIT, "its network would take")


def test_more_tensors_than_any_network(refuse):
    many = {f"a{i}": torch.zeros(0) for i in range(10_001)}
    for content, name in ((saved(many), "a.pth"), (safetensors.torch.save(many), "a.safetensors")):
        refuse(content, name, "10,001 tensors, more than any network")


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata_that_do_not_fit(refuse, case):
    refuse(safe(**BAD_METADATA[case]), "file.safetensors", NO_FIT)


@pytest.mark.parametrize(
    "changes",
    [
        *({key: value} for key in ("dim", "d_state") for value in (-1, 0, 7, "8", None)),
        *(
            {"blocks": value}
            for value in (3, [], [1, 2, 1], [1, 2, 1, 3, 1], [1, 2, 1, "3"], [2, 2, 1, 3])
        ),
        *(
            {key: value}
            for key in ("ffn_expand", "expand")
            for value in (float("nan"), -1.0, 0.0, 1e300, "2")
        ),
        *({"refinement": value} for value in (-1, 0, 1)),
        *({"channel_inner": value} for value in (1, 2, 3, "4")),
        *({"upscale": value} for value in (0, 2, 4)),
        {"embed_dim": 8},
        {"multiple": 8},
    ],
    ids=str,
)
def test_metadata_that_do_not_fit_a_u_net(refuse, changes):
    config = json.dumps(asdict(FORMS["derain"]) | changes)
    refuse(safe(OMNI, "vmambair", config), "file.safetensors", "vmambair", NO_FIT)


def test_metadata_without_configuration(refuse):
    refuse(safetensors.torch.save(STATE, {"mambair.arch": "mambair"}), "file.safetensors", NO_FIT)
