"""The run of docs/scale.md: a folder in four shards, two of which are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import ROOT, check_results, files_in, make

pytestmark = pytest.mark.usefixtures("empty_folder")
SHARDS = 4


def start_shard(number):
    """A process that restores a shard of in/ into out/."""
    doubler = Path(__file__).parents[1] / "doubler.py"
    return subprocess.Popen(
        [sys.executable, doubler, "in", "out", f"{number}/{SHARDS}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines_of(number):
    """The lines of a shard's manifest that are whole."""
    path = Path("out", f".mambair-{number}-of-{SHARDS}.jsonl")
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def statuses(process):
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0
    return {Path(record["input"]).name: record["status"] for record in json.loads(out)["records"]}


def kill_and_resume(count, generator):
    """Restore so many files in four shards; kill two of these at random moments, and resume them.

    Returns how many files the two had recorded when they were killed.
    """
    names = [f"{i}.png" for i in range(count)]
    make(*(f"in/{name}" for name in names))
    processes = {number: start_shard(number) for number in range(1, SHARDS + 1)}
    killed = {}
    after = {number: generator.randrange(1, count // SHARDS // 2) for number in (2, 3)}
    while after.keys() - killed.keys():
        for number in after.keys() - killed.keys():
            if len(lines_of(number)) >= after[number]:
                processes[number].kill()
                processes[number].communicate()
                assert processes[number].returncode == -signal.SIGKILL
                killed[number] = {json.loads(line)["output"] for line in lines_of(number)}
                assert len(killed[number]) < count // SHARDS
        time.sleep(0.002)
    done = {number: statuses(processes[number]) for number in (1, 4)}
    for number, recorded in killed.items():
        resumed = statuses(start_shard(number))
        assert {name for name, status in resumed.items() if status == "skipped"} == recorded
        assert {
            name for name, status in resumed.items() if status == "ok"
        } == resumed.keys() - recorded
        done[number] = resumed
    # each file in one shard, recorded once, whole, and nothing else is there
    assert sorted(name for told in done.values() for name in told) == sorted(names)
    recorded = [json.loads(line)["output"] for n in done for line in lines_of(n)]
    assert sorted(recorded) == sorted(names)
    check_results(names)
    manifests = [f".mambair-{number}-of-{SHARDS}.jsonl" for number in done]
    leftover = set(files_in()) - {*names, *manifests}
    assert all(name.endswith(".tmp") for name in leftover)
    return sum(map(len, killed.values()))


def test_shards_that_are_killed_are_resumed():
    kill_and_resume(80, random.Random(0))


@pytest.mark.long
def test_two_thousand_files_in_four_shards_two_of_which_are_killed():
    started = time.perf_counter()
    recorded = kill_and_resume(2000, random.Random(1))
    print(f"2,000 files, {recorded} recorded at the kills, {time.perf_counter() - started:.0f} s")
