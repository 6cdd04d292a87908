"""Files that are no checkpoint of a network known here: each is refused with one line, and nothing else happens."""

import io
import json
import pickle
import struct
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failing import fails
from networks import FORMS, STATE, assert_same_network, network, safe, saved

from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.models import weights
from mambair_cli.models.weights import read_state

BLOCK = "layers.0.residual_group.blocks.0"
CAB = f"{BLOCK}.conv_blk.cab.0.weight"


class Malicious:
    """Unpickled by a careless program, it creates the file CREATED."""

    def __reduce__(self):
        return Path.touch, (Path("CREATED"),)


class OnlyBuiltins:
    """As above, without a class that unpickling might not know."""

    def __reduce__(self):
        return open, ("CREATED", "w")


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def framed(header, data=b"", length=None):
    """The bytes of a safetensors file with this header, and a length of it that may be another."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def placed(*offsets, shape=(2, 2)):
    """The header of a safetensors file of float32 tensors at these offsets."""
    return {
        str(i): {"dtype": "F32", "shape": list(shape), "data_offsets": list(o)}
        for i, o in enumerate(offsets)
    }


def deflated(content):
    """The same zip archive, but compressed."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return file.getvalue()


def claiming(elements):
    """A file of torch.save in the old format whose only storage claims to have so many elements."""
    content = saved({"x": torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    return content.replace(b"M\xe8\x03", b"\x8a\x06" + elements.to_bytes(6, "little"))


GOOD = {
    ".pth": saved(STATE),
    ".old.pth": saved(STATE, _use_new_zipfile_serialization=False),
    ".safetensors": safe(),
}
PHOTO = (Path(__file__).parent / "data" / "osprey.png").read_bytes()
REFUSED, NO_STATE, OTHER, NO_FIT = (
    "could run code",
    "no state dict",
    "another architecture",
    "does not fit",
)
NO_CHECKPOINT = {
    "zero bytes.pth": (b"", ""),
    "zero bytes.safetensors": (b"", ""),
    "text.pth": (b"Not a checkpoint,\nbut two lines of text.\n", ""),
    "text.safetensors": (b"Not a checkpoint,\nbut two lines of text.\n", ""),
    "page.pth": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", ""),
    "photo.pth": (PHOTO, ""),
    "photo.safetensors": (PHOTO, ""),
    "a zip.pth": (zipped(readme="hello"), ""),
    "a zip.safetensors": (zipped(readme="hello"), ""),
    "a zip of a pickle.pth": (
        zipped(**{"archive/data.pkl": pickle.dumps(3), "archive/version": "3"}),
        "",
    ),
    "pth as.safetensors": (GOOD[".pth"], ""),
    "safetensors as.pth": (GOOD[".safetensors"], ""),
    "malicious.pth": (saved({"params": Malicious()}), REFUSED),
    "malicious builtins.pth": (saved({"params": OnlyBuiltins()}), REFUSED),
    "malicious old.pth": (saved([Malicious()], _use_new_zipfile_serialization=False), REFUSED),
    "malicious pickle.pth": (pickle.dumps(Malicious()), REFUSED),
    "malicious text pickle.pth": (pickle.dumps(Malicious(), 0), ""),
    "malicious as.safetensors": (saved(Malicious()), ""),
    "a whole module.pth": (saved(network()), REFUSED),
    "a list.pth": (saved([STATE]), NO_STATE),
    "a tensor.pth": (saved(torch.zeros(3)), NO_STATE),
    "a number.pth": (saved(3), NO_STATE),
    "nothing.pth": (saved(None), NO_STATE),
    "empty.pth": (saved({}), NO_STATE),
    "empty params.pth": (saved({"params": {}}), NO_STATE),
    "among others.pth": (saved(STATE | {"epoch": 3}), NO_STATE),
    "nested.pth": (saved({"generator": STATE}), NO_STATE),
    "no tensor.safetensors": (safetensors.torch.save({}), OTHER),
    "a header of 100 GB.safetensors": (
        framed(placed((0, 16)), bytes(16), length=100 * 10**9),
        "readable safetensors",
    ),
    "a header longer than the file.safetensors": (
        framed(placed((0, 16)), length=10_000),
        "readable safetensors",
    ),
    "a header of nonsense.safetensors": (framed("nonsense"), "readable safetensors"),
    "a header too short.safetensors": (
        framed(placed((0, 16)), bytes(16), length=9),
        "readable safetensors",
    ),
    "overlapping offsets.safetensors": (
        framed(placed((0, 16), (8, 24)), bytes(24)),
        "readable safetensors",
    ),
    "the same offsets.safetensors": (
        framed(placed((0, 16), (0, 16)), bytes(16)),
        "readable safetensors",
    ),
    "offsets behind the end.safetensors": (
        framed(placed((0, 16), (16, 32)), bytes(20)),
        "readable safetensors",
    ),
    "offsets with a hole.safetensors": (
        framed(placed((0, 16), (20, 36)), bytes(36)),
        "readable safetensors",
    ),
    "offsets backwards.safetensors": (framed(placed((16, 0)), bytes(16)), "readable safetensors"),
    "negative offsets.safetensors": (framed(placed((-16, 0)), bytes(16)), "readable safetensors"),
    "offsets of another shape.safetensors": (
        framed(placed((0, 16), shape=(9, 9)), bytes(16)),
        "readable safetensors",
    ),
    "a shape of 2^64.safetensors": (
        framed(placed((0, 16), shape=(2**32, 2**32)), bytes(16)),
        "readable safetensors",
    ),
    "no shape.safetensors": (
        framed({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
        "readable safetensors",
    ),
    "no such type.safetensors": (
        framed({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "readable safetensors",
    ),
    "more behind the end.safetensors": (framed(placed((0, 16)), bytes(99)), "readable safetensors"),
    "compressed.pth": (deflated(saved({"x": torch.zeros(10**6)})), "compressed archive"),
    "a storage of 800 GB.pth": (claiming(2 * 10**11), "damaged"),
    "a view of 80 GB.pth": (
        saved(STATE | {"norm.weight": torch.zeros(1).expand(2 * 10**10)}),
        "larger than the file",
    ),
}
BAD_TENSORS = {
    "another": (
        {"conv_first.weight": torch.zeros(60, 3, 3, 3), "body.0.weight": torch.zeros(3)},
        OTHER,
    ),
    "number keys": (dict(enumerate(STATE.values())), OTHER),
    "MambaIRv2 of one tensor": (
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
        "missing: norm.weight and 1 more; unexpected: a.b; of another shape: upsample.0.bias, (1,) instead of (48,)",
    ),
    "the first is missing": (
        {k: v for k, v in STATE.items() if k != "conv_first.weight"},
        "the closest is mambair, as in mambair-light-c-x2: missing: conv_first.weight",
    ),
    "another first": (
        {k.replace("conv_first", "first"): v for k, v in network("classic").state_dict().items()},
        "the closest is mambair, as in mambair-classic-x2: missing: conv_first.weight and 1 more; unexpected: first.",
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
        "norm.weight is no tensor of floating",
    ),
    "complex": (
        STATE | {"norm.weight": torch.ones(12, dtype=torch.complex64)},
        "norm.weight is no tensor of floating",
    ),
    "one integer": (STATE | {"norm.weight": torch.ones(12, dtype=torch.int64)}, "floating"),
    "nan": (STATE | {"norm.weight": torch.full((12,), torch.nan)}, "finite"),
    "infinite": (STATE | {"norm.weight": torch.full((12,), torch.inf)}, "finite"),
    "first of one axis": (
        STATE | {"conv_first.weight": torch.zeros(12)},
        "the closest is mambair, as in mambair-light-c-x2: of another shape: conv_first.weight, 1 axes instead of 4",
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
    "nan in a U-Net": (U_NET | {"output.weight": U_NET["output.weight"] * torch.nan}, "finite"),
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


@pytest.fixture
def refuse(load, tmp_path, monkeypatch, capfd):
    """Asserts that a file is refused with one line that names it, and that nothing else happens."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refuse_bytes(content, name, *words):
        fails(lambda: load(content, name), CheckpointError, tmp_path / name, *words)
        assert not list(Path().iterdir())
        assert capfd.readouterr() == ("", "")

    return refuse_bytes


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_files_that_are_no_checkpoint(refuse, name):
    started = time.perf_counter()
    refuse(NO_CHECKPOINT[name][0], name, NO_CHECKPOINT[name][1])
    assert time.perf_counter() - started < 5


def test_the_files_are_wrong_by_what_they_are_meant_to_show(load, tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed(placed((0, 16), (16, 32)), bytes(32)))
    assert set(read_state(path).state) == {"0", "1"}
    path = tmp_path / "file.pth"
    path.write_bytes(saved({"x": torch.zeros(1000)}, _use_new_zipfile_serialization=False))
    assert read_state(path).state["x"].shape == (1000,)
    assert path.read_bytes() != claiming(1)


@pytest.mark.parametrize("attack", [Malicious, OnlyBuiltins])
def test_the_attacks_would_work(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    result = pickle.loads(pickle.dumps(attack()))
    if result:
        result.close()
    assert Path("CREATED").exists()


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("kind", GOOD)
def test_truncated_files(refuse, load, kind, share):
    content = GOOD[kind]
    assert_same_network(load(content, f"whole{kind}"), network())
    refuse(content[: int(len(content) * share)], f"part{kind}")


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_of_no_network(refuse, case):
    state, words = BAD_TENSORS[case]
    if case == "number keys":  # which safetensors cannot hold
        refuse(saved(state), "file.pth", words)
    else:
        refuse(safetensors.torch.save(state), "file.safetensors", words)


@pytest.mark.parametrize(
    "value",
    [torch.ones(12).to_sparse(), torch.ones(12, device="meta")],
    ids=["sparse", "no values"],
)
def test_tensors_of_other_kinds(refuse, value):
    refuse(saved(STATE | {"norm.weight": value}), "file.pth", "norm.weight is no plain tensor")


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


def test_a_file_that_may_not_be_read(refuse, monkeypatch):
    def closed(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", closed)
    refuse(b"", "file.pth", "PermissionError")
    monkeypatch.setattr(weights, "safe_open", closed)
    refuse(b"", "file.safetensors", "Permission denied")
    monkeypatch.setattr(Path, "is_file", closed)
    fails(lambda: read_state(Path("file.pth")), CallError, "file.pth", "Permission denied")
