import hashlib
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from failing import fails
from filelock import FileLock
from networks import FORMS, STATE, network, safe, saved
from servers import answer, serving

from mambair_cli.errors import CallError, CheckpointError, DownloadError
from mambair_cli.models import catalog
from mambair_cli.models import fetch as checkpoints
from mambair_cli.models.cache import cached_file, list_records, models_folder, read_record
from mambair_cli.models.catalog import Model, list_models, model_named
from mambair_cli.models.fetch import find_checkpoint, import_file, known_task, pull, remove, verify
from mambair_cli.models.recognise import load_network
from mambair_cli.models.weights import bundled_folder, save_network
from mambair_cli.system.files import sha256

CONTENT = saved({"params": STATE})
OTHER = saved({"params": {key: 2 * value for key, value in STATE.items()}})  # as good a network


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("mambair_cli.models.download.time.sleep", lambda seconds: None)
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def row(server, monkeypatch):
    """Of a small network that the server has; added to the catalog."""
    added = Model(
        name="small-x4",
        task="upscale",
        arch="mambair",
        scale=4,
        parameters=sum(value.numel() for value in STATE.values()),
        gmacs=0.1,
        degradation="none",
        licence="CC0",
        source="tests",
        config=vars(FORMS["light_c"]),
        urls=(server.url,),
    )
    use(monkeypatch, added)
    return added


def use(monkeypatch, row):
    models = (*list_models(), row)
    monkeypatch.setattr(catalog, "read_catalog", lambda path: models)


@pytest.fixture
def told():
    return []


# Bundled models and files


@pytest.mark.parametrize(
    "row", [row for row in list_models() if row.bundled], ids=lambda row: row.name
)
def test_bundled_models_are_found_by_name(row):
    assert find_checkpoint(row.name) == bundled_folder() / row.file


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_bundled_weights(tmp_path, monkeypatch, damage):
    row = list_models()[0]
    name = row.file
    if damage == "changed":
        content = bytearray((bundled_folder() / name).read_bytes())
        content[-1] ^= 1
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(checkpoints, "bundled_folder", lambda: tmp_path)
    fails(
        lambda: find_checkpoint(row.name), CheckpointError, tmp_path / name, "install mambair again"
    )


def test_files_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bare").write_bytes(b"")
    assert find_checkpoint("bare") == find_checkpoint(Path("bare")) == Path("bare")
    Path("tiny-x4").write_bytes(
        b""
    )  # the registered model comes first; ./tiny-x4 would be this file
    assert find_checkpoint("tiny-x4").parent == bundled_folder()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-x9", ["did you mean 'tiny-x"]),
        ("mambair-light-x2", ["did you mean 'mambair-light-"]),
        ("swinir", ["mambair models list", "file"]),
        ("missing.pth", ["is missing"]),
        ("tiny-x4.safetensors", ["is missing"]),
        ("folder", ["folder is a folder"]),
        ("folder.pth", ["folder.pth is a folder"]),
        ("folder/none.pth", ["is missing"]),
        (".", ["is a folder"]),
        ("", ["is a folder"]),
        ("x" * 300, []),
        ("x" * 300 + ".pth", []),
        ("zero\0", ["no model"]),
        ("zero\0.pth", ["is missing"]),
    ],
)
def test_names_of_nothing(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.pth"):
        Path(folder).mkdir()
    fails(
        lambda: load_network(find_checkpoint(name)), CallError, name.split("\0")[0] or ".", *words
    )


# Fetching


def test_a_model_is_fetched_once(home, server, row, told):
    seen = []
    path = pull(row, lambda done, total: seen.append((done, total)), told.append)
    assert path == home / "models" / "small-x4.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert told[0] == f"small-x4: fetching {server.url} (licence: CC0)"
    assert len(told) == 2
    record = read_record("small-x4")
    assert (record.file, record.sha256, record.source) == ("small-x4.pth", sha256(path), server.url)
    assert (record.task, record.arch, record.scale, record.parameters) == (
        "upscale",
        "mambair",
        4,
        row.parameters,
    )
    assert find_checkpoint("small-x4") == pull(row) == path
    assert len(server.requests) == 1
    assert known_task("small-x4") == "upscale"
    assert {p.name for p in path.parent.iterdir()} - {".small-x4.lock"} == {
        "small-x4.pth",
        "small-x4.json",
    }


def test_a_name_is_enough(home, server, row, caplog):
    assert load_network(find_checkpoint("small-x4"))[1] == "mambair"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]


