"""Training: a strict configuration and one flat loop that resumes exactly where it stopped."""

import difflib
import io
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .archs.mambair import MambaIR
from .datasets import Pair, TrainingPairs, list_images, make_pair, read_rgb
from .errors import CallError, TrainingError
from .metrics import psnr_y
from .weights import ARCHITECTURES, read_state, save_network, write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
VALIDATION_CROP = 384  # pixels a side, so that a validation takes seconds
CHECKPOINT_SECONDS = 300
T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What a batch is. `patch` is in pixels of the low-resolution image."""

    patch: int
    batch: int
    validation: int


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW on L1; weight decay on matrices only; `ema` is the decay of the averaged weights."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    ema: float


@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` is the share of the iterations in which the rate rises; then it falls to zero as a cosine."""

    iterations: int
    warmup: float


@dataclass(frozen=True)
class TrainConfig:
    """A recipe. `network` holds `arch` and the fields of that architecture's configuration but the scale."""

    scale: int
    seed: int
    network: dict[str, Any]
    data: DataConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig


def _strict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table; unknown and missing keys are errors."""
    names = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise CallError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if missing := names.keys() - values.keys():
        raise CallError(f"{where}: missing {', '.join(sorted(missing))}")
    built = {}
    for key, value in values.items():
        part = names[key].type
        if isinstance(part, type) and is_dataclass(part):
            if not isinstance(value, Mapping):
                raise CallError(f"{where}: {key} must be a table")
            value = _strict(part, value, f"{where}, [{key}]")
        built[key] = tuple(value) if isinstance(value, list) else value
    return kind(**built)


def read_recipe(name_or_file: str) -> TrainConfig:
    """A bundled recipe by name, or a TOML file. Raises CallError where there is none or it has errors."""
    bundled = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = bundled.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        raise CallError(f"no recipe {name_or_file!r}; there are {', '.join(bundled)}, or give a .toml file")
    try:
        return _strict(TrainConfig, tomllib.loads(path.read_text()), path.name)
    except tomllib.TOMLDecodeError as error:
        raise CallError(f"{path} is no valid TOML: {error}") from None


def build_network(config: TrainConfig) -> MambaIR:
    """The recipe's network with fresh weights. Raises CallError where the recipe describes none."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.network.items()}
    arch = values.pop("arch", None)
    if arch not in ARCHITECTURES:
        raise CallError(f"[network] arch {arch!r} is unknown; there are {', '.join(ARCHITECTURES)}")
    config_class, network, _ = ARCHITECTURES[arch]
    try:
        return network(config_class(**values, upscale=config.scale))
    except (TypeError, ValueError) as error:
        raise CallError(f"[network] {error}") from None


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Linear warm-up, then a cosine to zero at the last iteration."""
    total = config.schedule.iterations
    warmup = max(1, round(config.schedule.warmup * total))
    rise = min(1.0, (iteration + 1) / warmup)
    fall = 0.5 * (1 + math.cos(math.pi * max(0, iteration - warmup) / max(1, total - warmup)))
    return config.optimiser.lr * rise * fall


def _optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("A_logs")]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith("A_logs")]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _load_init(model: nn.Module, path: Path) -> list[str]:
    """Take over every tensor of `path` whose name and shape fit; the names of those that stay new."""
    given, own = read_state(path)[0], model.state_dict()
    fitting = {k: v.float() for k, v in given.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise CallError(f"no tensor of {path} fits this network")
    model.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def validate(model: nn.Module, pairs: list[Pair], scale: int) -> float:
    """Mean PSNR-Y in dB over the pairs, a border of `scale` pixels left out."""
    model.eval()
    scores = []
    with torch.inference_mode():
        for pair in pairs:
            low = torch.from_numpy(pair.low).permute(2, 0, 1)[None].float() / 255
            out = model(low)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
            scores.append(psnr_y(out, pair.high, border=scale))
    return float(np.mean(scores))


def _split(data: Path, val: Path | None, held_out: int, scale: int) -> tuple[list[Path], list[Pair]]:
    """Training files, and validation pairs: centre crops of `val`, or of photographs held out of `data`."""
    files = list_images(data)
    if val:
        chosen = list_images(val)
    elif len(files) > held_out:
        chosen = [files[i] for i in np.random.default_rng(0).choice(len(files), held_out, replace=False)]
        files = [f for f in files if f not in chosen]
    else:
        raise CallError(f"{data} holds too few images to put {held_out} aside for validation; give --val")
    pairs = []
    for path in chosen:
        image = read_rgb(path)
        top, left = ((side - min(side, VALIDATION_CROP)) // 2 for side in image.shape[:2])
        pairs.append(make_pair(path.name, image[top : top + VALIDATION_CROP, left : left + VALIDATION_CROP], scale))
    return files, pairs


def train(
    config: TrainConfig, data: Path, out: Path, *, resume: bool = False, init: Path | None = None, val: Path | None = None
) -> Path:
    """Train a network and return the path of its weights (`out`/model.safetensors, averaged, float32).

    Writes to `out`: recipe.json, log.jsonl (loss, rate, speed, validation PSNR-Y), checkpoint.pt (all that a
    resumed run needs to go on exactly; every few minutes and when interrupted) and model.safetensors.

    Args:
        config: the recipe. data: folder of high-resolution images. out: folder of the run.
        resume: go on from out/checkpoint.pt. init: weights to start from. val: folder of validation images.

    Raises:
        CallError, TrainingError (divergence), KeyboardInterrupt (SIGINT and SIGTERM; the state is saved).
    """
    checkpoint, log = out / "checkpoint.pt", out / "log.jsonl"
    if checkpoint.exists() and not resume:
        raise CallError(f"{out} holds a run already; give --resume to go on with it, or another --out")
    if resume and not checkpoint.exists():
        raise CallError(f"{checkpoint} is missing: there is nothing to resume")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = build_network(config)
    files, validation = _split(data, val, config.data.validation, config.scale)
    pairs = TrainingPairs(files, config.scale, config.data.patch, config.seed)
    optimiser = _optimiser(model, config.optimiser)
    first, best = 0, 0.0
    if resume:
        saved = torch.load(checkpoint, weights_only=True)
        if saved["config"] != json.dumps(asdict(config)):
            raise CallError(f"{checkpoint} was made with another recipe; resume with the one in {out}/recipe.json")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["rng"])
        first, ema, best = saved["iteration"], saved["ema"], saved["best"]
    else:
        fresh = _load_init(model, init) if init else []
        if init:
            print(f"from {init}; new: {', '.join(fresh) or 'nothing'}", file=sys.stderr)
        else:
            model.start_as_bilinear()
        ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        (out / "recipe.json").write_text(json.dumps(asdict(config), indent=1))
    for reason in pairs.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    averaged = build_network(config)

    def save_checkpoint(iteration: int) -> None:
        state = {
            "config": json.dumps(asdict(config)), "iteration": iteration, "best": best, "ema": ema,
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "rng": torch.get_rng_state(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(checkpoint, buffer.getvalue())

    stopping: list[int] = []  # a signal is noted and obeyed between two iterations, so the state is whole
    previous = [(s, signal.signal(s, lambda number, _: stopping.append(number))) for s in (signal.SIGINT, signal.SIGTERM)]
    total, every = config.schedule.iterations, max(1, config.schedule.iterations // 50)
    names, weights = zip(*model.named_parameters(), strict=True)
    losses: list[Tensor] = []
    iteration, saved_at, logged_at = first, time.monotonic(), time.monotonic()
    bar = tqdm(total=total, initial=first, unit="it", dynamic_ncols=True)
    try:
        while iteration < total:
            model.train()
            low, high = pairs.batch(iteration, config.data.batch)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, iteration)
            loss = (model(low) - high).abs().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.optimiser.clip, foreach=True)
            optimiser.step()
            iteration += 1
            decay = min(config.optimiser.ema, iteration / (iteration + 10))
            torch._foreach_lerp_([ema[n] for n in names], [w.detach() for w in weights], 1 - decay)
            losses.append(loss.detach())
            bar.update()
            if iteration % every == 0 or iteration == total:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise TrainingError(f"the loss became {mean} before iteration {iteration}; lower optimiser.lr")
                seconds = time.monotonic() - logged_at
                averaged.load_state_dict(ema)
                score = validate(averaged, validation, config.scale)
                best = max(best, score)
                entry = {"iteration": iteration, "loss": mean, "lr": learning_rate(config, iteration - 1),
                         "psnr_y": score, "it_per_s": len(losses) / seconds}  # fmt: skip
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                bar.set_postfix(loss=f"{mean:.5f}", psnr=f"{score:.3f}")
                losses, logged_at = [], time.monotonic()
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS or stopping:
                save_checkpoint(iteration)
                saved_at = time.monotonic()
            if stopping:
                raise KeyboardInterrupt
    finally:
        bar.close()
        for number, handler in previous:
            signal.signal(number, handler)
    save_checkpoint(iteration)
    result = out / "model.safetensors"
    save_network(result, model, ema, {"iterations": total, "scale": config.scale, "validation_psnr_y": f"{score:.3f}"})
    return result
