"""A clinic of invented diseases in which everything is known: why a finding is there, and how probable each disease is.

Forty diseases in eight groups of five look-alikes; 120 findings with names anybody can read. A disease causes the
five findings of its group (probability 0.40 to 0.85, they do not tell look-alikes apart) and five of its own (0.25 to
0.80, some shared with other groups); any finding also turns up without a cause (0.015). Causes act independently
(noisy-OR). Diseases are rare or common (rank to the power -0.7) and each prefers an age. A case mentions seven in
ten present findings, 3% of the absent ones as absent, and 2% as gone long ago or as a relative's. So the exact
posterior of :func:`posterior` is the ceiling for any reader of a case.

What it idealises: findings are independent given the disease; there is one disease per case; documents
are incomplete and never wrong (:func:`lies` makes them so); the wording is a handful of templates. Nothing here is
medicine.

Sizes D diseases, F findings.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

STEMS = ("brel", "cald", "dorn", "fesk", "gral", "holm", "jurn", "kelt")
ENDINGS = ("osis", "itis", "emia", "pathy", "oma")
PLACES = ("chest", "arm", "leg", "back", "neck", "jaw", "hand", "eye", "skin", "belly")
SYMPTOMS = ("pain", "ache", "itch", "cramp", "numbness", "burning")
SIGNS = ("swelling", "rash", "lump", "pallor", "redness", "tremor")
SYNONYM = {"pain": "soreness", "rash": "eruption"}
AGES = ("young", "middle-aged", "old")
LEAK, MENTIONED, DENIED, OTHERS = 0.015, 0.7, 0.03, 0.02
LEAST = 3
"""Present findings that a case mentions at least."""
COMMON = 0.7
"""Share of the diseases, the most common ones, that a case database knows."""
ARTICLES, ARTICLE_LINKS = 0.75, 0.7
"""Shares of diseases with an article, and of a disease's findings that its article names."""
ANSWER_SITE = "answers.example"
"""A site that holds the answers; it must be blocked."""
WORDS = (
    *(f"{stem}{ending}" for stem in STEMS for ending in ENDINGS),
    *(f"{stem}-{i}" for stem in STEMS for i in range(1, 6)),
    *(f"{place}-{kind}" for place in PLACES for kind in (*SYMPTOMS, *SIGNS, *SYNONYM.values())),
    *("Reports", "Shows", "Denies", "Had", "Family", "."),
)
"""Every word that a small model needs in order to read a case."""


class World(NamedTuple):
    """``rate`` [D, F] is the probability that the disease causes the finding (0: no link); ``prior`` [3, D] the
    probability of each disease by age; ``group`` [D]. ``aliases`` are second names of diseases, ``synonyms`` of
    findings. Diseases are in the order of their frequency."""

    diseases: tuple[str, ...]
    findings: tuple[str, ...]
    aliases: dict[str, str]
    synonyms: dict[str, str]
    group: np.ndarray
    rate: np.ndarray
    prior: np.ndarray

    def links(self) -> frozenset[tuple[str, str]]:
        """(disease, finding) of every link."""
        return frozenset((self.diseases[d], self.findings[f]) for d, f in zip(*np.nonzero(self.rate)))


class Mention(NamedTuple):
    """A finding as a case tells it. ``status``: ``present``, ``absent``, ``past`` or ``family``; ``words`` as
    written (perhaps a synonym)."""

    finding: str
    status: str
    words: str


class Step(NamedTuple):
    """One statement of a reasoning path: the finding speaks for (``+``) or against (``-``) the disease."""

    finding: str
    disease: str
    sign: str


@dataclass(frozen=True)
class ClinicCase:
    """A case: its text, what the text says, the diagnosis, and the statements that lead there."""

    id: str
    text: str
    age: int
    mentions: tuple[Mention, ...]
    diagnosis: str
    steps: tuple[Step, ...]

    def reasoning(self) -> str:
        """The path as numbered statements, two findings that speak for the diagnosis in one."""
        helps = [s.finding for s in self.steps if s.sign == "+"]
        lines = [f"{self.diagnosis} explains {' and '.join(helps[i : i + 2])}." for i in range(0, len(helps), 2)]
        lines += [f"{s.disease} would show {s.finding} otherwise." for s in self.steps if s.sign == "-"]
        return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


class Document(NamedTuple):
    """A page of the corpus."""

    id: str
    title: str
    text: str


