import math

import numpy as np
import pytest
import torch
from scan_inputs import NAMES, errors, scan_inputs, y_and_gradients

from mambair_cli.ops import BACKENDS
from mambair_cli.ops.scan_reference import CHUNK, ss2d_scan_sequential, ss2d_scan_vectorised

FORMS = [ss2d_scan_sequential, ss2d_scan_vectorised]
FAST = [backend.scan for backend in BACKENDS if backend.unavailable("cpu", torch.float32) is None]
EVERY_SCAN = [*FORMS, *(scan for scan in FAST if scan not in FORMS)]

# (row, column) of every step of the four directions through an image of 2 rows and 3 columns.
ORDERS_2X3 = [
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)],
    [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)],
    [(1, 2), (1, 1), (1, 0), (0, 2), (0, 1), (0, 0)],
    [(1, 2), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0)],
]


def by_hand(x, C, dt, B=None, D=None):
    """Inputs for an image x (rows of numbers) of one channel and one state with A = -1: a step size
    that does not depend on the pixel, and B, C, D that depend on the direction only."""
    K = len(C)
    x = torch.tensor(x)[None, :, :, None]
    per_direction = torch.tensor([[0.0, b, c] for b, c in zip(B or [1 / dt] * K, C, strict=True)])
    # softplus gives dt
    bias = torch.full((K, 1), math.log(math.expm1(dt)))
    x_dbl = per_direction.expand(*x.shape[:3], K, 3)
    return x, x_dbl, torch.ones(K, 1, 1), bias, torch.zeros(K, 1), torch.tensor(D or [0.0] * K)


@pytest.mark.parametrize("scan", EVERY_SCAN)
def test_one_pixel(scan):
    # h = dt B x = 0.5 * 2 * B = B; sum of C h: 1*1 - 2*1 + 3*2 + 4*0.5 = 7; sum of D x: 0.25 * 2 =
    # 0.5.
    inputs = by_hand(
        [[2.0]], [1.0, -1.0, 2.0, 0.5], 0.5, [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, -1.0, 0.25]
    )
    assert scan(*inputs).item() == pytest.approx(7.5, rel=1e-6)


@pytest.mark.parametrize("scan", EVERY_SCAN)
def test_two_pixels(scan):
    # dt = log 2 halves the state at each step; dt B = 1. Forth h = 1, 1/2 + 3; back 3, 3/2 + 1.
    # C weighs the directions 1, 10, 100, 1000; rows and columns run alike through two pixels.
    first, second = 11 * 1 + 1100 * 2.5, 11 * 3.5 + 1100 * 3
    weights = [1.0, 10.0, 100.0, 1000.0]
    row = scan(*by_hand([[1.0, 3.0]], weights, math.log(2)))
    column = scan(*by_hand([[1.0], [3.0]], weights, math.log(2)))
    assert row.flatten().tolist() == pytest.approx([first, second], rel=1e-6)
    assert column.flatten().tolist() == pytest.approx([first, second], rel=1e-6)


@pytest.mark.parametrize("scan", EVERY_SCAN)
def test_four_pixels(scan):
    # As above; states of a b / c d = 1 2 / 3 4 in the order a b c d, a c b d, d c b a, d b c a:
    abcd, acbd = (1, 2.5, 4.25, 6.125), (1, 3.5, 3.75, 5.875)
    dcba, dbca = (4, 5, 4.5, 3.25), (4, 4, 5, 3.5)
    a = abcd[0] + 10 * acbd[0] + 100 * dcba[3] + 1000 * dbca[3]
    b = abcd[1] + 10 * acbd[2] + 100 * dcba[2] + 1000 * dbca[1]
    c = abcd[2] + 10 * acbd[1] + 100 * dcba[1] + 1000 * dbca[2]
    d = abcd[3] + 10 * acbd[3] + 100 * dcba[0] + 1000 * dbca[0]
    image = [[1.0, 2.0], [3.0, 4.0]]
    y = scan(*by_hand(image, [1.0, 10.0, 100.0, 1000.0], math.log(2)))
    assert y.flatten().tolist() == pytest.approx([a, b, c, d], rel=1e-6)
    # K = 1: row-major alone
    y = scan(*by_hand(image, [1.0], math.log(2)))
    assert y.flatten().tolist() == pytest.approx(abcd, rel=1e-6)


