"""Building what is needed of mamba-ssm, without a compiler."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import mamba_ssm_build
import pytest
import torch.utils.cpp_extension as cpp_extension
from failing import fails
from mamba_ssm_build import build

from mambair_cli.errors import BackendError, CallError


@pytest.fixture
def sdist(tmp_path):
    """An sdist as mamba-ssm's is laid out."""
    root = tmp_path / "mamba_ssm-9.9"
    for name, text in {
        "csrc/selective_scan/selective_scan.cpp": "",
        "mamba_ssm/__init__.py": "import a_package_of_language_models",
        "mamba_ssm/ops/__init__.py": "",
        "mamba_ssm/ops/selective_scan_interface.py": (
            "import selective_scan_cuda\nselective_scan_fn = print"
        ),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with tarfile.open(tmp_path / "mamba_ssm-9.9.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    return tmp_path / "mamba_ssm-9.9.tar.gz"


@pytest.fixture
def compiled(monkeypatch):
    """What was given to the compiler, whose extension is an empty file."""
    given = {}

    def load(name, sources, *, build_directory, **options):
        given.update(
            options, name=name, sources={Path(s).name: Path(s).read_text() for s in sources}
        )
        (Path(build_directory) / f"{name}.so").write_text("")

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return given


def test_what_is_built(sdist, compiled, tmp_path):
    build(sdist, tmp_path / "site")
    build(sdist, tmp_path / "site")  # again, over what is there
    sources = compiled["sources"]
    assert set(sources) == {"selective_scan.cpp", "fwd_float.cu", "bwd_float.cu", "others.cpp"}
    named = {
        file: re.findall(r"template void selective_scan_(\w+)_cuda<(\S+), (\S+)>\((\w+) &", text)
        for file, text in sources.items()
    }
    assert named["fwd_float.cu"] == [("fwd", "float", "float", "SSMParamsBase")]
    assert named["bwd_float.cu"] == [("bwd", "float", "float", "SSMParamsBwd")]
    every = {kernel for kernels in named.values() for kernel in kernels}
    assert (
        len(every) == sum(map(len, named.values())) == 2 * 3 * 2
    )  # each once: of passes, inputs and weights
    assert "--use_fast_math" in compiled["extra_cuda_cflags"]
    assert len(set(compiled["extra_cuda_cflags"])) == len(compiled["extra_cuda_cflags"])


def test_what_was_built_is_imported_without_the_rest(sdist, compiled, tmp_path):
    build(sdist, tmp_path / "site")
    (tmp_path / "site" / "selective_scan_cuda.so").rename(
        tmp_path / "site" / "selective_scan_cuda.py"
    )
    program = (
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as f; f('found')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("found\n", "")


def test_the_source_in_place_of_other_kernels_is_c(sdist, compiled, tmp_path):
    build(sdist, tmp_path / "site")
    text = compiled["sources"]["others.cpp"]
    assert text.count("{") == text.count("}") == 2
    assert text.count('TORCH_CHECK(false, "built for real float32 alone")') == 2
    assert (
        len(re.findall(r"^#include [<\"][\w/.]+[>\"]$", text, re.MULTILINE))
        == text.count("#include")
        == 6
    )


def test_what_is_no_sdist(tmp_path, compiled):
    fails(
        lambda: build(tmp_path / "none.tar.gz", tmp_path / "site"),
        CallError,
        "none.tar.gz",
        "sdist",
    )
    (tmp_path / "bad.tar.gz").write_bytes(b"bad")
    fails(
        lambda: build(tmp_path / "bad.tar.gz", tmp_path / "site"), CallError, "bad.tar.gz", "sdist"
    )
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "bad.tar.gz", "other-1.0/setup.py")
    fails(
        lambda: build(tmp_path / "other.tar.gz", tmp_path / "site"),
        CallError,
        "other.tar.gz",
        "selective_scan.cpp",
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("Error building\nlong log"), OSError("CUDA_HOME is not set")]
)
def test_what_does_not_compile(sdist, monkeypatch, tmp_path, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(cpp_extension, "load", load)
    fails(lambda: build(sdist, tmp_path / "site"), BackendError, str(error).splitlines()[0])


def test_the_program(tmp_path):
    for arguments in ([], [str(tmp_path / "none.tar.gz"), "site"]):
        command = [sys.executable, mamba_ssm_build.__file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
