"""The same operator in O(T * window): only the band of keys that a query can see is ever computed.

Queries are cut into chunks of C rows. A chunk sees ``lead + C`` consecutive keys, ``lead`` being window - 1 rounded up
to keep rows aligned, and the position of a key relative to its query is the same in every chunk, so one tile
``[H, C, lead + C]`` holds distance term and mask (-inf) for all of them::

                lead               C
        |- - - - - - - - - - -|- - - - - -|
          . x x x x x x x x x   x . . .         the tile, C = 4, lead = 8 (here window = 10); x: s (m - n) + bias
          . . x x x x x x x x   x x . .         .: -inf, which sigmoid and softmax turn into an exact 0
          . . . x x x x x x x   x x x .
          . . . . x x x x x x   x x x x

Each step is three calls on many small matrices at once: ``baddbmm`` (tile + scaled scores, into a reused buffer), the
activation in place, ``bmm``. The buffer stays in the cache of one core. The backward pass recomputes the weights
and keeps q, k and v only: without a normaliser neither the output nor a row statistic is needed.

Letters: B batch, H heads, G = B * H, T positions, D head width, C chunk rows, K keys of a chunk, M matrices per step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

# Elements of the score buffer: 1 MiB in fp32, about the second-level cache of a server core.
BUFFER_ELEMENTS = 1 << 18

# Keys per tile are a multiple of this, so that every row of scores starts on a vector register's boundary.
ALIGN = 16


class Step(NamedTuple):
    """M score matrices with one shape, described by strides into a contiguous ``[G, T, D]`` tensor.

    Either M heads at one chunk (``stride = T * D``) or M consecutive chunks of one head (``stride = C * D``, whose key
    ranges overlap).
    """

    matrices: int
    stride: int
    first_row: int  # of the queries, in units of D from the start of the [G * T, D] tensor
    rows: int
    first_key: int
    keys: int
    tile_MCK: torch.Tensor
    head: int | None  # the head of every matrix; None where they run through all H heads, M / H times

    def queries(self, x_GTD: torch.Tensor) -> torch.Tensor:
        return self._matrices(x_GTD, self.first_row, self.rows)

    def window(self, x_GTD: torch.Tensor) -> torch.Tensor:
        return self._matrices(x_GTD, self.first_key, self.keys)

    def add_to_window(self, x_GTD: torch.Tensor, update_MKD: torch.Tensor) -> None:
        """x[window] += update, one slab of C keys at a time where the windows of consecutive chunks overlap."""
        size = min(self.keys, self.stride // x_GTD.shape[-1])
        for start in range(0, self.keys, size):
            slab = update_MKD[:, start : start + size]
            self._matrices(x_GTD, self.first_key + start, slab.shape[1]).add_(slab)

    def _matrices(self, x_GTD: torch.Tensor, first: int, rows: int) -> torch.Tensor:
        D = x_GTD.shape[-1]
        # as_strided counts from the start of the storage, of which x may be a part.
        offset = x_GTD.storage_offset() + first * D
        return x_GTD.as_strided((self.matrices, rows, D), (self.stride, D, 1), offset)


def chunk_rows(window: int, length: int, backward: bool = False) -> int:
    """Rows per chunk: few rows waste little of the tile (the share is C / (window + C)), many rows suit the matmul, of
    which the backward pass has five to the forward pass's two."""
    return min(64 if backward and window > 192 else 32 if window > 24 else 16, max(length, 1))


def _distance_tile(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """m - n for rows whose last key is the last query, ``[rows, keys]``."""
    return torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)


def _build_tile(slopes: torch.Tensor, bias: float, window: int, rows: int, keys: int, copies: int) -> torch.Tensor:
    distance_CK = _distance_tile(rows, keys, slopes.device)
    tile_HCK = slopes[:, None, None] * distance_CK + bias
    tile_HCK = tile_HCK.masked_fill((distance_CK < 0) | (distance_CK >= window), -math.inf)
    return tile_HCK.repeat(copies, 1, 1)


@functools.lru_cache(maxsize=16)
def _cached_tile(slopes: tuple[float, ...], dtype: torch.dtype, device: torch.device, *shape) -> torch.Tensor:
    return _build_tile(torch.tensor(slopes, dtype=dtype, device=device), *shape)


