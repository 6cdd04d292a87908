import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from training import (
    CPU,
    DENOISE,
    STOPPABLE,
    assert_equal,
    before_iteration,
    load_checkpoint,
    read_log,
    recipe,
    write_photos,
)

from mambair_cli.archs.mambair_unet import MambaIRUNet, MambaIRUNetConfig
from mambair_cli.errors import CallError
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.models.recognise import load_network
from mambair_cli.models.weights import read_state, save_network
from mambair_cli.training import loop
from mambair_cli.training.inputs import Folders, open_data
from mambair_cli.training.plan import plan
from mambair_cli.training.recipe import build_network
from mambair_cli.training.teacher import taught


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def negatives(photos, tmp_path_factory):
    """A folder of targets that teach the opposite, as other files, not cut to the scale."""
    folder = tmp_path_factory.mktemp("negatives")
    for path in photos.iterdir():
        write_image(folder / f"{path.stem}.tiff", Image(255 - read_rgb(path)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of a network that is no good."""
    path = tmp_path_factory.mktemp("model") / "teacher.safetensors"
    torch.manual_seed(3)
    network = build_network(recipe())
    save_network(path, network, network.state_dict(), {"task": "upscale"})
    return path


def train(config, photos, out, teacher, **options):
    return loop.train(config, Folders(photos, teacher=teacher), out, settings=CPU, **options)


@pytest.mark.parametrize("changes", [{}, DENOISE, {"mixup": 1.2}], ids=["x2", "noise", "mixup"])
def test_a_folder_has_its_share_in_the_targets(photos, negatives, changes):
    """Cut and flipped as the photographs; what is degraded stays as it is without a teacher."""
    config = recipe(weight=0.25, **changes)
    plain, _, _ = open_data(config, Folders(photos), CPU)
    pairs, _, _ = open_data(config, Folders(photos, teacher=negatives), CPU)
    for iteration in range(4):
        low, truth = plain.batch(iteration, range(4), 8, 4)
        same, target = pairs.batch(iteration, range(4), 8, 4)
        assert torch.equal(low, same)
        torch.testing.assert_close(target, 0.75 * truth + 0.25 * (1 - truth), rtol=0, atol=1e-6)


def test_validation_knows_no_teacher(photos, negatives):
    config = recipe(weight=0.25)
    pairs = [
        open_data(config, Folders(photos, teacher=teacher), CPU)[1] for teacher in (None, negatives)
    ]
    for plain, taught_too in zip(*pairs, strict=True):
        assert np.array_equal(plain.high, taught_too.high)


def test_targets_of_a_network():
    high = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    bright = nn.Upsample(scale_factor=2)
    low = torch.full((2, 3, 4, 4), 1.5, dtype=torch.float64, requires_grad=True)
    target = taught(bright, 0.25, low, high)
    torch.testing.assert_close(target, 0.75 * high + 0.25)
    assert not target.requires_grad


def test_a_network_has_its_share_in_the_loss(photos, model, tmp_path):
    config = recipe(iterations=1, weight=0.75)
    train(config, photos, tmp_path, model)
    pairs, _, _ = open_data(config, Folders(photos), CPU)
    low, high = pairs.batch(0, range(2), 8, 2)
    teacher, _ = load_network(model)
    torch.manual_seed(config.seed)
    learner = build_network(config)
    learner.start_simply()
    with torch.no_grad():
        target = 0.25 * high + 0.75 * teacher(low).clamp(0, 1)
        expected = nn.functional.l1_loss(learner(low), target).item()
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["folder", "model"])
def test_a_taught_run_resumes_exactly(photos, negatives, model, tmp_path, monkeypatch, kind):
    config = recipe(**STOPPABLE, weight=0.5)
    teacher = negatives if kind == "folder" else model
    train(config, photos, tmp_path / "whole", teacher)
    with monkeypatch.context() as patch:
        before_iteration(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path / "broken", teacher)
    train(config, photos, tmp_path / "broken", teacher, resume=True)
    assert_equal(load_checkpoint(tmp_path / "broken"), load_checkpoint(tmp_path / "whole"))
    loop.train(recipe(**STOPPABLE), Folders(photos), tmp_path / "untaught", settings=CPU)
    losses = [read_log(tmp_path / name)[0]["loss"] for name in ("whole", "untaught")]
    assert losses[0] != losses[1]


def test_the_weights_and_the_card_name_the_teacher(photos, negatives, tmp_path, capsys):
    """The recipe names no weight: half."""
    path = train(recipe(iterations=1), photos, tmp_path, negatives)
    metadata = read_state(path).metadata
    assert metadata["mambair.teacher"] == str(negatives)
    assert metadata["mambair.teacher_weight"] == "0.5"
    assert f"- teacher: {negatives}\n- teacher weight: 0.5\n" in (tmp_path / "model.md").read_text()
    assert '"weight": 0.5' in (tmp_path / "recipe.json").read_text()
    assert f"50% of the targets by {negatives}\n" in capsys.readouterr().err
    train(recipe(iterations=1), photos, tmp_path, negatives, resume=True)


def test_a_plan_measures_the_teacher_too(photos, model):
    facts = dict(plan(recipe(), Folders(photos, teacher=model), CPU, "none"))
    assert float(facts["  time"].split()[0]) >= 0
    with pytest.raises(CallError, match="learns from a teacher too: give `teacher`"):
        plan(recipe(weight=0.5), Folders(photos), CPU, "none")


def test_targets_that_do_not_fit(photos, negatives, tmp_path, capsys):
    for path in negatives.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folders = Folders(photos, teacher=tmp_path)
    write_image(tmp_path / "photo0.tiff", Image(np.zeros((20, 20, 3), np.uint8)))
    pairs, _, _ = open_data(recipe(validation=1), folders, CPU)
    number = [source.high.name for source in pairs.photos.sources].index("photo0.png")
    assert pairs.photos.get(number) is None
    (reason,) = pairs.photos.skipped
    assert "photo0.tiff: has 20x20 pixels, but 36x32 belong to" in reason
    (tmp_path / "osprey0.tiff").unlink()
    with pytest.raises(CallError, match=r"holds no target for .*osprey0\.png; .* be osprey0"):
        open_data(recipe(validation=1), folders, CPU)


def test_teachers_that_do_not_fit(photos, model, tmp_path):
    def message(config, teacher):
        with pytest.raises(CallError) as caught:
            train(config, photos, tmp_path / "out", teacher)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "cannot teach this recipe: it is for x2 and 3 channels, the recipe for x3" in message(
        recipe(scale=3), model
    )
    assert "channels, the recipe for x2 and 1" in message(recipe(network={"in_chans": 1}), model)
    assert "this recipe learns from a teacher too" in message(recipe(weight=0.5), None)
    assert "missing.pth is missing" in message(recipe(), tmp_path / "missing.pth")
    network = MambaIRUNet(MambaIRUNetConfig(dim=4, blocks=(1, 1, 1, 1), refinement=0, d_state=1))
    save_network(tmp_path / "unet.safetensors", network, network.state_dict(), {})
    assert "takes sides that are multiples of 8, but the recipe has patches of 12" in message(
        recipe(**DENOISE, patch=12), tmp_path / "unet.safetensors"
    )
