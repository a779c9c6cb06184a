"""Dates, half-open intervals, timelines written as text, and a solver that needs no model.

Times are whole months since year 0 (``12 * year + month``, January is 0); an interval [start, end) holds its start and
not its end. A question about one date is about the month it names, one about a year about its January, unless it says
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"\b(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b"
)
_DATE = re.compile(rf"(?:(?:\d{{1,2}} )?({_MONTH})\.?,? (?:\d{{1,2}},? )?)?(\d{{4}})", re.IGNORECASE)


class Interval(NamedTuple):
    """[start, end) in months; ``end`` None is not known."""

    start: int
    end: int | None


Relation = Literal[
    "before", "after", "meets", "met by", "overlaps", "overlapped by", "during", "contains",
    "starts", "started by", "finishes", "finished by", "equals",
]  # fmt: skip
INVERSE: dict[str, str] = {
    "before": "after", "meets": "met by", "overlaps": "overlapped by", "during": "contains", "starts": "started by",
    "finishes": "finished by", "equals": "equals",
}  # fmt: skip
INVERSE |= {b: a for a, b in INVERSE.items()}


def relation(a: Interval, b: Interval) -> Relation:
    """Which of Allen's thirteen relations ``a`` has to ``b``; exactly one holds for any two intervals.

    Raises:
        ValueError: an interval without an end, or one that does not end after it starts.
    """
    for x in (a, b):
        if x.end is None or x.end <= x.start:
            raise ValueError(f"{x} is no interval: its end must be known and after its start")
    if a.end < b.start:
        return "before"
    if a.end == b.start:
        return "meets"
    if a == b:
        return "equals"
    if a.start == b.start:
        return "starts" if a.end < b.end else "started by"
    if a.end == b.end:
        return "finishes" if a.start > b.start else "finished by"
    if b.start < a.start and a.end < b.end:
        return "during"
    if a.start < b.start < a.end < b.end:
        return "overlaps"
    return INVERSE[relation(b, a)]


def date(text: str) -> int | None:
    """The last date of a text in months (``1954``, ``Jul, 1979``, ``12 March 1901``); None where there is none."""
    found = _DATE.findall(text)
    if not found:
        return None
    month, year = found[-1]
    return 12 * int(year) + (MONTHS.index(month[:3].lower()) if month else 0)


@dataclass(frozen=True)
class Event:
    """One line of a timeline: what is said, split at ``|``, and when."""

    parts: tuple[str, ...]
    when: Interval


_WORKED = rf"(?:{_DATE.pattern}\s*\+\s*\d+\s*=\s*)?{_DATE.pattern}"
_RANGE = re.compile(
    rf"(?P<start>{_WORKED})\s*(?:(?:-|–|—|to|until)\s*(?P<end>{_WORKED}|\?|now|present|unknown)?)?", re.IGNORECASE
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s+")


def parse_timeline(text: str) -> list[Event]:
    """The events of a timeline that a model wrote, by start; lines that are none are left out.

    A line is ``start - end : subject | relation | object``, or the dates last, with or without bars; an end may be
    missing or ``?``. Where a date is worked out (``1954 + 2 = 1956``) its last number counts. A line whose end is not
    after its start says nothing that can be true and is left out.
    """
    events = []
    for line in text.splitlines():
        line = _BULLET.sub("", line).strip().strip("`*")
        found = _RANGE.search(line)
        if found is None:
            continue
        start, end = date(found["start"]), date(found["end"] or "")
        rest = f"{line[: found.start()]} | {line[found.end() :]}"
        parts = tuple(filter(None, (part.strip(" :;,.[]()") for part in rest.split("|"))))
        if parts and (end is None or end > start):
            events.append(Event(parts, Interval(start, end)))
    return sorted(events, key=lambda event: event.when.start)


# A solver on dated facts, with no model.


@dataclass(frozen=True)
class Dated:
    """A fact ``words`` from ``when.start`` to ``when.end``; ``slot`` is the part that differs from its neighbours'."""

    words: str
    slot: str
    when: Interval


_FACT = re.compile(rf"(.+) from ({_DATE.pattern}) to ({_DATE.pattern})\.?", re.IGNORECASE)
_OBJECT = re.compile(
    r".+? (?:plays for|works for|attended|holds the position of|is a member of(?: the)?|is owned by|studied at) (.+)"
)
_SUBJECT = re.compile(r"(.+?) is the (?:chair|head coach|head of the government|head|owner|spouse|director) of .+")


def read_facts(text: str) -> list[Dated]:
    """Lines such as ``Ada plays for Rovers from Jan, 2003 to Jan, 2004.``; other lines are left out.

    What a question asks for is what follows the verb (``Rovers``), or the subject of ``is the chair of``.
    """
    facts = []
    for line in text.splitlines():
        if not (m := _FACT.fullmatch(line.strip())):
            continue
        if slot := _SUBJECT.fullmatch(m[1]) or _OBJECT.fullmatch(m[1]):
            facts.append(Dated(m[1], slot[1], Interval(date(m[2]), date(m[5]))))
    return facts


@dataclass(frozen=True)
class Solved:
    """``answers`` that fit, the best first (none: the question says a time that no fact covers); ``parsed`` is False
    where the question's time could not be read."""

    answers: tuple[str, ...]
    parsed: bool


_AFTER = re.compile(r"(?P<what>.+?) (?P<word>before|after) (?P<event>.+?)\s*\?*", re.IGNORECASE)
_SHIFT = re.compile(
    rf"what is the time (?:(\d+) years?)?(?: and )?(?:(\d+) months?)? (before|after) ({_DATE.pattern})\s*\?*",
    re.IGNORECASE,
)


def solve(question: str, facts: Sequence[Dated] = ()) -> Solved:
    """Answer a question by reading its time and looking through dated facts.

    ``in DATE``: facts that hold then, those that began last first. ``before EVENT``, ``after EVENT``: the fact that
    ends last before it starts, or starts first after it ends, by order of starts. ``what is the time 7 year and 11
    month before Sep, 1104`` needs no facts.
    """
    text = question.strip()
    if m := _SHIFT.fullmatch(text):
        months = 12 * int(m[1] or 0) + int(m[2] or 0)
        at = date(m[4]) + (months if m[3].lower() == "after" else -months)
        return Solved((f"{MONTHS[at % 12].capitalize()}, {at // 12}",), True)
    inside = re.search(rf" (?:in|on|at) ({_DATE.pattern})\s*\?*$", text, re.IGNORECASE)
    if inside:
        at = date(inside[1])
        fits = [f for f in facts if f.when.start <= at < max(f.when.end, f.when.start + 1)]
        return Solved(tuple(dict.fromkeys(f.slot for f in sorted(fits, key=lambda f: -f.when.start))), True)
    if m := _AFTER.fullmatch(text):
        order = sorted(facts, key=lambda f: (f.when.start, f.when.end))
        at = [i for i, f in enumerate(order) if f.slot.casefold() == m["event"].casefold()]
        if at:
            i = at[-1] + 1 if m["word"].lower() == "after" else at[0] - 1
            return Solved((order[i].slot,) if 0 <= i < len(order) else (), True)
    return Solved((), False)
