"""Ranks equal a brute-force implementation under every protocol, in any memory, under any names."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.prediction.tkg_ranking import RankingError, also_true, evaluate, ranks, ranks_in_blocks, summary

from .tkg_graphs import graphs, random_graph


@pytest.fixture(scope="module")
def graph():
    return random_graph(0)


class Table:
    """Scores that are a fixed function of names and day, with many ties."""

    def __init__(self, graph, levels=3):
        self.value = torch.tensor([[hash_of(e, r) % levels for e in graph.entities] for r in range(99)])

    def score(self, day, s_B, r_B):
        return self.value[(r_B + 7 * day) % 99].float()


def hash_of(name, number):
    return sum(ord(c) for c in name) * 31 + number * 17


def brute_force(graph, scorer, ties):
    """Definition: sort nothing, loop over everything."""
    raw, filtered = [], []
    for s, r, o, t in graph.test.tolist():
        found = []
        for subject, relation, answer in ((s, r, o), (o, r + graph.num_relations, s)):
            y = scorer.score(t, torch.tensor([subject]), torch.tensor([relation]))[0].tolist()
            true = {
                int(b)
                for a, q, b, _ in graph.with_inverses(graph.on(t)).tolist()
                if (a, q) == (subject, relation) and b != answer
            }
            share = {"mean": 0.5, "optimistic": 0, "pessimistic": 1}[ties]
            for left_out in (set(), true):
                rank = 1.0
                for other in range(graph.num_entities):
                    if other != answer and other not in left_out:
                        rank += 1.0 if y[other] > y[answer] else share * (y[other] == y[answer])
                found.append(rank)
        raw.append((found[0], found[2]))
        filtered.append((found[1], found[3]))
    return np.array(raw), np.array(filtered)


@settings(max_examples=25, deadline=None)
@given(graphs(), st.sampled_from(["mean", "optimistic", "pessimistic"]), st.integers(1, 2000))
def test_ranks_equal_brute_force(graph, ties, budget):
    scorer = Table(graph)
    raw, filtered = brute_force(graph, scorer, ties)
    found = evaluate(graph, scorer, ties=ties, budget_bytes=budget)
    assert found.raw.tolist() == raw.tolist()
    assert found.filtered.tolist() == filtered.tolist()


@settings(max_examples=25, deadline=None)
@given(graphs(), st.integers(0, 1000))
def test_metrics_do_not_depend_on_ids_or_on_the_order_of_a_day(graph, seed):
    rng = np.random.default_rng(seed)
    moved = graph.renamed(rng.permutation(graph.num_entities))
    metrics = evaluate(graph, Table(graph)).metrics()
    assert evaluate(moved, Table(moved)).metrics() == pytest.approx(metrics)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 50), st.integers(0, 10_000))
def test_mean_ties_are_the_mean_over_orders(queries, entities, seed):
    """Adding noise far below the smallest gap breaks ties at random; ranks then average to the mean rank."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (queries, entities), generator=generator).double()
    answer = torch.randint(0, entities, (queries,), generator=generator)
    none = torch.empty(0, dtype=torch.long)
    low, mean, high = (ranks(scores, answer, none, none, t)[0] for t in ("optimistic", "mean", "pessimistic"))
    assert torch.equal(mean, (low + high) / 2)
    assert (low >= 1).all()
    assert (high <= entities).all()
    by_sort = ranks(scores, answer, none, none, "sorted")[0]
    assert ((low <= by_sort) & (by_sort <= high)).all()


def test_sorted_ties_agree_where_nothing_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 30, generator=generator).argsort(dim=1).float()
    answer = torch.randint(0, 30, (50,), generator=generator)
    rows = torch.arange(50).repeat_interleave(2)
    others = torch.stack([(answer + 1) % 30, (answer + 5) % 30], dim=1).flatten()
    for a, b in zip(ranks(scores, answer, rows, others), ranks(scores, answer, rows, others, "sorted")):
        assert torch.equal(a, b)


def test_also_true_lists_the_other_answers():
    rows, others = also_true(np.array([0, 0, 1, 0]), np.array([1, 1, 1, 1]), np.array([4, 5, 4, 6]))
    assert sorted(zip(rows.tolist(), others.tolist())) == [(0, 5), (0, 6), (1, 4), (1, 6), (3, 4), (3, 5)]


def test_memory_is_bounded_by_the_budget():
    seen = []

    def score(block):
        seen.append(block.stop - block.start)
        return torch.zeros(block.stop - block.start, 1000)

    none = np.empty(0, np.int64)
    ranks_in_blocks(score, torch.zeros(777, dtype=torch.long), 1000, none, none, budget_bytes=50_000)
    assert max(seen) == 4
    assert sum(seen) == 777


def test_protocols_have_names_and_optimism_is_named(graph):
    found = evaluate(graph, Table(graph), ties="optimistic")
    assert found.protocol() == "two directions, time-filtered, optimistic ties (NOT COMPARABLE)"
    fair = evaluate(graph, Table(graph))
    assert fair.protocol(directions="object", filtered=False) == "object only, raw, mean ties"
    assert found.metrics().mrr > fair.metrics().mrr
    historical = graph.historical("test")
    parts = [fair.metrics(facts=mask) for mask in (historical, ~historical)]
    whole = sum(part.mrr * part.n for part in parts) / sum(part.n for part in parts)
    assert whole == pytest.approx(fair.metrics().mrr)


def test_bad_input(graph):
    none = torch.empty(0, dtype=torch.long)
    scores = torch.zeros(2, 3)
    with pytest.raises(RankingError, match="not a number"):
        ranks(torch.tensor([[0.0, torch.nan, 1.0]]), torch.tensor([1]), none, none)
    with pytest.raises(RankingError, match="ties 'best'"):
        ranks(scores, torch.tensor([0, 0]), none, none, "best")
    with pytest.raises(RankingError, match="scores"):
        ranks(scores, torch.tensor([0]), none, none)
    with pytest.raises(RankingError, match="empty"):
        summary(np.array([]))
    found = evaluate(graph, Table(graph))
    with pytest.raises(RankingError, match="directions"):
        found.of(directions="subject")
    with pytest.raises(RankingError, match="mask"):
        found.of(facts=np.ones(3, bool))
