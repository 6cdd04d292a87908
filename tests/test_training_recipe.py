import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from training import RECIPE, recipe

from mambair_cli.errors import CallError
from mambair_cli.rain import Rain
from mambair_cli.training.recipe import RECIPES, build_degradation, build_network, read_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_bundled_recipes(path):
    config = read_recipe(path.stem)
    assert config == read_recipe(str(path))
    model = build_network(config)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 4, 5)).shape == (1, 3, 4 * config.scale, 5 * config.scale)


def test_recipes_become_typed(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.replace("weight_decay = 0.01", "weight_decay = 0"))
    config = read_recipe(str(path))
    assert config == recipe(weight_decay=0.0)
    assert config.optimiser.betas == (0.9, 0.99)
    assert type(config.optimiser.weight_decay) is float
    assert build_network(config).config.depths == (1,)


def test_a_network_may_leave_keys_to_their_defaults():
    config = replace(recipe(), network={"arch": "mambair", "embed_dim": 16, "depths": [1]})
    assert build_network(config).config.conv_block == "classic"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # keys
        ("patch = 8", "pach = 8", r"own\.toml, \[data\]: unknown key 'pach'; did you mean 'patch'\?"),
        ("[optimiser]", "[optimizer]", r"own\.toml: unknown key 'optimizer'; did you mean 'optimiser'\?"),
        ("embed_dim", "embeddim", r"\[network\]: unknown key 'embeddim'; did you mean 'embed_dim'\?"),
        ("seed = 1", "seed = 1\nzzz = 2", r"own\.toml: unknown key 'zzz'; there are scale, seed, network"),
        ("depths = [1]", "depths = [1]\nupscale = 2", r"\[network\]: unknown key 'upscale'; .* 'scale'"),
        ("batch = 2\n", "", r"own\.toml, \[data\]: missing batch$"),
        ("scale = 2\nseed = 1\n", "", r"own\.toml: missing scale, seed$"),
        ('arch = "mambair"\n', "", r"arch must be one of .*mambair.*, not None"),
        ('"mambair"', '"mambo"', r"own\.toml, \[network\]: arch must be one of .*mambair.*, not 'mambo'"),
        ('"mambair"', '["mambair"]', r"arch must be one of"),
        # types
        ("lr = 2e-3", 'lr = "fast"', r"own\.toml, \[optimiser\]: lr must be a number from .*, not 'fast'"),
        ("lr = 2e-3", "lr = true", r"lr must be a number from .*, not True"),
        ("batch = 2", "batch = 2.0", r"\[data\]: batch must be a whole number from 1 .*, not 2\.0"),
        ("batch = 2", "batch = true", r"batch must be a whole number"),
        ("[0.9, 0.99]", "[0.9]", r"betas must be a list of 2 numbers, not \[0\.9\]"),
        ("[0.9, 0.99]", "0.9", r"betas must be a list of 2 numbers, not 0\.9"),
        ("[0.9, 0.99]", '[0.9, "b"]', r"betas must be a number from 0 to 0\.9999, not 'b'"),
        ("depths = [1]", "depths = 1", r"own\.toml, \[network\]: depths must be a list of numbers, not 1"),
        ("depths = [1]", "depths = []", r"depths must be a list of numbers"),
        ('"light_c"', '"light_d"', r"conv_block must be one of 'classic', .*'light_c', not 'light_d'"),
        ("iterations = 6\nwarmup = 0.1", "", r"own\.toml, \[schedule\]: missing iterations, warmup"),
        ("scale = 2\n", "scale = 2\nschedule = 3\n", None),
        # ranges
        ("iterations = 6", "iterations = -6", r"iterations must be a whole number from 1 .*, not -6"),
        ("iterations = 6", "iterations = 0", r"iterations must be a whole number from 1"),
        ("batch = 2", "batch = 0", r"batch must be a whole number from 1"),
        ("patch = 8", "patch = -8", r"patch must be a whole number from 1"),
        ("validation = 2", "validation = 0", r"validation must be a whole number from 1"),
        ("scale = 2", "scale = 9", r"scale must be a whole number from 1 to 8, not 9"),
        ("seed = 1", "seed = -1", r"seed must be a whole number from 0"),
        ("lr = 2e-3", "lr = 0", r"lr must be a number from"),
        ("lr = 2e-3", "lr = nan", r"lr must be a number from .*, not nan"),
        ("lr = 2e-3", "lr = inf", r"lr must be a number from .*, not inf"),
        ("[0.9, 0.99]", "[0.9, 1.0]", r"betas must be a number from 0 to 0\.9999, not 1\.0"),
        ("weight_decay = 0.01", "weight_decay = -0.1", r"weight_decay must be a number from 0"),
        ("clip = 1.0", "clip = 0.0", r"clip must be a number from"),
        ("ema = 0.9", "ema = 1.1", r"ema must be a number from 0 to 1, not 1\.1"),
        ("warmup = 0.1", "warmup = 3", r"warmup must be a number from 0 to 1, not 3"),
        ("embed_dim = 16", "embed_dim = 0", r"embed_dim must be a whole number from 6"),
        ("depths = [1]", "depths = [1, 0]", r"depths must be a whole number from 1 .*, not 0"),
        ("depths = [1]", "depths = [1]\nin_chans = 2", r"in_chans must be 1 \(gray\) or 3"),
        ("depths = [1]", "depths = [1]\nin_chans = 4", r"in_chans must be a whole number from 1 to 3"),
        # what does not belong together
        ('"pixelshuffledirect"', '""', r"upsampler must be empty where the scale is 1, and only there"),
        ("scale = 2", "scale = 1", r"upsampler must be empty where the scale is 1"),
        ("batch = 2", 'batch = 2\ndegradation = {kind = "noise"}', r"'noise' does not fit the scale 2"),
        ("batch = 2", 'batch = 2\ndegradation = {kind = "nose"}', r"kind must be one of noise, .*, not 'nose'"),
        ("batch = 2", "batch = 2\ndegradation = {sigma = 2}", r"degradation: kind must be one of .*, not None"),
        # syntax
        ("seed = 1", "seed = ", r"own\.toml is no valid TOML: .*line"),
        ("seed = 1", "seed = 1\nseed = 2", r"own\.toml is no valid TOML"),
    ],
)
def test_recipes_are_strict(tmp_path, old, new, words):
    path = tmp_path / "own.toml"
    assert RECIPE.count(old) == 1
    text = RECIPE.replace(old, new)
    if words is None:
        text, words = text.split("[schedule]")[0], r"own\.toml: schedule must be a table, not 3"
    path.write_text(text)
    with pytest.raises(CallError, match=words):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("degradation", "words"),
    [
        ("", r"\[data\], degradation: missing, but the scale is 1; give a kind of noise, jpeg"),
        ('{kind = "noise", sgma = [0, 5]}', r"degradation: unknown key 'sgma'; did you mean 'sigma'\?"),
        ('{kind = "noise", sigma = 5}', r"degradation: sigma must be a list of 2 numbers, not 5"),
        ('{kind = "noise", sigma = [0, 300]}', r"sigma must be a number from 0 to 255, not 300"),
        ('{kind = "noise", sigma = [9, 3]}', r"sigma must be a smaller and a larger number"),
        ('{kind = "jpeg", quality = [1.5, 3]}', r"quality must be a whole number from 1 to 100, not 1\.5"),
        ('{kind = "rain", angle = [-99, 3]}', r"angle must be a number from -90 to 90"),
    ],
)
def test_degradations_are_strict(tmp_path, degradation, words):
    path = tmp_path / "own.toml"
    text = RECIPE.replace("scale = 2", "scale = 1").replace('"pixelshuffledirect"', '""')
    path.write_text(
        text.replace("batch = 2", f"batch = 2\ndegradation = {degradation}" if degradation else "batch = 2")
    )
    with pytest.raises(CallError, match=words):
        read_recipe(str(path))


