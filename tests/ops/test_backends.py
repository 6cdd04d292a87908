import logging
import sys
import types

import pytest
import torch
from scan_inputs import scan_inputs

from mambair_cli.errors import BackendError, CallError
from mambair_cli.ops import BACKENDS, backends, resolve_backend, scan_numba, ss2d_scan

RUNNABLE = [b.name for b in BACKENDS if b.unavailable("cpu", torch.float32) is None]


def broken(*_):
    raise OSError("no LLVM here")


def test_numba_and_reference_run_here():
    assert {"numba", "reference"} <= set(RUNNABLE)
    assert RUNNABLE[-1] == "reference"  # the slowest, which runs anywhere


def test_auto_passes_over_what_cannot_run_on_a_device():
    assert resolve_backend("auto", "mps").name == "reference"


@pytest.mark.parametrize(("backend", "calls"), [("auto", 1), ("numba", 1), ("reference", 0)])
def test_the_numba_kernel_runs_for_numba_only(monkeypatch, backend, calls):
    made, forward = [], scan_numba.forward
    monkeypatch.setattr(scan_numba, "forward", lambda *inputs: made.append(1) or forward(*inputs))
    ss2d_scan(*scan_inputs(2, 3), backend=backend)
    assert len(made) == calls


def test_auto_says_once_what_it_chose(caplog):
    caplog.set_level(logging.INFO, logger=backends.__name__)
    for _ in range(2):
        ss2d_scan(*scan_inputs(2, 3))
    assert caplog.messages == ["scan back end on cpu: numba"]
    caplog.clear()
    for _ in range(2):
        ss2d_scan(*scan_inputs(2, 3, dtype=torch.float64))
    reasons = [
        "numba passed over: it computes in float32, not in float64",
        *(
            f"{name} passed over: it runs on NVIDIA and AMD GPUs, not on cpu"
            for name in ("triton", "mamba-ssm")
        ),
    ]
    assert caplog.messages == ["; ".join(["scan back end on cpu: reference", *reasons])]


def test_auto_says_why_numba_did_not_compile(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger=backends.__name__)
    monkeypatch.setattr(scan_numba, "compile_forward", broken)
    assert resolve_backend("auto", "cpu").name == "reference"
    assert "numba passed over: it does not compile here: OSError: no LLVM here" in caplog.text


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.float64, "float32, not in float64"),
        ("cuda", torch.float32, "on the CPU, not on cuda"),
    ],
)
def test_a_named_back_end_that_cannot_run_raises_the_reason(device, dtype, reason):
    with pytest.raises(BackendError, match=f"'numba' cannot be used: it .* {reason}"):
        resolve_backend("numba", device, dtype)


def test_a_named_back_end_that_does_not_compile_raises_the_reason(monkeypatch):
    monkeypatch.setattr(scan_numba, "compile_forward", broken)
    with pytest.raises(BackendError, match="does not compile here: OSError: no LLVM here"):
        ss2d_scan(*scan_inputs(2, 3), backend="numba")


def test_numba_that_is_not_installed_is_the_reason(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="numba is not installed"):
        resolve_backend("numba", "cpu")


@pytest.mark.parametrize("name", ["triton", "mamba-ssm"])
@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.float32, "NVIDIA and AMD GPUs, not on cpu"),
        ("mps", torch.float32, "NVIDIA and AMD GPUs, not on mps"),
        ("cuda", torch.float64, "float32, not in float64"),
    ],
)
def test_kernels_for_gpus_say_where_they_do_not_run(name, device, dtype, reason):
    with pytest.raises(BackendError, match=f"'{name}' cannot be used: it .* {reason}"):
        resolve_backend(name, device, dtype)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("triton", "triton is not installed, which comes with PyTorch's builds for CUDA and ROCm"),
        ("mamba-ssm", r"it needs the package mamba-ssm: pip install 'mambair\[mamba-ssm\]'"),
    ],
)
def test_kernels_for_gpus_that_are_not_installed(monkeypatch, name, reason):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=reason):
        resolve_backend(name, "cuda")
    assert resolve_backend("auto", "cuda").name == "reference"


def test_triton_that_does_not_run_gives_the_first_line_of_the_reason(monkeypatch, caplog):
    def fail():
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    caplog.set_level(logging.INFO, logger=backends.__name__)
    scan_triton = types.ModuleType("scan_triton")
    scan_triton.try_out = fail
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "mambair_cli.ops.scan_triton", scan_triton)
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)  # an import fails
    assert resolve_backend("auto", "cuda").name == "reference"
    assert (
        "triton passed over: it does not run here: RuntimeError: Failed to find C compiler.;"
        in caplog.text
    )
    assert "mamba-ssm passed over: it cannot be imported here: ModuleNotFoundError: " in caplog.text


@pytest.mark.parametrize(("missing", "chosen"), [((), "triton"), (("triton",), "mamba-ssm")])
def test_auto_on_a_gpu_takes_triton_first(monkeypatch, missing, chosen):
    for module in ("scan_triton", "scan_mamba_ssm"):
        stand_in = types.ModuleType(module)
        stand_in.try_out = lambda: None
        monkeypatch.setitem(sys.modules, f"mambair_cli.ops.{module}", stand_in)
        monkeypatch.setattr(f"mambair_cli.ops.{module}", stand_in, raising=False)
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: None if name in missing else name
    )
    assert resolve_backend("auto", "cuda").name == chosen


def test_an_error_of_the_kernel_is_not_swallowed(monkeypatch, ran):
    monkeypatch.setattr(scan_numba, "forward", broken)
    with pytest.raises(OSError, match="no LLVM here"):
        ss2d_scan(*scan_inputs(2, 3))
    assert ran == ["numba"]


def test_an_unknown_back_end_raises_the_names():
    with pytest.raises(CallError, match="'cudnn'; there are auto, ") as caught:
        ss2d_scan(*scan_inputs(2, 3), backend="cudnn")
    assert all(b.name in str(caught.value) for b in BACKENDS)
