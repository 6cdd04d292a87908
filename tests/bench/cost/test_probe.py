import subprocess
from dataclasses import replace

from failing import fails

from mambair_cli.bench.cost import probe
from mambair_cli.bench.cost.probe import STAND_IN, Probe, measure, run
from mambair_cli.errors import CallError, RestorationError
from mambair_cli.restore.restorer import Restorer


def test_a_model_in_a_process_of_its_own():
    probe = Probe("tiny-x2", 96, 64, device="cpu", backend="reference", repeats=2)
    small, found = measure(replace(probe, height=32, width=32), probe)
    assert (small.tiles, small.device) == (1, "cpu")
    assert (found.tiles, found.scale, found.backend, found.device) == (
        1,
        2,
        "reference",
        "cpu",
    )
    assert 2**20 < found.measured < found.process < 8 * 2**30
    assert 0.2 < found.predicted / found.measured < 5
    assert 0 < found.seconds < 60


def test_in_this_process_the_same_is_measured():
    found = run(Probe(STAND_IN, 64, 48, device="cpu"))
    assert found.scale == 2


def test_what_takes_long_is_not_repeated(monkeypatch):
    sizes = []
    restore = Restorer.restore
    monkeypatch.setattr(
        Restorer,
        "restore",
        lambda self, image: sizes.append(image.shape[0]) or restore(self, image),
    )
    for patience, sides in ((60.0, [64, 48, 48]), (0.0, [64, 48])):
        monkeypatch.setattr(probe, "PATIENCE", patience)
        run(Probe(STAND_IN, 48, 48, device="cpu", repeats=2))
        assert sizes == sides
        sizes.clear()


def test_a_limit_makes_tiles():
    assert measure(Probe(STAND_IN, 700, 4096, limit=600 * 2**20, device="cpu"))[0].tiles > 1


def test_a_named_tile_is_taken():
    assert run(Probe("tiny-x2", 100, 40, device="cpu", tile="64")).tiles == 3


def test_what_fails_there_is_told_here():
    fails(
        lambda: measure(Probe("tiny-x9", 64, 64)), RestorationError, "tiny-x9", "no model is called"
    )
    fails(lambda: run(Probe("tiny-x9", 64, 64)), CallError, "tiny-x9")


def test_a_process_that_is_killed_says_nothing(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(probe.subprocess, "run", lambda command, **options: killed)
    fails(
        lambda: measure(Probe("tiny-x2", 64, 64)),
        RestorationError,
        "tiny-x2: the process was killed",
    )
