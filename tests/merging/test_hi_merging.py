"""Hi-Merging against the published test vector, an independent implementation, and cases whose answer is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.merging import hi_merging as hi
from zfu_lib.merging import methods
from zfu_lib.report import paths

L = 3
SHAPES = {f"model.layers.{k}.{part}": shape for k in range(L) for part, shape in (("up", (6, 5)), ("down", (4,)))}
SHAPES |= {"model.embed": (7, 3), "model.norm": (5,)}
FEW = (1.0, 0.5, 0.2)


def model(seed: int, near: dict | None = None) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    made = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return made if near is None else {name: near[name] + np.float32(0.1) * x for name, x in made.items()}


BASE = model(0)
A, B, C = (model(i, BASE) for i in (1, 2, 3))


def closeness(*targets: dict):
    """A score: minus the distance to the task's target, mixed so that contributions are not additive."""

    def score(m: int, x: dict) -> float:
        gaps = [float(np.abs(x[name] - targets[m][name]).mean()) for name in sorted(SHAPES)]
        return -float(np.sqrt(np.square(gaps).sum()) + 0.3 * np.prod(gaps[:4]))

    return score


SCORE = closeness(A, B)


def assert_same(x: dict, y: dict) -> None:
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)


# The published Figure 5: Qwen2-7B, A = MedQA, B = CMExam.
PUBLISHED = yaml.safe_load((paths.root() / "book" / "quoted" / "hi_merging.yml").read_text())["figure_5"]


def figure_5() -> hi.Table:
    own, gamma = (np.array([PUBLISHED[f"{x}_{e}"] for e in "AB"]) for x in ("c", "gamma"))
    return hi.Table(tuple(("model.layers", k) for k in range(28)), own, own - gamma)


@pytest.mark.parametrize("partial", ["dominant", "weakened"])
def test_the_published_figure_5(partial: str) -> None:
    table = figure_5()
    found = {k: hi.decide(table, block, partial) for k, block in enumerate(table.blocks)}
    assert [k for k in found if found[k].case == "severe"] == [1, 4, 5, 8]
    assert all(found[k].experts == (0,) for k in (1, 4, 5, 8)), "each keeps B"
    trimmed = [k for k in found if found[k].case == "partial"]
    assert trimmed == [0, 2, 3, 6, 7, 10, 13, 19, 20, 21, 22, 23, 24, 26, 27]
    for k in trimmed:
        gains = 0 if PUBLISHED["gamma_A"][k] < 0 else 1
        assert found[k].experts == ((gains,) if partial == "dominant" else (1 - gains,))
    assert [k for k in found if found[k].case == "mutual"] == [9, 11, 12, 14, 15, 16, 17, 18, 25]
    assert table.order[:11] == [4, 0, 5, 21, 26, 27, 8, 1, 3, 20, 2]
    assert table.order[-4:] == [14, 17, 18, 16]


@pytest.mark.parametrize(
    ("gamma", "case", "experts"),
    [
        ((1, 2), "severe", (0,)),
        ((-1, -2), "mutual", ()),
        ((0, 0), "mutual", ()),
        ((1, 0), "mutual", ()),
        ((0, -1), "mutual", ()),
        ((1, -1), "partial", (1,)),
        ((1, 1, 1), "severe", (0, 1)),
        ((1, 0, -1), "partial", (2,)),
        ((-1, -1, 1), "partial", (0, 1)),
    ],
)
def test_cases(gamma: tuple, case: str, experts: tuple) -> None:
    """The last expert contributes most; where no rule fits (one weakened, none gains), nothing is done."""
    own = np.arange(1.0, len(gamma) + 1)[:, None]
    table = hi.Table((("k", 0),), own, own - np.array(gamma, float)[:, None])
    assert hi.decide(table, ("k", 0)) == (("k", 0), case, experts)


# An independent implementation, from the pseudocode, for two experts.


def top(v: np.ndarray, p: float) -> np.ndarray:
    flat = v.ravel()
    k = len(flat) if p >= 1 else max(1, int(p * len(flat)))
    out = np.zeros_like(flat)
    for i in sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))[:k]:
        out[i] = flat[i]
    return out.reshape(v.shape)


