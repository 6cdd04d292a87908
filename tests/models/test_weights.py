import pytest
import safetensors.torch
import torch
from networks import FORMS, STATE, assert_same_network, network, safe, saved
from safetensors import safe_open

from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.archs.mambair_unet import MambaIRUNetConfig
from mambair_cli.archs.mambairv2 import MambaIRv2Config
from mambair_cli.archs.vmambair import VmambaIRConfig
from mambair_cli.errors import CheckpointError
from mambair_cli.models import weights
from mambair_cli.models.recognise import describe, load_network
from mambair_cli.models.weights import (
    bundled_folder,
    in_run,
    read_state,
    save_network,
    task_of,
    without_prefix,
)

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


def test_weights_lie_inside_a_wheel_and_beside_the_package_in_a_clone(tmp_path, monkeypatch):
    module = tmp_path / "site" / "mambair_cli" / "models" / "weights.py"
    monkeypatch.setattr(weights, "__file__", str(module))
    assert bundled_folder() == tmp_path / "site" / "weights"
    inside = tmp_path / "site" / "mambair_cli" / "weights"
    inside.mkdir(parents=True)
    assert bundled_folder() == inside


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


def test_the_folder_of_a_run_stands_for_its_weights(tmp_path):
    """The last ones, or the best so far; a folder that is no run stands for itself."""
    assert in_run(tmp_path) == tmp_path
    for name in ("best.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
        assert in_run(tmp_path) == tmp_path / name
        assert in_run(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(
    "prefix", ["module.", "net_g.", "netG.", "model.", "generator.", "_orig_mod.", "model.net_g."]
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("form", ["light_c", "v2_light", "unet", "derain"])
def test_a_prefix_that_all_names_have_is_taken_off(tmp_path, form, suffix, prefix):
    model = network(form)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(saved({"params": state}) if suffix == "pth" else safetensors.torch.save(state))
    assert_same_network(load_network(path)[0], model)
    wrapping = prefix if suffix == "safetensors" else f"params, {prefix}"
    assert read_state(path).wrapping == wrapping


def test_a_prefix_that_some_names_have_is_part_of_them():
    state = {"model.a": STATE["norm.bias"], "b": STATE["norm.bias"]}
    assert without_prefix(state) == (state, "")
    assert without_prefix({}) == ({}, "")


@pytest.mark.parametrize("prefix", ["", "net_g."])
def test_files_with_and_without_the_indices_of_windows(tmp_path, prefix):
    model = network("v2")
    state = {prefix + key: value for key, value in model.state_dict().items()}
    name = f"{prefix}relative_position_index_SA"
    for given in (state, {key: value for key, value in state.items() if key != name}):
        (tmp_path / "net.pth").write_bytes(saved(given))
        assert_same_network(load_network(tmp_path / "net.pth")[0], model)
    state[name] = state[name] + 1
    (tmp_path / "net.pth").write_bytes(saved(state))
    with pytest.raises(CheckpointError, match="relative_position_index_SA holds other numbers"):
        load_network(tmp_path / "net.pth")
