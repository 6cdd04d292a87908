import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from calls import check_bad, each_call, fails, plain, plain_lines, works
from networks import STATE, network, saved
from safetensors.torch import load_file
from servers import answer, serving

from mambair_cli.commands import models as module
from mambair_cli.models import catalog
from mambair_cli.models.cache import models_folder
from mambair_cli.models.catalog import list_models, model_named
from mambair_cli.models.tasks import TASKS
from mambair_cli.models.weights import bundled_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(folder, monkeypatch):
    """An empty cache, in the working directory."""
    monkeypatch.setenv("MAMBAIR_HOME", str(folder / "home"))
    return folder / "home"


@pytest.fixture
def net(folder):
    """A checkpoint in the working directory."""
    Path("net.pth").write_bytes(saved({"params": STATE}))
    return "net.pth"


@pytest.fixture
def server(monkeypatch):
    """Has the file of tiny-x2 under the name of mambair-light-c-x2, which is now of that form."""
    content = (bundled_folder() / "tiny-x2.safetensors").read_bytes()
    with serving(content) as running:
        running.url += ".safetensors"
        tiny = model_named("tiny-x2")
        changed = {"config": tiny.config, "parameters": tiny.parameters, "urls": (running.url,)}
        rows = [
            catalog.Model(**vars(row) | changed) if row.name == "mambair-light-c-x2" else row
            for row in list_models()
        ]
        monkeypatch.setattr(catalog, "read_catalog", lambda path: tuple(rows))
        yield running


# List


def test_the_list(call, home):
    header, *lines = works(call("models", "list", "--all")).splitlines()
    assert header.split() == ["name", "task", "scale", "params", "for", "score", "file"]
    for model, line in zip(list_models(), lines, strict=True):
        assert line.split()[:2] == [model.name, model.task]
        assert f" {model.parameters / 1e6:.2f}M " in line
        state = "bundled" if model.bundled else "to fetch" if model.urls else "no address"
        assert re.search(rf" {state}\s*$", line)
        assert model.degradation in line
        assert (f"{model.levels[1]}" if model.levels else f"x{model.scale}") in line


def test_the_short_list_is_what_is_here_and_what_is_worth_fetching(call, home):
    header, *lines, last = works(call("models", "list")).splitlines()
    assert header.split() == ["name", "task", "scale", "for", "file"]
    bundled = [model.name for model in list_models() if model.bundled]
    names = [line.split()[0] for line in lines]
    assert names[: len(bundled)] == bundled
    assert all(line.rstrip().endswith("bundled") for line in lines[: len(bundled)])
    for line in lines[len(bundled) :]:
        assert re.search(r"[\d.]+ dB better than tiny-\S+, \d+ times slower +to fetch\s*$", line)
    assert len(set(names)) == len(names) > len(bundled)
    assert last == f"{len(list_models()) - len(names)} more: mambair models list --all"


def test_the_short_list_fits_a_terminal_and_breaks_no_word(call, home, monkeypatch):
    import rich.console

    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    text = plain_lines(works(call("models", "list")))
    assert max(map(len, text.splitlines())) <= 80
    shown = text.split()
    for model in list_models():
        if model.bundled:
            assert model.name in shown
            assert all(word in shown for word in model.degradation.split())


def test_the_list_as_json(call, home):
    facts = json.loads(works(call("models", "list", "--json")))
    known = {m.name for m in list_models() if m.verified and not m.bundled}
    # Their hashes are public; nobody of this project has held the files.
    assert known == {"mambairv2-small-x4", "mambairv2-large-x4"}
    for model, found in zip(list_models(), facts, strict=True):
        assert found["name"] == model.name
        assert found["config"] == json.loads(json.dumps(dict(model.config)))
        assert found["scores"] == [asdict(score) for score in model.scores]
        assert (found["verified"], found["bundled"]) == (model.verified, model.bundled)
        expected = {
            "task",
            "arch",
            "scale",
            "levels",
            "urls",
            "licence",
            "degradation",
            "source",
            "parameters",
            "sha256",
        }
        assert expected < set(found)


@pytest.mark.parametrize("task", TASKS)
def test_the_list_of_a_task(call, home, task):
    expected = [model.name for model in list_models() if model.task == task]
    assert [
        facts["name"]
        for facts in json.loads(works(call("models", "list", "--task", task, "--json")))
    ] == expected
    assert [
        line.split()[0]
        for line in works(call("models", "list", "--all", "--task", task)).splitlines()[1:]
    ] == expected


def test_the_list_has_imported_models(call, home, net):
    works(call("models", "import", net, "--name", "my-net"))
    lines = works(call("models", "list")).splitlines()
    (line,) = (line for line in lines if line.startswith(" my-net "))
    assert line.split()[:3] == ["my-net", "upscale", "x4"]
    assert line.split()[-1] == "here"
    *_, facts = json.loads(works(call("models", "list", "--json")))
    assert (facts["name"], facts["state"], facts["scale"]) == ("my-net", "here", 4)
    assert "my-net" not in works(call("models", "list", "--task", "derain"))
    Path(net).write_bytes(saved(network("denoise").state_dict()))
    works(call("models", "import", net, "--name", "my-other"))
    for task in ("denoise", "derain", "dejpeg"):
        assert "my-other" in works(call("models", "list", "--task", task))


