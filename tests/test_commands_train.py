import json
from dataclasses import replace
from pathlib import Path

from calls import check_bad, contents, each_call, fails, upscale

from mambair_cli import train as training

RECIPE = """
scale = 2
seed = 1
network = {arch = "mambair", embed_dim = 16, depths = [1], d_state = 2, expand = 1.0, conv_block = "light_c",
           upsampler = "pixelshuffledirect"}
data = {patch = 10, batch = 3, validation = 1}
optimiser = {lr = 2e-3, betas = [0.9, 0.99], weight_decay = 0.01, clip = 1.0, ema = 0.9}
schedule = {iterations = 6, warmup = 0.1}
""".replace(",\n           ", ", ")


def test_train(call, pictures):
    Path("recipe.toml").write_text(RECIPE)
    line = ["train", "--recipe", "recipe.toml", "--data", pictures, "--out", "run", "--iterations", 2]
    line += ["--batch", 1, "--patch", 8]
    code, out, err = call(*line)
    assert (code, out) == (0, "run/model.safetensors\n")
    assert "2/2" in err
    names = sorted(path.name for path in Path("run").iterdir())
    assert names == ["checkpoint.pt", "log.jsonl", "model.safetensors", "recipe.json"]
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert (recipe["data"]["batch"], recipe["data"]["patch"]) == (1, 8)
    assert recipe["schedule"]["iterations"] == 2
    before = contents(Path("run"))
    fails(call(*line), 2, "run holds a run already", "--resume")
    assert contents(Path("run")) == before
    assert call(*line, "--resume")[:2] == (0, "run/model.safetensors\n")
    assert upscale(call, "photo.png", "-m", "run/model.safetensors")["size_out"] == [48, 36]


def test_train_passes_its_options_on(call, folder, monkeypatch):
    Path("recipe.toml").write_text(RECIPE)
    asked = []

    def train(config, data, out, **options):
        asked.append((config, data, out, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    line = ["train", "--recipe", "recipe.toml", "--data", "d", "--out", "o"]
    fails(call(*line), 130, "mambair: interrupted\n")
    fails(call(*line, "--resume", "--init", "i.pth", "--val", "v", "--batch", 7), 130)
    config = training.read_recipe("recipe.toml")
    seven = replace(config, data=replace(config.data, batch=7))
    plain_options = {"resume": False, "init": None, "val": None}
    options = {"resume": True, "init": Path("i.pth"), "val": Path("v")}
    assert asked == [
        (config, Path("d"), Path("o"), plain_options),
        (seven, Path("d"), Path("o"), options),
    ]


@each_call(
    ("train  --data  empty  --out  run", 2, "--recipe", "mambair train --help"),
    ("train  --recipe  tiny-x9  --data  empty  --out  run", 2, "'tiny-x9'", "tiny-x2", ".toml"),
    ("train  --recipe  recipe.toml  --data  empty  --out  run", 2, "recipe.toml", "missing"),
    ("train  --recipe  tiny-x2  --data  missing  --out  run", 2, "missing is not a folder"),
    ("train  --recipe  tiny-x2  --data  empty  --out  run", 2, "empty holds no image"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --val  empty", 2, "empty holds no image"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --resume", 2, "run/checkpoint.pt", "resume"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --patch  0", 2, "--patch"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)
