import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from failing import fails
from training import RECIPE, recipe

from mambair_cli.archs.mambair import detect
from mambair_cli.degradations.jpeg import Jpeg
from mambair_cli.degradations.mixed import Chain, Clean, Mixed
from mambair_cli.degradations.noise import Noise
from mambair_cli.degradations.rain import Rain
from mambair_cli.degradations.real_world import RealWorld
from mambair_cli.degradations.sensor import Sensor
from mambair_cli.errors import CallError
from mambair_cli.system.texts import parse_toml
from mambair_cli.training.recipe import (
    RECIPES,
    build_degradation,
    build_network,
    read_recipe,
    recipe_names,
)
from mambair_cli.training.schedule import learning_rate, stages

# Bundled recipes: parameters (shared/spec/networks.md), then what the papers say of the training.
PUBLISHED = {
    "classic-x2": (20_421_863, [(64, 32)], [500_000], 2e-4, [250_000, 400_000, 450_000, 475_000]),
    "classic-x3": (20_606_503, [(64, 32)], [250_000], 1e-4, [125_000, 200_000, 225_000, 237_500]),
    "classic-x4": (20_569_575, [(64, 32)], [250_000], 1e-4, [125_000, 200_000, 225_000, 237_500]),
    **{
        f"light-{form}x{scale}": (
            count,
            [(64, 32)],
            [500_000],
            2e-4,
            [250_000, 400_000, 450_000, 475_000],
        )
        for form, counts in (
            ("", (905_016, 913_131, 924_492)),
            ("a-", (933_672, 941_787, 953_148)),
            ("b-", (1_363_320, 1_371_435, 1_382_796)),
        )
        for scale, count in zip((2, 3, 4), counts, strict=True)
    },
    **{
        f"light-v2-x{scale}": (
            count,
            [(64, 32)],
            [500_000],
            2e-4,
            [250_000, 400_000, 450_000, 475_000],
        )
        for scale, count in ((2, 774_092), (3, 780_587), (4, 789_680))
    },
    **{
        f"classic-v2-{form}x2": (
            count,
            [(64, 32)],
            [500_000],
            1e-3,
            [250_000, 400_000, 450_000, 475_000],
        )
        for form, count in (("small-", 9_621_935), ("", 22_903_001), ("large-", 34_090_523))
    },
    **{
        f"classic-v2-{form}x{scale}": (
            count,
            [(64, 32)],
            [250_000],
            1e-4,
            [125_000, 200_000, 225_000, 237_500],
        )
        for form, counts in (
            ("small-", (9_806_575, 9_769_647)),
            ("", (23_087_641, 23_050_713)),
            ("large-", (34_275_163, 34_238_235)),
        )
        for scale, count in zip((3, 4), counts, strict=True)
    },
    "denoise-15": (
        15_777_507,
        [(128, 16)],
        [1_600_000],
        2e-4,
        [800_000, 1_200_000, 1_400_000, 1_500_000],
    ),
    "denoise-25": (15_777_507, [(128, 16)], [800_000], 1e-4, [400_000, 600_000, 700_000, 750_000]),
    "denoise-50": (15_777_507, [(128, 16)], [800_000], 1e-4, [400_000, 600_000, 700_000, 750_000]),
    "jpeg-40": (
        15_771_025,
        [(126, 16)],
        [1_600_000],
        2e-4,
        [800_000, 1_200_000, 1_400_000, 1_500_000],
    ),
    "jpeg-30": (15_771_025, [(126, 16)], [800_000], 1e-4, [400_000, 600_000, 700_000, 750_000]),
    "jpeg-10": (15_771_025, [(126, 16)], [800_000], 1e-4, [400_000, 600_000, 700_000, 750_000]),
    "denoise-real": (
        26_779_480,
        [(128, 64), (160, 40), (192, 32), (256, 16), (320, 8), (384, 8)],
        [92_000, 64_000, 48_000, 36_000, 36_000, 24_000],
        3e-4,
        [],
    ),
    "derain": (
        28_709_875,
        [(128, 64), (160, 40), (192, 24), (256, 16), (320, 8), (384, 8)],
        [92_000, 64_000, 48_000, 36_000, 36_000, 24_000],
        3e-4,
        [],
    ),
    "derain-finetune": (28_709_875, [(384, 8)], [156_000], 1e-4, []),
    "vmambair-x4": (12_028_273, [(64, 64)], [100_000], 2e-4, [50_000, 70_000]),
    "vmambair-x4-gan": (12_028_273, [(64, 64)], [300_000], 2e-4, [150_000]),
    "vmambair-real-x4": (10_497_813, [(64, 72)], [500_000], 2e-4, []),
    "vmambair-real-x4-gan": (10_497_813, [(64, 72)], [400_000], 1e-4, []),
    "real-x4": (20_569_575, [(64, 32)], [500_000], 1e-4, []),
    "real-x4-gan": (20_569_575, [(64, 32)], [400_000], 1e-4, []),
    "tiny-x2": (217_654, [(32, 8)], [12_000], 1e-3, []),
}


