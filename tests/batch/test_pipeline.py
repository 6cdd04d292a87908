import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from doubler import SETTINGS, Doubler, doubled
from failing import fails
from folders import (
    check_results,
    end,
    files_in,
    full_disk,
    lines,
    make,
    pixels_of,
    run,
    start,
    statuses,
)

from mambair_cli.batch import pipeline as batch
from mambair_cli.batch.jobs import find_jobs
from mambair_cli.batch.manifest import MANIFEST, Manifest
from mambair_cli.batch.pipeline import Batch
from mambair_cli.errors import CallError, ImageError, MemoryLimitError
from mambair_cli.images.io import Image, read_image, write_image
from mambair_cli.restore.size import Size

pytestmark = pytest.mark.usefixtures("empty_folder")


# Failures


def test_a_bad_file_does_not_stop_the_others(monkeypatch, caplog):
    make(
        "in/a.png",
        "in/cut.png",
        "in/gone.png",
        "in/memory.png",
        "in/bug.png",
        "in/z.png",
        "in/deep/x.png",
    )
    Path("in/cut.png").write_bytes(Path("in/a.png").read_bytes()[:400])
    Path("in/empty.png").touch()
    Path("out").mkdir()
    # where a folder should be
    Path("out/deep").touch()
    Path("in/fifo.jpg").mkdir()
    sick = {
        pixels_of(3).tobytes(): MemoryLimitError("does not fit"),
        pixels_of(4).tobytes(): ValueError("a bug"),
    }

    def at_work(image):
        Path("in/gone.png").unlink(missing_ok=True)
        if error := sick.get(image.pixels.tobytes()):
            raise error

    caplog.set_level("INFO", "mambair_cli.batch.pipeline")
    records = run(restorer=Doubler(at_work))
    assert statuses(records) == {
        "a.png": "ok", "bug.png": "failed", "cut.png": "failed", "empty.png": "failed", "gone.png": "failed",
        "memory.png": "failed", "x.png": "failed", "z.png": "ok",
    }  # fmt: skip
    for name, words in {
        "bug.png": "in/bug.png: ValueError: a bug",
        "cut.png": "in/cut.png: damaged",
        "empty.png": "in/empty.png: the file is empty",
        "gone.png": "in/gone.png: no such file",
        "memory.png": "does not fit",
        "x.png": "out/deep is a file, not a folder",
    }.items():
        assert words in records[name].error
    assert [entry.exc_info[0] for entry in caplog.records] == [ValueError]
    assert files_in() == [MANIFEST, "a.png", "deep", "z.png"]
    assert len(lines()) == 8


def test_a_wrong_call_stops_all():
    def at_work(image):
        if image.pixels.tobytes() == pixels_of(1).tobytes():
            raise CallError("the model does not reach that")

    make(*(f"in/{i}.png" for i in range(4)))
    fails(lambda: run(restorer=Doubler(at_work)), CallError, "does not reach")
    assert statuses(run.told) == {"0.png": "ok"}


