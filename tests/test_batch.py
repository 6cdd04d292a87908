import contextlib
import errno
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from doubler import SETTINGS, Doubler, doubled
from hypothesis import given
from hypothesis import strategies as st
from networks import fails

import mambair_cli
from mambair_cli import batch, cli, engine
from mambair_cli.batch import MANIFEST, Batch, Job, Manifest, Record, find_jobs, natural_key
from mambair_cli.errors import CallError, ImageError, MemoryLimitError
from mambair_cli.image_io import Image, read_image, write_image
from mambair_cli.resize import Size

ROOT = Path(mambair_cli.__file__).parents[1]


def pixels_of(seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def make(*names, size=16):
    """Images of these names, each of its own pixels; the suffix decides the format."""
    for seed, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels_of(seed, size)).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory of every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def targets(*arguments, **options):
    """From the source to the target of each job, as text, in their order."""
    jobs, _ = find_jobs(*arguments, **options)
    return {str(job.source): str(job.target) for job in jobs}


def run(inputs=("in",), output="out", restorer=None, overwrite=False, settings=SETTINGS, **options):
    """Restore inputs into a folder: the records."""
    records = []
    jobs, into = find_jobs(list(inputs), output, **options)
    manifest = Manifest(into, settings)
    try:
        Batch(restorer or Doubler(), Size(2), None, manifest, overwrite).run(jobs, records.append, lambda *_: None)
    finally:
        run.told = {Path(record.input).name: record for record in records}
    return run.told


def statuses(records):
    return {name: record.status for name, record in records.items()}


def lines():
    """The records of the manifest, in the order of their outputs; all its lines are whole."""
    found = [json.loads(line) for line in Path("out", MANIFEST).read_bytes().splitlines()]
    return sorted(found, key=lambda line: line["output"])


def files_in(top="out"):
    return sorted(str(path.relative_to(top)) for path in Path(top).rglob("*") if path.is_file())


# What goes where


def test_a_tree_is_mirrored_in_natural_order():
    names = ["b10.png", "b2.png", "B3.png", "a/x.png", "a b/ü 写真.jpg", "a/b/c.TIF"]
    make(*(f"in/{name}" for name in names), "in/.hidden.png", "in/.git/x.png")
    Path("in/text.txt").touch()
    Path("in/folder.png").mkdir()
    Path("in/link").symlink_to("a")
    Path("in/link.png").symlink_to("b2.png")
    found = targets(["in"], "out")
    order = ["a b/ü 写真.jpg", "a/b/c.TIF", "a/x.png", "b2.png", "B3.png", "b10.png", "link.png"]
    assert found == {f"in/{name}": f"out/{name}" for name in order}
    assert list(found) == [f"in/{name}" for name in order]
    assert targets(["in/"], "out/") == found
    assert not Path("out").exists()


def test_several_inputs():
    make("a/x.png", "b/x.png", "b/y.png", "c/b/y.png", "z.png")
    assert targets(["a", "b"], "o") == {"a/x.png": "o/a/x.png", "b/x.png": "o/b/x.png", "b/y.png": "o/b/y.png"}
    assert targets(["z.png", "a"], "o") == {"a/x.png": "o/a/x.png", "z.png": "o/z.png"}
    assert targets(["a/x.png", "./a/x.png", "a"], "o") == {"a/x.png": "o/x.png"}  # once
    assert targets(["a/x.png", "b/x.png"], "o") == {"a/x.png": "o/x.png", "b/x.png": "o/x.png.png"}
    assert targets(["b", "c/b"], "o")["c/b/y.png"] == "o/b/y.png.png"
    assert targets(["z.png"], "o/") == {"z.png": "o/z.png"}
    Path("o").mkdir()
    assert targets(["z.png"], "o") == {"z.png": "o/z.png"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a.png", "a.bmp", "a.gif.png", "a.jpg"]),
        ({"suffix": "_x2"}, ["a_x2.png", "a_x2.bmp", "a.gif_x2.png", "a_x2.jpg"]),
        ({"format": "jpg"}, ["a.png.jpg", "a.bmp.jpg", "a.gif.jpg", "a.jpg"]),
        ({"format": "WebP"}, ["a.png.webp", "a.bmp.webp", "a.gif.webp", "a.jpg.webp"]),
    ],
    ids=str,
)
def test_inputs_of_one_name_do_not_collide(options, expected):
    names = ["a.png", "a.bmp", "a.gif", "a.jpg"]
    make(*(f"in/{name}" for name in names))
    found = targets(["in"], "o", **options)
    assert [found[f"in/{name}"] for name in names] == [f"o/{name}" for name in expected]
    given = [f"in/{name}" for name in names]
    assert targets(given, "o", **options) == targets(given[::-1], "o", **options) == found
    make("in/a.jpg.png")  # which one of the others would like to be
    found = targets(["in"], "o", **options | {"format": "png"})
    assert len(set(found.values())) == 5


