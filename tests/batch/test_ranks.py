import json
import socket
import subprocess
from pathlib import Path

import PIL.Image
import pytest
from calls import program
from failing import fails
from folders import check_results, end, lines, make, run, start

from mambair_cli.errors import CallError

pytestmark = pytest.mark.usefixtures("empty_folder")


def two_ranks():
    """The environments of two processes that share the work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    return [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def test_processes_share_the_files():
    names = [f"{i}.png" for i in range(9)]
    make(*(f"in/{name}" for name in names))
    for name in ("2.png", "5.png"):
        Path("in", name).write_text("no image")
    run(["in/0.png"], "out/")
    (zero, told), (one, untold) = (
        end(process) for process in [start(**ranks) for ranks in two_ranks()]
    )
    statuses = dict.fromkeys(names, "ok") | {
        "0.png": "skipped",
        "2.png": "failed",
        "5.png": "failed",
    }
    assert (told, untold) == (statuses, {})
    assert {zero, one} == {3}  # 4 each of the 8 that are left, one of which is bad
    check_results(set(names) - {"2.png", "5.png"})
    assert [line["output"] for line in lines()] == names


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "x"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
    ],
    ids=str,
)
def test_an_environment_that_is_not_complete(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    make("in/a.png")
    fails(run, CallError, "RANK", "torchrun")


def test_torchrun():
    names = [f"{i}.png" for i in range(4)]
    make(*(f"in/{name}" for name in names))
    command = program("upscale", "in", "-o", "out", "-s", "2", "--device", "cpu", "--json")
    command["args"][1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(**command, capture_output=True, text=True, check=True, timeout=120)
    facts = json.loads(done.stdout)
    assert (facts["ok"], facts["failed"], facts["not_tried"]) == (4, 0, 0)
    assert sorted(record["input"] for record in facts["files"]) == [f"in/{name}" for name in names]
    for name in names:
        with PIL.Image.open(Path("out", name)) as image:
            assert image.size == (32, 32)
