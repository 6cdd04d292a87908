from types import SimpleNamespace

import pytest
import torch
from failing import fails

from mambair_cli.bench.cost import speed
from mambair_cli.bench.cost.probe import Measured
from mambair_cli.errors import BackendError, CallError


@pytest.fixture
def probes(monkeypatch):
    """What was asked for; a pixel takes a microsecond at 64x64 and twice that elsewhere."""
    asked = []

    def measure(*probes):
        asked.extend(probes)
        found = []
        for probe in probes:
            seconds = probe.height * probe.width * (1e-6 if probe.width == 64 else 2e-6)
            found.append(Measured(1, 2, probe.backend, "cpu", 0, 0, 2**28, seconds))
        return found

    monkeypatch.setattr(speed, "measure", measure)
    return asked


def test_a_row_for_each_model_back_end_and_size(probes):
    said = []
    rows = speed.speed(
        ["a", "b"],
        ["numba", "reference"],
        "cpu",
        "fp32",
        (64, 128),
        lambda share, label: said.append((share, label)),
    )
    assert [(r.model, r.backend, r.width) for r in rows] == [
        (model, backend, side)
        for model in "ab"
        for backend in ("numba", "reference")
        for side in (64, 128)
    ]
    assert [r.growth for r in rows] == pytest.approx([1, 2] * 4)
    assert [r.seconds_per_megapixel for r in rows] == pytest.approx(
        [0.25, 0.5] * 4
    )  # of the output, 4 times as many
    assert {r.process for r in rows} == {2**28}
    assert all(
        (probe.tile, probe.device, probe.dtype, probe.repeats) == ("off", "cpu", "fp32", 3)
        for probe in probes
    )
    assert said[0] == (0, "a numba")
    assert said[1] == (pytest.approx(1 / 4), "a reference")


def test_a_gpu_with_and_without_graphs(probes, monkeypatch):
    monkeypatch.setattr(speed, "resolve_device", lambda name: torch.device(name))
    monkeypatch.setattr(speed, "resolve_backend", lambda name, device: SimpleNamespace(name=name))
    rows = speed.speed(["a"], ["triton"], "cuda", sides=(64, 128))
    assert [(r.graphs, r.width, r.growth) for r in rows] == [
        (False, 64, 1), (False, 128, 2), (True, 64, 1), (True, 128, 2)
    ]  # fmt: skip
    assert [probe.graphs for probe in probes] == [0, 0, 1, 1]


def test_named_back_ends_alone(probes):
    rows = speed.speed(["a"], ["reference"], "cpu", sides=(64,))
    assert [r.backend for r in rows] == ["reference"]
    fails(lambda: speed.speed(["a"], ["cuda"], "cpu"), CallError, "no back end is called 'cuda'")
    fails(lambda: speed.speed(["a"], [], "tpu"), CallError, "unknown device")


def test_the_reference_is_left_out_unless_asked_for(probes, monkeypatch):
    rows = speed.speed(["a"], [], "cpu", sides=(64,))
    assert [r.backend for r in rows] == ["numba"]
    *_, reference = speed.BACKENDS
    monkeypatch.setattr(speed, "BACKENDS", (reference,))
    rows = speed.speed(["a"], [], "cpu", sides=(64,))
    assert [r.backend for r in rows] == ["reference"]


def test_a_back_end_that_cannot_run(probes, monkeypatch):
    def refuse(name, device):
        raise BackendError(f"{name} cannot run on {device}")

    monkeypatch.setattr(speed, "resolve_backend", refuse)
    fails(lambda: speed.speed(["a"], ["numba"], "cpu"), BackendError, "numba cannot run on cpu")


def test_a_real_measurement():
    (row,) = speed.speed(["tiny-x2"], ["reference"], "cpu", sides=(32,))
    assert 0 < row.seconds < 60
    assert row.seconds_per_megapixel == pytest.approx(row.seconds / (4 * 32 * 32 / 1e6))
