import json
import os
import re
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failing import fails
from networks import FORMS, STATE, assert_same_network, network, safe, saved
from safetensors import safe_open

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.archs.mambair_unet import MambaIRUNetConfig
from mambair_cli.archs.mambairv2 import MambaIRv2Config
from mambair_cli.archs.vmambair import VmambaIRConfig
from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.models import weights
from mambair_cli.models.catalog import MODELS, model_named
from mambair_cli.models.weights import (
    bundled_folder,
    check_row,
    convert,
    describe,
    load_network,
    read_state,
    save_network,
    task_of,
    write_atomically,
)

# Files that are right


# What the tensors do not tell, or not exactly.
HIDDEN = {
    MambaIRConfig: ("mambair", {"drop_path_rate": 0.25}),
    MambaIRv2Config: ("mambairv2", {"expand": 1.51}),
    MambaIRUNetConfig: ("mambair_unet", {"expand": 1.51}),
    VmambaIRConfig: ("vmambair", {"ffn_expand": 2.51}),
}


@pytest.mark.parametrize("form", FORMS)
def test_own_files_keep_the_network(tmp_path, form):
    expected_arch, changes = HIDDEN[type(FORMS[form])]
    model = network(form, **changes)
    path = tmp_path / "own.safetensors"
    save_network(path, model, model.state_dict(), {"iterations": 7, "psnr": 30.5})
    found, arch = load_network(path)
    assert arch == expected_arch
    assert_same_network(found, model)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["mambair.iterations"] == "7"
    assert metadata["mambair.psnr"] == "30.5"
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.safetensors"]


WRAPPINGS = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 1e-3}},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "params, module.": lambda state: {
        "params": {f"module.{key}": value for key, value in state.items()}
    },
    "params and params_ema": lambda state: {
        "params": {key: value + 1 for key, value in state.items()},
        "params_ema": state,
    },
}


@pytest.mark.parametrize(
    ("form", "wrapping"),
    [*((form, "params") for form in FORMS), *(("light_c", wrapping) for wrapping in WRAPPINGS)],
)
def test_official_files_are_recognised(load, form, wrapping):
    expected = network(form)
    assert_same_network(load(saved(WRAPPINGS[wrapping](expected.state_dict()))), expected)


@pytest.mark.parametrize("depths", [(1,), (2, 1, 3)])
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        *(("classic", {"upscale": s, "d_state": 5}) for s in (2, 3, 4, 8)),
        *(("light_c", {"upscale": s, "embed_dim": 16, "expand": 1.5}) for s in (2, 3, 4)),
        ("light_a", {"resi_connection": "3conv", "in_chans": 1}),
    ],
    ids=str,
)
def test_shapes_are_read_off_the_tensors(load, form, changes, depths):
    expected = network(form, depths=depths, **changes)
    assert_same_network(load(saved(expected.state_dict())), expected)


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("derain", {"blocks": (1, 1, 1, 1)}),
        ("unet", {"dim": 12, "expand": 1.25, "refinement": 0}),
        ("unet", {"in_chans": 1, "upscale": 2}),
        ("derain", {"dim": 10, "d_state": 3, "expand": 1.5}),
        *(("derain_variant", {"ffn_expand": 1.75, "upscale": s}) for s in (1, 2, 3, 4, 8)),
        *(("real_sr", {"expand": 0.5, "upscale": s}) for s in (1, 4)),
    ],
    ids=str,
)
def test_shapes_of_u_nets_are_read_off_the_tensors(load, form, changes):
    expected = network(form, **{"blocks": (2, 3, 1, 2)} | changes)
    assert_same_network(load(saved(expected.state_dict())), expected)


