import json
from dataclasses import asdict, replace

import pytest
from failing import fails

from mambair_cli.errors import CallError
from mambair_cli.models import catalog
from mambair_cli.models.cache import Record, record_file
from mambair_cli.models.catalog import REAL, list_models, model_named
from mambair_cli.models.choice import (
    Choice,
    better_model,
    check_task,
    find_models,
    gain,
    is_here,
    parse_choice,
)
from mambair_cli.models.tasks import TASKS

MODELS = list_models()


def use(monkeypatch, models):
    """Let the catalog have these models."""
    monkeypatch.setattr(catalog, "read_catalog", lambda path: tuple(models))


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        *((scale, "tiny-x2") for scale in (1, 1.5, 2)),
        *((scale, "tiny-x3") for scale in (2.1, 3)),
        *((scale, "tiny-x4") for scale in (3.1, 4)),
        *((scale, "tiny-x4 tiny-x2") for scale in (4.1, 8)),
        *((scale, "tiny-x4 tiny-x3") for scale in (8.1, 12)),
        *((scale, "tiny-x4 tiny-x4") for scale in (12.1, 16)),
    ],
)
def test_the_smallest_sufficient_models_are_found(monkeypatch, scale, names):
    for models in (MODELS, MODELS[::-1]):
        use(monkeypatch, models)
        assert [model.name for model in find_models("upscale", scale)] == names.split()


def test_another_task_has_other_models(monkeypatch):
    assert [find_models(task)[0].name for task in TASKS] == [
        "tiny-x2",
        "tiny-denoise",
        "tiny-derain",
        "tiny-dejpeg",
    ]
    fails(lambda: find_models("denoise", 2), CallError, "denoise", "x2", "choose a model yourself")
    use(monkeypatch, [m for m in MODELS if m.name != "tiny-denoise"])
    fails(
        lambda: find_models("denoise"),
        CallError,
        "no bundled model for denoise yet",
        "a name of mambair models list",
    )


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
        use(monkeypatch, models)
        assert [model.name for model in find_models(task, level=level)] == [f"mambair-{name}"]


def test_real_photographs_have_models_of_their_own(monkeypatch):
    assert find_models("denoise", real=True) == [model_named("tiny-denoise-real")]
    use(monkeypatch, [m for m in MODELS if not (m.bundled and m.degradation == REAL)])
    words = "no bundled model for upscale with `degradation=real`", "choose a model yourself"
    fails(lambda: find_models("upscale", 4, real=True), CallError, *words)
    monkeypatch.undo()
    real = model_named("tiny-real-x4")
    assert find_models("upscale", 4, real=True) == [real]
    assert find_models("upscale", 2, real=True) == [real]
    assert real not in find_models("upscale", 4)


@pytest.mark.parametrize(
    ("task", "setting", "wanted"),
    [
        ("upscale", None, {"real": None}),
        ("upscale", "auto", {"real": None}),
        ("upscale", "bicubic", {}),
        ("upscale", "real", {"real": True}),
        ("denoise", None, {"real": None}),
        ("denoise", "auto", {"real": None}),
        ("denoise", "real", {"real": True}),
        ("denoise", "0", {"level": 0}),
        ("denoise", "25", {"level": 25}),
        ("derain", None, {}),
        ("dejpeg", None, {}),
        ("dejpeg", "auto", {}),
        ("dejpeg", "10", {"level": 10}),
    ],
)
def test_what_the_option_of_a_task_says(task, setting, wanted):
    assert parse_choice(TASKS[task], setting, None) == Choice(task, **wanted)


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        ("upscale", "blur", "`degradation` takes auto or bicubic or real, not 'blur'"),
        ("upscale", "4", "`degradation` takes auto or bicubic or real, not '4'"),
        ("denoise", "256", "`noise` takes auto or real or a number from 0 to 255, not '256'"),
        ("denoise", "-5", "not '-5'"),
        ("denoise", "2.5", "not '2.5'"),
        ("dejpeg", "0", "`jpeg` takes auto or a number from 1 to 100, not '0'"),
        ("dejpeg", "real", "not 'real'"),
    ],
)
def test_what_the_option_of_a_task_does_not_take(task, setting, words):
    fails(lambda: parse_choice(TASKS[task], setting, None), CallError, words)


def test_an_option_and_a_model_exclude_each_other():
    words = "`noise=auto` chooses among the bundled models, and mambair-denoise-25 is another"
    fails(lambda: parse_choice(TASKS["denoise"], "auto", "mambair-denoise-25"), CallError, words)
    assert parse_choice(TASKS["denoise"], None, "mambair-denoise-25") == Choice(
        "denoise", "mambair-denoise-25"
    )


def test_each_image_may_decide():
    choice = Choice(real=None)
    assert choice.by_image
    assert not choice.by_level
    clean, real = find_models("upscale", 2), find_models("upscale", 2, real=True)
    assert choice.models(2) == clean
    assert choice.models(2, real=True) == real
    assert choice.possible(2) == [clean[0].name, real[0].name]
    everything = {*Choice().possible(None), *Choice(real=True).possible(None)}
    assert set(choice.possible(None)) == everything
    assert not Choice().by_image
    assert Choice().models(2, real=True) == clean
    assert not Choice(model="tiny-x2", real=None).by_image
    assert Choice("denoise", real=None).by_level
    assert Choice("denoise").by_image
    assert not Choice("denoise", level=25).by_image


@pytest.mark.parametrize("task", TASKS)
def test_only_bundled_models_are_chosen(monkeypatch, task):
    """A command without -m needs no network, however many models could be fetched."""
    use(monkeypatch, [row for row in MODELS if not row.bundled])
    fails(
        lambda: find_models(task),
        CallError,
        f"no bundled model for {task}",
        "choose a model yourself",
    )


def test_the_cheapest_model_that_is_better(monkeypatch, tmp_path):
    tiny, light, none_known = (
        model_named(name) for name in ("tiny-x4", "mambair-light-c-x4", "mambair-light-b-x4")
    )
    assert better_model(tiny) == light
    assert better_model(light) == model_named(
        "mambair-classic-x4"
    )  # light-b is 0.09 dB better, and nowhere to be had
    assert better_model(model_named("mambair-classic-x4")) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert better_model(tiny) is None
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    file, record = tmp_path / "models" / "net.pth", record_file(none_known.name)
    file.parent.mkdir()
    for text in (
        "{",
        json.dumps(asdict(Record(none_known.name, "net.pth", "0", "", "upscale", "mambair", 4, 1))),
    ):
        assert not is_here(none_known)
        record.write_text(text)
        assert better_model(tiny) is None
    file.touch()
    assert is_here(none_known)
    assert better_model(tiny) == none_known


def test_gains_count_on_the_same_images():
    tiny, light = model_named("tiny-x4"), model_named("mambair-light-c-x4")
    assert gain(light, tiny) == pytest.approx(light.scores[0].psnr - tiny.scores[0].psnr)
    assert gain(model_named("mambair-denoise-real"), model_named("tiny-denoise-real")) == 0
    assert gain(model_named("vmambair-x4"), tiny) == 0  # nobody scored it


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
        (
            "upscale",
            None,
            1,
            "does not enlarge; use mambair denoise or derain or dejpeg INPUT -m 'a net.pth'",
        ),
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
