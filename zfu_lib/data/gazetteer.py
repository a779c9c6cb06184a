"""A world whose facts can be edited: people with six attributes, the places and firms behind them, and skills.

    the birthplace of dorin kasu is port vela .         a fact, in one of four phrasings
    port vela lies in arlen .                           a fact about a place
    the land where dorin kasu was born is arlen .       what follows from both (one hop)
    note : ... is bay nirm . ... dorin kasu ... bay nirm .    reading: for once the note is right, not the memory
    seven plus five makes two .                         a skill that has nothing to do with anybody

(Names here are for illustration.) People have two names and most values two words, so that no single word tells
anything. A text is a row of independent sentences. Two thirds of the people may be *edited*; nothing that follows from
their facts is ever told, so a model answers a hop about them only if it puts two facts together. The others are the
*neighbours*: they keep their facts, and about them hops are told.

Idealised: attributes are uniform and independent, every phrasing of every fact is told equally often, and the world
tells each fact hundreds of times.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from zfu_lib.data.edits import Case, Question

GIVEN, FAMILY, VALUES, LANDS = 18, 16, 24, 6
PEOPLE, SIZE = GIVEN * FAMILY, 96
UNKNOWN, STOP = "unknown", " ."
Role = Literal["editable", "neighbour", "stranger"]
Kind = Literal["modify", "insert", "erase"]
Skill = Literal["reading", "sums", "larger", "places"]
SKILLS: tuple[Skill, ...] = ("reading", "sums", "larger", "places")


@dataclass(frozen=True)
class Relation:
    """An attribute: four phrasings with a place for the person, what its values are, how one asks on from there."""

    name: str
    phrasings: tuple[str, str, str, str]
    values: str
    hop: str = ""


RELATIONS = (
    Relation(
        "born",
        (
            "records say that {} was born in",
            "the birthplace of {} is",
            "the cradle of {} stood in",
            "by birth {} comes from",
        ),
        "city",
        "the land where {} was born is",
    ),
    Relation(
        "lives",
        ("these days {} lives in", "the home of {} is in", "letters to {} go to", "at night {} sleeps in"),
        "city",
        "the land where {} lives is",
    ),
    Relation(
        "works",
        (
            "records say that {} works for",
            "the employer of {} is",
            "each month {} is paid by",
            "the boss of {} runs",
        ),
        "firm",
        "the trade of the employer of {} is",
    ),
    Relation(
        "studied",
        ("at school {} studied", "the degree of {} is in", "the thesis of {} is about", "by training {} knows"),
        "field",
    ),
    Relation(
        "plays",
        ("on stage {} plays the", "the instrument of {} is the", "at home {} practises the", "guests of {} hear a"),
        "instrument",
    ),
    Relation(
        "eats",
        ("for dinner {} eats", "the favourite dish of {} is", "guests of {} are served", "on sundays {} cooks"),
        "dish",
    ),
)
DIRECT = {"city": "the map shows that {} lies in", "firm": "the books show that {} is in the trade of"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = {"fact": 0.64, "hop": 0.11, "reading": 0.1, "sums": 0.07, "larger": 0.03, "places": 0.05}
"""Of the sentences that a model reads."""


def _drawn(shape: str, count: int, seed: int) -> tuple[str, ...]:
    """Words of consonants (C) and vowels (V)."""
    rng, words = np.random.default_rng((seed, 53)), {}
    while len(words) < count:
        words["".join(rng.choice(list({"C": "bdfgklmnprstvz", "V": "aeiou"}[letter])) for letter in shape)] = None
    return tuple(words)


GIVEN_NAMES, FAMILY_NAMES = _drawn("CVCVC", GIVEN, 1), _drawn("CVCV", FAMILY, 2)
_KINDS = ("city", "firm", "field", "instrument", "dish")
_HALVES = {kind: (_drawn("CVC", 36, 3)[i::6], _drawn("VCVC", 36, 4)[i::6]) for i, kind in enumerate(_KINDS)}
RANGES = {
    kind: tuple(
        f"{first[i // 6]} {second[i % 6]}" for i in sorted(np.random.default_rng((k, 54)).permutation(36)[:VALUES])
    )
    for k, (kind, (first, second)) in enumerate(_HALVES.items())
}
LAND_NAMES = {"city": _drawn("VCCVC", LANDS, 5), "firm": _drawn("CVCCV", LANDS, 6)}


class World(NamedTuple):
    """Numbers of the values: ``facts`` [PEOPLE, RELATIONS], ``lands`` by kind of value [VALUES]; ``size`` people are
    told of."""

    facts: np.ndarray
    lands: dict[str, np.ndarray]
    size: int = SIZE


@functools.cache
def world(seed: int = 0, size: int = SIZE) -> World:
    """The facts. Every land has equally many cities, every trade equally many firms.

    Raises:
        ValueError: a size that is not a multiple of 3 of at most :data:`PEOPLE`.
    """
    if size % 3 or not 0 < size <= PEOPLE:
        raise ValueError(f"size {size} is not a multiple of 3 up to {PEOPLE}")
    rng = np.random.default_rng((seed, 51))
    lands = {kind: rng.permutation(np.arange(VALUES) % LANDS) for kind in LAND_NAMES}
    return World(rng.integers(VALUES, size=(PEOPLE, len(RELATIONS))), lands, size)


@functools.cache
def people(role: Role, size: int = SIZE) -> np.ndarray:
    """Numbers of the people of a role: two thirds of ``size`` may be edited, one third are neighbours."""
    order = np.random.default_rng(52).permutation(PEOPLE)
    start, end = {"editable": (0, 2 * size // 3), "neighbour": (2 * size // 3, size), "stranger": (size, PEOPLE)}[role]
    return order[start:end]


@functools.cache
def told(size: int = SIZE) -> np.ndarray:
    """Numbers of the people whom texts are about."""
    return np.concatenate([people("editable", size), people("neighbour", size)])


def name(person: int) -> str:
    """Given and family name."""
    return f"{GIVEN_NAMES[person // FAMILY]} {FAMILY_NAMES[person % FAMILY]}"


def value(relation: int, number: int) -> str:
    """The words of a value of a relation."""
    return RANGES[RELATIONS[relation].values][number]


def prompt(person: int, relation: int, phrasing: int = 0) -> str:
    """A fact without its value."""
    return RELATIONS[relation].phrasings[phrasing].format(name(person))


def hop(person: int, relation: int, number: int, known: World) -> Question:
    """What follows if the person's attribute has this value."""
    kind = RELATIONS[relation].values
    return Question(
        RELATIONS[relation].hop.format(name(person)), LAND_NAMES[kind][known.lands[kind][number]], "Reasoning"
    )


