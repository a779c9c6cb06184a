"""Models that diagnose in the invented clinic: what they know of it is in their weights, the rest they must read.

Four kinds of text, all with the answer under a heading: suspects with the findings that speak for the first of them,
which of two is the better diagnosis, the disease that a page is about (if it bears on the case), and the union of four
lists. Facts stand beside the case in pairs of words, those that agree with it (``For``) and those that it denies
(``Against``): a model of this size cannot sort them itself. In half of the texts with facts every name is replaced by a
spare word (``finding-3``, ``disease-17``) of which nothing is known, so that the model learns to read.

The order it learns is a count: facts and known links that agree with the case, less those that it denies. That is a
crude reader on purpose; the exact posterior is the ceiling it is held against.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from zfu_lib.data.worlds import clinic
from zfu_lib.data.worlds.clinic import ClinicCase, Mention
from zfu_lib.lm.protocol import GenRequest, LanguageModel
from zfu_lib.lm.recipes.base import Example, Recipe, Score, llama
from zfu_lib.lm.recipes.initial import look_up_head
from zfu_lib.lm.train import TrainConfig

CONTEXT = 320
HELD_OUT = 2_000_000_000
SPARE_FINDINGS = tuple(f"finding-{i}" for i in range(1, 81))
SPARE_DISEASES = tuple(f"disease-{i}" for i in range(1, 51))
SPARE = 0.5
LISTS = ("SOAP", "Web", "Cases", "Traces")
MODES = ("suspects", "compare", "notes", "integrate")
SHARES = (0.5, 0.25, 0.08, 0.17)
WORDS = (
    *("Case", "For", "Against", "Between", "Mode", "Suspects", "Because", "Better", "Notes", "none"),
    *(*"SOAP:;,", *LISTS, *MODES, *clinic.WORDS, *SPARE_FINDINGS, *SPARE_DISEASES),
)

KNOWS = {"resident": (0.55, 0.30), "student": (0.25, 0.15)}
"""Shares of the links of common and of rare diseases that each model knows."""

Fact = tuple[str, str]
"""(disease, finding): the disease shows the finding."""


def frame(
    case: str,
    mode: str,
    *,
    facts: Iterable[Fact] = (),
    against: Iterable[Fact] = (),
    between: Sequence[str] = (),
    lists: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What the model reads."""
    lines = [f"Case : {case}"]
    for name, pairs in (("For", facts), ("Against", against)):
        if told := " ; ".join(map(" ".join, pairs)):
            lines.append(f"{name} : {told}")
    lines += [f"{name} : {' ; '.join(listed) or 'none'}" for name, listed in (lists or {}).items()]
    if between:
        lines.append(f"Between : {' ; '.join(between)}")
    return "\n".join([*lines, f"Mode : {mode}\n"])


def tokens(text: str) -> int:
    """Tokens of a text whose words the model knows, with the one that begins a text."""
    return 1 + len(re.findall(r" ?[^\s]+|\s", text))


def bearing(facts: Iterable[Fact], status: Mapping[str, str]) -> dict[str, list[Fact]]:
    """The facts about findings that the case has (``facts``) or denies (``against``), as :func:`frame` takes them."""
    facts = list(facts)
    return {
        name: [fact for fact in facts if status.get(fact[1]) == wanted]
        for name, wanted in (("facts", "present"), ("against", "absent"))
    }


def ranking(mentions: Sequence[Mention], facts: Iterable[Fact], known: Collection[Fact]) -> list[tuple[str, int]]:
    """(disease, points), most points first, at most ten with any: what the model is taught to write. One point for each
    fact or known link whose finding is present, one less for each that is denied. Of equals the more common disease is
    first, then the one whose facts come first."""
    sign = {m.finding: {"present": 1, "absent": -1}.get(m.status, 0) for m in mentions}
    points: dict[str, int] = dict.fromkeys(clinic.world().diseases, 0) if known else {}
    for disease, finding in facts:
        points[disease] = points.get(disease, 0) + sign.get(finding, 0)
    for finding, s in sign.items():
        for disease in _knowing(known).get(finding, ()):
            points[disease] += s
    ordered = sorted(((d, n) for d, n in points.items() if n > 0), key=lambda pair: -pair[1])
    return ordered[:10]


