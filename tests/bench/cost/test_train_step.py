import json
import sys

import pytest
import torch

from mambair_cli.bench.cost import train_step as speed
from mambair_cli.bench.cost.train_step import light, loop_shares, step_memory, step_of, step_report


def test_both_steps_are_the_same(monkeypatch):
    """The losses of all parts together, through autograd or the fused scan."""
    sums, original = [], speed.add_gradients

    def add_gradients(*arguments):
        losses = original(*arguments)
        sums[-1] += losses[0].item()
        return losses

    monkeypatch.setattr(speed, "add_gradients", add_gradients)
    config = light(2, 8)
    config.network["drop_path_rate"] = 0.0  # or depth would be drawn anew in each part
    for backend, parts in (("auto", 1), ("reference", 2)):
        sums.append(0.0)
        step_of(config, backend, parts)()
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert sums[0] > 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in other units elsewhere")
def test_the_estimated_memory_is_near_the_measured():
    estimated, measured = step_memory(2, 32)
    assert 0.5 < estimated / measured < 3


def test_the_loop_adds_little():
    outside, wait = loop_shares(1, 8, 3)
    assert 0 <= wait <= outside < 0.9


def test_shares_are_of_all_the_time_but_the_first_iteration(monkeypatch):
    log = [
        (1.0, 0.9, 0.9),
        (4.0, 0.5, 0.1),
        (1.0, 0.1, 0.0),
    ]  # iterations a second, outside, waiting

    def train(config, folders, out, settings):
        out.mkdir()
        keys = "iteration", "it_per_s", "outside", "wait"
        rows = (dict(zip(keys, (i, *row), strict=True)) for i, row in enumerate(log, 1))
        (out / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    monkeypatch.setattr(speed, "train", train)
    assert loop_shares(1, 8, 3) == pytest.approx(((0.25 * 0.5 + 0.1) / 1.25, 0.25 * 0.1 / 1.25))


def test_the_report(monkeypatch):
    seconds = iter([0.5, 5.0])
    monkeypatch.setattr(speed, "work_seconds", lambda step, repeats: next(seconds))
    monkeypatch.setattr(speed, "step_of", lambda *_, **__: None)
    monkeypatch.setattr(speed, "loop_shares", lambda *_: (0.2, 0.01))
    monkeypatch.setattr(speed, "step_memory", lambda *_: (3 * 2**20, 2**20))
    threads = torch.get_num_threads()
    rows = step_report()
    assert torch.get_num_threads() == threads
    assert [row.met for row in rows] == [True, False, True, None]
    assert [row.value for row in rows] == [
        "10.0 (5.00 / 0.50 s)",
        "20.0 %",
        "1.0 %",
        "3 / 1 MiB",
    ]
