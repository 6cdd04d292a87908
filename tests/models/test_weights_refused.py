"""Files that are no checkpoint: each is refused with one line, and nothing else happens."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failing import fails
from networks import STATE, assert_same_network, network, safe, saved

from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.models import weights
from mambair_cli.models.torch_file import read_torch_file
from mambair_cli.models.weights import read_state


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
PHOTO = (Path(__file__).parents[1] / "data" / "osprey.png").read_bytes()
REFUSED, NO_STATE, OTHER = "could run code", "no state dict", "another architecture"
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


def test_a_header_of_many_names(refuse):
    names = {
        f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)
    }
    refuse(framed(names, b"1"), "file.safetensors", "its header is")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_files_of_other_kinds(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        fails(lambda p=path: read_state(p), CallError, path, "is a device or a pipe, not a file")


def test_a_file_that_may_not_be_read(refuse, monkeypatch):
    def closed(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "is_zipfile", closed)
    refuse(b"", "file.pth", "PermissionError")
    monkeypatch.setattr(weights, "safe_open", closed)
    refuse(b"", "file.safetensors", "Permission denied")
    monkeypatch.setattr(Path, "is_file", closed)
    fails(lambda: read_state(Path("file.pth")), CallError, "file.pth", "Permission denied")


def test_a_million_tensors_are_refused_at_once(tmp_path):
    entry = '"{}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'
    text = ",".join(entry.format(i, 4 * i, 4 * i + 4) for i in range(10**6)).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes((len(text) + 2).to_bytes(8, "little") + b"{" + text + b"}" + bytes(4 * 10**6))
    started = time.perf_counter()
    for read in (read_state, weights.task_of):
        fails(lambda read=read: read(path), CheckpointError, "header is", "refused")
    assert time.perf_counter() - started < 5


def test_the_task_of_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"nonsense" * 10)
    fails(lambda: weights.task_of(path), CheckpointError, "no readable safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_devices_and_pipes_are_no_checkpoints(tmp_path, suffix):
    pipe, link = tmp_path / f"pipe{suffix}", tmp_path / f"zero{suffix}"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        fails(lambda path=path: read_state(path), CallError, "a device or a pipe")
        fails(lambda path=path: read_torch_file(path), CheckpointError, "no regular file")
