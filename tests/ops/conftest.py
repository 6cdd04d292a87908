import dataclasses

import pytest

from mambair_cli.ops import BACKENDS, backends


@pytest.fixture(autouse=True)
def nothing_resolved():
    backends._resolved.clear()
    yield
    backends._resolved.clear()


@pytest.fixture
def ran(monkeypatch):
    """The names of the back ends that ran, in order."""
    names = []

    def spied(backend):
        def run(*inputs):
            names.append(backend.name)
            return backend.scan(*inputs)

        return dataclasses.replace(backend, scan=run)

    monkeypatch.setattr(backends, "BACKENDS", tuple(spied(b) for b in BACKENDS))
    return names
