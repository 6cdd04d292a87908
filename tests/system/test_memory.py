import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from mambair_cli.system import memory


def proc_and_cgroup(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return lambda name: root / str(name).lstrip("/")


CGROUP = {
    "sys/fs/cgroup/memory.max": "3000000\n",
    "sys/fs/cgroup/memory.current": "2500000\n",
    "sys/fs/cgroup/memory.stat": "anon 1000000\ninactive_file 1400000\nactive_file 100000\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 5_120_000),
        (CGROUP, 1_900_000),
        (CGROUP | {"sys/fs/cgroup/memory.max": "max\n"}, 5_120_000),
        (CGROUP | {"sys/fs/cgroup/memory.max": "9000000\n"}, 5_120_000),
        (CGROUP | {"sys/fs/cgroup/memory.max": "1000000\n"}, 0),
        (CGROUP | {"sys/fs/cgroup/memory.stat": "anon 7\n"}, 5_120_000),
    ],
    ids=["machine", "group", "no limit", "high limit", "over", "no statistics"],
)
def test_free_memory(tmp_path, monkeypatch, files, free):
    machine = SimpleNamespace(available=5_120_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "Path", proc_and_cgroup(tmp_path, files))
    assert memory.free_memory() == free


LIMITED = """
import resource
from mambair_cli.system.memory import free_memory
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
before = free_memory()
block = bytes(2**28)
print(before, free_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_the_limit_of_addresses_counts():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 2**30 < before < 2**31
    assert 2**28 <= before - after < 2**28 + 2**24
