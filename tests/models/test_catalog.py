import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from failing import fails

import mambair_cli
from mambair_cli.archs import ARCHITECTURES
from mambair_cli.archs.complexity import complexity
from mambair_cli.errors import CallError
from mambair_cli.models.cache import NAME
from mambair_cli.models.catalog import (
    CAMERA,
    CATALOG,
    REAL,
    list_models,
    model_named,
    read_catalog,
)
from mambair_cli.models.published import Score
from mambair_cli.models.recognise import check_model, describe
from mambair_cli.models.tasks import TASKS
from mambair_cli.models.weights import bundled_folder
from mambair_cli.system.files import sha256
from mambair_cli.training.recipe import RECIPES, build_network, read_recipe

MODELS = list_models()
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


@every_bundled
def test_a_row_says_what_its_file_is(row):
    path = bundled_folder() / row.file
    assert sha256(path) == row.sha256
    facts = describe(path)
    check_model(row, facts, "the file")
    assert facts["scale"] == row.scale
    assert not row.urls


@every_model
def test_a_row_builds_its_network(row):
    architecture = ARCHITECTURES[row.arch]
    with torch.device("meta"):
        model = architecture.network(architecture.config(**row.config))
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


def test_scores_are_found_in_the_table():
    assert model_named("mambair-classic-x4").scores[0] == Score("Set5", 33.03, 0.9046)
    assert model_named("mambair-light-c-x2").scores[-1] == Score("Manga109", 39.2, 0.9782)


@every_model
def test_addresses_are_of_the_places_that_the_authors_named(row):
    for url in row.urls:
        assert re.fullmatch(
            r"https://huggingface\.co/cguoh/MambaIR/resolve/main/MambaIRv[12]_ckpt/\w+\.pth"
            r"|https://github\.com/csguoh/MambaIR/releases/download/v1\.0/mambairv2_\w+\.pth"
            r"|https://drive\.usercontent\.google\.com/download\?id=[\w-]{33}&export=download&confirm=t",
            url,
        )


@every_bundled
def test_a_model_has_a_card(row):
    card = (bundled_folder() / row.file).with_suffix(".md").read_text("utf-8")
    # after what the Hub reads
    assert card.partition("\n---\n\n")[2].startswith(f"# {row.name}\n")
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
    program = "import mambair_cli, sys; assert mambair_cli.list_models()\n"
    program += "assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_does_not_read_the_catalog():
    program = "import mambair_cli.cli\nfrom mambair_cli.models.catalog import read_catalog\n"
    program += "assert read_catalog.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_real_photographs_have_their_words():
    """Which models are for them is known by these words."""
    found = {row.degradation for row in MODELS if "real" in row.name}
    assert found == {CAMERA, REAL}
    assert {row.degradation for row in MODELS if "real" not in row.name}.isdisjoint(found)


# What the file may not say

TABLE = CATALOG.read_text("utf-8").partition("[tiny-x2]\n")[2].partition("\n[")[0]


def test_a_table_by_itself(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text(f"[tiny-x2]\n{TABLE}")
    assert read_catalog(path) == (model_named("tiny-x2"),)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("parameters = ", "parametres = ", "unknown key 'parametres'; did you mean 'parameters'?"),
        ("parameters = ", "x = ", "unknown key 'x'; there are name, task"),
        ("parameters = 217_654", "", "missing parameters"),
        ("parameters = 217_654", 'parameters = "many"', "parameters must be a whole number"),
        ("parameters = 217_654", "parameters = true", "parameters must be a whole number"),
        ("scale = 2", "scale = 2.5", "scale must be a whole number, not 2.5"),
        ("gmacs = 64.0", "gmacs = [64]", "gmacs must be a number, not [64]"),
        ('task = "upscale"', "task = 3", "task must be text, not 3"),
        ('task = "upscale"', 'task = "upscal"', "'upscal'; did you mean 'upscale'?"),
        ("scale = 2", "scale = 2\nconfig.upscale = 2", "unknown key 'config.upscale'; 'scale'"),
        ("scale = 2", "scale = 2\nlevels = [1, 2, 3]", "levels must be a list of 2"),
        ("scale = 2", 'scale = 2\nlevels = [1, "2"]', "levels must be a whole number"),
        ("scale = 2", 'scale = 2\nurls = "https://"', "urls must be a list, not 'https://'"),
        ("scale = 2", "scale = 2\nurls = [1]", "urls must be text, not 1"),
        ('dataset = "Set5"', 'data = "Set5"', "unknown key 'data'; did you mean 'dataset'?"),
        ("scale = 2", "scale = 2\nscale = 3", "is no valid TOML"),
    ],
)
def test_a_table_with_errors(tmp_path, old, new, words):
    path = tmp_path / "catalog.toml"
    assert old in TABLE
    path.write_text(f"[tiny-x2]\n{TABLE.replace(old, new, 1)}")
    where = "catalog.toml is no" if "TOML" in words else "catalog.toml, [tiny-x2]: "
    fails(lambda: read_catalog(path), CallError, where, words)


def test_a_model_is_a_table(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text("tiny-x2 = 3")
    fails(lambda: read_catalog(path), CallError, "[tiny-x2] must be a table")
