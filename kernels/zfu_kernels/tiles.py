"""What the Triton kernels share: which tiles a program visits, how it loads them, and how large they are.

Positions are cut into tiles of BM queries and BN keys. A program holds one tile of queries and walks over the tiles of
keys that any of its rows can see (for gradients of keys the other way round). Tiles outside are never touched, which is
exact: their weights are zeros. Of the tiles that it visits only those on an edge need a mask::

        key         lo      all_lo        all_hi    hi
    query r0        |  x x x x|x x x x x x x|.       |      x: seen; the window, or a document, begins at the left edge
           .        |  . x x x|x x x x x x x|x .     |
           .        |  . . x x|x x x x x x x|x x .   |      between all_lo and all_hi every row sees every key
    r0 + BM - 1     |  . . . x|x x x x x x x|x x x . |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

WIDEST = 256  # columns of the widest head
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Tiles by pass, for heads padded to at most so many columns: (BM, BN, warps, stages), the preferred shape first, then
# what takes less shared memory. Chosen for Hopper by what fits: operands of 16 bits, 227 KiB, 255 registers a thread.
# They are fixed, not autotuned, so that two runs on one machine give the same bits.
Shape = tuple[int, int, int, int]
SHAPES: dict[str, dict[int, tuple[Shape, ...]]] = {
    "forward": {
        64: ((128, 64, 4, 3), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((128, 64, 8, 3), (64, 64, 4, 2), (32, 32, 4, 1)),
        256: ((64, 64, 8, 2), (32, 32, 4, 2), (16, 16, 4, 1)),
    },
    "queries": {
        64: ((128, 64, 8, 3), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1)),
        256: ((64, 32, 8, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    },
    "keys": {
        64: ((64, 128, 8, 2), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((64, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 1)),
        256: ((32, 64, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
    },
    "elastic forward": {
        64: ((128, 64, 8, 3), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((128, 64, 8, 2), (64, 64, 4, 2), (32, 32, 4, 1)),
        256: ((64, 32, 8, 2), (32, 32, 4, 2), (16, 16, 4, 1)),
    },
    "elastic queries": {
        64: ((128, 64, 8, 3), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1)),
        256: ((64, 32, 8, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    },
    "elastic keys": {
        64: ((64, 128, 8, 2), (64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((64, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 1)),
        256: ((32, 64, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
    },
    "distances": {
        64: ((64, 64, 4, 2), (32, 32, 4, 1)),
        128: ((64, 64, 4, 2), (32, 32, 4, 1)),
        256: ((32, 32, 4, 2), (16, 16, 4, 1)),
    },
}
# Exact fp32 products run outside the tensor cores and take twice the memory.
SHAPES_FP32: tuple[Shape, ...] = ((32, 32, 4, 1), (16, 16, 4, 1))
# The interpreter has no limits but time; unequal sides show a transposed index.
SHAPES_INTERPRETED: dict[str, Shape] = {"queries": (16, 32, 4, 1), "keys": (32, 16, 4, 1), "distances": (16, 16, 4, 1)}
# Windows up to this many keys: tall tiles would mostly hold keys that no row sees.
NARROW = 256

_fits: dict[tuple, int] = {}
_override: dict[str, Shape] = {}


@triton.jit
def _probe():
    pass


INTERPRETED = not isinstance(_probe, triton.JITFunction)


def refuse(q: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot take ``q [B, H, T, D]``, or None if they can."""
    if q.dtype not in DTYPES:
        return f"the Triton kernels take fp32, fp16 and bf16, not {q.dtype}; use backend='reference'"
    if q.shape[-1] > WIDEST:
        return f"the Triton kernels take heads of up to {WIDEST} columns, not {q.shape[-1]}; use another backend"
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use fp32 or fp16 there, or a GPU"
    if not INTERPRETED and not q.is_cuda:
        return (
            f"the Triton kernels need a GPU, these tensors are on {q.device}; or set TRITON_INTERPRET=1 before Python "
            "starts, to run them slowly on a CPU"
        )
    return None


def shapes(which: str, q: torch.Tensor, window: int) -> tuple[Shape, ...]:
    """Tile shapes to try for one pass, best first."""
    if which in _override:
        return (_override[which],)
    if INTERPRETED:
        return (SHAPES_INTERPRETED.get(which.removeprefix("elastic "), (32, 16, 4, 1)),)
    if q.dtype == torch.float32:
        return SHAPES_FP32
    table = SHAPES[which]
    found = table[min(width for width in table if q.shape[-1] <= width)]
    return found[1:] if window <= NARROW and len(found) > 2 else found


@contextlib.contextmanager
def override(which: str, shape: Shape) -> Iterator[None]:
    """One pass with one tile shape: for tests and for tuning."""
    _override[which] = shape
    try:
        yield
    finally:
        del _override[which]