def test_names_differ_also_where_the_case_is_ignored():
    make("in/a.png", "in/A.png", "in/Ä.gif", "in/ä.bmp")
    assert len({name.casefold() for name in targets(["in"], "o").values()}) == len(list(Path("in").iterdir()))


def test_the_output_folder_is_not_read_again():
    make("in/a.png", "in/b/c.png")
    first = targets(["in"], "in/out")
    make("in/out/a.png", "in/out/b/c.png")
    assert targets(["in"], "in/out") == targets(["./in"], "in/out/") == first
    assert targets(["in"], "in/b/../out").keys() == first.keys()
    Path("link").symlink_to("in/out")
    assert targets(["in"], "link").keys() == first.keys()
    fails(lambda: find_jobs(["in"], "in"), CallError, "in: is the folder of the inputs as well")
    fails(lambda: find_jobs(["in", "in/a.png"], "in/b/.."), CallError)
    assert targets(["in/b"], "in") == {"in/b/c.png": "in/c.png"}


@pytest.mark.parametrize("how", ["itself", "symbolic", "hard"])
def test_never_over_an_input(how):
    make("in/a.png", "b.png")
    if how == "itself":
        calls = [(["in/a.png", "b.png"], "in"), (["in"], "o"), (["b.png"], "./in/../b.png"), (["b.png"], "./")]
        Path("o").symlink_to("in")
    else:
        Path("o").mkdir()
        getattr(Path("o/a.png"), f"{how}link_to".replace("symbolic", "sym"))(Path("in/a.png").resolve())
        calls = [(["in"], "o"), (["in/a.png"], "o"), (["in/a.png"], "o/a.png"), (["in/a.png", "b.png"], "o/")]
    for inputs, output in calls:
        with pytest.raises(CallError, match=r"is the (input itself|folder of the inputs)"):
            find_jobs(inputs, output)
    assert targets(["in/a.png", "b.png"], "in", suffix="_x2")["in/a.png"] == "in/a_x2.png"


def test_globs():
    make("in/a.png", "in/b.jpg", "in/trip/c.jpg", "in/trip/d.png", "z.png")
    assert list(targets(["in"], "o", globs=["*.jpg"])) == ["in/b.jpg", "in/trip/c.jpg"]
    assert list(targets(["in"], "o", globs=["trip/*"])) == ["in/trip/c.jpg", "in/trip/d.png"]
    assert list(targets(["in", "z.png"], "o", globs=["a*", "[d]*"])) == ["in/a.png", "in/trip/d.png", "z.png"]
    make("in/a.gif")
    assert targets(["in"], "o", globs=["*.gif"]) == {"in/a.gif": "o/a.gif.png"}  # as without the glob
    fails(lambda: find_jobs(["in"], "o", globs=["*.bmp", ""]), CallError, "in: there is no image that matches --glob")


