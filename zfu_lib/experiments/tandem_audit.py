"""Arithmetic on the numbers that the Tandem paper prints (arXiv 2604.23623; ``book/quoted/tandem.yml``).

No model is run. Costs are TFLOPs, lengths are tokens, accuracies are percent and their differences points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import Any

import yaml
from scipy import stats

from zfu_lib.reasoning.routing import paper_cost
from zfu_lib.report import paths

MENTOR, INTERN = 32e9, 7e9
"""Parameters of the models of Table 1, as the printed costs need them."""

SUBJECTS = {"Algebra": 1187, "Counting and Probability": 474, "Geometry": 479}
MATH, GSM8K, HUMANEVAL = 5000, 1319, 164
"""Problems of the public test splits."""

DISCORDANCE = {"high": 0.06, "cascade": 0.12, "mentor": 0.15}
"""Assumed share of problems that exactly one of Tandem and the other method solves; not printed anywhere."""


def quoted() -> dict[str, Any]:
    """The tables, as quoted."""
    return yaml.safe_load((paths.root() / "book/quoted/tandem.yml").read_text(encoding="utf-8"))


def mentor_tokens(printed: float, length: float) -> float:
    """L_L that the printed cost of a pair implies: :func:`~zfu_lib.reasoning.routing.paper_cost` solved for it, with
    ``length`` = L_L + L_S."""
    return (printed * 1e12 / 2 - INTERN * length) / MENTOR


def length(printed: float, theta: float) -> float:
    """Tokens that the printed cost of a single model of ``theta`` parameters implies."""
    return printed * 1e12 / (2 * theta)


def questions_needed(difference: float, discordance: float, power: float = 0.8, level: float = 0.05) -> int:
    """Paired questions for a two-sided McNemar test (Connor's normal approximation).

    Args:
        difference: true difference of the two accuracies, points.
        discordance: share of questions that exactly one of the two answers.

    Raises:
        ValueError: no difference, or one larger than the discordance allows.
    """
    d = abs(difference) / 100
    if not 0 < d <= discordance <= 1:
        raise ValueError(f"a difference of {difference} points needs 0 < |difference| / 100 <= {discordance} <= 1")
    a, b = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)
    return math.ceil((a * math.sqrt(discordance) + b * math.sqrt(discordance - d * d)) ** 2 / d**2)


def detectable(n: int, discordance: float, power: float = 0.8, level: float = 0.05) -> float:
    """Points of difference that ``n`` paired questions show: :func:`questions_needed` the other way round, for
    differences much smaller than the discordance."""
    return 100 * (stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)) * math.sqrt(discordance / n)


def smallest_p(a: float, b: float, n: int) -> float:
    """The least p-value two accuracies on ``n`` problems allow in an exact two-sided McNemar test: that of the case in
    which the worse method solves nothing that the better one does not."""
    ahead = abs(round(a / 100 * n) - round(b / 100 * n))
    return min(1.0, 2 * 0.5**ahead)


def impossible(values: Iterable[float], n: int, decimals: int = 2) -> list[float]:
    """Percentages that no count of ``n`` problems gives when rounded (up or to even at a tie) to ``decimals``."""
    unit = Decimal(1).scaleb(-decimals)
    found = []
    for value in values:
        printed = Decimal(str(value))
        near = int(value / 100 * n)
        counts = (Decimal(100 * k) / n for k in range(max(near - 1, 0), min(near + 2, n) + 1))
        ways = {c.quantize(unit, rounding) for c in counts for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN)}
        if printed not in ways:
            found.append(value)
    return found


def accuracies(tables: Mapping[str, Any]) -> dict[int, list[float]]:
    """Every accuracy of Tables 1 to 7 by the size of its public test set."""
    rows = {name: table["rows"] for name, table in tables.items() if "rows" in table}
    found: dict[int, list[float]] = {
        MATH: [row[0] for table in ("table_1", "table_2", "table_6") for row in rows[table].values()],
        GSM8K: [row[2] for row in rows["table_2"].values()],
        HUMANEVAL: list(rows["table_5"].values()),
        SUBJECTS["Counting and Probability"]: [value for row in rows["table_3"].values() for value in row],
    }
    found[MATH] += rows["table_7"].values()
    for subject, value in rows["table_4"].items():
        found.setdefault(SUBJECTS[subject], []).append(value)
    return found


def audit(tables: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of claims A1 to A9, by name."""
    one, two = tables["table_1"]["rows"], tables["table_2"]["rows"]
    low, medium, high = (one[f"7B + 32B {level}"] for level in ("low (100)", "medium (500)", "high (1000)"))
    small, large, tandem = one["7B alone"], one["32B alone"], one["Tandem"]
    errors = [
        paper_cost(0, small[1], 0, INTERN) - small[2],
        paper_cost(large[1], 0, MENTOR, 0) - large[2],
        *(paper_cost(k, row[1] - k, MENTOR, INTERN) - row[2] for k, row in ((100, low), (500, medium))),
    ]
    others = {"high": high[0], "cascade": tables["table_6"]["rows"]["LLM Cascade"][0], "mentor": large[0]}
    needed = {k: questions_needed(tandem[0] - v, DISCORDANCE[k]) / MATH for k, v in others.items()}
    code = tables["table_5"]["rows"]
    pair = two["DS-7B + Qwen3-32B"][3]
    routed = tables["table_6"]["rows"]["LLM Cascade"][1] - small[2]
    twice = [(small, two["DS-7B"]), (large, two["DS-32B"]), (tandem, two["DS-7B + DS-32B"])]
    return {
        "a1_cost_error": max(map(abs, errors)),
        "a1_mentor_tokens_high": mentor_tokens(high[2], high[1]),
        "a2_stopping_share": (high[2] - tandem[2]) / (large[2] - tandem[2]),
        **{f"a3_needed_over_available_{k}": v for k, v in needed.items()},
        "a4_smallest_p": smallest_p(code["Tandem"], code["best fixed level (high)"], HUMANEVAL),
        "a5_cost_over_own_mentor": pair / two["Qwen3-32B"][3],
        "a5_cost_over_other_mentor": pair / two["DS-32B"][3],
        "a6_cascade_share_exclusive": routed / (large[2] - small[2]),
        "a6_cascade_share_pay_both": routed / large[2],
        "a7_accuracy_gap": max(abs(a[0] - b[0]) for a, b in twice),
        "a7_cost_gap": max(abs(b[1] / a[2] - 1) for a, b in twice),
        "a8_impossible_values": sum(len(impossible(values, n)) for n, values in accuracies(tables).items()),
        "a9_impossible_of_1000": len(impossible(accuracies(tables)[GSM8K], 1000)),
    }


def savings(tables: Mapping[str, Any]) -> dict[str, float]:
    """Where Table 1's saving comes from, percent of the large model's cost: ``total``, by the ``cap`` of 1000 mentor
    tokens, by ``stopping``; and ``stopping_of_high``, percent of the fixed high level's cost."""
    rows = tables["table_1"]["rows"]
    large, high, tandem = (rows[name][2] for name in ("32B alone", "7B + 32B high (1000)", "Tandem"))
    return {
        "total": 100 * (1 - tandem / large),
        "cap": 100 * (1 - high / large),
        "stopping": 100 * (high - tandem) / large,
        "stopping_of_high": 100 * (1 - tandem / high),
    }


def implied(tables: Mapping[str, Any]) -> dict[str, float]:
    """Tokens that printed costs imply: the mentor's in each pair of Table 1, and the mean length of the single models
    in Table 2 (on MATH and on GSM8K), with the parameters that the names say."""
    found = {
        name: mentor_tokens(row[2], row[1])
        for name, row in tables["table_1"]["rows"].items()
        if not name.endswith("alone")
    }
    for name, size in (("Qwen3-8B", 8e9), ("Qwen3-32B", 32e9), ("DS-7B", 7e9), ("DS-32B", 32e9)):
        row = tables["table_2"]["rows"][name]
        found |= {f"{name}, MATH": length(row[1], size), f"{name}, GSM8K": length(row[3], size)}
    return found