def scan_2x3(x, x_dbl, dt_weight, dt_bias, A_log, D):
    """The recurrence in numpy, a scalar at a time, over explicit lists of pixels."""
    channels, N, R = x.shape[-1], A_log.shape[1], dt_weight.shape[2]
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        for k, order in enumerate(ORDERS_2X3):
            for d in range(channels):
                h = np.zeros(N)
                for i, j in order:
                    dts, B, C = np.split(x_dbl[b, i, j, k], [R, R + N])
                    dt = math.log1p(math.exp(dt_weight[k, d] @ dts + dt_bias[k, d]))
                    h = np.exp(-dt * np.exp(A_log[k * channels + d])) * h + dt * B * x[b, i, j, d]
                    y[b, i, j, d] += C @ h + D[k * channels + d] * x[b, i, j, d]
    return y


@pytest.mark.parametrize("scan", EVERY_SCAN)
def test_directions_run_through_the_image_in_their_order(scan):
    inputs = scan_inputs(2, 3, channels=3, N=3, R=2, batch=2)
    expected = scan_2x3(*(v.double().numpy() for v in inputs))
    if scan in FORMS:
        double = scan(*(v.double() for v in inputs)).numpy()
        np.testing.assert_allclose(double, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(scan(*inputs).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", FORMS)
@pytest.mark.parametrize("K", [1, 4])
def test_gradients_are_those_of_finite_differences(scan, K):
    inputs = scan_inputs(2, 3, channels=2, N=2, R=1, K=K, batch=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in inputs])


def test_gradients_across_chunks_are_those_of_finite_differences():
    inputs = [
        v.requires_grad_() for v in scan_inputs(5, 7, channels=2, N=2, R=1, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(ss2d_scan_vectorised, inputs, fast_mode=True)


SIZES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (3, 7),
    (1, CHUNK),
    (4, CHUNK // 4),
    (1, CHUNK + 1),
    (CHUNK - 1, 1),
    (9, 11),
]


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize(("H", "W"), SIZES)
def test_vectorised_is_sequential(H, W, K):
    inputs = scan_inputs(H, W, channels=5, N=3, R=2, K=K, batch=2, dtype=torch.float64)
    expected = y_and_gradients(ss2d_scan_sequential, inputs)
    assert all(e < 1e-12 for e in errors(y_and_gradients(ss2d_scan_vectorised, inputs), expected))
    # computes in place
    with torch.no_grad():
        assert errors([ss2d_scan_vectorised(*inputs)], expected[:1])[0] < 1e-12


def test_no_input_is_written_to():
    inputs = scan_inputs(5, 7)
    copies = [v.clone() for v in inputs]
    with torch.no_grad():
        ss2d_scan_vectorised(*inputs)
    for name, value, copy in zip(NAMES, inputs, copies, strict=True):
        assert torch.equal(value, copy), name


@pytest.mark.parametrize("scan", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(scan, dtype):
    inputs = scan_inputs(6, 7, dtype=dtype)
    y = scan(*inputs)
    assert y.dtype == dtype
    assert torch.equal(y, scan(*(v.float() for v in inputs)).to(dtype))


@pytest.mark.parametrize("scan", FORMS)
def test_non_contiguous_inputs(scan):
    inputs = scan_inputs(4, 9, dtype=torch.float64)
    expected = scan(*inputs)
    inputs[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    inputs[1] = inputs[1].permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert not inputs[0].is_contiguous()
    torch.testing.assert_close(scan(*inputs), expected, rtol=1e-12, atol=1e-12)