def test_one_file():
    make("p/a.b.png", "p/still.gif")
    assert targets(["p/a.b.png"], None, default_suffix="_x2") == {"p/a.b.png": "p/a.b_x2.png"}
    assert targets(["p/still.gif"], None, default_suffix="_x2") == {"p/still.gif": "p/still_x2.png"}
    options = {"default_suffix": "_x2", "format": "webp"}
    assert targets(["p/a.b.png"], None, **options) == {"p/a.b.png": "p/a.b_x2.webp"}
    assert targets(["p/a.b.png"], None, suffix="-big", **options) == {"p/a.b.png": "p/a.b-big.webp"}
    assert targets(["p/a.b.png"], None, suffix="", **options) == {"p/a.b.png": "p/a.b.webp"}
    assert targets(["p/a.b.png"], "out.tif", default_suffix="_x2") == {"p/a.b.png": "out.tif"}
    assert find_jobs(["p/a.b.png"], "out.tif")[1] is None
    for options in ({"suffix": "x"}, {"format": "tif"}):
        fails(lambda options=options: find_jobs(["p/a.b.png"], "o.tif", **options), CallError, "leave out --suffix")


def test_pipes(monkeypatch):
    make("a.png", "still.gif")
    assert find_jobs(["-"], "a.tif") == ([Job(None, Path("a.tif"))], None)
    assert find_jobs(["-"], "-") == ([Job(None, None, ".png")], None)
    assert find_jobs(["-"], "-", format="jpg") == ([Job(None, None, ".jpg")], None)
    assert find_jobs(["still.gif"], "-") == ([Job(Path("still.gif"), None, ".png")], None)
    Path("-").touch()
    assert find_jobs(["./-"], "o.png")[0] == [Job(Path("-"), Path("o.png"))]
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    fails(lambda: find_jobs(["a.png"], "-"), CallError, "terminal")


@pytest.mark.parametrize(
    ("inputs", "output", "options", "words"),
    [
        ("missing.png", None, {}, "missing.png: no such file; check the path"),
        ("a.png missing", "o", {}, "missing: no such file"),
        ("a.png/x.png", "o", {}, "a.png/x.png: no such file"),
        ("dangling.png", "o.png", {}, "dangling.png: no such file"),
        ("empty", None, {}, "empty: is a folder; give -o FOLDER"),
        ("empty", "o", {}, "empty: there is no image"),
        ("a.png b.png", None, {}, "several inputs need -o FOLDER"),
        ("a.png b.png", "a.png", {}, "a.png: is a file; name a folder"),
        ("a.png", "b.png/", {}, "b.png: is a file; name a folder"),
        ("a.png", "none/o.png", {}, "none/o.png: there is no folder"),
        ("a.png", "o.gif", {}, "o.gif: unknown suffix"),
        ("a.png", "o", {}, "o: unknown suffix ''; add one such as .png, or a slash"),
        ("a.png", None, {"format": "gif"}, "--format cannot be 'gif'; use one of png jpg"),
        ("a.png b.png", "o", {"format": "../png"}, "--format cannot be"),
        ("a.png b.png", "o", {"suffix": "/../x"}, "--suffix is a part of a name"),
        ("- a.png", "o", {}, "goes with one input only"),
        ("-", None, {}, "-o - for stdout"),
        ("-", "o", {}, "o: unknown suffix"),
        ("empty", "-", {}, "empty: is a folder"),
        ("missing.png", "-", {}, "missing.png: no such file"),
        ("-", "o.png", {"format": "jpg"}, "leave out --suffix and --format"),
    ],
)
def test_wrong_calls(inputs, output, options, words):
    make("a.png", "b.png")
    Path("empty").mkdir()
    Path("dangling.png").symlink_to("nowhere")
    before = files_in(".")
    fails(lambda: find_jobs(inputs.split(), output, **options), CallError, words)
    assert files_in(".") == before


@given(st.lists(st.text()))
def test_natural_order_of_any_names(names):
    ordered = sorted(names, key=natural_key)
    assert sorted(ordered) == sorted(names)


def test_natural_order():
    names = ["", "1.png", "2.png", "10.png", "A1.png", "a2.png", "b 3 x.png", "b 21.png"]
    assert sorted(random.Random(1).sample(names, 8), key=natural_key) == names


# What is finished


