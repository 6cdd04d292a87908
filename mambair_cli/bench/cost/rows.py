"""What a report on speed consists of: rows that may have a bar to meet."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
VERDICTS = {True: "met", False: "MISSED", None: ""}


@dataclass(frozen=True)
class Row:
    """A measurement in words, the bar that it has to meet if any, and whether it does."""

    what: str
    value: str
    bar: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing where there is no bar or no measurement."""
        return VERDICTS[self.met]

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


def at_least(what: str, number: float, limit: float, shown: str) -> Row:
    """A row whose number has to reach a limit; `shown` stands for the number."""
    return Row(what, shown, f">= {limit:g}", number >= limit)


def at_most(what: str, number: float, limit: float, shown: str, unit: str = "") -> Row:
    """A row whose number must not exceed a limit; `shown` stands for the number."""
    return Row(what, shown, f"<= {limit:g} {unit}".rstrip(), number <= limit)


def ratio(theirs: float, ours: float) -> str:
    """How many times longer theirs takes than ours, with both in milliseconds; given in seconds."""
    shown = (f"{1e3 * time:.0f}" if time >= 0.1 else f"{1e3 * time:.1f}" for time in (theirs, ours))
    return f"{theirs / ours:.1f} ({' / '.join(shown)} ms)"


def bars_table(rows: Sequence[Row]) -> Table:
    """All rows, as a header and the cells below."""
    header = ("what", "measured", "bar", "")
    return header, [(row.what, row.value, row.bar, row.verdict) for row in rows]
