"""Recall streams: one value to remember among filler, asked for at a known distance.

    f f f K v f f f f f f f f Q        target: v
            |<--- distance --->|

What it idealises: real text asks for a fact many times, by its content, and in words that differ; here one item is
written once, filler carries no information at all, and the question names no key. What remains is the plain ability to
carry one symbol over a given number of tokens, with chance level exactly 1 / n_values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MARKER, QUERY = 0, 1
FIRST_FILLER = 2


def vocabulary(n_values: int, n_filler: int) -> int:
    """Tokens in use: marker 0, query 1, then ``n_filler`` filler symbols, then ``n_values`` values."""
    return FIRST_FILLER + n_filler + n_values


def needle_batch(
    rng: np.random.Generator,
    batch: int,
    length: int,
    distance: int | Sequence[int] | np.ndarray,
    *,
    n_values: int = 8,
    n_filler: int = 16,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch of recall sequences.

    Args:
        rng: the only source of randomness.
        batch: B sequences.
        length: T tokens each; the query is the last one, at T - 1.
        distance: query position minus value position, for all sequences or for each (shape [B]). 1 puts the value
            right before the query; the largest is T - 2, since the marker stands before the value.

    Returns:
        tokens int64 [B, T], targets int64 [B] (a token id, the value), distances int64 [B].

    Raises:
        ValueError: a distance that does not fit, or alphabets that are empty or do not fit into a byte.
    """
    distances = np.asarray(distance, dtype=np.int64)
    if distances.shape not in ((), (batch,)) or distances.min() < 1 or distances.max() > length - 2:
        raise ValueError(f"needs one distance or {batch}, all in 1..{length - 2} for {length} tokens, got {distance}")
    distances = np.broadcast_to(distances, batch).copy()
    if n_values < 2 or n_filler < 1 or vocabulary(n_values, n_filler) > 256:
        raise ValueError(f"n_values = {n_values}, n_filler = {n_filler}: needs >= 2, >= 1 and at most 254 in all")
    tokens = rng.integers(FIRST_FILLER, FIRST_FILLER + n_filler, (batch, length))
    targets = rng.integers(FIRST_FILLER + n_filler, vocabulary(n_values, n_filler), batch)
    rows, positions = np.arange(batch), length - 1 - distances
    tokens[rows, positions - 1] = MARKER
    tokens[rows, positions] = targets
    tokens[:, -1] = QUERY
    return tokens, targets, distances