def test_a_second_run_does_only_what_is_left():
    make("in/a.png", "in/b.png", "in/c/d.png")
    first = run()
    assert statuses(first) == {"a.png": "ok", "b.png": "ok", "d.png": "ok"}
    assert files_in() == [MANIFEST, "a.png", "b.png", "c/d.png"]
    for name, seed in (("a.png", 0), ("b.png", 1), ("c/d.png", 2)):
        np.testing.assert_array_equal(read_image(Path("out", name)).pixels, doubled(pixels_of(seed)))
    before = {name: (Path("out") / name).stat().st_mtime_ns for name in files_in()}
    second = run(restorer=Doubler(at_work=pytest.fail))
    assert set(statuses(second).values()) == {"skipped"}
    assert second["d.png"].size_out == [32, 32]
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in files_in()} == before

    Path("out/a.png").unlink()
    os.utime("in/b.png", ns=(1, 1))
    make("in/e.png")
    assert statuses(run()) == {"a.png": "ok", "b.png": "ok", "d.png": "skipped", "e.png": "ok"}
    assert set(statuses(run()).values()) == {"skipped"}
    assert set(statuses(run(overwrite=True)).values()) == {"ok"}
    assert set(statuses(run(settings=SETTINGS | {"model": "other"})).values()) == {"ok"}
    assert set(statuses(run()).values()) == {"ok"}  # the last one counts
    assert [line["output"] for line in lines()] == ["a.png", "b.png", "c/d.png", "e.png"]


def test_folders_can_be_moved():
    make("in/a.png", "in/c/d.png")
    run()
    Path("in").rename("photos")
    Path("out").rename("results")
    assert set(statuses(run(["photos"], "results")).values()) == {"skipped"}


def test_a_result_of_another_input_is_no_result_of_this_one():
    make("in/a.gif")
    run()
    make("in/a.png")
    assert statuses(run()) == {"a.gif": "ok", "a.png": "ok"}
    np.testing.assert_array_equal(read_image(Path("out/a.png")).pixels, doubled(pixels_of(0)))
    assert files_in() == [MANIFEST, "a.gif.png", "a.png"]


def test_what_a_record_tells():
    make("in/a.png")
    Path("in/b.png").write_text("no image")
    run()
    good, bad = lines()
    assert (good["input"], good["output"], good["status"], good["error"]) == ("in/a.png", "a.png", "ok", None)
    assert (good["size_in"], good["size_out"], good["tiles"]) == ([16, 16], [32, 32], 1)
    assert 0 < good["seconds"] < 60
    state = Path("in/a.png").stat()
    assert good["key"] == {"name": "a.png", "bytes": state.st_size, "mtime_ns": state.st_mtime_ns, **SETTINGS}
    assert (bad["output"], bad["status"], bad["size_out"]) == ("b.png", "failed", None)
    assert bad["error"].startswith("in/b.png: not an image")
    assert statuses(run()) == {"a.png": "skipped", "b.png": "failed"}
    assert len(lines()) == 2


@pytest.mark.parametrize(
    "tail", [b"", b'{"output": "b.p', b"\xff\x00\n[1]\n3\nnull\n{}\n\n", b'{"output": []}\n', b"\n\n"]
)
def test_a_damaged_manifest_loses_only_what_is_damaged(tail):
    make("in/a.png", "in/b.png")
    run()
    manifest = Path("out") / MANIFEST
    manifest.write_text(json.dumps(lines()[0]) + "\n")
    with manifest.open("ab") as file:
        file.write(tail)
    assert statuses(run()) == {"a.png": "skipped", "b.png": "ok"}
    assert [line["output"] for line in lines()] == ["a.png", "b.png"]


def test_a_manifest_that_cannot_be_read():
    Path("out", MANIFEST).mkdir(parents=True)
    fails(lambda: Manifest(Path("out"), {}), ImageError, f"out/{MANIFEST}: cannot be read: Is a directory")