def test_bundled_recipes_are_whole():
    """All of them resolve, say what they are, and start from one another."""
    for name in recipe_names():
        config = read_recipe(name)
        assert config == read_recipe(str(RECIPES / f"{name}.toml"))
        assert config.summary
        assert config.init in ("", *recipe_names())
        assert (config.loss.adversarial > 0) == name.endswith("-gan")
    assert set(PUBLISHED) <= set(recipe_names())
    assert {f"ablation-{i}" for i in range(4)} <= set(recipe_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    parameters, patches, iterations, rate, halved = PUBLISHED[name]
    config = read_recipe(name)
    assert sum(p.numel() for p in build_network(config).parameters()) == parameters
    assert stages(config) == patches
    assert list(config.schedule.iterations) == iterations
    assert config.optimiser.lr == rate
    assert [i for i in halved if learning_rate(config, i) != learning_rate(config, i - 1) / 2] == []
    assert len(config.schedule.halve_at) == len(halved)


def test_progressive_recipes_stay_and_fall():
    """92k flat, 208k as a cosine to 1e-6."""
    for name in ("denoise-real", "derain"):
        config = read_recipe(name)
        rates = {i: learning_rate(config, i) for i in (0, 92_000, 92_001, 196_000, 299_999)}
        assert rates[0] == rates[92_000] == 3e-4 > rates[92_001]
        assert rates[196_000] == pytest.approx((3e-4 + 1e-6) / 2)
        assert rates[299_999] == pytest.approx(1e-6, rel=1e-3)
        assert (config.optimiser.betas, config.optimiser.weight_decay) == ((0.9, 0.999), 1e-4)
    assert (read_recipe("denoise-real").data.mixup, read_recipe("derain").data.mixup) == (1.2, 0)


def test_published_losses_and_degradations():
    assert read_recipe("classic-x2").loss.pixel == read_recipe("denoise-real").loss.pixel == "l1"
    denoise = read_recipe("denoise-50")
    assert (denoise.loss.pixel, denoise.loss.epsilon**2) == ("charbonnier", pytest.approx(1e-3))
    assert build_degradation(denoise) == Noise((50, 50))
    assert build_degradation(read_recipe("jpeg-10")) == Jpeg((10, 10))
    assert build_degradation(read_recipe("vmambair-real-x4")) == RealWorld(4)
    gan = read_recipe("vmambair-x4-gan").loss
    assert (gan.perceptual, gan.adversarial, gan.discriminator_lr) == (1, 1, 1e-4)
    assert read_recipe("denoise-15").network["drop_path_rate"] == 0.1


def test_ablations():
    """Table 1: what is missing is missing, and each is recognised from its tensors."""
    small = ["network.embed_dim=12", "network.depths=[1]", "network.drop_path_rate=0"]
    keys = []
    for i in range(4):
        model = build_network(read_recipe(f"ablation-{i}", small))
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 4, 5)).shape == (1, 3, 8, 10)
        assert detect(model.state_dict()).conv_block == model.config.conv_block
        keys.append({key.split("conv_blk.")[1] for key in model.state_dict() if "conv_blk." in key})
    attention = {f"attention.{i}.{kind}" for i in (1, 3) for kind in ("weight", "bias")}
    assert keys[0] == {"cab.0.weight", "cab.0.bias", *(f"cab.1.{key}" for key in attention)}
    assert keys[1] == {f"cab.0.{key}" for key in attention}
    assert keys[2] == set()
    assert keys[3] == {f"cab.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert build_network(read_recipe("ablation-3", small)).state_dict()[
        "layers.0.residual_group.blocks.0.conv_blk.cab.0.weight"
    ].shape == (24, 12, 1, 1)


