import json
from pathlib import Path

import pytest
from calls import fails, works
from folders import make

from mambair_cli.commands import presets
from mambair_cli.restore import upscaler


@pytest.fixture(autouse=True)
def user(empty_folder, monkeypatch):
    """The user's configuration directory."""
    (empty_folder / "config").mkdir()
    files = [empty_folder / "config" / presets.NAME, Path(presets.NAME)]
    monkeypatch.setattr(presets, "preset_files", lambda: files)
    return files[0]


@pytest.fixture
def call(call, monkeypatch):
    from doubler import Doubler

    monkeypatch.setattr(upscaler, "Upscaler", lambda choice, options: Doubler())
    make("a.png")
    return call


def here(text):
    Path(presets.NAME).write_text(text, "utf-8")


def result(call, *options):
    return json.loads(works(call("upscale", "a.png", "--json", *options)))


def test_presets_are_defaults(call):
    here('[upscale]\nscale = 2\nsuffix = "_big"\n')
    assert result(call)["output"] == "a_big.png"
    assert result(call)["scale"] == 2
    assert result(call, "--suffix", "_mine", "-s", 3)["output"] == "a_mine.png"
    assert result(call, "-s", 3)["scale"] == 3


def test_the_folder_counts_before_the_user(call, user):
    user.write_text('[upscale]\nscale = 2\nsuffix = "_user"\n', "utf-8")
    here('[upscale]\nsuffix = "_folder"\n')
    facts = result(call)
    assert (facts["output"], facts["scale"]) == ("a_folder.png", 2)


def test_flags_and_words_with_dashes(call):
    here("[upscale]\nscale = 2\ntile-overlap = 8\nkeep_times = true\njson = true\n")
    assert json.loads(works(call("upscale", "a.png")))["output"] == "a_x2.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[upscale]\nscael = 2", ("mambair.toml, [upscale]: 'scael' is no option", "'scale'")),
        ("[upscal]\nscale = 2", ("mambair.toml: 'upscal' is no command", "'upscale'")),
        ("scale = 2", ("'scale' is no command",)),
        ("[upscale]\nscale = 'much'", ("--scale", "not a number", "in mambair.toml")),
        ("[upscale]\nalpha = 'sharp'", ("--alpha", "in mambair.toml")),
        ("[upscale]\nexact = 'yes'", ("exact must be true or false, not 'yes'",)),
        ("[upscale]\nhelp = true", ("'help' is no option",)),
        ("[upscale\n", ("mambair.toml: is not valid TOML",)),
    ],
)
def test_what_is_wrong_is_named(call, text, words):
    here(text)
    fails(call("upscale", "a.png"), 2, *words)


def test_a_preset_that_is_a_folder(call):
    Path(presets.NAME).mkdir()
    fails(call("upscale", "a.png"), 2, "mambair.toml: cannot be read")


def test_doctor_shows_presets(call):
    here("[upscale]\nscale = 2\n")
    assert "mambair.toml: [upscale] scale = 2" in works(call("doctor"))