def test_many_append_at_once():
    """Threads, each with a manifest of its own, while another one compacts."""
    Path("out").mkdir()

    def append(thread):
        manifest = Manifest(Path("out"), {})
        for i in range(50):
            manifest.append(Record("x" * 200, f"out/{thread} {i % 25}", "ok", notes=["n"] * 20))
            if thread == 0:
                manifest.compact()

    threads = [threading.Thread(target=append, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Manifest(Path("out"), {}).compact()
    assert [line["output"] for line in lines()] == sorted(f"{t} {i}" for t in range(4) for i in range(25))
    assert files_in() == [MANIFEST]


# Failures


def test_a_bad_file_does_not_stop_the_others(monkeypatch, caplog):
    make("in/a.png", "in/cut.png", "in/gone.png", "in/memory.png", "in/bug.png", "in/z.png", "in/deep/x.png")
    Path("in/cut.png").write_bytes(Path("in/a.png").read_bytes()[:400])
    Path("in/empty.png").touch()
    Path("out").mkdir()
    Path("out/deep").touch()  # where a folder should be
    Path("in/fifo.jpg").mkdir()
    sick = {pixels_of(3).tobytes(): MemoryLimitError("does not fit"), pixels_of(4).tobytes(): ValueError("a bug")}

    def at_work(image):
        Path("in/gone.png").unlink(missing_ok=True)
        if error := sick.get(image.pixels.tobytes()):
            raise error

    caplog.set_level("INFO", "mambair_cli.batch")
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
        "x.png": "out/deep: File exists",
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


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


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
    make(*(f"in/{i}.png" for i in range(12)), size=64)  # which become some 20 kB each
    fails(lambda: run(output="small/out"), ImageError, "stopped")
    done = [name for name, record in run.told.items() if record.status == "ok"]
    assert 2 <= len(done) < 12
    assert any("No space left on device" in (record.error or "") for record in run.told.values())
    found = files_in("small/out")
    assert set(found) - set(done) <= {MANIFEST}  # nothing half-written
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
        os, "scandir", lambda path, scan=os.scandir: denied(path) if "closed" in str(path) else scan(path)
    )
    monkeypatch.setattr(
        Path, "read_bytes", lambda path, read=Path.read_bytes: denied(path) if path.name == "closed" else read(path)
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
    records = run(suffix="_x2")  # too long for one of them
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
    assert {name for name, status in statuses(run()).items() if status == "skipped"} >= {"0.png", "1.png"}


# Reading, restoring and writing at once


def stages(monkeypatch, read, write):
    """Have `read` and `write` called by the threads that read and write, with the number of the file."""

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
    assert set(statuses(run(restorer=Doubler(lambda image: meet(next(numbers) + 1)))).values()) == {"ok"}


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
    assert [label for _, label in shown[::3]] == ["1 of 4: a.png", "2 of 4: b.png", "3 of 4: c.png", "4 of 4: d.png"]


# Several processes, and the end of one


def start(**environment):
    """Another process that restores in/ into out/."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("doubler.py"), "in", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process):
    """How many files a process restored, and what it tells of each."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    facts = json.loads(out)
    return facts["count"], {Path(record["input"]).name: record["status"] for record in facts["records"]}


def check_results(names):
    for name in names:
        np.testing.assert_array_equal(
            read_image(Path("out", name)).pixels, doubled(read_image(Path("in", name)).pixels)
        )


def kill_and_finish(generator):
    """Kill a run at a random moment, and let a second one finish."""
    names = [f"{i}.png" for i in range(12)]
    make(*(f"in/{name}" for name in names), size=48)
    manifest = Path("out", MANIFEST)
    process = start()
    after = generator.randrange(len(names))  # so many lines
    while process.poll() is None and after and not (manifest.exists() and manifest.read_bytes().count(b"\n") >= after):
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.02 if after else 2))
    process.kill()
    process.communicate()
    found = set(files_in() if Path("out").exists() else []) - {MANIFEST, f"{MANIFEST}.tmp"}
    whole = {name for name in found if not re.fullmatch(r"\.mambair-\w+\.tmp", name)}
    check_results(whole)
    recorded = Manifest(Path("out"), SETTINGS).records.keys()
    assert recorded <= whole <= set(names)
    count, done = end(start())
    assert done == {name: "skipped" if name in recorded else "ok" for name in names}
    assert count == len(names) - len(recorded)
    check_results(names)
    assert [line["output"] for line in lines()] == sorted(names)
    return len(recorded)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_is_finished_by_the_next(seed):
    kill_and_finish(random.Random(seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(50))
def test_fifty_runs_that_are_killed_are_finished_by_the_next(seed):
    kill_and_finish(random.Random(1000 + seed))


def test_two_runs_at_once():
    names = [f"{i}.png" for i in range(20)]
    make(*(f"in/{name}" for name in names))
    results = [end(process) for process in (start(), start())]
    for _, done in results:
        assert done.keys() == set(names)
        assert set(done.values()) <= {"ok", "skipped"}
    check_results(names)
    assert [line["output"] for line in lines()] == sorted(names)
    assert end(start()) == (0, dict.fromkeys(names, "skipped"))


def two_ranks():
    """The environments of two processes that share the work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def test_processes_share_the_files():
    names = [f"{i}.png" for i in range(9)]
    make(*(f"in/{name}" for name in names))
    for name in ("2.png", "5.png"):
        Path("in", name).write_text("no image")
    run(["in/0.png"], "out/")
    (zero, told), (one, untold) = (end(process) for process in [start(**ranks) for ranks in two_ranks()])
    statuses = dict.fromkeys(names, "ok") | {"0.png": "skipped", "2.png": "failed", "5.png": "failed"}
    assert (told, untold) == (statuses, {})
    assert {zero, one} == {3}  # 4 each of the 8 that are left, one of which is bad
    check_results(set(names) - {"2.png", "5.png"})
    assert [line["output"] for line in lines()] == names


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}],
    ids=str,
)
def test_an_environment_that_is_not_complete(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    make("in/a.png")
    fails(run, CallError, "RANK", "torchrun")


# The command


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program in this process with the stand-in: exit code, stdout, stderr."""

    def call(*arguments, restorer=None):
        monkeypatch.setattr(engine, "Upscaler", lambda *_: restorer or Doubler())
        monkeypatch.setattr(sys, "argv", ["mambair", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return call


def test_the_summary(call):
    make("in/a.png", "in/b.png")
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert (code, err) == (0, "")
    header, ok, skipped, failed, last = (line.split() for line in out.splitlines())
    assert header == ["files", "seconds", "megapixels"]
    assert (ok[:2], skipped, failed) == (["ok", "2"], ["skipped", "0", "0.0", "0.0"], ["failed", "0", "0.0", "0.0"])
    assert re.fullmatch(r"out: tiny-x2, numba on cpu, \d+\.\d s", " ".join(last))
    Path("in/two\nlines.png").write_text("no image")
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2)
    assert code == 1
    assert err == "mambair: in/two\\nlines.png: not an image that can be read; convert it to PNG or JPEG\n"
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["ok", "0"], ["skipped", "2"], ["failed", "1"]]


def test_json(call):
    make("in/a.png")
    Path("in/b.png").touch()
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, "--json")
    assert code == 1
    assert "b.png: the file is empty" in err
    facts = json.loads(out)
    good, bad = facts.pop("files")
    assert facts.pop("seconds") > 0
    assert facts == {
        "output": "out", "ok": 1, "skipped": 0, "failed": 1, "not_tried": 0,
        "scale": 2, "model": "tiny-x2", "backend": "numba", "device": "cpu",
    }  # fmt: skip
    bad, good = sorted((good, bad), key=lambda record: record["status"])
    assert good.pop("seconds") > 0
    assert good == {
        "input": "in/a.png", "output": "out/a.png", "status": "ok", "size_in": [16, 16], "size_out": [32, 32],
        "tiles": 1, "error": None, "notes": [],
    }  # fmt: skip
    assert bad["error"] in err
    assert json.loads(call("upscale", "in/a.png", "-o", "out/", "-s", 2, "--json")[1])["skipped"] == 1
    assert json.loads(call("upscale", "in/a.png", "-o", "out/", "-s", 2, "--json", "--overwrite")[1])["ok"] == 1


