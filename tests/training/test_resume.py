import errno
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training import (
    STOPPABLE,
    assert_equal,
    before_iteration,
    load_checkpoint,
    read_log,
    recipe,
    replace_batches,
    train,
    write_photos,
)

from mambair_cli.errors import CallError, CheckpointError, TrainingError
from mambair_cli.models.weights import read_state
from mambair_cli.system.files import replacing
from mambair_cli.training import checkpoints
from mambair_cli.training import loop as module
from mambair_cli.training.inputs import Settings
from mambair_cli.training.recipe import read_recipe


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    config = recipe(iterations=2)
    train(config, photos, out)
    return config, out


# Resuming


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    train(recipe(**STOPPABLE), photos, out)
    return out


@pytest.mark.parametrize(
    ("number", "iteration"),
    [(signal.SIGTERM, 3), (signal.SIGINT, 0), (signal.SIGINT, 7)],
    ids=int.__repr__,
)
def test_a_stopped_run_resumes_exactly(
    photos, tmp_path, monkeypatch, capsys, unbroken, number, iteration
):
    config, handlers = (
        recipe(**STOPPABLE),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    )
    with monkeypatch.context() as patch:
        before_iteration(patch, iteration, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path)["iteration"] == iteration + 1
    so_far = read_state(tmp_path / "model.safetensors")
    assert_equal(so_far.state, load_checkpoint(tmp_path)["ema"])
    assert so_far.metadata["mambair.unfinished"] == f"{iteration + 1} of 8"
    assert so_far.metadata["mambair.task"] == "upscale"
    line = f"saved after iteration {iteration + 1}; {tmp_path}/model.safetensors has the weights"
    assert capsys.readouterr().err.endswith(f"\n{line} so far\n")
    # the state of the process is another one
    torch.rand(7)
    train(config, photos, tmp_path, resume=True)
    assert_equal(load_checkpoint(tmp_path), load_checkpoint(unbroken))
    assert_equal(
        load_file(tmp_path / "model.safetensors"), load_file(unbroken / "model.safetensors")
    )
    assert "mambair.unfinished" not in read_state(tmp_path / "model.safetensors").metadata
    logs = [
        [e | {"it_per_s": 0, "wait": 0, "outside": 0} for e in read_log(out)]
        for out in (tmp_path, unbroken)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_a_run_resumes_in_its_precision(photos, tmp_path, monkeypatch, precision):
    config, settings, whole, stopped = (
        recipe(**STOPPABLE),
        Settings("cpu", precision),
        tmp_path / "a",
        tmp_path / "b",
    )
    train(config, photos, whole, settings=settings)
    with monkeypatch.context() as patch:
        before_iteration(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, stopped, settings=settings)
    with pytest.raises(CallError, match=f"is a run in {precision}; it cannot go on in fp32"):
        train(config, photos, stopped, settings=Settings("cpu", "fp32"), resume=True)
    train(config, photos, stopped, resume=True)
    assert_equal(load_checkpoint(stopped), load_checkpoint(whole))


def test_a_resumed_run_takes_as_many_at_once_as_asked(photos, tmp_path, capsys):
    config = recipe(iterations=2, batch=4)
    train(config, photos, tmp_path, settings=Settings("cpu", device_batch=4))
    for asked, size in ((None, 4), (2, 2)):
        train(config, photos, tmp_path, settings=Settings("cpu", device_batch=asked), resume=True)
        assert f"batch 4, that is {4 // size} times {size} on each" in capsys.readouterr().err


KILLABLE = """
import sys
from mambair_cli import cli
from mambair_cli.training import loop
loop.CHECKPOINT_SECONDS = 0
cli.main()
"""


def test_a_killed_run_resumes_exactly(photos, tmp_path):
    """kill -9 at a moment that nothing was made ready for."""
    config, killed = recipe(**STOPPABLE | {"iterations": 80}), tmp_path / "killed"
    train(config, photos, tmp_path / "whole")
    line = [
        "train",
        "--recipe",
        tmp_path / "whole" / "recipe.json",
        "--data",
        photos,
        "--device",
        "cpu",
        "--out",
        killed,
    ]
    words = [sys.executable, "-c", KILLABLE, *map(str, line)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(checkpoints.paths(killed)) != 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert 3 <= load_checkpoint(killed)["iteration"] < 80
    train(config, photos, killed, resume=True)
    assert_equal(load_checkpoint(killed), load_checkpoint(tmp_path / "whole"))
    assert_equal(
        *(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    )


def test_the_log_may_be_ahead_of_the_checkpoint(photos, tmp_path, monkeypatch, unbroken):
    """And end within a line."""
    config = recipe(**STOPPABLE)
    with monkeypatch.context() as patch:
        before_iteration(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"iteration": 5, "loss": 9}\n{"iteration": 6, "lo')
    train(config, photos, tmp_path, resume=True)
    assert [entry["iteration"] for entry in read_log(tmp_path)] == list(range(1, 9))
    assert read_log(tmp_path)[4]["loss"] == read_log(unbroken)[4]["loss"]


def test_a_finished_run_can_be_resumed(photos, tmp_path):
    config = recipe(iterations=2)
    train(config, photos, tmp_path)
    before, log = load_file(tmp_path / "model.safetensors"), (tmp_path / "log.jsonl").read_text()
    (tmp_path / "model.safetensors").unlink()
    train(config, photos, tmp_path, resume=True)
    assert_equal(load_file(tmp_path / "model.safetensors"), before)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_the_recipe_of_a_run_resumes_it(photos, tmp_path):
    train(recipe(iterations=1), photos, tmp_path)
    train(read_recipe(str(tmp_path / "recipe.json")), photos, tmp_path, resume=True)


@pytest.mark.parametrize(
    "changes", [{"lr": 1e-3}, {"iterations": 7}, {"seed": 2}, {"network": {"d_state": 3}}]
)
def test_another_recipe_does_not_resume(run, photos, changes):
    _, out = run
    before = {path: path.read_bytes() for path in out.iterdir()}
    other = recipe(**{"iterations": 2} | changes)
    with pytest.raises(
        CallError,
        match=r"of another recipe, or of this one with other .*; resume with .*/recipe\.json",
    ):
        train(other, photos, out, resume=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_nothing_to_resume(photos, tmp_path):
    with pytest.raises(CallError, match="nothing to resume"):
        train(recipe(), photos, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["text", "cut", "foreign", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    photos, tmp_path, monkeypatch, capsys, unbroken, damage
):
    config = recipe(**STOPPABLE)
    with monkeypatch.context() as patch:
        patch.setattr(module, "CHECKPOINT_SECONDS", -1)
        before_iteration(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path)
    newest, *older = checkpoints.paths(tmp_path)
    assert [path.name for path in (newest, *older)] == [
        f"checkpoint-0000000{i}.pt" for i in (5, 4, 3)
    ]
    if damage == "foreign":
        torch.save({"state_dict": {}}, newest)
    else:
        newest.write_bytes(
            {"text": b"text", "cut": newest.read_bytes()[:-3000], "empty": b""}[damage]
        )
    train(config, photos, tmp_path, resume=True)
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert_equal(load_checkpoint(tmp_path), load_checkpoint(unbroken))
    for path in checkpoints.paths(tmp_path):
        path.write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read.*start anew"):
        train(config, photos, tmp_path, resume=True)


@pytest.mark.parametrize("name", ["checkpoint-00000003.pt", "model.safetensors"])
def test_a_run_is_not_overwritten(photos, tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(CallError, match="holds a run already; give `resume`"):
        train(recipe(), photos, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"precious")]


def test_a_new_run_starts_a_new_log(photos, tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"iteration": 99}\n'
        # its run ended before any checkpoint
    )
    train(recipe(iterations=2), photos, tmp_path)
    assert [entry["iteration"] for entry in read_log(tmp_path)] == [1, 2]


# What goes wrong on the way


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_ones(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    written = []

    def fail_half_way(path, content):
        with replacing(path) as file:
            if len(written) == 3:
                file.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.write(content)
        written.append(content)

    monkeypatch.setattr(checkpoints, "write_atomically", fail_half_way)
    with pytest.raises(TrainingError, match=r"cannot be written: .*No space left"):
        train(recipe(), photos, tmp_path)
    assert [path.read_bytes() for path in checkpoints.paths(tmp_path)] == written[::-1]
    assert load_checkpoint(tmp_path)["iteration"] == 3
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_file_in_place_of_the_run(photos, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TrainingError, match="out cannot be written"):
        train(recipe(), photos, tmp_path / "out")


@pytest.mark.parametrize("kind", [math.nan, math.inf, "gradient"])
def test_a_step_without_numbers_is_skipped_and_counted(photos, tmp_path, monkeypatch, capsys, kind):
    if kind != "gradient":
        bad = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 16, 16), kind)
        replace_batches(monkeypatch, {3}, bad)
    else:
        clip, calls = nn.utils.clip_grad_norm_, []

        def overflow(*arguments, **options):
            calls.append(1)
            return torch.tensor(math.inf) if len(calls) == 4 else clip(*arguments, **options)

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", overflow)
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(checkpoints, "KEPT", 9)
    train(recipe(), photos, tmp_path)
    before, after = (
        torch.load(tmp_path / f"checkpoint-0000000{i}.pt", weights_only=True) for i in (3, 4)
    )
    for part in ("model", "ema"):
        assert_equal(before[part], after[part])
    assert_equal(before["optimiser"]["state"], after["optimiser"]["state"])
    log = read_log(tmp_path)
    assert [entry["skipped"] for entry in log] == [0, 0, 0, 1, 1, 1]
    assert log[3]["loss"] is None
    assert "4/6, loss none, " in capsys.readouterr().err
    assert all(v.isfinite().all() for v in load_file(tmp_path / "model.safetensors").values())


def test_ten_steps_without_numbers_end_the_run(photos, tmp_path, monkeypatch):
    # ignored where the tests run in the background
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    replace_batches(
        monkeypatch, range(3, 99), (torch.zeros(2, 3, 8, 8), torch.full((2, 3, 16, 16), math.nan))
    )
    words = r"10 steps in a row gave NaN .*, up to iteration 13; lower optimiser\.lr"
    with pytest.raises(TrainingError, match=words):
        train(recipe(iterations=300), photos, tmp_path)
    saved = load_checkpoint(tmp_path)
    assert (saved["iteration"], saved["skips"], saved["bad"]) == (12, 9, 9)
    assert all(v.isfinite().all() for part in ("model", "ema") for v in saved[part].values())
    assert signal.getsignal(signal.SIGINT) is handler
