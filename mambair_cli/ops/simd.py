"""Vectors of float32 for numba kernels: explicit SIMD without a C compiler on the user's machine.

The intrinsics emit a few LLVM instructions each on vectors of `LANES` floats; only what the kernels
use is here. `kernel` compiles a function of them, `run_in_threads` runs it. `LANES` is 16 with
AVX-512, 8 with AVX, else 4 (SSE, NEON); the environment variable MAMBAIR_SIMD_LANES overrides it,
and LLVM splits or widens as the processor needs. Pointers are an array and an element index; they
need not be aligned.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

log = logging.getLogger(__name__)


def _target_features() -> set[str]:
    """Return the features that numba compiles for: the host's, unless NUMBA_CPU_FEATURES says otherwise."""
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

# 2^f = 1 + f q(f) on [-1/2, 1/2], q of degree 4 with minimax coefficients: exact at f = 0, so that
# slow decays stay slow; relative error of the whole at most 2e-7.
_nodes = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
_fit = np.polynomial.chebyshev.chebfit(_nodes, np.expm1(_nodes / 2 * np.log(2)) / (_nodes / 2), 4)
_EXP2 = [1.0, *(float(c) * 2**i for i, c in enumerate(np.polynomial.chebyshev.cheb2poly(_fit)))]
# log(1 + e) / e on [0, 1], minimax of degree 7: relative error 2e-7.
_fit = np.polynomial.chebyshev.chebfit(_nodes, np.log1p((_nodes + 1) / 2) / ((_nodes + 1) / 2), 7)
_LOG1P = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(_fit))(
    np.polynomial.Polynomial([-1, 2])
).coef.tolist()
# 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000


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
    """Return the larger number; x if it is NaN (one instruction on x86 in just this order of
    operands).
    """
    return b.select(b.fcmp_ordered(">", y, x), y, x)


def _polynomial(b: Any, c: list[float], x: Any) -> Any:
    """Compute c[0] + c[1] x + c[2] x^2 + ... by Horner's rule: the fewest operations."""
    total = _const(c[-1])
    for low in c[-2::-1]:
        total = _fma(b, total, x, _const(low))
    return total


def _polynomial_of_pairs(b: Any, c: list[float], x: Any) -> Any:
    """Compute the same with an even number of terms, as a polynomial of pairs in x^2.

    Half as many operations wait for each other, for one more multiplication.
    """
    pairs = [
        _fma(b, _const(high), x, _const(low)) for low, high in zip(c[::2], c[1::2], strict=True)
    ]
    square, total = b.fmul(x, x), pairs[-1]
    for pair in pairs[-2::-1]:
        total = _fma(b, total, square, pair)
    return total


def _scaled(b: Any, shifted: Any, f: Any) -> Any:
    """Multiply 2^f by the power of two whose exponent is in the low bits of `shifted`."""
    power = b.shl(b.bitcast(shifted, _IVEC), _const(23, _IVEC))
    return b.bitcast(b.add(b.bitcast(_polynomial(b, _EXP2, f), _IVEC), power), _VEC)


def _exp2(b: Any, x: Any) -> Any:
    """Compute 2^x for x <= 127; 2^-126 below -126."""
    x = _max(b, x, _const(-126.0))
    shifted = b.fadd(x, _const(_MAGIC))
    return _scaled(b, shifted, b.fsub(x, b.fsub(shifted, _const(_MAGIC))))


def _exp2_of_product(b: Any, x: Any, y: Any) -> Any:
    """Compute 2^(xy) for -2^22 <= xy <= 127; at most 2^-125 below -126.

    It takes two operations less than `_exp2` of the product.
    """
    shifted = _fma(b, x, y, _const(_MAGIC))
    whole = b.fsub(shifted, _const(_MAGIC))
    lowest = _const(_MAGIC_BITS - 126, _IVEC)
    bits = b.bitcast(shifted, _IVEC)
    bits = b.select(b.icmp_signed(">", bits, lowest), bits, lowest)
    return _scaled(b, bits, _fma(b, x, y, b.fneg(whole)))


