import mmap
import sys

import pytest
import torch
from failing import fails

from mambair_cli.errors import BackendError, CallError
from mambair_cli.system import devices
from mambair_cli.system.devices import free_memory, resolve_device, resolve_dtype, used_memory


@pytest.mark.parametrize(
    ("gpus", "mps", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
    ],
)
def test_devices(monkeypatch, gpus, mps, name, device):
    pretend(monkeypatch, gpus, mps)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(("rank", "device"), [("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_processes_of_torchrun_take_one_gpu_each(monkeypatch, rank, device):
    pretend(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device(device)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")


def pretend(monkeypatch, gpus, mps=False):
    """Make PyTorch see these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpu",
        "CUDA",
        "xpu",
        "cpu:0",
        "mps:0",
        "cpu:",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:²",
        "auto:0",
    ],
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_unknown_devices(monkeypatch, gpus, name):
    pretend(monkeypatch, gpus)
    fails(lambda: resolve_device(name), CallError, repr(name), "cuda:N")


@pytest.mark.parametrize(
    ("gpus", "name", "words"),
    [
        (0, "cuda", ["'cuda'", "`device=cpu`"]),
        (0, "cuda:0", ["'cuda:0'", "`device=cpu`"]),
        (0, "mps", ["'mps'", "Apple", "`device=cpu`"]),
        (2, "cuda:2", ["cuda:2", "2 CUDA"]),
    ],
)
def test_devices_that_are_not_there(monkeypatch, gpus, name, words):
    pretend(monkeypatch, gpus)
    fails(lambda: resolve_device(name), BackendError, *words)


@pytest.mark.parametrize(
    ("build", "reason"), [(None, "without CUDA"), ("12.4", "no GPU is visible")]
)
def test_why_cuda_is_not_there(monkeypatch, build, reason):
    pretend(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    fails(lambda: resolve_device("cuda"), BackendError, reason)


# Precision


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "mps", torch.float32),
        ("auto", "cuda", torch.float16),
        ("fp32", "cuda", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_names_of_types(name, device, dtype):
    assert resolve_dtype(name, torch.device(device)) == dtype


def test_types_that_there_are_not(monkeypatch):
    fails(
        lambda: resolve_dtype("int8", torch.device("cpu")),
        CallError,
        "'int8'",
        "auto, fp32, fp16, bf16",
    )
    fails(
        lambda: resolve_dtype("fp16", torch.device("mps")),
        BackendError,
        "mps",
        "fp16",
        "`dtype=fp32`",
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    fails(
        lambda: resolve_dtype("bf16", torch.device("cuda")),
        BackendError,
        "cuda",
        "bf16",
        "`dtype=fp32`",
    )
    assert resolve_dtype("fp16", torch.device("cuda")) == torch.float16


# Memory


def proc_and_cgroup(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return lambda name: root / str(name).lstrip("/")


def test_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory(torch.device("cuda")) == 123 + 30


def test_used_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 123)
    assert used_memory(torch.device("cuda")) == 123
    cpu = torch.device("cpu")
    before = used_memory(cpu)
    # of fresh pages, whatever the process has kept
    with mmap.mmap(-1, 2**28) as block:
        block.write(b"1" * len(block))
        assert used_memory(cpu) - before > 0.6 * len(block)


def test_the_peak_of_memory_of_a_gpu(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    devices.reset_peak_memory(torch.device("cuda"))
    assert devices.peak_memory(torch.device("cuda")) == 123
    assert reset == [torch.device("cuda")]


def test_the_peak_of_memory_without_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "Path", proc_and_cgroup(tmp_path, {}))
    monkeypatch.setattr(devices, "used_memory", lambda device: 123)
    # There is nothing to reset.
    devices.reset_peak_memory(torch.device("cpu"))
    assert devices.peak_memory(torch.device("cpu")) == 123


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak since a reset")
def test_the_peak_of_memory_begins_anew():
    cpu, block = torch.device("cpu"), 2**29

    def peak_of(size):
        devices.reset_peak_memory(cpu)
        before = devices.used_memory(cpu)
        # fresh pages, written to, and gone at once
        with mmap.mmap(-1, size) as pages:
            pages.write(b"1" * size)
        return devices.peak_memory(cpu) - before

    assert (
        peak_of(block) > 0.6 * block
    )  # each CPU of the host may keep a hundred or more pages uncounted
    assert peak_of(2**20) < 0.3 * block


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, expected):
    assert devices.is_out_of_memory(error) == expected
