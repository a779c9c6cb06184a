"""Streams in which it is known, token by token, whether looking back is of any use.

    a c b T b d a ...      T is a trigger: what follows repeats the token before it
        ^   |
        +---+              every other token is drawn from a fixed chain, so its successor depends on it alone

After a trigger a model must look back one token; after anything else no earlier token is relevant. The best possible
loss is known in both cases: 0 after a trigger, the entropy of the chain's row elsewhere. After the "bigram-backcopy"
task of arXiv 2410.13835.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SYMBOLS, TRIGGERS = 32, 3
START = SYMBOLS
VOCABULARY = SYMBOLS + 1


class Streams(NamedTuple):
    """``tokens`` int64 [B, T]; ``looks_back`` bool [B, T], True where predicting the next token needs an earlier one;
    ``floor`` [B, T], nats that the best predictor of the next token loses."""

    tokens: np.ndarray
    looks_back: np.ndarray
    floor: np.ndarray


def chain(seed: int = 0) -> np.ndarray:
    """Transition probabilities [SYMBOLS, SYMBOLS]: sparse rows, the first ``TRIGGERS`` symbols being triggers."""
    return np.random.default_rng(seed).dirichlet(np.full(SYMBOLS, 0.1), SYMBOLS)


def trigger_batch(rng: np.random.Generator, batch: int, length: int, transitions: np.ndarray) -> Streams:
    """A batch of streams, each beginning with the token ``START``.

    Raises:
        ValueError: fewer than three tokens, or transitions of another shape.
    """
    if length < 3 or transitions.shape != (SYMBOLS, SYMBOLS):
        raise ValueError(f"needs length >= 3 and {SYMBOLS} x {SYMBOLS} transitions, got {length}, {transitions.shape}")
    upto = transitions.cumsum(axis=1)
    tokens = np.full((batch, length), START)
    tokens[:, 1] = rng.integers(TRIGGERS, SYMBOLS, batch)
    for t in range(2, length):
        drawn = (upto[tokens[:, t - 1]] < rng.random((batch, 1))).sum(axis=1).clip(max=SYMBOLS - 1)
        copies = (tokens[:, t - 1] < TRIGGERS) & (t >= 3)
        tokens[:, t] = np.where(copies, tokens[:, t - 2], drawn)
    looks_back = tokens < TRIGGERS
    entropy = -(transitions * np.log(np.maximum(transitions, 1e-300))).sum(axis=1)
    # The first symbol is uniform over those that are no triggers.
    floor = np.where(looks_back, 0.0, np.append(entropy, np.log(SYMBOLS - TRIGGERS))[tokens])
    return Streams(tokens, looks_back, floor)