def _exp_minus_abs(b: Any, x: Any) -> Any:
    """Compute exp(-|x|)."""
    absolute = _call(b, f"llvm.fabs.v{LANES}f32", _VEC, [x])
    limit = _const(126 / _LOG2E)
    absolute = b.select(b.fcmp_ordered("<", limit, absolute), limit, absolute)
    return _exp2_of_product(b, absolute, _const(-_LOG2E))


def _address(ctx: Any, b: Any, array_type: Any, array: Any, index: Any, kind: Any) -> Any:
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.bitcast(b.gep(data, [index]), kind.as_pointer())


def _first(b: Any, count: Any) -> Any:
    """Make a mask of the first `count` lanes."""
    return b.icmp_signed(
        "<", ir.Constant(_IVEC, list(range(LANES))), _splat(b, b.trunc(count, _I32), _IVEC)
    )


@intrinsic
def splat(typing_context, x):  # type: ignore[no-untyped-def]
    """Make a vector whose lanes are all x."""
    return vec(types.float32), lambda ctx, b, sig, args: _splat(b, args[0])


@intrinsic
def mul(typing_context, x, y):  # type: ignore[no-untyped-def]
    """Multiply lane by lane."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fmul(*args)


@intrinsic
def add(typing_context, x, y):  # type: ignore[no-untyped-def]
    """Add lane by lane."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fadd(*args)


@intrinsic
def div(typing_context, x, y):  # type: ignore[no-untyped-def]
    """Divide lane by lane."""
    return vec(vec, vec), lambda ctx, b, sig, args: b.fdiv(*args)


@intrinsic
def maximum(typing_context, x, y):  # type: ignore[no-untyped-def]
    """Return the larger of x and y in each lane; x where y is NaN."""
    return vec(vec, vec), lambda ctx, b, sig, args: _max(b, *args)


@intrinsic
def fma(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """Compute x * y + z lane by lane, rounded once where the processor can."""
    return vec(vec, vec, vec), lambda ctx, b, sig, args: _fma(b, *args)


@intrinsic
def exp2(typing_context, x):  # type: ignore[no-untyped-def]
    """Compute 2 to the power x, for x <= 127; 2^-126 below -126."""
    return vec(vec), lambda ctx, b, sig, args: _exp2(b, args[0])


@intrinsic
def exp2_of_product(typing_context, x, y):  # type: ignore[no-untyped-def]
    """Compute 2 to the power xy, for -2^22 <= xy <= 127; at most 2^-125 below -126."""
    return vec(vec, vec), lambda ctx, b, sig, args: _exp2_of_product(b, *args)


@intrinsic
def softplus(typing_context, x):  # type: ignore[no-untyped-def]
    """Compute log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        e = _exp_minus_abs(b, args[0])
        return _fma(b, e, _polynomial_of_pairs(b, _LOG1P, e), _max(b, args[0], _const(0.0)))

    return vec(vec), build


@intrinsic
def sigmoid(typing_context, x):  # type: ignore[no-untyped-def]
    """Compute 1 / (1 + exp(-x))."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        e = _exp_minus_abs(b, args[0])
        positive = b.fcmp_ordered(">", args[0], _const(0.0))
        return b.fdiv(b.select(positive, _const(1.0), e), b.fadd(e, _const(1.0)))

    return vec(vec), build


@intrinsic
def silu(typing_context, x):  # type: ignore[no-untyped-def]
    """Compute x / (1 + exp(-x)); about 0 below -87."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        lowest, highest = _const(-126 / _LOG2E), _const(126 / _LOG2E)
        bounded = b.select(b.fcmp_ordered("<", args[0], lowest), lowest, args[0])
        bounded = b.select(b.fcmp_ordered("<", highest, bounded), highest, bounded)
        e = _exp2_of_product(b, bounded, _const(-_LOG2E))
        return b.fdiv(args[0], b.fadd(e, _const(1.0)))

    return vec(vec), build


@intrinsic
def gelu(typing_context, x):  # type: ignore[no-untyped-def]
    """Multiply x by the normal distribution function of x, within 2e-7 of max(|x|, 1).

    As max(x, 0) - |x|/2 erfc(|x| / sqrt(2)), by formula 7.1.26 of Abramowitz and Stegun's handbook.
    """

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        absolute = _call(b, f"llvm.fabs.v{LANES}f32", _VEC, [args[0]])
        t = b.fdiv(_const(1.0), _fma(b, absolute, _const(0.3275911 * 0.5**0.5), _const(1.0)))
        halves = [
            c / 2 for c in (0.0, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
        ]
        bounded = b.select(b.fcmp_ordered("<", _const(13.0), absolute), _const(13.0), absolute)
        e = _exp2_of_product(b, bounded, b.fmul(bounded, _const(-_LOG2E / 2)))
        tail = b.fmul(b.fmul(_polynomial(b, halves, t), e), absolute)
        return b.fsub(_max(b, args[0], _const(0.0)), tail)

    return vec(vec), build


@intrinsic
def lane_sum(typing_context, x):  # type: ignore[no-untyped-def]
    """Sum the lanes."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        call = _call(b, name, _F32, [ir.Constant(_F32, -0.0), args[0]])
        call.fastmath.add("reassoc")
        return call

    return types.float32(vec), build


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Load LANES elements of array from index on."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        return b.load(_address(ctx, b, sig.args[0], args[0], args[1], _VEC), align=4)

    return vec(array, types.intp), build


@intrinsic
def store(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Write value to array from index on."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], _VEC), align=4)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, vec), build


@intrinsic
def load_first(typing_context, array, index, count):  # type: ignore[no-untyped-def]
    """Load the first `count` lanes of array from index on, and zeros in the others."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _VEC)
        parts = [pointer, ir.Constant(_I32, 4), _first(b, args[2]), _const(0.0)]
        return _call(b, f"llvm.masked.load.v{LANES}f32.p0", _VEC, parts)

    return vec(array, types.intp, types.intp), build


@intrinsic
def store_first(typing_context, array, index, value, count):  # type: ignore[no-untyped-def]
    """Write the first `count` lanes of value to array from index on."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _VEC)
        parts = [args[2], pointer, ir.Constant(_I32, 4), _first(b, args[3])]
        _call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), parts)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, vec, types.intp), build


