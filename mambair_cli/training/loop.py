"""One flat training loop that resumes exactly where it stopped."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TrainingError
from ..system.runtime import flushed_denormals
from .config import TrainConfig
from .inputs import Folders, Settings
from .state import Run

CHECKPOINT_SECONDS = 300
"""Time between two checkpoints."""
LOG_ENTRIES, VALIDATIONS = 500, 25
"""How many of each a run has, at most about."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the state of the run and its weights so far are saved."""


@flushed_denormals()
def train(
    config: TrainConfig,
    folders: Folders,
    out: Path,
    *,
    resume: bool = False,
    init: str = "",
    settings: Settings | None = None,
) -> Path:
    """Train a network and return the file of its averaged weights, `out`/model.safetensors.

    Writes to `out`: recipe.json, log.jsonl, the last three checkpoints (all that a resumed run
    needs to go on exactly; every few minutes and when stopped), best.safetensors (by validation),
    model.safetensors (at the end and when stopped), and at the end its card, curves and validation
    crops. Of several processes only the first writes.

    Args:
        config: the recipe.
        folders: of images.
        out: folder of the run.
        resume: go on from the newest checkpoint in `out`.
        init: see `network.start_weights`; not read when resuming.
        settings: how to run on this machine; None: as `Settings` has it.

    Raises:
        CallError: the recipe, a folder or a file does not fit.
        CheckpointError: all checkpoints, or the file of `init`, are damaged.
        BackendError: the device, or what a setting needs, is missing.
        TrainingError: ten steps in a row gave NaN or infinite values, or `out` cannot be written;
            the checkpoints are as they were.
        Stopped: SIGINT or SIGTERM came; the state and the weights so far are saved.
    """
    settings = settings or Settings()
    run = Run.prepare(config, folders, out, settings, resume=resume, init=init)
    total = run.config.iterations
    log_every = max(1, total // LOG_ENTRIES)
    validate_every = log_every * max(1, total // VALIDATIONS // log_every)
    try:
        with noted_signals() as stopping:
            run.open()
            saved_at = time.perf_counter()
            while run.iteration < total:
                loss, stop = run.step(stopping)
                last = run.iteration == total
                if run.watch:
                    run.watch.tick(run.iteration, loss)
                    if last or run.iteration % log_every == 0:
                        run.report(validate=last or run.iteration % validate_every == 0)
                    if last or stop or time.perf_counter() - saved_at > CHECKPOINT_SECONDS:
                        run.save()
                        saved_at = time.perf_counter()
                if stop:
                    if run.main:
                        run.stop()
                    raise Stopped
            if run.main:
                run.export()
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        run.close()
    return out / "model.safetensors"


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list, to be obeyed between two iterations."""
    noted: list[int] = []
    numbers = signal.SIGINT, signal.SIGTERM
    previous = [signal.signal(n, lambda number, _: noted.append(number)) for n in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
