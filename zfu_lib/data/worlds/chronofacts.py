"""ChronoFacts: who led a place at a time that other facts give.

    oslo 1933 otto 1941 lena 1945 igor 1950 ; bern 1926 emil 1931 mara 1938 ivo 1944 ; ...
    who led bern in 1935 ?                                  one look-up
    who led bern after mara ?                               two: when did she end, and who led then
    who led oslo 3 years after start of bern in 1935 ?      two; terms nest: "... of bern at end of rome under lena"
    which began first , bern under mara or oslo in 1937 ?   two, and a comparison

The facts of a place are the years at which its leader changes, and who then leads. Terms are half-open: mara leads bern
in 1931 and no longer in 1938, so a place has one leader in every year. A step retrieves the years alone; who began in
the one that it finds is read from the question at the end, so that the insights do not tell the answer.

Idealised: whole years, three leaders a place and nobody between them, nobody leads two places, no year of change is
shared by two places, a place's facts stand together and in order. "before" means the year before the start, and no
question has a way around one of its look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zfu_lib.data.worlds.problem import Problem, Step

# fmt: off
NAMES = (
    "ada", "alba", "anna", "axel", "bela", "bruno", "carla", "clara", "dora", "edda", "emil", "enzo", "eva", "felix",
    "finn", "greta", "hugo", "ida", "igor", "ines", "ivo", "jana", "jonas", "karl", "lars", "lena", "leo", "lucia",
    "mara", "maya", "milo", "nina", "noah", "olga", "otto", "paula", "rita", "sven", "theo", "vera",
)
PLACES = (
    "athens", "bern", "bonn", "cairo", "dakar", "delhi", "dublin", "geneva", "hanoi", "lima", "lisbon", "lyon",
    "madrid", "milan", "oslo", "paris", "prague", "riga", "rome", "turin",
)
# fmt: on
WORDS = (
    *NAMES,
    *PLACES,
    *("led", "who", "in", "under", "after", "before", "at", "years", "start", "end", "of"),
    *("which", "began", "first", "or"),
)
YEARS = range(1900, 2000)
MOST = 4
TERMS = 3
LONGEST, LATEST = 9, 5
"""Years that a term lasts at most (2 at least) and that "years after" counts at most (2 at least)."""


@dataclass(frozen=True)
class Term:
    """One leader's years in a place, from the first to the one that is the next leader's first."""

    place: str
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Chain:
    """Look-ups that lead to a term: each is a term and the year it was found by (None: by its leader's name).

    ``wants``: what each look-up but the last is for, ``("start", 3)`` being the third year after the start.
    """

    text: str
    terms: tuple[tuple[Term, int | None], ...]
    wants: tuple[tuple[str, int], ...] = ()


def problems(n: int, seed: int, *, levels: Sequence[int] = range(1, MOST + 1)) -> list[Problem]:
    """``n`` independent problems; ``levels`` are numbers of look-ups, drawn uniformly.

    A quarter of those above level 1 ask which of two terms began first.

    Raises:
        ValueError: a level that is not 1..4.
    """
    if min(levels) < 1 or max(levels) > MOST:
        raise ValueError(f"levels {list(levels)}: questions need 1 to {MOST} look-ups")
    rng = np.random.default_rng((seed, 17))
    return [_problem(rng, int(rng.choice(levels))) for _ in range(n)]


def solve(question: str) -> str:
    """The answer to a question, worked out from its text alone.

    Raises:
        ValueError: not a ChronoFacts question, or one that its facts do not answer.
    """
    *texts, asked = question.split(" ; ")
    facts = []
    for place, *words in (text.split(" ") for text in texts):
        facts += [(words[i], place, int(words[i - 1]), int(words[i + 1])) for i in range(1, len(words) - 1, 2)]

    def one(place: str, test) -> tuple[str, str, int, int]:
        found = [fact for fact in facts if fact[1] == place and test(fact)]
        if len(found) != 1:
            raise ValueError(f"{len(found)} terms of {place} fit in {question!r}")
        return found[0]

    def led_in(place: str, year: int) -> tuple[str, str, int, int]:
        return one(place, lambda f: f[2] <= year < f[3])

    def term(words: list[str]) -> tuple[str, str, int, int]:
        match words:
            case [place, "in", year]:
                return led_in(place, int(year))
            case [place, "under", name]:
                return one(place, lambda f: f[0] == name)
            case [place, "after", name]:
                return led_in(place, one(place, lambda f: f[0] == name)[3])
            case [place, "before", name]:
                return led_in(place, one(place, lambda f: f[0] == name)[2] - 1)
            case [place, "at", "start" | "end" as edge, "of", *rest]:
                return led_in(place, term(rest)[2 if edge == "start" else 3])
            case [place, years, "years", "after", "start" | "end" as edge, "of", *rest]:
                return led_in(place, term(rest)[2 if edge == "start" else 3] + int(years))
        raise ValueError(f"not a term: {' '.join(words)!r}")

    match asked.split(" "):
        case ["who", "led", *words, "?"]:
            return term(words)[0]
        case ["which", "began", "first", ",", *words, "?"] if words.count("or") == 1:
            two = term(words[: words.index("or")]), term(words[words.index("or") + 1 :])
            return min(two, key=lambda t: t[2])[1]
    raise ValueError(f"not a ChronoFacts question: {question!r}")


def _problem(rng: np.random.Generator, level: int) -> Problem:
    compared = level > 1 and rng.random() < 0.25
    split = int(rng.integers(1, level)) if compared else level
    while True:
        terms = _terms(rng)
        chains = [_chain(rng, terms, n, not compared) for n in (split, level - split) if n]
        if all(chain and _needed(chain, compared) for chain in chains):
            other, last = (chains[i].terms[-1][0] for i in (0, -1))
            if not compared or other.place != last.place:
                break
    steps, needs = [], []
    for chain in chains:
        final = ("start", 0) if compared else None
        for (term, year), want in zip(chain.terms, (*chain.wants, final)):
            steps.append(_step(terms, term, year, want))
            needs.append(f"{want[0] if want else 'who'} {term.place}")
    if compared:
        fact, found = steps[-1].fact, _found(*chains[1].terms[-1], " : ")
        sign, answer = ("<", other.place) if other.start < last.start else (">", last.place)
        steps[-1] = Step(last.place, fact, f"{found}{other.start} {sign} {last.start}", answer)
        question, needs = f"which began first , {chains[0].text} or {chains[1].text} ?", [*needs, "first"]
    else:
        question, answer = f"who led {chains[0].text} ?", last.name
    mine = [terms[i : i + TERMS] for i in range(0, len(terms), TERMS)]
    lines = [" ".join([m[0].place, *(f"{t.start} {t.name}" for t in m), str(m[-1].end)]) for m in mine]
    question = " ; ".join([*lines, question])
    return Problem("chronofacts", question, needs[-1], tuple(needs[::-1]), tuple(steps), answer, level)


def _terms(rng: np.random.Generator) -> list[Term]:
    """The terms of two or three places, whose years of change all differ."""
    n = int(rng.integers(2, 4))
    places = rng.permutation(len(PLACES))[:n]
    names = iter(rng.permutation(len(NAMES)))
    while True:
        first = int(rng.integers(YEARS[0], YEARS[-1] - TERMS * LONGEST - 5))
        starts = first + rng.integers(6, size=(n, 1))
        changes = starts + np.cumsum(rng.integers(2, LONGEST + 1, size=(n, TERMS + 1)), axis=1)
        if len(set(changes.flat)) == changes.size and changes.max() <= YEARS[-1]:
            break
    return [
        Term(PLACES[place], NAMES[next(names)], int(start), int(end))
        for place, years in zip(places, changes)
        for start, end in zip(years, years[1:])
    ]


def _chain(rng: np.random.Generator, terms: list[Term], n: int, asks_name: bool) -> Chain | None:
    """``n`` look-ups; None where the facts do not reach. A chain of one that ``asks_name`` does not give the name."""
    t = terms[int(rng.integers(len(terms)))]
    edge = ("start", "end")[int(rng.integers(2))]
    if n == 1:
        if asks_name or rng.random() < 0.5:
            year = int(rng.integers(t.start, t.end))
            return Chain(f"{t.place} in {year}", ((t, year),))
        return Chain(f"{t.place} under {t.name}", ((t, None),))
    if n == 2 and rng.random() < 0.3:
        year, word, want = (t.start - 1, "before", ("start", -1)) if edge == "start" else (t.end, "after", ("end", 0))
        found = _led_in(terms, t.place, year)
        return Chain(f"{found.place} {word} {t.name}", ((t, None), (found, year)), (want,)) if found else None
    inner = _chain(rng, terms, n - 1, False)
    if inner is None:
        return None
    event = inner.terms[-1][0]
    if inner.wants and inner.terms[-2][0].place == event.place:
        # The start of whoever came after is the first one's end: ask for what only the last look-up gives.
        edge = "end" if inner.wants[-1][0] == "end" else "start"
    later = int(rng.integers(2, LATEST + 1)) if rng.random() < 0.5 else 0
    year = getattr(event, edge) + later
    found = _led_in(terms, t.place, year)
    if found is None or found.place == event.place:
        return None
    text = f"{found.place} {f'{later} years after' if later else 'at'} {edge} of {inner.text}"
    return Chain(text, (*inner.terms, (found, year)), (*inner.wants, (edge, later)))


def _needed(chain: Chain, compared: bool) -> bool:
    """Whether the last look-up is: it finds a new term, and not one "after" another, whose start that other tells."""
    *before, (last, _) = chain.terms
    after = chain.wants[-1:] == (("end", 0),) and before[-1][0].place == last.place
    return last not in [term for term, _ in before] and not (compared and after)


def _led_in(terms: list[Term], place: str, year: int) -> Term | None:
    return next((t for t in terms if t.place == place and t.start <= year < t.end), None)


def _found(term: Term, year: int | None, then: str = "") -> str:
    """The work of finding a term by a year; its start comes last, because its leader stands after that."""
    return "" if year is None else f"{term.end} > {year} >= {term.start}{then}"


def _step(terms: list[Term], term: Term, year: int | None, want: tuple[str, int] | None) -> Step:
    fact = f"{term.place} {term.name} {term.start} {term.end}"
    if year is not None:
        mine = [t for t in terms if t.place == term.place]
        fact = " ".join([term.place, *(str(t.start) for t in mine), str(mine[-1].end)])
    if want is None:
        return Step(term.place, fact, _found(term, year), term.name)
    edge, later = getattr(term, want[0]), want[1]
    work = f"{_found(term, year, ' : ')}{edge} {'-' if later < 0 else '+'} {abs(later)} ="
    return Step(term.place, fact, work, str(edge + later))
