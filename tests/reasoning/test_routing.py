"""Replays, thresholds, fronts and diagnosis against loops that read like their definitions."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.reasoning import routing
from zfu_lib.reasoning.routing import (
    GRID,
    accuracy_at,
    always_high_then_argmax,
    auc,
    best_of_two,
    brier,
    budget_forcing,
    cascade,
    choose,
    fixed,
    hypervolume,
    oracle,
    paper_cost,
    pareto,
    per_layer_parameters,
    question_only,
    random_stop,
    reliability,
    replay,
    search_thresholds,
    single_intern,
    single_mentor,
    stop,
    sweep,
    taxonomy,
    thresholds,
)


def scores_of(table, seed=1):
    """Random scores on a coarse grid, so that ties are common; equal where columns repeat."""
    s = np.random.default_rng(seed).integers(0, 21, table.correct.shape) / 20
    return np.take_along_axis(s, np.minimum(np.arange(s.shape[1]), table.last[:, None]), 1)


def tandem_loop(table, s, tau, q, allow_t0=False, early_end="answer"):
    """(t*, last stage paid, stages measured) of one question."""
    T = table.stages
    seen = []
    for t in range(0 if allow_t0 else 1, T + 1):
        seen.append(t)
        if s[q, t] >= tau[t]:
            return t, t, seen
        if t and table.last[q] == t and t < T:
            if early_end == "answer":
                return t, t, seen
            break
    best = seen[0]
    for t in seen:
        if s[q, t] > s[q, best]:
            best = t
    return best, seen[-1], seen


def honest_loop(table, q, t_star, paid, seen):
    mentor = 0
    for t in range(1, paid + 1):  # one call per stage
        written = table.n_mentor[q, t] - table.n_mentor[q, t - 1]
        mentor += table.mentor_prompt[q] + written + table.n_mentor[q, t - 1]
    if table.kv_reuse and paid:
        mentor = table.mentor_prompt[q] + table.n_mentor[q, paid]
    measured = [table.n_score[q, t] for t in seen]
    intern = (max(measured, default=0) if table.kv_reuse else sum(measured)) + table.intern_prompt[q, t_star]
    return 2 * (table.theta_mentor * mentor + table.theta_intern * (intern + table.n_intern[q, t_star])) / 1e12


@pytest.mark.parametrize("kv_reuse", [False, True])
@pytest.mark.parametrize("early_end", ["answer", "argmax"])
@pytest.mark.parametrize("allow_t0", [False, True])
def test_tandem_is_its_loop(make_table, allow_t0, early_end, kv_reuse):
    for seed in range(3):
        table = make_table(seed=seed, kv_reuse=kv_reuse)
        s = scores_of(table, seed)
        for tau in ([0.5, 0.9, 0.7, 0.8], [0.3, 0.2, 0.4, 0.1], [2.0, 2.0, 2.0, 2.0], [0.95, 1.0, 0.6, 1.0]):
            out = replay(table, s, tau, allow_t0=allow_t0, early_end=early_end)
            for q in range(len(table.qid)):
                t_star, paid, seen = tandem_loop(table, s, tau, q, allow_t0, early_end)
                assert (out.stage[q], out.paid[q]) == (t_star, paid)
                assert out.correct[q] == table.correct[q, t_star]
                paper = paper_cost(
                    table.n_mentor[q, paid], table.n_intern[q, t_star], table.theta_mentor, table.theta_intern
                )
                assert out.paper[q] == pytest.approx(paper)
                assert out.honest[q] == pytest.approx(honest_loop(table, q, t_star, paid, seen))
                assert out.seconds[q] == pytest.approx(
                    table.mentor_seconds[q, paid]
                    + sum(table.score_seconds[q, t] for t in seen)
                    + table.intern_seconds[q, t_star]
                )


def test_the_argmax_pays_for_every_stage(make_table):
    table = dataclasses.replace(make_table(), last=np.full(40, 3))
    s = np.tile([0.0, 0.9, 0.1, 0.1], (40, 1))
    out = replay(table, s, 1.5)
    assert set(out.stage) == {1}
    assert set(out.paid) == {3}
    assert (out.mentor_written == table.n_mentor[:, 3]).all()
    assert set(stop(s, 1.5).reason) == {"argmax"}


def test_threshold_zero_stops_at_once_and_ties_go_to_the_earlier_stage():
    s = np.full((5, 4), 0.5)
    assert set(stop(s, 0.0).stage) == {1}
    assert set(stop(s, 0.0).reason) == {"threshold"}
    assert set(stop(s, 0.0, allow_t0=True).stage) == {0}
    assert set(stop(s, 0.0, allow_t0=True).reason) == {"t0"}
    assert set(stop(s, 1.1).stage) == {1}
    assert set(stop(s, 1.1, allow_t0=True).stage) == {0}
    ended = stop(s, 1.1, np.array([1, 2, 3, 3, 2]))
    assert ended.stage.tolist() == [1, 2, 1, 1, 2]
    assert ended.reason.tolist() == ["ended", "ended", "argmax", "argmax", "ended"]


def test_thresholds_are_one_or_one_per_stage():
    inf = np.inf
    assert thresholds(0.5, 2).tolist() == [inf, 0.5, 0.5]
    assert thresholds([0.1, 0.2], 2).tolist() == [inf, 0.1, 0.2]
    assert thresholds([0.9, 0.1, 0.2], 2).tolist() == [inf, 0.1, 0.2]
    assert thresholds([0.9, 0.1, 0.2], 2, allow_t0=True).tolist() == [0.9, 0.1, 0.2]
    for bad, allow in (([0.1, 0.2], True), ([0.1], False), (np.nan, False), ([0.1] * 4, False)):
        with pytest.raises(ValueError, match="thresholds"):
            thresholds(bad, 2, allow)
    with pytest.raises(ValueError, match="NaN"):
        stop(np.full((1, 3), np.nan), 0.5)


@pytest.mark.parametrize(
    ("mentor", "length", "reported"),
    [
        (0, 2732, 38.25),
        (101, 2735, 44.76),
        (100, 2735, 44.76),
        (500, 2853, 71.96),
        (994, 2930, 104.62),
        (920, 2916, 99.72),
    ],
)
def test_the_cost_law_gives_table_1(mentor, length, reported):
    assert paper_cost(mentor, length - mentor, 32e9, 7e9) == pytest.approx(reported, abs=0.1)


def test_the_cost_law_gives_the_mentor_alone():
    assert paper_cost(2630, 0, 32e9, 0) == pytest.approx(168.35, abs=0.1)
    assert paper_cost(1000, 1930, 32e9, 7e9) != pytest.approx(104.62, abs=0.1), "994 tokens, not the whole budget"


def test_policies_follow_the_law_of_the_tables(make_table):
    """Through the replays, not the formula: a table whose every question has the token counts of Table 1."""
    n = 6
    table = dataclasses.replace(
        make_table(n=n),
        theta_mentor=32e9,
        theta_intern=7e9,
        n_mentor=np.tile([0, 101, 500, 994], (n, 1)),
        n_intern=np.tile([2732, 2634, 2353, 1936], (n, 1)),
        alone_tokens=np.full(n, 2630),
    )
    found = [single_intern(table), single_mentor(table), fixed(table, 1), fixed(table, 2), fixed(table, 3)]
    assert [p.paper.mean() for p in found] == pytest.approx([38.25, 168.35, 44.76, 71.96, 104.62], abs=0.1)
    assert [p.length.mean() for p in found] == [2732, 2630, 2735, 2853, 2930]


def test_per_layer_parameters():
    assert per_layer_parameters(28, 3584, 18944) == 28 * (4 * 3584**2 + 2 * 3584 * 18944)
    assert 5e9 < per_layer_parameters(28, 3584, 18944) < 7e9


@pytest.mark.parametrize("kv_reuse", [False, True])
def test_single_models_fixed_levels_and_budget_forcing(make_table, kv_reuse):
    t = make_table(kv_reuse=kv_reuse)
    for k in range(4):
        out = fixed(t, k)
        assert (out.correct == t.correct[:, k]).all()
        mentor = (t.mentor_prompt if k else 0) + t.n_mentor[:, k]
        honest = 2 * (t.theta_mentor * mentor + t.theta_intern * (t.intern_prompt + t.n_intern)[:, k]) / 1e12
        assert out.honest == pytest.approx(honest)
        assert out.paper == pytest.approx(
            paper_cost(t.n_mentor[:, k], t.n_intern[:, k], t.theta_mentor, t.theta_intern)
        )
        assert out.accuracy == t.correct[:, k].mean()
    assert (single_intern(t).paper == fixed(t, 0).paper).all()
    alone = single_mentor(t)
    assert alone.honest == pytest.approx(2 * t.theta_mentor * (t.alone_prompt + t.alone_tokens) / 1e12)
    assert alone.paper == pytest.approx(2 * t.theta_mentor * t.alone_tokens / 1e12)
    assert (alone.stage == -1).all()
    for j in range(2):
        out = budget_forcing(t, j)
        assert (out.correct == t.forced_correct[:, j]).all()
        assert out.paper == pytest.approx(2 * t.theta_mentor * t.forced_tokens[:, j] / 1e12)
        again = 0 if kv_reuse else t.forced_prompt[:, j]
        read = t.alone_prompt + again + t.forced_tokens[:, j]
        assert out.honest == pytest.approx(2 * t.theta_mentor * read / 1e12)


def test_cascades_are_their_loop(make_table):
    t = make_table()
    s = scores_of(t)[:, 0]
    for pay_both, votes, tau in itertools.product((True, False), (True, False), (0.0, 0.5, 0.6, 2.0)):
        score = t.vote_agreement if votes else s
        out = cascade(t, score, tau, votes=votes, pay_both=pay_both)
        for q in range(len(t.qid)):
            keep = score[q] >= tau
            read, written = t.intern_prompt[q, 0], t.n_intern[q, 0]
            if votes:
                read, written = t.vote_prompt[q], t.vote_tokens[q]
            elif not keep and not pay_both:
                read = written = 0
            intern = t.theta_intern * (written + read + (0 if votes else t.n_score[q, 0]))
            mentor = 0 if keep else t.theta_mentor * (t.alone_prompt[q] + t.alone_tokens[q])
            assert out.honest[q] == pytest.approx(2 * (intern + mentor) / 1e12)
            kept = t.vote_correct[q] if votes else t.correct[q, 0]
            assert out.correct[q] == (kept if keep else t.alone_correct[q])
            assert out.paper[q] == pytest.approx(
                2 * (t.theta_intern * written + (0 if keep else t.theta_mentor * t.alone_tokens[q])) / 1e12
            )
    with pytest.raises(ValueError, match="votes=5"):
        cascade(make_table(votes=False), s, 0.5, votes=True)


def test_random_stop_keeps_the_frequencies_only(make_table):
    t = make_table(n=400)
    s = scores_of(t)
    tandem = replay(t, s, 0.6)
    out = random_stop(t, tandem.stage, seed=3)
    assert np.bincount(out.stage).tolist() == np.bincount(tandem.stage).tolist()
    assert (out.stage != tandem.stage).any()
    assert (out.paid == out.stage).all()
    assert (out.correct == t.correct[np.arange(400), out.stage]).all()
    assert (out.stage == random_stop(t, tandem.stage, seed=3).stage).all()


@pytest.mark.parametrize("allow_t0", [False, True])
def test_the_oracle_is_its_loop(make_table, allow_t0):
    t = make_table()
    out = oracle(t, allow_t0=allow_t0)
    for q in range(len(t.qid)):
        prices = {
            k: paper_cost(t.n_mentor[q, k], t.n_intern[q, k], t.theta_mentor, t.theta_intern)
            for k in range(0 if allow_t0 else 1, 4)
        }
        right = {k: price for k, price in prices.items() if t.correct[q, k]}
        assert out.correct[q] == bool(right)
        assert out.paper[q] == pytest.approx(min((right or prices).values()))
    assert out.accuracy >= max(fixed(t, k).accuracy for k in range(0 if allow_t0 else 1, 4))


def test_best_of_two(make_table):
    t = make_table()
    out = best_of_two(t)
    assert (out.correct == (t.correct[:, 0] | t.alone_correct)).all()
    takes_mentor = ~t.correct[:, 0] & t.alone_correct
    assert ((out.stage == -1) == takes_mentor).all()
    assert out.honest == pytest.approx(np.where(takes_mentor, single_mentor(t).honest, single_intern(t).honest))


def test_all_stages_then_argmax(make_table):
    t = make_table()
    s = scores_of(t)
    out = always_high_then_argmax(t, s)
    for q in range(len(t.qid)):
        best = max(range(1, t.last[q] + 1), key=lambda k: s[q, k])
        assert (out.stage[q], out.paid[q]) == (best, t.last[q])


def test_a_score_of_the_question_needs_one_call(make_table):
    t = make_table()
    s = scores_of(t)
    out = replay(t, s, 0.6, ahead=True)
    assert (out.stage == replay(t, s, 0.6).stage).all()
    assert (out.mentor_written == t.n_mentor[np.arange(40), out.stage]).all()
    assert (out.intern_read == t.n_score[:, 0] + t.intern_prompt[np.arange(40), out.stage]).all()
    x = question_only(t.features)
    assert x.shape == t.features.shape
    assert (x == t.features[:, :1]).all()


def test_money(make_table):
    t = make_table()
    out = fixed(t, 2)
    expected = 3 * out.mentor_read + 9 * out.mentor_written + 1 * out.intern_read + 2 * out.intern_written
    assert (out.money((3, 9), (1, 2)) == expected).all()


# Thresholds


@pytest.mark.parametrize("cost", ["paper", "honest"])
@pytest.mark.parametrize("early_end", ["answer", "argmax"])
@pytest.mark.parametrize("allow_t0", [False, True])
def test_the_sweep_is_every_replay(make_table, allow_t0, early_end, cost):
    t = make_table(n=60)
    s = scores_of(t)
    grid = np.array([0.1, 0.5, 0.85, 1.0])
    found = sweep(t, s, allow_t0=allow_t0, early_end=early_end, cost=cost, grid=grid)
    assert len(found.tau) == 4 ** (4 if allow_t0 else 3)
    assert len(np.unique(found.tau, axis=0)) == len(found.tau)
    for tau, accuracy, mean_cost in zip(found.tau, found.accuracy, found.cost):
        out = replay(t, s, tau, allow_t0=allow_t0, early_end=early_end)
        assert accuracy == pytest.approx(out.accuracy, abs=1e-12)
        assert mean_cost == pytest.approx(out.cost(cost).mean())


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_whole_grid_is_swept(make_table, stages):
    t = make_table(n=50, stages=stages)
    s = np.random.default_rng(0).random(t.correct.shape)
    found = sweep(t, s)
    assert found.tau.shape == (19**stages, stages + 1)
    for k in np.random.default_rng(1).integers(0, len(found.tau), 40):
        out = replay(t, s, found.tau[k])
        assert (found.accuracy[k], found.cost[k]) == pytest.approx((out.accuracy, out.paper.mean()))
    assert GRID[[0, 1, -1]].tolist() == [0.05, 0.1, 0.95]


def test_objectives_against_a_loop(make_table):
    t = make_table(n=60)
    s = scores_of(t)
    found = sweep(t, s, grid=np.array([0.2, 0.5, 0.8]))
    rows = list(zip(found.accuracy, found.cost))
    best = max(rows, key=lambda row: (round(row[0], 9), -row[1]))
    assert rows[choose(found)] == pytest.approx(best)
    cap = float(np.median(found.cost))
    affordable = [row for row in rows if row[1] <= cap]
    assert rows[choose(found, "cost-aware", cap=cap)] == pytest.approx(max(affordable, key=lambda r: (r[0], -r[1])))
    unit = single_mentor(t).paper.mean()
    weighed = max(a - 0.3 * c / unit for a, c in rows)
    a, c = rows[choose(found, "cost-aware", weight=0.3, unit=unit)]
    assert a - 0.3 * c / unit == pytest.approx(weighed)
    assert choose(found, "cost-aware", cap=-1.0) == int(np.argmin(found.cost))
    for wrong in ({"objective": "cost-aware"}, {"cap": 1.0}, {"objective": "best"}):
        with pytest.raises(ValueError, match="cost-aware"):
            choose(found, **wrong)


def test_the_search_sees_the_threshold_split_only(make_table):
    """Its arguments are one table and its scores; the labels of all other questions may be anything."""
    assert list(inspect.signature(search_thresholds).parameters) == ["table", "scores", "objective", "options"]
    assert list(inspect.signature(sweep).parameters)[:2] == ["table", "scores"]
    t = make_table(n=90)
    s, held = scores_of(t), np.arange(0, 90, 2)
    tau = search_thresholds(t.take(held), s[held])
    spoiled = np.array(t.correct)
    test = np.setdiff1d(np.arange(90), held)
    spoiled[test] = ~spoiled[test]
    other = dataclasses.replace(t, correct=spoiled)
    assert (search_thresholds(other.take(held), s[held]) == tau).all()
    assert (search_thresholds(other, s) != search_thresholds(t, s)).any(), "labels matter where they are given"


def test_search_takes_the_options_of_both_steps(make_table):
    t = make_table(n=60)
    tau = search_thresholds(t, scores_of(t), "cost-aware", cap=1e9, allow_t0=True, cost="honest", grid=np.array([0.5]))
    assert tau.tolist() == [0.5] * 4


# Fronts and diagnosis

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    cost, gain = np.array(points, float).T
    front = pareto(cost, gain)

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    undominated = {p for p in points if not any(beats(other, p) for other in points)}
    assert sorted((cost[k], gain[k]) for k in front) == sorted(undominated)
    assert (np.diff(cost[front]) > 0).all()


@given(POINTS)
@settings(max_examples=50)
def test_the_hypervolume_is_the_mean_of_the_best_at_each_cost(points):
    cost, gain = np.array(points, float).T
    middles = np.arange(0, 10, 0.5) + 0.25
    best = [max([g for c, g in points if c <= x], default=0) for x in middles]
    assert accuracy_at(cost, gain, middles).tolist() == best
    assert hypervolume(cost, gain, 0, 10) == pytest.approx(np.mean(best))


def test_every_question_went_one_way(make_table):
    t = make_table(n=300)
    for allow_t0 in (False, True):
        out = replay(t, scores_of(t), 0.6, allow_t0=allow_t0)
        parts = taxonomy(t, out, allow_t0=allow_t0)
        assert (sum(part.astype(int) for part in parts.values()) == 1).all()
        assert all(part.any() for part in parts.values())
        for q in range(300):
            right = [k for k in range(0 if allow_t0 else 1, 4) if t.correct[q, k]]
            if not right:
                name = "unavoidable"
            elif min(right) < out.paid[q]:
                name = "false continuation"
            else:
                name = "correct" if out.correct[q] else "false early stop"
            assert parts[name][q]


def test_the_oracle_never_stops_too_early(make_table):
    t = make_table()
    parts = taxonomy(t, oracle(t, allow_t0=False))
    assert not parts["false early stop"].any()


def test_calibration_by_hand():
    s, y = np.array([[0.1, 0.2], [0.8, 0.9]]), np.array([[0, 1], [1, 1]], bool)
    assert brier(s, y) == pytest.approx((0.01 + 0.64 + 0.04 + 0.01) / 4)
    assert auc(s, y) == 1.0
    assert auc(1 - s, y) == 0.0
    assert np.isnan(auc(s, np.ones((2, 2), bool)))
    assert brier(np.ones(3), np.ones(3, bool)) == 0
    (low, high) = reliability(s, y, bins=2)
    assert low == pytest.approx((0.15, 0.5, 2))
    assert high == pytest.approx((0.85, 1.0, 2))
    assert reliability(np.array([1.0]), np.array([True])) == [(1.0, 1.0, 1)]


# The table


@pytest.mark.parametrize(("votes", "forced"), [(True, (5, 50)), (False, ())])
def test_a_table_survives_its_file(make_table, tmp_path, votes, forced):
    t = make_table(votes=votes, forced=forced)
    t.save(tmp_path / "table.bin")
    back = routing.Table.load(tmp_path / "table.bin")
    for f in dataclasses.fields(t):
        here, there = getattr(t, f.name), getattr(back, f.name)
        assert type(here) is type(there)
        np.testing.assert_array_equal(here, there)
        assert getattr(here, "dtype", None) == getattr(there, "dtype", None)


def test_rows_are_taken_together(make_table):
    t = make_table()
    part = t.take(np.array([3, 1]))
    assert part.qid.tolist() == ["q3", "q1"]
    assert (part.forced_tokens == t.forced_tokens[[3, 1]]).all()
    assert part.budgets is t.budgets
    with pytest.raises(ValueError, match="n_intern"):
        dataclasses.replace(t, n_intern=t.n_intern[:, :2])
