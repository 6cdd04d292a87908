"""What tests of the report on a GPU share, where there is none; its fixtures are in conftest."""

from dataclasses import replace

import torch

from mambair_cli.bench.cost import gpu_cases

CPU = torch.device("cpu")
TINY = replace(gpu_cases.LIGHT, embed_dim=6, depths=(1,), d_state=2)


class Rates:
    def __init__(self, bytes=1e30, exponentials=1e30, instructions=1e30):
        self.bytes, self.exponentials, self.instructions = bytes, exponentials, instructions


def assert_printable(rows):
    assert len({row["what"] for row in rows}) == len(rows)
    for row in rows:
        assert all(isinstance(row[key], str) for key in ("what", "value", "bar"))
        assert row["met"] in (True, False, None)
        assert row["bar"] or row["met"] is None
