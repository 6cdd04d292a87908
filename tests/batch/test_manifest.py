import dataclasses
import json
import os
import random
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from doubler import SETTINGS, Doubler, doubled
from failing import fails
from folders import check_results, end, files_in, lines, make, pixels_of, run, start, statuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambair_cli.batch.jobs import Job
from mambair_cli.batch.manifest import MANIFEST, Manifest, Record
from mambair_cli.errors import ImageError
from mambair_cli.images.io import read_image

pytestmark = pytest.mark.usefixtures("empty_folder")


# What is finished


def test_a_second_run_does_only_what_is_left():
    make("in/a.png", "in/b.png", "in/c/d.png")
    first = run()
    assert statuses(first) == {"a.png": "ok", "b.png": "ok", "d.png": "ok"}
    assert files_in() == [MANIFEST, "a.png", "b.png", "c/d.png"]
    for name, seed in (("a.png", 0), ("b.png", 1), ("c/d.png", 2)):
        np.testing.assert_array_equal(
            read_image(Path("out", name)).pixels, doubled(pixels_of(seed))
        )
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
    assert (good["input"], good["output"], good["status"], good["error"]) == (
        "in/a.png",
        "a.png",
        "ok",
        None,
    )
    assert (good["size_in"], good["size_out"], good["tiles"]) == ([16, 16], [32, 32], 1)
    assert 0 < good["seconds"] < 60
    state = Path("in/a.png").stat()
    assert good["key"] == {
        "name": "a.png",
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        **SETTINGS,
    }
    assert (bad["output"], bad["status"], bad["size_out"]) == ("b.png", "failed", None)
    assert bad["error"].startswith("in/b.png: not an image")
    assert statuses(run()) == {"a.png": "skipped", "b.png": "failed"}
    assert len(lines()) == 2


@pytest.mark.parametrize(
    "tail",
    [b"", b'{"output": "b.p', b"\xff\x00\n[1]\n3\nnull\n{}\n\n", b'{"output": []}\n', b"\n\n"],
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


@pytest.mark.parametrize(
    "change",
    [
        {"size_in": "16x16"},
        {"size_in": [16]},
        {"size_out": [16, None]},
        {"size_out": [1e400, 5]},
        {"models": "tiny-x2"},
        {"models": [1, {}]},
        {"tiles": "many"},
        {"level": []},
        {"seen": 5},
        {"why": ["x"]},
        {"status": None},
        {"output": 7},
    ],
    ids=str,
)
def test_a_record_of_wrong_types_costs_only_its_own_file(change):
    make("in/a.png", "in/b.png")
    run()
    first, second = lines()
    text = json.dumps(first) + "\n" + json.dumps(second | change) + "\n"
    Path("out", MANIFEST).write_text(text)
    assert statuses(run()) == {"a.png": "skipped", "b.png": "ok"}


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"output":' * 50_000 + b"1", b"9" * 10_000, b"\0" * 3_000_000],
    ids=["lists", "tables", "a number", "nothing"],
)
def test_a_line_too_deep_or_long_costs_no_other(line):
    make("in/a.png", "in/b.png")
    run()
    good = Path("out", MANIFEST).read_bytes().splitlines()
    Path("out", MANIFEST).write_bytes(good[0] + b"\n" + line + b"\n" + good[1] + b"\n" + line)
    assert set(statuses(run()).values()) == {"skipped"}
    assert len(lines()) == 2


RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def check_lines(found):
    Path("out").mkdir(exist_ok=True)
    job = Job(Path("in/a.png"), Path("out/a.png"))
    job.target.touch()
    content = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in found
    )
    Path("out", MANIFEST).write_bytes(content)
    manifest = Manifest(Path("out"), {})
    record = manifest.finished(job)
    assert record is None or record.status == "skipped"
    manifest.compact()


NAMES = st.sampled_from([field.name for field in dataclasses.fields(Record)])
ANY_LINES = st.lists(
    st.binary() | RECORDS | st.dictionaries(NAMES, RECORDS | st.just("a.png") | st.just("ok"))
)
FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=50, **FUZZ)
@given(ANY_LINES)
def test_any_lines_are_read(found):
    check_lines(found)


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(ANY_LINES)
def test_many_lines_are_read(found):
    check_lines(found)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_manifest_that_is_no_file():
    Path("out").mkdir()
    os.mkfifo(Path("out", MANIFEST))
    fails(lambda: Manifest(Path("out"), {}), ImageError, f"out/{MANIFEST}: is not a regular file")
    Path("out", MANIFEST).unlink()
    Path("out", MANIFEST).symlink_to("/dev/zero")
    fails(lambda: Manifest(Path("out"), {}), ImageError, f"out/{MANIFEST}: is not a regular file")


def test_a_manifest_that_cannot_be_read():
    Path("out", MANIFEST).mkdir(parents=True)
    fails(
        lambda: Manifest(Path("out"), {}),
        ImageError,
        f"out/{MANIFEST}: is not a regular file; move it away",
    )


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
    assert [line["output"] for line in lines()] == sorted(
        f"{t} {i}" for t in range(4) for i in range(25)
    )
    assert files_in() == [MANIFEST]


# Several runs, and the end of one


def kill_and_finish(generator):
    """Kill a run at a random moment, and let a second one finish."""
    names = [f"{i}.png" for i in range(12)]
    make(*(f"in/{name}" for name in names), size=48)
    manifest = Path("out", MANIFEST)
    process = start()
    after = generator.randrange(len(names))  # so many lines
    while (
        process.poll() is None
        and after
        and not (manifest.exists() and manifest.read_bytes().count(b"\n") >= after)
    ):
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.02 if after else 2))
    process.kill()
    process.communicate()
    found = set(files_in() if Path("out").exists() else []) - {MANIFEST}
    whole = {name for name in found if not re.fullmatch(r"\.mambair-[\w-]+\.(tmp|lock)", name)}
    check_results(whole)
    recorded = Manifest(Path("out"), SETTINGS).names()
    assert recorded <= whole <= set(names)
    count, done = end(start())
    assert done == {name: "skipped" if name in recorded else "ok" for name in names}
    assert count == len(names) - len(recorded)
    check_results(names)
    assert [line["output"] for line in lines()] == sorted(names)
    # Nothing of the killed run is left.
    assert set(files_in()) == {MANIFEST, *names}
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


def test_what_another_run_appends_is_seen(tmp_path):
    source, target = tmp_path / "a.png", tmp_path / "out" / "a.png"
    target.parent.mkdir()
    for path in (source, target):
        path.write_bytes(b"x")
    one, two = (Manifest(target.parent, {"scale": 2}) for _ in range(2))
    job = Job(source, target)
    assert two.finished(job) is None
    record = Record(str(source), str(target), "ok", key=one.key(source))
    for _ in range(3):
        one.append(record)
    two.refresh()
    assert two.finished(job).status == "skipped"
    one.compact()
    two.refresh()
    assert two.finished(job).status == "skipped"