def test_other_containers(load):
    expected = network()
    assert_same_network(load(saved(STATE, _use_new_zipfile_serialization=False)), expected)
    assert_same_network(load(saved(STATE), "without suffix"), expected)
    assert_same_network(load(safetensors.torch.save(STATE), "file.safetensors"), expected)
    assert_same_network(load(safetensors.torch.save(STATE), "file.SafeTensors"), expected)
    assert_same_network(load(saved({k: torch.nn.Parameter(v) for k, v in STATE.items()})), expected)
    assert_same_network(load(safe(arch="of the future"), "file.safetensors"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_precision_becomes_float32(load, dtype):
    stored = {key: value.to(dtype) for key, value in STATE.items()}
    expected = network()
    expected.load_state_dict({key: value.float() for key, value in stored.items()})
    for content, name in ((saved(stored), "file.pth"), (safe(stored), "file.safetensors")):
        assert_same_network(load(content, name), expected)


def test_metadata_tell_what_the_tensors_do_not(load):
    # 1.27 * 12 and 1.25 * 12 are both 15 channels.
    found = load(safe(expand=1.27, drop_path_rate=0.25), "file.safetensors")
    assert found.config == replace(FORMS["light_c"], expand=1.27, drop_path_rate=0.25)


def test_read_state(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(safe())
    state, metadata, wrapping = read_state(path)
    assert wrapping == ""
    assert set(metadata) == {"mambair.arch", "mambair.config"}
    assert state.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[key]) for key, value in state.items())
    (tmp_path / "file.pth").write_bytes(saved({"params": STATE}))
    assert read_state(tmp_path / "file.pth")[1:] == ({}, "params")
    (tmp_path / "file.pth").write_bytes(
        saved({"state_dict": {f"module.{key}": v for key, v in STATE.items()}})
    )
    assert read_state(tmp_path / "file.pth").wrapping == "state_dict, module."


# What lies with the package


def test_weights_lie_inside_a_wheel_and_beside_the_package_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "site" / "mambair_cli" / "weights.py"))
    assert bundled_folder() == tmp_path / "site" / "weights"
    inside = tmp_path / "site" / "mambair_cli" / "weights"
    inside.mkdir(parents=True)
    assert bundled_folder() == inside


# What a file is


def test_a_file_is_described(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(
        saved({"params_ema": {f"module.{key}": value.half() for key, value in STATE.items()}})
    )
    assert describe(path) == {
        "file": str(path),
        "arch": "mambair",
        "task": None,
        "scale": 4,
        "config": asdict(FORMS["light_c"]),
        "parameters": sum(value.numel() for value in STATE.values()),
        "tensors": len(STATE),
        "dtype": "float16",
        "wrapping": "params_ema, module.",
        "metadata": {},
        "bytes": path.stat().st_size,
        "sha256": weights.sha256(path),
        "like": [],
    }


def test_a_bundled_file_is_described():
    row = model_named("tiny-x2")
    facts = describe(bundled_folder() / row.file)
    assert facts["like"] == ["tiny-x2"]
    assert (facts["sha256"], facts["parameters"], facts["scale"]) == (
        row.sha256,
        row.parameters,
        row.scale,
    )
    assert (facts["dtype"], facts["wrapping"]) == ("float16", "none")
    assert facts["metadata"]["mambair.recipe"] == "tiny-x2"
    check_row(row, facts, "the file")
    fails(
        lambda: check_row(model_named("tiny-x4"), facts, "the file"),
        CheckpointError,
        "no tiny-x4",
        "mambair x2",
    )


@pytest.mark.parametrize(
    "row", [row for row in MODELS if row.name.startswith("mambair-light")], ids=lambda row: row.name
)
def test_light_nets_of_all_generations_are_told_apart(tmp_path, row):
    """By a file as its authors would write it."""
    path = tmp_path / "light.pth"
    path.write_bytes(saved({"params": MambaIR(MambaIRConfig(**row.config)).state_dict()}))
    facts = describe(path)
    assert facts["like"] == [row.name]
    check_row(row, facts, "the file")


def test_the_task_of_a_file(tmp_path):
    model = network("denoise")
    save_network(tmp_path / "net.safetensors", model, model.state_dict(), {"task": "derain"})
    assert (
        task_of(tmp_path / "net.safetensors")
        == describe(tmp_path / "net.safetensors")["task"]
        == "derain"
    )
    (tmp_path / "net.pth").write_bytes(saved(STATE))
    assert task_of(tmp_path / "net.pth") is None


# Writing


def test_the_same_content_has_the_same_bytes(tmp_path):
    model, notes = (
        network("denoise"),
        {"task": "derain", **{letter: f"{letter}é" for letter in "abcdefgh"}},
    )
    state = {
        key: value.half() if "norm" in key else value for key, value in model.state_dict().items()
    }
    for i, order in enumerate((dict, lambda items: dict(reversed(items.items())))):
        for repeat in range(3):
            save_network(tmp_path / f"{i}{repeat}.safetensors", model, order(state), order(notes))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    found = read_state(tmp_path / "00.safetensors")
    assert found.metadata["mambair.h"] == "hé"
    assert found.state.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.state.items())


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *((form, torch.float16) for form in FORMS),
        ("light_c", torch.float32),
        ("light_c", torch.bfloat16),
    ],
    ids=str,
)
def test_a_file_is_converted(tmp_path, form, dtype):
    state = {key: value.to(dtype) for key, value in network(form).state_dict().items()}
    (tmp_path / "a.pth").write_bytes(saved({"params": state}))
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    found, metadata, _ = read_state(tmp_path / "b.safetensors")
    assert list(found) == sorted(state)
    assert all(torch.equal(found[key], state[key]) and found[key].dtype == dtype for key in state)
    assert json.loads(metadata["mambair.config"])["upscale"] == FORMS[form].upscale
    assert_same_network(
        load_network(tmp_path / "b.safetensors")[0], load_network(tmp_path / "a.pth")[0]
    )


