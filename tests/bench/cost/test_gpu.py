"""The report on a GPU, without one: its counts, and its rows with given costs."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from failing import fails
from gpu_reports import CPU, assert_printable, fast_rates

from mambair_cli.bench.cache import Cache
from mambair_cli.bench.cost import gpu
from mambair_cli.bench.cost.gpu_cases import Cost, Failed
from mambair_cli.errors import BackendError, CallError
from mambair_cli.ops import backends

# Rows


def row_of(rows, *words):
    (row,) = (row for row in rows if all(word in row.what for word in words))
    return row


def facts_of(rows, *words):
    row = row_of(rows, *words)
    return row.value, row.bar, row.met


def test_rows_of_the_forward(gpu_costs, gpu_report):
    gpu_costs += [
        Cost(2e-3, 300),
        Cost(7e-3, 1000),
        Cost(9e-3, 0),
        Cost(1e-3, 0),
    ]  # ours, theirs, vectorised; the scan
    rows = list(
        gpu_report((1, 6), rates=fast_rates(bytes=36 * 4 * (14 + 4 * 5) / 0.4e-3))._forward("light")
    )
    assert not gpu_costs
    assert_printable(rows)
    assert facts_of(rows, "light 1x6x6, forward, mamba-ssm / triton") == (
        "3.50 (7 / 2 ms)",
        ">= 3",
        True,
    )
    assert facts_of(rows, "memory") == ("0.30", "<= 0.35", True)
    assert facts_of(rows, "floor") == ("2.50 (1 / 0.4 ms)", "<= 2", False)
    assert facts_of(rows, "vectorised PyTorch / triton") == ("4.50 (9 / 2 ms)", "", None)
    assert [row.value for row in rows[:3]] == ["2 ms, 0 MiB", "7 ms, 0 MiB", "9 ms, 0 MiB"]


def test_rows_of_the_backward(gpu_costs, gpu_report, monkeypatch):
    gpu_costs += [Cost(4e-3, 2), Cost(6e-3, 8), Cost(8e-3, 0), Cost(1.0, 0), Cost(1.0, 0)]
    monkeypatch.setattr(gpu, "LONG", 7 * 36)
    rows = list(gpu_report((2, 4), (1, 6))._backward("light"))
    assert not gpu_costs
    assert_printable(rows)
    assert facts_of(rows, "2x4x4", "mamba-ssm / triton", "+ backward, mamba") == (
        "1.50 (6 / 4 ms)",
        ">= 2",
        False,
    )
    assert facts_of(rows, "2x4x4", "memory") == ("0.25", "", None)
    assert facts_of(rows, "2x4x4", "vectorised PyTorch / triton") == ("2.00 (8 / 4 ms)", "", None)
    assert not [
        row for row in rows if "vectorised" in row.what and "1x6x6" in row.what
    ]  # it would take too long


def test_bars_hold_for_their_sides_alone(gpu_report):
    rows = list(gpu_report((2, 4), (1, 5), (1, 6))._forward("light"))
    assert_printable(rows)
    barred = [row.what for row in rows if row.bar]
    assert [re.search(r"\dx\dx\d", what)[0] for what in barred] == ["1x6x6"] * 3


def test_what_cannot_be_measured_says_why(gpu_costs, gpu_report, monkeypatch):
    gpu_costs += [
        Failed("out of memory"),
        Cost(1e-3, 5),
        RuntimeError("the kernel\nand where"),
        Failed("out of memory"),
    ]
    rows = list(gpu_report((1, 6))._forward("light"))
    assert [row.value for row in rows] == [
        "out of memory",
        "1 ms, 0 MiB",
        "failed: RuntimeError: the kernel",
        "not measured (out of memory)",
        "not measured (failed: RuntimeError: the kernel)",
        "not measured (out of memory)",
        "not measured (out of memory)",
    ]
    assert all(row.met is None for row in rows)
    assert [row.bar for row in rows if row.bar] == [">= 3", "<= 0.35", "<= 2"]
    missing = replace(backends.BACKENDS[1], unavailable=lambda device, dtype: "it is not installed")
    monkeypatch.setattr(gpu, "BACKENDS", (backends.BACKENDS[0], missing, backends.BACKENDS[2]))
    rows = list(gpu_report((1, 6))._forward("light"))
    assert rows[1].value == "it is not installed"
    assert facts_of(rows, "forward, mamba-ssm / triton") == (
        "not measured (it is not installed)",
        ">= 3",
        None,
    )
    assert facts_of(rows, "memory") == ("not measured (it is not installed)", "<= 0.35", None)
    assert (
        row_of(list(gpu_report()._machine()), "back end mamba-ssm").value == "it is not installed"
    )


def test_rows_of_nets(gpu_costs, gpu_report):
    gpu_costs += [Cost(1e-3, 2**20), Cost(5e-3, 0)]
    rows = list(gpu_report((1, 6), (2, 4))._nets("light"))
    assert_printable(rows)
    assert (
        row_of(rows, "1x6x6, float16, triton").value
        == "1 ms, 1 MiB, 0.036 megapixels of input a second"
    )
    assert facts_of(rows, "1x6x6, float16, mamba-ssm / triton") == (
        "5.00 (5 / 1 ms)",
        ">= 2.5",
        True,
    )
    assert row_of(rows, "1x6x6, float32, mamba-ssm / triton").met is False
    (row,) = (
        row
        for row in gpu_report()._training("light")
        if row.what.endswith("step, mamba-ssm / triton")
    )
    assert (row.what[:33], row.value) == (
        "net light 16x4x4, float32, traini",
        "1.00 (1e+03 / 1e+03 ms)",
    )


def test_rows_of_the_engine(gpu_costs, gpu_report, monkeypatch):
    made, build = [], gpu.Restorer

    def restorer(*arguments):
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(gpu, "Restorer", restorer)
    ways = [
        (what, "off" if tile == "off" else "40", *rest) for what, tile, *rest in gpu.ENGINE_WAYS
    ]
    monkeypatch.setattr(gpu, "ENGINE_WAYS", ways)
    gpu_costs += [Cost(4e-3, 0), Cost(2e-3, 0), Cost(1e-3, 0)]
    rows = list(gpu_report((1, 60))._engine())
    assert_printable(rows)
    assert rows[0].what == "engine light 60x60, float32, tiles of 128 one by one"
    assert rows[0].value == "4 ms, 0 MiB, 0.9 megapixels of input a second"
    assert row_of(rows, "in batches, gain").value == "2.00 (4 / 2 ms)"
    assert [(r.tile, r.largest_batch) for r in made] == [
        (40, 1), (40, gpu.BATCH_PIXELS), (40, gpu.BATCH_PIXELS), ("off", 1), ("off", 1)
    ]  # fmt: skip
    # What was to be recorded tells that it was not: here there is no GPU.
    if not torch.cuda.is_available():
        assert all("failed" in row.value for row in rows if "graphs" in row.what)


def test_a_recording_that_fails_is_no_measurement_without_it(gpu_costs, gpu_report, monkeypatch):
    monkeypatch.setattr(
        gpu.Restorer, "restore", lambda self, image: setattr(self.runner.graphs, "limit", 0)
    )
    values = {row.what.split(", ")[-1]: row.value for row in gpu_report((1, 8))._engine()}
    assert values["CUDA graphs"] == "not measured (failed: RuntimeError: nothing could be recorded)"


def test_errors_against_float64(gpu_report, monkeypatch):
    def rows():
        found = list(gpu_report()._errors("light"))
        assert_printable(found)
        return [(float(row.value), row.met) for row in found]

    assert all(0 < error < 1e-5 and met for error, met in rows())
    by = gpu._by
    for factor, error in (
        (1.001, pytest.approx(1e-3, rel=0.1)),
        (torch.nan, pytest.approx(torch.nan, nan_ok=True)),
    ):
        monkeypatch.setattr(
            gpu, "_by", lambda backend, f=factor: lambda *inputs: f * by(backend)(*inputs)
        )
        assert rows() == [(error, False)] * 2
    monkeypatch.setattr(gpu, "gradients", lambda *_: 1 / 0)
    row = next(gpu_report()._errors("light"))
    assert (row.value, row.met) == (
        "not measured (failed: ZeroDivisionError: division by zero)",
        None,
    )


# A run that is cut off


def test_a_run_goes_on_where_it_was_cut_off(gpu_costs, gpu_report, tmp_path):
    def rows(name="results.sqlite"):
        return gpu_report((1, 6), cache=Cache(tmp_path / name)).rows()

    whole = list(rows("another.sqlite"))
    gpu_costs += [Cost(i, i) for i in range(1, 4)]
    begun = list(itertools.islice(rows(), 12))
    assert any("1e+03 ms" in row.value for row in begun)
    again = list(rows())
    assert again[:12] == begun
    assert [row.what for row in again] == [row.what for row in whole]
    assert_printable(again)
    assert again == list(rows())


def test_a_failure_that_leaves_the_gpu_unusable_ends_the_run_and_the_next_steps_over_it(
    gpu_costs, gpu_report, monkeypatch
):
    cache = Cache(None)
    gpu_costs += [RuntimeError("an illegal memory access")]

    def unusable():
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(torch.cuda, "synchronize", unusable)
    with pytest.raises(RuntimeError, match="is gone"):
        list(gpu_report((1, 6), cache=cache)._forward("light"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = list(gpu_report((1, 6), cache=cache)._forward("light"))
    assert rows[0].value == "failed: RuntimeError: an illegal memory access"
    assert rows[1].value == "1e+03 ms, 0 MiB"


def test_results_of_one_gpu_are_not_anothers(gpu_costs, gpu_report):
    cache = Cache(None)
    list(gpu_report((1, 6), cache=cache)._forward("light"))
    other = gpu.GpuReport(CPU, "another GPU", ((1, 6),), cache)
    gpu_costs += [Cost(5.0, 5)]
    assert next(other._forward("light")).value == "5e+03 ms, 0 MiB"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    fails(lambda: gpu.scan_report("cuda", True), BackendError, "'cuda' cannot be used")


def test_other_devices(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    fails(lambda: gpu.scan_report("mps", True), CallError, "cpu or cuda, not mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.long
def test_the_whole_report_on_a_gpu():
    rows = list(gpu.scan_report("cuda", True))
    assert_printable(rows)
    assert all(row.met for row in rows if "error" in row.what)
