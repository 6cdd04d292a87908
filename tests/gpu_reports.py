"""What tests of the report on a GPU share, where there is none; its fixtures are in conftest."""

from dataclasses import replace

import torch

from mambair_cli.bench.cost import gpu_cases

CPU = torch.device("cpu")
TINY = replace(gpu_cases.LIGHT, embed_dim=6, depths=(1,), d_state=2)


def fast_rates(bytes=1e30, exponentials=1e30, instructions=1e30):
    return gpu_cases.Rates(bytes, exponentials, instructions)


def assert_printable(rows):
    assert len({row.what for row in rows}) == len(rows)
    for row in rows:
        assert all(isinstance(text, str) for text in (row.what, row.value, row.bar))
        assert row.met in (True, False, None)
        assert row.bar or row.met is None
