from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from mambair_cli.errors import CallError
from mambair_cli.training.strict import build


@dataclass(frozen=True)
class Inner:
    angle: tuple[float, float] = (0.0, 1.0)

    LIMITS: ClassVar = {"angle": (-90, 90)}


@dataclass(frozen=True)
class Outer:
    count: int = field(metadata={"limits": (1, 9)})
    sizes: tuple[int, ...] = field(default=(3,), metadata={"limits": (2, 4)})
    inner: Inner = Inner()
    kind: Literal["a", "b"] = "a"
    name: str = ""
    rest: dict[str, Any] = field(default_factory=dict)


def test_a_table_becomes_a_dataclass():
    table = {"count": 2, "sizes": 4, "inner": {"angle": [-3, 4]}, "kind": "b", "rest": {"x": 1}}
    built = build(Outer, table, "here")
    assert built == Outer(2, (4,), Inner((-3.0, 4.0)), "b", "", {"x": 1})
    assert [type(angle) for angle in built.inner.angle] == [float, float]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "here: missing count"),
        ({"cout": 2}, "here: unknown key 'cout'; did you mean 'count'?"),
        ({"zzz": 2}, "here: unknown key 'zzz'; there are count, sizes, inner, kind, name, rest"),
        ({"count": 10}, "here: count must be a whole number from 1 to 9, not 10"),
        ({"count": 2.0}, "here: count must be a whole number from 1 to 9, not 2.0"),
        ({"count": True}, "here: count must be a whole number from 1 to 9, not True"),
        ({"count": 2, "sizes": "3"}, "here: sizes must be a list of numbers, not '3'"),
        ({"count": 2, "sizes": [5]}, "here: sizes must be a whole number from 2 to 4, not 5"),
        ({"count": 2, "inner": 3}, "here: inner must be a table, not 3"),
        (
            {"count": 2, "inner": {"angle": [91, 92]}},
            "here, [inner]: angle must be a number from -90 to 90, not 91",
        ),
        (
            {"count": 2, "inner": {"angle": [1]}},
            "here, [inner]: angle must be a list of 2 numbers, not [1]",
        ),
        ({"count": 2, "kind": "c"}, "here: kind must be one of 'a', 'b', not 'c'"),
        ({"count": 2, "name": 3}, "here: name must be of the type str, not 3"),
        ({"count": 2, "rest": []}, "here: rest must be a table, not []"),
    ],
)
def test_what_does_not_fit(table, words):
    with pytest.raises(CallError) as caught:
        build(Outer, table, "here")
    assert str(caught.value) == words