def test_the_user_is_told_that_the_hash_is_not_known(home, row, told):
    digest = sha256(pull(row, tell=told.append))
    assert "not known" in told[1]
    assert digest in told[1]
    assert "later downloads must match" in told[1]


def test_a_later_download_must_be_the_same(home, server, row, told):
    first = sha256(pull(row))
    remove("small-x4")
    assert cached_file("small-x4") is None
    server.content = OTHER
    fails(
        lambda: pull(row, tell=told.append),
        DownloadError,
        first,
        "of the first download",
        home / "models",
        "delete",
    )
    assert cached_file("small-x4") is None
    assert not list((home / "models").glob(".*.new*"))
    server.content = CONTENT
    pull(row, tell=told.append)
    assert sum("not known" in message for message in told) == 0
    remove("small-x4")
    server.content = OTHER
    (home / "models" / "small-x4.json").unlink()  # as the message says
    pull(row, tell=told.append)
    assert "not known" in told[-1]


def test_a_known_hash_must_be_met(home, server, row, monkeypatch, told):
    server.script = [answer(200, OTHER)]
    known = replace(row, sha256=hashlib.sha256(CONTENT).hexdigest())
    use(monkeypatch, known)
    fails(
        lambda: pull(known, tell=told.append),
        DownloadError,
        server.url,
        "has the SHA-256",
        known.sha256,
    )
    assert cached_file("small-x4") is None
    pull(known, tell=told.append)
    assert not any("not known" in message for message in told)


def test_a_broken_download_goes_on_in_the_next_call(home, server, row, told):
    server.script = [lambda handler: server.serve(handler, break_after=1000), answer(404)]
    fails(
        lambda: pull(row),
        DownloadError,
        "small-x4 cannot be fetched",
        "HTTP 404",
        "by hand",
        "import it as small-x4",
    )
    pull(row)
    assert server.requests[-1]["Range"] == "bytes=1000-"
    assert find_checkpoint("small-x4").read_bytes() == CONTENT


def test_the_next_address_is_tried(home, server, row, monkeypatch, told):
    several = replace(row, urls=(f"{server.url}?1", f"{server.url}?2", f"{server.url}?3"))
    use(monkeypatch, several)
    server.script = [answer(404), answer(200, b"<html>quota", Content_Type="text/html")]
    pull(several, tell=told.append)
    assert read_record("small-x4").source == f"{server.url}?3"
    tried = [line for line in told if line.endswith("trying the next address")]
    assert ["?1: HTTP 404" in tried[0], "?2: answered with a web page" in tried[1]] == [True] * 2
    assert len(tried) == 2
    assert told[-1] == f"small-x4: came from {server.url}?3"
    assert [request["path"] for request in server.requests] == ["/file?1", "/file?2", "/file?3"]
    remove("small-x4")
    server.script = [answer(404), answer(403), answer(410)]
    fails(lambda: pull(several), DownloadError, "HTTP 404", "HTTP 403", "HTTP 410")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no checkpoint"),
        (b"nothing of the kind", "is no checkpoint"),
        (CONTENT[:-500], "damaged"),
        (saved(network("light_b").state_dict()), "is not small-x4: it is mambair x3"),
        (saved(network(upscale=2).state_dict()), "is not small-x4: it is mambair x2"),
        (saved(network(d_state=3).state_dict()), "is not small-x4: it is mambair x4"),
        (saved(STATE | {"norm.weight": STATE["norm.weight"] * float("nan")}), "holds NaN"),
        (
            saved({key: value for key, value in STATE.items() if key != "norm.weight"}),
            "missing: norm.weight",
        ),
    ],
    ids=[
        "nothing",
        "text",
        "cut",
        "another net",
        "another scale",
        "another shape",
        "no numbers",
        "a part missing",
    ],
)
def test_wrong_bytes_leave_nothing(home, server, row, told, content, words):
    """Also where no hash is known."""
    server.content = content
    message = fails(
        lambda: pull(row, tell=told.append),
        DownloadError,
        server.url,
        words,
        "import it as small-x4",
    )
    assert str(home) not in message
    assert {path.name for path in (home / "models").iterdir()} <= {".small-x4.lock"}
    server.content = CONTENT
    assert pull(row).read_bytes() == CONTENT


