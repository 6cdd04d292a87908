"""The report on a GPU, without one: its counts, and its rows with costs that are given. No duration is looked at."""

import itertools
import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from failing import fails

from mambair_cli.bench import __main__ as program
from mambair_cli.bench import gpu, gpu_cases
from mambair_cli.bench.cache import Cache
from mambair_cli.bench.gpu_cases import Cost, floor
from mambair_cli.errors import BackendError, CallError
from mambair_cli.ops import scan

CPU = torch.device("cpu")
TINY = replace(gpu_cases.LIGHT, embed_dim=6, depths=(1,), d_state=2)


class Rates:
    def __init__(self, bytes=1e30, exponentials=1e30, instructions=1e30):
        self.bytes, self.exponentials, self.instructions = bytes, exponentials, instructions


# The floor


def test_the_floor_on_an_h100():
    # 132 processors at 1.98 GHz: 16 exponentials, 128 instructions a clock; 3.35 TB/s. As the design has it.
    h100 = Rates(3.35e12, 132 * 16 * 1.98e9, 132 * 128 * 1.98e9)
    assert floor(gpu_cases.NETS["light"], 2**20, h100) == pytest.approx(1.6e-3, rel=0.02)
    assert floor(gpu_cases.NETS["classic"], 2**20, h100) == pytest.approx(12.3e-3, rel=0.02)


def test_the_floor_is_that_of_the_slowest_part():
    config = gpu_cases.NETS["denoise"]  # D = 216, N = 16, R = 12
    assert floor(config, 7, Rates(bytes=10)) == pytest.approx(7 * 4 * (2 * 216 + 4 * 44) / 10)
    assert floor(config, 7, Rates(exponentials=10)) == pytest.approx(7 * 2 * 4 * 216 * 17 / 10)
    assert floor(config, 7, Rates(instructions=10)) == pytest.approx(7 * 4 * 216 * (9 * 16 + 2 * 24) / 10)


def test_the_nets_are_the_published_ones():
    shapes = {name: (c.inner, c.d_state, c.upscale) for name, c in gpu_cases.NETS.items()}
    assert shapes == {"light": (72, 10, 2), "denoise": (216, 16, 1), "classic": (360, 16, 2)}


# Rows


@pytest.fixture
def costs(monkeypatch):
    """Costs that the measurements find, one after the other; each also runs what it should measure, on the CPU.

    numba's scan stands in for Triton's, the reference for mamba-ssm's.
    """
    given, (numba, *_, reference) = [], scan.BACKENDS
    stand_ins = (
        replace(numba, name="triton"),
        replace(reference, name="mamba-ssm"),
        reference,
    )

    def measure(function):
        function()
        found = given.pop(0) if given else Cost(1.0, 100)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(gpu, "measure", measure)
    for module in (gpu, scan):
        monkeypatch.setattr(module, "BACKENDS", stand_ins)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "NETS", {"light": TINY})
    monkeypatch.setattr(gpu, "LARGE", 6)
    monkeypatch.setattr(gpu, "PATCH", 4)
    scan.resolve_backend.cache_clear()
    yield given
    scan.resolve_backend.cache_clear()


@pytest.fixture
def report(costs, monkeypatch):
    """A report of some sizes, on a GPU of given rates."""

    def build(*sizes, rates=None, cache=None):
        monkeypatch.setattr(gpu.Report, "_rates", lambda self: rates or Rates())
        return gpu.Report(CPU, "a GPU", sizes, cache or Cache(None))

    return build


def assert_printable(rows):
    assert len({row["what"] for row in rows}) == len(rows)
    for row in rows:
        assert all(isinstance(row[key], str) for key in ("what", "value", "bar"))
        assert row["met"] in (True, False, None)
        assert row["bar"] or row["met"] is None


def row_of(rows, *words):
    (row,) = (row for row in rows if all(word in row["what"] for word in words))
    return row


def facts_of(rows, *words):
    return tuple(row_of(rows, *words)[key] for key in ("value", "bar", "met"))


