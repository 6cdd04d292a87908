"""Training: a strict configuration and one flat loop that resumes exactly where it stopped."""

import difflib
import io
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .archs.mambair import MambaIR
from .datasets import Pair, TrainingPairs, list_images, read_pairs
from .errors import CallError, CheckpointError, TrainingError
from .metrics import psnr_y
from .weights import ARCHITECTURES, read_state, save_network, write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
VALIDATION_CROP = 384  # pixels a side, so that a validation takes seconds
VALIDATION_SMALLEST = 8  # low-resolution pixels a side, so that something is left within the border
CHECKPOINT_SECONDS = 300
LIMITS: dict[str, tuple[float, float]] = {  # of numbers in recipes; others: integers from 1, the rest from 0
    "scale": (2, 8),
    "seed": (0, 2**32),
    "lr": (1e-9, 1),
    "betas": (0, 0.9999),
    "clip": (1e-9, math.inf),
    "ema": (0, 1),
    "warmup": (0, 1),
    "embed_dim": (6, 4096),
    "expand": (0.25, 16),
    "in_chans": (3, 3),
    "drop_path_rate": (0, 0.9),
}
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
    """Build a dataclass from a table. Raises CallError: a key is unknown or missing, a value does not fit."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CallError(f"{where}: unknown key {key!r}; {hint}")
    required = [k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in required if key not in values]:
        raise CallError(f"{where}: missing {', '.join(missing)}")
    kinds = get_type_hints(kind)
    return kind(**{key: _typed(value, kinds[key], key, where) for key, value in values.items()})


def _typed(value: Any, kind: Any, key: str, where: str) -> Any:
    """The value as its annotation and LIMITS ask. Raises CallError, which says what is expected."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (int, float):
        low, high = LIMITS.get(key, (int(kind is int), 1e9))
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool) and low <= value <= high
        expected = f"{'a whole' if kind is int else 'a'} number from {low:g} to {high:g}"
        value = kind(value) if fits else value
    elif origin is tuple:
        count = "" if parts[1] is ... else f"{len(parts)} "
        fits = isinstance(value, (list, tuple)) and (len(value) == len(parts) if count else len(value) > 0)
        expected = f"a list of {count}numbers"
        value = tuple(_typed(v, parts[0], key, where) for v in value) if fits else value
    elif origin is Literal:
        fits, expected = value in parts, "one of " + ", ".join(map(repr, parts))
    elif origin is dict or is_dataclass(kind):
        fits, expected = isinstance(value, Mapping), "a table"
        value = _strict(kind, value, f"{where}, [{key}]") if fits and origin is not dict else value
    else:
        fits, expected = isinstance(value, kind), f"of the type {getattr(kind, '__name__', kind)}"
    if not fits:
        raise CallError(f"{where}: {key} must be {expected}, not {value!r}")
    return value


def read_recipe(name_or_file: str) -> TrainConfig:
    """A bundled recipe by name, a TOML file, or the recipe.json of a run.

    Raises:
        CallError: there is no such recipe or it has errors; names the file, the key and what is expected.
    """
    bundled = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = bundled.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        raise CallError(f"no recipe {name_or_file!r}; there are {', '.join(bundled)}, or give a .toml file")
    try:
        text = path.read_text(encoding="utf-8")
        table: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of both parsers, and of the decoder
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise CallError(f"{path} is no valid {kind}: {error}") from None
    if not isinstance(table, Mapping):
        raise CallError(f"{path} holds no recipe; it must be a table")
    return _checked(table, path.name)


def _checked(table: Mapping[str, Any], where: str) -> TrainConfig:
    """The recipe in a table. Raises CallError where it has errors, also in [network]."""
    config = _strict(TrainConfig, table, where)
    _network(config, where)
    return config