@functools.lru_cache(maxsize=4)
def _knowing(known: frozenset[Fact]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for disease, finding in sorted(known):
        found.setdefault(finding, []).append(disease)
    return found


def supporting(disease: str, mentions: Sequence[Mention], facts: Collection[Fact], known: Collection[Fact]) -> list:
    """Present findings that a fact or a known link ties to the disease, in the order of the case."""
    both = {*facts, *known}
    return [m.finding for m in mentions if m.status == "present" and (disease, m.finding) in both]


def examples(n: int, seed: int, progress: float, *, common: float, rare: float) -> list[Example]:
    """``n`` texts of the mixture; ``progress`` changes nothing.

    Args:
        common, rare: shares of the links of common and rare diseases that the model knows.
    """
    rng = np.random.default_rng((seed, 127))
    known = clinic.memory(common, rare)
    modes = rng.choice(MODES, n, p=SHARES)
    return [_example(case, mode, known, rng) for case, mode in zip(clinic.cases(n, seed), modes, strict=True)]


def _example(case: ClinicCase, mode: str, known: frozenset[Fact], rng: np.random.Generator) -> Example:
    mentions, text = case.mentions, short(case.text)
    if mode in ("suspects", "compare") and rng.random() < 0.25:
        text = soap(mentions)
    diseases = _candidates(case, rng)
    if mode == "integrate":
        lists = _lists(diseases, rng)
        return frame(text, mode, lists=lists), f"Suspects : {' ; '.join(vote(lists.values()))}\n"
    between = [str(d) for d in rng.permutation(diseases)[:2]]
    if mode == "notes":
        diseases = diseases[:1]
    facts = _facts(diseases, case, rng)
    facts = [fact for fact in facts if fact[0] in between] if mode == "compare" else _aliased(facts, rng)
    if rng.random() < SPARE:
        new, known = _spare(rng), frozenset()
        text = " ".join(new(word) for word in text.split(" "))
        mentions = [m._replace(finding=new(m.finding)) for m in mentions]
        facts, between = [(new(d), new(f)) for d, f in facts], list(map(new, between))
    elif mode != "notes" and rng.random() < 0.3:
        facts = []
    shown = bearing(facts, {m.finding: m.status for m in mentions})
    match mode:
        case "suspects":
            return frame(text, mode, **shown), suspects(mentions, facts, known)
        case "compare":
            return frame(text, mode, **shown, between=between), better(between, mentions, facts, known)
    return frame(text, mode, **shown), notes(shown["facts"])


def suspects(mentions: Sequence[Mention], facts: Sequence[Fact], known: frozenset[Fact]) -> str:
    """The answer to ``suspects``."""
    found = [disease for disease, _ in ranking(mentions, facts, known)]
    told = because(found[0], mentions, facts, known) if found else "none"
    return f"Suspects : {' ; '.join(found) or 'none'}\nBecause : {told}\n"


def better(between: Sequence[str], mentions: Sequence[Mention], facts: Sequence[Fact], known: frozenset[Fact]) -> str:
    """The answer to ``compare``; of equals the first."""
    points = dict.fromkeys(between, 0) | dict(ranking(mentions, facts, known))
    winner = max(between, key=lambda d: points[d])
    return f"Better : {winner}\nBecause : {because(winner, mentions, facts, known)}\n"


def because(disease: str, mentions: Sequence[Mention], facts: Collection[Fact], known: Collection[Fact]) -> str:
    """What speaks for a disease, in pairs of words."""
    return " ; ".join(f"{disease} {f}" for f in supporting(disease, mentions, facts, known)) or "none"


def notes(facts: Sequence[Fact]) -> str:
    """The answer to ``notes``: whom the page's facts are about."""
    return f"Notes : {facts[0][0] if facts else 'none'}\n"


def soap(mentions: Sequence[Mention]) -> str:
    """A case sorted into sections: what is present or denied, under its usual name; history that is over and relatives
    are left out."""
    head = {"present": lambda f: "Shows" if clinic.is_sign(f) else "Reports", "absent": lambda f: "Denies"}
    told = [
        (clinic.is_sign(m.finding), f"{head[m.status](m.finding)} {m.finding} .") for m in mentions if m.status in head
    ]
    parts = [(name, " ".join(s for o, s in told if o == sign) or "none") for name, sign in (("S", False), ("O", True))]
    return " ".join(f"{name} : {said}" for name, said in [*parts, ("A", "none"), ("P", "none")])


def vote(lists: Iterable[Sequence[str]]) -> list[str]:
    """Diseases by the number of lists that name them, then by the sum of 1 / (10 + rank)."""
    points: dict[str, tuple[int, float]] = {}
    for listed in lists:
        for rank, name in enumerate(listed, 1):
            n, s = points.get(name, (0, 0.0))
            points[name] = n + 1, s + 1 / (10 + rank)
    return sorted(points, key=lambda name: (-points[name][0], -points[name][1]))[:10]


def short(text: str) -> str:
    """A case without its age and durations, of which the small model knows nothing."""
    return " ".join(word for word in text.split() if word in _WORDS or word.endswith((":", "\n"))).removeprefix(". ")


_WORDS = frozenset(WORDS)


def _candidates(case: ClinicCase, rng: np.random.Generator) -> list[str]:
    """Two to eight diseases, mostly with the right one and look-alikes."""
    w = clinic.world()
    group = w.group == w.group[w.diseases.index(case.diagnosis)]
    weight = np.where(group, 4.0, 0.5)
    weight[w.diseases.index(case.diagnosis)] = 25.0
    n = int(rng.integers(2, 9))
    return [w.diseases[i] for i in rng.choice(len(weight), n, replace=False, p=weight / weight.sum())]


def _facts(diseases: Sequence[str], case: ClinicCase, rng: np.random.Generator) -> list[Fact]:
    """What documents might say of these diseases: mostly about findings of the case, one in twenty wrong."""
    w, most = clinic.world(), int(rng.integers(2, 41))
    mentioned = {m.finding for m in case.mentions}
    focus, facts = rng.random(), []
    for disease in diseases:
        linked = np.flatnonzero(w.rate[w.diseases.index(disease)])
        for f in rng.permutation(linked):
            if rng.random() < (0.8 if w.findings[f] in mentioned else 0.5 * focus):
                wrong = rng.random() < 0.05
                facts.append((disease, w.findings[rng.integers(len(w.findings))] if wrong else w.findings[f]))
    facts = list(dict.fromkeys(facts))
    if rng.random() < 0.5:
        facts = [facts[i] for i in rng.permutation(len(facts))]
    return facts[:most]


def _aliased(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """One disease in five under its second name, by which the model does not know it."""
    other = {disease: name for name, disease in clinic.world().aliases.items()}
    renamed = {d for d in sorted({d for d, _ in facts}) if rng.random() < 0.2}
    return [(other[d] if d in renamed else d, f) for d, f in facts]


def _lists(diseases: Sequence[str], rng: np.random.Generator) -> dict[str, list[str]]:
    everyone = clinic.world().diseases
    lists = {}
    for name in LISTS:
        pool = [*diseases, *(everyone[i] for i in rng.integers(len(everyone), size=3))]
        order = np.argsort([rng.exponential(1 + i) for i in range(len(pool))])
        lists[name] = list(dict.fromkeys(pool[i] for i in order))[: int(rng.integers(1, 8))]
    return lists


def _spare(rng: np.random.Generator) -> Callable[[str], str]:
    """A function that gives each name of the clinic a spare word."""
    w = clinic.world()
    free = {"f": list(rng.permutation(SPARE_FINDINGS)), "d": list(rng.permutation(SPARE_DISEASES))}
    given: dict[str, str] = {}

    def new(word: str) -> str:
        word = w.synonyms.get(word, word)
        kind = "f" if word in _FINDINGS else "d" if word in _DISEASES else None
        if kind is None:
            return word
        if word not in given:
            given[word] = str(free[kind].pop())
        return given[word]

    return new


_FINDINGS = frozenset(clinic.world().findings)
_DISEASES = frozenset((*clinic.world().diseases, *clinic.world().aliases))


def evaluate(model: LanguageModel, n: int, *, common: float, rare: float) -> list[Score]:
    """Held-out cases: is the first suspect one that the count puts first (from memory, about unknown names, with both)?
    Is the better of two named? The page's disease, the first of the union? ``chance`` is the most frequent answer."""
    known, scores = clinic.memory(common, rare), []
    for name, mode, spare in (
        ("first suspect, from memory", "suspects", None),
        ("first suspect, facts about unknown names", "suspects", True),
        ("first suspect, memory and facts", "suspects", False),
        ("better of two", "compare", False),
        ("what a page is about", "notes", False),
        ("first of four lists", "integrate", False),
    ):
        items = held_out(n, mode, spare, known)
        told = model.generate([GenRequest(read, max_tokens=8) for read, _ in items])
        right = sum(_first(r.text) == _first(written) for r, (_, written) in zip(told, items, strict=True))
        answers = [_first(written) for _, written in items]
        chance = 0.5 if mode == "compare" else max(map(answers.count, set(answers))) / len(items)
        scores.append(Score(name, right, len(items), chance))
    return scores


def _first(text: str) -> str:
    return text.partition("\n")[0].partition(" ;")[0]


def held_out(n: int, mode: str, spare: bool | None, known: frozenset[Fact]) -> list[Example]:
    """Examples of one kind; ``spare`` True: unknown names, None: no facts. Where the count has no single winner the
    item is left out."""
    made: list[Example] = []
    rng = np.random.default_rng((HELD_OUT, MODES.index(mode), {None: 2}.get(spare, int(bool(spare)))))
    for case in clinic.cases(8 * n, HELD_OUT + MODES.index(mode)):
        mentions, text, diseases = case.mentions, short(case.text), _candidates(case, rng)
        if mode == "integrate":
            lists = _lists(diseases, rng)
            item = frame(text, mode, lists=lists), f"Suspects : {' ; '.join(vote(lists.values()))}\n"
        else:
            between = [str(d) for d in rng.permutation(diseases)[:2]]
            wanted = between if mode == "compare" else diseases[:1] if mode == "notes" else diseases
            facts = [] if spare is None else _facts(wanted, case, rng)
            links = known
            if spare:
                new, links = _spare(rng), frozenset()
                text = " ".join(new(word) for word in text.split(" "))
                mentions = [m._replace(finding=new(m.finding)) for m in mentions]
                facts = [(new(d), new(f)) for d, f in facts]
            shown = bearing(facts, {m.finding: m.status for m in mentions})
            points = [p for d, p in ranking(mentions, facts, links) if mode != "compare" or d in between]
            if mode != "notes" and (not points or (len(points) > 1 and points[0] == points[1])):
                continue
            if mode == "compare":
                item = frame(text, mode, **shown, between=between), better(between, mentions, facts, links)
            elif mode == "notes":
                item = frame(text, mode, **shown), notes(shown["facts"])
            else:
                item = frame(text, mode, **shown), suspects(mentions, facts, links)
        made.append(item)
        if len(made) == n:
            break
    return made


def _recipe(name: str, purpose: str, common: float, rare: float, *, layers: int = 3, width: int = 64,
            **train) -> Recipe:  # fmt: skip
    """The Llama layout."""
    schedule = {"steps": 800, "batch_size": 16, "seq_len": CONTEXT, "lr": 3e-3, "warmup": 50, "weight_decay": 0.05}
    return Recipe(
        name=name,
        purpose=purpose,
        architecture=llama(
            width=width, layers=layers, heads=width // 32, inner=2 * width, context=CONTEXT, spread=0.02, theta=1e6
        ),
        train=TrainConfig(**schedule | {"checkpoint_every": 200} | train),
        examples=functools.partial(examples, common=common, rare=rare),
        evaluate=functools.partial(evaluate, common=common, rare=rare),
        minutes=1,
        words=WORDS,
        initialise=look_up_head,
    )


RECIPES = (
    _recipe("resident", "The model of the MultiDx chapter.", *KNOWS["resident"]),
    _recipe("student", "The same, but knows half as much.", *KNOWS["student"]),
)