def test_rows_of_the_forward(costs, report):
    costs += [Cost(2e-3, 300), Cost(7e-3, 1000), Cost(9e-3, 0), Cost(1e-3, 0)]  # ours, theirs, vectorised; the scan
    rows = list(report((1, 6), rates=Rates(bytes=36 * 4 * (14 + 4 * 5) / 0.4e-3))._forward("light"))
    assert not costs
    assert_printable(rows)
    assert facts_of(rows, "light 1x6x6, forward, mamba-ssm / triton") == ("3.50 (7 / 2 ms)", ">= 3", True)
    assert facts_of(rows, "memory") == ("0.30", "<= 0.35", True)
    assert facts_of(rows, "floor") == ("2.50 (1 / 0.4 ms)", "<= 2", False)
    assert facts_of(rows, "vectorised PyTorch / triton") == ("4.50 (9 / 2 ms)", "", None)
    assert [row["value"] for row in rows[:3]] == ["2 ms, 0 MiB", "7 ms, 0 MiB", "9 ms, 0 MiB"]


def test_rows_of_the_backward(costs, report, monkeypatch):
    costs += [Cost(4e-3, 2), Cost(6e-3, 8), Cost(8e-3, 0), Cost(1.0, 0), Cost(1.0, 0)]
    monkeypatch.setattr(gpu, "LONG", 7 * 36)
    rows = list(report((2, 4), (1, 6))._backward("light"))
    assert not costs
    assert_printable(rows)
    assert facts_of(rows, "2x4x4", "mamba-ssm / triton", "+ backward, mamba") == ("1.50 (6 / 4 ms)", ">= 2", False)
    assert facts_of(rows, "2x4x4", "memory") == ("0.25", "", None)
    assert facts_of(rows, "2x4x4", "vectorised PyTorch / triton") == ("2.00 (8 / 4 ms)", "", None)
    assert not [row for row in rows if "vectorised" in row["what"] and "1x6x6" in row["what"]]  # it would take too long


def test_bars_hold_for_their_sides_alone(report):
    rows = list(report((2, 4), (1, 5), (1, 6))._forward("light"))
    assert_printable(rows)
    barred = [row["what"] for row in rows if row["bar"]]
    assert [re.search(r"\dx\dx\d", what)[0] for what in barred] == ["1x6x6"] * 3


def test_what_cannot_be_measured_says_why(costs, report, monkeypatch):
    costs += ["out of memory", Cost(1e-3, 5), RuntimeError("the kernel\nand where"), "out of memory"]
    rows = list(report((1, 6))._forward("light"))
    assert [row["value"] for row in rows] == [
        "out of memory",
        "1 ms, 0 MiB",
        "failed: RuntimeError: the kernel",
        "not measured (out of memory)",
        "not measured (failed: RuntimeError: the kernel)",
        "not measured (out of memory)",
        "not measured (out of memory)",
    ]
    assert all(row["met"] is None for row in rows)
    assert [row["bar"] for row in rows if row["bar"]] == [">= 3", "<= 0.35", "<= 2"]
    missing = replace(scan.BACKENDS[1], unavailable=lambda device, dtype: "it is not installed")
    monkeypatch.setattr(gpu, "BACKENDS", (scan.BACKENDS[0], missing, scan.BACKENDS[2]))
    rows = list(report((1, 6))._forward("light"))
    assert rows[1]["value"] == "it is not installed"
    assert facts_of(rows, "forward, mamba-ssm / triton") == ("not measured (it is not installed)", ">= 3", None)
    assert facts_of(rows, "memory") == ("not measured (it is not installed)", "<= 0.35", None)
    assert row_of(list(report()._machine()), "back end mamba-ssm")["value"] == "it is not installed"


def test_rows_of_nets(costs, report):
    costs += [Cost(1e-3, 2**20), Cost(5e-3, 0)]
    rows = list(report((1, 6), (2, 4))._nets("light"))
    assert_printable(rows)
    assert row_of(rows, "1x6x6, float16, triton")["value"] == "1 ms, 1 MiB, 0.036 megapixels of input a second"
    assert facts_of(rows, "1x6x6, float16, mamba-ssm / triton") == ("5.00 (5 / 1 ms)", ">= 2.5", True)
    assert row_of(rows, "1x6x6, float32, mamba-ssm / triton")["met"] is False
    (row,) = (row for row in report()._training("light") if row["what"].endswith("step, mamba-ssm / triton"))
    assert (row["what"][:33], row["value"]) == ("net light 16x4x4, float32, traini", "1.00 (1e+03 / 1e+03 ms)")


