"""Small temporal knowledge graphs."""

import numpy as np
from hypothesis import strategies as st

from zfu_lib.prediction.tkg import TemporalGraph


def make(rows, entities=5, relations=2, days=(4, 6)):
    """A graph of (s, r, o, t) rows, sorted, once each; training until day 4, validation until 6."""
    facts = np.unique(np.array(rows, dtype=np.int64).reshape(-1, 4), axis=0)
    facts = facts[np.argsort(facts[:, 3], kind="stable")]
    parts = np.searchsorted(facts[:, 3], [days[0] + 1, days[1] + 1])
    train, valid, test = np.split(facts, parts)
    names = tuple(f"e{i}" for i in range(entities)), tuple(f"r{i}" for i in range(relations))
    return TemporalGraph(*names, train, valid, test)


def random_graph(seed, entities=12, relations=3, days=12, a_day=8):
    """Random facts on days 1..``days``, the last quarter test."""
    rng = np.random.default_rng(seed)
    rows = [
        (rng.integers(entities), rng.integers(relations), rng.integers(entities), t)
        for t in range(1, days + 1)
        for _ in range(a_day)
    ]
    return make(rows, entities, relations, (days // 2, 3 * days // 4))


def graphs():
    """Strategy: random graphs of a few days, with few ids so that ties and repeats are frequent."""
    return st.integers(0, 10_000).map(lambda seed: random_graph(seed, entities=6, relations=2, days=8, a_day=5))