@functools.cache
def world(seed: int = 0) -> World:
    """The clinic; every seed is another one. The small models know the one of seed 0."""
    rng = np.random.default_rng((seed, 101))
    findings = tuple(f"{place}-{kind}" for place in PLACES for kind in (*SYMPTOMS, *SIGNS))
    names = [f"{stem}{ending}" for stem in STEMS for ending in ENDINGS]
    n = len(names)
    shuffled = rng.permutation(len(findings))
    shared, own = shuffled[: 5 * len(STEMS)].reshape(len(STEMS), 5), shuffled[5 * len(STEMS) :]
    order, rate = rng.permutation(n), np.zeros((n, len(findings)))
    decks = itertools.chain.from_iterable(rng.permutation(own) for _ in itertools.count())
    for d, name in enumerate(order):
        rate[d, shared[name // 5]] = rng.uniform(0.40, 0.85, 5)
        mine: list[int] = []
        while len(mine) < 5:
            if (f := int(next(decks))) not in mine:
                mine.append(f)
        rate[d, mine] = rng.uniform(0.25, 0.80, 5)
    weight = np.arange(1, n + 1) ** -0.7 * np.where(rng.integers(3, size=n) == np.arange(3)[:, None], 3.0, 1.0)
    diseases = tuple(names[i] for i in order)
    return World(
        diseases,
        findings,
        {f"{STEMS[i // 5]}-{i % 5 + 1}": names[i] for i in range(n)},
        {f"{place}-{other}": f"{place}-{kind}" for place in PLACES for kind, other in SYNONYM.items()},
        order // 5,
        rate,
        weight / weight.sum(axis=1, keepdims=True),
    )


def cases(n: int, seed: int, *, among: Sequence[str] | None = None, w: World | None = None) -> list[ClinicCase]:
    """``n`` cases, by the seed alone; ``among`` are the diseases that occur (None: all).

    Raises:
        ValueError: none of ``among`` is a disease of the world.
    """
    w = w or world()
    rng = np.random.default_rng((seed, 103))
    allowed = np.ones(len(w.diseases), bool) if among is None else np.isin(w.diseases, list(among))
    if not allowed.any():
        raise ValueError(f"no disease of this world is among {among}")
    return [_case(w, rng, allowed, f"case-{seed}-{i}") for i in range(n)]


def _case(w: World, rng: np.random.Generator, allowed: np.ndarray, name: str) -> ClinicCase:
    other_name = {finding: other for other, finding in w.synonyms.items()}
    while True:
        age = int(rng.integers(18, 90))
        p = w.prior[band(age)] * allowed
        d = int(rng.choice(len(p), p=p / p.sum()))
        present = rng.random(len(w.findings)) < 1 - (1 - LEAK) * (1 - w.rate[d])
        draw = rng.random(len(w.findings))
        status = np.where(present, np.where(draw < MENTIONED, 1, 0), np.select(
            [draw < DENIED, draw < DENIED + OTHERS / 2, draw < DENIED + OTHERS], [2, 3, 4], 0))  # fmt: skip
        if (status == 1).sum() >= LEAST:
            break
    mentions = []
    for f in rng.permutation(np.flatnonzero(status)):
        finding, kind = w.findings[f], ("", "present", "absent", "past", "family")[status[f]]
        words = other_name[finding] if finding in other_name and rng.random() < 0.5 else finding
        mentions.append(Mention(finding, kind, words))
    text = " ".join([f"Age {age} .", *(_sentence(m, rng) for m in mentions)])
    return ClinicCase(name, text, age, tuple(mentions), w.diseases[d], _steps(w, d, mentions))


def band(age: int) -> int:
    """0 young, 1 middle-aged, 2 old: the row of ``prior``."""
    return 0 if age < 40 else 1 if age < 65 else 2


def is_sign(finding: str) -> bool:
    """Found by examining, not told by the patient."""
    return finding.rpartition("-")[2] in (*SIGNS, SYNONYM["rash"])


def _section(m: Mention) -> str:
    return "O" if is_sign(m.finding) and m.status in ("present", "absent") else "S"


def _sentence(m: Mention, rng: np.random.Generator) -> str:
    head = {"present": "Shows" if is_sign(m.finding) else "Reports", "absent": "Denies", "past": "Had"}
    days = f" for {rng.integers(2, 15)} days" if m.status == "present" and rng.random() < 0.2 else ""
    return f"{head.get(m.status, 'Family')} {m.words}{days} ."


def _steps(w: World, d: int, mentions: Sequence[Mention]) -> tuple[Step, ...]:
    at = {finding: f for f, finding in enumerate(w.findings)}
    present = [m.finding for m in mentions if m.status == "present"]
    steps = [Step(finding, w.diseases[d], "+") for finding in present if w.rate[d, at[finding]]]
    for other in np.flatnonzero((w.group == w.group[d]) & (np.arange(len(w.group)) != d)):
        against = [m.finding for m in mentions if m.status == "absent" and w.rate[other, at[m.finding]]]
        if against:
            steps.append(Step(against[0], w.diseases[other], "-"))
    return tuple(steps)


def posterior(case: ClinicCase, w: World | None = None) -> np.ndarray:
    """[D] the exact probability of each disease given everything that the case mentions, and leaves out."""
    w = w or world()
    p = 1 - (1 - LEAK) * (1 - w.rate)
    likelihood = 1 - p * MENTIONED - (1 - p) * (DENIED + OTHERS)  # not mentioned
    at = {finding: f for f, finding in enumerate(w.findings)}
    chances = {"present": MENTIONED * p, "absent": DENIED * (1 - p)} | dict.fromkeys(
        ("past", "family"), OTHERS / 2 * (1 - p)
    )
    log = np.log(w.prior[band(case.age)])
    told = {at[m.finding]: m.status for m in case.mentions}
    for f in range(len(w.findings)):
        log = log + np.log(chances[told[f]][:, f] if f in told else likelihood[:, f])
    return np.exp(log - log.max()) / np.exp(log - log.max()).sum()


def memory(common: float, rare: float, w: World | None = None) -> frozenset[tuple[str, str]]:
    """(disease, finding) links that a model carries in its weights: these shares of the links of the common half of
    the diseases and of the rare half. A larger share holds every link of a smaller one."""
    w = w or world()
    draw = np.random.default_rng(107).random(w.rate.shape)
    share = np.where(np.arange(len(w.diseases)) < len(w.diseases) / 2, common, rare)
    return frozenset(
        (w.diseases[d], w.findings[f]) for d, f in zip(*np.nonzero((w.rate > 0) & (draw < share[:, None])))
    )


def seen_diseases(w: World | None = None) -> tuple[str, ...]:
    """The common diseases that the case database has met."""
    w = w or world()
    return w.diseases[: round(COMMON * len(w.diseases))]


def articles(seed: int, w: World | None = None) -> list[Document]:
    """Pages of a general reference: on most diseases, often under their second name; pages on nothing; and a page of
    the answer site."""
    w = w or world()
    rng = np.random.default_rng((seed, 109))
    alias = {disease: other for other, disease in w.aliases.items()}
    chosen = rng.permutation(len(w.diseases))[: round(ARTICLES * len(w.diseases))]
    pages = []
    for d in chosen.tolist():
        name = alias.get(w.diseases[d], w.diseases[d]) if rng.random() < 0.5 else w.diseases[d]
        links = rng.permutation(np.flatnonzero(w.rate[d]))
        told = links[: round(ARTICLE_LINKS * len(links))]
        lines = [f"{name} may show {w.findings[f]}." for f in told]
        pages.append(Document(f"reference.example/{name}", f"About {name}", " ".join(lines)))
    for i in range(15):
        said = ", ".join(w.findings[f] for f in rng.permutation(len(w.findings))[:6])
        pages.append(Document(f"health.example/{i}", "Staying well", f"Many have {said}. See somebody who knows."))
    pages.append(Document(f"{ANSWER_SITE}/all", "Answers", " ".join(f"{f}." for f in w.findings)))
    return [pages[i] for i in rng.permutation(len(pages))]


def lies(documents: Sequence[Document], seed: int, w: World | None = None) -> list[Document]:
    """The same pages with every disease's name replaced by another's: wrong in each statement."""
    w = w or world()
    turned = dict(zip(w.diseases, np.roll(w.diseases, 1 + seed % 7), strict=True))
    turned |= dict(zip(w.aliases, np.roll(list(w.aliases), 1 + seed % 7), strict=True))
    return [page._replace(text=" ".join(turned.get(word, word) for word in page.text.split(" "))) for page in documents]


def as_note(case: ClinicCase, seed: int = 0) -> ClinicCase:
    """The same case under the headings of a clinical note."""
    rng = np.random.default_rng((seed, 113))
    lines = [(_section(m), _sentence(m, rng)) for m in case.mentions]
    parts = [(head, " ".join(s for h, s in lines if h == head) or "none") for head in "SO"]
    text = "\n".join(f"{head} : {said}" for head, said in [*parts, ("A", "none"), ("P", "none")])
    return replace(case, text=f"Age {case.age} .\n{text}")
