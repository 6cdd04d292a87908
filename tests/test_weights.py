import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failing import fails
from networks import FORMS, network, picture
from safetensors import safe_open

from mambair_cli import weights
from mambair_cli.archs.mambair import MambaIR
from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.registry import MODELS
from mambair_cli.weights import (
    bundled_folder,
    find_checkpoint,
    load_network,
    read_state,
    save_network,
    write_atomically,
)

STATE = network().state_dict()
BLOCK = "layers.0.residual_group.blocks.0"


def saved(content, **options):
    """The bytes of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def safe(state=STATE, arch="mambair", text=None, **changes):
    """The bytes of a safetensors file as training writes it; changes: of the configuration, text: instead."""
    text = text or json.dumps(asdict(FORMS["light_c"]) | changes)
    return safetensors.torch.save(dict(state), {"mambair.arch": arch, "mambair.config": text})


@pytest.fixture
def load(tmp_path):
    def load_bytes(content, name="file.pth"):
        path = tmp_path / name
        path.write_bytes(content)
        return load_network(path)[0]

    return load_bytes


def assert_same_network(found, expected):
    assert type(found) is MambaIR
    assert found.config == expected.config
    assert not found.training
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    image = picture(7, 9, channels=expected.config.in_chans)
    with torch.inference_mode():
        assert torch.equal(found(image), expected(image))


# Where a checkpoint lives


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_bundled_models_are_found_by_name(row):
    assert find_checkpoint(row.name) == bundled_folder() / row.file


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_bundled_weights(tmp_path, monkeypatch, damage):
    row, name = MODELS[0], MODELS[0].file
    if damage == "changed":
        content = bytearray((bundled_folder() / name).read_bytes())
        content[-1] ^= 1
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(weights, "bundled_folder", lambda: tmp_path)
    fails(lambda: find_checkpoint(row.name), CheckpointError, tmp_path / name, "install mambair again")


def test_weights_lie_inside_a_wheel_and_beside_the_package_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "site" / "mambair_cli" / "weights.py"))
    assert bundled_folder() == tmp_path / "site" / "weights"
    inside = tmp_path / "site" / "mambair_cli" / "weights"
    inside.mkdir(parents=True)
    assert bundled_folder() == inside


def test_files_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bare").write_bytes(b"")
    assert find_checkpoint("bare") == find_checkpoint(Path("bare")) == Path("bare")
    Path("tiny-x4").write_bytes(b"")  # the registered model comes first; ./tiny-x4 would be this file
    assert find_checkpoint("tiny-x4").parent == bundled_folder()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-x9", ["did you mean tiny-x"]),
        ("swinir", ["tiny-x2, tiny-x4", "file"]),
        ("missing.pth", ["is missing"]),
        ("tiny-x4.safetensors", ["is missing"]),
        ("folder", ["folder is a folder"]),
        ("folder.pth", ["folder.pth is a folder"]),
        ("folder/none.pth", ["is missing"]),
        (".", ["is a folder"]),
        ("", ["is a folder"]),
        ("x" * 300, []),
        ("x" * 300 + ".pth", []),
        ("zero\0", ["no model"]),
        ("zero\0.pth", ["is missing"]),
    ],
)
def test_names_of_nothing(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.pth"):
        Path(folder).mkdir()
    fails(lambda: load_network(find_checkpoint(name)), CallError, name.split("\0")[0] or ".", *words)


# Files that are right


@pytest.mark.parametrize("form", FORMS)
def test_own_files_keep_the_network(tmp_path, form):
    model = network(form, drop_path_rate=0.25)
    path = tmp_path / "own.safetensors"
    save_network(path, model, model.state_dict(), {"iterations": 7, "psnr": 30.5})
    found, arch = load_network(path)
    assert arch == "mambair"
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
    "params, module.": lambda state: {"params": {f"module.{key}": value for key, value in state.items()}},
    "params and params_ema": lambda state: {
        "params": {key: value + 1 for key, value in state.items()},
        "params_ema": state,
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("form", FORMS)
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
    state, metadata = read_state(path)
    assert set(metadata) == {"mambair.arch", "mambair.config"}
    assert state.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[key]) for key, value in state.items())
    (tmp_path / "file.pth").write_bytes(saved({"params": STATE}))
    assert read_state(tmp_path / "file.pth")[1] == {}


# Files that are wrong


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


GOOD = {
    ".pth": saved(STATE),
    ".old.pth": saved(STATE, _use_new_zipfile_serialization=False),
    ".safetensors": safe(),
}
PHOTO = (Path(__file__).parent / "data" / "osprey.png").read_bytes()
REFUSED, NO_STATE, OTHER, NO_FIT = "could run code", "no state dict", "another architecture", "does not fit"
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
    "a zip of a pickle.pth": (zipped(**{"archive/data.pkl": pickle.dumps(3), "archive/version": "3"}), ""),
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
}
BAD_TENSORS = {
    "another": ({"conv_first.weight": torch.zeros(60, 3, 3, 3), "body.0.weight": torch.zeros(3)}, OTHER),
    "number keys": (dict(enumerate(STATE.values())), OTHER),
    "MambaIRv2": ({"layers.0.residual_group.layer.0.assm.embeddingA.weight": torch.zeros(3)}, "MambaIRv2"),
    "missing": ({k: v for k, v in STATE.items() if k != "norm.weight"}, "norm.weight"),
    "extra": (STATE | {"norm.scale": torch.zeros(3)}, "norm.scale"),
    "shape": (STATE | {"norm.weight": torch.zeros(3)}, "norm.weight"),
    "integers": ({k: v.to(torch.int8) for k, v in STATE.items()}, "floating"),
    "one integer": (STATE | {"norm.weight": torch.ones(12, dtype=torch.int64)}, "floating"),
    "nan": (STATE | {"norm.weight": torch.full((12,), torch.nan)}, "finite"),
    "infinite": (STATE | {"norm.weight": torch.full((12,), torch.inf)}, "finite"),
    "first of one axis": (STATE | {"conv_first.weight": torch.zeros(12)}, NO_FIT),
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
    **{f"depths {value}": {"depths": value} for value in (3, [], [[3]], ["a"], [-1], [2, 2], [10**9], "12")},
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
    refuse(NO_CHECKPOINT[name][0], name, NO_CHECKPOINT[name][1])


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
    refuse(saved(state), "file.pth", words)
    if case != "number keys":
        refuse(safetensors.torch.save(state), "file.safetensors", words)


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata_that_do_not_fit(refuse, case):
    refuse(safe(**BAD_METADATA[case]), "file.safetensors", NO_FIT)


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


# Writing


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
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert all(re.fullmatch("[0-9a-f]{64}", row.sha256) for row in MODELS)