# Changes


def test_set_changes_a_recipe():
    changes = [
        "optimiser.lr=1e-4",
        "data.patch=[8, 9]",
        "schedule.iterations=[30, 10]",
        "network.conv_block=classic",
    ]
    config = read_recipe("tiny-x2", [*changes, 'summary = "my own"', "scale=3"])
    assert (config.optimiser.lr, config.data.patch, config.schedule.iterations) == (
        1e-4,
        (8, 9),
        (30, 10),
    )
    assert (config.network["conv_block"], config.summary, config.scale) == ("classic", "my own", 3)
    noise = read_recipe("tiny-denoise", ["data.degradation.sigma=[15, 15]"])
    assert build_degradation(noise) == Noise((15, 15))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimiser.lr", r"optimiser\.lr: give SECTION\.KEY=VALUE"),
        ("=3", "give SECTION"),
        ("optimiser..lr=3", "give SECTION"),
        (
            "optimizer.lr=3",
            r"^optimiser\.ema=0\.9 optimizer\.lr=3: unknown key 'optimizer'; .* 'optimiser'\?",
        ),
        ("optimiser.bets=3", r"\[optimiser\]: unknown key 'bets'; did you mean 'betas'\?"),
        ("scale.x=3", "scale is no section"),
        ("optimiser.lr=fast", "lr must be a number from .*, not 'fast'"),
        ("data.batch=2.5", r"batch must be a whole number from 1 .*, not 2\.5"),
        ("network.conv_block=light_d", "not 'light_d'"),
    ],
)
def test_set_is_strict(change, words):
    with pytest.raises(CallError, match=words):
        read_recipe("tiny-x2", ["optimiser.ema=0.9", change])


def test_iterations_keep_the_proportions_of_stages():
    assert read_recipe("tiny-x2", [], 7).schedule.iterations == (7,)
    short = read_recipe("denoise-real", [], 3000)
    assert short.schedule.iterations == (920, 640, 480, 360, 360, 240)
    assert learning_rate(short, 920) == 3e-4 > learning_rate(short, 921)
    # each stage has one at least
    assert sum(read_recipe("denoise-real", [], 2).schedule.iterations) == 6


def test_a_recipe_builds_on_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('base = "tiny-x2"\n[data]\npatch = 9\n')
    own, base = read_recipe("own.toml"), read_recipe("tiny-x2")
    assert own == replace(base, data=replace(base.data, patch=(9,)))
    for name, text, words in (
        ("self", 'base = "self.toml"', "base must be the name of another recipe"),
        ("round", 'base = "there.toml"', "base must be the name of another recipe"),
        ("number", "base = 3", "base must be the name of another recipe, not 3"),
        ("lost", 'base = "tiny-x9"', "no recipe 'tiny-x9'; did you mean 'tiny-x"),
    ):
        Path("there.toml").write_text('base = "round.toml"')
        Path(f"{name}.toml").write_text(text)
        with pytest.raises(CallError, match=words):
            read_recipe(f"{name}.toml")


# Strictness


def test_recipes_become_typed(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.replace("weight_decay = 0.01", "weight_decay = 0"))
    config = read_recipe(str(path))
    assert config == recipe(weight_decay=0.0)
    assert config.optimiser.betas == (0.9, 0.99)
    assert type(config.optimiser.weight_decay) is float
    assert build_network(config).config.depths == (1,)