def test_what_decides_whether_a_result_is_finished(call):
    make("in/a.png")
    for options, done in [
        (["-s", 2], "ok"),
        (["-m", "tiny-x2"], "skipped"),
        (["-s", 2, "--tile", 64, "--device", "cpu"], "skipped"),
        (["-m", "tiny-x4", "-s", 2], "ok"),
        (["-m", "tiny-x4"], "ok"),
        (["-s", 4], "skipped"),
    ]:
        assert json.loads(call("upscale", "in", "-o", "out", "--json", *options)[1])[done] == 1


def test_options_of_names(call):
    make("in/a.png", "in/b.bmp")
    assert call("upscale", "in", "-o", "out", "-s", 2, "--format", "webp", "--suffix", "_big", "--glob", "a*")[0] == 0
    assert files_in() == [MANIFEST, "a_big.webp"]
    assert call("upscale", "in/a.png", "-s", 2, "--format", "tiff")[0] == 0
    assert call("upscale", "in/a.png", "-s", 2, "--suffix", "-big")[0] == 0
    assert files_in("in") == ["a-big.png", "a.png", "a_x2.tiff", "b.bmp"]
    code, out, err = call("upscale", "in", "-o", "in", "-s", 2)
    assert (code, out) == (2, "")
    assert err.startswith("mambair: in: is the folder of the inputs as well")


