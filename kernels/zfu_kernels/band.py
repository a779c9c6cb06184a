"""What every banded operator shares: the cutting of causal attention in a window into chunks of equal shape.

Queries are cut into chunks of C rows. A chunk sees ``lead + C`` consecutive keys, ``lead`` being window - 1 rounded up
to keep rows aligned, and the position of a key relative to its query is the same in every chunk, so one tile
``[H, C, lead + C]`` holds what depends on distance, and the mask (-inf), for all of them::

                lead               C
        |- - - - - - - - - - -|- - - - - -|
          . x x x x x x x x x   x . . .         the tile, C = 4, lead = 8 (here window = 10); x: what distance adds
          . . x x x x x x x x   x x . .         .: -inf, which sigmoid and softmax turn into an exact 0
          . . . x x x x x x x   x x x .
          . . . . x x x x x x   x x x x

Letters: B batch, H heads, G = B * H, T positions, D head width, C chunk rows, K keys of a chunk, M matrices per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

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
    left: int  # the column of the tile that the first key stands in
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


def distance_tile(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """m - n for rows whose last key is the last query, ``[rows, keys]``."""
    return torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)


class Plan:
    """How one call is cut into steps.

    ``tile(rows, keys, copies)`` makes ``[copies * H, rows, keys]``, see :func:`distance_tile` for its distances.
    """

    def __init__(
        self,
        x_GTD: torch.Tensor,
        heads: int,
        window: int,
        tile: Callable[[int, int, int], torch.Tensor],
        *,
        backward: bool = False,
    ):
        self.G, self.T, _ = x_GTD.shape
        self.H = heads
        self.C = chunk_rows(window, self.T, backward)
        self.lead = -(-(window - 1) // ALIGN) * ALIGN
        keys = min(self.lead + self.C, -(-self.T // self.C) * self.C)
        per_head = self.C * keys
        copies = min(max(1, BUFFER_ELEMENTS // (self.H * per_head)), self.G // self.H)
        self.tile = tile(self.C, keys, copies)
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
            yield Step(M, self.T * D, g * self.T + start, rows, g * self.T + first_key, keys, tile[:M], left, None)

    def _one_head(self, g: int, first: int, stop: int, D: int) -> Step:
        row, h, M = g * self.T + first * self.C, g % self.H, stop - first
        tile = self.tile[h].expand(M, -1, -1)
        return Step(M, self.C * D, row, self.C, row - self.lead, self.lead + self.C, tile, 0, h)


def view(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(shape)


def bmm_into(out_MND: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    # With a strided output torch falls back to one matmul call per matrix.
    if out_MND.is_contiguous():
        torch.bmm(a, b, out=out_MND)
    else:
        out_MND.copy_(torch.bmm(a, b))
