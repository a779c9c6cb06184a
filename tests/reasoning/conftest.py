"""Random tables of cached outcomes: any numbers, every invariant of a collected table."""

import numpy as np
import pytest

from zfu_lib.reasoning.routing import Table


def random_table(n=40, stages=3, seed=0, width=16, votes=True, kv_reuse=False, forced=(5, 50)):
    rng = np.random.default_rng(seed)
    columns = stages + 1
    budgets = np.cumsum(rng.integers(3, 20, stages))
    total = rng.integers(2, budgets[-1] + 30, n)
    n_mentor = np.concatenate([np.zeros((n, 1), int), np.minimum(budgets, total[:, None])], 1)
    last = np.array([int(np.argmax(budgets >= t)) + 1 if budgets[-1] >= t else stages for t in total])
    source = np.minimum(np.arange(columns), last[:, None])  # columns repeat once the mentor has ended

    def by_stage(draw):
        return np.take_along_axis(draw, source, 1)

    answered = rng.integers(1, 40, n)
    return Table(
        qid=np.array([f"q{i}" for i in range(n)]),
        budgets=budgets,
        transport="prompt",
        theta_mentor=9e9,
        theta_intern=2e9,
        kv_reuse=kv_reuse,
        correct=by_stage(rng.random((n, columns)) < 0.5),
        truncated=by_stage(rng.random((n, columns)) < 0.1),
        leak=by_stage(rng.random((n, columns)) < 0.1),
        features=np.take_along_axis(rng.normal(size=(n, columns, width)), source[..., None], 1),
        last=last,
        n_mentor=n_mentor,
        mentor_prompt=rng.integers(3, 9, n),
        n_intern=by_stage(rng.integers(1, 60, (n, columns))),
        intern_prompt=by_stage(rng.integers(5, 30, (n, columns))),
        n_score=by_stage(np.sort(rng.integers(1, 30, (n, columns)), 1)),
        mentor_seconds=n_mentor / 10,
        intern_seconds=by_stage(rng.random((n, columns))),
        score_seconds=by_stage(rng.random((n, columns))),
        alone_correct=rng.random(n) < 0.6,
        alone_truncated=rng.random(n) < 0.1,
        alone_tokens=total + answered,
        alone_prompt=rng.integers(3, 9, n),
        alone_seconds=rng.random(n),
        forced_budgets=np.array(forced, int),
        forced_correct=rng.random((n, len(forced))) < 0.5,
        forced_truncated=rng.random((n, len(forced))) < 0.1,
        forced_tokens=rng.integers(1, 60, (n, len(forced))),
        forced_prompt=rng.integers(0, 30, (n, len(forced))),
        forced_seconds=rng.random((n, len(forced))),
        vote_agreement=rng.integers(1, 6, n) / 5 if votes else np.full(n, np.nan),
        vote_correct=rng.random(n) < 0.5,
        vote_tokens=rng.integers(5, 99, n),
        vote_prompt=rng.integers(5, 99, n),
        vote_seconds=rng.random(n),
    )


@pytest.fixture
def make_table():
    return random_table
