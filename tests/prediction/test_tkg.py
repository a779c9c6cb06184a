"""The data structure: what is known before a day, which facts recur, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings

from zfu_lib.prediction.tkg import SPLITS, GraphError, LeakError, TemporalGraph, check_history

from .tkg_graphs import graphs, make, random_graph


@pytest.fixture(scope="module")
def graph():
    return random_graph(0)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_historical_flags_equal_a_loop(graph):
    train, past = set(), set()
    for split in SPLITS:
        for definition in ("train", "past"):
            assert graph.historical(split, definition).shape == (len(graph.split(split)),)
        seen = []
        for day in graph.days(split):
            todays = [tuple(f[:3]) for f in graph.on(day).tolist()]
            seen += [(f in train, f in past) for f in todays]
            # Only after the whole day: the facts of a day do not know of each other.
            past.update(todays)
            if split == "train":
                train.update(todays)
        assert graph.historical(split, "train").tolist() == [a for a, _ in seen]
        assert graph.historical(split, "past").tolist() == [b for _, b in seen]


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_pair_seen_equals_a_loop(graph):
    for split in SPLITS:
        expected = [
            any(tuple(past[:2]) == (s, r) for past in graph.before(t).tolist())
            for s, r, _, t in graph.split(split).tolist()
        ]
        assert graph.pair_seen(split).tolist() == expected


def test_what_is_known_before_a_day(graph):
    for day in graph.days():
        assert (graph.before(day)[:, 3] < day).all()
        assert len(graph.before(day)) + (graph.facts[:, 3] >= day).sum() == len(graph.facts)
        window = graph.window(day, 3)
        assert [int(f[0, 3]) for f in window] == [t for t in graph.days() if t < day][-3:]
        check_history(window, day)


def test_a_leak_is_refused(graph):
    day = graph.days("test")[0]
    with pytest.raises(LeakError, match=rf"history of day {day} holds .* facts of day {day}"):
        check_history([*graph.window(day, 2), graph.on(day)], day)


def test_inverses_twice_are_the_facts(graph):
    both = graph.with_inverses(graph.test)
    half = len(graph.test)
    assert (both[:half] == graph.test).all()
    assert (both[half:, [2, 1, 0, 3]] - [0, graph.num_relations, 0, 0] == graph.test).all()


def test_renaming_moves_names_with_ids(graph):
    order = np.random.default_rng(1).permutation(graph.num_entities)
    moved = graph.renamed(order)
    said = [(graph.entities[s], r, graph.entities[o], t) for s, r, o, t in graph.test.tolist()]
    assert said == [(moved.entities[s], r, moved.entities[o], t) for s, r, o, t in moved.test.tolist()]
    with pytest.raises(GraphError, match="permutation"):
        graph.renamed([0] * graph.num_entities)


def test_a_slice_keeps_facts_among_the_frequent(graph):
    part = graph.slice(3, 4)
    assert part.num_entities == 4
    count = dict.fromkeys(graph.entities, 0)
    for s, _, o, t in graph.train.tolist():
        if t >= 3:
            count[graph.entities[s]] += 1
            count[graph.entities[o]] += 1
    assert min(count[e] for e in part.entities) >= max(count[e] for e in set(graph.entities) - set(part.entities))
    assert part.days()[0] >= 3
    whole = {(graph.entities[s], r, graph.entities[o], t) for s, r, o, t in graph.facts.tolist()}
    assert {(part.entities[s], r, part.entities[o], t) for s, r, o, t in part.facts.tolist()} <= whole


GOOD = [(0, 0, 1, 1), (1, 1, 2, 4), (0, 0, 1, 5), (2, 0, 3, 8)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, 9, 1), *GOOD], "train, row 1: object 9 is unknown; ids are 0 to 4"),
        ([(0, 7, 1, 1), *GOOD], "train, row 1: relation 7 is unknown; ids are 0 to 1"),
        ([(-1, 0, 1, 1), *GOOD], "train, row 0: subject -1 is unknown"),
    ],
)
def test_unknown_ids(rows, message):
    with pytest.raises(GraphError, match=message):
        make(rows)


def parts(**changed):
    graph = make(GOOD)
    found = {name: np.array(graph.split(name)) for name in SPLITS} | changed
    return TemporalGraph(graph.entities, graph.relations, **found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": np.array([(0, 0, 1, 3), (0, 0, 1, 2)])}, "row 1: day 2 comes after day 3; sort"),
        ({"train": np.array([(0, 0, 1, 3), (0, 0, 1, 3)])}, r"row 1: fact \(0, 0, 1, 3\) is there twice"),
        ({"valid": np.array([(0, 0, 1, 4)])}, "valid begins on day 4, which is not after day 4"),
        ({"test": np.empty((0, 4), int)}, "test is empty"),
        ({"test": np.array([[0, 0, 1]])}, r"integers \[F, 4\]"),
        ({"test": np.array([[0.0, 0, 1, 9]])}, r"integers \[F, 4\]"),
    ],
)
def test_facts_that_are_no_graph(changed, message):
    with pytest.raises(GraphError, match=message):
        parts(**changed)


def test_unknown_names(graph):
    with pytest.raises(GraphError, match="no period 'dev'"):
        graph.split("dev")
    with pytest.raises(GraphError, match="no definition"):
        graph.historical("test", "ever")