def test_a_width_that_some_files_exceed(call):
    make("in/a.png")
    make("in/b.png", size=64)
    code, out, err = call("upscale", "in", "-o", "out", "--width", 32)
    assert code == 1
    assert err == "mambair: in/b.png: would become 0.5 times as large; possible is 1 to 16 times\n"
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["ok", "1"], ["skipped", "0"], ["failed", "1"]]


def test_what_was_finished_otherwise_is_restored_again(call):
    make("in/a.png")
    options = [(), ("-s", 3), ("-s", 1.5), ("--width", 32), ("--height", 32), ("--width", 32, "--height", 32)]
    options += [("--ensemble",), ("--alpha", "bicubic"), ("--quality", 50), ("-m", "tiny-x2")]
    for asked in options:
        for status in ("ok", "skipped"):
            facts = json.loads(call("upscale", "in", "-o", "out", *asked, "--json")[1])
            assert facts[status] == 1, (asked, status)
    assert json.loads(call("upscale", "in", "-o", "out", "-s", 2, "-m", "tiny-x2", "--json")[1])["skipped"] == 1


def test_notes_are_said(call):
    PIL.Image.fromarray(pixels_of(0)).save(
        "a.png", icc_profile=PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    )
    make("b.png")
    restorer = Doubler()
    restorer.restore_image = lambda image, *rest: Image(doubled(image.pixels), icc_profile=image.icc_profile)
    code, _, err = call("upscale", "a.png", "b.png", "-o", "out", "--format", "bmp", restorer=restorer)
    assert code == 0
    assert re.fullmatch(r"mambair: out/a\.bmp: BMP has no [^\n]*colour profile[^\n]*\n", err)


def test_an_interrupted_command_says_what_is_done(call):
    def at_work(image):
        if image.pixels.tobytes() == pixels_of(1).tobytes():
            raise KeyboardInterrupt

    make(*(f"in/{i}.png" for i in range(5)))
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, restorer=Doubler(at_work))
    assert (code, err) == (130, "mambair: interrupted\n")
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["ok", "1"], ["skipped", "0"], ["failed", "0"]]
    assert out.splitlines()[4].split() == ["not", "tried", "4"]
    code, out, err = call("upscale", "in", "-o", "out", "-s", 2, "--json", restorer=Doubler(at_work))
    assert (code, err) == (130, "mambair: interrupted\n")
    facts = json.loads(out)
    assert (facts["skipped"], facts["ok"], facts["not_tried"]) == (1, 0, 4)