def test_degradations_become_typed():
    config = recipe(scale=1, network={"upsampler": ""}, degradation={"kind": "rain", "angle": [-9, 3]})
    assert build_degradation(config) == Rain(angle=(-9.0, 3.0))
    assert build_degradation(recipe()) is None


def test_clip_may_be_infinite(tmp_path):
    (tmp_path / "own.toml").write_text(RECIPE.replace("clip = 1.0", "clip = inf"))
    assert read_recipe(str(tmp_path / "own.toml")).optimiser.clip == math.inf


def test_unreadable_recipes(tmp_path):
    with pytest.raises(CallError, match=r"no recipe 'tiny-x9'; there are .*tiny-x2, .*\.toml file"):
        read_recipe("tiny-x9")
    with pytest.raises(CallError, match="no recipe"):
        read_recipe(str(tmp_path))
    mistyped = json.dumps(asdict(recipe()) | {"sede": 1}).encode()
    for name, content, words in (
        ("binary.toml", b"\xff\xfe\x00", "no valid TOML"),
        ("cut.json", b'{"scale": 2', "no valid JSON"),
        ("list.json", b"[1]", "must be a table"),
        ("key.json", mistyped, r"key\.json: unknown key 'sede'.*'seed'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CallError, match=words):
            read_recipe(str(tmp_path / name))
