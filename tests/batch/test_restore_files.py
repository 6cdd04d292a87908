"""From a request to what became of each file, with the stand-in for networks."""

from dataclasses import replace
from pathlib import Path

import pytest
from doubler import Doubler
from failing import fails
from folders import make, pixels_of

from mambair_cli.batch.rates import keep_rate, read_rate
from mambair_cli.batch.restore_files import Request, plan_files, restore_files
from mambair_cli.errors import CallError
from mambair_cli.images.io import read_image
from mambair_cli.models.tasks import TASKS
from mambair_cli.restore import upscaler

pytestmark = pytest.mark.usefixtures("empty_folder")
UPSCALE = Request(TASKS["upscale"], ("a.png",), scale=2)


@pytest.fixture
def doubler(monkeypatch):
    restorer = Doubler()
    monkeypatch.setattr(upscaler, "Upscaler", lambda choice, options: restorer)
    return restorer


def run(request, done=lambda record: None):
    return restore_files(plan_files(request), done=done, progress=lambda share, label: None)


def test_one_file(doubler):
    make("a.png")
    plan = plan_files(UPSCALE)
    assert (plan.folder, plan.scale, plan.row) == (None, 2, None)
    assert [job.target for job in plan.jobs] == [Path("a_x2.png")]
    outcome = run(UPSCALE)
    assert (outcome.total, outcome.stopped, outcome.models) == (1, None, ["tiny-x2"])
    assert (outcome.backend, outcome.device) == ("numba", "cpu")
    assert outcome.better["model"] == "mambair-light-c-x2"
    assert run(replace(UPSCALE, advice=False)).better is None
    assert read_image(Path("a_x2.png")).pixels.shape == (32, 32, 3)


def test_the_scale(doubler):
    make("a.png")
    for scale, model, expected in [
        (None, None, 4),
        (None, "tiny-x3", 3),
        (1.5, None, 1.5),
        (1.5, "tiny-x3", 1.5),
    ]:
        plan = plan_files(replace(UPSCALE, scale=scale, model=model))
        assert (plan.scale, plan.upscaler) == (expected, None)
    plan = plan_files(replace(UPSCALE, scale=None, width=40, height=50))
    assert (plan.scale, plan.jobs[0].target) == (None, Path("a_40w50h.png"))
    plan = plan_files(replace(UPSCALE, scale=None, model="net.pth"))
    assert (plan.scale, plan.upscaler) == (doubler.scale, doubler)
    fails(lambda: plan_files(replace(UPSCALE, width=9)), CallError, "`scale` excludes `width`")


def test_a_model_for_another_task(doubler):
    make("a.png")
    plan = plan_files(replace(UPSCALE, model="tiny-derain"))
    fails(lambda: restore_files(plan, done=print, progress=print), CallError, "tiny-derain is for")


def test_what_stops_a_run_comes_after_its_records(doubler):
    make(*(f"in/{i}.png" for i in range(3)))
    request, told = replace(UPSCALE, inputs=("in",), output="out"), []

    def at_work(image):
        if image.pixels.tobytes() == pixels_of(1).tobytes():
            raise KeyboardInterrupt

    doubler.at_work = at_work
    outcome = run(request, told.append)
    assert isinstance(outcome.stopped, KeyboardInterrupt)
    assert [record.status for record in outcome.records] == ["ok"]
    assert told == outcome.records
    assert outcome.total == 3
    doubler.at_work = lambda image: None
    outcome = run(request)
    assert [record.status for record in outcome.records] == ["skipped", "ok", "ok"]
    assert outcome.better is None


def test_a_dry_run_fetches_nothing(doubler):
    make("a.png")
    plan = plan_files(replace(UPSCALE, model="mambair-classic-x2", dry_run=True))
    words = "mambair-classic-x2 is not here yet", "mambair models pull mambair-classic-x2"
    fails(lambda: restore_files(plan, done=print, progress=print), CallError, *words)


def test_how_long_a_run_takes_is_learnt(doubler, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path_factory.mktemp("home")))
    make("a.png", size=128)
    steps = []
    plan = plan_files(UPSCALE)
    restore_files(plan, done=print, progress=lambda share, label: steps.append((share, label)))
    assert steps[0] == (0.0, "compiling kernels for this processor, once, about 8 s")
    assert [share for share, _ in steps] == sorted(share for share, _ in steps)
    assert {label for _, label in steps[1:]} == {"a.png"}
    assert steps[-1][0] == 1
    assert read_rate("tiny-x2", "numba", "cpu") > 0
    restore_files(plan, done=print, progress=lambda share, label: steps.append((share, label)))
    assert (0.0, "loading the network") in steps
    keep_rate("tiny-x2", "numba", "cpu", 128 * 128, 100.0)
    for options, seconds in (
        (UPSCALE.options, "2 min"),
        (replace(UPSCALE.options, ensemble=True), "13 min"),
    ):
        notes, request = [], replace(UPSCALE, options=options)
        restore_files(plan_files(request), done=print, progress=lambda *_: None, note=notes.append)
        keep_rate("tiny-x2", "numba", "cpu", 128 * 128, 100.0)
        assert notes[0].startswith(f"0.0 megapixels, about {seconds}")
    assert notes[0].endswith("; without `ensemble` about 2 min")
