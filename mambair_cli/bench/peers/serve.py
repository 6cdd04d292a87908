"""One contestant in a process of its own, which does what it is told, line by line.

Each line is a JSON object: {"threads": 2} loads the network anew, and {"image": FILE, "result":
FILE or null} enlarges an array of NumPy. Each is answered by a line: {"seconds": ..., "work": ...,
"peak": ...}, or {"error": ...}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .contestants import Enlarge, contestants


def peak_memory() -> int:
    """The most bytes that this process has held; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def answer(request: dict[str, Any], enlarge: Enlarge) -> dict[str, Any]:
    """Enlarge an image as a request asks: seconds of wall time, and of all threads."""
    image = np.load(request["image"])
    began, worked = time.perf_counter(), time.process_time()
    result = enlarge(image)
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    if request["result"]:
        np.save(request["result"], result)
    return {"seconds": seconds, "work": work, "peak": peak_memory()}


def main(scale: int, name: str) -> None:
    """Serve until there are no more lines."""
    contestant = next(c for c in contestants(scale) if c.name == name)
    enlarge: Enlarge | None = None
    for line in sys.stdin:
        request = json.loads(line)
        # Whatever a foreign package raises is told.
        try:
            if "threads" in request:
                enlarge = contestant.load(request["threads"])
                enlarge(np.zeros((64, 64, 3), np.uint8))
                reply: dict[str, Any] = {"peak": peak_memory()}
            else:
                assert enlarge
                reply = answer(request, enlarge)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
