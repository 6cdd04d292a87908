"""The kernels behind `fused`: how they share rows, and other widths of vectors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambair_cli.ops import fused_numba, simd

# Of the range of the modules' output, as in test_fused.py.
LIMIT = 5e-6
WIDTHS = [lanes for lanes in (4, 8, 16) if lanes != simd.LANES]


def test_more_rows_than_threads_and_less():
    done = []
    for rows in (1, 2, 7):
        fused_numba.run_rows(lambda first, last: done.append((first, last)), rows)
    each = sorted(row for first, last in done for row in range(first, last))
    assert each == sorted([*range(1), *range(2), *range(7)])


_IN_ANOTHER_WIDTH = """
import json
import torch
from mambair_cli.ops import simd
from networks import network, picture
from test_fused import both, difference
found = [difference(*both(network(form), picture(9, 21))) for form in ("light_c", "classic", "derain")]
print(json.dumps([simd.LANES, simd.BLOCK_PIXELS, max(found)]))
"""


@pytest.mark.parametrize("lanes", WIDTHS)
def test_other_vector_widths(lanes):
    here = str(Path(__file__).parent)
    environment = os.environ | {
        "MAMBAIR_SIMD_LANES": str(lanes),
        "PYTHONPATH": os.pathsep.join([here, str(Path(__file__).parent), *sys.path]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_WIDTH],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    width, _, error = json.loads(ran.stdout)
    assert width == lanes
    assert error < LIMIT
