"""A temporal knowledge graph: facts with days, what is known before a day, and which facts have happened before.

A fact (s, r, o, t) says that subject s stands in relation r to object o on day t. Every relation r has an inverse
r + R, so that asking for the subject is asking for the object of the inverse. Shape letters: F facts, N entities, R
relations (2R with inverses), B queries.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SPLITS = ("train", "valid", "test")
Definition = Literal["train", "past"]


class GraphError(ValueError):
    """Facts that are not a temporal knowledge graph; the message says which row and what to do."""


class LeakError(GraphError):
    """A history that holds facts of the day to be predicted, or of later ones."""


@dataclass(frozen=True, eq=False)
class TemporalGraph:
    """Facts of three periods, in the order of their days.

    Args:
        entities, relations: names; their position is the id.
        train, valid, test: int64 [F, 4] with columns subject, relation, object, day.
        repeats: accept a fact that is there twice on a day; released test files have such a defect.

    Raises:
        GraphError: not four integer columns, an unknown id, a day before the one above it, periods that overlap, an
            empty period, or a fact that is there twice on a day.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    repeats: bool = False

    def __post_init__(self) -> None:
        last = None
        for name in SPLITS:
            facts = np.asarray(getattr(self, name))
            _check(facts, name, len(self.entities), len(self.relations), self.repeats)
            if last is not None and facts[0, 3] <= last:
                raise GraphError(
                    f"{name} begins on day {facts[0, 3]}, which is not after day {last}, the last of the period "
                    "before: a period's facts must not reach into another"
                )
            last = facts[-1, 3]
            facts = facts.astype(np.int64)
            facts.setflags(write=False)
            object.__setattr__(self, name, facts)

    @property
    def num_entities(self) -> int:
        """N."""
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """R, inverses not counted."""
        return len(self.relations)

    @functools.cached_property
    def facts(self) -> np.ndarray:
        """All facts, [F, 4] in the order of days."""
        return np.concatenate([self.train, self.valid, self.test])

    def split(self, name: str) -> np.ndarray:
        """Facts of a period.

        Raises:
            GraphError: a name other than train, valid, test.
        """
        if name not in SPLITS:
            raise GraphError(f"no period {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)

    def days(self, split: str | None = None) -> list[int]:
        """Days that have facts, of one period or of all."""
        return np.unique((self.facts if split is None else self.split(split))[:, 3]).tolist()

    def on(self, day: int) -> np.ndarray:
        """Facts of one day, [F, 4]; none is an empty array."""
        low, high = np.searchsorted(self.facts[:, 3], [day, day + 1])
        return self.facts[low:high]

    def before(self, day: int) -> np.ndarray:
        """Facts of all days < ``day``, [F, 4]: what may be known when that day is predicted."""
        return self.facts[: np.searchsorted(self.facts[:, 3], day)]

    def window(self, day: int, length: int) -> list[np.ndarray]:
        """Facts of the last ``length`` days before ``day`` that have any, oldest first; fewer at the beginning."""
        known = self.days()
        end = int(np.searchsorted(known, day))
        return [self.on(t) for t in known[max(0, end - length) : end]]

    def with_inverses(self, facts: np.ndarray) -> np.ndarray:
        """``facts`` followed by (o, r + R, s, t) of each, [2F, 4]."""
        turned = facts[:, [2, 1, 0, 3]] + [0, self.num_relations, 0, 0]
        return np.concatenate([facts, turned])

    def historical(self, split: str, definition: Definition = "train") -> np.ndarray:
        """Whether each fact of a period has happened before, as the same (s, r, o): bool [F].

        Args:
            definition: ``train``, the released rule: on an earlier day *of the training period* (in training itself:
                on an earlier day). ``past``: on any earlier day. Under ``train`` a fact of the test period that
                recurs within it counts as new.

        Raises:
            GraphError: unknown period or definition.
        """
        if definition not in ("train", "past"):
            raise GraphError(f"no definition {definition!r} of historical facts; there are train and past")
        facts, known = self.split(split), self.train if definition == "train" else self.facts
        # Rows are in the order of days, so the first occurrence of a triple is the earliest.
        triples, first = np.unique(self._key(known), return_index=True)
        place = np.searchsorted(triples, self._key(facts)).clip(max=len(triples) - 1)
        seen = triples[place] == self._key(facts)
        return seen & (known[first[place], 3] < facts[:, 3])

    def pair_seen(self, split: str) -> np.ndarray:
        """Whether (s, r) had any object on an earlier day: bool [F], the least a gate on (s, r) could know."""
        facts = self.split(split)
        pair = self.facts[:, 0] * self.num_relations + self.facts[:, 1]
        pairs, first = np.unique(pair, return_index=True)
        place = np.searchsorted(pairs, facts[:, 0] * self.num_relations + facts[:, 1])
        return self.facts[first[place], 3] < facts[:, 3]

    def renamed(self, order: Sequence[int]) -> TemporalGraph:
        """The same graph with entity i called ``order[i]``: no score or metric may depend on ids."""
        order = np.asarray(order)
        if sorted(order.tolist()) != list(range(self.num_entities)):
            raise GraphError(f"not a permutation of {self.num_entities} entities")
        names = [self.entities[i] for i in np.argsort(order)]
        moved = {}
        for name in SPLITS:
            facts = self.split(name).copy()
            facts[:, [0, 2]] = order[facts[:, [0, 2]]]
            moved[name] = facts
        return TemporalGraph(tuple(names), self.relations, **moved, repeats=self.repeats)

    def slice(self, first_day: int, entities: int) -> TemporalGraph:
        """A smaller graph: days from ``first_day`` on, the most frequent entities, facts with both ends among them.

        Args:
            entities: how many; counted over both ends of training facts of those days, ties to the smaller id.
        """
        kept = self.train[self.train[:, 3] >= first_day]
        count = np.bincount(kept[:, [0, 2]].ravel(), minlength=self.num_entities)
        chosen = np.sort(np.argsort(-count, kind="stable")[:entities])
        new = np.full(self.num_entities, -1)
        new[chosen] = np.arange(len(chosen))
        parts = {}
        for name in SPLITS:
            facts = self.split(name)
            facts = facts[facts[:, 3] >= first_day].copy()
            facts[:, [0, 2]] = new[facts[:, [0, 2]]]
            parts[name] = facts[(facts[:, [0, 2]] >= 0).all(axis=1)]
        return TemporalGraph(tuple(self.entities[i] for i in chosen), self.relations, **parts, repeats=self.repeats)

    def _key(self, facts: np.ndarray) -> np.ndarray:
        return (facts[:, 0] * self.num_relations + facts[:, 1]) * self.num_entities + facts[:, 2]


def check_history(history: Iterable[np.ndarray], day: int) -> None:
    """Refuse a history from which day ``day`` cannot honestly be predicted.

    Raises:
        LeakError: a fact of ``day`` or later is in it.
    """
    for facts in history:
        late = facts[facts[:, 3] >= day]
        if len(late):
            raise LeakError(
                f"the history of day {day} holds {len(late)} facts of day {late[0, 3]} or later, such as "
                f"{tuple(late[0].tolist())}; take TemporalGraph.window(day, length) or TemporalGraph.before(day)"
            )


def _check(facts: np.ndarray, name: str, entities: int, relations: int, repeats: bool) -> None:
    if facts.ndim != 2 or facts.shape[1] != 4 or not np.issubdtype(facts.dtype, np.integer):
        raise GraphError(
            f"{name}: facts are integers [F, 4] (subject, relation, object, day), got {facts.dtype} {facts.shape}"
        )
    if not len(facts):
        raise GraphError(f"{name} is empty: each of the periods {', '.join(SPLITS)} needs facts")
    for column, what, size in ((0, "subject", entities), (1, "relation", relations), (2, "object", entities)):
        wrong = np.flatnonzero((facts[:, column] < 0) | (facts[:, column] >= size))
        if len(wrong):
            row = wrong[0]
            raise GraphError(f"{name}, row {row}: {what} {facts[row, column]} is unknown; ids are 0 to {size - 1}")
    falls = np.flatnonzero(np.diff(facts[:, 3]) < 0)
    if len(falls):
        row = falls[0] + 1
        raise GraphError(
            f"{name}, row {row}: day {facts[row, 3]} comes after day {facts[row - 1, 3]}; sort the facts by day "
            "(facts[facts[:, 3].argsort(kind='stable')])"
        )
    order = np.lexsort(facts.T)
    same = np.flatnonzero((facts[order[1:]] == facts[order[:-1]]).all(axis=1))
    if len(same) and not repeats:
        raise GraphError(
            f"{name}, row {order[same[0] + 1]}: fact {tuple(facts[order[same[0]]].tolist())} is there twice; "
            "a fact counts once a day"
        )
