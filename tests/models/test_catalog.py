import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch

import mambair_cli
from mambair_cli.archs.complexity import complexity
from mambair_cli.models.cache import NAME
from mambair_cli.models.catalog import MODELS, TASKS, Score, model_named, published_scores
from mambair_cli.models.weights import ARCHITECTURES, bundled_folder, check_row, describe
from mambair_cli.system.files import sha256
from mambair_cli.training.recipe import RECIPES, build_network, read_recipe

BUNDLED = [row for row in MODELS if row.bundled]
every_model = pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
every_bundled = pytest.mark.parametrize("row", BUNDLED, ids=lambda row: row.name)


def test_names_and_files_are_unique():
    assert len({row.name for row in MODELS}) == len(MODELS)
    for values in (
        [row.file for row in BUNDLED],
        [row.sha256 for row in MODELS if row.verified],
        [url for row in MODELS for url in row.urls],
    ):
        assert len(set(values)) == len(values)
    assert all(name == task.name for name, task in TASKS.items())


@every_bundled
def test_a_row_says_what_its_file_is(row):
    path = bundled_folder() / row.file
    assert sha256(path) == row.sha256
    facts = describe(path)
    check_row(row, facts, "the file")
    assert facts["scale"] == row.scale
    assert not row.urls


@every_model
def test_a_row_builds_its_network(row):
    if row.arch not in ARCHITECTURES:
        pytest.skip("not built yet")
    config, network, _ = ARCHITECTURES[row.arch]
    with torch.device("meta"):
        model = network(config(**row.config))
    found = complexity(model)
    assert found.parameters == row.parameters
    assert found.macs / 1e9 == pytest.approx(row.gmacs, abs=0.05)
    assert model.config.upscale == row.scale


@every_model
def test_a_row_says_what_the_model_is_for(row):
    assert row.task in TASKS
    assert NAME.fullmatch(row.name)
    assert all((row.degradation, row.licence, row.source))
    assert (row.levels is not None) <= bool(TASKS[row.task].level)
    assert row.levels is None or row.levels[0] <= row.levels[1]
    assert row.bundled <= row.verified
    assert (row.published is None) or not row.measured
    hash(row)


@every_model
def test_scores(row):
    """Networks that were trained for looks have none."""
    assert all(
        10 < score.psnr < 60 and score.channel in ("Y", "RGB", "gray") for score in row.scores
    )
    assert all(score.ssim is None or 0.5 < score.ssim < 1 for score in row.scores)
    assert bool(row.scores) == bool(row.measured or row.published)
    assert len({score.dataset for score in row.scores}) == len(row.scores)


def test_scores_are_the_papers():
    assert model_named("mambair-classic-x4").scores[0] == Score("Set5", 33.03, 0.9046)
    assert model_named("mambair-denoise-25").scores[0] == Score("CBSD68", 31.8, None, "RGB")
    assert model_named("mambair-light-c-x2").scores[-1] == Score("Manga109", 39.2, 0.9782)
    assert published_scores("classic_sr", "x2", "Nobody's") == ()


@every_model
def test_addresses_are_of_the_places_that_the_authors_named(row):
    for url in row.urls:
        assert re.fullmatch(
            r"https://huggingface\.co/cguoh/MambaIR/resolve/main/MambaIRv1_ckpt/\w+\.pth"
            r"|https://drive\.usercontent\.google\.com/download\?id=[\w-]{33}&export=download&confirm=t",
            url,
        )


@every_bundled
def test_a_model_has_a_card(row):
    card = (bundled_folder() / row.file).with_suffix(".md").read_text("utf-8")
    assert card.startswith(f"# {row.name}\n")
    assert f"{row.parameters:,}" in card
    assert row.licence in card
    assert row.task == "upscale" or re.search(r"Clean photographs change by \d\d\.\d dB", card)


@every_bundled
def test_a_recipe_of_that_name_builds_the_model(row):
    if not (RECIPES / f"{row.name}.toml").exists():
        pytest.skip("not trained here")
    config = read_recipe(row.name)
    assert config.scale == row.scale
    assert sum(p.numel() for p in build_network(config).parameters()) == row.parameters


def test_a_model_is_found_by_its_name():
    assert model_named("tiny-x9") is None
    assert model_named("tiny-x4").scale == 4


def test_rows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MODELS[0].name = "other"  # type: ignore[misc]


def test_models_are_listed_without_torch():
    assert mambair_cli.list_models() is MODELS
    program = "import mambair_cli, sys; assert mambair_cli.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
