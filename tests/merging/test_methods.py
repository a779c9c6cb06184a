"""Limiting cases and properties of the methods on whole tensors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zfu_lib.merging import methods

HALF = [0.5, 0.5]
SOME = [0.6, 0.3]
# Everything built as base + sum of weighted, thinned deltas; `density` is left open.
SUMS = {
    "ties": lambda b, m, w, p: methods.ties(b, m, w, p, normalize=False),
    "dare_linear": lambda b, m, w, p: methods.dare(b, m, w, p),
    "dare_ties": lambda b, m, w, p: methods.dare(b, m, w, p, "sum"),
    "della_linear": lambda b, m, w, p: methods.della(b, m, w, p, 0.1, "none", normalize=False),
    "della": lambda b, m, w, p: methods.della(b, m, w, p, 0.1, normalize=False),
    "breadcrumbs": lambda b, m, w, p: methods.breadcrumbs(b, m, w, p),
    "breadcrumbs_ties": lambda b, m, w, p: methods.breadcrumbs(b, m, w, p, consensus="sum"),
    "hi_merging": lambda b, m, w, p: methods.hi_merging(b, m, w, p, [1.0] * len(m)),
    "hi_merging_sum": lambda b, m, w, p: methods.hi_merging(b, m, w, p, [1.0] * len(m), consensus="sum"),
}


def model(seed: int, near: dict | None = None) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"model.layers.10.w": (6, 9), "model.layers.2.w": (5, 8), "model.norm": (7,), "one": (1,)}
    made = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return made if near is None else {name: near[name] + np.float32(0.1) * x for name, x in made.items()}


BASE = model(0)
A, B, C = (model(i, BASE) for i in (1, 2, 3))


def assert_same(x: dict, y: dict) -> None:
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@pytest.mark.parametrize("name", SUMS)
def test_one_model_of_density_one_is_task_arithmetic(name: str) -> None:
    assert_same(SUMS[name](BASE, [A], [0.7], [1.0]), methods.task_arithmetic(BASE, [A], [0.7]))


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "breadcrumbs", "hi_merging"])
def test_density_one_without_election_is_task_arithmetic(name: str) -> None:
    merged = SUMS[name](BASE, [A, B], SOME, [1.0, 1.0])
    assert_same(merged, methods.task_arithmetic(BASE, [A, B], SOME))


@pytest.mark.parametrize("name", SUMS)
def test_no_delta_gives_the_base(name: str) -> None:
    assert_same(SUMS[name](BASE, [BASE, BASE], SOME, [0.5, 0.4]), BASE)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", "hi_merging", "hi_merging_sum"])
def test_identical_experts_merge_to_the_same_as_one(name: str) -> None:
    merged = SUMS[name](BASE, [A, A], HALF, [0.5, 0.5])
    assert_same(merged, SUMS[name](BASE, [A], [1.0], [0.5]))
    assert any(not np.array_equal(merged[n], A[n]) for n in merged), "something was pruned"


def test_identical_models_merge_to_themselves() -> None:
    assert_same(methods.linear([A, A], HALF), A)
    assert_same(methods.slerp(A, A, 0.5), A)
    for name, merged in methods.model_stock(BASE, [A, A]).items():
        np.testing.assert_allclose(merged, A[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", "hi_merging", "hi_merging_sum"])
def test_the_order_of_two_experts_does_not_matter(name: str) -> None:
    """Of two, because fp32 sums of three depend on their order; what is drawn at random depends on the position."""
    assert_same(SUMS[name](BASE, [A, B], SOME, [0.5, 0.2]), SUMS[name](BASE, [B, A], SOME[::-1], [0.2, 0.5]))


def test_the_order_of_two_models_does_not_matter_for_averages() -> None:
    assert_same(methods.linear([A, B], HALF), methods.linear([B, A], HALF))
    for name, merged in methods.linear([A, B], SOME).items():
        np.testing.assert_allclose(merged, methods.linear([B, A], SOME[::-1])[name], rtol=1e-5, atol=1e-6)
    assert_same(methods.model_stock(BASE, [A, B]), methods.model_stock(BASE, [B, A]))
    assert_same(methods.task_arithmetic(BASE, [A, B], SOME), methods.task_arithmetic(BASE, [B, A], SOME[::-1]))


def test_linear_is_the_weighted_mean() -> None:
    merged = methods.linear([A, B, C], [1, 2, 3])
    for name in merged:
        expected = (A[name].astype(float) + 2.0 * B[name] + 3.0 * C[name]) / 6
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_slerp_reaches_its_ends_and_keeps_the_norm_between_unit_vectors() -> None:
    x, y = {"w": np.array([1, 0, 0], np.float32)}, {"w": np.array([0, 1, 0], np.float32)}
    np.testing.assert_allclose(methods.slerp(x, y, 0)["w"], x["w"], atol=1e-7)
    np.testing.assert_allclose(methods.slerp(x, y, 1)["w"], y["w"], atol=1e-7)
    np.testing.assert_allclose(methods.slerp(x, y, 1 / 3)["w"], [np.cos(np.pi / 6), 0.5, 0], atol=1e-6)


def test_model_stock_of_orthogonal_deltas_is_the_base_and_of_equal_ones_their_model() -> None:
    base = {"w": np.zeros(4, np.float32)}
    x, y = ({"w": np.eye(4, dtype=np.float32)[i]} for i in (0, 1))
    np.testing.assert_array_equal(methods.model_stock(base, [x, y])["w"], base["w"])
    np.testing.assert_allclose(methods.model_stock(base, [x, x])["w"], x["w"])
    # cos = 1/2: t = 2 * (1/2) / (1 + 1/2) = 2/3 of the way to the mean.
    z = {"w": np.array([1, np.sqrt(3), 0, 0], np.float32) / np.float32(2)}
    np.testing.assert_allclose(methods.model_stock(base, [x, z])["w"], (x["w"] + z["w"]) / 3, rtol=1e-6)


def test_ties_by_hand() -> None:
    """Two models, one parameter each where they agree, where they do not, where one was trimmed, and a tie at zero."""
    base = {"w": np.zeros(5, np.float32)}
    x, y = ({"w": np.array(w, np.float32)} for w in ([3, 4, 2, 5, 0.1], [1, -2, 0.1, -5, 0.2]))
    merged = methods.ties(base, [x, y], [1, 1], [0.8, 0.8])["w"]
    np.testing.assert_array_equal(merged, np.array([2, 4, 2, 5, 0.2], np.float32))


def test_hi_merging_by_hand() -> None:
    base = {"w": np.ones(4, np.float32)}
    x = {"w": np.array([1.5, 3, 1, -3], np.float32)}
    merged = methods.hi_merging(base, [x], [1.0], [0.5], [0.5])["w"]
    np.testing.assert_array_equal(merged, np.array([1, 2, 1, -1], np.float32))


def test_scope_decides_over_what_the_fraction_is_taken() -> None:
    delta = {"model.layers.0.w": np.array([1.0, 2]), "model.layers.0.v": np.array([3.0, 4]), "head": np.array([5.0, 6])}
    kept = {scope: methods.prune_and_scale(delta, 0.5, 1.0, scope) for scope in methods.SCOPES}
    assert [x.tolist() for x in kept["tensor"].values()] == [[0, 6], [0, 4], [0, 2]]
    assert kept["layer"]["model.layers.0.w"].tolist() == [0, 0]
    assert kept["layer"]["model.layers.0.v"].tolist() == [3, 4]
    assert kept["layer"]["head"].tolist() == [0, 6]
    assert kept["model"]["head"].tolist() == [5, 6]
    assert kept["model"]["model.layers.0.v"].tolist() == [0, 4]
    with pytest.raises(ValueError, match="scope 'row'"):
        methods.prune_and_scale(delta, 0.5, 1.0, "row")


def test_prune_and_scale_then_add_is_hi_merging() -> None:
    pruned = [
        methods.prune_and_scale(methods.deltas(BASE, m), p, s, "layer") for m, p, s in ((A, 0.3, 0.9), (B, 0.6, 0.5))
    ]
    for consensus in ("none", "sum"):
        whole = methods.hi_merging(BASE, [A, B], SOME, [0.3, 0.6], [0.9, 0.5], "layer", consensus)
        assert_same(methods.add_deltas(BASE, pruned, SOME, consensus), whole)


def test_equal_magnitudes_are_kept_in_order_of_tensors_by_number() -> None:
    delta = {"model.layers.10.w": np.ones(3), "model.layers.2.w": np.ones(3)}
    kept = methods.prune_and_scale(delta, 4 / 6, 1.0, "model")
    assert kept["model.layers.2.w"].tolist() == [1, 1, 1]
    assert kept["model.layers.10.w"].tolist() == [1, 0, 0]


few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-45, -1e-45, 1e-40, 3.4e38])


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=few), st.floats(0, 1))
def test_top_abs_keeps_exactly_k_and_of_equal_ones_the_first(values: np.ndarray, density: float) -> None:
    k = methods.kept(values.size, density)
    keep = methods.top_abs(values, k)
    order = sorted(range(values.size), key=lambda i: (-abs(float(values[i])), i))
    assert np.flatnonzero(keep).tolist() == sorted(order[:k])


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 0.5))
def test_breadcrumbs_keeps_the_density_between_the_outliers_and_the_small(n: int, density: float, gamma: float) -> None:
    upper, lower = methods.breadcrumbs_counts(n, density, gamma)
    assert 0 <= upper <= lower <= n
    assert lower - upper == (n if density >= 1 else int(density * n))
    if density < 1 and int(density * n) + int(gamma * n) <= n:
        assert upper == int(gamma * n)


@given(st.integers(0, 2000), st.integers(0, 300), st.integers(0, 50))
def test_random_bits_do_not_depend_on_the_cut(start: int, count: int, seed: int) -> None:
    whole = methods.random_bits(seed, 1, "w", 0, start + count)
    np.testing.assert_array_equal(methods.random_bits(seed, 1, "w", start, count), whole[start:])


def test_random_bits_are_their_own_for_seed_model_and_tensor() -> None:
    keys = [(0, 0, "w"), (1, 0, "w"), (0, 1, "w"), (0, 0, "v")]
    drawn = [tuple(methods.random_bits(*key, 0, 4).tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_dare_keeps_the_mean_and_the_fraction() -> None:
    base = {"w": np.zeros(200_000, np.float32)}
    expert = {"w": np.ones(200_000, np.float32)}
    for seed in range(3):
        merged = methods.dare(base, [expert], [1.0], [0.2], seed=seed)["w"]
        assert set(np.unique(merged)) == {np.float32(0), np.float32(5)}
        assert abs(merged.mean() - 1) < 0.025, "5.6 standard errors"
    norm = methods.dare(base, [expert], [1.0], [0.2], rescale="l1")["w"]
    assert norm.sum(dtype=float) == pytest.approx(200_000, rel=1e-6)


def test_della_keeps_more_of_the_larger_and_the_mean() -> None:
    rows, width = 20_000, 5
    base = {"w": np.zeros((rows, width), np.float32)}
    expert = {"w": np.tile(np.array([4, 1, 5, 2, 3], np.float32), (rows, 1))}
    merged = methods.della(base, [expert], [1.0], [0.5], 0.2, "none", normalize=False)["w"]
    expected = 0.3 + 0.1 * np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose((merged != 0).mean(axis=0), expected, atol=0.02)
    np.testing.assert_allclose(merged.mean(axis=0), expert["w"][0], rtol=0.06)
    with pytest.raises(ValueError, match="leaves"):
        methods.della(base, [expert], [1.0], [0.9], 0.2)


@settings(max_examples=30)
@given(
    hnp.arrays(np.float32, 12, elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.float32, 12, elements=st.floats(-5, 5, width=32)),
    st.lists(st.floats(-2, 2), min_size=2, max_size=2),
)
def test_elected_parts_share_one_sign(x: np.ndarray, y: np.ndarray, weights: list[float]) -> None:
    merged = methods.combine([x, y], weights, "sum", False, 1.0)
    parts = [np.float32(w) * p for w, p in zip(weights, (x, y))]
    total = parts[0] + parts[1]
    up = sum(np.maximum(p, 0) for p in parts)
    down = sum(np.minimum(p, 0) for p in parts)
    np.testing.assert_array_equal(merged, np.where(total >= 0, up, down))


def test_weights_cancel_when_normalised_and_count_when_not() -> None:
    normalised = [methods.ties(BASE, [A], [w], [0.5]) for w in (0.5, 2.0)]
    assert_same(*normalised)
    plain = [methods.ties(BASE, [A], [w], [0.5], normalize=False) for w in (0.5, 2.0)]
    assert not np.array_equal(plain[0]["one"], plain[1]["one"])


def test_lora_delta_is_the_product() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((3, 7)), generator.standard_normal((5, 3))
    np.testing.assert_allclose(methods.lora_delta(a, b, 0.5), 0.5 * b @ a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (partial(methods.linear, [], []), "no models"),
        (partial(methods.linear, [A, B], [1.0]), "1 weights for 2 models"),
        (partial(methods.linear, [A, B], [1.0, -1.0]), "sum to zero"),
        (partial(methods.linear, [A, {}], HALF), "is not in both"),
        (partial(methods.linear, [A, A | {"one": np.zeros(2)}], HALF), "has shape"),
        (partial(methods.ties, BASE, [A, B], HALF, [0.5]), "1 densities for 2 models"),
        (partial(methods.hi_merging, BASE, [A], [1.0], [0.5], [1.0, 1.0]), "2 scales for 1 models"),
        (partial(methods.model_stock, BASE, [A]), "at least two"),
    ],
)
def test_what_does_not_fit_is_refused(call: partial, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_names_and_layers() -> None:
    assert methods.names(["b.10.x", "b.9.x", "a"]) == ["a", "b.9.x", "b.10.x"]
    assert methods.layer("model.layers.3.mlp.experts.7.w") == ("model.layers", 3)
    assert methods.layer("transformer.h.11") == ("transformer.h", 11)
    assert methods.layer("lm_head.weight") is None