def test_a_full_disk_stops_all(monkeypatch):
    class Full(io.FileIO):
        write = full_disk

    def open_full(path, mode="r", *rest, original=Path.open, **options):
        if mode == "xb" and len(files_in()) > 2:
            return Full(path, mode)
        return original(path, mode, *rest, **options)

    make(*(f"in/{i}.png" for i in range(9)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        patch.setattr(batch, "PIXELS_BEHIND", 0)
        fails(run, ImageError, "stopped, as nothing more can be written")
    assert statuses(run.told) == {"0.png": "ok", "1.png": "ok", "2.png": "failed"}
    assert run.told["2.png"].error == "out/2.png: cannot be written: No space left on device"
    assert files_in() == [MANIFEST, "0.png", "1.png"]
    assert list(statuses(run()).values()) == 2 * ["skipped"] + 7 * ["ok"]


def test_a_disk_that_is_full_only_for_the_manifest(monkeypatch):
    make("in/a.png", "in/b.png")
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *rest, original=Path.open, **options: (
        full_disk() if path.name == MANIFEST and "a" in mode else original(path, mode, *rest, **options)
    ))  # fmt: skip
    fails(run, ImageError, "stopped")
    assert run.told["a.png"].error == f"out/{MANIFEST}: cannot be written: No space left on device"
    np.testing.assert_array_equal(read_image(Path("out/a.png")).pixels, doubled(pixels_of(0)))


@pytest.fixture
def small_disk():
    """A folder on a file system of 128 KiB of its own."""
    Path("small").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", "small"]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            yield Path("small")
            subprocess.run(["umount", "-l", "small"], check=True)
            return
    pytest.skip("a file system cannot be mounted here")


def test_a_small_disk(small_disk):
    # which become some 20 kB each
    make(*(f"in/{i}.png" for i in range(12)), size=64)
    fails(lambda: run(output="small/out"), ImageError, "stopped")
    done = [name for name, record in run.told.items() if record.status == "ok"]
    assert 2 <= len(done) < 12
    assert any("No space left on device" in (record.error or "") for record in run.told.values())
    found = files_in("small/out")
    # nothing half-written
    assert set(found) - set(done) <= {MANIFEST}
    for name in done:
        np.testing.assert_array_equal(
            read_image(Path("small/out", name)).pixels, doubled(read_image(Path("in", name)).pixels)
        )


def test_folders_that_cannot_be_written(monkeypatch):
    make("in/a.png", "in/b/c.png")
    fails(lambda: run(output="/proc/out"), ImageError, "/proc/out: cannot be created")
    Path("out/b").mkdir(parents=True)
    closed = {Path("out/b").resolve()}
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve() not in closed)
    records = run()
    assert statuses(records) == {"a.png": "ok", "c.png": "failed"}
    assert "out/b/c.png: no permission to write into" in records["c.png"].error
    closed.add(Path("out").resolve())
    fails(run, ImageError, "out: no permission to write into it")


def test_a_folder_that_cannot_be_listed(monkeypatch):
    make("in/a.png", "in/closed/b.png", "in/open/c.png")

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(
        os,
        "scandir",
        lambda path, scan=os.scandir: denied(path) if "closed" in str(path) else scan(path),
    )
    monkeypatch.setattr(
        os,
        "open",
        lambda path, *flags, open=os.open, **options: (
            denied(path) if Path(path).name == "closed" else open(path, *flags, **options)
        ),
    )
    records = run()
    assert statuses(records) == {"a.png": "ok", "closed": "failed", "c.png": "ok"}
    assert records["closed"].error == "in/closed: cannot be read: Permission denied"


NAMES = [
    "two  words.png",
    "Übergröße 写真.png",
    "[red]x.png",
    "-x.png",
    "two\nlines.png",
    f"{'x' * 196}.png",
    "%s {0}.png",
]


def test_names():
    make(*(f"in/{name}" for name in NAMES))
    make("in/long folder/" + "y" * 251 + ".png")
    undecodable = os.fsdecode(b"\xff\xc3.png")
    if sys.platform == "linux":
        make(f"in/{undecodable}")
        NAMES.append(undecodable)
    assert set(statuses(run()).values()) == {"ok"}
    assert files_in() == sorted([MANIFEST, *NAMES, "long folder/" + "y" * 251 + ".png"])
    assert set(statuses(run()).values()) == {"skipped"}
    # too long for one of them
    records = run(suffix="_x2")
    assert [name[0] for name, record in records.items() if record.status == "failed"] == ["y"]
    assert "File name too long" in records["y" * 251 + ".png"].error


@pytest.mark.parametrize("place", ["read", "work", "write"])
def test_an_interrupt_ends_after_what_is_computed(monkeypatch, place):
    make(*(f"in/{i}.png" for i in range(6)))
    third = pixels_of(2).tobytes()

    def interrupt(image):
        if image.pixels.tobytes() in (third, doubled(pixels_of(2)).tobytes()):
            raise KeyboardInterrupt

    def slow_write(path, image, quality, write=write_image):
        time.sleep(0.05)
        if place == "write":
            interrupt(image)
        return write(path, image)

    def read(path, **options):
        image = read_image(path, **options)
        if place == "read":
            interrupt(image)
        return image

    with monkeypatch.context() as patch:
        patch.setattr(batch, "read_image", read)
        patch.setattr(batch, "write_image", slow_write)
        with pytest.raises(KeyboardInterrupt):
            run(restorer=Doubler(interrupt if place == "work" else lambda image: None))
    done = statuses(run.told)
    assert {"0.png": "ok", "1.png": "ok"}.items() <= done.items()
    assert "2.png" not in done
    assert {name for name, status in statuses(run()).items() if status == "skipped"} >= {
        "0.png",
        "1.png",
    }