def test_the_tables_of_the_page():
    """`mambair models list --markdown` printed what docs/models.md has between its markers."""
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    block = re.search(
        "<!-- mambair models list --markdown -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL
    )
    assert block, "docs/models.md has no place for the tables"
    tables = "\n\n".join("\n".join(module._markdown(TASKS[task])) for task in TASKS)
    assert block[1] == tables, (
        "write the output of `mambair models list --markdown` into docs/models.md"
    )


def test_the_tables(call, home):
    text = works(call("models", "list", "--markdown"))
    for model in list_models():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{model.name}` |")]
        for score in model.scores:
            assert f"{score.psnr:.2f}" in line
        assert model.licence in line
    lengths = {len(line.split("|")) for line in text.split("\n\n")[1].splitlines()}
    assert len(lengths) == 1
    assert "(Bicubic) | x2 |" in text
    assert "(JPEG input) | quality 10 |" in text
    assert works(call("models", "list", "--markdown", "--task", "dejpeg")).splitlines()[0] in text


# Info


def test_what_is_known_of_a_model(call, home):
    text = plain(works(call("models", "info", "mambair-classic-x4")))
    row = model_named("mambair-classic-x4")
    for words in (
        "task upscale",
        "arch mambair",
        "scale 4",
        "embed_dim 180, depths 6, 6, 6, 6, 6, 6",
        "parameters 20,569,575",
        "degradation bicubic downsampling",
        "licence Apache-2.0",
        "verified no",
        "state to fetch",
        "Set5 33.03 / 0.9046 (Y)",
    ):
        assert words in text
    for url in row.urls:
        assert url in text.replace(" ", "")
    facts = json.loads(works(call("models", "info", row.name, "--json")))
    assert facts["urls"] == list(row.urls)
    assert facts["sha256"] is None


def test_what_is_known_of_a_bundled_model(call, home):
    facts = json.loads(works(call("models", "info", "tiny-x2", "--json")))
    row = model_named("tiny-x2")
    assert (facts["state"], facts["verified"], facts["sha256"]) == ("bundled", True, row.sha256)
    assert facts["file"] == str(bundled_folder() / row.file)
    assert (facts["dtype"], facts["task"], facts["licence"]) == ("float16", "upscale", "Apache-2.0")
    assert facts["bytes"] == (bundled_folder() / row.file).stat().st_size


def test_what_a_file_holds(call, home, net):
    facts = json.loads(works(call("models", "info", net, "--json")))
    assert (facts["arch"], facts["scale"], facts["wrapping"], facts["dtype"]) == (
        "mambair",
        4,
        "params",
        "float32",
    )
    text = plain(works(call("models", "info", net)))
    assert "wrapping params" in text
    assert f"sha256 {facts['sha256']}" in text
    assert f"parameters {facts['parameters']:,}" in text
    shutil.copy(bundled_folder() / "tiny-x4.safetensors", "unknown.safetensors")
    assert "like tiny-x4" in plain(works(call("models", "info", "unknown.safetensors")))
    works(call("models", "import", net, "--name", "my-net"))
    assert (
        json.loads(works(call("models", "info", "my-net", "--json")))["sha256"] == facts["sha256"]
    )


# Pull


def test_a_model_is_pulled(call, home, server, monkeypatch):
    code, out, err = call("models", "pull", "mambair-light-c-x2")
    path = models_folder() / "mambair-light-c-x2.safetensors"
    assert (code, out) == (0, f"{path}\n")
    first, second = err.splitlines()
    assert first == f"mambair: mambair-light-c-x2: fetching {server.url} (licence: Apache-2.0)"
    assert f"SHA-256 {model_named('tiny-x2').sha256}" in second
    assert "later downloads must match" in second
    assert works(call("models", "pull", "mambair-light-c-x2")) == out
    assert works(call("models", "path", "mambair-light-c-x2")) == out
    assert len(server.requests) == 1
    (line,) = [
        line
        for line in works(call("models", "list")).splitlines()
        if line.split()[0] == "mambair-light-c-x2"
    ]
    assert line.split()[-1] == "here"
    facts = json.loads(works(call("models", "info", "mambair-light-c-x2", "--json")))
    assert (facts["state"], facts["dtype"], facts["verified"]) == ("here", "float16", False)


def test_a_restoration_fetches_what_it_needs(call, home, server, monkeypatch):
    arguments = ("upscale", "photo.png", "-s", 2, "-m", "mambair-light-c-x2", "-o", "out.png")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # so that it is put back after this test
    fails(call(*arguments, "--offline"), 1, "mambair-light-c-x2", "the network is off")
    assert not server.requests
    monkeypatch.delenv("HF_HUB_OFFLINE")  # it lasts as long as a process
    code, out, err = call(*arguments)
    assert code == 0
    assert len(err.splitlines()) == 2
    assert "48x36" in out
    assert "48x36" in works(call(*arguments))
    assert "48x36" in works(call(*arguments, "--offline"))
    assert len(server.requests) == 1


def test_nothing_is_fetched_for_another_command(call, home, server):
    fails(
        call("denoise", "photo.png", "-m", "mambair-light-c-x2"),
        2,
        "use mambair upscale INPUT -m mambair-light-c-x2",
    )
    assert not server.requests


def test_a_pull_that_fails(call, home, server):
    server.script = [answer(404)]
    code, out, err = call("models", "pull", "mambair-light-c-x2")
    assert (code, out) == (1, "")
    assert "HTTP 404" in err.splitlines()[-1]
    assert "import it as mambair-light-c-x2 (mambair models import)" in err.splitlines()[-1]


@each_call(
    ("models  nonsense", 2, "'nonsense'", "mambair models --help"),
    ("models  list  --task  paint", 2, "paint", "denoise"),
    ("models  info  nonsense", 2, "nonsense"),
    ("models  info  photo.png", 1, "photo.png", "checkpoint"),
    ("models  info  other.pth", 1, "other.pth", "another architecture"),
    ("models  pull  nonsense", 2, "nonsense", "mambair models list"),
    ("models  pull  photo.png", 2, "photo.png", "mambair models list"),
    (
        "models  pull  mambair-light-b-x2",
        1,
        "no address",
        "import it as mambair-light-b-x2",
    ),
    ("models  path  mambair-classic-x2", 2, "mambair models pull mambair-classic-x2"),
    ("models  path  mambair-light-b-x2", 2, "mambair models import"),
    ("models  path  tiny-x5", 2, "no model is called 'tiny-x5'; did you mean 'tiny-x4'?"),
    ("models  info  nonsense", 2, "no model is called 'nonsense'", "mambair models list"),
    ("models  convert  photo.png  out.safetensors", 1, "photo.png", "checkpoint"),
    ("models  convert  missing.pth  out.safetensors", 2, "missing.pth"),
    ("models  import  photo.png  --name  x", 1, "photo.png", "checkpoint"),
    ("models  import  photo.png  --name  X", 2, "small letters"),
    (
        "models  import  photo.png  --name  tiny-x4",
        2,
        "tiny-x4 is a bundled model",
        "choose another name",
    ),
    ("models  import  photo.png", 2, "--name"),
    ("models  remove  tiny-x2", 2, "bundled"),
    ("models  remove  nonsense", 2, "not in the cache"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)


# The others


def test_own_files_are_kept_and_used(call, home, net):
    path = works(call("models", "import", net, "--name", "my-net")).strip()
    assert Path(path) == home / "models" / "my-net.pth"
    for command in ("pull", "path"):
        assert works(call("models", command, "my-net")) == f"{path}\n"
    Path(net).unlink()
    assert "96x72" in works(call("upscale", "photo.png", "-m", "my-net", "-o", "out.png"))
    assert works(call("models", "remove", "my-net")) == f"removed {path}\n"
    assert not Path(path).exists()


def test_all_files_are_verified(call, home, net):
    path = Path(works(call("models", "import", net, "--name", "my-net")).strip())
    lines = works(call("models", "verify")).splitlines()[1:]
    assert {line.split()[0]: line.split()[-1] for line in lines} == {
        **{model.name: "sound" for model in list_models() if model.bundled},
        "my-net": "sound",
    }
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = call("models", "verify", "--json")
    assert (code, err) == (1, "")
    *sound, broken = json.loads(out)
    assert all(facts["problem"] is None for facts in sound)
    assert (broken["name"], broken["file"]) == ("my-net", str(path))
    assert "damaged" in broken["problem"]
    code, out, _ = call("models", "verify")
    assert code == 1
    assert "damaged" in out


def test_the_folder_of_the_cache(call, home):
    assert works(call("models", "path")) == f"{home / 'models'}\n"
    assert (
        works(call("models", "path", "tiny-x2")) == f"{bundled_folder() / 'tiny-x2.safetensors'}\n"
    )
    assert not home.exists()


def test_a_file_is_converted(call, home, net):
    assert works(call("models", "convert", net, "out.safetensors")) == "out.safetensors\n"
    assert all(
        torch.equal(value, STATE[key]) for key, value in load_file("out.safetensors").items()
    )
    assert (
        works(call("models", "convert", net, "out.safetensors")) == "out.safetensors\n"
    )  # is replaced
    first = works(call("upscale", "photo.png", "-m", net, "-o", "a.png"))
    assert works(call("upscale", "photo.png", "-m", "out.safetensors", "-o", "b.png"))[:1] == "b"
    assert first[:1] == "a"
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
