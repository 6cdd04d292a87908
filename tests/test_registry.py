import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from failing import fails

import mambair_cli
from mambair_cli import registry
from mambair_cli.errors import CallError
from mambair_cli.registry import MODELS, TASKS, find_models, model_named
from mambair_cli.train import RECIPES, build_network, read_recipe
from mambair_cli.weights import ARCHITECTURES, bundled_folder, load_network, sha256

every_model = pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)


def test_names_and_files_are_unique():
    for field in ("name", "file", "sha256"):
        assert len({getattr(row, field) for row in MODELS}) == len(MODELS)
    assert all(name == task.name for name, task in TASKS.items())


@every_model
def test_a_row_says_what_its_file_is(row):
    path = bundled_folder() / row.file
    assert sha256(path) == row.sha256
    model, arch = load_network(path)
    assert arch == row.arch
    assert row.arch in ARCHITECTURES
    assert model.config.upscale == row.scale
    assert sum(p.numel() for p in model.parameters()) == row.parameters


@every_model
def test_a_row_says_what_the_model_is_for(row):
    assert row.task in TASKS
    assert re.fullmatch(r"[a-z0-9-]+", row.name)
    assert re.search(r"\d\d\.\d", row.score), "the score is a figure in dB and says on what"
    assert all((row.degradation, row.licence, row.source))


@every_model
def test_a_model_has_a_card(row):
    card = (bundled_folder() / row.file).with_suffix(".md").read_text("utf-8")
    assert card.startswith(f"# {row.name}\n")
    assert f"{row.parameters:,}" in card
    assert row.licence in card


@every_model
def test_a_recipe_of_that_name_builds_the_model(row):
    if not (RECIPES / f"{row.name}.toml").exists():
        pytest.skip("not trained here")
    config = read_recipe(row.name)
    assert config.scale == row.scale
    assert sum(p.numel() for p in build_network(config).parameters()) == row.parameters


def test_rows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MODELS[0].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        *((scale, "tiny-x2") for scale in (1, 1.5, 2)),
        *((scale, "tiny-x4") for scale in (2.1, 3, 4)),
        *((scale, "tiny-x4 tiny-x2") for scale in (4.1, 8)),
        *((scale, "tiny-x4 tiny-x4") for scale in (8.1, 16)),
    ],
)
def test_the_smallest_sufficient_models_are_found(monkeypatch, scale, names):
    for models in (MODELS, MODELS[::-1]):
        monkeypatch.setattr(registry, "MODELS", models)
        assert [model.name for model in find_models("upscale", scale)] == names.split()


def test_another_task_has_other_models(monkeypatch):
    other = replace(MODELS[0], name="clean", task="denoise", scale=1)
    monkeypatch.setattr(registry, "MODELS", (*MODELS, other))
    assert find_models("denoise") == [other]
    assert find_models("upscale") == [model_named("tiny-x2")]
    fails(lambda: find_models("denoise", 2), CallError, "denoise", "x2", "-m")


def test_nothing_found():
    for scale in (0, 0.99, 16.1, float("inf"), float("nan")):
        fails(lambda s=scale: find_models("upscale", s), CallError, "1", "16", f"{scale:g}")
    fails(lambda: find_models("paint", 2), CallError, "paint", "x2")
    assert model_named("tiny-x9") is None
    assert model_named("tiny-x4").scale == 4


def test_models_are_listed_without_torch():
    assert mambair_cli.list_models() is MODELS
    program = "import mambair_cli, sys; assert mambair_cli.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
