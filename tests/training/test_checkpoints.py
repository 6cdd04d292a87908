import json
import os
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from training import assert_equal, load_checkpoint, recipe, train, write_photos

from mambair_cli.errors import CallError, CheckpointError
from mambair_cli.training import checkpoints, loop


@pytest.fixture(scope="module")
def config():
    return recipe(iterations=3)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Checkpoints after one, two and three iterations, newest first."""
    folder = tmp_path_factory.mktemp("run")
    photos = write_photos(tmp_path_factory.mktemp("photos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1)
        train(config, photos, folder)
    return checkpoints.paths(folder)


@pytest.fixture
def copies(run, tmp_path):
    for path in run:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return checkpoints.paths(tmp_path)


def test_the_last_three_are_kept(tmp_path):
    for i in (1, 20, 300, 4000, 100_000_000):
        checkpoints.save(tmp_path, i, {"x": torch.full((2,), i)})
    assert [path.name for path in checkpoints.paths(tmp_path)] == [
        f"checkpoint-{i:08}.pt" for i in (100_000_000, 4000, 300)
    ]
    state = load_checkpoint(tmp_path)
    assert (state["iteration"], state["x"].tolist()) == (100_000_000, [1e8, 1e8])


def test_the_newest_is_loaded(copies, config):
    state, passed = checkpoints.load(copies[0].parent, config)
    assert (state["iteration"], passed) == (3, [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_are_passed_over(copies, config):
    pipe = copies[0].with_name("checkpoint-00000009.pt")
    os.mkfifo(pipe)
    state, (passed,) = checkpoints.load(pipe.parent, config)
    assert state["iteration"] == 3
    assert "no regular file" in passed


def test_damaged_ones_are_passed_over(copies, config):
    third, second, first = copies
    third.write_bytes(third.read_bytes()[:100])
    state, (passed,) = checkpoints.load(third.parent, config)
    assert state["iteration"] == 2
    assert passed.startswith(f"{third} is damaged (")
    assert passed.endswith(") and is passed over")
    torch.save([1], second)
    first.write_bytes(b"")
    words = r"no checkpoint of .* can be read: .*00003.*00002.*00001.* another `out`"
    with pytest.raises(CheckpointError, match=words):
        checkpoints.load(third.parent, config)


def test_a_flipped_bit_is_noticed(copies, config):
    """Where it changes anything: the archive has bits, such as times, that nobody reads."""
    newest, folder = copies[0], copies[0].parent
    whole, _ = checkpoints.load(folder, config)
    content, rng, noticed = newest.read_bytes(), np.random.default_rng(0), 0
    for place in rng.integers(len(content), size=30):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        newest.write_bytes(flipped)
        state, passed = checkpoints.load(folder, config)
        if passed:
            assert f"{newest} is damaged (" in passed[0]
            assert state["iteration"] == 2
            noticed += 1
        else:
            assert_equal(state, whole)
    assert noticed > 20


def moment(state):
    return state["optimiser"]["state"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("ema"), "'ema'"),
        (lambda s: s.update(iteration="x"), "iteration is 'x'"),
        (lambda s: s.update(iteration=4), "iteration is 4"),
        (lambda s: s.update(best="high"), "best is 'high'"),
        (lambda s: s.update(losses=["a"]), "losses are no numbers"),
        (lambda s: s.update(losses=None), "NoneType"),
        (lambda s: s.update(precision="fp8"), "precision is 'fp8'"),
        (lambda s: s.update(sizes={1: {8: 0}}), "0 samples at once"),
        (lambda s: s.update(sizes={1: {}}), "8"),
        (lambda s: s.update(sizes=3), "int"),
        (lambda s: s.update(config="{"), "Expecting"),
        (lambda s: s.update(config="[" * 100_000), "recursion"),
        (lambda s: s.update(config="{}"), "recipe: missing scale"),
        (lambda s: s["model"].pop("norm.bias"), "model lacks norm.bias"),
        (lambda s: s["ema"].update(more=torch.ones(1)), "ema lacks more or should not have it"),
        (lambda s: s["ema"].update({"norm.bias": torch.ones(3)}), r"norm\.bias is .* \(3,\)"),
        (lambda s: s["ema"].update({"norm.bias": torch.ones(16).int()}), "norm.bias is torch.int"),
        (lambda s: s["optimiser"].pop("param_groups"), "'param_groups'"),
        (lambda s: s["optimiser"]["param_groups"].pop(), "different number"),
        (lambda s: s["optimiser"]["param_groups"][0].update(betas=[0, 0]), "other settings"),
        (lambda s: moment(s).update(exp_avg=torch.ones(2)), r"exp_avg is \(2,\)"),
        (lambda s: moment(s).pop("exp_avg_sq"), "'exp_avg_sq'"),
    ],
)
def test_wrong_content_is_passed_over(copies, config, change, reason):
    newest, folder = copies[0], copies[0].parent
    state = torch.load(newest, weights_only=True)
    change(state)
    torch.save(state, newest)
    loaded, passed = checkpoints.load(folder, config)
    assert loaded["iteration"] == 2
    (line,) = passed
    assert re.search(rf"^{re.escape(str(newest))} is damaged \(.*{reason}", line)


def test_the_discriminator_is_checked_too(tmp_path):
    config = recipe(iterations=1, adversarial=0.1)
    train(config, write_photos(tmp_path), tmp_path / "run")
    state, _ = checkpoints.load(tmp_path / "run", config)
    del state["adversary"]["discriminator"]["judge.bias"]
    with pytest.raises(ValueError, match=r"discriminator lacks judge\.bias"):
        checkpoints.check(state, config)


def test_code_in_a_checkpoint_is_not_run(tmp_path, config):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"config": "a", "x": Evil()}, tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(CheckpointError, match="loading it could run code"):
        checkpoints.load(tmp_path, config)
    assert not (tmp_path / "evil").exists()


def test_another_recipe(copies, config):
    other = replace(config, seed=2)
    folder = copies[0].parent
    words = r"a run of another recipe, or of this one with other .*; resume with .*/recipe\.json"
    with pytest.raises(CallError, match=words):
        checkpoints.load(folder, other)
    with pytest.raises(CallError, match="holds no checkpoint: there is nothing to resume"):
        checkpoints.load(folder / "none", config)
    state = torch.load(copies[0], weights_only=True)
    torch.save(state | {"config": json.dumps(asdict(other))}, copies[0])
    state, passed = checkpoints.load(folder, config)
    assert state["iteration"] == 2
    assert passed == [f"{copies[0]} is of another recipe and is passed over"]


def test_fields_that_are_newer_than_a_checkpoint(copies, config):
    """A run that an older version began goes on."""
    state = torch.load(copies[0], weights_only=True)
    table = json.loads(state["config"])
    del table["loss"]["epsilon"], table["data"]["mixup"]
    torch.save(state | {"config": json.dumps(table)}, copies[0])
    assert checkpoints.load(copies[0].parent, config)[0]["iteration"] == 3
