"""Runs the Triton kernels in Triton's interpreter, on the CPU, and prints as JSON what it found.

A program of its own, since TRITON_INTERPRET must be set before the kernels are defined. Its
argument is JSON: names and the arguments of `scan_inputs`, with those of `run` among them.
"""

import json
import os
import sys
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from scan_inputs import definition, errors, scan_inputs, y_and_gradients

from mambair_cli.ops import BACKENDS, scan_triton, triton_kernels

scan = next(backend.scan for backend in BACKENDS if backend.name == "triton")
for operation in ("forward", "backward"):
    name = "mambair::ss2d_scan_triton" + ("_backward" if operation == "backward" else "")
    torch.library.impl(name, "cpu")(getattr(scan_triton, operation))


def run(dtype="float32", autocast=False, module=None, **arguments):
    """The errors of y and of the gradients, for x of a type, and with some constants of scan_triton
    changed.
    """
    inputs = scan_inputs(**arguments)
    inputs[0] = inputs[0].to(getattr(torch, dtype))
    patch = mock.patch.dict(vars(scan_triton), module or {})
    with patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = y_and_gradients(scan, inputs, inputs[0].dtype)
    assert [v.dtype for v in found] == [inputs[0].dtype, *(v.dtype for v in inputs)]
    return errors(found, definition(inputs, inputs[0].dtype))


@triton.jit
def _apply(V, OUT, SLOPE, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    softplus = triton_kernels.softplus(tl.load(V + i))
    tl.store(OUT + i, softplus)
    tl.store(SLOPE + i, triton_kernels.softplus_slope(softplus))


def softplus():
    """Largest relative errors of softplus and its derivative."""
    v = torch.cat([torch.linspace(-40, 40, 30000), torch.linspace(-1, 1, 2768)])
    found = torch.empty_like(v), torch.empty_like(v)
    _apply[1,](v, *found, BLOCK=len(v))
    expected = torch.nn.functional.softplus(v.double(), threshold=1e9), v.double().sigmoid()
    return [(a / b - 1).abs().max().item() for a, b in zip(found, expected, strict=True)]


def operations():
    """Raises where the registered operations do not keep what they promise torch."""
    inputs = scan_inputs(1, 2, channels=2, N=2, R=2, K=1)
    gy, nothing = torch.ones_like(inputs[0]), torch.empty(0)
    torch.library.opcheck(torch.ops.mambair.ss2d_scan_triton.default, (*inputs, True))
    torch.library.opcheck(
        torch.ops.mambair.ss2d_scan_triton_backward.default, (gy, *inputs, nothing)
    )


if __name__ == "__main__":
    # uninitialised memory is NaN
    torch.use_deterministic_algorithms(True)
    operations()
    cases = {name: run(**case) for name, case in json.loads(sys.argv[1]).items()}
    print(json.dumps({"softplus": softplus(), "cases": cases}))
