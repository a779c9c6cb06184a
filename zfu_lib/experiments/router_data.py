"""Routing between two real models without running one: RouteLLM's recorded answers of Mixtral-8x7B-Instruct (weak) and
GPT-4-1106-preview (strong) to the 1,319 test questions of GSM8K (arXiv 2406.18665).

A *router* sees the question and calls one model. A *cascade* calls the weak model first, reads its answer too, and may
then call the strong one. Both are logistic regressions here, on numbers read off the text or on TF-IDF; no language
model is involved. Scores are out of fold: no question is scored by a model that saw it. ``n`` is the number of
questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from zfu_lib.data.catalogue import DataError
from zfu_lib.data.tables import table
from zfu_lib.report.statistics import CONFIDENCE, Interval

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
CONTAMINATED = (0, 1, 2, 18, 67, 147, 233, 269, 285, 364, 530, 932)
"""Rows that RouteLLM leaves out because its own training data holds them (``eval_idx`` of its file of contaminated
prompts). Nothing is trained on that data here; they are left out to have the same 1,307 questions."""


@dataclass(frozen=True)
class Outcomes:
    """``questions`` [n]; ``answers`` [n] of the weak model; ``weak``, ``strong`` [n] bool, whether each was right."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weak: np.ndarray
    strong: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """[n] -1, 0 or 1: what calling the strong model instead changes."""
        return self.strong.astype(int) - self.weak


def load() -> Outcomes:
    """The recorded outcomes less the contaminated questions, n = 1,307.

    Raises:
        DataError: as :func:`zfu_lib.data.catalogue.get`.
    """
    return outcomes(table("routellm_gsm8k", "gsm8k_responses.csv").to_list(), CONTAMINATED)


def outcomes(rows: Sequence[Mapping], contaminated: Sequence[int] = ()) -> Outcomes:
    """From the rows of the file, without those at the positions ``contaminated``.

    Raises:
        DataError: a field is missing, an outcome is not true or false, or a question comes twice (its two rows could
            then fall on both sides of a split).
    """
    columns = ("prompt", WEAK, STRONG, f"{WEAK}_response")
    kept = [row for i, row in enumerate(rows) if i not in contaminated]
    if missing := {column for row in kept for column in columns if column not in row}:
        raise DataError(f"recorded outcomes without {', '.join(sorted(missing))}")
    if not all(isinstance(row[model], bool) for row in kept for model in (WEAK, STRONG)):
        raise DataError("recorded outcomes must be true or false")
    found = Outcomes(
        tuple(row["prompt"] for row in kept),
        tuple(row[f"{WEAK}_response"] or "" for row in kept),
        *(np.array([row[model] for row in kept], dtype=bool) for model in (WEAK, STRONG)),
    )
    if len({" ".join(text.split()).casefold() for text in found.questions}) < len(found.questions):
        raise DataError("a question comes twice")
    return found


# What a router can see

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_WORDS = {
    "ratio": r"\b(?:half|third|quarter|twice|thrice|double|triple|times)\b|\d/\d",
    "percent": r"%|\bpercent",
    "compare": r"\b(?:more|less|fewer|greater|older|younger|longer|shorter|than)\b",
    "rate": r"\b(?:each|every|per|an hour|a day|a week|a month)\b",
    "rest": r"\b(?:left|remain\w*|rest|change|difference|profit)\b",
    "total": r"\b(?:total|altogether|combined|sum|all)\b",
    "average": r"\b(?:average|mean)\b",
    "condition": r"\b(?:if|unless|after|before|until|then)\b",
    "money": r"\$|\b(?:dollars?|cents?)\b",
    "time": r"\b(?:hours?|minutes?|days?|weeks?|months?|years?)\b",
}
_PATTERNS = [re.compile(pattern, re.IGNORECASE) for pattern in _WORDS.values()]


