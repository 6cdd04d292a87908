import json
import os
import re
import shlex
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from calls import check_bad, contents, each_call, fails, upscale
from training import before_iteration

from mambair_cli.commands.train import how_to_resume
from mambair_cli.training import loop
from mambair_cli.training.inputs import Folders, Settings
from mambair_cli.training.recipe import read_recipe

RECIPE = """
scale = 2
seed = 1
network = {arch = "mambair", embed_dim = 16, depths = [1], d_state = 2, expand = 1.0,
           conv_block = "light_c", upsampler = "pixelshuffledirect"}
data = {patch = 10, batch = 3, validation = 1}
optimiser = {lr = 2e-3, betas = [0.9, 0.99], weight_decay = 0.01, clip = 1.0, ema = 0.9}
schedule = {iterations = 6, warmup = 0.1}
""".replace(",\n           ", ", ")


def test_train(call, pictures):
    Path("recipe.toml").write_text(RECIPE)
    line = [
        "train",
        "--recipe",
        "recipe.toml",
        "--data",
        pictures,
        "--out",
        "run",
        "--iterations",
        2,
    ]
    line += ["--set", "data.batch=1", "--set", "data.patch=8"]
    code, out, err = call(*line)
    assert (code, out) == (0, "run/model.safetensors\n")
    assert "2/2" in err
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert (recipe["data"]["batch"], recipe["data"]["patch"]) == ([1], [8])
    assert recipe["schedule"]["iterations"] == [2]
    before = contents(Path("run"))
    fails(call(*line), 2, "run holds a run already; give --resume, or another --out")
    assert contents(Path("run")) == before
    assert call("train", "--resume", "--data", pictures, "--out", "run")[:2] == (
        0,
        "run/model.safetensors\n",
    )
    assert upscale(call, "photo.png", "-m", "run/model.safetensors")["size_out"] == [48, 36]
    assert upscale(call, "photo.png", "-m", "run/best.safetensors")["size_out"] == [48, 36]
    assert upscale(call, "photo.png", "-m", "run")["size_out"] == [48, 36]
    assert call("models", "info", "run")[1] == call("models", "info", "run/model.safetensors")[1]
    assert call("models", "convert", "run", "copy.safetensors")[0] == 0
    assert Path("copy.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()
    assert (
        call(
            "train",
            "--recipe",
            "recipe.toml",
            "--data",
            pictures,
            "--out",
            "next",
            "--init",
            "run",
            "--teacher",
            "run",
            "--iterations",
            1,
        )[0]
        == 0
    )
    fails(call("derain", "photo.png", "-m", "run"), 2, "run is for upscale")


def test_what_was_trained_is_for_its_own_task(call, pictures, monkeypatch):
    monkeypatch.setenv("MAMBAIR_HOME", "home")
    Path("recipe.toml").write_text(
        RECIPE.replace("scale = 2", "scale = 1")
        .replace("pixelshuffledirect", "")
        .replace(
            "validation = 1", 'validation = 1, degradation = {kind = "rain", angle = [-25, 25]}'
        )
    )
    line = [
        "train",
        "--recipe",
        "recipe.toml",
        "--data",
        pictures,
        "--out",
        "run",
        "--iterations",
        1,
    ]
    assert call(*line)[0] == 0
    assert call("models", "import", "run/model.safetensors", "--name", "my-rain")[0] == 0
    for file in ("run/model.safetensors", "run/best.safetensors", "my-rain"):
        assert call("derain", "photo.png", "-m", file)[0] == 0
        for other in ("upscale", "denoise", "dejpeg"):
            fails(
                call(other, "photo.png", "-m", file),
                2,
                f"{file} is for derain; use mambair derain INPUT -m {file}",
            )
    assert "my-rain" in call("models", "list", "--task", "derain")[1]
    assert "my-rain" not in call("models", "list", "--task", "denoise")[1]


def test_train_passes_its_options_on(call, folder, monkeypatch):
    Path("recipe.toml").write_text(RECIPE)
    asked = []

    def train(config, folders, out, **options):
        asked.append((config, folders, out, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", train)
    line = ["train", "--recipe", "recipe.toml", "--data", "d", "--out", "o"]
    fails(call(*line), 130, "mambair: interrupted\n")
    line += [
        "--resume",
        "--init",
        "i.pth",
        "--val",
        "v",
        "--low",
        "l",
        "--val-low",
        "w",
        "--set",
        "data.batch=7",
    ]
    line += [
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "--device-batch",
        3,
        "--workers",
        2,
        "--cache",
        0.5,
    ]
    fails(call(*line, "--recompute", "--tensorboard", "--vgg", "vgg.pth", "--compile"), 130)
    config = read_recipe("recipe.toml")
    seven = replace(config, data=replace(config.data, batch=(7,)))
    settings = Settings("cpu", "bf16", 3, 2, 2**29, True, True, Path("vgg.pth"), True)
    assert asked == [
        (
            config,
            Folders(Path("d")),
            Path("o"),
            {"resume": False, "init": "", "settings": Settings()},
        ),
        (
            seven,
            Folders(Path("d"), Path("v"), Path("l"), Path("w")),
            Path("o"),
            {"resume": True, "init": "i.pth", "settings": settings},
        ),
    ]


@pytest.mark.parametrize(
    ("folders", "settings"),
    [
        (Folders(Path("d")), Settings()),
        (
            Folders(Path("my d"), Path("v"), Path("l"), Path("w")),
            Settings("cpu", "bf16", 3, 2, 2**29, vgg=Path("g")),
        ),
        (Folders(Path("d")), Settings(cache=0, recompute=True, tensorboard=True, compile=True)),
    ],
    ids=["plain", "values", "flags"],
)
def test_the_printed_command_resumes_with_the_same_options(
    call, folder, monkeypatch, folders, settings
):
    Path("recipe.toml").write_text(RECIPE)
    Path("o").mkdir()
    Path("o/recipe.json").write_text(json.dumps(asdict(read_recipe("recipe.toml"))))
    asked = []
    monkeypatch.setattr(
        loop, "train", lambda *run, **options: asked.append((run, options)) or Path()
    )
    assert call(*shlex.split(how_to_resume(folders, Path("o"), settings))[1:])[0] == 0
    run = (read_recipe("recipe.toml"), folders, Path("o"))
    assert asked == [(run, {"resume": True, "init": "", "settings": settings})]


def test_the_command_that_goes_on_repeats_all_options(monkeypatch):
    folders = Folders(Path("d"), low=Path("the low"))
    assert how_to_resume(folders, Path("o"), Settings()) == (
        "mambair train --resume --out o --data d --low 'the low'"
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    settings = Settings("cpu", "bf16", 1, 3, 2**29, True, False, Path("v.pth"), True)
    assert how_to_resume(folders, Path("o"), settings) == (
        "torchrun --nproc-per-node 2 -m mambair_cli train --resume --out o --data d --low 'the low'"
        " --device cpu --precision bf16 --device-batch 1 --workers 3 --cache 0.5 --recompute"
        " --vgg v.pth --compile"
    )


def test_a_stopped_run_says_how_to_go_on(call, pictures, monkeypatch):
    Path("recipe.toml").write_text(RECIPE)
    before_iteration(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    line = ["train", "--recipe", "recipe.toml", "--data", pictures, "--out", "o", "--device", "cpu"]
    code, out, err = call(*line)
    assert (code, out) == (130, "")
    command = f"mambair train --resume --out o --data {pictures} --device cpu"
    assert "saved after iteration 2; o/model.safetensors has the weights so far\n" in err
    assert f"mambair: go on with: {command}\n" in err


def test_the_list_of_recipes(call):
    code, out, err = call("train", "--list")
    assert (code, err) == (0, "")
    assert re.search(r"^ *light-x2 +MambaIR, light super-resolution x2", out, re.MULTILINE)
    assert len(out.splitlines()) > 35


def test_a_dry_run_writes_nothing(call, pictures):
    Path("recipe.toml").write_text(RECIPE)
    before = contents(Path())
    code, out, _ = call(
        "train", "--recipe", "recipe.toml", "--data", pictures, "--dry-run", "--device", "cpu"
    )
    assert code == 0
    assert re.search(r"time +\d+\.\d\d s an iteration", out)
    assert re.search(r"in all +0\.0 hours", out)
    assert contents(Path()) == before


def test_options_of_basicsr(call, pictures):
    pytest.importorskip("yaml")
    Path("options.yml").write_text(
        "network_g: {type: MambaIR, upscale: 2, upsampler: pixelshuffledirect, embed_dim: 12,\n"
        "  depths: [1]}\n"
        "datasets: {train: {gt_size: 16, batch_size_per_gpu: 2, colour: 3},\n"
        "  val: {dataroot_lq: x}}\n"
        "train: {total_iter: 1, scheduler: {type: MultiStepLR, milestones: []}}\n"
    )
    line = [
        "train",
        "--import-yaml",
        "options.yml",
        "--data",
        pictures,
        "--out",
        "run",
        "--set",
        "data.validation=1",
    ]
    code, out, err = call(*line)
    assert (code, out) == (0, "run/model.safetensors\n")
    assert "mambair: datasets.train.colour: 3 has no counterpart\n" in err
    assert "mambair: datasets.val.dataroot_lq: give --val-low x\n" in err
    fails(call(*line, "--recipe", "tiny-x2"), 2, "--recipe, or --import-yaml")


@each_call(
    ("train  --data  empty  --out  run", 2, "--recipe", "mambair train --list"),
    ("train  --recipe  tiny-x2  --out  run", 2, "give --data DIR, a folder of photographs\n"),
    ("train  --recipe  tiny-x2  --data  empty", 2, "mambair: give --out DIR"),
    ("train  --recipe  tiny-x9  --data  empty  --out  run", 2, "'tiny-x9'", "did you mean 'tiny-x"),
    (
        "train  --recipe  tiny-x2  --data  .  --out  run  --set  data.pach=3",
        2,
        "'pach'",
        "did you mean 'patch'",
    ),
    (
        "train  --recipe  tiny-x2  --data  .  --out  run  --precision  fp8",
        2,
        "--precision",
        "fp8",
    ),
    ("train  --recipe  classic-x3  --data  .  --out  run", 2, "'classic-x2'", "--init none"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --low  empty", 2, "empty holds no image"),
    ("train  --import-yaml  recipe.toml  --data  .  --out  run", 2, "recipe.toml"),
    ("train  --recipe  recipe.toml  --data  empty  --out  run", 2, "recipe.toml", "missing"),
    ("train  --recipe  tiny-x2  --data  missing  --out  run", 2, "missing is not a folder"),
    ("train  --recipe  tiny-x2  --data  empty  --out  run", 2, "empty holds no image"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --val  empty", 2, "empty holds no image"),
    (
        "train  --recipe  tiny-x2  --data  .  --out  run  --resume",
        2,
        "run holds no checkpoint",
        "resume",
    ),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --device-batch  0", 2, "--device-batch"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)