@intrinsic
def scalar(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Read array[index] without wraparound of negative indices."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        return b.load(_address(ctx, b, sig.args[0], args[0], args[1], _F32))

    return types.float32(array, types.intp), build


@intrinsic
def put(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Set array[index] = value without wraparound of negative indices."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], _F32))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.float32), build


@intrinsic
def prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of array[index], which may lie outside the array."""

    def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _I8)
        # read, keep in all levels, data
        hints = [ir.Constant(_I32, v) for v in (0, 3, 1)]
        _call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])
        return ctx.get_dummy_value()

    return types.void(array, types.intp), build


# A block of a matrix product: so many pixels and, at most, vectors of results as the registers
# hold.
BLOCK_PIXELS = 8 if LANES == 16 or platform.machine().lower() in ("aarch64", "arm64") else 4
BLOCK_VECTORS = 3


def _block(vectors: int) -> Any:
    @intrinsic
    def block(typing_context, x, i, stride, depth, matrix, j, bias, k, out, o, pitch):  # type: ignore[no-untyped-def]
        def build(ctx, b, sig, args):  # type: ignore[no-untyped-def]
            def pointer(array, index):  # type: ignore[no-untyped-def]
                data = ctx.make_array(sig.args[array])(ctx, b, args[array]).data
                return b.gep(data, [args[index]])

            def vector(base, offset):  # type: ignore[no-untyped-def]
                return b.bitcast(b.gep(base, [offset]), _VEC.as_pointer())

            size = args[3].type
            number = partial(ir.Constant, size)
            source, factors, start, target = (
                pointer(0, 1),
                pointer(4, 5),
                pointer(6, 7),
                pointer(8, 9),
            )
            rows = [b.gep(source, [b.mul(args[2], number(p))]) for p in range(BLOCK_PIXELS)]
            initial = [b.load(vector(start, number(v * LANES)), align=4) for v in range(vectors)]
            before, loop, after = (
                b.block,
                b.append_basic_block("depth"),
                b.append_basic_block("stores"),
            )
            b.branch(loop)
            b.position_at_end(loop)
            n = b.phi(size)
            sums = [[b.phi(_VEC) for _ in range(vectors)] for _ in range(BLOCK_PIXELS)]
            first = b.mul(n, number(vectors * LANES))
            weights = [
                b.load(vector(factors, b.add(first, number(v * LANES))), align=4)
                for v in range(vectors)
            ]
            for row, totals in zip(rows, sums, strict=True):
                value = _splat(b, b.load(b.gep(row, [n])))
                for v, total in enumerate(totals):
                    total.add_incoming(initial[v], before)
                    total.add_incoming(_fma(b, value, weights[v], total), loop)
            following = b.add(n, number(1))
            n.add_incoming(number(0), before)
            n.add_incoming(following, loop)
            b.cbranch(b.icmp_signed("<", following, args[3]), loop, after)
            b.position_at_end(after)
            for p, totals in enumerate(sums):
                line = b.gep(target, [b.mul(args[10], number(p))])
                for v, total in enumerate(totals):
                    b.store(total.incomings[1][0], vector(line, number(v * LANES)), align=4)
            return ctx.get_dummy_value()

        i8 = types.intp
        return types.void(x, i8, i8, i8, matrix, i8, bias, i8, out, i8, i8), build

    return block


_block1, _block2, _block3 = _block(1), _block(2), _block(3)

# a function that kernels call
inline = njit(nogil=True, error_model="numpy")


@inline
def load_channels(array, index, count):  # type: ignore[no-untyped-def]
    """Do as `load_first`, without the mask if all lanes are wanted."""
    return load(array, index) if count == LANES else load_first(array, index, count)


@inline
def store_channels(array, index, value, count):  # type: ignore[no-untyped-def]
    """Do as `store_first`, without the mask if all lanes are wanted."""
    if count == LANES:
        store(array, index, value)
    else:
        store_first(array, index, value, count)


@inline
def multiply(x, stride, pixels, depth, matrix, bias, out, pitch, vectors):  # type: ignore[no-untyped-def]
    """Write x @ matrix + bias to out, for `pixels` pixels rounded up to BLOCK_PIXELS.

    x: `depth` values for each pixel, `stride` apart. matrix, bias: as `pack` makes them, of
        `vectors` vectors.
    out: as many vectors for each pixel, `pitch` apart.
    """
    for v in range(0, vectors, BLOCK_VECTORS):
        left, j = vectors - v, v * LANES
        for p in range(0, pixels, BLOCK_PIXELS):
            i, o = p * stride, p * pitch + j
            if left >= 3:
                _block3(x, i, stride, depth, matrix, j * depth, bias, j, out, o, pitch)
            elif left == 2:
                _block2(x, i, stride, depth, matrix, j * depth, bias, j, out, o, pitch)
            else:
                _block1(x, i, stride, depth, matrix, j * depth, bias, j, out, o, pitch)


def pack(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], ...]:
    """Lay a matrix (outputs, inputs) and its bias (None: zeros) out flat, as `multiply` reads them."""
    outputs, depth = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, depth), np.float32)
    padded[:outputs] = weight
    starts = np.zeros(len(padded), np.float32)
    if bias is not None:
        starts[:outputs] = bias
    width = BLOCK_VECTORS * LANES
    blocks = [padded[i : i + width].T.reshape(-1) for i in range(0, len(padded), width)]
    return np.concatenate(blocks), starts


def kernel(arguments: str) -> Callable[[Callable[..., None]], Callable[[], Any]]:
    """Turn a function of these argument types into one that compiles it on the first call and
    returns it.

    Cached on disk where numba finds a writable folder. numba's cache knows only the file a function
    is in: the name carries a digest of what else counts.
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
            # no folder for the cache, a full disk
            except (RuntimeError, OSError) as error:
                log.info("compiling anew in each process: %s", error)
                return njit(f"void({arguments})", nogil=True, error_model="numpy")(function)

        return compiled

    return decorate


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="simd")


def run_in_threads(work: Callable[..., None], calls: Sequence[tuple[int, ...]]) -> None:
    """Call work(*call) for all calls, on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1 or len(calls) == 1:
        for call in calls:
            work(*call)
    # keyed by process: threads do not survive a fork
    else:
        list(_pool(os.getpid(), threads).map(lambda call: work(*call), calls))