def question_features(text: str) -> list[float]:
    """Lengths (characters, words, sentences), numbers (how many, how many different, size of the largest, decimals),
    and how often each kind of word comes that names an operation or a unit."""
    numbers = [number.replace(",", "") for number in _NUMBER.findall(text)]
    largest = max((float(number) for number in numbers), default=0.0)
    sentences = len(re.findall(r"[.?!](?:\s|$)", text))
    counts = [len(pattern.findall(text)) for pattern in _PATTERNS]
    decimals = sum("." in number for number in numbers)
    sizes = [len(text), len(text.split()), sentences, len(numbers), len(set(numbers)), np.log1p(largest), decimals]
    return [*map(float, sizes), *map(float, counts)]


def answer_features(text: str) -> list[float]:
    """Of the weak model's answer: length, lines, equations, numbers, whether it ends in the asked form (``#### 18``),
    hedging, and a negative or broken final number."""
    final = re.findall(r"####\s*\$?(-?\d[\d,]*(?:\.\d+)?)", text)
    value = float(final[-1].replace(",", "")) if final else 0.0
    return [
        float(len(text)),
        float(text.count("\n")),
        float(text.count("=")),
        float(len(_NUMBER.findall(text))),
        float(bool(final)),
        float(len(re.findall(r"\b(?:however|but|assum\w*|cannot|unclear|approximately|let's)\b", text, re.IGNORECASE))),
        float(value < 0),
        float(value != int(value)),
    ]


def _numbers(kind: Callable[[str], list[float]], texts: Sequence[str]) -> np.ndarray:
    return np.array([kind(text) for text in texts])


def out_of_fold(inputs: Sequence[str] | np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Scores [n] of a logistic regression, each from a fit to the other folds; texts become TF-IDF of words and pairs.

    Args:
        inputs: texts, or an array [n, features] that is standardised on each fit.
        labels: [n] bool.

    Raises:
        ValueError: a fold's training part holds one class only, or there are fewer questions than folds.
    """
    numeric = isinstance(inputs, np.ndarray)
    rows = inputs if numeric else np.array(inputs, dtype=object)
    scores = np.empty(len(rows))
    for fit, held_out in KFold(folds, shuffle=True, random_state=seed).split(rows):
        first = StandardScaler() if numeric else TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
        model = make_pipeline(first, LogisticRegression(solver="liblinear"))
        model.fit(rows[fit], labels[fit])
        scores[held_out] = model.predict_proba(rows[held_out])[:, 1]
    return scores


# What routing by a score achieves


def curve(scores: np.ndarray, found: Outcomes) -> np.ndarray:
    """Accuracy [n + 1] when the 0, 1 ... n questions with the highest scores go to the strong model. Equal scores are
    taken in random order: the curve is the expectation, a straight line across each group of them."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    total = np.concatenate([[0], np.cumsum(found.gain[order])])
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(scores)]])
    return found.weak.mean() + np.interp(np.arange(len(scores) + 1), edges, total[edges]) / len(scores)


def gap_recovered(accuracies: np.ndarray, found: Outcomes) -> np.ndarray:
    """PGR, the share of the gap between the two models that is recovered: 0 for weak alone, 1 for strong alone.

    Raises:
        ValueError: the strong model is no better, so there is no gap.
    """
    weak, strong = found.weak.mean(), found.strong.mean()
    if strong <= weak:
        raise ValueError(f"no gap to recover: weak {weak:.3f}, strong {strong:.3f}")
    return (accuracies - weak) / (strong - weak)


def apgr(accuracies: np.ndarray, found: Outcomes, points: int = 10) -> float:
    """Average PGR over shares of strong calls: the area under it by trapezoids between ``points`` + 1 equally spaced
    shares, as the public code has it. Random routing has 0.5."""
    shares = np.linspace(0, 1, points + 1)
    recovered = gap_recovered(accuracies, found)
    return float(np.trapezoid(np.interp(shares, np.linspace(0, 1, len(recovered)), recovered), shares))


