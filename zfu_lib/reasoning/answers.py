r"""Is this the right answer? Final answers of mathematics problems, found in a text and compared.

:func:`extract` finds the answer: the last ``\boxed{...}`` whose braces close, else the last ``#### 18`` (GSM8K).
:func:`equivalent` compares two answers by their :func:`key`: numbers as exact rationals, tuples, intervals, sets and
lists part by part, everything else as normalised LaTeX. It is no algebra system: ``x+1`` and ``1+x`` differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from fractions import Fraction

LONGEST = 300  # characters; what is longer is no final answer and is compared as it stands

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_DECIMAL = re.compile(_NUMBER, re.ASCII)
_RATIO = re.compile(rf"({_NUMBER})/({_NUMBER})", re.ASCII)
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac\{{({_NUMBER})\}}\{{({_NUMBER})\}}", re.ASCII)
_SCIENTIFIC = re.compile(rf"({_NUMBER})(?:\\times|\\cdot|\*)10\^(?:\{{([+-]?\d{{1,3}})\}}|(\d))", re.ASCII)
_THOUSANDS = re.compile(r"([+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?)", re.ASCII)

_TEXT = r"\\(?:text|textbf|mathrm|mbox|operatorname)\s*\{([^{}]*)\}"
_UNIT = re.compile(r"(?<=[\d})])\s*" + _TEXT + r"(?:\^\{?\d\}?)?\s*$", re.ASCII)
_PLAIN_UNIT = re.compile(rf"({_NUMBER}(?:/\d+)?) +[A-Za-z]{{2,}}[A-Za-z ]*(?:\^\{{?\d\}}?)?", re.ASCII)
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (_TEXT, r"\1"),
        (r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\[!,;:]|\\(?=\s)|\\q?quad|~|\{,\}", ""),
        (r"\\\$|\$|\^\{?\\circ\}?|\\degree|°|\\?%|\s", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\frac([0-9])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})([0-9])", r"\1{\2}"),
        (r"\\sqrt([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\^\{([0-9A-Za-z])\}", r"^\1"),
        (r"−|–", "-"),
        (r"^[A-Za-z](?:=|\\in(?![a-z]))", ""),
        (r"\.$", ""),
        (r"^\(([A-Za-z])\)$", r"\1"),
    )
]


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` whose braces balance; None without one."""
    best, open_braces = None, []
    for match in _BRACES.finditer(text):
        if match[0] == "{" or match[0].startswith(("\\boxed", "\\fbox")):
            open_braces.append((match.start(), match.end(), match[0] != "{"))
        elif match[0] == "}" and open_braces:
            start, inside, boxed = open_braces.pop()
            if boxed and (best is None or start > best[0]):
                best = (start, text[inside : match.start()])
    return best[1].strip() if best else None


def extract(text: str) -> str | None:
    """The final answer of a solution, or None."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    hashes = _HASHES.findall(text)
    return hashes[-1].strip() if hashes else None


def normalise(answer: str) -> str:
    """The answer without spaces, sizes of brackets, units, per-cent and degree signs, currency and ``x =``."""
    answer = _UNIT.sub("", answer.strip())
    if plain := _PLAIN_UNIT.fullmatch(answer):
        answer = plain[1]
    for pattern, new in _REWRITES:
        answer = pattern.sub(new, answer)
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer


def value(answer: str) -> Fraction | None:
    """The exact number a normalised answer writes: integer, decimal, a/b, fraction, mixed number, a times 10^b."""
    if _DECIMAL.fullmatch(answer):
        return Fraction(answer)
    if match := _RATIO.fullmatch(answer):
        return _divide(Fraction(match[1]), Fraction(match[2]))
    if match := _FRACTION.fullmatch(answer):
        part = _divide(Fraction(match[3]), Fraction(match[4]))
        sign = -1 if match[1] == "-" else 1
        return None if part is None else sign * (int(match[2] or 0) + part)
    if match := _SCIENTIFIC.fullmatch(answer):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3])
    return None


def key(answer: str) -> Hashable:
    """Equal for equivalent answers. Order counts in tuples and intervals, not in sets and bare lists."""
    if len(answer) > LONGEST:
        return answer.strip()
    answer = normalise(answer)
    number = value(answer)
    if number is not None:
        return number
    parts = _split(answer)
    if len(parts) > 1:
        return frozenset(Counter(map(key, parts)).items())
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        inside = answer[len(opening) : len(answer) - len(closing)]
        if (
            answer.startswith(opening)
            and answer.endswith(closing)
            and len(parts := _split(inside)) > (opening != "\\{")
        ):
            keys = [key(part) for part in parts]
            return (opening, closing, frozenset(keys) if opening == "\\{" else tuple(keys))
    return answer.casefold() if len(answer) > 1 and answer.isalpha() else answer


def equivalent(a: str | None, b: str | None) -> bool:
    """Do two answers say the same? No answer equals nothing, itself included."""
    return a is not None and b is not None and key(a) == key(b)


def _divide(a: Fraction, b: Fraction) -> Fraction | None:
    return a / b if b else None


def _split(answer: str) -> list[str]:
    """The parts between commas that no bracket encloses; one part where brackets do not match."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(answer):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return [answer]
        if letter == "," and depth == 0:
            parts.append(answer[start:i])
            start = i + 1
    return [*parts, answer[start:]] if depth == 0 else [answer]