def _network(config: TrainConfig, where: str) -> tuple[type[nn.Module], Any]:
    """The class of the recipe's network and its configuration. Raises CallError where there is none."""
    values = dict(config.network)
    arch = values.pop("arch", None)
    where = f"{where}, [network]"
    if arch not in list(ARCHITECTURES):
        raise CallError(f"{where}: arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
    if "upscale" in values:
        raise CallError(f"{where}: unknown key 'upscale'; the recipe's 'scale' sets it")
    kind, network, _ = ARCHITECTURES[arch]
    built = _strict(kind, values | {"upscale": config.scale}, where)
    if getattr(built, "upsampler", None) == "":
        raise CallError(f"{where}: upsampler must not be empty: the network has to enlarge")
    return network, built


def build_network(config: TrainConfig) -> nn.Module:
    """The recipe's network with fresh weights. Raises CallError where the recipe describes none."""
    network, values = _network(config, "recipe")
    try:
        return network(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CallError(f"recipe, [network]: {error}") from None


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Linear warm-up, then a cosine that would reach zero in the iteration after the last one."""
    total = config.schedule.iterations
    warmup = max(1, round(config.schedule.warmup * total))
    rise = min(1.0, (iteration + 1) / warmup)
    fall = 0.5 * (1 + math.cos(math.pi * max(0, iteration - warmup) / max(1, total - warmup)))
    return config.optimiser.lr * rise * fall


def _optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("A_logs")]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith("A_logs")]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


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


def _split(data: Path, val: Path | None, held_out: int) -> tuple[list[Path], list[Path]]:
    """Training and validation files: those of `data` and `val`, or some held out of `data`; none is both."""
    files = list_images(data)
    if val:
        chosen = list_images(val)
    elif len(files) > held_out:
        chosen = [files[i] for i in np.random.default_rng(0).choice(len(files), held_out, replace=False)]
    else:
        raise CallError(f"{data} holds too few images to put {held_out} aside for validation; give --val")
    held = {path.resolve() for path in chosen}
    files = [path for path in files if path.resolve() not in held]
    if not files:
        raise CallError(f"all images of {data} are in {val} too; none is left to train on")
    return files, chosen


def _load_checkpoint(path: Path, recipe: str) -> dict[str, Any]:
    """The state of a run. Raises CallError (of another recipe) and CheckpointError (damaged)."""
    try:
        saved = torch.load(path, weights_only=True)
        same = saved["config"] == recipe
    except Exception as error:  # torch.load raises nearly anything on damaged files
        raise CheckpointError(f"{path} is no checkpoint of a training run: {type(error).__name__}") from error
    if not same:
        raise CallError(f"{path} was made with another recipe; resume with {path.parent}/recipe.json")
    return saved


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    val: Path | None = None,
) -> Path:
    """Train a network and return the path of its weights (`out`/model.safetensors, averaged, float32).

    Writes to `out`: recipe.json, log.jsonl (loss, rate, speed, validation PSNR-Y), checkpoint.pt (all that a
    resumed run needs to go on exactly; every few minutes and when interrupted) and model.safetensors.

    Args:
        config: the recipe.
        data: folder of high-resolution images.
        out: folder of the run.
        resume: go on from out/checkpoint.pt.
        init: weights to start from; not read when resuming.
        val: folder of validation images; those that are in `data` too are not trained on.

    Raises:
        CallError: the recipe, a folder or a file does not fit.
        CheckpointError: the checkpoint or the file of `init` is damaged.
        TrainingError: the loss diverged, or `out` cannot be written. The last checkpoint is as it was.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state is saved.
    """
    config = _checked(asdict(config), "recipe")
    recipe = json.dumps(asdict(config))
    checkpoint, log, result = out / "checkpoint.pt", out / "log.jsonl", out / "model.safetensors"
    if (checkpoint.exists() or result.exists()) and not resume:
        raise CallError(f"{out} holds a run already; give --resume to go on with it, or another --out")
    if resume and not checkpoint.exists():
        raise CallError(f"{checkpoint} is missing: there is nothing to resume")
    torch.manual_seed(config.seed)
    model, averaged = build_network(config), build_network(config)
    files, held_out = _split(data, val, config.data.validation)
    validation, skipped = read_pairs(held_out, config.scale, VALIDATION_SMALLEST, VALIDATION_CROP)
    pairs = TrainingPairs(files, config.scale, config.data.patch, config.seed)
    for reason in pairs.skipped + skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    optimiser = _optimiser(model, config.optimiser)
    first, best = 0, 0.0
    kept: list[str] = []  # of the log: what was written after the checkpoint comes again
    if resume:
        saved = _load_checkpoint(checkpoint, recipe)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["rng"])
        first, ema, best = saved["iteration"], saved["ema"], saved["best"]
        if log.exists():
            lines = log.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["iteration"] <= first]
    else:
        if init:
            fresh = _load_init(model, init)
            print(f"from {init}; new: {', '.join(fresh) or 'nothing'}", file=sys.stderr)
        elif isinstance(model, MambaIR):
            model.start_as_bilinear()
        ema = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def save_checkpoint(iteration: int) -> None:
        state = {
            "config": recipe, "iteration": iteration, "best": best, "ema": ema,
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "rng": torch.get_rng_state(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(checkpoint, buffer.getvalue())

    stopping: list[int] = []  # a signal is noted and obeyed between two iterations, so the state is whole
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [(s, signal.signal(s, lambda number, _: stopping.append(number))) for s in signals]
    total, every = config.schedule.iterations, max(1, config.schedule.iterations // 50)
    names, weights = zip(*model.named_parameters(), strict=True)
    losses: list[float] = []
    iteration, saved_at, logged_at = first, time.monotonic(), time.monotonic()
    bar = tqdm(total=total, initial=first, unit="it", dynamic_ncols=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.json").write_text(json.dumps(asdict(config), indent=1))
        write_atomically(log, "".join(kept).encode())
        while iteration < total:
            model.train()
            low, high = pairs.batch(iteration, config.data.batch)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, iteration)
            loss = (model(low) - high).abs().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, config.optimiser.clip, foreach=True)
            losses.append(loss.item())
            if not math.isfinite(losses[-1] + norm.item()):
                raise TrainingError(f"the loss diverged at iteration {iteration}; lower optimiser.lr")
            optimiser.step()
            iteration += 1
            decay = min(config.optimiser.ema, iteration / (iteration + 10))
            torch._foreach_lerp_([ema[n] for n in names], [w.detach() for w in weights], 1 - decay)
            bar.update()
            if iteration % every == 0 or iteration == total:
                mean, seconds = sum(losses) / len(losses), time.monotonic() - logged_at
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
        save_checkpoint(iteration)
        averaged.load_state_dict(ema)
        score = validate(averaged, validation, config.scale)
        notes = {"iterations": total, "scale": config.scale, "validation_psnr_y": f"{score:.3f}"}
        save_network(result, model, ema, notes)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        bar.close()
        for number, handler in previous:
            signal.signal(number, handler)
    return result