def reference(base, experts, score, P, S, w, elect, partial, again, whole):
    f = np.float32

    def build(D, weights):
        out = {}
        for n in base:
            parts = [f(wm) * d[n] for wm, d in zip(weights, D)]
            total = parts[0] + parts[1] if len(parts) > 1 else parts[0]
            if elect:
                parts = [np.where((total >= 0) == (x > 0), x, 0) * (x != 0) for x in parts]
                total = parts[0] + parts[1] if len(parts) > 1 else parts[0]
            out[n] = base[n] + total
        return out

    raw = [{n: e[n] - base[n] for n in base} for e in experts]
    D, chosen = [], []
    for m in (0, 1):
        grid = [(p, s) for p in P for s in S]
        scored = [score(m, {n: base[n] + f(s) * top(raw[m][n], p) for n in base}) for p, s in grid]
        p, s = grid[int(np.argmax(scored))]
        chosen.append((p, s))
        D.append({n: f(s) * top(raw[m][n], p) for n in base})
    G = build(D, w)
    of = {k: [n for n in base if f".{k}." in n] for k in range(L)}
    c, g = np.zeros((2, L)), np.zeros((2, L))
    for m, k in product((0, 1), range(L)):

        def moved(to, source, k=k):
            return {n: source[n] if n in of[k] else to[n] for n in base}

        E = build([D[m]], [1])
        P0 = score(m, base)
        c[m, k] = score(m, E) - score(m, moved(E, base)) + score(m, moved(base, E)) - P0
        g[m, k] = c[m, k] - (score(m, G) - score(m, moved(G, base)) + score(m, moved(base, G)) - P0)
    for k in sorted(range(L), key=lambda k: -g[:, k].sum()):
        if g[0, k] > 0 and g[1, k] > 0:
            loser = 0 if c[0, k] < c[1, k] else 1
            for n in of[k]:
                D[loser][n] = 0 * D[loser][n]
                if whole:
                    D[1 - loser][n] = D[1 - loser][n] / f(w[1 - loser])
        elif g[0, k] * g[1, k] < 0:
            weak = 0 if g[0, k] > 0 else 1
            t = 1 - weak if partial == "dominant" else weak
            for n in of[k]:
                D[t][n] = f(chosen[t][1] / 2) * top((raw if again == "raw" else D)[t][n], chosen[t][0] / 2)
    return build(D, w)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["none", "sum"]),
    st.sampled_from(["dominant", "weakened"]),
    st.sampled_from(["current", "raw"]),
    st.booleans(),
)
def test_it_is_the_pseudocode(seed: int, consensus: str, partial: str, again: str, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    experts = [model(int(rng.integers(1 << 30)), BASE) for _ in range(2)]
    noise = {name: rng.standard_normal(x.shape) for name, x in BASE.items()}

    def score(m: int, x: dict) -> float:
        return float(np.tanh(3 * sum((noise[n] * x[n] * (-1) ** (m * (i % 2))).mean() for i, n in enumerate(noise))))

    w = rng.choice([0.5, 1.0, 0.7], 2).tolist()
    expected = reference(BASE, experts, score, FEW, FEW, w, consensus == "sum", partial, again, whole)
    options = {"consensus": consensus, "partial": partial, "again": again}
    options["survivor"] = "whole" if whole else "weighted"
    found = hi.hi_merge(BASE, experts, score, weights=w, ps=FEW, ss=FEW, **options)
    assert_same(found.model, expected)


# Limiting cases.


def test_without_pruning_and_conflict_it_is_task_arithmetic() -> None:
    found = hi.hi_merge(BASE, [A, B], lambda m, x: 1.0, ps=FEW, ss=FEW, weights=[0.5, 0.5])
    assert {d.case for d in found.decisions} == {"mutual"}
    assert [(c.p, c.s) for c in found.choices] == [(1.0, 1.0)] * 2, "of equal scores the first"
    assert_same(found.model, methods.task_arithmetic(BASE, [A, B], [0.5, 0.5]))


def test_equal_experts_give_the_expert() -> None:
    found = hi.hi_merge(BASE, [A, A], closeness(A, A), ps=(1.0,), ss=(1.0,), weights=[0.5, 0.5])
    assert_same(found.model, methods.task_arithmetic(BASE, [A], [1.0]))
    assert (found.table.gamma == 0).all()


def test_no_delta_gives_the_base() -> None:
    assert_same(hi.hi_merge(BASE, [BASE, BASE], SCORE, ps=FEW, ss=FEW).model, BASE)


def test_one_expert_is_stage_one() -> None:
    found = hi.hi_merge(BASE, [A], closeness(B), ps=FEW, ss=FEW)
    (choice,) = found.choices
    assert_same(found.model, methods.hi_merging(BASE, [A], [1.0], [choice.p], [choice.s]))


@pytest.mark.parametrize("options", [{}, {"partial": "weakened", "consensus": "sum"}, {"remeasure_every": 1}])
def test_the_order_of_the_experts_does_not_matter(options: dict) -> None:
    one = hi.hi_merge(BASE, [A, B], SCORE, ps=FEW, ss=FEW, **options)
    other = hi.hi_merge(BASE, [B, A], lambda m, x: SCORE(1 - m, x), ps=FEW, ss=FEW, **options)
    assert_same(one.model, other.model)
    assert [d.block for d in one.decisions] == [d.block for d in other.decisions]


def test_no_input_is_changed() -> None:
    before = [{name: x.copy() for name, x in m.items()} for m in (BASE, A, B)]
    hi.hi_merge(BASE, [A, B], SCORE, ps=FEW, ss=FEW)
    for x, y in zip(before, (BASE, A, B), strict=True):
        assert_same(x, y)


def test_tensors_outside_of_blocks_stay_as_stage_one_leaves_them() -> None:
    found = hi.hi_merge(BASE, [A, B], SCORE, ps=FEW, ss=FEW)
    stage_one = methods.hi_merging(BASE, [A, B], [1, 1], *zip(*((c.p, c.s) for c in found.choices)))
    for name in ("model.embed", "model.norm"):
        np.testing.assert_array_equal(found.model[name], stage_one[name])


# Pieces.


def test_measured_once_the_order_of_the_blocks_changes_nothing() -> None:
    found = hi.hi_merge(BASE, [A, B], SCORE, ps=FEW, ss=FEW)
    D = [methods.prune_and_scale(methods.deltas(BASE, x), c.p, c.s) for x, c in zip((A, B), found.choices)]
    for decision in reversed(found.decisions):
        D = hi.settle(D, decision, found.choices)
    assert_same(found.model, methods.add_deltas(BASE, D, [1.0, 1.0]))


def test_blocks_are_in_order_and_swaps_equal_full_builds() -> None:
    assert hi.blocks({f"h.{k}.w": 0 for k in (10, 2, 1)} | {"norm": 0}) == (("h", 1), ("h", 2), ("h", 10))
    D = [methods.prune_and_scale(methods.deltas(BASE, x), 0.5, 0.9) for x in (A, B)]
    G = methods.add_deltas(BASE, D, [0.5, 0.5])
    for block in hi.blocks(BASE):
        without = [{n: 0 * x if methods.layer(n) == block else x for n, x in d.items()} for d in D]
        alone = [{n: x if methods.layer(n) == block else 0 * x for n, x in d.items()} for d in D]
        assert_same(hi.take(G, block, BASE), methods.add_deltas(BASE, without, [0.5, 0.5]))
        assert_same(hi.take(BASE, block, G), methods.add_deltas(BASE, alone, [0.5, 0.5]))


def test_contributions_of_an_additive_score_count_twice() -> None:
    """Where a block's worth does not depend on the others, removing it loses what adding it gains."""
    worth = {name: np.float32(i + 1) for i, name in enumerate(sorted(SHAPES))}

    def score(m: int, x: dict) -> float:
        return float(sum(worth[n] * (x[n] - BASE[n]).mean() for n in worth))

    D = [methods.deltas(BASE, x) for x in (A, B)]
    table = hi.analyse(BASE, D, score, [0.5, 0.5])
    for m, k in product((0, 1), range(L)):
        own = [worth[n] * D[m][n].mean() for n in worth if f".{k}." in n]
        both = [worth[n] * (D[0][n] + D[1][n]).mean() / 2 for n in worth if f".{k}." in n]
        assert table.own[m, k] == pytest.approx(2 * sum(own), abs=1e-4)
        assert table.merged[m, k] == pytest.approx(2 * sum(both), abs=1e-4)


def test_evaluations_are_counted() -> None:
    calls = []

    def score(m: int, x: dict) -> float:
        calls.append(m)
        return SCORE(m, x)

    found = hi.hi_merge(BASE, [A, B], score, ps=FEW, ss=FEW[:2])
    assert found.evaluations == len(calls) == 2 * 6 + 4 * L * 2 + 3 * 2
    calls.clear()
    again = hi.hi_merge(BASE, [A, B], score, ps=FEW, ss=FEW[:2], remeasure_every=1)
    assert again.evaluations == len(calls) == 2 * 6 + sum(4 * n * 2 + 3 * 2 for n in range(1, L + 1))


def test_measured_anew_the_last_block_is_judged_within_what_the_first_left() -> None:
    found = hi.hi_merge(BASE, [A, B], SCORE, ps=(1.0,), ss=(1.0,), remeasure_every=1)
    first, second = found.decisions[:2]
    assert first.case != "mutual"
    D = hi.settle([methods.deltas(BASE, x) for x in (A, B)], first, found.choices)
    rest = [block for block in hi.blocks(BASE) if block != first.block]
    table = hi.analyse(BASE, D, SCORE, only=rest)
    assert second == hi.decide(table, table.blocks[table.order[0]])


@pytest.mark.parametrize("scope", methods.SCOPES)
def test_trimming_keeps_half_of_the_fraction_at_half_of_the_factor(scope: str) -> None:
    D = [methods.deltas(BASE, x) for x in (A, B)]
    choices = [hi.Choice(0.8, 0.6, np.zeros(1))] * 2
    block = ("model.layers", 1)
    edited = hi.settle(D, hi.Decision(block, "partial", (1,)), choices, scope=scope)
    assert_same(edited[0], D[0])
    for name, x in edited[1].items():
        if methods.layer(name) == block:
            assert set(np.unique(np.float32(0.3) * D[1][name])) | {0} >= set(np.unique(x))
            if scope == "tensor":
                assert np.count_nonzero(x) == int(0.4 * x.size)
        else:
            np.testing.assert_array_equal(x, D[1][name])
    within = sum(np.count_nonzero(edited[1][n]) for n in SHAPES if methods.layer(n) == block)
    assert within == (int(0.4 * 34) if scope != "tensor" else int(0.4 * 30) + int(0.4 * 4))


def test_the_survivor_of_a_severe_conflict() -> None:
    D = [methods.deltas(BASE, x) for x in (A, B)]
    decision = hi.Decision(("model.layers", 0), "severe", (0,))
    name = "model.layers.0.up"
    for weights, factor in ((None, 1.0), ([0.5, 0.5], 2.0)):
        edited = hi.settle(D, decision, [], weights=weights)
        assert not edited[0][name].any()
        np.testing.assert_array_equal(edited[1][name], np.float32(factor) * D[1][name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"score of task 0 is (nan|inf)"):
        hi.hi_merge(BASE, [A, B], lambda m, x: value, ps=FEW, ss=FEW)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no experts"):
        hi.hi_merge(BASE, [], SCORE)
    with pytest.raises(ValueError, match="1 weights for 2"):
        hi.hi_merge(BASE, [A, B], SCORE, weights=[1.0])
    with pytest.raises(ValueError, match=r"'model.norm' is not in both"):
        hi.hi_merge(BASE, [{n: x for n, x in A.items() if n != "model.norm"}], SCORE)
    with pytest.raises(ValueError, match="no blocks"):
        hi.hi_merge({"w": BASE["model.norm"]}, [{"w": A["model.norm"]}], lambda m, x: 0.0)
    with pytest.raises(ValueError, match="ps and ss"):
        hi.hi_merge(BASE, [A], SCORE, ps=())
    for option in ("consensus", "partial", "again", "survivor", "scope"):
        with pytest.raises(ValueError, match=f"{option} 'other': one of "):
            hi.hi_merge(BASE, [A, B], SCORE, **{option: "other"})
    with pytest.raises(ValueError, match="remeasure_every -1"):
        hi.hi_merge(BASE, [A, B], SCORE, remeasure_every=-1)
    with pytest.raises(ValueError, match="whole survivor"):
        hi.hi_merge(BASE, [A, B], SCORE, weights=[1.0, 0.0], survivor="whole")
