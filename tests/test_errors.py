import inspect

import pytest

from mambair_cli import errors
from mambair_cli.errors import CallError, MambairError, did_you_mean

CLASSES = [
    c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_exit_codes(error):
    assert issubclass(error, MambairError)
    assert error.exit_code == (2 if issubclass(error, CallError) else 1)
    assert error.exit_code == error("with a message").exit_code
    assert str(error("with a message")) == "with a message"


def test_the_tree_is_the_one_drawn():
    drawn = [line.split()[0] for line in errors.__doc__.splitlines() if line.startswith("    ")]
    assert sorted(drawn) == sorted(c.__name__ for c in CLASSES)


def test_python_own_errors_are_none_of_ours():
    assert not any(issubclass(error, (OSError, ValueError, RuntimeError)) for error in CLASSES)


def test_a_near_word_is_proposed():
    known = ["upscale", "denoise"]
    assert did_you_mean("upscal", known, "see the list") == "did you mean 'upscale'?"
    assert did_you_mean("other", known, "see the list") == "see the list"
    assert did_you_mean("upscale", [], "see the list") == "see the list"
