import logging
import runpy

import numpy as np
import pytest
from numba import njit
from numba.core import config

from mambair_cli.ops import simd
from mambair_cli.ops.simd import (
    LANES,
    add,
    div,
    exp2,
    fma,
    lane_sum,
    load,
    load_first,
    maximum,
    mul,
    prefetch,
    put,
    scalar,
    sigmoid,
    softplus,
    splat,
    store,
    store_first,
)

CANARY = np.float32(-77)


@njit
def _functions(x, powers, pluses, sigmoids):
    for i in range(0, x.size, LANES):
        v = load(x, i)
        store(powers, i, exp2(v))
        store(pluses, i, softplus(v))
        store(sigmoids, i, sigmoid(v))


@njit
def _arithmetic(x, y, z, sums, products, fused, splats, quotients, largest):
    store(sums, 0, add(load(x, 0), load(y, 0)))
    store(products, 0, mul(load(x, 0), load(y, 0)))
    store(fused, 0, fma(load(x, 0), load(y, 0), load(z, 0)))
    store(splats, 0, splat(scalar(x, 1)))
    store(quotients, 0, div(load(x, 0), load(y, 0)))
    store(largest, 0, maximum(load(x, 0), load(y, 0)))


@njit
def _copy_first(source, at, target, to, loaded, stored):
    store_first(target, to, load_first(source, at, loaded), stored)


@njit
def _copy(source, at, target, to):
    prefetch(source, at)
    prefetch(source, 1 << 40)  # far outside: a hint, never a fault
    store(target, to, load(source, at))
    put(target, to + LANES, scalar(source, at + LANES))


@njit
def _sum(x, at):
    return lane_sum(load(x, at))