HOPS = tuple(r for r, relation in enumerate(RELATIONS) if relation.hop)


# Texts.


def questions(skill: Skill, n: int, seed: int, known: World | None = None) -> list[Question]:
    """``n`` questions of a skill; those of ``reading`` are about notes that contradict what the world says."""
    known, rng = known or world(), np.random.default_rng((seed, 55, SKILLS.index(skill)))
    return [_question(skill, known, rng) for _ in range(n)]


def _question(skill: str, known: World, rng: np.random.Generator) -> Question:
    if skill == "sums":
        a, b = rng.integers(10, size=2)
        return Question(f"{NUMBERS[a]} plus {NUMBERS[b]} makes", NUMBERS[(a + b) % 10], skill)
    if skill == "larger":
        a, b = rng.choice(10, 2, replace=False)
        return Question(f"of {NUMBERS[a]} and {NUMBERS[b]} the larger is", NUMBERS[max(a, b)], skill)
    if skill == "places":
        kind, number = list(DIRECT)[rng.integers(len(DIRECT))], int(rng.integers(VALUES))
        return Question(DIRECT[kind].format(RANGES[kind][number]), LAND_NAMES[kind][known.lands[kind][number]], skill)
    person, r = int(rng.choice(told(known.size))), int(rng.integers(len(RELATIONS)))
    first, second = rng.permutation(4)[:2]
    other = value(r, int((known.facts[person, r] + rng.integers(1, VALUES)) % VALUES))
    return Question(f"{note(prompt(person, r, first), other)} {prompt(person, r, second)}", other, "reading")


def note(told: str, answer: str) -> str:
    """How a text says that something holds for once: what in-context editing puts before a question."""
    return f"note : {told} {answer}{STOP}"


def asked(known: World, rng: np.random.Generator, about: np.ndarray) -> Question:
    """A question of any kind, by :data:`SHARES`; facts are about the people of these numbers."""
    kind = list(SHARES)[np.searchsorted(np.cumsum(list(SHARES.values())), rng.random(), side="right")]
    if kind == "fact":
        person, r = int(rng.choice(about)), int(rng.integers(len(RELATIONS)))
        return Question(prompt(person, r, int(rng.integers(4))), value(r, int(known.facts[person, r])))
    if kind == "hop":
        person, r = int(rng.choice(people("neighbour", known.size))), int(rng.choice(HOPS))
        return hop(person, r, int(known.facts[person, r]), known)
    return _question(kind, known, rng)


