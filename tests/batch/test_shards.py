import json
import random
from pathlib import Path

import pytest
from doubler import SETTINGS, Doubler
from failing import fails
from folders import files_in, make, run, statuses

from mambair_cli.batch import shards
from mambair_cli.batch.jobs import Job, find_jobs
from mambair_cli.batch.manifest import Manifest
from mambair_cli.batch.pipeline import Batch
from mambair_cli.batch.shards import Shard, parse_shard, scheduled_shard, share
from mambair_cli.errors import CallError
from mambair_cli.restore.size import Size
from mambair_cli.system.urls import Url

pytestmark = pytest.mark.usefixtures("empty_folder")


def restore(shard, settings=SETTINGS, restorer=None):
    """Restore a part of in/ into out/: the status of each file."""
    jobs, folder = find_jobs(["in"], "out")
    records = []
    mine = share(jobs, folder, shard)
    Batch(restorer or Doubler(), Size(2), None, Manifest(folder, settings, shard)).run(
        mine, records.append, lambda *_: None
    )
    return statuses({Path(record.input).name: record for record in records})


def array(**values):
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("known", ["pixels", "names"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_each_file_falls_to_one_shard_whatever_the_order(monkeypatch, known, count):
    make(*(f"in/{i}/{i}.png" for i in range(20)))
    if known == "names":
        monkeypatch.setattr(shards, "SIZED", 0)
    jobs, folder = find_jobs(["in"], "out")
    parts = [share(jobs, folder, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(repr(job) for part in parts for job in part) == sorted(map(repr, jobs))
    shuffled = random.Random(count).sample(jobs, len(jobs))
    for number, part in enumerate(parts, 1):
        assert set(share(shuffled, folder, Shard(number, count))) == set(part)
        # in the order of the folder
        assert part == [job for job in jobs if job in part]


def test_shards_have_equal_pixels():
    for i in range(30):
        make(f"in/{i}.png", size=8 + 4 * i)
    Path("in/bad.png").write_text("no image")
    jobs, folder = find_jobs(["in"], "out")

    def pixels(job):
        return (8 + 4 * int(job.source.stem)) ** 2 if job.source.stem != "bad" else 0

    sums = [sum(map(pixels, share(jobs, folder, Shard(i, 4)))) for i in range(1, 5)]
    assert max(sums) - min(sums) < 0.05 * sum(sums) / 4


def test_the_place_of_the_folders_does_not_count():
    make(*(f"a/in/{i}.png" for i in range(12)))
    Path("b").mkdir()
    Path("b/in").symlink_to("../a/in")
    found = []
    for top in "ab":
        jobs, folder = find_jobs([f"{top}/in"], f"{top}/out")
        found.append([job.source.name for job in share(jobs, folder, Shard(2, 3))])
    assert found[0] == found[1]


def test_objects_at_urls_are_shared_by_name():
    folder = Url("s3://bucket/out", is_folder=True)
    jobs = [Job(Url(f"s3://bucket/in/{i}.png"), folder / f"{i}.png") for i in range(2000)]
    parts = [share(jobs, folder, Shard(i, 4)) for i in range(1, 5)]
    assert sum(map(len, parts)) == 2000
    assert all(440 < len(part) < 560 for part in parts)


def test_a_whole_run_reads_the_manifests_of_all_shards():
    names = [f"{i}.png" for i in range(10)]
    make(*(f"in/{name}" for name in names))
    first = restore(Shard(1, 3))
    third = restore(Shard(3, 3))
    assert set(first.values()) == set(third.values()) == {"ok"}
    manifests = [f".mambair-{i}-of-3.jsonl" for i in (1, 3)]
    assert files_in() == sorted([*manifests, *first, *third])
    done = statuses(run())
    assert {name for name, status in done.items() if status == "ok"} == set(names) - {
        *first,
        *third,
    }
    assert set(statuses(run(restorer=Doubler(pytest.fail))).values()) == {"skipped"}
    # and shards read those of whole runs and of other shards
    for number in (1, 2):
        assert set(restore(Shard(number, 2), restorer=Doubler(pytest.fail)).values()) == {"skipped"}


def test_of_several_manifests_the_latest_record_counts():
    make("in/a.png")
    other = SETTINGS | {"model": "other"}
    for _ in range(2):
        assert restore(Shard(1, 1)) == {"a.png": "ok"}
        assert restore(Shard(1, 1)) == statuses(run()) == {"a.png": "skipped"}
        # A whole run restores it otherwise: what the shard has recorded is no more.
        assert statuses(run(settings=other)) == {"a.png": "ok"}
        assert restore(Shard(1, 1), other) == {"a.png": "skipped"}


def test_results_of_shards_are_no_inputs():
    make("in/a.png")
    restore(Shard(1, 1))
    told = []
    jobs, _ = find_jobs(["."], "new", note=told.append)
    assert [str(job.source) for job in jobs] == ["in/a.png"]
    assert told == ["out: holds the results of an earlier run and is left out"]


def test_a_shard_without_files():
    make("in/a.png")
    assert [restore(Shard(i, 3)) for i in (1, 2, 3)].count({}) == 2


@pytest.mark.parametrize(
    ("text", "shard"), [("1/1", Shard(1, 1)), ("3/8", Shard(3, 8)), (" 8 / 8 ", Shard(8, 8))]
)
def test_parse(text, shard):
    assert parse_shard(text) == shard
    assert str(shard) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text", ["", "0/4", "5/4", "1", "-1/4", "1/4/5", "a/b", "1/0", "9" * 99 + "/1"]
)
def test_what_is_no_shard(text):
    fails(lambda: parse_shard(text), CallError, "`shard`", "1/4")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, None),
        ({"ID": 3}, None),
        ({"ID": 0, "COUNT": 1, "MIN": 0, "MAX": 0}, None),
        ({"ID": 0, "COUNT": 100, "MIN": 0, "MAX": 99, "STEP": 1}, "1/100"),
        ({"ID": 100, "COUNT": 100, "MIN": 1, "MAX": 100, "STEP": 1}, "100/100"),
        ({"ID": 14, "COUNT": 3, "MIN": 10, "MAX": 14, "STEP": 2}, "3/3"),
        ({"ID": 2, "COUNT": 4}, "3/4"),
    ],
    ids=str,
)
def test_slurm(values, text):
    shard = scheduled_shard(array(**values))
    assert (shard and str(shard)) == text


@pytest.mark.parametrize(
    "values",
    [
        {"ID": 7, "COUNT": 3, "MIN": 1, "MAX": 7, "STEP": 1},
        {"ID": 5, "COUNT": 2, "MIN": 1, "MAX": 2, "STEP": 1},
        {"ID": "x", "COUNT": 2},
    ],
    ids=str,
)
def test_an_array_from_which_no_shard_can_be_told(values):
    fails(
        lambda: scheduled_shard(array(**values)),
        CallError,
        "SLURM" if "x" in values.values() else "Slurm",
    )


def test_the_lines_of_a_shard_lie_in_its_manifest():
    make("in/a.png", "in/b.png")
    done = {number: restore(Shard(number, 2)) for number in (1, 2)}
    for number, names in done.items():
        lines = Path(f"out/.mambair-{number}-of-2.jsonl").read_text().splitlines()
        assert [json.loads(line)["output"] for line in lines] == list(names)
