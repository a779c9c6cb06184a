"""ChronoBio: dated biographies with a question whose answer depends on time, and the truth of every step between them.

    ada joined alcorp in 1951 and left in 1954 .
    ada joined borbank 2 years after ada left alcorp and left 3 years later .
    from 1950 to 1957 the city of zoe was galton .
    which employer did ada have when zoe left galton ?          borbank, 1956 to 1959

A fact is (subject, relation, object, start, end) with a half-open interval: ada is with alcorp in 1953 and no longer in
1954, so nobody has two employers in one year. Somebody may have none; a question about such a year is answered
``unknown``. Each end of an interval is said as a date or by leaning on another event (*implicitly*); the share of facts
that lean is a dial. An item carries its sub-questions and their answers, the timeline of the chains that the question
is about, and the sentences that its answer rests on.

Idealised: whole years (or months), one verb for each relation, names that are never shared, nothing said twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zfu_lib.data.worlds.chronofacts import NAMES

UNKNOWN = "unknown"
_BEGINNINGS = ("al", "bor", "cel", "dor", "fen", "gal", "hol", "kel")
RELATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    name: (plural, verb, tuple(a + b for b in ends for a in _BEGINNINGS))
    for name, plural, verb, ends in (
        ("employer", "employers", "joined", ("corp", "bank", "works", "lab", "press")),
        ("city", "cities", "reached", ("ton", "ville", "burg", "mouth", "field")),
        ("team", "teams", "entered", ("rovers", "united", "stars", "lions", "bears")),
        ("office", "offices", "took", ("chair", "judge", "mayor", "clerk", "envoy")),
    )
}
"""Relation -> plural, verb with which it begins, forty objects."""
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
ORDINALS = ("first", "second", "third", "fourth")
KINDS = (
    *("shift", "distance"),
    *("in", "before", "after", "between", "unknown"),
    *("previous", "next", "duration", "ordinal", "count"),
    *("longer", "overlap", "when", "later"),
)
"""Types of questions: date arithmetic; time to event; one chain; several facts (``when``, ``later``: multi-hop)."""
WORDS = (
    *NAMES,
    *(word for name, (plural, verb, objects) in RELATIONS.items() for word in (name, plural, verb, *objects)),
    *(
        "start",
        "end",
        "until",
        "left",
        "in",
        "and",
        "later",
        "from",
        "to",
        "the",
        "of",
        "was",
        "when",
        "after",
        "before",
        "between",
        "right",
    ),
    *("which", "how", "many", "did", "have", "with", "for", "were", "at", "same", "time", "longer", "is", "it", "then"),
    *("year", "years", "month", "months", "last", UNKNOWN, *ORDINALS, *MONTHS),
)


@dataclass(frozen=True)
class Spec:
    """What a document looks like.

    ``facts`` in each of ``relations`` relations for the person asked about and for ``distractors`` others; ``objects``
    per relation; starts within ``years``; an interval lasts 1 to ``longest`` units, gaps 0 to ``gap``; ``implicit`` is
    the probability that a fact (not the first of its chain) leans on another event. ``shuffled``: sentences come in any
    order. ``terse``: sentences are numbered telegrams (``5 ada employer borbank 2 years after end of alcorp for 3 years
    .``). ``across``: how often a date leans on another person's fact where one is near.
    ``months``: units are months.

    Raises:
        ValueError: out of range, or years too few for the chains.
    """

    facts: int = 4
    relations: int = 2
    distractors: int = 2
    objects: int = 40
    implicit: float = 0.5
    years: tuple[int, int] = (1900, 1999)
    longest: int = 7
    gap: int = 2
    shuffled: bool = True
    terse: bool = False
    across: float = 0.3
    months: bool = False
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        people = 1 + self.distractors
        ranges = {
            "facts": 2 <= self.facts <= len(ORDINALS),
            "relations": 1 <= self.relations <= len(RELATIONS),
            "distractors": 1 <= self.distractors < len(NAMES),
            "objects": self.facts * people <= self.objects <= 40,
            "implicit": 0 <= self.implicit <= 1,
            "across": 0 <= self.across <= 1,
            "longest": self.longest >= 2,
            "gap": self.gap >= 1,
            "years": self.last - self.first >= self.facts * (self.longest + self.gap) + self.gap,
            "kinds": bool(self.kinds) and set(self.kinds) <= set(KINDS),
        }
        if wrong := [f"{name} = {getattr(self, name)!r}" for name, fine in ranges.items() if not fine]:
            raise ValueError(f"world out of range: {', '.join(wrong)}")

    @property
    def first(self) -> int:
        """The earliest time, in units."""
        return self.years[0] * (12 if self.months else 1)

    @property
    def last(self) -> int:
        """The latest time, in units."""
        return self.years[1] * (12 if self.months else 1)

    def when(self, time: int) -> str:
        """A time in words."""
        return f"{MONTHS[time % 12]} {time // 12}" if self.months else str(time)

    def amount(self, n: int) -> str:
        """A length of time in words."""
        return f"{n} {'month' if self.months else 'year'}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Fact:
    """``subject`` has ``object`` as ``relation`` from ``start`` (included) to ``end`` (not included)."""

    subject: str
    relation: str
    object: str
    start: int
    end: int

    def at(self, time: int) -> bool:
        """Whether it holds then."""
        return self.start <= time < self.end

    def meets(self, start: int, end: int) -> bool:
        """Whether it holds at some time of [start, end)."""
        return self.start < end and start < self.end


@dataclass(frozen=True)
class Told:
    """A fact's sentence. ``needs`` are the numbers of the facts whose dates it takes; ``work`` is how its two dates
    come about, such as ``("1954 + 2 = 1956", "1956 + 3 = 1959")``."""

    text: str
    needs: tuple[int, ...]
    implicit: bool
    work: tuple[str, str]


@dataclass(frozen=True)
class Item:
    """A document with a question and all that lies between question and answer.

    ``sub``: (question, answer) of each step, one for a simple question. ``timeline``: numbers of the facts in the
    chains that the question is about, by time. ``path``: numbers of the facts that the answer rests on, with those
    whose dates they take. ``order``: the facts as the document tells them.
    """

    kind: str
    question: str
    answer: str
    sub: tuple[tuple[str, str], ...]
    facts: tuple[Fact, ...]
    told: tuple[Told, ...]
    order: tuple[int, ...]
    timeline: tuple[int, ...]
    path: tuple[int, ...]
    spec: Spec

    @property
    def document(self) -> str:
        """The sentences, one after another."""
        return " ".join(self.told[i].text for i in self.order)

    @property
    def support(self) -> tuple[str, ...]:
        """The sentences that the answer rests on, as they come in the document."""
        return tuple(self.told[i].text for i in self.order if i in self.path)

    @property
    def options(self) -> tuple[str, ...]:
        """The objects of the chain that is asked about and ``unknown``; empty where the answer is no object."""
        asked = re.match(r"which (?:was the \w+ (\w+) of (\w+)|(\w+) did (\w+) have)", self.question)
        if asked is None:
            return ()
        relation, who = asked[1] or asked[3], asked[2] or asked[4]
        return (*(f.object for f in self.facts if (f.subject, f.relation) == (who, relation)), UNKNOWN)

    @property
    def compound(self) -> bool:
        """Whether more than one step is needed: the latent need for Reformulate."""
        return len(self.sub) > 1

    @property
    def leaning(self) -> bool:
        """Whether a fact that the answer rests on is told implicitly: the latent need for Rewrite."""
        return any(self.told[i].implicit for i in self.path)


def items(n: int, seed: int, spec: Spec | None = None) -> list[Item]:
    """``n`` independent items, their kinds drawn uniformly from the spec's."""
    spec, rng = spec or Spec(), np.random.default_rng((seed, 29))
    return [item(rng, str(rng.choice(spec.kinds)), spec) for _ in range(n)]


