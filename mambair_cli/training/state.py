"""A training under way: its networks, optimisers, data and counters, saved and restored."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CallError, TrainingError
from ..images.folders import Pixels
from ..models.weights import save_network
from . import checkpoints, parallel
from .config import TrainConfig
from .data import Loader, parts_of
from .device_batch import device_batches
from .inputs import Folders, Settings, open_data
from .losses import build_adversary, network_loss
from .network import build_optimiser, compile_network, recompute_blocks, start_weights
from .recipe import build_network, checked
from .schedule import learning_rate, stage_at, stages
from .teacher import load_teacher, taught, with_teacher
from .validation import metric_of, restored, score
from .watch import Pace, Watch, say, write_card, write_crops, write_curves

BAD_STEPS = 10
"""Steps in a row with NaN or infinite values that end a run."""
SHOWN = 10
"""Skipped images that are named."""


def add_gradients(
    model: nn.Module,
    low: Tensor,
    high: Tensor,
    weight: float,
    config: TrainConfig,
    engine: Any,
    adversary: Any,
) -> Tensor:
    """Forward and backward pass of a part of a batch.

    Args:
        model: the network.
        low: degraded patches, (B,C,p,p).
        high: their truths, (B,C,s*p,s*p).
        weight: of this part in the batch.
        config: the recipe.
        engine: see `parallel.start`.
        adversary: see `losses.build_adversary`.

    Returns:
        Weighted losses of the network and of the discriminator, (2).
    """
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


class Run:
    """A training under way. Of several processes only the main one reports, validates and saves.

    Attributes:
        iteration: steps that are done.
        best: highest validation score so far.
        skips: steps without effect, as they gave NaN or infinite values; `bad`: such steps in a
            row.
        losses: of the steps since the last entry of the log.
        ema: the averaged weights, by name.
        watch: where the run can be seen; only on the main process, between `open` and `close`.
    """

    def __init__(
        self,
        config: TrainConfig,
        folders: Folders,
        out: Path,
        settings: Settings,
        saved: Mapping[str, Any],
        init: str,
    ):
        self.config, self.out, self.settings = config, out, settings
        self.precision = settings.precision or saved.get("precision", parallel.DEFAULT)
        before = saved.get("precision", self.precision)
        if self.precision != before:
            raise CallError(f"{out} is a run in {before}; it cannot go on in {self.precision}")
        self.engine = parallel.start(settings.device, self.precision)
        self.main: bool = self.engine.is_main_process
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32

        torch.manual_seed(config.seed)
        self.model, self.averaged = build_network(config), build_network(config)
        self.notes = [] if saved else [start_weights(self.model, config, init)]
        self.pairs, self.validation, skipped = open_data(config, folders, settings)
        self.metric = metric_of(config)
        images, held_out = len(self.pairs.photos.sources), len(self.validation)
        self.notes.append(f"{images} images to train on, {held_out} to validate")
        if folders.teacher:
            self.notes.append(f"{config.teacher.weight:.0%} of the targets by {folders.teacher}")
        self.notes += [f"skipped: {reason}" for reason in skipped[:SHOWN]]
        self.skipped = len(skipped)
        if skipped:
            self.notes.append(f"images skipped in all: {self.skipped}")
        self.told = len(self.pairs.photos.skipped)

        self.folders, self.teacher = folders, None
        if folders.teacher and not folders.targets:
            self.teacher = load_teacher(str(folders.teacher), config)
        self._move_to_device(saved.get("sizes", {}))
        self.optimiser = build_optimiser(self.model, config.optimiser)
        # the optimisers and their highest rates
        self.optimisers: dict[torch.optim.Optimizer, float] = {self.optimiser: config.optimiser.lr}
        if self.adversary:
            self.optimisers[self.adversary.optimiser] = config.loss.discriminator_lr
        self.shared = self.engine.prepare(self.model)
        self.names, self.weights = zip(*self.model.named_parameters(), strict=True)
        self.ema = {key: value.detach().clone() for key, value in self.model.state_dict().items()}

        self.iteration, self.skips, self.bad, self.best = 0, 0, 0, 0.0
        self.losses: list[float] = []
        self.watch: Watch | None = None
        self.loader: Loader | None = None

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        folders: Folders,
        out: Path,
        settings: Settings,
        *,
        resume: bool,
        init: str,
    ) -> "Run":
        """A run that stands where it begins or goes on.

        Takes the arguments of `train`, and raises as it.
        """
        config = with_teacher(checked(asdict(config), "recipe"), folders)
        started = checkpoints.paths(out) or (out / "model.safetensors").exists()
        if started and not resume:
            raise CallError(f"{out} holds a run already; give `resume`, or another `out`")
        saved, passed = checkpoints.load(out, config) if resume else ({}, [])
        run = cls(config, folders, out, settings, saved, init)
        if saved:
            run.restore(saved)
        for note in [*passed, *run.notes] if run.main else ():
            say(note)
        return run

    def _move_to_device(self, sizes: Mapping[int, dict[int, int]]) -> None:
        """Network and losses onto the device; settle how many samples it takes at once.

        `sizes`: those of a resumed run, by the number of processes.
        """
        config, settings, engine = self.config, self.settings, self.engine
        if settings.recompute:
            recompute_blocks(self.model)
        self.model = self.model.to(engine.device, self.dtype)
        if self.teacher:
            self.teacher = self.teacher.to(engine.device, self.dtype)
        self.adversary = build_adversary(config.loss, settings.vgg, engine, self.dtype)

        def loss_of(low: Tensor, high: Tensor) -> Tensor:
            return network_loss(config.loss, self.adversary, self.model(low), high)

        world, asked = engine.num_processes, settings.device_batch
        kept = sizes.get(world) if asked is None else None
        self.sizes = kept or device_batches(self.model, config, loss_of, engine, asked)
        if settings.compile:
            compile_network(self.model, engine.device)
        for patch, batch in stages(config):
            times = f"{batch // world // self.sizes[patch]} times {self.sizes[patch]}"
            each = f"{times} on each of {world} {engine.device.type}"
            self.notes.append(f"patches of {patch}: batch {batch}, that is {each}")

    def open(self) -> None:
        """Write the recipe, open the log and begin to make batches.

        Raises OSError, BackendError.
        """
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            recipe = json.dumps(asdict(self.config), indent=1, allow_nan=False)
            (self.out / "recipe.json").write_text(recipe, "utf-8")
            total, tensorboard = self.config.iterations, self.settings.tensorboard
            self.watch = Watch(self.out, total, self.iteration, tensorboard)
        rank, world = self.engine.process_index, self.engine.num_processes
        parts = parts_of(self.config, self.sizes, self.iteration, rank, world)
        self.loader = Loader(self.pairs.batch, parts, self.settings.workers)
        self.pace = Pace(self.iteration)

    def close(self) -> None:
        """End the threads and leave the terminal as it was."""
        if self.loader:
            self.loader.close()
        if self.watch:
            self.watch.close()

    def step(self, stopping: Sequence[int]) -> tuple[float, bool]:
        """One iteration.

        Args:
            stopping: signals that have come to this process.

        Returns:
            Mean loss of all processes, and whether a signal has come to any of them.

        Raises:
            TrainingError: BAD_STEPS in a row gave NaN or infinite values.
        """
        self.shared.train()
        self.rate = learning_rate(self.config, self.iteration)
        for optimiser, highest in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.rate / self.config.optimiser.lr * highest
        sums = self._sum_gradients()
        with self.pace.computing():
            limit = self.config.optimiser.clip or math.inf
            norm = nn.utils.clip_grad_norm_(self.weights, limit, foreach=True)
            told = torch.stack([*sums, norm.to(sums), sums.new_tensor(float(bool(stopping)))])
            loss, against, size, stop = self.engine.reduce(told, "mean").tolist()
            if math.isfinite(loss + against + size):
                self._update()
                self.losses += [loss] if self.main else []
                self.bad = 0
            else:
                self.skips, self.bad = self.skips + 1, self.bad + 1
            for optimiser in self.optimisers:
                optimiser.zero_grad(set_to_none=True)
        self.iteration += 1
        if self.bad == BAD_STEPS:
            raise TrainingError(
                f"{BAD_STEPS} steps in a row gave NaN or infinite values, up to iteration"
                f" {self.iteration}; lower optimiser.lr; {self.out}/best.safetensors can be `init`"
            )
        return loss, stop > 0

    def on_device(self, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Degraded patches and targets of a part on the device, a teacher's share in the latter."""
        low, high = (x.to(self.engine.device, self.dtype, non_blocking=True) for x in part)
        if self.teacher:
            with self.engine.autocast():
                high = taught(self.teacher, self.config.teacher.weight, low, high)
        return low, high

    def _sum_gradients(self) -> Tensor:
        """Forward and backward pass of this process's share of the batch; both losses, (2)."""
        patch, batch = stage_at(self.config, self.iteration)
        share = batch // self.engine.num_processes
        starts = range(0, share, self.sizes[patch])
        sums = torch.zeros(2, device=self.engine.device, dtype=self.dtype)
        assert self.loader
        for start in starts:
            part = self.loader.next()
            with self.pace.computing():
                low, high = self.on_device(part)
                # what the network draws depends on the place in the batch alone
                place = self.engine.process_index * share + start
                seed = np.random.SeedSequence((self.config.seed, self.iteration, place))
                torch.manual_seed(int(seed.generate_state(1)[0]))
                last = start == starts[-1]
                with nullcontext() if last else self.engine.no_sync(self.shared):
                    weight = 1 / len(starts)
                    sums += add_gradients(
                        self.shared, low, high, weight, self.config, self.engine, self.adversary
                    )
        return sums

    def _update(self) -> None:
        """Step all optimisers and average the weights; the average is short at first."""
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(self.config.optimiser.ema, (self.iteration + 1) / (self.iteration + 11))
        averages = [self.ema[name] for name in self.names]
        torch._foreach_lerp_(averages, [weight.detach() for weight in self.weights], 1 - decay)

    def report(self, validate: bool) -> None:
        """Add to the log what happened since its last entry, and a validation where asked for."""
        assert self.watch
        assert self.loader
        entry: dict[str, Any] = {
            "iteration": self.iteration,
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "lr": self.rate,
            **self.pace.shares(self.iteration, self.loader.waited),
            "skipped": self.skips,
        }
        if validate:
            entry[self.metric] = self.validate()
        self.watch.log(entry)
        skipped = self.pairs.photos.skipped
        for reason in skipped[self.told :]:
            say(f"skipped: {reason}")
        self.told = len(skipped)
        self.losses, self.loader.waited = [], 0.0
        self.pace = Pace(self.iteration)

    def validate(self) -> float:
        """Score of the averaged weights, in dB; the best so far go to best.safetensors.

        Raises OSError.
        """
        results, found = self._restored()
        if self.watch:
            self.watch.show(results, self.validation, self.iteration)
        if found > self.best:
            self.best = found
            facts = {"task": self.config.task, "iterations": self.iteration}
            path = self.out / "best.safetensors"
            save_network(path, self.averaged, self.averaged.state_dict(), facts)
        return found

    def _restored(self) -> tuple[list[Pixels], float]:
        """What the averaged weights make of the validation images, and its score in dB."""
        self.averaged.load_state_dict(self.ema)
        results = restored(self.averaged, self.validation, self.engine.device)
        return results, score(results, self.validation, self.config.scale, self.metric)

    def write_weights(self, facts: Mapping[str, Any]) -> None:
        """Write the averaged weights as model.safetensors, with facts. Raises OSError."""
        self.averaged.load_state_dict(self.ema)
        path = self.out / "model.safetensors"
        save_network(path, self.averaged, self.averaged.state_dict(), facts)

    def stop(self) -> None:
        """Write the weights as they are and mark them as unfinished; say so. Raises OSError."""
        facts = self._facts() | {"unfinished": f"{self.iteration} of {self.config.iterations}"}
        self.write_weights(facts)
        path = self.out / "model.safetensors"
        say(f"saved after iteration {self.iteration}; {path} has the weights so far")

    def _facts(self) -> dict[str, Any]:
        """What there is to know of the weights, but for their score."""
        teaching = {}
        if self.folders.teacher:
            weight = self.config.teacher.weight
            teaching = {"teacher": str(self.folders.teacher), "teacher_weight": weight}
        return {
            "task": self.config.task,
            "scale": self.config.scale,
            "iterations": self.iteration,
            "images": len(self.pairs.photos.sources),
        } | teaching

    def export(self) -> None:
        """Write the weights, a card that says what they are, curves and validation crops.

        Raises OSError.
        """
        results, found = self._restored()
        facts = self._facts() | {f"validation_{self.metric}": f"{found:.3f}"}
        self.write_weights(facts)
        parameters = sum(p.numel() for p in self.averaged.parameters())
        write_card(self.out, self.config.summary, parameters, facts)
        if not write_curves(self.out / "log.jsonl", self.out / "curves.png"):
            say("no curves.png: that needs matplotlib, pip install 'mambair[train]'")
        write_crops(results, self.validation, self.out / "validation.png")

    def save(self) -> None:
        """Write a checkpoint: all that `restore` needs. Raises OSError."""
        state = {
            "config": json.dumps(asdict(self.config)),
            "precision": self.precision,
            "sizes": {self.engine.num_processes: self.sizes},
            "best": self.best,
            "skips": self.skips,
            "bad": self.bad,
            "losses": self.losses,
            "ema": self.ema,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else {},
        }
        checkpoints.save(self.out, self.iteration, state)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self.iteration, self.best = saved["iteration"], saved["best"]
        self.skips, self.bad, self.losses = saved["skips"], saved["bad"], saved["losses"]
        self.model.load_state_dict(saved["model"])
        self.ema = {key: value.to(self.engine.device) for key, value in saved["ema"].items()}
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.adversary:
            self.adversary.load_state_dict(saved["adversary"])