def launch(which: str, q: torch.Tensor, window: int, start: Callable[[int, int, dict[str, int]], object]) -> None:
    """Calls ``start(BM, BN, options)`` with the first shape that the GPU has room for, and remembers which that was."""
    tried = shapes(which, q, window)
    key = (which, q.dtype, q.shape[-1], window <= NARROW, q.device.index, tried)
    for i in range(_fits.get(key, 0), len(tried)):
        BM, BN, warps, stages = tried[i]
        try:
            start(BM, BN, {"num_warps": warps, "num_stages": stages})
        except OutOfResources:
            if i + 1 == len(tried):
                raise
            continue
        _fits[key] = i
        return


# Enough programs to fill the largest GPUs twice.
PROGRAMS = 264
# Slots that a decoding program reads at once, and how many such tiles are worth a program.
DECODE_TILE, DECODE_TILES = 64, 4


def decode_parts(heads: int, slots: int) -> tuple[int, int]:
    """Into how many parts the slots of a cache are cut when ``heads`` key heads are read, and the slots of a part."""
    tiles = triton.cdiv(slots, DECODE_TILE)
    parts = max(1, min(tiles // DECODE_TILES, triton.cdiv(PROGRAMS, heads)))
    part = triton.cdiv(tiles, parts) * DECODE_TILE
    return triton.cdiv(slots, part), part


def padded(width: int) -> int:
    """Columns of a tile for heads of this width: a power of two, at least what a matrix unit takes."""
    return max(16, triton.next_power_of_2(width))


def unit_columns(x: torch.Tensor) -> torch.Tensor:
    """``x``, copied only if its last dimension is strided; the kernels take any strides of the others."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def head(X, strides, b, h):
    """Where batch element b, head h of X ``[B, H, T, D]`` begins."""
    return X + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def load_rows(X, stride, first, T, D: tl.constexpr, R: tl.constexpr, BD: tl.constexpr):
    """Rows ``first ... first + R - 1`` of X ``[T, D]`` as a tile ``[R, BD]``, zeros outside."""
    # 64-bit arithmetic only on the scalar: a register per element is what limits the size of a tile.
    rows, d = tl.arange(0, R)[:, None], tl.arange(0, BD)[None, :]
    inside = rows < T - first
    if BD != D:
        inside = inside & (d < D)
    return tl.load(X + tl.cast(first, tl.int64) * stride + (rows * stride + d), mask=inside, other=0.0)


@triton.jit
def store_rows(X, stride, first, T, tile, D: tl.constexpr, R: tl.constexpr, BD: tl.constexpr):
    """The reverse of :func:`load_rows`; rounds to the dtype of X."""
    # 64-bit arithmetic only on the scalar: a register per element is what limits the size of a tile.
    rows, d = tl.arange(0, R)[:, None], tl.arange(0, BD)[None, :]
    inside = rows < T - first
    if BD != D:
        inside = inside & (d < D)
    tl.store(X + tl.cast(first, tl.int64) * stride + (rows * stride + d), tile.to(X.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b):
    """a @ b with fp32 sums; fp32 operands are not shortened to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def seen(m, n, Starts, T, window):
    """Whether query m sees key n; m and n broadcast to the result."""
    sees = (n <= m) & (m - n < window) & (m < T)
    if Starts is not None:
        sees = sees & (n >= tl.load(Starts + m, mask=m < T, other=0))
    return sees


@triton.jit
def keys_of(r0, T, Starts, window, BM: tl.constexpr, BN: tl.constexpr):
    """lo, hi, all_lo, all_hi of the picture above for queries ``r0 ... r0 + BM - 1``."""
    last = tl.minimum(r0 + BM, T) - 1
    lo, all_lo = tl.maximum(r0 - window + 1, 0), last - window + 1
    if Starts is not None:
        lo = tl.maximum(lo, tl.load(Starts + r0))
        all_lo = tl.maximum(all_lo, tl.load(Starts + last))
    return lo // BN * BN, last + 1, all_lo, r0 + 1


@triton.jit
def queries_of(c0, T, Ends, window, BM: tl.constexpr, BN: tl.constexpr):
    """The same for keys ``c0 ... c0 + BN - 1``: which queries see any of them, and which see all."""
    last = tl.minimum(c0 + BN, T) - 1
    hi, all_hi = tl.minimum(last + window, T), tl.minimum(c0 + window, T)
    if Ends is not None:
        hi = tl.minimum(hi, tl.load(Ends + last))
        all_hi = tl.minimum(all_hi, tl.load(Ends + c0))
    return c0 // BM * BM, hi, last, all_hi
