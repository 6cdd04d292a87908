"""A log of runs that nobody watches: a line of JSON for each file, with the time."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import CallError

Write = Callable[[str, dict[str, Any]], None]


@contextmanager
def run_log(path: Path | None) -> Iterator[Write]:
    """Yield a function that appends an event and its facts to a log; it does nothing for None.

    Each line is on the disk when the function returns. Of the processes of torchrun only the first
    writes. Raises CallError where the file cannot be written.
    """
    if path is None or os.environ.get("RANK", "0") != "0":
        yield lambda event, facts: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise CallError(f"{path}: cannot be written: {error.strerror}") from error
    with file:

        def write(event: str, facts: dict[str, Any]) -> None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
            file.flush()

        yield write