# Reading, restoring and writing at once


def stages(monkeypatch, read, write):
    """Have `read` and `write` called by the threads that read and write, with the number of the
    file.
    """

    def reading(path, **options):
        read(int(path.stem))
        return read_image(path, **options)

    def writing(path, image, quality):
        write(int(path.stem))
        return write_image(path, image, quality=quality)

    monkeypatch.setattr(batch, "read_image", reading)
    monkeypatch.setattr(batch, "write_image", writing)


def test_reading_restoring_and_writing_overlap(monkeypatch):
    count = 6
    make(*(f"in/{i}.png" for i in range(count)))
    meetings = {step: threading.Barrier(3, timeout=30) for step in range(2, count)}

    def meet(step):
        if step in meetings:
            meetings[step].wait()

    numbers = iter(range(count))
    stages(monkeypatch, lambda i: meet(i), lambda i: meet(i + 2))
    assert set(statuses(run(restorer=Doubler(lambda image: meet(next(numbers) + 1)))).values()) == {
        "ok"
    }


@pytest.mark.parametrize(("budget", "most"), [(0, 0), (32 * 32, 0), (2 * 32 * 32, 1), (10**9, 8)])
def test_memory_is_bounded(monkeypatch, budget, most):
    make(*(f"in/{i}.png" for i in range(9)))
    read, computed, written = [], [], []

    def at_work(image):
        computed.append(1)
        time.sleep(0.01)
        assert len(read) <= len(computed) + 1
        behind.append(len(computed) - 1 - len(written))

    def write(number):
        time.sleep(0.1 if most > 1 else 0.01)
        written.append(number)

    behind = []
    stages(monkeypatch, read.append, write)
    monkeypatch.setattr(batch, "PIXELS_BEHIND", budget)
    assert set(statuses(run(restorer=Doubler(at_work))).values()) == {"ok"}
    assert max(behind) <= most
    assert max(behind) > 1 or most <= 1


def test_progress():
    make("in/b.png", "in/c.png", "in/d.png")
    Path("in/a.png").touch()
    shown = []
    jobs, folder = find_jobs(["in"], "out")
    job = Batch(Doubler(), Size(2), None, Manifest(folder, SETTINGS))
    job.run(jobs, lambda record: None, lambda share, label: shown.append((share, label)))
    shares = [share for share, _ in shown]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert [label for _, label in shown[::3]] == [
        "1 of 4: a.png",
        "2 of 4: b.png",
        "3 of 4: c.png",
        "4 of 4: d.png",
    ]


def test_two_runs_at_once_share_the_work():
    names = [f"{i}.png" for i in range(40)]
    make(*(f"in/{name}" for name in names))
    runs = [end(process) for process in [start(), start()]]
    assert sum(count for count, _ in runs) == len(names)
    for _, told in runs:
        assert told.keys() == set(names)
        assert set(told.values()) <= {"ok", "skipped"}
    check_results(names)
    assert files_in() == [MANIFEST, *sorted(names)]
    assert [path.name for path in Path("out").glob(".mambair-*")] == []


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_files_cost_little_each(count):
    """Beside reading, restoring and writing: at most 10 ms of the processor and 20 kB a file."""
    image = Image(np.zeros((4, 4, 3), np.uint8))
    write_image(Path("0.png"), image)
    Path("in").mkdir()
    for i in range(count):
        shutil.copy("0.png", f"in/{i}.png")
    process = psutil.Process()
    started = time.process_time()
    for i in range(100):
        write_image(Path(f"{i}.png"), Image(doubled(read_image(Path("0.png")).pixels)))
    work = (time.process_time() - started) / 100
    before, started = process.memory_info().rss, time.process_time()
    assert set(statuses(run()).values()) == {"ok"}
    assert (time.process_time() - started) / count < work + 0.01
    assert process.memory_info().rss - before < 2**25 + 20_000 * count