def test_a_network_may_leave_keys_to_their_defaults():
    network = {"arch": "mambair", "embed_dim": 16, "depths": [1]}
    config = replace(recipe(), network=network)
    assert build_network(config).config.conv_block == "classic"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # keys
        (
            "patch = 8",
            "pach = 8",
            r"own\.toml, \[data\]: unknown key 'pach'; did you mean 'patch'\?",
        ),
        (
            "[optimiser]",
            "[optimizer]",
            r"own\.toml: unknown key 'optimizer'; did you mean 'optimiser'\?",
        ),
        (
            "embed_dim",
            "embeddim",
            r"\[network\]: unknown key 'embeddim'; did you mean 'embed_dim'\?",
        ),
        (
            "seed = 1",
            "seed = 1\nzzz = 2",
            r"own\.toml: unknown key 'zzz'; there are scale, seed, network",
        ),
        (
            "depths = [1]",
            "depths = [1]\nupscale = 2",
            r"\[network\]: unknown key 'upscale'; .* 'scale'",
        ),
        ("batch = 2\n", "", r"own\.toml, \[data\]: missing batch$"),
        ("scale = 2\nseed = 1\n", "", r"own\.toml: missing scale, seed$"),
        ('arch = "mambair"\n', "", r"arch must be one of .*mambair.*, not None"),
        (
            '"mambair"',
            '"mambo"',
            r"own\.toml, \[network\]: arch must be one of .*mambair.*, not 'mambo'",
        ),
        ('"mambair"', '["mambair"]', r"arch must be one of"),
        # types
        (
            "lr = 2e-3",
            'lr = "fast"',
            r"own\.toml, \[optimiser\]: lr must be a number from .*, not 'fast'",
        ),
        ("lr = 2e-3", "lr = true", r"lr must be a number from .*, not True"),
        ("batch = 2", "batch = 2.0", r"\[data\]: batch must be a whole number from 1 .*, not 2\.0"),
        ("batch = 2", "batch = true", r"batch must be a whole number"),
        ("[0.9, 0.99]", "[0.9]", r"betas must be a list of 2 numbers, not \[0\.9\]"),
        ("[0.9, 0.99]", "0.9", r"betas must be a list of 2 numbers, not 0\.9"),
        ("[0.9, 0.99]", '[0.9, "b"]', r"betas must be a number from 0 to 0\.9999, not 'b'"),
        (
            "depths = [1]",
            'depths = "1"',
            r"own\.toml, \[network\]: depths must be a list of numbers, not '1'",
        ),
        (
            '"light_c"',
            '"light_d"',
            r"conv_block must be one of 'classic', .*'light_c', .*, not 'light_d'",
        ),
        ("iterations = 6\nwarmup = 0.1", "", r"own\.toml, \[schedule\]: missing iterations"),
        (
            "iterations = 6",
            "iterations = []",
            r"\[schedule\]: iterations must be a number or a list of numbers",
        ),
        (
            "iterations = 6",
            "iterations = [3, 2, 1]\nhalve_at = [2]",
            r"halve_at must be a number from 0 to 1, not 2",
        ),
        ("scale = 2\n", "scale = 2\nschedule = 3\n", None),
        # ranges
        (
            "iterations = 6",
            "iterations = -6",
            r"iterations must be a whole number from 1 .*, not -6",
        ),
        ("iterations = 6", "iterations = 0", r"iterations must be a whole number from 1"),
        ("batch = 2", "batch = 0", r"batch must be a whole number from 1"),
        ("patch = 8", "patch = -8", r"patch must be a whole number from 4 to 4096, not -8"),
        ("validation = 2", "validation = 0", r"validation must be a whole number from 1"),
        ("scale = 2", "scale = 9", r"scale must be a whole number from 1 to 8, not 9"),
        ("seed = 1", "seed = -1", r"seed must be a whole number from 0"),
        ("lr = 2e-3", "lr = 0", r"lr must be a number from"),
        ("lr = 2e-3", "lr = nan", r"lr must be a number from .*, not nan"),
        ("lr = 2e-3", "lr = inf", r"lr must be a number from .*, not inf"),
        ("[0.9, 0.99]", "[0.9, 1.0]", r"betas must be a number from 0 to 0\.9999, not 1\.0"),
        ("weight_decay = 0.01", "weight_decay = -0.1", r"weight_decay must be a number from 0"),
        ("clip = 1.0", "clip = -1.0", r"clip must be a number from 0 to 1e\+06, not -1\.0"),
        ("ema = 0.9", "ema = 1.1", r"ema must be a number from 0 to 1, not 1\.1"),
        ("warmup = 0.1", "warmup = 3", r"warmup must be a number from 0 to 1, not 3"),
        (
            "embed_dim = 16",
            "embed_dim = 0",
            r"embed_dim must be a whole number from 6 to 1024, not 0",
        ),
        (
            "warmup = 0.1",
            "floor = 0.1",
            r"own\.toml, \[schedule\]: floor must not be above the lr, 0\.002",
        ),
        ("depths = [1]", "depths = [1, 0]", r"depths must be a whole number from 1 .*, not 0"),
        ("depths = [1]", "depths = [1]\nin_chans = 2", r"in_chans must be 1 \(gray\) or 3"),
        (
            "depths = [1]",
            "depths = [1]\nin_chans = 4",
            r"in_chans must be a whole number from 1 to 3",
        ),
        # what does not belong together
        (
            "patch = 8",
            "patch = [8, 9]",
            r"\[data\]: patch must be one number, or one for each of 1 stages",
        ),
        ("patch = 8", "patch = 7\n[loss]\nadversarial = 1\n[data2]", r"unknown key 'data2'"),
        (
            '"pixelshuffledirect"',
            '""',
            r"upsampler must be empty where the scale is 1, and only there",
        ),
        ("scale = 2", "scale = 1", r"upsampler must be empty where the scale is 1"),
        (
            "batch = 2",
            'batch = 2\ndegradation = {kind = "noise"}',
            r"'noise' does not fit the scale 2",
        ),
        (
            "batch = 2",
            'batch = 2\ndegradation = {kind = "nose"}',
            r"kind must be one of noise, .*, not 'nose'",
        ),
        (
            "batch = 2",
            "batch = 2\ndegradation = {sigma = 2}",
            r"degradation: kind must be one of .*, not None",
        ),
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
        (
            '{kind = "noise", sgma = [0, 5]}',
            r"degradation: unknown key 'sgma'; did you mean 'sigma'\?",
        ),
        ('{kind = "noise", sigma = 5}', r"degradation: sigma must be a list of 2 numbers, not 5"),
        ('{kind = "noise", sigma = [0, 300]}', r"sigma must be a number from 0 to 255, not 300"),
        ('{kind = "noise", sigma = [9, 3]}', r"sigma must be two numbers from 0 to 255 in order"),
        (
            '{kind = "jpeg", quality = [1.5, 3]}',
            r"quality must be a whole number from 1 to 100, not 1\.5",
        ),
        ('{kind = "rain", angle = [-99, 3]}', r"angle must be a number from -90 to 90"),
    ],
)
def test_degradations_are_strict(tmp_path, degradation, words):
    path = tmp_path / "own.toml"
    text = RECIPE.replace("scale = 2", "scale = 1").replace('"pixelshuffledirect"', '""')
    path.write_text(
        text.replace(
            "batch = 2", f"batch = 2\ndegradation = {degradation}" if degradation else "batch = 2"
        )
    )
    with pytest.raises(CallError, match=words):
        read_recipe(str(path))


