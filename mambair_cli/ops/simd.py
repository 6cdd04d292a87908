"""Vectors of float32 for numba kernels: explicit SIMD without a C compiler on the user's machine.

The intrinsics emit a few LLVM instructions each on vectors of `LANES` floats; only what the kernels use
is here. `kernel` compiles a function of them, `run_in_threads` runs it. `LANES` is 16 with AVX-512, 8
with AVX, else 4 (SSE, NEON); the environment variable MAMBAIR_SIMD_LANES overrides it, and LLVM splits or
widens as the processor needs. Pointers are an array and an element index; they need not be aligned.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

log = logging.getLogger(__name__)


def _target_features() -> set[str]:
    """The features numba compiles for: the host's, unless NUMBA_CPU_FEATURES says otherwise."""
    wanted = vars(config)["CPU_FEATURES"]
    if wanted is not None:
        return {f[1:] for f in wanted.split(",") if f.startswith("+")}
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


def _default_lanes(features: set[str]) -> int:
    if "avx512f" in features:
        return 16
    return 8 if "avx" in features else 4


FEATURES = _target_features()
LANES = int(os.environ.get("MAMBAIR_SIMD_LANES", _default_lanes(FEATURES)))
if LANES not in (4, 8, 16):
    raise ValueError(f"MAMBAIR_SIMD_LANES must be 4, 8 or 16, not {LANES}")
# Without the instruction LLVM would call libm's fmaf once per lane.
HAS_FMA = "fma" in FEATURES or platform.machine().lower() in ("aarch64", "arm64")

_F32, _I32, _I8 = ir.FloatType(), ir.IntType(32), ir.IntType(8)
_VEC, _IVEC = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_LOG2E = 1.4426950408889634

# 2^f = 1 + f q(f) on [-1/2, 1/2], q of degree 4 with minimax coefficients: exact at f = 0, so that slow
# decays stay slow; relative error of the whole at most 2e-7.
_nodes = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
_fit = np.polynomial.chebyshev.chebfit(_nodes, np.expm1(_nodes / 2 * np.log(2)) / (_nodes / 2), 4)
_EXP2 = [1.0, *(float(c) * 2**i for i, c in enumerate(np.polynomial.chebyshev.cheb2poly(_fit)))]
# log(1 + e) / e on [0, 1], minimax of degree 7: relative error 2e-7.
_fit = np.polynomial.chebyshev.chebfit(_nodes, np.log1p((_nodes + 1) / 2) / ((_nodes + 1) / 2), 7)
_LOG1P = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(_fit))(
    np.polynomial.Polynomial([-1, 2])
).coef.tolist()
_MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits


class VecType(types.Type):
    """A vector of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vec = VecType()


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VEC)


def _const(value: float | int, kind: Any = _VEC) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _call(b: Any, name: str, result: Any, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _splat(b: Any, x: Any, kind: Any = _VEC) -> Any:
    lane0 = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
    return b.shuffle_vector(lane0, ir.Constant(kind, ir.Undefined), _const(0, _IVEC))


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    if HAS_FMA:
        return _call(b, f"llvm.fma.v{LANES}f32", _VEC, [x, y, z])
    return b.fadd(b.fmul(x, y), z)


def _max(b: Any, x: Any, y: Any) -> Any:
    """The larger one; x where it is not a number (one instruction on x86 in just this order of operands)."""
    return b.select(b.fcmp_ordered(">", y, x), y, x)


def _polynomial(b: Any, c: list[float], x: Any) -> Any:
    """c[0] + c[1] x + c[2] x^2 + ... (an even number of terms), as a polynomial of pairs in x^2: half the
    chain of dependent operations of Horner's rule for one more multiplication.
    """
    pairs = [
        _fma(b, _const(high), x, _const(low)) for low, high in zip(c[::2], c[1::2], strict=True)
    ]
    square, total = b.fmul(x, x), pairs[-1]
    for pair in pairs[-2::-1]:
        total = _fma(b, total, square, pair)
    return total


def _exp2(b: Any, x: Any) -> Any:
    """2^x for x <= 127, 2^-126 below -126."""
    x = _max(b, x, _const(-126.0))
    shifted = b.fadd(x, _const(_MAGIC))
    f = b.fsub(x, b.fsub(shifted, _const(_MAGIC)))
    power = b.shl(b.bitcast(shifted, _IVEC), _const(23, _IVEC))
    return b.bitcast(b.add(b.bitcast(_polynomial(b, _EXP2, f), _IVEC), power), _VEC)


def _exp_minus_abs(b: Any, x: Any) -> Any:
    """exp(-|x|)."""
    absolute = _max(b, x, b.fsub(_const(0.0), x))
    return _exp2(b, b.fmul(absolute, _const(-_LOG2E)))


def _address(ctx: Any, b: Any, array_type: Any, array: Any, index: Any, kind: Any) -> Any:
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.bitcast(b.gep(data, [index]), kind.as_pointer())


def _first(b: Any, count: Any) -> Any:
    """Mask of the first `count` lanes."""
    return b.icmp_signed(
        "<", ir.Constant(_IVEC, list(range(LANES))), _splat(b, b.trunc(count, _I32), _IVEC)
    )


@intrinsic
def splat(typing_context, x):  # type: ignore[no-untyped-def]
    """All lanes x."""
    return vec(types.float32), lambda ctx, b, sig, args: _splat(b, args[0])


@intrinsic
def mul(typing_context, x, y):  # type: ignore[no-untyped-def]
    """X * y."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fmul(*args)


