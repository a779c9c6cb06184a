"""Routing metrics against hand-made cases, and the loaders on a file made here."""

import csv
import hashlib

import numpy as np
import pytest
import yaml

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.experiments import router_data
from zfu_lib.experiments.router_data import STRONG, WEAK, Outcomes, apgr, auc, cpt, curve, gap_recovered


def recorded(n=200, seed=0):
    """Rows in which longer questions are harder for the weak model, whose wrong answers lack the final form."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(rng.integers(1, 30))
        weak = bool(rng.random() < 1 - length / 40)
        final = "#### 7" if weak or rng.random() < 0.3 else "so it is unclear"
        question = f"Item {i}: {'a pen costs $3 more each day. ' * length}How much in total?"
        rows.append({"prompt": question, WEAK: weak, STRONG: bool(rng.random() < 0.9), f"{WEAK}_response": final})
    return rows


def test_the_file_is_read_without_the_contaminated_rows(tmp_path, monkeypatch):
    rows = [row | {f"{STRONG}_response": "x,\n#### 7"} for row in recorded(1000)]
    with (tmp_path / "gsm8k_responses.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    data = (tmp_path / "gsm8k_responses.csv").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    file = {"path": "gsm8k_responses.csv", "url": None, "bytes": len(data), "sha256": digest}
    entry = {"name": "routellm_gsm8k", "description": "x", "licence": "x", "citation": "x", "note": "x"}
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump({"datasets": [entry | {"files": [file]}]}))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.yml")
    monkeypatch.setenv("ZFU_DATA", str(tmp_path))
    found = router_data.load()
    assert len(found.questions) == len(found.weak) == 1000 - len(router_data.CONTAMINATED)
    kept = [row for i, row in enumerate(rows) if i not in router_data.CONTAMINATED]
    assert list(found.questions) == [row["prompt"] for row in kept]
    assert found.weak.tolist() == [row[WEAK] for row in kept]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[0].pop(STRONG), "without gpt-4"),
        (lambda rows: rows[0].update({WEAK: "True"}), "true or false"),
        (lambda rows: rows.append(rows[0] | {"prompt": rows[0]["prompt"].upper() + " "}), "comes twice"),
    ],
)
def test_records_that_cannot_be_used(change, says):
    rows = recorded(20)
    change(rows)
    with pytest.raises(DataError, match=says):
        router_data.outcomes(rows)


FOUR = Outcomes((), (), np.array([False, False, True, True]), np.array([True, False, True, False]))
"""Accuracies 0.5 and 0.5: no gap."""
GAP = Outcomes((), (), np.array([False, False, True, True]), np.array([True, True, True, False]))
"""Gains +1, +1, 0, -1; accuracies 0.5 and 0.75."""


def test_a_curve_by_hand():
    assert curve(np.array([4, 3, 2, 1.0]), GAP).tolist() == [0.5, 0.75, 1.0, 1.0, 0.75]
    assert curve(np.array([1, 2, 3, 4.0]), GAP).tolist() == [0.5, 0.25, 0.25, 0.5, 0.75]
    # Equal scores in random order: halfway through the pair of +1 and -1 nothing is gained on average.
    assert curve(np.array([2, 1, 0, 1.0]), GAP).tolist() == [0.5, 0.75, 0.75, 0.75, 0.75]
    assert np.allclose(curve(np.zeros(4), GAP), np.linspace(0.5, 0.75, 5))


def test_ties_are_the_mean_over_orders():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, 40).astype(float)
    found = Outcomes((), (), rng.random(40) < 0.4, rng.random(40) < 0.8)
    orders = [curve(scores + 1e-6 * rng.random(40), found) for _ in range(4000)]
    assert np.abs(np.mean(orders, 0) - curve(scores, found)).max() < 0.01


def test_the_gap_recovered_and_its_thresholds():
    best = curve(np.array([4, 3, 2, 1.0]), GAP)
    assert gap_recovered(best, GAP).tolist() == [0, 1, 2, 2, 1]
    assert cpt(best, GAP, 0.5) == pytest.approx(0.125)
    assert cpt(best, GAP, 1.0) == pytest.approx(0.25)
    assert apgr(best, GAP, points=4) == pytest.approx((0 / 2 + 1 + 2 + 2 + 1 / 2) / 4)
    random = curve(np.zeros(4), GAP)
    assert apgr(random, GAP) == pytest.approx(0.5)
    assert [cpt(random, GAP, x) for x in (0.0, 0.5, 0.8, 1.0)] == pytest.approx([0, 0.5, 0.8, 1.0])
    with pytest.raises(ValueError, match="no gap"):
        gap_recovered(best, FOUR)


def test_auc_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 300), rng.random(300) < 0.3
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(auc(scores, labels & False))


def test_what_a_cascade_and_a_router_cost():
    accuracies = np.array([0.5, 0.75, 0.8])
    assert router_data.cost_curve(accuracies, 0.1, cascade=False)[0].tolist() == pytest.approx([0.1, 0.55, 1.0])
    assert router_data.cost_curve(accuracies, 0.1, cascade=True)[0].tolist() == pytest.approx([0.1, 0.6, 1.1])


def test_features_by_hand():
    features = router_data.question_features(
        "Tom has 1,200 pens. He gives half of them to each of 2 friends. 2.5% are left?"
    )
    assert features[1:7] == pytest.approx([17, 3, 3, 3, np.log1p(1200), 1])
    assert features[7:9] == [1, 1]  # half; 2.5%
    assert router_data.question_features("")[:7] == [0] * 7
    assert router_data.answer_features("a = 3\n#### $-1,200")[4:] == [1, 0, 1, 0]
    assert router_data.answer_features("However, it is unclear ####,") == [28, 0, 0, 0, 0, 2, 0, 0]
    assert router_data.answer_features("#### 2.5")[-1] == 1


def test_no_question_is_scored_by_a_model_that_saw_it():
    """Each question is one of a kind and its label a coin's: a leak would be remembered."""
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.5
    one_hot = np.eye(300)
    assert abs(auc(router_data.out_of_fold(one_hot, labels), labels) - 0.5) < 0.1
    remembered = router_data.LogisticRegression(C=1e3).fit(one_hot, labels).predict_proba(one_hot)[:, 1]
    assert auc(remembered, labels) > 0.99


@pytest.fixture(scope="module")
def measured():
    found = router_data.outcomes(recorded(600))
    return found, *router_data.measure(found, router_data.arms(found), resamples=100)


def test_a_router_beats_chance_a_cascade_beats_it_and_an_oracle_beats_all(measured):
    found, routings, difference = measured
    assert routings["random"].apgr.mean == pytest.approx(0.5)
    assert routings["router"].auc.low > 0.55
    for better, worse in (("router", "random"), ("cascade", "router"), ("oracle", "cascade")):
        assert difference(better, worse).low > 0, (better, worse)
    assert difference("router", "random").mean == pytest.approx(routings["router"].apgr.mean - 0.5)
    assert routings["oracle"].cpt80.mean < routings["cascade"].cpt80.mean < 0.8
    assert {name: len(r.accuracy) for name, r in routings.items()} == dict.fromkeys(routings, len(found.weak) + 1)


def test_scores_that_know_nothing_lose(measured):
    found = measured[0]
    shuffled = {"shuffled": np.random.default_rng(0).permutation(measured[1]["router"].scores), "random": np.zeros(600)}
    _, difference = router_data.measure(found, shuffled, resamples=100)
    assert difference("shuffled", "random").low < 0 < difference("shuffled", "random").high