def test_what_a_converted_file_keeps(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safe(expand=1.27))
    convert(tmp_path / "a.safetensors", tmp_path / "b.SafeTensors")
    assert load_network(tmp_path / "b.SafeTensors")[0].config.expand == 1.27
    model = network("denoise")
    save_network(
        tmp_path / "a.safetensors", model, model.state_dict(), {"task": "derain", "iterations": 7}
    )
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (
        read_state(tmp_path / "b.safetensors").metadata
        == read_state(tmp_path / "a.safetensors").metadata
    )


def test_tensors_that_share_their_memory_are_converted(tmp_path):
    state = dict(STATE)
    state["norm.bias"] = state["patch_embed.norm.bias"]
    (tmp_path / "a.pth").write_bytes(saved(state))
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert torch.equal(
        read_state(tmp_path / "b.safetensors").state["norm.bias"], state["norm.bias"]
    )


def test_files_that_cannot_be_converted(tmp_path):
    for name, content in (("a.pth", saved(STATE)), ("bad.pth", saved({"x": torch.zeros(3)}))):
        (tmp_path / name).write_bytes(content)
    fails(
        lambda: convert(tmp_path / "a.pth", tmp_path / "b.pth"), CallError, "b.pth", ".safetensors"
    )
    fails(
        lambda: convert(tmp_path / "c.pth", tmp_path / "b.safetensors"),
        CallError,
        "c.pth is missing",
    )
    fails(
        lambda: convert(tmp_path / "bad.pth", tmp_path / "b.safetensors"),
        CheckpointError,
        "bad.pth",
        "another architecture",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "bad.pth"]


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "replaced"])
@pytest.mark.parametrize("place", ["write_bytes", "replace"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, place, existing):
    path, write = tmp_path / "file", Path.write_bytes

    def full(self, content):
        if place == "write_bytes":
            write(self, content[:2])
        raise OSError(28, "No space left on device")

    if existing:
        path.write_bytes(existing)
    monkeypatch.setattr(Path, place, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new content")
    assert [entry.name for entry in tmp_path.iterdir()] == (["file"] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    for content in (b"long content", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    digest = weights.sha256(path)
    assert (
        digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, B.1
    assert all(re.fullmatch("[0-9a-f]{64}", row.sha256) for row in MODELS if row.verified)