def test_degradations_become_typed():
    config = recipe(
        scale=1, network={"upsampler": ""}, degradation={"kind": "rain", "angle": [-9, 3]}
    )
    assert build_degradation(config) == Rain(angle=(-9.0, 3.0))
    assert build_degradation(recipe()) is None


def test_negative_ranges_are_accepted(tmp_path):
    changes = ["data.degradation.angle=[-25, 25]", "data.degradation.crossing=[0, 0]"]
    rain = build_degradation(read_recipe("tiny-derain", changes))
    assert (rain.angle, rain.crossing) == ((-25.0, 25.0), (0.0, 0.0))
    (tmp_path / "own.toml").write_text(
        'base = "tiny-derain"\n[data]\ndegradation = {kind = "rain", angle = [-25, -5]}'
    )
    assert build_degradation(read_recipe(str(tmp_path / "own.toml"))).angle == (-25.0, -5.0)


def test_a_network_needs_blocks():
    with pytest.raises(
        CallError,
        match=r"\[network\]: depths must count the blocks of one group at least, not \(\)",
    ):
        build_network(read_recipe("tiny-x2", ["network.depths=[]"]))


def test_adversarial_losses_need_colour_and_patches_of_a_multiple():
    with pytest.raises(CallError, match="discriminator needs truths of a multiple of 8 pixels"):
        recipe(adversarial=1.0, patch=7)
    with pytest.raises(CallError, match="need colour, but in_chans is 1"):
        recipe(perceptual=1.0, network={"in_chans": 1})


def test_unreadable_recipes(tmp_path):
    with pytest.raises(CallError, match=r"no recipe 'tiny-x9'; did you mean 'tiny-x"):
        read_recipe("tiny-x9")
    with pytest.raises(CallError, match=r"no recipe 'zzz'; give a bundled recipe or a \.toml file"):
        read_recipe("zzz")
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