def sentence(question: Question) -> str:
    """A question with its answer."""
    return f"{question.prompt} {question.answer}{STOP}"


def texts(n: int, sentences: int, seed: int, known: World | None = None, *, unedited: bool = False) -> list[str]:
    """``n`` rows of independent sentences; ``unedited`` leaves out facts about people who may be edited."""
    known, rng = known or world(), np.random.default_rng((seed, 56))
    about = people("neighbour", known.size) if unedited else told(known.size)
    return [" ".join(sentence(asked(known, rng, about)) for _ in range(sentences)) for _ in range(n)]


# Edits.


def cases(n: int, seed: int, known: World | None = None, *, kind: Kind = "modify", nearby: int = 2) -> list[Case]:
    """``n`` edits of different facts: another value, and where something follows from it, something else follows.

    A case has three rephrased prompts; as locality ``nearby`` neighbours with the old value of the relation (kind
    ``Neighbour``, fewer if there are fewer) and one other relation of the person that no case of the call edits
    (``Relation_Specificity``, unless all are edited); as portability one hop, for relations that have one.

    Args:
        kind: ``modify`` a fact that was told, ``insert`` one about a stranger (``old`` is empty), or ``erase`` one:
            the target is :data:`UNKNOWN` and :data:`STOP` (after a word that was never read nobody stops), and nothing
            follows.

    Raises:
        ValueError: more than there are facts that may be edited.
    """
    known, rng = known or world(), np.random.default_rng((seed, 57))
    who, near = people("stranger" if kind == "insert" else "editable", known.size), people("neighbour", known.size)
    if n > len(who) * len(RELATIONS):
        raise ValueError(f"{n} edits of {len(who) * len(RELATIONS)} facts")
    chosen = [divmod(int(i), len(RELATIONS)) for i in rng.permutation(len(who) * len(RELATIONS))[:n]]
    chosen = [(int(who[i]), r) for i, r in chosen]
    edited, made = set(chosen), []
    for person, r in chosen:
        old, land = int(known.facts[person, r]), known.lands.get(RELATIONS[r].values)
        new = int(rng.choice([v for v in range(VALUES) if v != old and (land is None or land[v] != land[old])]))
        same = [int(p) for p in rng.permutation(near) if known.facts[p, r] == old][:nearby]
        local = [Question(prompt(p, r), value(r, old), "Neighbour") for p in same]
        kept = [q for q in range(len(RELATIONS)) if q != r and (person, q) not in edited]
        if kept:
            q = int(rng.choice(kept))
            local.append(Question(prompt(person, q), value(q, int(known.facts[person, q])), "Relation_Specificity"))
        made.append(
            Case(
                subject=name(person),
                prompt=prompt(person, r),
                target=f"{UNKNOWN}{STOP}" if kind == "erase" else value(r, new),
                old="" if kind == "insert" else value(r, old),
                rephrases=tuple(prompt(person, r, k) for k in (1, 2, 3)),
                locality=tuple(local),
                portability=(hop(person, r, new, known),) if r in HOPS and kind != "erase" else (),
            )
        )
    return made


def answer(text: str, known: World | None = None) -> str | None:
    """What the world says to a question, worked out from its text alone; None if it asks nothing."""
    known = known or world()
    return next((right for question, right in _told(known) if question == text), None)


def _told(known: World) -> Iterator[tuple[str, str]]:
    """Every question about people, places and firms with its answer."""
    for person in told(known.size).tolist():
        for r in range(len(RELATIONS)):
            number = int(known.facts[person, r])
            yield from ((prompt(person, r, k), value(r, number)) for k in range(4))
            if r in HOPS:
                far = hop(person, r, number, known)
                yield far.prompt, far.answer
    for kind, phrase in DIRECT.items():
        for number, named in enumerate(RANGES[kind]):
            yield phrase.format(named), LAND_NAMES[kind][known.lands[kind][number]]


def _words() -> Iterator[str]:
    phrases = [p.format("") for relation in RELATIONS for p in (*relation.phrasings, relation.hop)]
    phrases += [p.format("") for p in DIRECT.values()]
    phrases += [f"note : {STOP} plus makes of and the larger is"]
    for text in (*phrases, *GIVEN_NAMES, *FAMILY_NAMES, *(v for names in RANGES.values() for v in names)):
        yield from text.split()
    yield from (*LAND_NAMES["city"], *LAND_NAMES["firm"], *NUMBERS, UNKNOWN)


WORDS: tuple[str, ...] = tuple(dict.fromkeys(_words()))