def functions(values):
    """exp2, softplus and sigmoid of any number of values."""
    x = np.resize(np.asarray(values, np.float32), -(-len(values) // LANES) * LANES)
    results = [np.full_like(x, CANARY) for _ in range(3)]
    _functions(x, *results)
    return x.astype(np.float64)[: len(values)], *(r[: len(values)] for r in results)


def largest_relative(found, expected):
    return np.max(np.abs(found - expected) / np.abs(expected))


def test_exp2():
    x, powers, _, _ = functions(
        np.concatenate([np.linspace(-126, 0, 200_000), np.linspace(0, 127, 50_000)])
    )
    assert largest_relative(powers, np.exp2(x)) < 1e-6
    whole = np.arange(-126, 128)
    assert np.array_equal(
        functions(whole)[1], np.ldexp(np.float32(1), whole)
    )  # exact, as numpy's exp2 is not everywhere
    assert np.all(functions([-126.5, -127, -1000, -1e30, -np.inf])[1] <= 2.0**-126)


def test_slow_decays_stay_slow():
    x, powers, _, _ = functions(-np.logspace(-10, -3, 1000))
    assert np.max(np.abs(powers - np.exp2(x))) < 1.2e-7
    assert np.all(powers <= 1)


def test_softplus():
    x, _, pluses, _ = functions(np.linspace(-20, 20, 200_000))
    assert largest_relative(pluses, np.logaddexp(0, x)) < 2e-6
    x, _, pluses, _ = functions([-80, -60, -40, 40, 60, 80, 1e4, 1e30])
    assert (
        largest_relative(pluses, np.logaddexp(0, x)) < 2e-5
    )  # exp(-80) carries the rounding of 80 log2(e)
    assert np.all(functions([-100, -1e4, -np.inf])[2] <= 2.0**-125)


def test_sigmoid():
    x, _, _, sigmoids = functions(np.linspace(-20, 20, 200_000))
    assert largest_relative(sigmoids, 1 / (1 + np.exp(-x))) < 3e-6
    assert np.all(np.diff(functions(np.linspace(-80, 80, 1000))[3]) >= 0)
    x, _, _, sigmoids = functions([-80, -60, -40, 0, 40, 60, 80, 1e30])
    assert largest_relative(sigmoids, 1 / (1 + np.exp(-x))) < 2e-5


def test_not_a_number_stays_so():
    for result in functions([np.nan] * LANES)[1:]:
        assert np.all(np.isnan(result))


def test_arithmetic():
    random = np.random.default_rng(0)
    x, y, z = random.standard_normal((3, LANES), np.float32)
    results = [np.empty(LANES, np.float32) for _ in range(6)]
    sums, products, fused, splats, quotients, largest = results
    _arithmetic(x, y, z, *results)
    assert np.array_equal(sums, x + y)
    assert np.array_equal(products, x * y)
    assert np.array_equal(splats, np.full(LANES, x[1]))
    assert np.array_equal(quotients, x / y)
    assert np.array_equal(largest, np.maximum(x, y))
    exact = x.astype(np.float64) * y + z
    assert np.allclose(fused, exact, rtol=0, atol=1e-6)
    if simd.HAS_FMA:
        assert np.array_equal(fused, exact.astype(np.float32))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_load_and_store_touch_their_elements_only(offset):
    source, target = np.arange(100, dtype=np.float32), np.full(100, CANARY)
    _copy(source, 5, target, 7 + offset)
    expected = np.full(100, CANARY)
    expected[7 + offset : 8 + offset + LANES] = source[5 : 6 + LANES]
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("count", range(LANES + 1))
def test_first_lanes(count):
    source, target = np.arange(1, 100, dtype=np.float32), np.full(100, CANARY)
    _copy_first(source, 5, target, 3, LANES, count)
    expected = np.full(100, CANARY)
    expected[3 : 3 + count] = source[5 : 5 + count]
    assert np.array_equal(target, expected)

    _copy_first(source, 5, target, 40, count, LANES)  # zeros in the lanes that are not loaded
    expected[40 : 40 + LANES] = np.where(np.arange(LANES) < count, source[5 : 5 + LANES], 0)
    assert np.array_equal(target, expected)


def test_first_lanes_at_the_end_of_an_array():
    short, target = np.float32([1]), np.full(2, CANARY)
    _copy_first(short, 0, target, 0, 1, 1)
    assert target.tolist() == [1, CANARY]


def test_lane_sum():
    x = np.arange(1, 40, dtype=np.float32) ** 2
    assert _sum(x, 2) == x[2 : 2 + LANES].sum()


def test_width_follows_the_processor():
    assert simd._default_lanes({"sse2", "avx", "avx2", "avx512f"}) == 16
    assert simd._default_lanes({"sse2", "avx"}) == 8
    assert simd._default_lanes({"neon"}) == 4


def test_features_follow_numbas_settings(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", "+sse2,+avx,-avx512f")
    assert simd._target_features() == {"sse2", "avx"}
    monkeypatch.setattr(config, "CPU_FEATURES", "")
    assert simd._target_features() == set()


@pytest.mark.parametrize("lanes", ["5", "32"])
def test_a_width_that_does_not_exist_is_refused(monkeypatch, lanes):
    monkeypatch.setenv("MAMBAIR_SIMD_LANES", lanes)
    with pytest.raises(ValueError, match=f"must be 4, 8 or 16, not {lanes}"):
        runpy.run_path(simd.__file__)


def fill(out, value):
    for i in range(out.size):
        out[i] = value


@pytest.mark.parametrize(
    "error",
    [RuntimeError("cannot cache function 'fill': no locator available"), OSError("disk full")],
)
def test_kernels_compile_where_numba_cannot_cache(monkeypatch, caplog, error):
    njit, cached = simd.njit, []

    def without_folder(*args, cache=False, **kwargs):
        cached.append(cache)
        if cache:
            raise error
        return njit(*args, **kwargs)

    monkeypatch.setattr(simd, "njit", without_folder)
    caplog.set_level(logging.INFO)
    out = np.zeros(3, np.float32)
    simd.kernel("f4[::1],f4")(fill)()(out, 2)
    assert out.tolist() == [2, 2, 2]
    assert cached == [True, False]
    assert f"compiling anew in each process: {error}" in caplog.text


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_calls_and_their_errors_surface(threads, monkeypatch):
    monkeypatch.setattr(simd.torch, "get_num_threads", lambda: threads)
    done = []
    simd.run_in_threads(lambda a, b: done.append((a, b)), [(1, 2), (3, 4), (5, 6)])
    assert sorted(done) == [(1, 2), (3, 4), (5, 6)]
    with pytest.raises(ZeroDivisionError):
        simd.run_in_threads(lambda a: 1 // a, [(1,), (0,)])
