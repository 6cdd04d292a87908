import json

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from mambair_cli.system.texts import DEEPEST, checked, parse_json, parse_toml


def test_what_is_said():
    assert parse_json(b'{"a": [1, 2.5, null, {"b": "c"}]}') == {"a": [1, 2.5, None, {"b": "c"}]}
    assert parse_toml("a.b = [1, {c = 2}]") == {"a": {"b": [1, {"c": 2}]}}


@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 5_000, 200_000])
@pytest.mark.parametrize(
    ("parse", "whole"),
    [
        (parse_json, lambda depth: "[" * depth + "]" * depth),
        (parse_json, lambda depth: '{"a":' * depth + "1" + "}" * depth),
        (parse_json, lambda depth: "[" * depth),
        (parse_toml, lambda depth: "a = " + "[" * depth + "]" * depth),
        (parse_toml, lambda depth: "a = " + "{a = " * depth + "1" + "}" * depth),
        (parse_toml, lambda depth: f"{'.'.join('a' * min(depth, 5_000))} = 1"),
        (parse_toml, lambda depth: f"[{'.'.join('a' * min(depth, 5_000))}]"),
    ],
)
def test_deep_texts_are_refused(parse, whole, depth):
    fails(lambda: parse(whole(depth)), ValueError)


def test_what_refers_to_itself_is_refused():
    shared = [1]
    for _ in range(DEEPEST - 2):
        shared = [shared] * 4
    fails(lambda: checked(shared), ValueError, "too long")
    circle = []
    circle.append(circle)
    fails(lambda: checked(circle), ValueError, "too deeply")


def test_long_numbers_are_refused():
    fails(lambda: parse_json("9" * 5_000), ValueError)
    fails(lambda: parse_toml("a = " + "9" * 5_000), ValueError)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_plain_values_pass(value):
    assert parse_json(json.dumps(value)) == value


@settings(max_examples=100, deadline=None)
@given(st.binary() | st.text(alphabet='[]{}",:=.\\n01a '))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_json, parse_toml):
        try:
            parse(text if parse is parse_json else str(text))
        except ValueError:
            continue
