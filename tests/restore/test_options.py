import inspect
from dataclasses import FrozenInstanceError, fields

import pytest

from mambair_cli.restore.options import Options
from mambair_cli.restore.restorer import load_restorer


def test_the_defaults_are_those_of_load_restorer():
    asked = inspect.signature(load_restorer).parameters
    for field in fields(Options):
        assert asked[field.name].default == field.default
    assert asked.keys() == {"name_or_file", *(field.name for field in fields(Options))}


def test_options_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Options().tile = 64
