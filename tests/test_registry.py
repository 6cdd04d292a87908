import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from failing import fails

import mambair_cli
from mambair_cli import registry
from mambair_cli.cache import NAME
from mambair_cli.errors import CallError
from mambair_cli.registry import (
    MODELS,
    REAL,
    TASKS,
    Choice,
    Score,
    check_task,
    find_models,
    model_named,
    parse_choice,
    published_scores,
)
from mambair_cli.training.recipe import RECIPES, build_network, read_recipe
from mambair_cli.weights import ARCHITECTURES, bundled_folder, check_row, describe, sha256

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
    model = network(config(**row.config))
    assert sum(p.numel() for p in model.parameters()) == row.parameters
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
    assert all(10 < score.psnr < 60 and score.channel in ("Y", "RGB", "gray") for score in row.scores)
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


@every_bundled
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
    assert [find_models(task)[0].name for task in TASKS] == ["tiny-x2", "tiny-denoise", "tiny-derain", "tiny-dejpeg"]
    fails(lambda: find_models("denoise", 2), CallError, "denoise", "x2", "-m")
    monkeypatch.setattr(registry, "MODELS", tuple(m for m in MODELS if m.name != "tiny-denoise"))
    fails(lambda: find_models("denoise"), CallError, "no bundled model for denoise yet", "--task denoise")


@pytest.mark.parametrize(
    ("task", "level", "name"),
    [
        ("denoise", None, "denoise-15"),
        ("denoise", 0, "denoise-15"),
        ("denoise", 15, "denoise-15"),
        ("denoise", 16, "denoise-25"),
        ("denoise", 26, "denoise-50"),
        ("denoise", 90, "denoise-50"),
        ("dejpeg", None, "jpeg-40"),
        ("dejpeg", 95, "jpeg-40"),
        ("dejpeg", 40, "jpeg-40"),
        ("dejpeg", 39, "jpeg-30"),
        ("dejpeg", 11, "jpeg-10"),
        ("dejpeg", 3, "jpeg-10"),
    ],
)
def test_the_nearest_level_that_is_strong_enough(monkeypatch, task, level, name):
    published = tuple(replace(m, file=m.name) for m in MODELS if m.name.startswith("mambair-"))
    for models in (published, published[::-1]):
        monkeypatch.setattr(registry, "MODELS", models)
        assert [model.name for model in find_models(task, level=level)] == [f"mambair-{name}"]


def test_real_photographs_have_models_of_their_own(monkeypatch):
    assert find_models("denoise", real=True) == [model_named("tiny-denoise-real")]
    monkeypatch.setattr(registry, "MODELS", tuple(m for m in MODELS if not (m.bundled and m.degradation == REAL)))
    words = "no bundled model for upscale --degradation real", "give one with -m"
    fails(lambda: find_models("upscale", 4, real=True), CallError, *words)
    real = replace(model_named("tiny-x4"), name="tiny-real-x4", degradation=REAL)
    monkeypatch.setattr(registry, "MODELS", (*MODELS, real))
    assert find_models("upscale", 4, real=True) == [real]
    assert find_models("upscale", 2, real=True) == [real]
    assert real not in find_models("upscale", 4)


@pytest.mark.parametrize(
    ("task", "setting", "choice"),
    [
        ("upscale", None, {}),
        ("upscale", "bicubic", {}),
        ("upscale", "real", {"real": True}),
        ("denoise", "auto", {}),
        ("denoise", "real", {"real": True}),
        ("denoise", "0", {"level": 0}),
        ("denoise", "25", {"level": 25}),
        ("derain", None, {}),
        ("dejpeg", "10", {"level": 10}),
    ],
)
def test_what_the_option_of_a_task_says(task, setting, choice):
    assert parse_choice(TASKS[task], setting, None) == Choice(task, **choice)


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        ("upscale", "blur", "--degradation takes bicubic or real, not 'blur'"),
        ("upscale", "4", "--degradation takes bicubic or real, not '4'"),
        ("denoise", "256", "--noise takes auto or real or a number from 0 to 255, not '256'"),
        ("denoise", "-5", "not '-5'"),
        ("denoise", "2.5", "not '2.5'"),
        ("dejpeg", "0", "--jpeg takes auto or a number from 1 to 100, not '0'"),
        ("dejpeg", "real", "not 'real'"),
    ],
)
def test_what_the_option_of_a_task_does_not_take(task, setting, words):
    fails(lambda: parse_choice(TASKS[task], setting, None), CallError, words)


def test_an_option_and_a_model_exclude_each_other():
    words = "--noise chooses among the bundled models, and -m names another"
    fails(lambda: parse_choice(TASKS["denoise"], "auto", "mambair-denoise-25"), CallError, words)
    assert parse_choice(TASKS["denoise"], None, "mambair-denoise-25") == Choice("denoise", "mambair-denoise-25")


@pytest.mark.parametrize("task", TASKS)
def test_only_bundled_models_are_chosen(monkeypatch, task):
    """A command without -m needs no network, however many models could be fetched."""
    monkeypatch.setattr(registry, "MODELS", tuple(row for row in MODELS if not row.bundled))
    fails(lambda: find_models(task), CallError, f"no bundled model for {task}", "-m")


@pytest.mark.parametrize(
    ("command", "task", "scale"),
    [
        ("upscale", None, 4),
        ("upscale", "upscale", 2),
        ("denoise", None, 1),
        ("denoise", "denoise", 1),
        ("derain", None, 1),
        ("derain", "of the future", 1),
    ],
)
def test_a_network_that_fits_the_command(command, task, scale):
    check_task(command, "net.pth", task, scale)


@pytest.mark.parametrize(
    ("command", "task", "scale", "words"),
    [
        ("upscale", None, 1, "does not enlarge; use mambair denoise or derain or dejpeg INPUT -m 'a net.pth'"),
        ("upscale", "denoise", 1, "is for denoise; use mambair denoise INPUT -m 'a net.pth'"),
        ("denoise", None, 4, "enlarges 4 times; use mambair upscale INPUT -m 'a net.pth'"),
        ("denoise", "upscale", 4, "is for upscale; use mambair upscale INPUT -m 'a net.pth'"),
        ("denoise", "dejpeg", 1, "is for dejpeg; use mambair dejpeg INPUT -m 'a net.pth'"),
    ],
)
def test_a_network_for_another_command(command, task, scale, words):
    fails(lambda: check_task(command, "a net.pth", task, scale), CallError, f"a net.pth {words}")


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
