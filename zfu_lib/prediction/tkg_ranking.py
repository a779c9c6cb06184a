"""Ranking the entities of a query, and the protocols under which mean reciprocal ranks are reported.

For a query (s, r, ?, t) with answer o and scores y over all N entities, the rank is

    1 + #{o' : y_o' > y_o} + ½ #{o' ≠ o : y_o' = y_o},

the mean over all orders of the ties. *Time-filtered*: other objects o' with (s, r, o') true on the same day t are left
out; what is true on other days stays. Counting replaces sorting, and a block of queries never needs more memory than
the budget says. Shape letters: B queries, N entities, F facts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from zfu_lib.prediction.tkg import TemporalGraph

Ties = Literal["mean", "optimistic", "pessimistic", "sorted"]
TIES = ("mean", "optimistic", "pessimistic", "sorted")
BUDGET_BYTES = 64 << 20
# A score in double precision and a comparison in single.
BYTES_PER_SCORE = 12
# Scores compared at once on a CPU, so that the comparison is summed from its cache.
COMPARED = 1 << 18


class RankingError(ValueError):
    """Scores or queries that cannot be ranked."""


class Scorer(Protocol):
    """What is evaluated: scores of every entity for queries of one day, from what happened before it."""

    def score(self, day: int, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N] of the objects of (s, r, ?, day); ``r_B`` may be inverse relations."""
        ...