class _Plan:
    """How one call is cut into steps."""

    def __init__(
        self, q_GTD: torch.Tensor, slopes: torch.Tensor, window: int, bias: float, *, backward: bool, constant: bool
    ):
        self.G, self.T, _ = q_GTD.shape
        self.H = len(slopes)
        self.C = chunk_rows(window, self.T, backward)
        self.lead = -(-(window - 1) // ALIGN) * ALIGN
        keys = min(self.lead + self.C, -(-self.T // self.C) * self.C)
        per_head = self.C * keys
        copies = min(max(1, BUFFER_ELEMENTS // (self.H * per_head)), self.G // self.H)
        shape = (bias, window, self.C, keys, copies)
        if constant and self.H * per_head * copies <= 4 * BUFFER_ELEMENTS:
            self.tile = _cached_tile(tuple(slopes.tolist()), q_GTD.dtype, q_GTD.device, *shape)
        else:
            self.tile = _build_tile(slopes.to(q_GTD.dtype), *shape)
        self.heads_at_once = copies * self.H
        self.chunks_at_once = max(1, BUFFER_ELEMENTS // per_head)
        self.buffer_elements = max(self.heads_at_once, min(self.chunks_at_once, self.T // self.C)) * per_head

    def steps(self, D: int) -> Iterator[Step]:
        full_chunks, leading = self.T // self.C, -(-self.lead // self.C)
        inner = range(min(leading, full_chunks), full_chunks)
        # The fewer the Python steps the better: many chunks of one head each, or many heads of one chunk each.
        by_head = self.G * -(-len(inner) // self.chunks_at_once) < len(inner) * -(-self.G // self.heads_at_once)
        for chunk in range(-(-self.T // self.C)):
            if not (by_head and chunk in inner):
                yield from self._one_chunk(chunk, D)
        if by_head:
            for g in range(self.G):
                for first in range(inner.start, inner.stop, self.chunks_at_once):
                    yield self._one_head(g, first, min(first + self.chunks_at_once, inner.stop), D)

    def _one_chunk(self, chunk: int, D: int) -> Iterator[Step]:
        start, stop = chunk * self.C, min((chunk + 1) * self.C, self.T)
        first_key = max(0, start - self.lead)
        rows, keys = stop - start, stop - first_key
        # Columns of the tile count from its last key, the query's own position in the last row.
        left = self.tile.shape[-1] - self.C - (start - first_key)
        tile = self.tile[:, :rows, left : left + keys]
        for g in range(0, self.G, self.heads_at_once):
            M = min(self.heads_at_once, self.G - g)
            yield Step(M, self.T * D, g * self.T + start, rows, g * self.T + first_key, keys, tile[:M], None)

    def _one_head(self, g: int, first: int, stop: int, D: int) -> Step:
        row, h, M = g * self.T + first * self.C, g % self.H, stop - first
        tile = self.tile[h].expand(M, -1, -1)
        return Step(M, self.C * D, row, self.C, row - self.lead, self.lead + self.C, tile, h)


def _view(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _bmm_into(out_MND: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    # With a strided output torch falls back to one matmul call per matrix.
    if out_MND.is_contiguous():
        torch.bmm(a, b, out=out_MND)
    else:
        out_MND.copy_(torch.bmm(a, b))


def _weights(step: Step, buffer, q_GTD, k_GTD, softmax: bool) -> torch.Tensor:
    """A of Eq. 5 for one step, in the buffer."""
    A_MCK = _view(buffer, step.matrices, step.rows, step.keys)
    scale = 1.0 / math.sqrt(q_GTD.shape[-1])
    torch.baddbmm(step.tile_MCK, step.queries(q_GTD), step.window(k_GTD).transpose(1, 2), alpha=scale, out=A_MCK)
    return torch.softmax(A_MCK, dim=-1, out=A_MCK) if softmax else A_MCK.sigmoid_()


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_GTD, k_GTD, v_GTD, slopes, window: int, softmax: bool, bias: float):
        ctx.save_for_backward(q_GTD, k_GTD, v_GTD, slopes)
        ctx.options = window, softmax, bias
        ctx.train_slopes = slopes.requires_grad
        plan = _Plan(q_GTD, slopes, window, bias, backward=False, constant=not ctx.train_slopes)
        buffer = q_GTD.new_empty(plan.buffer_elements)
        o_GTD = torch.empty_like(q_GTD)
        for step in plan.steps(q_GTD.shape[-1]):
            _bmm_into(step.queries(o_GTD), _weights(step, buffer, q_GTD, k_GTD, softmax), step.window(v_GTD))
        return o_GTD

    @staticmethod
    @once_differentiable
    def backward(ctx, do_GTD):
        q_GTD, k_GTD, v_GTD, slopes = ctx.saved_tensors
        window, softmax, bias = ctx.options
        do_GTD = do_GTD.contiguous()
        D = q_GTD.shape[-1]
        plan = _Plan(q_GTD, slopes, window, bias, backward=True, constant=not ctx.train_slopes)
        buffer_A, buffer_Z = q_GTD.new_empty(2, plan.buffer_elements)
        dq_GTD, dk_GTD, dv_GTD = torch.empty_like(q_GTD), torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        d_slopes = torch.zeros_like(slopes) if ctx.train_slopes else None
        for step in plan.steps(D):
            q, k, v, do = step.queries(q_GTD), step.window(k_GTD), step.window(v_GTD), step.queries(do_GTD)
            A_MCK = _weights(step, buffer_A, q_GTD, k_GTD, softmax)
            step.add_to_window(dv_GTD, torch.bmm(A_MCK.transpose(1, 2), do))
            dZ_MCK = torch.bmm(do, v.transpose(1, 2), out=_view(buffer_Z, *A_MCK.shape))
            if softmax:
                torch.ops.aten._softmax_backward_data.out(dZ_MCK, A_MCK, -1, A_MCK.dtype, grad_input=dZ_MCK)
            else:
                torch.ops.aten.sigmoid_backward.grad_input(dZ_MCK, A_MCK, grad_input=dZ_MCK)
            _bmm_into(step.queries(dq_GTD), dZ_MCK, k)
            step.add_to_window(dk_GTD, torch.bmm(dZ_MCK.transpose(1, 2), q))
            if d_slopes is not None:
                # Outside the window A is 0, so dZ is too.
                distance_CK = _distance_tile(step.rows, step.keys, q.device).to(dZ_MCK.dtype)
                ds_M = dZ_MCK.flatten(1) @ distance_CK.flatten()
                if step.head is None:
                    d_slopes += ds_M.view(-1, plan.H).sum(0)
                else:
                    d_slopes[step.head] += ds_M.sum()
        scale = 1.0 / math.sqrt(D)
        return dq_GTD.mul_(scale), dk_GTD.mul_(scale), dv_GTD, d_slopes, None, None, None


def sliding_window_attention_banded(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    window: int | None,
    slopes: torch.Tensor | None = None,
    activation: str = "sigmoid",
    sigmoid_bias: float = 0.0,
) -> torch.Tensor:
    """o_m = sum over the window of A_mn v_n (Eq. 5); arguments as :func:`~.reference.attention_weights`.

    Half precision is computed in fp32 and rounded once, at the end. Gradients reach q, k, v and, if it requires one,
    slopes; there is no second derivative. A NaN or an infinite product taints every row of the tile that holds it,
    also rows that do not see that key: never fewer rows than the reference marks through its weights.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.
    """
    B, H, T, D = q_BHTD.shape
    window = T if window is None else min(window, T)
    dtype = q_BHTD.dtype if q_BHTD.dtype in (torch.float32, torch.float64) else torch.float32
    if slopes is None:
        slopes = q_BHTD.new_zeros(H, dtype=dtype)
    q_GTD, k_GTD, v_GTD = (x.to(dtype).reshape(B * H, T, D).contiguous() for x in (q_BHTD, k_BHTD, v_BHTD))
    o_GTD = _BandedAttention.apply(q_GTD, k_GTD, v_GTD, slopes, window, activation == "softmax", float(sigmoid_bias))
    return o_GTD.view(B, H, T, D).to(q_BHTD.dtype)