def mixed(*parts):
    return {"kind": "mixed", "of": list(parts)}


NOISE = {"share": 2, "kind": "noise", "sigma": [5, 9]}


def test_one_of_several_degradations(tmp_path):
    parts = (
        NOISE,
        {"share": 1.5, "kind": "sensor", "then": {"kind": "jpeg", "quality": [40, 95]}},
        {"share": 0.5, "kind": "clean"},
    )
    config = recipe(scale=1, network={"upsampler": ""}, degradation=mixed(*parts))
    steps = Chain((Sensor(), Jpeg((40, 95))))
    expected = Mixed((Noise((5.0, 9.0)), steps, Clean()), (2.0, 1.5, 0.5))
    assert build_degradation(config) == expected
    assert config.task == "denoise"
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(config)))
    assert read_recipe(str(tmp_path / "recipe.json")) == config


@pytest.mark.parametrize(
    ("degradation", "words"),
    [
        (mixed(), "'mixed' needs a list 'of' degradations, and nothing else"),
        (mixed(NOISE) | {"sigma": [1, 2]}, "'mixed' needs a list 'of' degradations"),
        ({"kind": "mixed", "of": 3}, "'mixed' needs a list"),
        (mixed({"kind": "noise"}), "of, 1: share must be a number above 0, not None"),
        (mixed(NOISE, NOISE | {"share": -1}), "of, 2: share must be a number above 0, not -1"),
        (mixed(3), "of, 1: share must be a number above 0, not None"),
        (mixed(NOISE | {"kind": "nose"}), "of, 1: kind must be one of noise, .*, not 'nose'"),
        (mixed(NOISE | {"sigma": [0, 300]}), "of, 1: sigma must be a number from 0 to 255"),
        (mixed(NOISE | {"then": 3}), "of, 1, then: must be a table, not 3"),
        (mixed(NOISE, {"share": 1, "kind": "jpeg"}), "for one task, not dejpeg and denoise"),
        (mixed({"share": 1, "kind": "clean"}), "for one task, not none"),
        (mixed(mixed(NOISE) | {"share": 1}), "of, 1: 'mixed' cannot hold itself"),
        (mixed({"share": 1, "kind": "real"}), "of, 1: 'real' does not fit the scale 1"),
        ({"kind": "clean"}, "'clean' leaves nothing to learn"),
    ],
)
def test_mixed_degradations_are_strict(degradation, words):
    with pytest.raises(CallError, match=rf"RECIPE, \[data\], degradation.*{words}"):
        recipe(scale=1, network={"upsampler": ""}, degradation=degradation)


GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="the documentation is in the repository alone")
def test_the_recipes_of_the_guide_are_right(tmp_path):
    """One that builds on another, and degradations."""
    texts = re.findall(r"```toml\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    own, *degradations = texts
    (tmp_path / "own.toml").write_text(own)
    assert read_recipe(str(tmp_path / "own.toml")).data.batch == (16,)
    assert len(degradations) == 3
    for text in degradations:
        degradation = parse_toml(text)["data"]["degradation"]
        config = recipe(scale=1, network={"upsampler": ""}, degradation=degradation)
        assert build_degradation(config)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.toml", "seed = " + "[" * 50_000),
        ("r.toml", "seed = " + "{a = " * 500 + "1" + "}" * 500),
        ("r.toml", f"{'.'.join('a' * 3_000)} = 1"),
        ("r.toml", "seed = " + "9" * 5_000),
        ("r.json", "[" * 50_000),
        ("r.json", '{"seed": ' * 3_000),
    ],
)
def test_deep_or_long_recipes_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    fails(lambda: read_recipe(str(tmp_path / name)), CallError, name, "no valid")


@pytest.mark.parametrize(
    "change",
    [
        "seed=" + "[" * 50_000,
        "network.depths=" + "[" * 500 + "]" * 500,
        f"{'a.' * 3_000}b=1",
        "seed=" + "9" * 5_000,
    ],
    ids=["open", "closed", "key", "number"],
)
def test_deep_or_long_changes_are_refused(change):
    fails(lambda: read_recipe("tiny-x2", [change]), CallError)
