"""One flat training loop that resumes exactly where it stopped."""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CallError, TrainingError
from ..models.weights import save_network
from ..system.devices import free_memory
from . import checkpoints, parallel
from .data import Loader, Part, TrainingPairs
from .device_batch import device_batches
from .losses import build_adversary, network_loss
from .network import build_optimiser, compile_network, recompute_blocks, start_weights
from .photos import Photos, find_sources, split
from .recipe import TrainConfig, build_degradation, build_network, checked
from .schedule import learning_rate, stage_at, stages
from .validation import Pair, metric_of, restored, score, validation_pairs
from .watch import Watch, write_crops, write_curves

CHECKPOINT_SECONDS = 300
LOG_ENTRIES, VALIDATIONS = 500, 25  # of a run
VALIDATION_CROP = (
    192  # degraded pixels a side of images held out, so that a validation takes seconds
)
BAD_STEPS = 10  # in a row end the run
SHOWN = 10  # images that are skipped, with the reason
CACHE_SHARE = 0.5  # of the free memory, for decoded images


@dataclass(frozen=True)
class Folders:
    """Images to train on and to validate with (None: some of the former), and their degraded forms if given."""

    data: Path
    val: Path | None = None
    low: Path | None = None
    val_low: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How to run a recipe on this machine; not what is learnt, but for rounding and random depth.

    device: auto, cpu, cuda, cuda:N or mps. precision: a name of `parallel.Precision`; None: fp32, and a resumed run
    as before. device_batch: samples that a device takes at once; None: as many as fit, and a resumed run as many as
    before. workers: threads that make
    batches. cache: bytes of decoded images; None: half of the free memory. recompute: keep less for the backward
    pass (gradient checkpointing). tensorboard: log there too. vgg: file of VGG19's weights, for perceptual losses.
    compile: run the network through torch.compile, on GPUs.
    """

    device: str = "auto"
    precision: str | None = None
    device_batch: int | None = None
    workers: int = 1
    cache: float | None = None
    recompute: bool = False
    tensorboard: bool = False
    vgg: Path | None = None
    compile: bool = False


def open_data(
    config: TrainConfig, folders: Folders, settings: Settings
) -> tuple[TrainingPairs, list[Pair], list[str]]:
    """The recipe's pairs to train on and to validate with, and why images are left out. Raises CallError."""
    if folders.val_low and not folders.val:
        raise CallError("--val-low holds the inputs of --val; give that too")
    sources = find_sources(folders.data, folders.low, config.scale)
    chosen = find_sources(folders.val, folders.val_low, config.scale) if folders.val else None
    sources, chosen = split(sources, chosen, config.data.validation)
    degradation = build_degradation(config)
    memory = settings.cache
    if memory is None:
        memory = CACHE_SHARE * free_memory(torch.device("cpu")) / parallel.processes_here()
    photos = Photos(
        sources,
        config.scale,
        config.channels,
        shrink=degradation is None,
        smallest=min(stage.patch for stage in stages(config)),
        memory=memory,
    )
    pairs = TrainingPairs(
        photos, None if folders.low else degradation, config.seed, config.data.mixup
    )
    for stage in stages(config):
        pairs.check(stage.patch)
    crop = None if folders.val else VALIDATION_CROP
    validation, skipped = validation_pairs(chosen, config.scale, degradation, config.channels, crop)
    return pairs, validation, photos.skipped + skipped


def parts_of(
    config: TrainConfig, sizes: dict[int, int], first: int, rank: int, world: int
) -> Iterator[Part]:
    """What process `rank` of `world` takes from iteration `first` on; `sizes`: samples at once, by patch."""
    for iteration in range(first, config.iterations):
        patch, batch = stage_at(config, iteration)
        share = batch // world
        for start in range(rank * share, (rank + 1) * share, sizes[patch]):
            yield Part(iteration, range(start, start + sizes[patch]), patch, batch)


