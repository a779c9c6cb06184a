"""What the operators must at least cost: multiplications inside the window, bytes to and from memory, tiles visited.

Arithmetic, not measurement. FLOPs count pairs of positions that see each other, two per multiply-add; work on masked
parts of a tile does not count, so a rate in these units cannot be raised by computing zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Matrix products per pair. "backward" is what any method needs (S, dP, dQ, dK, dV); two kernels that share nothing
# compute S and dP twice, which makes 7.
PRODUCTS = {
    "sigmoid": {"forward": 2, "backward": 5},
    "softmax": {"forward": 2, "backward": 5},
    "elastic": {"forward": 4, "backward": 5},  # S for the sum, S again, w V, m V
}


class Shape(NamedTuple):
    """One call: B rows, H query heads that share Hkv key heads, T positions, D columns, numbers of so many bytes."""

    B: int
    H: int
    Hkv: int
    T: int
    D: int
    window: int | None = None
    itemsize: int = 2

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, in one head."""
        w = self.T if self.window is None else min(self.window, self.T)
        return w * (w + 1) // 2 + (self.T - w) * w

    def flops(self, operator: str, which: str) -> int:
        """FLOPs of ``which``: "forward" or "backward"."""
        return 2 * PRODUCTS[operator][which] * self.pairs * self.D * self.B * self.H

    def bytes(self, operator: str, which: str) -> int:
        """Every tensor read or written once: q, k, v, o, and backward the gradients, with what was saved."""
        queries, keys = (self.B * heads * self.T * self.D for heads in (self.H, self.Hkv))
        rows = 4 * self.B * self.H * self.T
        if which == "forward":
            moved = 2 * (queries + keys) * self.itemsize
            return moved + {"sigmoid": 0, "softmax": rows, "elastic": rows + 4 * queries}[operator]
        moved = (3 * queries + 4 * keys) * self.itemsize
        return (
            moved + {"sigmoid": 0, "softmax": rows + queries * self.itemsize, "elastic": rows + 4 * queries}[operator]
        )

    def seconds(self, operator: str, which: str, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: no less than the slower of multiplying and moving."""
        return max(self.flops(operator, which) / flops_per_second, self.bytes(operator, which) / bytes_per_second)


def tile_map(length: int, window: int | None, rows: int, columns: int) -> np.ndarray:
    """Tiles of ``rows`` queries by ``columns`` keys: 0 never visited, 1 visited with a mask, 2 without, all is seen."""
    window = length if window is None else window
    first_m, first_n = (np.arange(0, length, size) for size in (rows, columns))
    last_m, last_n = (np.minimum(first + size, length) - 1 for first, size in ((first_m, rows), (first_n, columns)))
    nearest = first_m[:, None] - last_n[None, :]
    farthest = last_m[:, None] - first_n[None, :]
    return ((farthest >= 0) & (nearest < window)).astype(int) + ((nearest >= 0) & (farthest < window))


def useful_share(length: int, window: int | None, rows: int, columns: int) -> float:
    """Pairs inside the window over pairs in visited tiles."""
    pairs = Shape(1, 1, 1, length, 1, window).pairs
    return pairs / (np.count_nonzero(tile_map(length, window, rows, columns)) * rows * columns)