def test_a_body_that_is_much_too_long(home, server, row, told):
    server.content = bytes(2**20 + 17 * row.parameters)
    fails(lambda: pull(row), DownloadError, f"{len(server.content):,} bytes")


def test_a_model_without_an_address(home, row, monkeypatch):
    nowhere = replace(row, urls=())
    use(monkeypatch, nowhere)
    fails(
        lambda: pull(nowhere),
        DownloadError,
        "no address",
        "import it as small-x4 (mambair models import)",
    )


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline(home, server, row, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    fails(
        lambda: find_checkpoint("small-x4"),
        DownloadError,
        "the network is off (HF_HUB_OFFLINE)",
        "HF_HUB_OFFLINE",
        "import it as small-x4",
    )
    assert not server.requests
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    path = find_checkpoint("small-x4")
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert find_checkpoint("small-x4") == path


def test_two_processes_fetch_it_once(home, server, row, told):
    """The second one waits and finds it."""
    started, go = threading.Event(), threading.Event()

    def slow(handler):
        started.set()
        assert go.wait(10)
        server.serve(handler)

    server.script = [slow]
    first = threading.Thread(target=pull, args=(row,))
    first.start()
    assert started.wait(10)
    second = threading.Thread(
        target=pull, args=(row,), kwargs={"tell": lambda text: (told.append(text), go.set())}
    )
    second.start()
    for thread in (first, second):
        thread.join(20)
    assert told == ["small-x4: another process is fetching it; waiting"]
    assert len(server.requests) == 1
    assert find_checkpoint("small-x4").read_bytes() == CONTENT
    FileLock(home / "models" / ".small-x4.lock").acquire(timeout=0).lock.release()


def test_a_cache_that_cannot_be_written(tmp_path, server, row, file, monkeypatch):
    (tmp_path / "home").write_text("a file where the folder should be")
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path / "home"))
    for call in (lambda: pull(row), lambda: import_file(file, "my-net")):
        fails(call, DownloadError, tmp_path / "home", "cannot be written", "MAMBAIR_HOME")


def test_a_full_disk(home, server, row, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "download", full)
    fails(lambda: pull(row), DownloadError, home, "No space left on device", "make room")


# What huggingface-hub has fetched


