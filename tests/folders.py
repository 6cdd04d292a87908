"""Folders of small images, and runs over them with the stand-in for networks; shared by tests."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from doubler import SETTINGS, Doubler, doubled

import mambair_cli
from mambair_cli.batch.jobs import find_jobs
from mambair_cli.batch.manifest import MANIFEST, Manifest
from mambair_cli.batch.pipeline import Batch
from mambair_cli.images.io import read_image
from mambair_cli.restore.size import Size

ROOT = Path(mambair_cli.__file__).parents[1]


def pixels_of(seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def make(*names, size=16):
    """Images of these names, each of its own pixels; the suffix decides the format."""
    for seed, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels_of(seed, size)).save(path)


def run(inputs=("in",), output="out", restorer=None, overwrite=False, settings=SETTINGS, **options):
    """Restore inputs into a folder: the records."""
    records = []
    jobs, into = find_jobs(list(inputs), output, **options)
    manifest = Manifest(into, settings)
    try:
        Batch(restorer or Doubler(), Size(2), None, manifest, overwrite).run(
            jobs, records.append, lambda *_: None
        )
    finally:
        run.told = {Path(record.input).name: record for record in records}
    return run.told


def statuses(records):
    return {name: record.status for name, record in records.items()}


def lines():
    """The records of the manifest, in the order of their outputs; all its lines are whole."""
    found = [json.loads(line) for line in Path("out", MANIFEST).read_bytes().splitlines()]
    return sorted(found, key=lambda line: line["output"])


def files_in(top="out"):
    """All files but locks: the manifest's, which stays on some systems, and those of results."""
    found = (path for path in Path(top).rglob("*") if path.suffix != ".lock")
    files = (path for path in found if path.is_file())
    return sorted(str(path.relative_to(top)) for path in files)


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def start(**environment):
    """Another process that restores in/ into out/."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("doubler.py"), "in", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process):
    """How many files a process restored, and what it tells of each."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    facts = json.loads(out)
    return facts["count"], {
        Path(record["input"]).name: record["status"] for record in facts["records"]
    }


def check_results(names):
    for name in names:
        np.testing.assert_array_equal(
            read_image(Path("out", name)).pixels, doubled(read_image(Path("in", name)).pixels)
        )
