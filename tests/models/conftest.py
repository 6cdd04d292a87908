from pathlib import Path

import pytest
from failing import fails

from mambair_cli.errors import CheckpointError


@pytest.fixture
def refuse(load, tmp_path, monkeypatch, capfd):
    """Asserts that a file is refused with one line that names it, and that nothing else happens."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refuse_bytes(content, name, *words):
        fails(lambda: load(content, name), CheckpointError, tmp_path / name, *words)
        assert not list(Path().iterdir())
        assert capfd.readouterr() == ("", "")

    return refuse_bytes
