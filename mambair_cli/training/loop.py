"""One flat training loop that resumes exactly where it stopped."""

import io
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..archs.mambair import MambaIR
from ..errors import CallError, CheckpointError, TrainingError
from ..metrics import psnr, psnr_y
from ..weights import find_checkpoint, read_state, save_network, write_atomically
from .data import Pair, TrainingPairs, split, to_tensor, validation_pairs
from .recipe import OptimiserConfig, TrainConfig, build_degradation, build_network, checked

CHECKPOINT_SECONDS = 300
METRICS = {"rain": "psnr_y"}  # of networks that do not enlarge; others: psnr


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Linear warm-up, then a cosine that would reach zero in the iteration after the last one."""
    total = config.schedule.iterations
    warmup = max(1, round(config.schedule.warmup * total))
    rise = min(1.0, (iteration + 1) / warmup)
    fall = 0.5 * (1 + math.cos(math.pi * max(0, iteration - warmup) / max(1, total - warmup)))
    return config.optimiser.lr * rise * fall


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for it: matrices, but no bias (that of the scan's steps has two axes) and no A."""
    return parameter.ndim > 1 and not name.endswith(("bias", "A_logs", "Ac_logs"))


def _optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if _decays(n, p)]},
        {"params": [p for n, p in named if not _decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def _load_init(model: nn.Module, name_or_file: str | Path) -> str:
    """Take over every tensor of a checkpoint whose name and shape fit; says which did not."""
    given, own = read_state(find_checkpoint(name_or_file))[0], model.state_dict()
    fitting = {k: v.float() for k, v in given.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise CallError(f"no tensor of {name_or_file} fits this network")
    model.load_state_dict(fitting, strict=False)
    new, unused = (", ".join(sorted(keys - fitting.keys())) or "nothing" for keys in (own.keys(), given.keys()))
    return f"from {name_or_file}: {len(fitting)} of {len(own)} tensors; new: {new}; not taken: {unused}"


def validate(model: nn.Module, pairs: list[Pair], scale: int, metric: str) -> float:
    """Mean PSNR in dB over the pairs, a border of `scale` pixels left out where the network enlarges.

    metric: `psnr_y` or `psnr`, the names of `metrics`.
    """
    model.eval()
    measure: Callable[..., float] = psnr_y if metric == "psnr_y" else psnr
    scores = []
    with torch.inference_mode():
        for pair in pairs:
            out = model(to_tensor(pair.low[None]))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
            scores.append(measure(out, pair.high, border=scale if scale > 1 else 0))
    return float(np.mean(scores))


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
    init: str | Path | None = None,
    val: Path | None = None,
) -> Path:
    """Train a network and return the path of its weights (`out`/model.safetensors, averaged, float32).

    Writes to `out`: recipe.json, log.jsonl (loss, rate, speed, validation PSNR), checkpoint.pt (all that a
    resumed run needs to go on exactly; every few minutes and when interrupted) and model.safetensors.

    Args:
        config: the recipe.
        data: folder of high-resolution images.
        out: folder of the run.
        resume: go on from out/checkpoint.pt.
        init: a model's name or a file of weights to start from; not read when resuming.
        val: folder of validation images; those that are in `data` too are not trained on.

    Raises:
        CallError: the recipe, a folder or a file does not fit.
        CheckpointError: the checkpoint or the file of `init` is damaged.
        TrainingError: the loss diverged, or `out` cannot be written. The last checkpoint is as it was.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state is saved.
    """
    config = checked(asdict(config), "recipe")
    recipe = json.dumps(asdict(config))
    checkpoint, log, result = out / "checkpoint.pt", out / "log.jsonl", out / "model.safetensors"
    if (checkpoint.exists() or result.exists()) and not resume:
        raise CallError(f"{out} holds a run already; give --resume to go on with it, or another --out")
    if resume and not checkpoint.exists():
        raise CallError(f"{checkpoint} is missing: there is nothing to resume")
    torch.manual_seed(config.seed)
    model, averaged = build_network(config), build_network(config)
    files, held_out = split(data, val, config.data.validation)
    degradation, channels = build_degradation(config), config.network.get("in_chans", 3)
    metric = METRICS.get(config.data.degradation.get("kind", ""), "psnr") if config.scale == 1 else "psnr_y"
    validation, skipped = validation_pairs(held_out, config.scale, degradation, channels)
    pairs = TrainingPairs(files, config.scale, degradation, config.data.patch, channels, config.seed)
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
        if isinstance(model, MambaIR) and (config.scale == 1 or not init):
            model.start_simply()
        if init:
            print(_load_init(model, init), file=sys.stderr)
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
                score = validate(averaged, validation, config.scale, metric)
                best = max(best, score)
                entry = {"iteration": iteration, "loss": mean, "lr": learning_rate(config, iteration - 1),
                         metric: score, "it_per_s": len(losses) / seconds}  # fmt: skip
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
        score = validate(averaged, validation, config.scale, metric)
        notes = {"iterations": total, "scale": config.scale, f"validation_{metric}": f"{score:.3f}"}
        save_network(result, model, ema, notes)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        bar.close()
        for number, handler in previous:
            signal.signal(number, handler)
    return result