def add_gradients(
    model: nn.Module,
    low: Tensor,
    high: Tensor,
    weight: float,
    config: TrainConfig,
    engine: Any,
    adversary: Any,
) -> Tensor:
    """Forward and backward of a part with its weight in the batch; its share of both nets' losses, (2)."""
    against = torch.zeros((), device=low.device)
    with engine.autocast():
        output = model(low)
        loss = network_loss(config.loss, adversary, output, high)
    engine.backward(weight * loss)
    if adversary and config.loss.adversarial:
        with engine.autocast():
            against = adversary.discriminator_loss(output, high)
        engine.backward(weight * against)
    return weight * torch.stack([loss.detach(), against.detach().to(loss.dtype)])


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are put into a list, to be obeyed between two iterations, where the state is whole."""
    noted: list[int] = []
    previous = [
        (s, signal.signal(s, lambda number, _: noted.append(number)))
        for s in (signal.SIGINT, signal.SIGTERM)
    ]
    try:
        yield noted
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def train(
    config: TrainConfig,
    folders: Folders,
    out: Path,
    *,
    resume: bool = False,
    init: str = "",
    settings: Settings = Settings(),
) -> Path:
    """Train a network and return the path of its weights (`out`/model.safetensors, averaged, float32).

    Writes to `out`: recipe.json, log.jsonl, the last three checkpoints (all that a resumed run needs to go on
    exactly; every few minutes and when interrupted), best.safetensors (by validation), and at the end
    model.safetensors, its card, curves and validation crops. Of several processes only the first writes.

    Args:
        config: the recipe.
        folders: of images.
        out: folder of the run.
        resume: go on from the newest checkpoint in `out`.
        init: see `start_weights`; not read when resuming.
        settings: how to run on this machine.

    Raises:
        CallError: the recipe, a folder or a file does not fit. CheckpointError: all checkpoints or the file of
        `init` are damaged. BackendError: the device or what an option needs is not there.
        TrainingError: ten steps in a row gave no numbers, or `out` cannot be written; checkpoints are as they were.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state is saved.
    """
    config = checked(asdict(config), "recipe")
    recipe = json.dumps(asdict(config))
    result = out / "model.safetensors"
    if (checkpoints.paths(out) or result.exists()) and not resume:
        raise CallError(
            f"{out} holds a run already; give --resume to go on with it, or another --out"
        )
    saved, notes = checkpoints.load(out, recipe) if resume else ({}, [])
    precision = settings.precision or saved.get("precision", parallel.DEFAULT)
    if precision != saved.get("precision", precision):
        raise CallError(
            f"{out} is a run in {saved['precision']}; resume it without --precision {precision}"
        )
    engine = parallel.start(settings.device, precision)
    dtype = torch.float64 if precision == "fp64" else torch.float32

    torch.manual_seed(config.seed)
    model, averaged = build_network(config), build_network(config)
    if resume:
        model.to(dtype).load_state_dict(saved["model"])
    else:
        notes.append(start_weights(model, config, init))
    pairs, validation, skipped = open_data(config, folders, settings)
    notes.append(f"{len(pairs.photos.sources)} images to train on, {len(validation)} to validate")
    notes += [f"skipped: {reason}" for reason in skipped[:SHOWN]]
    notes += [f"images skipped in all: {len(skipped)}"] if skipped else []
    if settings.recompute:
        recompute_blocks(model)
    model = model.to(engine.device, dtype)
    adversary = build_adversary(config.loss, settings.vgg, engine, dtype)

    def loss_of(low: Tensor, high: Tensor) -> Tensor:
        return network_loss(config.loss, adversary, model(low), high)

    world = engine.num_processes
    kept = saved.get("sizes", {}).get(world) if settings.device_batch is None else None
    sizes = kept or device_batches(model, config, loss_of, engine, settings.device_batch)
    if settings.compile:
        compile_network(model, engine.device)
    for patch, batch in stages(config):
        times = f"{batch // world // sizes[patch]} times {sizes[patch]}"
        notes.append(
            f"patches of {patch}: batch {batch}, that is {times} on each of {world} {engine.device.type}"
        )

    optimiser, shared = build_optimiser(model, config.optimiser), engine.prepare(model)
    optimisers: dict[torch.optim.Optimizer, float] = {
        optimiser: config.optimiser.lr
    }  # and their highest rates
    if adversary:
        optimisers[adversary.optimiser] = config.loss.discriminator_lr
    names, weights = zip(*model.named_parameters(), strict=True)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    iteration, best, skips, bad, losses = (
        saved.get(k, 0) for k in ("iteration", "best", "skips", "bad", "losses")
    )
    losses = losses or []
    if resume:
        optimiser.load_state_dict(saved["optimiser"])
        ema = {k: v.to(engine.device) for k, v in saved["ema"].items()}
        if adversary:
            adversary.load_state_dict(saved["adversary"])
    main, metric, total = engine.is_main_process, metric_of(config), config.iterations
    log_every = max(1, total // LOG_ENTRIES)
    validate_every = log_every * max(1, total // VALIDATIONS // log_every)
    reported = len(pairs.photos.skipped)
    for note in notes if main else ():
        _say(note)

    def save_checkpoint() -> None:
        state = {
            "config": recipe, "precision": precision, "sizes": {world: sizes},
            "best": best, "skips": skips, "bad": bad, "losses": losses,
            "ema": ema, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
            "adversary": adversary.state_dict() if adversary else {},
        }  # fmt: skip
        checkpoints.save(out, iteration, state)

    parts = parts_of(config, sizes, iteration, engine.process_index, world)
    loader, watch = Loader(pairs.batch, parts, settings.workers), None
    try:
        with noted_signals() as stopping:
            if main:
                out.mkdir(parents=True, exist_ok=True)
                (out / "recipe.json").write_text(
                    json.dumps(asdict(config), indent=1, allow_nan=False)
                )
                watch = Watch(out, total, iteration, settings.tensorboard)
            saved_at = logged_at = time.perf_counter()
            computing, since = 0.0, iteration
            while iteration < total:
                shared.train()
                patch, batch = stage_at(config, iteration)
                rate = learning_rate(config, iteration)
                for each, highest in optimisers.items():
                    for group in each.param_groups:
                        group["lr"] = rate / config.optimiser.lr * highest
                sums = torch.zeros(2, device=engine.device, dtype=dtype)
                starts = range(0, batch // world, sizes[patch])
                for start in starts:
                    low, high = (
                        x.to(engine.device, dtype, non_blocking=True) for x in loader.next()
                    )
                    began = time.perf_counter()
                    place = engine.process_index * (batch // world) + start
                    seed = np.random.SeedSequence((config.seed, iteration, place)).generate_state(1)
                    torch.manual_seed(
                        int(seed[0])
                    )  # so that what the network draws depends on nothing else
                    with nullcontext() if start == starts[-1] else engine.no_sync(shared):
                        sums += add_gradients(
                            shared, low, high, 1 / len(starts), config, engine, adversary
                        )
                    computing += time.perf_counter() - began
                began = time.perf_counter()
                norm = nn.utils.clip_grad_norm_(
                    weights, config.optimiser.clip or math.inf, foreach=True
                )
                told = torch.stack([*sums, norm.to(sums), sums.new_tensor(float(bool(stopping)))])
                loss, against, size, stop = engine.reduce(told, "mean").tolist()
                if math.isfinite(loss + against + size):
                    for each in optimisers:
                        each.step()
                    decay = min(config.optimiser.ema, (iteration + 1) / (iteration + 11))
                    torch._foreach_lerp_(
                        [ema[n] for n in names], [w.detach() for w in weights], 1 - decay
                    )
                    losses += [loss] if main else []
                    bad = 0
                else:
                    skips, bad = skips + 1, bad + 1
                for each in optimisers:
                    each.zero_grad(set_to_none=True)
                computing += time.perf_counter() - began
                iteration += 1
                if bad == BAD_STEPS:
                    raise TrainingError(
                        f"{BAD_STEPS} steps in a row gave no numbers, up to iteration {iteration}; lower optimiser.lr"
                        f" and start from {out}/best.safetensors with --init"
                    )
                if watch:
                    watch.tick(iteration, loss)
                    if iteration % log_every == 0 or iteration == total:
                        seconds = time.perf_counter() - logged_at
                        entry = {
                            "iteration": iteration, "loss": float(np.mean(losses)) if losses else None, "lr": rate,
                            "it_per_s": (iteration - since) / seconds, "wait": loader.waited / seconds,
                            "outside": 1 - computing / seconds, "skipped": skips,
                        }  # fmt: skip
                        if iteration % validate_every == 0 or iteration == total:
                            averaged.load_state_dict(ema)
                            results = restored(averaged, validation, engine.device)
                            entry[metric] = score(results, validation, config.scale, metric)
                            watch.show(results, validation, iteration)
                            if entry[metric] > best:
                                best = entry[metric]
                                facts = {"task": config.task, "iterations": iteration}
                                save_network(
                                    out / "best.safetensors", averaged, averaged.state_dict(), facts
                                )
                        watch.log(entry)
                        for reason in pairs.photos.skipped[reported:]:
                            _say(f"skipped: {reason}")
                        reported = len(pairs.photos.skipped)
                        losses, since, computing, loader.waited = [], iteration, 0.0, 0.0
                        logged_at = time.perf_counter()
                    if (
                        time.perf_counter() - saved_at > CHECKPOINT_SECONDS
                        or stop
                        or iteration == total
                    ):
                        save_checkpoint()
                        saved_at = time.perf_counter()
                if stop:
                    if main:
                        _say(
                            f"saved after iteration {iteration}; go on with: {how_to_resume(folders, out, settings)}"
                        )
                    raise KeyboardInterrupt
            if main:
                averaged.load_state_dict(ema)
                results = restored(averaged, validation, engine.device)
                facts = {
                    "task": config.task, "scale": config.scale, "iterations": total,
                    "images": len(pairs.photos.sources),
                    f"validation_{metric}": f"{score(results, validation, config.scale, metric):.3f}",
                }  # fmt: skip
                export(averaged, config, out, facts)
                write_crops(results, validation, out / "validation.png")
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        loader.close()
        if watch:
            watch.close()
    return result


def how_to_resume(folders: Folders, out: Path, settings: Settings) -> str:
    """The command that goes on with a run on this machine as it began."""
    processes = parallel.processes_here()
    words = (
        ["torchrun", "--nproc-per-node", str(processes), "-m", "mambair_cli"]
        if processes > 1
        else ["mambair"]
    )
    words += ["train", "--resume", "--out", str(out)]
    defaults, gib = asdict(Settings()), settings.cache and settings.cache / 2**30
    for option, value in (asdict(folders) | asdict(settings) | {"cache": gib}).items():
        if value is not None and value != defaults.get(option):
            words += [f"--{option.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(words)


def export(model: nn.Module, config: TrainConfig, out: Path, facts: dict[str, Any]) -> None:
    """Write the weights, a card that says what they are, and the curves. Raises OSError."""
    save_network(out / "model.safetensors", model, model.state_dict(), facts)
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"# {out.resolve().name}",
        "",
        f"{config.summary or 'A network of the user'}. {parameters:,} parameters.",
        "",
    ]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()]
    (out / "model.md").write_text("\n".join([*lines, "- recipe: recipe.json", ""]))
    if not write_curves(out / "log.jsonl", out / "curves.png"):
        _say("no curves.png: that needs matplotlib, pip install 'mambair[train]'")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
