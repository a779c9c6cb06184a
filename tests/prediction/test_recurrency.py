"""The counting baseline equals its formula, never reads the day it predicts, and reaches the published number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from zfu_lib.prediction.recurrency import Recurrency, baselines
from zfu_lib.prediction.tkg import TemporalGraph
from zfu_lib.prediction.tkg_ranking import evaluate

from .tkg_graphs import graphs, random_graph


@pytest.fixture(scope="module")
def graph():
    return random_graph(0)


def by_hand(graph, s, r, day, decay):
    """ψ and ξ by the formula, one entity at a time."""
    past = [f for f in graph.with_inverses(graph.facts).tolist() if f[3] < day]
    mine = [f for f in past if f[:2] == [s, r]]
    total = sum(2 ** (decay * (f[3] - day)) for f in mine)
    of_relation = [f for f in past if f[1] == r]
    strict = [sum(2 ** (decay * (f[3] - day)) for f in mine if f[2] == o) for o in range(graph.num_entities)]
    relaxed = [sum(f[2] == o for f in of_relation) / max(len(of_relation), 1) for o in range(graph.num_entities)]
    return [x / total if total else 0.0 for x in strict], relaxed


@settings(max_examples=15, deadline=None)
@given(graphs())
def test_scores_equal_the_formula(graph):
    day = graph.days("test")[-1]
    queries = graph.with_inverses(graph.on(day))
    strict, relaxed = Recurrency(graph, decay=0.3).parts(day, queries[:, 0], queries[:, 1])
    for i, (s, r, _, _) in enumerate(queries.tolist()):
        expected = by_hand(graph, s, r, day, 0.3)
        assert strict[i] == pytest.approx(expected[0])
        assert relaxed[i] == pytest.approx(expected[1])


def test_the_future_does_not_matter(graph):
    """Bit for bit: shuffling the facts of a day, or deleting it and what follows, changes no score of that day."""
    days = graph.days("test")
    day, rng = days[0], np.random.default_rng(0)
    queries = torch.as_tensor(graph.with_inverses(graph.on(day)))
    shuffled = graph.test.copy()
    for t in days:
        rows = np.flatnonzero(shuffled[:, 3] == t)
        shuffled[rows] = shuffled[rng.permutation(rows)]
    other = graph.test[graph.test[:, 3] > day].copy()
    worlds = [graph] + [
        TemporalGraph(graph.entities, graph.relations, graph.train, graph.valid, test) for test in (shuffled, other)
    ]
    found = [Recurrency(g).score(day, queries[:, 0], queries[:, 1]) for g in worlds]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_frozen_history_forgets_the_test_days(graph):
    first, last = graph.days("test")[0], graph.days("test")[-1]
    queries = torch.as_tensor(graph.with_inverses(graph.on(last)))
    frozen = Recurrency(graph, known_until=first - 1, decay=0)
    growing = Recurrency(graph, decay=0)
    early = Recurrency(graph, decay=0).score(first, queries[:, 0], queries[:, 1])
    assert torch.equal(frozen.score(last, queries[:, 0], queries[:, 1]), early)
    assert not torch.equal(growing.score(last, queries[:, 0], queries[:, 1]), early)


def test_bad_settings(graph):
    for wrong in ({"decay": -1}, {"strict_share": 1.5}):
        with pytest.raises(ValueError, match="decay >= 0"):
            Recurrency(graph, **wrong)


def test_the_rows_beside_every_model(graph):
    assert list(baselines(graph)) == ["frequency", "recency-weighted ψ", "relation frequency ξ", "recurrency ψ and ξ"]
    for scorer in baselines(graph).values():
        assert 0 < evaluate(graph, scorer).metrics().mrr <= 100