def cpt(accuracies: np.ndarray, found: Outcomes, target: float) -> float:
    """Call-performance threshold: the smallest share of strong calls (0 to 1) that recovers ``target`` of the gap."""
    recovered = gap_recovered(accuracies, found)
    k = int(np.argmax(recovered >= target - 1e-12))
    if k == 0:
        return 0.0
    before, after = recovered[k - 1], recovered[k]
    return float((k - 1 + (target - before) / (after - before)) / (len(recovered) - 1))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve from ranks (Mann-Whitney; equal scores count half). Faster than scikit-learn's, which
    matters in a bootstrap; NaN with one class."""
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    return float((rankdata(scores)[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def cost_curve(accuracies: np.ndarray, weak_price: float, *, cascade: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean cost per question in strong calls, and accuracy, along a curve. A router pays one model, a cascade the weak
    one always; ``weak_price`` is that of a weak call in strong calls."""
    share = np.linspace(0, 1, len(accuracies))
    return (weak_price if cascade else weak_price * (1 - share)) + share, accuracies


@dataclass(frozen=True)
class Routing:
    """One way to score questions: AUC for "the strong model is needed" (right where the weak one is not), APGR, and
    the share of strong calls for 50% and 80% of the gap; bootstrap over questions, scores kept."""

    name: str
    scores: np.ndarray
    accuracy: np.ndarray
    auc: Interval
    apgr: Interval
    cpt50: Interval
    cpt80: Interval


def arms(found: Outcomes, *, folds: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores [n] by name. All learn whether the weak model is wrong; ``length`` is the trivial baseline, ``random``
    (one score for all) and ``oracle`` are the ends."""
    question = _numbers(question_features, found.questions)
    answer = _numbers(answer_features, found.answers)
    wrong = ~found.weak
    fitted = {
        "length": question[:, :1],
        "router": question,
        "router, TF-IDF": found.questions,
        "cascade": np.hstack([question, answer]),
    }
    scores = {name: out_of_fold(inputs, wrong, folds=folds, seed=seed) for name, inputs in fitted.items()}
    return {"random": np.zeros(len(wrong)), **scores, "oracle": found.gain.astype(float)}


def measure(
    found: Outcomes, scores: Mapping[str, np.ndarray], *, resamples: int = 500, seed: int = 0
) -> tuple[dict[str, Routing], Callable[[str, str], Interval]]:
    """Every arm's metrics on the same resamples of questions, and a function ``difference(a, b)`` that gives the paired
    interval of APGR of ``a`` minus ``b``.

    Raises:
        ValueError: a resample in which the strong model is no better (far too few questions).
    """
    n = len(found.weak)
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    metrics: dict[str, Callable[[np.ndarray, np.ndarray, Outcomes], float]] = {
        "auc": lambda s, a, o: auc(s, o.gain > 0),
        "apgr": lambda s, a, o: apgr(a, o),
        "cpt50": lambda s, a, o: cpt(a, o, 0.5),
        "cpt80": lambda s, a, o: cpt(a, o, 0.8),
    }
    samples = [Outcomes((), (), found.weak[rows], found.strong[rows]) for rows in draws]
    routings, areas = {}, {}
    for name, s in scores.items():
        accuracy = curve(s, found)
        resampled = [
            [metric(s[rows], a, o) for metric in metrics.values()]
            for rows, o in zip(draws, samples)
            for a in [curve(s[rows], o)]
        ]
        point = [metric(s, accuracy, found) for metric in metrics.values()]
        intervals = [_interval(mean, column, n) for mean, column in zip(point, np.transpose(resampled))]
        areas[name] = (point[1], np.array(resampled)[:, 1])
        routings[name] = Routing(name, s, accuracy, *intervals)

    def difference(a: str, b: str) -> Interval:
        return _interval(areas[a][0] - areas[b][0], areas[a][1] - areas[b][1], n)

    return routings, difference


def _interval(mean: float, resampled: np.ndarray, n: int) -> Interval:
    low, high = np.quantile(resampled, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(mean), float(low), float(high), n, "bootstrap over questions")