def also_true(subject_B: np.ndarray, relation_B: np.ndarray, answer_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Other answers of the same question among the queries of a day.

    Returns:
        rows, entities: int64 [P] each; entity ``entities[p]`` is another true answer of query ``rows[p]``.
    """
    pair = subject_B * (relation_B.max(initial=0) + 1) + relation_B
    order = np.argsort(pair, kind="stable")
    _, start, size = np.unique(pair[order], return_index=True, return_counts=True)
    many = np.flatnonzero(size > 1)
    rows, others = [], []
    for begin, n in zip(start[many], size[many]):
        group = order[begin : begin + n]
        rows.append(np.repeat(group, n))
        others.append(np.tile(answer_B[group], n))
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows, others = np.concatenate(rows), np.concatenate(others)
    keep = others != answer_B[rows]
    pairs = np.unique(np.stack([rows[keep], others[keep]]), axis=1)
    return pairs[0], pairs[1]


def ranks(
    scores_BN: Tensor, answer_B: Tensor, true_rows: Tensor, true_entities: Tensor, ties: Ties = "mean"
) -> tuple[Tensor, Tensor]:
    """Raw and filtered ranks by counting.

    Args:
        scores_BN: any float type; higher is better.
        answer_B: the entity whose rank is asked for.
        true_rows, true_entities: int64 [P]; entities to leave out of a row (:func:`also_true`), without repetition
            and never the answer itself.
        ties: ``mean``; ``optimistic`` and ``pessimistic`` put the answer first or last among equals; ``sorted`` takes
            whatever place a sort gives it, as released code does.

    Returns:
        raw, filtered: float64 [B], 1 is best.

    Raises:
        RankingError: scores that are not a number, shapes that do not fit, or an unknown way with ties.
    """
    if ties not in TIES:
        raise RankingError(f"ties {ties!r}; there are {', '.join(TIES)}")
    if scores_BN.ndim != 2 or answer_B.shape != scores_BN.shape[:1]:
        raise RankingError(f"scores [B, N] and answers [B], got {tuple(scores_BN.shape)} and {tuple(answer_B.shape)}")
    if torch.isnan(scores_BN.sum()) and torch.isnan(scores_BN).any():
        raise RankingError("a score is not a number: every comparison with it is false and the answer would rank first")
    own_B1 = scores_BN.gather(1, answer_B[:, None])
    others_P, limit_P = scores_BN[true_rows, true_entities], own_B1[true_rows, 0]
    zero_B = torch.zeros(len(answer_B), dtype=torch.long, device=scores_BN.device)

    def filtered_out(better_P: Tensor) -> Tensor:
        return zero_B.index_add(0, true_rows, better_P.long())

    if ties == "sorted":
        order_BN = scores_BN.argsort(dim=1, descending=True)
        raw_B = (order_BN == answer_B[:, None]).long().argmax(1)
        scores_BN = scores_BN.index_put((true_rows, true_entities), scores_BN.new_tensor(-torch.inf))
        order_BN = scores_BN.argsort(dim=1, descending=True)
        return raw_B.double() + 1, (order_BN == answer_B[:, None]).long().argmax(1).double() + 1
    above_B, equal_B = _count(torch.gt, scores_BN, own_B1), _count(torch.eq, scores_BN, own_B1) - 1
    weight = {"mean": 0.5, "optimistic": 0.0, "pessimistic": 1.0}[ties]
    raw_B = 1 + above_B + weight * equal_B
    fewer_B = filtered_out(others_P > limit_P) + weight * filtered_out(others_P == limit_P).double()
    return raw_B, raw_B - fewer_B


def _count(compare: Callable[..., Tensor], scores_BN: Tensor, own_B1: Tensor) -> Tensor:
    """How many scores of a row compare so with the row's own: float64 [B]. Ones are added in float32, exact for fewer
    than 2^24 entities and several times faster than adding booleans."""
    rows = max(1, len(scores_BN) if scores_BN.is_cuda else COMPARED // scores_BN.shape[1])
    ones = torch.empty(rows, scores_BN.shape[1], device=scores_BN.device)
    pieces = zip(scores_BN.split(rows), own_B1.split(rows))
    return torch.cat([compare(y, own, out=ones[: len(y)]).sum(1) for y, own in pieces]).double()


def ranks_in_blocks(
    score: Callable[[slice], Tensor],
    answer_B: Tensor,
    num_entities: int,
    true_rows: np.ndarray,
    true_entities: np.ndarray,
    *,
    ties: Ties = "mean",
    budget_bytes: int = BUDGET_BYTES,
) -> tuple[Tensor, Tensor]:
    """:func:`ranks` of any number of queries, some rows at a time.

    Args:
        score: scores [b, N] of a slice of the queries.
        budget_bytes: what scores and comparisons may take together, at 12 bytes for each score; one row is always
            computed.

    Raises:
        RankingError: as :func:`ranks`.
    """
    rows = max(1, budget_bytes // (BYTES_PER_SCORE * num_entities))
    order = np.argsort(true_rows, kind="stable")
    true_rows, true_entities = true_rows[order], true_entities[order]
    raw, filtered = [], []
    for start in range(0, len(answer_B), rows):
        block = slice(start, min(start + rows, len(answer_B)))
        low, high = np.searchsorted(true_rows, [block.start, block.stop])
        which = torch.as_tensor(true_rows[low:high] - block.start, device=answer_B.device)
        left_out = torch.as_tensor(true_entities[low:high], device=answer_B.device)
        found = ranks(score(block), answer_B[block], which, left_out, ties)
        raw.append(found[0])
        filtered.append(found[1])
    return torch.cat(raw), torch.cat(filtered)


class Metrics(NamedTuple):
    """Mean reciprocal rank and share of ranks <= k, in percent, over ``n`` ranks."""

    mrr: float
    hits1: float
    hits3: float
    hits10: float
    n: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks of every fact of a period: float64 [F, 2], columns object asked and subject asked.

    ``raw`` and ``filtered`` are without and with the time filter; ``ties`` how equals were placed.
    """

    facts: np.ndarray
    raw: np.ndarray
    filtered: np.ndarray
    ties: Ties = "mean"

    def of(self, *, directions: str = "both", filtered: bool = True, facts: np.ndarray | None = None) -> np.ndarray:
        """Ranks under a protocol, flat: both directions (the headline) or ``object`` alone, of a bool mask of facts.

        Raises:
            RankingError: another direction, or a mask of another length.
        """
        if directions not in ("both", "object"):
            raise RankingError(f"directions {directions!r}; there are both and object")
        if facts is not None and np.shape(facts) != (len(self.facts),):
            raise RankingError(f"a mask of {len(self.facts)} facts is needed, got {np.shape(facts)}")
        found = self.filtered if filtered else self.raw
        found = found if facts is None else found[np.asarray(facts, dtype=bool)]
        return found.ravel() if directions == "both" else found[:, 0]

    def metrics(self, **protocol: object) -> Metrics:
        """Metrics under a protocol (the arguments of :meth:`of`).

        Raises:
            RankingError: no rank is left, or as :meth:`of`.
        """
        return summary(self.of(**protocol))

    def protocol(self, *, directions: str = "both", filtered: bool = True) -> str:
        """What a table must say of these ranks; anything but mean ties is named as not comparable."""
        words = [
            "two directions" if directions == "both" else "object only",
            "time-filtered" if filtered else "raw",
            f"{self.ties} ties" + ("" if self.ties == "mean" else " (NOT COMPARABLE)"),
        ]
        return ", ".join(words)


def summary(found: np.ndarray) -> Metrics:
    """Metrics of ranks.

    Raises:
        RankingError: no ranks.
    """
    if not len(found):
        raise RankingError("no ranks to average: the subset is empty")
    hits = [100 * float(np.mean(found <= k)) for k in (1, 3, 10)]
    return Metrics(100 * float(np.mean(1 / found)), *hits, len(found))


def evaluate(
    graph: TemporalGraph,
    scorer: Scorer,
    split: str = "test",
    *,
    ties: Ties = "mean",
    budget_bytes: int = BUDGET_BYTES,
    device: str | torch.device = "cpu",
) -> Ranking:
    """Ranks of all facts of a period, day by day, both directions.

    The filter is made from the day's own facts: days do not cross periods.

    Args:
        scorer: sees the queries of one day at a time; what it may know of that day is its own business, and
            :func:`zfu_lib.prediction.tkg.check_history` is there to help.

    Raises:
        RankingError: as :func:`ranks`.
    """
    facts, raw, filtered = graph.split(split), [], []
    for day in graph.days(split):
        queries = graph.with_inverses(graph.on(day))
        subject, relation, answer = (torch.as_tensor(queries[:, i], device=device) for i in range(3))
        rows, entities = also_true(queries[:, 0], queries[:, 1], queries[:, 2])

        def score(block: slice, day: int = day, s: Tensor = subject, r: Tensor = relation) -> Tensor:
            return scorer.score(day, s[block], r[block])

        found = ranks_in_blocks(score, answer, graph.num_entities, rows, entities, ties=ties, budget_bytes=budget_bytes)
        for place, rank_B in zip((raw, filtered), found):
            place.append(rank_B.cpu().numpy().reshape(2, -1).T)
    return Ranking(facts, np.concatenate(raw), np.concatenate(filtered), ties)
