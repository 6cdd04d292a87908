import os

import pytest
import torch

from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.training import checkpoints


def test_the_last_three_are_kept(tmp_path):
    for i in (1, 20, 300, 4000, 100_000_000):
        checkpoints.save(tmp_path, i, {"config": "a", "x": torch.full((2,), i)})
    assert [path.name for path in checkpoints.paths(tmp_path)] == [
        f"checkpoint-{i:08}.pt" for i in (100_000_000, 4000, 300)
    ]
    state, passed = checkpoints.load(tmp_path, "a")
    assert (state["iteration"], state["x"].tolist(), passed) == (100_000_000, [1e8, 1e8], [])


def test_damaged_ones_are_passed_over(tmp_path):
    for i in (1, 2, 3):
        checkpoints.save(tmp_path, i, {"config": "a"})
    third, second, first = checkpoints.paths(tmp_path)
    third.write_bytes(third.read_bytes()[:100])
    state, passed = checkpoints.load(tmp_path, "a")
    assert state["iteration"] == 2
    assert passed == [f"{third} is damaged (RuntimeError) and is passed over"]
    torch.save([1], second)
    first.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .* can be read: .*00003.*00002.*00001"
    ):
        checkpoints.load(tmp_path, "a")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"config": "a", "x": Evil()}, tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(CheckpointError, match="UnpicklingError"):
        checkpoints.load(tmp_path, "a")
    assert not (tmp_path / "evil").exists()


def test_another_recipe(tmp_path):
    checkpoints.save(tmp_path, 1, {"config": "a"})
    with pytest.raises(
        CallError,
        match=r"of another recipe, or of the same one with other .*; resume with .*/recipe\.json",
    ):
        checkpoints.load(tmp_path, "b")
    with pytest.raises(CallError, match="holds no checkpoint: there is nothing to resume"):
        checkpoints.load(tmp_path / "none", "b")
