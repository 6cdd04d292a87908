import json
import re
from collections import OrderedDict
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from failing import fails
from networks import FORMS, STATE, assert_same_network, network, safe, saved

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.models.catalog import list_models, model_named
from mambair_cli.models.recognise import check_model, convert, describe, load_network
from mambair_cli.models.weights import bundled_folder, read_state, save_network
from mambair_cli.system.files import sha256

# Files that are right


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
        "sha256": sha256(path),
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
    check_model(row, facts, "the file")
    fails(
        lambda: check_model(model_named("tiny-x4"), facts, "the file"),
        CheckpointError,
        "is not tiny-x4",
        "mambair x2",
    )


@pytest.mark.parametrize(
    "row",
    [row for row in list_models() if row.name.startswith("mambair-light")],
    ids=lambda row: row.name,
)
def test_light_nets_of_all_generations_are_told_apart(tmp_path, row):
    """By a file as its authors would write it."""
    path = tmp_path / "light.pth"
    path.write_bytes(saved({"params": MambaIR(MambaIRConfig(**row.config)).state_dict()}))
    facts = describe(path)
    assert facts["like"] == [row.name]
    check_model(row, facts, "the file")


# Converting


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


def test_known_digests_are_written_whole():
    assert all(re.fullmatch("[0-9a-f]{64}", row.sha256) for row in list_models() if row.verified)
