import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mambair_cli.system import runtime

SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def python(program, **variables):
    """What a program prints in a fresh interpreter: stdout and stderr."""
    environment = {k: v for k, v in os.environ.items() if k not in SPINNING} | variables
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("users", "result"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=str,
)
def test_spinning_is_limited_unless_the_user_decided(monkeypatch, users, result):
    monkeypatch.setattr(os, "environ", dict(users))
    runtime.limit_spinning()
    assert os.environ == result


def test_importing_the_package_limits_spinning_before_torch():
    program = (
        "import os, sys, mambair_cli; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    assert python(program)[0].split() == ["2000", "False"]


def test_the_limit_reaches_openmp():
    _, said = python("import mambair_cli, torch", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this PyTorch does not use GNU's OpenMP")
    assert "GOMP_SPINCOUNT = '2000'" in said


FAULTS = """
import resource
from mambair_cli.system import runtime
for _ in range(KEEP):
    runtime.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None,
    reason="a setting of glibc",
)
def test_freed_memory_is_used_again():
    def pages(keep):
        return [int(count) for count in python(FAULTS.replace("KEEP", str(keep)))[0].split()]

    first, second = pages(keep=0)
    if not first:
        pytest.skip("this system does not count page faults")
    assert second > first / 2
    first, second = pages(keep=2)  # a second call changes nothing
    assert second < first / 10


def test_keeping_memory_is_harmless_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(runtime.ctypes, "CDLL", None)  # must not be called
    runtime.keep_freed_memory()


def test_denormals_are_flushed_here_and_in_new_threads_and_only_meanwhile():
    small = torch.tensor([2e-38])

    def halved():
        return (small * 0.25).item()

    def halved_in_a_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(halved).result()

    assert halved() > 0
    with runtime.flushed_denormals():
        assert halved() == halved_in_a_thread() == 0
    assert halved() > 0
    assert halved_in_a_thread() > 0