def test_rows_of_the_engine(costs, report, monkeypatch):
    made, build = [], gpu.Restorer

    def restorer(*arguments):
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(gpu, "Restorer", restorer)
    ways = [(what, "off" if tile == "off" else "40", *rest) for what, tile, *rest in gpu.ENGINE_WAYS]
    monkeypatch.setattr(gpu, "ENGINE_WAYS", ways)
    costs += [Cost(4e-3, 0), Cost(2e-3, 0), Cost(1e-3, 0)]
    rows = list(report((1, 60))._engine())
    assert_printable(rows)
    assert rows[0]["what"] == "engine light 60x60, float32, tiles of 128 one by one"
    assert rows[0]["value"] == "4 ms, 0 MiB, 0.9 megapixels of input a second"
    assert row_of(rows, "in batches, gain")["value"] == "2.00 (4 / 2 ms)"
    assert [(r.tile, r.largest_batch) for r in made] == [
        (40, 1), (40, gpu.BATCH_PIXELS), (40, gpu.BATCH_PIXELS), ("off", 1), ("off", 1)
    ]  # fmt: skip
    # What was to be recorded tells that it was not: here there is no GPU.
    if not torch.cuda.is_available():
        assert all("failed" in row["value"] for row in rows if "graphs" in row["what"])


def test_a_recording_that_fails_is_no_measurement_without_it(costs, report, monkeypatch):
    monkeypatch.setattr(gpu.Restorer, "restore", lambda self, image: setattr(self.runner.graphs, "limit", 0))
    values = {row["what"].split(", ")[-1]: row["value"] for row in report((1, 8))._engine()}
    assert values["CUDA graphs"] == "not measured (failed: RuntimeError: nothing could be recorded)"


def test_a_training_step_learns(costs):
    step = gpu_cases.training(TINY, torch.rand(2, 3, 4, 4), "triton")
    model = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_errors_against_float64(report, monkeypatch):
    def rows():
        found = list(report()._errors("light"))
        assert_printable(found)
        return [(float(row["value"]), row["met"]) for row in found]

    assert all(0 < error < 1e-5 and met for error, met in rows())
    by = gpu._by
    for factor, error in ((1.001, pytest.approx(1e-3, rel=0.1)), (torch.nan, pytest.approx(torch.nan, nan_ok=True))):
        monkeypatch.setattr(gpu, "_by", lambda backend, f=factor: lambda *inputs: f * by(backend)(*inputs))
        assert rows() == [(error, False)] * 2
    monkeypatch.setattr(gpu, "gradients", lambda *_: 1 / 0)
    row = next(report()._errors("light"))
    assert (row["value"], row["met"]) == ("not measured (failed: ZeroDivisionError: division by zero)", None)


# A run that is cut off


def test_a_run_goes_on_where_it_was_cut_off(costs, report, tmp_path):
    def rows(name="results.sqlite"):
        return report((1, 6), cache=Cache(tmp_path / name)).rows()

    whole = list(rows("another.sqlite"))
    costs += [Cost(i, i) for i in range(1, 4)]
    begun = list(itertools.islice(rows(), 12))
    assert any("1e+03 ms" in row["value"] for row in begun)
    again = list(rows())
    assert again[:12] == begun
    assert [row["what"] for row in again] == [row["what"] for row in whole]
    assert_printable(again)
    assert again == list(rows())