def item(rng: np.random.Generator, kind: str, spec: Spec) -> Item:
    """One item of that kind."""
    while True:
        facts = _facts(rng, spec)
        made = _ASK[kind](rng, facts, spec)
        if made is not None:
            break
    question, answer, sub, used = made
    told = _tell(rng, facts, spec)
    chains = {(facts[i].subject, facts[i].relation) for i in used}
    timeline = [i for i, f in enumerate(facts) if (f.subject, f.relation) in chains]
    timeline.sort(key=lambda i: (facts[i].start, i))
    order = rng.permutation(len(facts)) if spec.shuffled else range(len(facts))
    return Item(
        kind, question, answer, sub or ((question, answer),), tuple(facts), tuple(told), tuple(map(int, order)),
        tuple(timeline), _path(used, told), spec,
    )  # fmt: skip


def further(rng: np.random.Generator, of: Item, n: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """At most ``n`` other questions that an item's timeline answers: question, answer, and the facts that the answer
    rests on, with those whose dates they take."""
    made = {}
    for _ in range(4 * n):
        found = _ASK[str(rng.choice(of.spec.kinds))](rng, of.facts, of.spec)
        if found is not None and found[0] != of.question and set(found[3]) <= set(of.timeline):
            made[found[0]] = (found[0], found[1], _path(found[3], of.told))
    return list(made.values())[:n]


def _path(used: Sequence[int], told: Sequence[Told]) -> tuple[int, ...]:
    """``used`` and every fact whose dates they take."""
    path, more = set(), list(used)
    while more:
        i = more.pop()
        if i not in path:
            path.add(i)
            more += told[i].needs
    return tuple(sorted(path))


def _facts(rng: np.random.Generator, spec: Spec) -> list[Fact]:
    """The facts of all people, chain by chain; the person asked about comes last."""
    people = rng.permutation(len(NAMES))[: 1 + spec.distractors]
    relations = rng.permutation(len(RELATIONS))[: spec.relations] if spec.relations < 4 else range(4)
    relations = [list(RELATIONS)[i] for i in sorted(map(int, relations))]
    objects = {r: iter(rng.permutation(spec.objects)) for r in relations}
    room = spec.last - spec.first - spec.facts * (spec.longest + spec.gap)
    anchor, facts = spec.first + int(rng.integers(room + 1)), []
    for person in people:
        for relation in relations:
            time = min(anchor + int(rng.integers(spec.gap + 2)), spec.first + room)
            for _ in range(spec.facts):
                end = time + int(rng.integers(1, spec.longest + 1))
                object_ = RELATIONS[relation][2][next(objects[relation])]
                facts.append(Fact(NAMES[person], relation, object_, time, end))
                time = end + int(rng.integers(spec.gap + 1))
    return facts


def _tell(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> list[Told]:
    """A sentence for every fact. Dates lean on the fact before it in its chain, on the next one, or on somebody else's
    fact; only a fact whose start is told as a date is leant on by another chain, so nothing goes round in a circle."""
    leans = [i % spec.facts > 0 and rng.random() < spec.implicit for i in range(len(facts))]
    return [_sentence(rng, i, facts, leans, spec) for i in range(len(facts))]


def _sentence(rng: np.random.Generator, i: int, facts: Sequence[Fact], leans: Sequence[bool], spec: Spec) -> Told:
    f, verb = facts[i], RELATIONS[facts[i].relation][1]
    start, end = spec.when(f.start), spec.when(f.end)
    if not leans[i]:
        if spec.terse:
            text = f"{i} {f.subject} {f.relation} {f.object} {start} to {end} ."
        elif rng.random() < 0.5:
            text = f"{f.subject} {verb} {f.object} in {start} and left in {end} ."
        else:
            text = f"from {start} to {end} the {f.relation} of {f.subject} was {f.object} ."
        return Told(text, (), False, (start, end))
    needs = [i - 1]
    before = facts[i - 1]
    others = [
        j for j, g in enumerate(facts) if g.subject != f.subject and not leans[j] and 0 <= f.start - g.start <= spec.gap
    ]
    if others and rng.random() < spec.across:
        needs = [int(rng.choice(others))]
        g = facts[needs[0]]
        event, n, date = f"{g.subject} {RELATIONS[g.relation][1]} {g.object}", f.start - g.start, g.start
        edge = f"start of {g.object}"
    else:
        event, n, date = f"{f.subject} left {before.object}", f.start - before.end, before.end
        edge = f"end of {before.object}"
    start_text = f"{spec.amount(n)} after {event}" if n else f"when {event}"
    telegram = f"{i} {f.subject} {f.relation} {f.object} {f'{spec.amount(n)} after' if n else 'at'} {edge}"
    start_work = f"{spec.when(date)} + {n} = {start}" if n else start
    following = facts[i + 1] if (i + 1) % spec.facts else None
    if following and following.start == f.end and not leans[i + 1] and rng.random() < 0.5:
        needs.append(i + 1)
        text = f"{f.subject} {verb} {f.object} {start_text} and left when {f.subject} {verb} {following.object} ."
        if spec.terse:
            text = f"{telegram} until start of {following.object} ."
        return Told(text, tuple(needs), True, (start_work, end))
    n = f.end - f.start
    text = f"{f.subject} {verb} {f.object} {start_text} and left {spec.amount(n)} later ."
    if spec.terse:
        text = f"{telegram} for {spec.amount(n)} ."
    return Told(text, tuple(needs), True, (start_work, f"{start} + {n} = {end}"))


# Questions. Each maker returns question, answer, sub-questions (None for one step) and the facts used, or None where
# the facts drawn do not allow the question.

_Made = tuple[str, str, "tuple[tuple[str, str], ...] | None", list[int]] | None
_Maker = Callable[[np.random.Generator, Sequence[Fact], Spec], _Made]


def _chain(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> list[int]:
    """A chain of the person asked about."""
    first = len(facts) - spec.facts * (1 + int(rng.integers(spec.relations)))
    return list(range(first, first + spec.facts))


def _shift(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    time, n = int(rng.integers(spec.first + 9, spec.last - 9)), int(rng.integers(1, 10))
    word, sign = ("after", 1) if rng.random() < 0.5 else ("before", -1)
    unit = "month" if spec.months else "year"
    return f"which {unit} is {spec.amount(n)} {word} {spec.when(time)} ?", spec.when(time + sign * n), None, []


def _distance(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    time, n = int(rng.integers(spec.first, spec.last - 9)), int(rng.integers(1, 10))
    unit = "months" if spec.months else "years"
    return f"how many {unit} is it from {spec.when(time)} to {spec.when(time + n)} ?", str(n), None, []


def _have(f: Fact, when: str) -> str:
    return f"which {f.relation} did {f.subject} have {when} ?"


def _in(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    i = int(rng.choice(_chain(rng, facts, spec)))
    time = int(rng.integers(facts[i].start, facts[i].end))
    return _have(facts[i], f"in {spec.when(time)}"), facts[i].object, None, [i]


def _unknown(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    chain = _chain(rng, facts, spec)
    times = range(facts[chain[0]].start - 2, facts[chain[-1]].end + 3)
    free = [t for t in times if not any(facts[i].at(t) for i in chain) and spec.first <= t <= spec.last]
    if not free:
        return None
    return _have(facts[chain[0]], f"in {spec.when(int(rng.choice(free)))}"), UNKNOWN, None, chain


def _span(word: str) -> _Maker:
    """Before, after, between: spans that meet one fact only."""

    def make(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
        chain = _chain(rng, facts, spec)
        begin, end = facts[chain[0]].start, facts[chain[-1]].end
        a, b = (int(t) for t in np.sort(rng.integers(begin, end + 1, 2)))
        a, b = {"before": (-1, b), "after": (a, spec.last + 999), "between": (a, b)}[word]
        met = [i for i in chain if facts[i].meets(a, b)] if a < b else []
        if len(met) != 1:
            return None
        said = {"before": [b], "after": [a], "between": [a, b]}[word]
        return _have(facts[met[0]], f"{word} {' and '.join(map(spec.when, said))}"), facts[met[0]].object, None, met

    return make


def _neighbour(step: int) -> _Maker:
    def make(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
        chain = _chain(rng, facts, spec)
        i = int(rng.choice(chain[1:] if step < 0 else chain[:-1]))
        word = "before" if step < 0 else "after"
        return _have(facts[i], f"right {word} {facts[i].object}"), facts[i + step].object, None, [i, i + step]

    return make


def _long(f: Fact, spec: Spec) -> tuple[str, str]:
    unit = "months" if spec.months else "years"
    return f"how many {unit} was {f.subject} with {f.object} ?", str(f.end - f.start)


def _duration(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    i = int(rng.choice(_chain(rng, facts, spec)))
    return *_long(facts[i], spec), None, [i]


def _ordinal(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    chain = _chain(rng, facts, spec)
    k = int(rng.integers(len(chain)))
    name = "last" if k == len(chain) - 1 else ORDINALS[k]
    f = facts[chain[k]]
    return f"which was the {name} {f.relation} of {f.subject} ?", f.object, None, chain


def _count(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    chain = _chain(rng, facts, spec)
    begin, end = facts[chain[0]].start, facts[chain[-1]].end
    a, b = (int(t) for t in np.sort(rng.integers(begin, end + 1, 2)))
    met = [i for i in chain if a < b and facts[i].meets(a, b)]
    if not met:
        return None
    f, plural = facts[chain[0]], RELATIONS[facts[chain[0]].relation][0]
    question = f"how many {plural} did {f.subject} have between {spec.when(a)} and {spec.when(b)} ?"
    return question, str(len(met)), None, met


def _longer(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    i, j = (int(x) for x in rng.permutation(_chain(rng, facts, spec))[:2])
    f, g = facts[i], facts[j]
    if f.end - f.start == g.end - g.start:
        return None
    answer = max(f, g, key=lambda x: x.end - x.start).object
    question = f"which {f.relation} did {f.subject} have longer , {f.object} or {g.object} ?"
    return question, answer, (_long(f, spec), _long(g, spec)), [i, j]


def _with(f: Fact, spec: Spec) -> tuple[str, str]:
    return f"when was {f.subject} with {f.object} ?", f"{spec.when(f.start)} to {spec.when(f.end)}"


def _overlap(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
    i = int(rng.choice(_chain(rng, facts, spec)))
    j = int(rng.integers(len(facts) - spec.relations * spec.facts))
    f, g = facts[i], facts[j]
    shared = max(0, min(f.end, g.end) - max(f.start, g.start))
    if shared == 0 and rng.random() < 0.85:
        return None
    unit = "months" if spec.months else "years"
    question = (
        f"for how many {unit} were {f.subject} with {f.object} and {g.subject} with {g.object} at the same time ?"
    )
    return question, str(shared), (_with(f, spec), _with(g, spec)), [i, j]


def _hop(later: bool) -> _Maker:
    def make(rng: np.random.Generator, facts: Sequence[Fact], spec: Spec) -> _Made:
        i = int(rng.choice(_chain(rng, facts, spec)))
        f = facts[i]
        j = int(rng.integers(len(facts)))
        g = facts[j]
        if (g.subject, g.relation) == (f.subject, f.relation) and not later:
            return None
        joined = rng.random() < 0.5
        date, verb = (g.start, RELATIONS[g.relation][1]) if joined else (g.end, "left")
        n = int(rng.integers(1, 6)) if later else 0
        if not f.at(date + n) or i == j:
            return None
        event = f"{g.subject} {verb} {g.object}"
        when, then = (
            (f"{spec.amount(n)} after {event}", f"{spec.amount(n)} after then") if n else (f"when {event}", "then")
        )
        unit = "month" if spec.months else "year"
        sub = ((f"which {unit} was it when {event} ?", spec.when(date)), (_have(f, then), f.object))
        return _have(f, when), f.object, sub, [j, i]

    return make


_ASK: dict[str, _Maker] = {
    "shift": _shift,
    "distance": _distance,
    "in": _in,
    "unknown": _unknown,
    "before": _span("before"),
    "after": _span("after"),
    "between": _span("between"),
    "previous": _neighbour(-1),
    "next": _neighbour(1),
    "duration": _duration,
    "ordinal": _ordinal,
    "count": _count,
    "longer": _longer,
    "overlap": _overlap,
    "when": _hop(later=False),
    "later": _hop(later=True),
}


# The solver: reads the text and nothing else.

_SAID = re.compile(
    r"(?P<who>\w+) (?P<verb>joined|reached|entered|took) (?P<what>\w+) (?P<start>.+) and left (?P<end>.+)"
)
_DATED = re.compile(r"from (?P<start>.+) to (?P<end>.+) the (?P<relation>\w+) of (?P<who>\w+) was (?P<what>\w+)")
_TERSE = re.compile(
    rf"\d+ (?P<who>\w+) (?P<relation>{'|'.join(RELATIONS)}) (?P<what>\w+) (?P<start>.+?) "
    r"(?:to |until (?=start)|(?=for ))(?P<end>.+)"
)
_TIME = re.compile(r"(?:([a-z]{3}) )?(\d{4})")
_EDGE = re.compile(r"(?:(\d+) (?:year|month)s? after |at )?(start|end) of (\w+)")
_EVENT = re.compile(r"(?:(\d+) (?:year|month)s? after |when )(\w+) (left|joined|reached|entered|took) (\w+)")


class Contradiction(ValueError):
    """A document whose dates cannot all be true."""


def read(document: str, *, dated_only: bool = False) -> list[Fact]:
    """The facts of a document with their dates worked out, in its order.

    Args:
        dated_only: leave out every fact whose two dates are not both told as dates.

    Raises:
        ValueError: a sentence that is not ChronoBio's.
        Contradiction: dates that lean on each other in a circle or on nothing, an end that is not after its start, or
            one object twice.
    """
    rows: dict[str, dict[str, str]] = {}
    verbs = {verb: name for name, (_, verb, _) in RELATIONS.items()}
    for sentence in re.findall(r"[^.]+", document):
        text = sentence.strip()
        if not text:
            continue
        found = _DATED.fullmatch(text) or _SAID.fullmatch(text) or _TERSE.fullmatch(text)
        if found is None:
            raise ValueError(f"not a sentence of ChronoBio: {text!r}")
        row = found.groupdict()
        if row["what"] in rows:
            raise Contradiction(f"{row['what']} is told twice")
        rows[row["what"]] = row
    done: dict[tuple[str, str], int] = {}

    def date(what: str, edge: str, on: tuple[tuple[str, str], ...] = ()) -> int:
        if (what, edge) in done:
            return done[what, edge]
        if (what, edge) in on or what not in rows:
            raise Contradiction(f"the {edge} of {what} rests on {'itself' if what in rows else 'nothing'}")
        text, on = rows[what][edge].removeprefix("in "), (*on, (what, edge))
        if at := _TIME.fullmatch(text):
            value = _time(at)
        elif edge_of := _EDGE.fullmatch(text):
            value = date(edge_of[3], edge_of[2], on) + int(edge_of[1] or 0)
        elif later := re.fullmatch(r"(?:for )?(\d+) (?:year|month)s?(?: later)?", text):
            value = date(what, "start", on) + int(later[1])
        elif event := _EVENT.fullmatch(text):
            value = date(event[4], "end" if event[3] == "left" else "start", on) + int(event[1] or 0)
        else:
            raise ValueError(f"not a time of ChronoBio: {text!r}")
        done[what, edge] = value
        return value

    facts = []
    for what, row in rows.items():
        if dated_only and not all(_TIME.fullmatch(row[edge].removeprefix("in ")) for edge in ("start", "end")):
            continue
        start, end = date(what, "start"), date(what, "end")
        if end <= start:
            raise Contradiction(f"{row['who']} left {what} at {end}, not after {start}")
        facts.append(Fact(row["who"], row.get("relation") or verbs[row["verb"]], what, start, end))
    return facts


def solve(document: str, question: str, *, dated_only: bool = False) -> str:
    """The answer, worked out from the two texts alone; ``unknown`` where no fact or more than one fits.

    Args:
        dated_only: use only facts told with two dates; the floor that a model which reads the rest must beat.

    Raises:
        ValueError: a sentence or a question that is not ChronoBio's.
        Contradiction: as :func:`read`.
    """
    facts = read(document, dated_only=dated_only)
    months = bool(re.search(r"\b(?:months?|" + "|".join(MONTHS) + r") ", f"{document} {question}"))

    def write(time: int) -> str:
        return f"{MONTHS[time % 12]} {time // 12}" if months else str(time)

    def chain(who: str, relation: str) -> list[Fact]:
        return sorted((f for f in facts if (f.subject, f.relation) == (who, relation)), key=lambda f: f.start)

    def called(who: str, what: str) -> Fact | None:
        return next((f for f in facts if (f.subject, f.object) == (who, what)), None)

    def one(found: list[Fact]) -> str:
        return found[0].object if len(found) == 1 else UNKNOWN

    time = r"((?:[a-z]{3} )?\d{4})"
    if m := re.fullmatch(rf"which (?:year|month) is (\d+) \w+ (after|before) {time} \?", question):
        return write(_at(m[3]) + (int(m[1]) if m[2] == "after" else -int(m[1])))
    if m := re.fullmatch(rf"how many \w+ is it from {time} to {time} \?", question):
        return str(_at(m[2]) - _at(m[1]))
    if m := re.fullmatch(r"how many \w+ was (\w+) with (\w+) \?", question):
        found = called(m[1], m[2])
        return str(found.end - found.start) if found else UNKNOWN
    if m := re.fullmatch(r"when was (\w+) with (\w+) \?", question):
        found = called(m[1], m[2])
        return f"{write(found.start)} to {write(found.end)}" if found else UNKNOWN
    if m := re.fullmatch(r"which (?:year|month) was it when (\w+) (\w+) (\w+) \?", question):
        found = called(m[1], m[3])
        return write(found.end if m[2] == "left" else found.start) if found else UNKNOWN
    if m := re.fullmatch(r"which was the (\w+) (\w+) of (\w+) \?", question):
        mine = chain(m[3], m[2])
        k = len(mine) - 1 if m[1] == "last" else ORDINALS.index(m[1])
        return mine[k].object if 0 <= k < len(mine) else UNKNOWN
    if m := re.fullmatch(rf"how many (\w+) did (\w+) have between {time} and {time} \?", question):
        name = next((name for name, (plural, *_) in RELATIONS.items() if plural == m[1]), "")
        return str(sum(f.meets(_at(m[3]), _at(m[4])) for f in chain(m[2], name)))
    if m := re.fullmatch(r"which \w+ did (\w+) have longer , (\w+) or (\w+) \?", question):
        two = [called(m[1], m[k]) for k in (2, 3)]
        if None in two or two[0].end - two[0].start == two[1].end - two[1].start:
            return UNKNOWN
        return max(two, key=lambda f: f.end - f.start).object
    if m := re.fullmatch(r"for how many \w+ were (\w+) with (\w+) and (\w+) with (\w+) at the same time \?", question):
        f, g = called(m[1], m[2]), called(m[3], m[4])
        return str(max(0, min(f.end, g.end) - max(f.start, g.start))) if f and g else UNKNOWN
    if not (m := re.fullmatch(r"which (\w+) did (\w+) have (.+) \?", question)):
        raise ValueError(f"not a ChronoBio question: {question!r}")
    mine, when = chain(m[2], m[1]), m[3]
    if n := re.fullmatch(rf"in {time}", when):
        return one([f for f in mine if f.at(_at(n[1]))])
    if n := re.fullmatch(rf"(before|after) {time}", when):
        return one([f for f in mine if (f.start < _at(n[2]) if n[1] == "before" else f.end > _at(n[2]))])
    if n := re.fullmatch(rf"between {time} and {time}", when):
        return one([f for f in mine if f.meets(_at(n[1]), _at(n[2]))])
    if n := re.fullmatch(r"right (before|after) (\w+)", when):
        names = [f.object for f in mine]
        if n[2] not in names:
            return UNKNOWN
        k = names.index(n[2]) + (1 if n[1] == "after" else -1)
        return names[k] if 0 <= k < len(names) else UNKNOWN
    if n := _EVENT.fullmatch(when):
        found = called(n[2], n[4])
        if found is None:
            return UNKNOWN
        return one([f for f in mine if f.at((found.end if n[3] == "left" else found.start) + int(n[1] or 0))])
    raise ValueError(f"not a ChronoBio question: {question!r}")


def _time(found: re.Match[str]) -> int:
    month, year = found.groups()
    if month is None:
        return int(year)
    if month not in MONTHS:
        raise ValueError(f"not a month: {month!r}")
    return int(year) * 12 + MONTHS.index(month)


def _at(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time: {text!r}")
    return _time(found)


def spoilt(made: Item, rng: np.random.Generator) -> Item:
    """The item with one dated sentence that leaves before it begins: contradictory dates."""
    dated = [i for i, told in enumerate(made.told) if not told.implicit]
    i = int(rng.choice(dated))
    start, end = made.told[i].work
    text = re.sub(rf"{start}(.+){end}", rf"{end}\g<1>{start}", made.told[i].text)
    return replace(made, told=(*made.told[:i], replace(made.told[i], text=text), *made.told[i + 1 :]))
