import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mambair_cli.system import files
from mambair_cli.system.files import clear, read_file, read_stream, sha256, write_atomically

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")


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


@needs_pipes
def test_no_file_takes_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(OSError, match="a device or a pipe"):
            write_atomically(tmp_path / name, b"content")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["null", "pipe"]


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # FIPS 180-2, B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(path) == known


# What is read


def test_a_file_is_read_whole(tmp_path):
    path, content = tmp_path / "file", os.urandom(3_000_000)
    path.write_bytes(content)
    assert read_file(path, len(content)) == content
    with pytest.raises(OSError, match="more than 2,999,999 bytes"):
        read_file(path, len(content) - 1)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
@pytest.mark.parametrize("device", ["zero", "full", "null", "urandom", "tty"])
def test_devices_are_not_read(tmp_path, device):
    (tmp_path / "link").symlink_to(f"/dev/{device}")
    for path in (Path("/dev", device), tmp_path / "link"):
        if path.exists():
            with pytest.raises(OSError, match="it is a device"):
                read_file(path)


@needs_pipes
def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    started = time.perf_counter()
    with pytest.raises(OSError, match="nobody writes to"):
        read_file(tmp_path / "pipe")
    assert time.perf_counter() - started < 5


@needs_pipes
def test_a_pipe_with_a_writer_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    content = os.urandom(300_000)

    def write():
        with (tmp_path / "pipe").open("wb") as file:
            for start in range(0, len(content), 100_000):
                time.sleep(0.05)
                file.write(content[start : start + 100_000])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    # Until it waits for a reader.
    time.sleep(0.2)
    assert read_file(tmp_path / "pipe") == content
    writer.join()


@needs_pipes
def test_a_pipe_that_stalls_or_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    number = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(number, b"some bytes")
    with pytest.raises(OSError, match="nothing came for 0 s"):
        read_file(tmp_path / "pipe")
    os.write(number, b"some bytes")
    with pytest.raises(OSError, match="more than 9 bytes"):
        read_file(tmp_path / "pipe", 9)
    os.close(number)


def test_a_stream_without_an_end_is_bounded():
    class Zeros(io.RawIOBase):
        def read(self, size=-1):
            return bytes(size)

    with pytest.raises(OSError, match="more than 5,000,000 bytes"):
        read_stream(Zeros(), 5_000_000)
    assert read_stream(io.BytesIO(b"abc"), 3) == b"abc"


# What killed processes left


LEAVE = """
import os, sys
from pathlib import Path
from mambair_cli.system.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "file"
    command = [sys.executable, "-c", LEAVE, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline().strip() == b"begun"
        (half,) = tmp_path.iterdir()
        # It still writes.
        write_atomically(tmp_path / "other", b"new")
        clear([half])
        assert half.read_bytes() == b"half"
        process.kill()
        process.wait()
        files._cleared.clear()
        write_atomically(path, b"whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]


@pytest.mark.parametrize("owner", ["", "01234567-1-"], ids=["nobody", "another computer"])
@pytest.mark.parametrize(("age", "left"), [(10, True), (files.STALE + 60, False), (-9000, False)])
def test_what_another_computer_writes_is_left_for_an_hour(tmp_path, owner, age, left):
    path = tmp_path / f".mambair-{owner}{'0' * 16}.tmp"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    clear([path])
    assert path.exists() == left


def test_what_a_later_process_of_the_same_number_did_not_write_goes(tmp_path):
    path = tmp_path / f".mambair-{files._owner()}-{'0' * 16}.tmp"
    path.touch()
    clear([path])
    assert path.exists()
    os.utime(path, (1e9, 1e9))
    clear([path, tmp_path / ".mambair-gone.tmp"])
    assert not path.exists()
