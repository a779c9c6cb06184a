"""The arithmetic on Tandem's printed numbers, and the verdicts it leads to."""

import copy
import math

import numpy as np
import pytest
from scipy import stats

from zfu_lib.experiments import tandem_audit
from zfu_lib.report import claims, statistics, verdicts
from zfu_lib.report.verdicts import Verdict


@pytest.fixture(scope="module")
def tables():
    return tandem_audit.quoted()


def judged(measured, letter="A"):
    exact = {name: statistics.exact(value) for name, value in measured.items()}
    listed = [claim for claim in claims.load("tandem").claims if claim.id.startswith(f"tandem.{letter}")]
    return {claim.id.split(".")[1]: verdicts.judge(claim, "quick", exact).verdict for claim in listed}


def test_every_quoted_table_says_where_it_comes_from(tables):
    assert all(table["source"] and table["confirmed"] is False for table in tables.values())


def test_the_audit_by_hand(tables):
    found = tandem_audit.audit(tables)
    # Low: 2 (32 x 100 + 7 x 2735) / 1000 = 44.69 against 44.76. High: (104.62 / 2 - 7 x 2.930) / 32 = 0.99375.
    assert found["a1_cost_error"] == pytest.approx(0.07)
    assert found["a1_mentor_tokens_high"] == pytest.approx(993.75)
    assert found["a2_stopping_share"] == pytest.approx((104.62 - 99.72) / (168.35 - 99.72))
    assert found["a4_smallest_p"] == 0.25  # three coins on one side, twice
    assert found["a5_cost_over_other_mentor"] == pytest.approx(76.87 / 67.14)
    assert found["a6_cascade_share_exclusive"] == pytest.approx(0.44, abs=0.005)
    assert found["a6_cascade_share_pay_both"] == pytest.approx(0.34, abs=0.005)
    assert found["a7_accuracy_gap"] == pytest.approx(0.22)
    saved = tandem_audit.savings(tables)
    assert [round(saved[k], 1) for k in ("total", "cap", "stopping_of_high")] == [40.8, 37.9, 4.7]
    tokens = tandem_audit.implied(tables)
    assert [round(tokens[k]) for k in ("Tandem", "DS-32B, MATH", "Qwen3-8B, GSM8K")] == [920, 2560, 1991]


def test_the_audits_lead_to_these_verdicts(tables):
    found = judged(tandem_audit.audit(tables))
    adds_up = {name for name, verdict in found.items() if verdict is Verdict.REPRODUCED}
    assert adds_up == {"A1", "A3c", "A6", "A8"}
    assert {found[name] for name in set(found) - adds_up} == {Verdict.DOES_NOT_ADD_UP}


def test_other_tables_lead_to_other_verdicts(tables):
    other = copy.deepcopy(tables)
    rows = other["table_1"]["rows"]
    rows["7B alone"][2] *= 2  # A1: the law no longer holds
    rows["Tandem"] = [86.0, 2916, 40.0]  # A2 and A3: stopping saves most, and the lead is large
    other["table_5"]["rows"]["Tandem"] = 89.02
    other["table_2"]["rows"]["DS-7B"][0] = 77.01  # A8: no count of 5,000
    for row, value in zip(other["table_2"]["rows"].values(), (89.6, 94.0, 87.1, 94.5, 94.6, 95.5)):
        row[2] = value
    found = judged(tandem_audit.audit(other))
    assert found["A1"] is found["A8"] is Verdict.DOES_NOT_ADD_UP
    assert {found[name] for name in ("A2", "A3", "A3b", "A4", "A9")} == {Verdict.REPRODUCED}


def test_a_number_of_questions_has_the_power_it_promises():
    needed = tandem_audit.questions_needed(3.0, 0.12)
    rng = np.random.default_rng(0)
    gained, lost, _ = rng.multinomial(needed, (0.075, 0.045, 0.88), size=20_000).T
    power = (np.abs(gained - lost) / np.sqrt(gained + lost) > stats.norm.ppf(0.975)).mean()
    assert power == pytest.approx(0.8, abs=0.02)
    assert tandem_audit.detectable(needed, 0.12) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("difference", [0, 13])
def test_a_difference_that_cannot_be_is_refused(difference):
    with pytest.raises(ValueError, match="points needs"):
        tandem_audit.questions_needed(difference, 0.12)


def test_counts_are_possible_and_everything_between_is_not():
    counts = [float(f"{100 * k / 474:.2f}") for k in range(475)]
    assert tandem_audit.impossible(counts, 474) == []
    assert tandem_audit.impossible([50.10], 474) == [50.10]
    assert tandem_audit.impossible([100.0, 0.0, 94.62], 1000) == [94.62]


def test_the_best_case_of_mcnemar():
    assert tandem_audit.smallest_p(50, 50, 164) == 1
    assert tandem_audit.smallest_p(85.37, 83.54, 164) == pytest.approx(stats.binomtest(3, 3).pvalue)


def test_the_claims_of_a_run_can_be_won_and_lost():
    """Every rule of quick, on numbers well inside and well outside it."""
    listed = [claim for claim in claims.load("tandem").claims if claim.id.startswith("tandem.T")]

    def inside(condition, outside=False):
        low = -math.inf if condition.min is None else condition.min
        high = math.inf if condition.max is None else condition.max
        step = -1 if outside else 1
        if low == high:
            return low + outside
        return low + step if math.isinf(high) else high - step

    for claim in listed:
        rule = claim.test["quick"]
        good = {c.measurement: statistics.exact(inside(c)) for c in (*rule.requires, *rule.conditions)}
        assert verdicts.judge(claim, "quick", good).verdict is Verdict.DIRECTION_HOLDS, claim.id
        for condition in rule.conditions:
            bad = good | {condition.measurement: statistics.exact(inside(condition, outside=True))}
            assert verdicts.judge(claim, "quick", bad).verdict is Verdict.NOT_REPRODUCED, claim.id
        for condition in rule.requires:
            bad = good | {condition.measurement: statistics.exact(inside(condition, outside=True))}
            assert verdicts.judge(claim, "quick", bad).verdict is Verdict.INCONCLUSIVE, claim.id
