"""Job ads: sentences whose skills are known by construction, for span extraction::

    you must [prepare reports] , [train staff] and [use Python] .
    our clients prepare reports every day .

A sentence is made from a template. Where it asks something of the applicant, its skills are marked; where it tells of
the company, of clients or of benefits, the same phrases stand there unmarked, so that no list of phrases is enough.
Skills are a tool, a trait, a verb with its object (and at times for whom), two adjectives that share a head ("written
and verbal communication": one skill), or a long duty; connected skills are marked one by one. Which skills occur
follows a power law, so some of a test set never occur in a training set. Templates without skills have few fillings:
boilerplate repeats itself, across postings too, as in real ads.

Idealised: one annotator who never errs, a small vocabulary, no typing errors, skills of at most eight words, every
sentence from a template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# fmt: off
TOOLS = (
    "Python", "SQL", "Java", "Excel", "Linux", "Docker", "Tableau", "Scala", "Kafka", "Oracle", "Matlab", "Revit",
    "Git", "Spark", "Rust", "Salesforce", "Photoshop", "Kubernetes", "Jira", "Hadoop", "Perl", "Terraform", "Stata",
    "Blender", "Fortran", "Jenkins", "Cobol", "Ansible", "Vim", "Grafana",
)
VERBS = (
    "prepare", "check", "plan", "write", "review", "manage", "design", "test", "maintain", "present", "analyse",
    "update", "organise", "translate", "audit", "repair",
)
OBJECTS = (
    "reports", "budgets", "contracts", "schedules", "invoices", "websites", "databases", "machines", "lessons",
    "menus", "campaigns", "networks", "orders", "tenders", "samples", "vehicles", "project plans", "sales figures",
    "risk assessments", "training courses", "quality standards", "customer records", "safety rules", "tax returns",
)
TRAITS = (
    "teamwork", "patience", "creativity", "empathy", "curiosity", "discipline", "attention to detail",
    "time management", "problem solving", "leadership", "critical thinking", "negotiation", "public speaking",
    "self motivation", "stress resistance", "a sense of humour",
)
ADJECTIVES = ("written", "verbal", "visual", "digital", "internal", "external", "technical", "commercial")
HEADS = ("communication", "correspondence", "documentation", "planning")
GROUPS = ("new colleagues", "external suppliers", "young trainees", "regional teams")
DUTIES = ("coordinate the daily work of", "explain complex results to", "resolve difficult conflicts between")
CITIES = ("Hamburg", "Leeds", "Lyon", "Aarhus", "Turin", "Ghent")
PERKS = ("free coffee", "flexible hours", "a pension plan", "thirty days of leave", "a company bike", "a bonus")
ASKING = (
    "you {verbs} .", "you must {verbs} .", "your tasks : {verbs} .", "we want someone who can {verbs} in {city} .",
    "knowledge of {tools} is required .", "experience with {tools} would help .", "you work with {tools} every day .",
    "we value strong {traits} .", "you bring {traits} .", "{traits} and good {shared} are essential .",
    "{shared} in English , and {traits} .", "you {duty} .", "ability to {duty} and {verbs} .",
    "you use {tools} to {verbs} .", "{tools} , plus {traits} .", "{verbs} in {city} .", "{verbs} every day .",
    "we {verb} , so you must {verbs} .", "you get {perk} , we expect {traits} .",
    "courses in {trait} are free , {traits} is expected .",
)
TELLING = (
    "our clients {verb} every day .", "our partner companies {verb} and {verb} .", "our software runs on {tool} .",
    "the office in {city} was built with {tool} .", "we offer {perk} and {perk} .", "we offer courses in {trait} .",
    "we are based in {city} .", "please apply by letter .", "the salary is negotiable .", "we {verb} in {city} .",
    "our founders once had to {verb} in {city} .", "{trait} is one of our values .",
    "{verb} ? our partners can do that .",
    "{tool} and {trait} are taught in our courses .",
)
WORDS = tuple(dict.fromkeys(
    " ".join((
        *TOOLS, *VERBS, *OBJECTS, *TRAITS, *ADJECTIVES, *HEADS, *GROUPS, *DUTIES, *CITIES, *PERKS,
        *(re.sub(r"\{\w+\}", "", t) for t in (*ASKING, *TELLING)), "and , or for",
    )).split()
))
# fmt: on
"""Every word a sentence can hold."""


FOR_WHOM = 0.25
"""Share of verbs with objects that also say for whom."""


class Ad(NamedTuple):
    """One sentence of a posting: its tokens and the (start, end) of its skills, ends exclusive."""

    id: str
    posting: str
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


class Entry(NamedTuple):
    """One skill of the taxonomy."""

    label: str
    definition: str


def ads(n: int, seed: int, *, asking: float = 0.6, per_posting: int = 5, skew: float = 1.0) -> list[Ad]:
    """``n`` sentences, ``per_posting`` to a posting.

    Args:
        asking: share of sentences that ask something of the applicant.
        skew: exponent of the power law by which fillings are drawn (0: all alike).

    Raises:
        ValueError: a share outside 0..1, or fewer than one sentence a posting.
    """
    if not 0 <= asking <= 1 or per_posting < 1:
        raise ValueError(f"asking = {asking} must be a share, per_posting = {per_posting} at least 1")
    rng = np.random.default_rng((seed, 13))
    found = []
    for i in range(n):
        templates = ASKING if rng.random() < asking else TELLING
        tokens, spans = _filled(templates[int(rng.integers(len(templates)))], rng, skew)
        found.append(Ad(f"{seed}-{i}", f"{seed}-p{i // per_posting}", tuple(tokens), tuple(spans)))
    return found


def skills() -> list[str]:
    """Every skill that can be marked, as it stands in a sentence."""
    shared = [f"{a} and {b} {head}" for a in ADJECTIVES for b in ADJECTIVES if a < b for head in HEADS]
    duties = [f"{duty} {group}" for duty in DUTIES for group in GROUPS]
    acts = [f"{verb} {thing}" for verb in VERBS for thing in OBJECTS]
    return [*TOOLS, *TRAITS, *acts, *(f"{act} for {group}" for act in acts for group in GROUPS), *shared, *duties]


def taxonomy(coverage: float = 0.7, seed: int = 0) -> list[Entry]:
    """A dictionary of skills, like ESCO's: a share of :func:`skills`, each with a definition.

    Raises:
        ValueError: a share outside 0..1.
    """
    if not 0 <= coverage <= 1:
        raise ValueError(f"coverage = {coverage} is not a share")
    every = skills()
    chosen = np.random.default_rng((seed, 17)).permutation(len(every))[: round(coverage * len(every))]
    return [Entry(every[i], f"the skill to {every[i]}" if " " in every[i] else f"work with {every[i]}") for i in chosen]


def _filled(template: str, rng: np.random.Generator, skew: float) -> tuple[list[str], list[tuple[int, int]]]:
    tokens: list[str] = []
    spans: list[tuple[int, int]] = []
    for piece in template.split():
        slot = re.fullmatch(r"\{(\w+)\}", piece)
        if not slot:
            tokens.append(piece)
            continue
        marked = slot[1] in ("verbs", "tools", "traits", "shared", "duty")
        n = 1 + int(rng.integers(3)) if slot[1].endswith("s") else 1
        for i, phrase in enumerate(_distinct(slot[1].rstrip("s"), n, rng, skew)):
            if i:
                tokens.append(("and", "or")[int(rng.integers(2))] if i == n - 1 else ",")
            words = phrase.split()
            if marked:
                spans.append((len(tokens), len(tokens) + len(words)))
            tokens += words
    return tokens, spans


def _distinct(kind: str, n: int, rng: np.random.Generator, skew: float) -> list[str]:
    found: list[str] = []
    while len(found) < n:
        phrase = _phrase(kind, rng, skew)
        if phrase not in found:
            found.append(phrase)
    return found


def _phrase(kind: str, rng: np.random.Generator, skew: float) -> str:
    def one(options: Sequence[str]) -> str:
        weights = np.arange(1, len(options) + 1) ** -skew
        return options[int(rng.choice(len(options), p=weights / weights.sum()))]

    match kind:
        case "verb":
            whom = f" for {one(GROUPS)}" if rng.random() < FOR_WHOM else ""
            return f"{one(VERBS)} {one(OBJECTS)}{whom}"
        case "shared":
            a, b = sorted(rng.permutation(len(ADJECTIVES))[:2].tolist(), key=lambda i: ADJECTIVES[i])
            return f"{ADJECTIVES[a]} and {ADJECTIVES[b]} {one(HEADS)}"
        case "duty":
            return f"{one(DUTIES)} {one(GROUPS)}"
    return one({"tool": TOOLS, "trait": TRAITS, "city": CITIES, "perk": PERKS}[kind])
