"""Predicted and measured peaks of memory, and how a limit is kept."""

from typing import Any

from .probe import STAND_IN, Probe, measure

Facts = dict[str, Any]


def memory(name_or_file: str) -> list[Facts]:
    """Rows of what `probe.measure` tells, for a model at several sizes and for a stand-in under a limit of 1 GiB."""
    limit = 2**30
    probes = [Probe(name_or_file, side, side) for side in (128, 256, 512)]
    probes += [Probe(STAND_IN, height, 4096, limit) for height in (256, 1024, 4096, 16384)]
    return [
        {"model": probe.model, "megapixels": probe.height * probe.width / 2**20, "limit": probe.limit, **measure(probe)}
        for probe in probes
    ]
