"""Is this short answer right? Exact match and token F1 as question answering uses them, and looser and stricter kin.

A missing answer is a wrong one: it stays in the denominator.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from zfu_lib.reasoning.timeline import date

UNKNOWN = frozenset({"unknown", "unanswerable", "no answer", "not answerable", "none of above", "not known"})
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’–—")


def normal(text: str) -> str:
    """NFKC, lower case, without articles, punctuation and extra space; every way to say "unknown" is one."""
    text = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    text = " ".join(_ARTICLES.sub(" ", text).split())
    return "unknown" if text in UNKNOWN else text


def exact_match(answer: str | None, gold: Sequence[str]) -> float:
    """1 if the answer equals one of the gold answers after :func:`normal`, else 0.

    Raises:
        ValueError: no gold answer.
    """
    _check(gold)
    return float(bool(answer) and normal(answer) in {normal(g) for g in gold})


def exact_match_released(answer: str | None, gold: Sequence[str]) -> float:
    """The rule of the released code: case and blanks are ignored, nothing else is."""
    _check(gold)
    return float(bool(answer) and _squeezed(answer) in {_squeezed(g) for g in gold})


def f1(answer: str | None, gold: Sequence[str]) -> float:
    """Token F1 after :func:`normal`, the best over the gold answers; two texts without a token are equal."""
    _check(gold)
    return 0.0 if not answer else max(_overlap(normal(answer).split(), normal(g).split()) for g in gold)


def same_month(answer: str | None, gold: Sequence[str]) -> float:
    """1 if the answer's last date names the month of a gold answer's (``1096 Oct`` is no date, ``October 1096`` is)."""
    _check(gold)
    at = date(answer) if answer else None
    return float(at is not None and at in {date(g) for g in gold})


def number_error(answer: str | None, gold: str) -> float:
    """|answer - gold| / max(|answer|, |gold|) for two numbers, between 0 and 2; 1 where the answer holds none.

    Raises:
        ValueError: the gold answer holds no number.
    """
    wanted, found = (re.findall(r"-?\d+(?:\.\d+)?", text or "") for text in (gold, answer))
    if not wanted:
        raise ValueError(f"gold answer {gold!r} holds no number")
    if not found:
        return 1.0
    a, b = float(found[-1]), float(wanted[-1])
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided exact McNemar test of two arms on the same questions (1 right, 0 wrong).

    Raises:
        ValueError: different numbers of questions, or a score other than 0 and 1.
    """
    from scipy import stats

    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape or not set(np.unique(np.concatenate([x, y]))) <= {0.0, 1.0}:
        raise ValueError(f"McNemar's test compares two rows of 0 and 1, got shapes {x.shape} and {y.shape}")
    won, lost = int((x > y).sum()), int((x < y).sum())
    return 1.0 if won + lost == 0 else float(stats.binomtest(won, won + lost).pvalue)


def questions_needed(effect: float, discordant: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Paired questions that McNemar's test needs to find a difference of ``effect`` in accuracy.

    Args:
        effect: difference of the two accuracies, above 0.
        discordant: share of questions that one arm gets right and the other wrong, at least ``effect``.

    Raises:
        ValueError: out of range.
    """
    from scipy import stats

    if not 0 < effect <= discordant <= 1:
        raise ValueError(f"an effect of {effect} needs a share of discordant pairs from it to 1, got {discordant}")
    quantile = stats.norm.ppf
    top = quantile(1 - level / 2) * discordant**0.5 + quantile(power) * (discordant - effect**2) ** 0.5
    return int(np.ceil((top / effect) ** 2))


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text).lower()


def _overlap(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b:
        return float(list(a) == list(b))
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


def _check(gold: Sequence[str]) -> None:
    if isinstance(gold, str) or not gold:
        raise ValueError(f"gold answers must be a list with at least one text, got {gold!r}")
