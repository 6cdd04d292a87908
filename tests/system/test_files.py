import io
import os
from pathlib import Path

import pytest

from mambair_cli.system.files import sha256, write_atomically


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "replaced"])
@pytest.mark.parametrize("place", ["write", "replace"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, place, existing):
    path = tmp_path / "file"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[:2])
            full()

    if existing:
        path.write_bytes(existing)
    if place == "write":
        monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    else:
        monkeypatch.setattr(Path, place, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new content")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["file"] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    for content in (b"long content", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    path.chmod(0o640)
    write_atomically(path, b"third")
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # FIPS 180-2, B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(path) == known