def read_only(folder):
    """Path.replace where a folder cannot be written."""
    replace_path = Path.replace

    def refuse(path, target):
        if folder in path.parents:
            raise OSError(30, "Read-only file system")
        return replace_path(path, target)

    return refuse


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_the_cache_of_hugging_face_is_used(
    home, server, row, tmp_path, monkeypatch, told, variable
):
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "hf"))
    hub = {"HF_HOME": "hf/hub", "HF_HUB_CACHE": "hf", "XDG_CACHE_HOME": "hf/huggingface/hub"}[
        variable
    ]
    hosted = replace(
        row, urls=("https://huggingface.co/some/where/resolve/main/a/b.pth", server.url)
    )
    use(monkeypatch, hosted)
    snapshot = tmp_path / hub / "models--some--where" / "snapshots" / "abc" / "a"
    snapshot.mkdir(parents=True)
    (snapshot / "b.pth").write_bytes(CONTENT)
    (snapshot.parents[2] / "refs").mkdir()
    (snapshot.parents[2] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(Path, "replace", read_only(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(hosted, tell=told.append) == find_checkpoint("small-x4") == snapshot / "b.pth"
    assert len(told) == 1  # that the hash is not known
    remove("small-x4")
    assert (snapshot / "b.pth").read_bytes() == CONTENT
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (snapshot / "b.pth").write_bytes(OTHER)
    pull(hosted, tell=told.append)  # not the first one's hash: it is fetched from the next address
    assert read_record("small-x4").source == server.url


# Files of one's own


@pytest.fixture
def file(tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT)
    return tmp_path / "net.pth"


def test_a_file_is_imported(home, file):
    path = import_file(file, "my-net")
    assert path == home / "models" / "my-net.pth"
    assert path.read_bytes() == file.read_bytes() == CONTENT
    assert find_checkpoint("my-net") == path
    record = read_record("my-net")
    assert (record.source, record.task, record.scale, record.sha256) == (
        str(file),
        None,
        4,
        sha256(file),
    )
    assert [r.name for r in list_records()] == ["my-net"]
    assert known_task("my-net") is None
    fails(lambda: find_checkpoint("my-nit"), CallError, "did you mean 'my-net'?")
    file.unlink()
    assert load_network(find_checkpoint("my-net"))[1] == "mambair"
    assert remove("my-net") == path
    assert not list(list_records())
    fails(lambda: find_checkpoint("my-net"), CallError, "my-net")
    assert {entry.name for entry in path.parent.iterdir()} == {".my-net.lock"}


def test_the_suffix_tells_how_to_read_it(home, tmp_path):
    (tmp_path / "net.SafeTensors").write_bytes(safe())
    assert import_file(tmp_path / "net.SafeTensors", "my-net").name == "my-net.safetensors"
    (tmp_path / "net").write_bytes(CONTENT)
    assert import_file(tmp_path / "net", "other").name == "other.pth"


def test_the_task_of_an_imported_file(home, tmp_path):
    model = network("denoise")
    save_network(tmp_path / "net.safetensors", model, model.state_dict(), {"task": "derain"})
    import_file(tmp_path / "net.safetensors", "my-rain")
    assert known_task("my-rain") == known_task(str(tmp_path / "net.safetensors")) == "derain"


def test_a_file_is_imported_as_a_known_model(home, server, row, file, told):
    import_file(file, "small-x4", told.append)
    assert "not known" in told[0]
    assert find_checkpoint("small-x4").read_bytes() == CONTENT
    assert not server.requests
    remove("small-x4")
    file.write_bytes(OTHER)
    fails(lambda: import_file(file, "small-x4"), CheckpointError, file, "of the first download")
    file.write_bytes(saved(network("classic").state_dict()))
    fails(lambda: import_file(file, "small-x4"), CheckpointError, file, "not small-x4", "x3")


@pytest.mark.parametrize(
    "name", ["", "-a", "a.pth", "A", "a b", "a/b", "../a", "ä", "x" * 65, "con\n"]
)
def test_names_that_cannot_be_used(home, file, name):
    with pytest.raises(CallError, match="small letters"):
        import_file(file, name)
    assert not home.exists()


def test_names_that_are_taken(home, file):
    fails(lambda: import_file(file, "tiny-x4"), CallError, "tiny-x4 is a bundled model")
    import_file(file, "my-net")
    fails(lambda: import_file(file, "my-net"), CallError, "my-net", "mambair models remove my-net")
    fails(
        lambda: import_file(file.parent / "missing.pth", "b"), CallError, "missing.pth is missing"
    )
    fails(lambda: import_file(file.parent, "b"), CallError, "is a folder")
    file.write_bytes(b"nonsense")
    fails(lambda: import_file(file, "b"), CheckpointError, file, "no checkpoint")
    assert [record.name for record in list_records()] == ["my-net"]


def test_what_cannot_be_removed(home, file):
    fails(lambda: remove("tiny-x4"), CallError, "tiny-x4 is bundled")
    for name in ("mambair-classic-x4", "nothing", str(file)):
        fails(lambda n=name: remove(n), CallError, f"{name} is not in the cache")
    assert file.exists()


# What became of them


def test_damaged_files_are_found(home, file):
    paths = {name: import_file(file, name) for name in ("good", "changed", "gone")}
    paths["changed"].write_bytes(OTHER)
    paths["gone"].unlink()
    again = "remove {0}, then fetch or import it again"
    fails(
        lambda: find_checkpoint("changed"),
        CheckpointError,
        paths["changed"],
        "damaged",
        again.format("changed"),
    )
    fails(
        lambda: find_checkpoint("gone"),
        CheckpointError,
        paths["gone"],
        "is missing",
        again.format("gone"),
    )
    found = {name: problem for name, _, problem in verify()}
    bundled = [model.name for model in list_models() if model.bundled]
    assert [name for name, problem in found.items() if problem is None] == [*bundled, "good"]
    assert "damaged" in found["changed"]
    assert "is missing" in found["gone"]
    for name in ("changed", "gone"):
        remove(name)
    assert [problem for _, _, problem in verify()] == [None] * (len(bundled) + 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "my-net"}', '{"nonsense": 1}'])
def test_a_damaged_record(home, file, text):
    import_file(file, "my-net")
    (home / "models" / "my-net.json").write_text(text)
    fails(
        lambda: find_checkpoint("my-net"),
        CheckpointError,
        home / "models" / "my-net.json",
        "delete it",
    )


def test_records_are_plain_json(home, file):
    import_file(file, "my-net")
    assert json.loads((home / "models" / "my-net.json").read_text())["sha256"] == sha256(file)
    assert models_folder() == home / "models"
    assert model_named("my-net") is None
