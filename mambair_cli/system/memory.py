"""How much of the system's memory this process may still take."""

import re
from pathlib import Path

import psutil


def free_memory() -> int:
    """Bytes that can be taken now, within the limits of a group of processes and of `ulimit -v`."""
    free = int(min(psutil.virtual_memory().available, _free_addresses()))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Counts as used, but is given back on demand.
        cache = int(parts["inactive_file"])
    except (OSError, ValueError, KeyError):
        # There is no limit.
        return free
    return max(0, min(free, limit - used + cache))


def _free_addresses() -> float:
    """Bytes of addresses that `ulimit -v` leaves."""
    try:
        limits = Path("/proc/self/limits").read_text("ascii")
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return float("inf")
    limit = re.search(r"^Max address space +(\d+)", limits, re.MULTILINE)
    taken = re.search(r"^VmSize:\s+(\d+) kB", status, re.MULTILINE)
    if limit is None or taken is None:
        return float("inf")
    return max(0, int(limit[1]) - 1024 * int(taken[1]))
