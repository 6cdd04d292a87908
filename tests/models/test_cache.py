import json
from pathlib import Path

import platformdirs
import pytest
from failing import fails

from mambair_cli.errors import CheckpointError
from mambair_cli.models.cache import (
    Record,
    cached_file,
    find_in_hub,
    is_offline,
    list_records,
    models_folder,
    read_record,
    record_file,
)


def keep(name, file="net.pth", **changes):
    """Write a record, as `checkpoints` does."""
    record = Record(name, file, "0" * 64, "somewhere", None, "mambair", 2, 5)
    record_file(name).parent.mkdir(parents=True, exist_ok=True)
    record_file(name).write_text(json.dumps(vars(record) | changes))
    return record


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "models"
    for empty in (
        lambda: monkeypatch.setenv("MAMBAIR_HOME", ""),
        lambda: monkeypatch.delenv("MAMBAIR_HOME"),
    ):
        empty()
        assert (
            models_folder()
            == Path(platformdirs.user_cache_dir("mambair", appauthor=False)) / "models"
        )


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("True", True), ("0", False), ("", False), (None, False)]
)
def test_offline(monkeypatch, value, offline):
    if value is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline


def test_records(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    assert not list(list_records())
    assert read_record("a") is None
    records = [keep("b", "b.pth"), keep("a", str(tmp_path / "elsewhere.pth"))]
    removed = keep("c", None)
    assert list(list_records()) == records[::-1]
    assert read_record("c") == removed
    assert cached_file("a") == tmp_path / "elsewhere.pth"
    assert cached_file("b") == tmp_path / "models" / "b.pth"
    assert cached_file("c") is cached_file("d") is None


@pytest.mark.parametrize("name", ["../a", "a.pth", "x" * 300, "", "a\0", "A"])
def test_names_of_no_model(monkeypatch, tmp_path, name):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    (tmp_path / "a.json").write_text("{}")
    assert read_record(name) is cached_file(name) is None


def test_a_damaged_record(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    keep("a", colour="red")
    for call in (lambda: read_record("a"), lambda: cached_file("a"), lambda: list(list_records())):
        fails(call, CheckpointError, record_file("a"), "delete it")


@pytest.mark.parametrize(
    "changes",
    [{"file": 5}, {"sha256": 1}, {"scale": "2"}, {"parameters": 1.5}, {"task": []}],
    ids=str,
)
def test_a_record_of_other_types(monkeypatch, tmp_path, changes):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    keep("a", **changes)
    fails(
        lambda: cached_file("a"),
        CheckpointError,
        record_file("a"),
        f"its {next(iter(changes))} is",
        "delete it",
    )


def test_the_cache_of_hugging_face(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    url = "https://huggingface.co/some/where/resolve/main/a/b.pth"
    assert find_in_hub(url) is None
    hub = tmp_path / "hub" / "models--some--where"
    for commit in ("abc", "bcd"):
        (hub / "snapshots" / commit / "a").mkdir(parents=True)
        (hub / "snapshots" / commit / "a" / "b.pth").touch()
    (hub / "refs").mkdir()
    for revision, commit in (("main", "bcd"), ("v1", "abc"), ("other", "cde")):
        (hub / "refs" / revision).write_text(commit)
    assert find_in_hub(url) == hub / "snapshots" / "bcd" / "a" / "b.pth"
    assert find_in_hub(url.replace("main", "v1")) == hub / "snapshots" / "abc" / "a" / "b.pth"
    assert find_in_hub(url.replace("main", "abc")) == hub / "snapshots" / "abc" / "a" / "b.pth"
    assert (
        find_in_hub(url.replace("main", "other"))
        is find_in_hub(url.replace("main", "absent"))
        is None
    )
    assert find_in_hub(url.replace("b.pth", "c.pth")) is None
    assert find_in_hub(url.replace("some", "other")) is None
    assert find_in_hub("https://example.org/some/where/resolve/main/a/b.pth") is None


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5_000, b'{"name": ' * 5_000, b"\xff"])
def test_records_of_nonsense_are_refused(monkeypatch, tmp_path, content):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path))
    keep("a")
    record_file("a").write_bytes(content)
    fails(lambda: read_record("a"), CheckpointError, "a.json", "delete it")


@pytest.mark.parametrize("commit", [b"\xff\xfe", b"x" * 5_000, b"a\0b"])
def test_a_hub_of_nonsense_has_nothing(monkeypatch, tmp_path, commit):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--repo" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(commit)
    assert find_in_hub("https://huggingface.co/owner/repo/resolve/main/net.pth") is None