@intrinsic
def add(typing_context, x, y):  # type: ignore[no-untyped-def]
    """X + y."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fadd(*args)


@intrinsic
def div(typing_context, x, y):  # type: ignore[no-untyped-def]
    """x / y."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fdiv(*args)


@intrinsic
def maximum(typing_context, x, y):  # type: ignore[no-untyped-def]
    """The larger one; x where y is not a number."""
    return vec(vec, vec), lambda ctx, b, sig, args: _max(b, *args)


@intrinsic
def fma(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """X * y + z."""
    return vec(vec, vec, vec), lambda ctx, b, sig, args: _fma(b, *args)


@intrinsic
def exp2(typing_context, x):  # type: ignore[no-untyped-def]
    """2 to the power x, for x <= 127; 2^-126 below -126."""
    return vec(vec), lambda ctx, b, sig, args: _exp2(b, args[0])


@intrinsic
def softplus(typing_context, x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        e = _exp_minus_abs(b, args[0])
        return _fma(b, e, _polynomial(b, _LOG1P, e), _max(b, args[0], _const(0.0)))

    return vec(vec), build


@intrinsic
def sigmoid(typing_context, x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x))."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        e = _exp_minus_abs(b, args[0])
        positive = b.fcmp_ordered(">", args[0], _const(0.0))
        return b.fdiv(b.select(positive, _const(1.0), e), b.fadd(e, _const(1.0)))

    return vec(vec), build


@intrinsic
def lane_sum(typing_context, x):  # type: ignore[no-untyped-def]
    """Sum of the lanes."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        call = _call(b, name, _F32, [ir.Constant(_F32, -0.0), args[0]])
        call.fastmath.add("reassoc")
        return call

    return types.float32(vec), build


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """LANES elements of array from index."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        return b.load(_address(ctx, b, sig.args[0], args[0], args[1], _VEC), align=4)

    return vec(array, types.intp), build


@intrinsic
def store(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Write value to array from index."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], _VEC), align=4)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, vec), build


@intrinsic
def load_first(typing_context, array, index, count):  # type: ignore[no-untyped-def]
    """The first `count` lanes of array from index, zeros in the others."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _VEC)
        parts = [pointer, ir.Constant(_I32, 4), _first(b, args[2]), _const(0.0)]
        return _call(b, f"llvm.masked.load.v{LANES}f32.p0", _VEC, parts)

    return vec(array, types.intp, types.intp), build


@intrinsic
def store_first(typing_context, array, index, value, count):  # type: ignore[no-untyped-def]
    """Write the first `count` lanes of value to array from index."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _VEC)
        parts = [args[2], pointer, ir.Constant(_I32, 4), _first(b, args[3])]
        _call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), parts)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, vec, types.intp), build


@intrinsic
def scalar(typing_context, array, index):  # type: ignore[no-untyped-def]
    """array[index] without wraparound of negative indices."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        return b.load(_address(ctx, b, sig.args[0], args[0], args[1], _F32))

    return types.float32(array, types.intp), build


@intrinsic
def put(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """array[index] = value without wraparound of negative indices."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], _F32))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.float32), build


@intrinsic
def prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of array[index], which may lie outside the array."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _I8)
        hints = [ir.Constant(_I32, v) for v in (0, 3, 1)]  # read, keep in all levels, data
        _call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])
        return ctx.get_dummy_value()

    return types.void(array, types.intp), build


inline = njit(nogil=True, error_model="numpy")  # a function that kernels call


@inline
def load_channels(array, index, count):  # type: ignore[no-untyped-def]
    """`load_first`, without the mask where all lanes are wanted."""
    return load(array, index) if count == LANES else load_first(array, index, count)


@inline
def store_channels(array, index, value, count):  # type: ignore[no-untyped-def]
    """`store_first`, without the mask where all lanes are wanted."""
    if count == LANES:
        store(array, index, value)
    else:
        store_first(array, index, value, count)


def kernel(arguments: str) -> Callable[[Callable[..., None]], Callable[[], Any]]:
    """Turn a function of these argument types into one that compiles it on the first call and returns it.

    Cached on disk where numba finds a writable folder. numba's cache knows only the file a function is in:
    the name carries a digest of what else counts.
    """

    def decorate(function: Callable[..., None]) -> Callable[[], Any]:
        source = Path(__file__).read_bytes() + f"{LANES}{HAS_FMA}".encode()
        function.__qualname__ += "_" + hashlib.sha256(source).hexdigest()[:12]

        @cache
        def compiled() -> Any:
            try:
                return njit(f"void({arguments})", nogil=True, error_model="numpy", cache=True)(
                    function
                )
            except (RuntimeError, OSError) as error:  # no folder for the cache, a full disk
                log.info("compiling anew in each process: %s", error)
                return njit(f"void({arguments})", nogil=True, error_model="numpy")(function)

        return compiled

    return decorate


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="simd")


def run_in_threads(work: Callable[..., None], calls: Sequence[tuple[int, ...]]) -> None:
    """work(*call) for all calls, on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1 or len(calls) == 1:
        for call in calls:
            work(*call)
    else:  # keyed by process: threads do not survive a fork
        list(_pool(os.getpid(), threads).map(lambda call: work(*call), calls))