def test_a_full_disk_in_the_command(call, monkeypatch):
    make("a.png", "b.png", "c.png")
    monkeypatch.setattr(Path, "replace", full_disk)
    code, _, err = call("upscale", "a.png", "b.png", "c.png", "-o", "out")
    assert code == 1
    assert "mambair: out/a.png: cannot be written: No space left on device\n" in err
    assert err.endswith("mambair: stopped, as nothing more can be written; make room and run it again\n")
    assert files_in() == [MANIFEST]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_of_a_folder_on_a_terminal(call, monkeypatch):
    make("in/a.png", "in/two\nlines.png", f"in/{'x' * 200}.png")
    Path("in/bad.png").touch()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert call("upscale", "in", "-o", "out", restorer=Doubler(lambda image: time.sleep(0.15)))[0] == 1
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", err.getvalue())
    assert re.search(r"1 of 4: a\.png +[━╸╺ ]+ +\d+% \S+", shown)
    assert re.search(r"of 4: two\\nlines\.png [━╸╺ ]+", shown)
    assert re.search(r"4 of 4: x+… [━╸╺ ]+", shown)
    assert shown.count("mambair: in/bad.png: the file is empty") == 1
    assert "1 of 4" not in out.getvalue()
    monkeypatch.setenv("RANK", "1")
    with cli._progress(False) as report:
        report(0.5, "nothing is shown")
    assert "nothing" not in err.getvalue()


def pipe(call, monkeypatch, data, *arguments):
    """Run the program with `data` on stdin: exit code, bytes on stdout, text on stderr."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code, *_ = call(*arguments)
    out.flush()
    return code, out.buffer.getvalue(), err.getvalue()


def test_stdin_and_stdout(call, monkeypatch):
    make("a.png")
    data = Path("a.png").read_bytes()
    code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "-", "--format", "tif", "-s", 2)
    assert code == 0
    assert re.fullmatch(r"-: 16x16 -> 32x32, tiny-x2, numba on cpu, \d+\.\d s\n", err)
    Path("piped.tif").write_bytes(out)
    np.testing.assert_array_equal(read_image(Path("piped.tif")).pixels, doubled(pixels_of(0)))
    code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "-", "-s", 2, "--json")
    assert (code, out[:4], json.loads(err)["output"]) == (0, b"\x89PNG", "-")
    code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "b.png", "-s", 2)
    assert (code, err, out[:8]) == (0, "", b"b.png: 1")
    assert read_image(Path("b.png")).pixels.shape == (32, 32, 3)
    code, out, err = pipe(call, monkeypatch, b"", "upscale", "a.png", "-o", "-", "-s", 2)
    assert (code, out[:4]) == (0, b"\x89PNG")
    for data, words in ((b"", "stdin: the file is empty"), (b"text", "stdin: not an image")):
        code, out, err = pipe(call, monkeypatch, data, "upscale", "-", "-o", "-")
        assert (code, out) == (1, b"")
        assert re.fullmatch(rf"mambair: {words}[^\n]*\n", err)
    assert files_in(".") == ["a.png", "b.png", "piped.tif"]


# The real program, with a real network


def program(*arguments):
    return {"args": [sys.executable, "-m", *arguments], "env": {**os.environ, "PYTHONPATH": str(ROOT)}}


@pytest.mark.long
def test_the_real_program_in_a_pipe():
    make("a.png")
    command = program("mambair_cli", "upscale", "-", "-o", "-", "-s", "2", "--format", "ppm")
    done = subprocess.run(**command, input=Path("a.png").read_bytes(), capture_output=True, check=True, timeout=120)
    assert done.stdout[:13] == b"P6 32 32 255\n"
    assert len(done.stdout) == 13 + 32 * 32 * 3
    assert done.stderr.startswith(b"-: 16x16 -> 32x32, tiny-x2")


def test_torchrun():
    names = [f"{i}.png" for i in range(4)]
    make(*(f"in/{name}" for name in names))
    command = program("torch.distributed.run", "--nproc-per-node", "2", "-m", "mambair_cli")
    command["args"] += ["upscale", "in", "-o", "out", "-s", "2", "--device", "cpu", "--json"]
    done = subprocess.run(**command, capture_output=True, text=True, check=True, timeout=120)
    facts = json.loads(done.stdout)
    assert (facts["ok"], facts["failed"], facts["not_tried"]) == (4, 0, 0)
    assert sorted(record["input"] for record in facts["files"]) == [f"in/{name}" for name in names]
    for name in names:
        with PIL.Image.open(Path("out", name)) as image:
            assert image.size == (32, 32)
