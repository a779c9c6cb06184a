"""The recurrency baseline: count what has happened, and say it again (Gastinger et al., IJCAI 2024).

    ψ(o) = Σ 2^{λ(k-t)} over past days k with (s, r, o, k)  /  the same sum over all past facts (s, r, ·, k)
    ξ(o) = share of o among the past objects of r
    score = a ψ + (1 - a) ξ

Nothing is learnt. No claim about a trained model means anything without this row beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zfu_lib.prediction.tkg import TemporalGraph

# The released setting for ICEWS14.
DECAY, STRICT_SHARE = 0.02, 0.99999


class Recurrency:
    """Scores of the combined baseline.

    Args:
        decay: λ per day; 0 counts every day alike.
        strict_share: a; 1 is ψ alone, 0 is ξ alone.
        known_until: a day after which nothing joins the history (frozen history); None keeps it growing.

    Raises:
        ValueError: a negative decay or a share outside [0, 1].
    """

    def __init__(
        self,
        graph: TemporalGraph,
        *,
        decay: float = DECAY,
        strict_share: float = STRICT_SHARE,
        known_until: int | None = None,
    ) -> None:
        if decay < 0 or not 0 <= strict_share <= 1:
            raise ValueError(f"decay >= 0 and 0 <= strict_share <= 1, got {decay} and {strict_share}")
        self.graph, self.decay, self.strict_share, self.known_until = graph, decay, strict_share, known_until

    def parts(self, day: int, s_B: np.ndarray, r_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ψ and ξ of every entity from the facts before ``day``: float64 [B, N] each."""
        graph, n = self.graph, self.graph.num_entities
        end = day if self.known_until is None else min(day, self.known_until + 1)
        past = graph.with_inverses(graph.before(end))
        pair = past[:, 0] * 2 * graph.num_relations + past[:, 1]
        order = np.argsort(pair, kind="stable")
        pair, past = pair[order], past[order]
        asked = s_B * 2 * graph.num_relations + r_B
        low, high = np.searchsorted(pair, asked, "left"), np.searchsorted(pair, asked, "right")
        size = high - low
        # The rows of ``past`` that answer each query, one after the other.
        query = np.repeat(np.arange(len(asked)), size)
        row = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + np.repeat(low, size)
        weight = np.exp2(self.decay * (past[row, 3] - day))
        strict_BN = np.bincount(query * n + past[row, 2], weight, minlength=len(asked) * n).reshape(-1, n)
        total_B = np.bincount(query, weight, minlength=len(asked))
        strict_BN /= np.where(total_B, total_B, 1)[:, None]
        counts = np.bincount(past[:, 1] * n + past[:, 2], minlength=2 * graph.num_relations * n).reshape(-1, n)
        relaxed_BN = counts[r_B] / np.maximum(counts.sum(axis=1), 1)[r_B, None]
        return strict_BN, relaxed_BN

    def score(self, day: int, s_B: Tensor, r_B: Tensor) -> Tensor:
        """a ψ + (1 - a) ξ: float64 [B, N], on the device of the queries."""
        strict_BN, relaxed_BN = self.parts(day, s_B.cpu().numpy(), r_B.cpu().numpy())
        found = self.strict_share * strict_BN + (1 - self.strict_share) * relaxed_BN
        return torch.as_tensor(found, device=s_B.device)


def baselines(graph: TemporalGraph) -> dict[str, Recurrency]:
    """The rows that stand beside every model: frequency, ψ, ξ and their combination."""
    settings: Sequence[tuple[str, float, float]] = (
        ("frequency", 0.0, 1.0),
        ("recency-weighted ψ", DECAY, 1.0),
        ("relation frequency ξ", DECAY, 0.0),
        ("recurrency ψ and ξ", DECAY, STRICT_SHARE),
    )
    return {name: Recurrency(graph, decay=decay, strict_share=share) for name, decay, share in settings}