def test_a_failure_that_leaves_the_gpu_unusable_ends_the_run_and_the_next_steps_over_it(costs, report, monkeypatch):
    cache = Cache(None)
    costs += [RuntimeError("an illegal memory access")]

    def unusable():
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(torch.cuda, "synchronize", unusable)
    with pytest.raises(RuntimeError, match="is gone"):
        list(report((1, 6), cache=cache)._forward("light"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = list(report((1, 6), cache=cache)._forward("light"))
    assert rows[0]["value"] == "failed: RuntimeError: an illegal memory access"
    assert rows[1]["value"] == "1e+03 ms, 0 MiB"


def test_results_of_one_gpu_are_not_anothers(costs, report):
    cache = Cache(None)
    list(report((1, 6), cache=cache)._forward("light"))
    other = gpu.Report(CPU, "another GPU", ((1, 6),), cache)
    costs += [Cost(5.0, 5)]
    assert next(other._forward("light"))["value"] == "5e+03 ms, 0 MiB"


# The program


@pytest.fixture
def run(report, monkeypatch, capsys):
    def scan_report(device, quick, cache):
        assert device == "cuda:1"
        return report((1, 4), *[] if quick else [(1, 6)], cache=cache).rows()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        try:
            program.main()
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    monkeypatch.setattr(program, "scan_report", scan_report)
    return call


def test_the_program(run, tmp_path, monkeypatch):
    out = tmp_path / "a" / "b"
    code, table, told = run("--out", out, "--device", "cuda:1")
    assert code == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert_printable(rows)
    assert len(table.splitlines()) == len(told.splitlines()) == len(rows) >= 60
    for row, line, note in zip(rows, table.splitlines(), told.splitlines(), strict=True):
        assert line.split() == [
            *f"{row['what']} {row['value']} {row['bar']}".split(),
            *{True: ["met"], False: ["MISSED"], None: []}[row["met"]],
        ]
        assert note.endswith(f" s  {row['what']}: {row['value']}")
    assert len(run("--out", out, "--device", "cuda:1", "--quick")[1].splitlines()) < len(rows)
    monkeypatch.setattr(gpu, "measure", lambda function: pytest.fail("it is known"))
    assert run("--out", out, "--device", "cuda:1")[:2] == (0, table)


def test_wrong_calls_of_the_program(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, told = run("--out", tmp_path / "file" / "folder")
    assert (code, out, told.count("\n")) == (2, "", 1)
    assert "name another folder" in told
    assert run()[0] == 2
    (tmp_path / "results.sqlite").write_text("nonsense " * 100)
    code, _, told = run("--out", tmp_path, "--device", "cuda:1")
    assert (code, told.count("\n")) == (1, 1)
    assert "results.sqlite" in told


# Measuring


class Event:
    """Of a GPU on which a call takes as long as it says."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def clock(monkeypatch):
    """A GPU whose memory grows by 70 bytes; makes functions that take these seconds, the last again and again."""
    names = {"memory_allocated": 30, "max_memory_allocated": 100}
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", *names):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: names.get(name))
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def taking(*seconds):
        calls = []

        def function():
            calls.append(1)
            Event.now += seconds[min(len(calls), len(seconds)) - 1]

        return function, calls

    return taking


@pytest.mark.parametrize(("seconds", "calls"), [(10, 4), (0.04, 13), (1e-6, 21), (0, 21)])
def test_a_measurement(clock, seconds, calls):
    function, made = clock(100, seconds)
    found = gpu_cases.measure(function)
    assert found == Cost(pytest.approx(seconds), 70)
    assert len(made) == calls  # the first to warm up
    assert str(Cost(0.0123456, 3 * 2**20)) == "12.3 ms, 3 MiB"


def test_a_measurement_is_the_median(clock):
    function, _ = clock(100, 10, 50, 20)
    assert gpu_cases.measure(function).seconds == pytest.approx(20)


def test_a_measurement_that_runs_out_of_memory(clock):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu_cases.measure(fail) == "out of memory"


def test_another_error_is_not_swallowed(clock):
    def fail():
        raise RuntimeError("the kernel")

    with pytest.raises(RuntimeError, match="the kernel"):
        gpu_cases.measure(fail)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    fails(lambda: gpu.scan_report("cuda", True), BackendError, "'cuda' cannot be used")
    fails(lambda: program.run(tmp_path, "cuda", True), BackendError, "'cuda' cannot be used")


def test_other_devices(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    fails(lambda: gpu.scan_report("mps", True), CallError, "cpu or cuda, not mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.long
def test_the_whole_report_on_a_gpu():
    rows = list(gpu.scan_report("cuda", True))
    assert_printable(rows)
    assert all(row["met"] for row in rows if "error" in row["what"])
