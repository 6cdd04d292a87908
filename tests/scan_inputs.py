"""Inputs for the scan and how far two results lie apart; shared by the scan's tests.

Run as a program it measures the numba back end as it is set up by the environment, and prints JSON.
"""

import json
import math

import torch

from mambair_cli.ops.scan_reference import ss2d_scan_sequential

NAMES = ("x", "x_dbl", "dt_weight", "dt_bias", "A_log", "D")
# The bars of the design: largest errors against float64, relative to the largest |y| and
# |gradient|.
FORWARD_ERROR, GRADIENT_ERROR = 5e-6, 1e-5


def scan_inputs(H, W, channels=12, N=5, R=3, K=4, batch=1, dtype=torch.float32, seed=0):
    """The six inputs of the scan, with step sizes from slow (1e-3) to fast (several)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    inputs = (
        normal(batch, H, W, channels),
        normal(batch, H, W, K, R + 2 * N),
        normal(K, channels, R) * R**-0.5,
        normal(K, channels) * 2 - 3,
        torch.log(torch.arange(1.0, N + 1)) + 0.1 * normal(K * channels, N),
        normal(K * channels),
    )
    return [v.to(dtype) for v in inputs]


def y_and_gradients(scan, inputs, gy_dtype=torch.float32):
    """y and the gradients of the six inputs, for a fixed random gradient of y."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    y = scan(*inputs)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(gy_dtype).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, gy)]


def definition(inputs, gy_dtype=torch.float32):
    """y and the gradients in float64, one step after the other."""
    return y_and_gradients(ss2d_scan_sequential, [v.double() for v in inputs], gy_dtype)


def errors(found, expected):
    """Largest errors, each relative to the largest expected magnitude. Not a number where one was
    found.
    """
    pairs = zip(found, expected, strict=True)
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in pairs
    ]


def assert_within_bars(scan, inputs):
    """Outputs and gradients of a float32 scan within the bars of the design."""
    y, *gradients = errors(y_and_gradients(scan, inputs), definition(inputs))
    assert y <= FORWARD_ERROR
    for name, error in zip(NAMES, gradients, strict=True):
        assert error <= GRADIENT_ERROR, name


def measure():
    """What numba compiled for here, what the disk cache gave, and the largest errors of a few
    shapes.
    """
    from mambair_cli.ops import scan_numba, simd

    torch.set_num_threads(1)
    inputs = [
        scan_inputs(5, 7),
        scan_inputs(1, 1, channels=1, N=1),
        scan_inputs(35, 2, channels=37, N=4, batch=2),
        scan_inputs(2, 17, channels=16, K=1),
    ]

    def scan(*inputs):
        return torch.ops.mambair.ss2d_scan_numba(*inputs, True)[0]

    found = [errors(y_and_gradients(scan, v), definition(v)) for v in inputs]
    kernels = [scan_numba._forward(), scan_numba._backward()]
    return {
        "lanes": simd.LANES,
        "fma": simd.HAS_FMA,
        "from_cache": [sum(kernel.stats.cache_hits.values()) for kernel in kernels],
        "compiled": [sum(kernel.stats.cache_misses.values()) for kernel in kernels],
        "finite": all(math.isfinite(error) for shape in found for error in shape),
        "forward": max(shape[0] for shape in found),
        "gradients": max(max(shape[1:]) for shape in found),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
