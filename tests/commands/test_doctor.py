import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mambair_cli
from mambair_cli import ops
from mambair_cli.commands import doctor
from mambair_cli.commands.doctor import report
from mambair_cli.models.cache import cache_folder
from mambair_cli.ops import BACKENDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def facts():
    return report()


def test_versions(facts):
    versions = dict(facts["versions"])
    assert versions.pop("mambair") == mambair_cli.__version__
    assert versions.pop("python") == platform.python_version()
    assert versions == {name: importlib.metadata.version(name) for name in versions}


def test_every_dependency_is_reported(facts):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    names = {
        re.match(r"[\w-]+", line)[0]
        for line in project["dependencies"]
        if "python_version" not in line
    }
    assert set(facts["versions"]) == {"mambair", "python", *names}


def test_the_folder_of_models_and_the_system(facts):
    assert report()["cache"] == str(cache_folder())
    assert platform.machine() in facts["system"]


def test_json(facts):
    assert json.loads(json.dumps(facts)) == facts


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    versions = report()["versions"]
    assert versions["no-such-package"] == "not installed"
    assert versions["torch"] == importlib.metadata.version("torch")


def test_the_cpu(facts):
    assert re.fullmatch(r".+, \d+ cores, \d+ threads, \d+\.\d GiB free", facts["devices"]["cpu"])
    assert f"{torch.get_num_threads()} threads" in facts["devices"]["cpu"]


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    facts = report()
    assert list(facts["devices"]) == ["cpu", "cuda", "mps"]
    assert all(facts["devices"][name].startswith("unavailable: ") for name in ("cuda", "mps"))
    gpus_only = "it runs on NVIDIA and AMD GPUs, not on cpu"
    reasons = {"numba": None, "triton": gpus_only, "mamba-ssm": gpus_only, "reference": None}
    assert facts["backends"] == reasons
    assert list(reasons) == [backend.name for backend in BACKENDS]


def test_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")
    facts = report()
    assert [facts["devices"][f"cuda:{i}"] for i in (0, 1)] == ["GPU number 0", "GPU number 1"]
    assert "cuda" not in facts["devices"]
    assert "on the CPU, not on cuda" in facts["backends"]["numba"]


def test_a_back_end_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert report()["backends"]["numba"] == "numba is not installed"


# What to install


@pytest.fixture
def machine(monkeypatch):
    """A machine of which one says what it has."""

    def be(*, gpu=False, cuda=None, visible=False, system="Linux"):
        monkeypatch.setattr(doctor, "_has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(visible))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")

    return be


def test_nothing_is_faster(machine, monkeypatch):
    machine()
    assert report()["faster"] is None
    machine(gpu=True, cuda="12.6", visible=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert report()["faster"] is None


def test_a_gpu_that_pytorch_cannot_use(machine):
    machine(gpu=True)
    assert report()["faster"] == "pip install --force-reinstall torch==2.7.1"
    machine(gpu=True, system="Windows")
    command = report()["faster"]
    assert (
        command
        == "pip install --force-reinstall torch==2.7.1 --index-url https://download.pytorch.org/whl/cu126"
    )


def test_a_faster_back_end_that_is_missing(machine, monkeypatch):
    machine()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert report()["faster"] == "pip install numba"
    slow = BACKENDS[-1]
    first = replace(
        slow,
        name="kernels",
        unavailable=lambda device, dtype: "some-kernels is not installed, which others bring",
    )
    monkeypatch.setattr(ops, "BACKENDS", (first, slow))
    assert report()["faster"] == "pip install some-kernels"
    monkeypatch.setattr(ops, "BACKENDS", (slow, first))  # it would not be taken
    assert report()["faster"] is None


def test_the_driver_is_found(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not doctor._has_nvidia_gpu()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor._has_nvidia_gpu()
