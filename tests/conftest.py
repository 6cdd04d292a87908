"""Fixtures that several test files share. Those that need torch import it late, as most tests do
not.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

# Each of the processes that share the tests takes one core; before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# No presets of whoever runs the tests.
os.environ["XDG_CONFIG_HOME"] = os.devnull

from mambair_cli import cli
from mambair_cli.images.io import Image, read_image, write_image

# so that these tell as much as tests do
pytest.register_assert_rewrite("calls", "failing", "folders", "gpu_reports")
from buckets import bucket, new_connections, s3_proxy  # noqa: E402, F401
from calls import DATA, PHOTO  # noqa: E402


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bad(bad_files, monkeypatch):
    """The working directory, which holds the bad files."""
    monkeypatch.chdir(bad_files)
    return bad_files


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory):
    """A folder of files that no command can use, beside photo.png."""
    from bad_files import write_bad_files

    folder = tmp_path_factory.mktemp("bad")
    write_bad_files(folder)
    return folder


@pytest.fixture
def folder(empty_folder):
    """The working directory, with photo.png of 24 x 18 pixels in it."""
    write_image(Path("photo.png"), Image(PHOTO))
    return empty_folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program in this process, with no GPU to be seen: exit code, stdout, stderr."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mambair", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def pictures(folder):
    """A folder of pictures for `train` and `bench`, of names that are hard to print."""
    pixels = read_image(DATA / "dragonfly.png").pixels
    Path("set").mkdir()
    for i, name in enumerate(("[red]a", "b b", "c")):
        write_image(
            Path("set") / f"{name}.png", Image(pixels[20 * i : 20 * i + 40, 30 * i : 30 * i + 44])
        )
    return "set"


@pytest.fixture(scope="session")
def tiny():
    """The bundled network that doubles, without tiles."""
    from restorers import load

    return load(tile="off")


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path_factory, monkeypatch):
    """No test sees or changes what the user of this machine has fetched."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path_factory.getbasetemp() / "no cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("MAMBAIR_DATA", raising=False)


@pytest.fixture
def load(tmp_path):
    """Load the network of a file that has this content."""
    from mambair_cli.models.recognise import load_network

    def load_bytes(content, name="file.pth"):
        path = tmp_path / name
        path.write_bytes(content)
        return load_network(path)[0]

    return load_bytes


@pytest.fixture
def gpu_costs(monkeypatch):
    """Costs that the measurements find, one after the other; each also runs what it should measure,
    on the CPU.

    numba's scan stands in for Triton's, the reference for mamba-ssm's.
    """
    import torch
    from gpu_reports import TINY

    from mambair_cli.bench.cost import gpu
    from mambair_cli.bench.cost.gpu_cases import Cost
    from mambair_cli.ops import backends

    given, (numba, *_, reference) = [], backends.BACKENDS
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
    for module in (gpu, backends):
        monkeypatch.setattr(module, "BACKENDS", stand_ins)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "NETS", {"light": TINY})
    monkeypatch.setattr(gpu, "LARGE", 6)
    monkeypatch.setattr(gpu, "PATCH", 4)
    monkeypatch.setattr(backends, "_resolved", {})
    return given


@pytest.fixture
def gpu_report(gpu_costs, monkeypatch):
    """A report of some sizes, on a GPU of given rates."""
    from gpu_reports import CPU, fast_rates

    from mambair_cli.bench.cache import Cache
    from mambair_cli.bench.cost import gpu

    def build(*sizes, rates=None, cache=None):
        monkeypatch.setattr(gpu.GpuReport, "_rates", lambda self: rates or fast_rates())
        return gpu.GpuReport(CPU, "a GPU", sizes, cache or Cache(None))

    return build
