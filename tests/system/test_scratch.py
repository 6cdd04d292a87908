import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from failing import fails

from mambair_cli.errors import RestorationError
from mambair_cli.system import scratch


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 1000)


def lies_on_disk(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


def resident(kind="RssFile"):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(999,), (40, 50, 3), (70, 80)], ids=str)
def test_arrays_of_any_size(small_limit, tmp_path, monkeypatch, shape, dtype):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    array = scratch.allocate(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert lies_on_disk(array) == (array.nbytes >= 1000)
    values = np.arange(array.size).reshape(shape).astype(dtype)
    array[...] = values
    scratch.release(array, array[:1], values)
    np.testing.assert_array_equal(array, values)
    assert not list(tmp_path.iterdir())  # nothing is left even where the process is killed


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_what_is_released_takes_no_memory():
    array = scratch.allocate((scratch.LARGE,), "uint8")
    before = resident()
    for start in range(0, array.size, 2**24):
        array[start : start + 2**24] = 7
        scratch.release(array)
    assert resident() - before < 2**25
    assert array[::4096].min() == 7


@pytest.mark.parametrize("fallocate", [True, False])
def test_a_full_disk_is_told_before_the_work(small_limit, monkeypatch, fallocate):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if fallocate:
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(os, "write", full)
    fails(
        lambda: scratch.allocate((10, 1000), "float32"), RestorationError, "No space left", "TMPDIR"
    )


def test_room_is_made_where_the_system_cannot_reserve(small_limit, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    array = scratch.allocate((3 * 2**20 + 5,), "uint8")
    array[-1] = 3
    assert lies_on_disk(array)
    assert array[-1] == 3


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    assert str(scratch.folder()) == "/var/tmp" if os.access("/var/tmp", os.W_OK) else True
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch.folder() == tmp_path
