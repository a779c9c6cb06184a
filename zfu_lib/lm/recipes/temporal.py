"""A small model that reads dated biographies (:mod:`zfu_lib.data.worlds.chronobio`) and writes each step as text.

Every step is a text of its own, the document first and what is wanted last::

    0 ada employer alcorp 1951 to 1953 . 1 ada employer borbank 2 years after end of alcorp for 2 years . ...
    Question : which employer did ada have when zoe left galbank ?
    Timeline :
    0 ada employer alcorp 1951 to 1953 : 1951 alcorp 1952 alcorp
    1 ada employer borbank 1953 + 2 = 1955 to 1955 + 2 = 1957 : 1955 borbank 1956 borbank

:func:`ask` makes what is read and :func:`told` what should be written. A timeline says for every year what was in it,
so that years could be looked up and their number seen. The committed model learnt the second, not the first: beside a
true timeline it compares lengths much better than without, and finds who was where in a given year no more often. Each
way to an answer (directly, thinking first, beside a timeline) is taught on about as many tokens; in these are eight
answers to a text given directly or beside a timeline, and three after thinking. Decisions are learnt from what an item
needs by construction. The model begins with numbers on a line and with a look-up head
(:mod:`zfu_lib.lm.recipes.initial`), and with words to be said twice: without those the head was lost again before it
was of any use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from zfu_lib.data.worlds import chronobio
from zfu_lib.data.worlds.chronobio import Item, Spec
from zfu_lib.lm.protocol import GenRequest, LanguageModel
from zfu_lib.lm.recipes.base import Example, Recipe, Score
from zfu_lib.lm.recipes.initial import look_up_head, number_line
from zfu_lib.lm.recipes.reasoning import CONTEXT, layout
from zfu_lib.lm.train import TrainConfig

KINDS = ("in", "unknown", "previous", "next", "duration", "ordinal", "longer", "when", "later")
"""The questions it is trained on (and date arithmetic); the others are left out, for a test on new kinds."""
WORLD = Spec(
    facts=3,
    distractors=1,
    relations=1,
    objects=16,
    years=(1950, 1999),
    shuffled=False,
    terse=True,
    across=0.0,
    kinds=KINDS,
)
HELD_OUT = 2_000_000_000
"""Seeds from here on are never trained on."""
DRILLS = 0.15
"""Share of texts that are date arithmetic or a comparison of dates."""
SHORT = 30
"""Learnt tokens of the longest answer: answers have batches of their own."""
COPIES = 0.1
"""Share of texts that are words in any order, said twice; in the first twentieth of the training most are."""
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *("Question", "Split", "Timeline", "Answer", "Think", "Known", "Review", "Aggregate", "Need", "Rule"),
            *("Steps", "Example", "Wide", "Check", "Say", "split", "timeline", "review", "yes", "no"),
            *("A", "B", "AB", "BA", "O"),
            *(".", ",", ":", "?", "+", "=", "->", "or", "each"),
            *map(str, range(13)),
            *map(str, range(1940, 2010)),
            *chronobio.WORDS,
        )
    )
)
STEPS = (
    *("need split", "need timeline", "need review"),
    *("split", "timeline", "answer", "think", "aggregate", "review", "wide", "rule", "steps"),
)
HEADS = {step: f"{step.capitalize()} :" for step in STEPS}


def ask(
    step: str,
    document: str,
    questions: str | Sequence[str],
    *,
    timeline: str = "",
    known: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
    rule: str = "",
    examples: Sequence[tuple[str, str]] = (),
) -> str:
    """What is read for a step.

    Args:
        document: left out where the step needs none (a decision or a division made from the question alone).
        timeline: lines written before. ``known``: questions with their answers. ``answer``: a first answer.
        rule: letters of the steps to take. ``examples``: questions with answers, shown first.
    """
    lines = [f"Example : {q} -> {a}" for q, a in examples]
    if document and step not in ("need split", "split", "aggregate", "wide"):
        lines.append(document)
    if timeline:
        lines.append(f"Timeline :\n{timeline.strip()}")
    lines += [f"Known : {q} -> {a}" for q, a in known]
    lines += [f"Question : {q}" for q in ([questions] if isinstance(questions, str) else questions)]
    if answer is not None:
        lines.append(f"Answer : {answer}")
    if rule:
        lines.append(f"Rule : {rule}")
    return "\n".join([*lines, HEADS[step]])


def line(item: Item, i: int) -> str:
    """One line of a timeline: whose, what, the two dates with how they come about, and what was in each year."""
    f, (start, end) = item.facts[i], item.told[i].work
    years = " ".join(f"{year} {f.object}" for year in range(f.start, f.end))
    return f"{i} {f.subject} {f.relation} {f.object} {start} to {end} : {years}"


def timeline(item: Item, of: Sequence[int] | None = None) -> str:
    """The lines of the chains a question is about, in the order of the document."""
    chosen = set(item.timeline if of is None else of)
    return "\n".join(line(item, i) for i in item.order if i in chosen)


def rule_of(item: Item) -> str:
    """The letters that an item needs: A timeline, B check (of a question with several steps), O none."""
    return ("A" if item.leaning else "") + ("B" if item.compound else "") or "O"


def wide(item: Item) -> tuple[str, str]:
    """The more general question behind an item's, and its answer."""
    chain = [item.facts[i] for i in item.timeline]
    last = item.facts[item.path[-1]] if item.path else chain[-1]
    chain = [f for f in chain if (f.subject, f.relation) == (last.subject, last.relation)]
    when = item.spec.when
    said = " , ".join(f"{f.object} {when(f.start)} to {when(f.end)}" for f in chain)
    return f"when was {last.subject} with each {last.relation} ?", said


def told(step: str, item: Item, *, answer: str | None = None, rule: str | None = None) -> str:
    """What should be written after :func:`ask` of that step."""
    match step:
        case "need split":
            return f" {'yes' if item.compound else 'no'}\n"
        case "need timeline":
            return f" {'yes' if item.leaning else 'no'}\n"
        case "need review":
            return f" {'no' if answer == item.answer else 'yes'}\n"
        case "split":
            return "".join(f"\n{q}" for q, _ in item.sub) + "\n"
        case "timeline":
            return f"\n{timeline(item)}\n"
        case "answer" | "aggregate":
            return f" {item.answer}\n"
        case "think":
            return f"\n{timeline(item, item.path)}\nAnswer : {item.answer}\n"
        case "review":
            return "".join(f"\n{text}" for text in item.support) + f"\nAnswer : {item.answer}\n"
        case "wide":
            return f" {wide(item)[0]}\n"
        case "rule":
            return f" {rule_of(item)}\n"
        case "steps":
            rule = rule if rule is not None else rule_of(item)
            parts = [f"\nTimeline :\n{timeline(item)}"] if "A" in rule else []
            parts.append(f"\nAnswer : {item.answer}\n")
            if "B" in rule:
                parts.append("Review :" + told("review", item))
            return "".join(parts)
    raise ValueError(f"no step {step!r}; there are: {', '.join(STEPS)}")


SHARES = {
    "timeline": 0.15,
    "direct": 0.16,
    "example": 0.02,
    "think": 0.16,
    "beside": 0.16,
    "sub": 0.07,
    "review": 0.09,
    "split": 0.03,
    "aggregate": 0.03,
    "wide": 0.03,
    "needs": 0.04,
    "rule": 0.02,
    "steps": 0.04,
}
"""Share of each kind of text among those about a document. ``direct``, ``think`` and ``beside`` (a timeline) answer the
whole question; ``sub`` a part of it."""
FURTHER = {"direct": 7, "beside": 7, "think": 2}
"""Questions that follow the first in one text, so that a document is read once for many answers; with these numbers the
three ways to an answer are taught on about the same number of tokens."""
PER_ITEM = 4
"""Texts made of one item: drawing an item takes longer than writing about it."""


def examples(n: int, seed: int, progress: float) -> list[Example]:
    """``n`` texts. Documents grow in the first third of the training: one chain, then all."""
    rng, made = np.random.default_rng((seed, 43)), []
    while len(made) < n:
        if rng.random() < (0.9 if progress < 1 / 20 else COPIES):
            made += [_copy(rng) for _ in range(PER_ITEM)]
            continue
        if rng.random() < DRILLS:
            made += [_drill(rng) for _ in range(PER_ITEM)]
            continue
        kind = str(rng.choice(KINDS))
        item = chronobio.item(rng, kind, WORLD)
        if rng.random() < 1 - 3 * progress:
            item = _shorter(item)
        made += [_example(item, _pick(rng), rng) for _ in range(PER_ITEM)]
    return made[:n]


def _pick(rng: np.random.Generator) -> str:
    return list(SHARES)[int(np.searchsorted(np.cumsum(list(SHARES.values())), rng.random()))]


def _shorter(item: Item) -> Item:
    """The item with only the sentences that its question is about and rests on."""
    kept = {*item.timeline, *item.path}
    return replace(item, order=tuple(i for i in item.order if i in kept))


def _example(item: Item, share: str, rng: np.random.Generator) -> Example:
    document, question = item.document, item.question
    match share:
        case "direct" | "beside" | "think":
            return _quiz(item, share, rng)
        case "example":
            others = [chronobio.item(rng, str(rng.choice(KINDS)), WORLD) for _ in range(2)]
            shown = [(other.question, other.answer) for other in others]
            return ask("answer", document, question, examples=shown), told("answer", item)
        case "sub":
            k = int(rng.integers(len(item.sub)))
            q, a = item.sub[k]
            lines = timeline(item) if rng.random() < 0.6 else ""
            return ask("answer", document, q, timeline=lines, known=item.sub[:k]), f" {a}\n"
        case "timeline":
            questions = [q for q, _ in item.sub] if rng.random() < 0.5 else question
            return ask("timeline", document, questions), told("timeline", item)
        case "review":
            first = item.answer if rng.random() < 0.4 else _wrong(item, rng)
            return ask("review", document, question, answer=first), told("review", item)
        case "needs":
            step = ("need split", "need timeline", "need review")[rng.integers(3)]
            first = None
            if step == "need review":
                first = item.answer if rng.random() < 0.5 else _wrong(item, rng)
            return ask(step, document, question, answer=first), told(step, item, answer=first)
        case "aggregate":
            return ask("aggregate", document, question, known=item.sub), told("aggregate", item)
        case "wide":
            if rng.random() < 0.4:
                return ask("wide", document, question), told("wide", item)
            q, a = wide(item)
            if rng.random() < 0.5:
                return ask("answer", document, q), f" {a}\n"
            return ask("answer", document, question, known=[(q, a)]), told("answer", item)
        case "steps":
            if rng.random() < 0.5:
                return ask("steps", document, question), told("steps", item)
            rule = str(rng.choice(("A", "B", "AB", "O")))
            return ask("steps", document, question, rule=rule), told("steps", item, rule=rule)
    return ask(share, document, question), told(share, item)


def _quiz(item: Item, way: str, rng: np.random.Generator) -> Example:
    """The item's question and further ones about the same facts, each answered the same way."""
    step = "think" if way == "think" else "answer"
    parts = [ask(step, item.document, item.question, timeline=timeline(item) if way == "beside" else "")]
    asked = chronobio.further(rng, item, FURTHER[way])
    for question, answer, path in [(item.question, item.answer, item.path), *asked]:
        if len(parts) > 1:
            parts.append(ask(step, "", question))
        parts.append(f"\n{timeline(item, path)}\nAnswer : {answer}\n" if way == "think" else f" {answer}\n")
    return tuple(parts)


def _wrong(item: Item, rng: np.random.Generator) -> str:
    """A wrong answer of the right kind."""
    if item.options:
        return str(rng.choice([x for x in item.options if x != item.answer]))
    return str(rng.choice([n for n in range(1, WORLD.longest + 1) if str(n) != item.answer]))


_COPIED = [word for word in WORDS if word.isalnum() and not word[0].isupper()]


def _copy(rng: np.random.Generator) -> Example:
    said = " ".join(_COPIED[i] for i in rng.permutation(len(_COPIED))[: rng.integers(6, 20)])
    return f"Say : {said}\nSay :", f" {said}\n"


def _drill(rng: np.random.Generator) -> Example:
    """Eight additions, differences or comparisons of years."""
    kind, parts = rng.integers(3), []
    for _ in range(8):
        if kind == 0:
            item = chronobio.item(rng, "shift" if rng.random() < 0.6 else "distance", WORLD)
            parts += [ask("answer", "", item.question), told("answer", item)]
        elif kind == 1:
            a, b = int(rng.integers(1950, 1990)), int(rng.integers(0, 8))
            parts += [f"{a} + {b} =", f" {a + b}\n"]
        else:
            a, b = int(rng.integers(1950, 1995)), int(rng.integers(1, 8))
            t = int(rng.integers(a - 4, a + b + 4))
            parts += [f"Check : {t} in {a} to {a + b}", f" {'yes' if a <= t < a + b else 'no'}\n"]
    return tuple(parts)


def final(text: str) -> str | None:
    """What follows the last ``Answer :`` of a text, or its first line."""
    found = text.rpartition("Answer :")[2].strip().splitlines()
    return found[0].strip() if found else None


def evaluate(model: LanguageModel, n: int) -> list[Score]:
    """Held-out skill: each way to an answer, timelines, divisions, decisions, and date arithmetic."""
    asked = chronobio.items(n, HELD_OUT, WORLD)
    answers = [item.answer for item in asked]
    chance = max(map(answers.count, set(answers))) / n

    def wrote(texts: Sequence[str], tokens: int) -> list[str]:
        return [r.text for r in model.generate([GenRequest(text, max_tokens=tokens) for text in texts])]

    def score(name: str, texts: Sequence[str], gold: Sequence[str], tokens: int, **more: Any) -> Score:
        right = sum(final(text) == answer for text, answer in zip(wrote(texts, tokens), gold, strict=True))
        return Score(name, right, len(gold), **more)

    def whole(name: str, step: str, tokens: int, **more: Any) -> Score:
        texts = wrote([ask(step, item.document, item.question) for item in asked], tokens)
        right = sum(text.strip() == told(step, item).strip() for text, item in zip(texts, asked, strict=True))
        return Score(name, right, n, **more)

    direct = [ask("answer", item.document, item.question) for item in asked]
    beside = [ask("answer", item.document, item.question, timeline=timeline(item)) for item in asked]
    think = [ask("think", item.document, item.question) for item in asked]
    review = [ask("review", item.document, item.question, answer=item.answer) for item in asked]
    sums = chronobio.items(n, HELD_OUT + 1, Spec(years=(1950, 1999), kinds=("shift", "distance")))
    shifts = [ask("answer", "", item.question) for item in sums]
    return [
        score("direct answer", direct, answers, 8, chance=chance),
        score("answer beside the true timeline", beside, answers, 8, chance=chance),
        score("think first", think, answers, 200, chance=chance),
        score("right answer kept in review", review, answers, 200, chance=chance),
        whole("timeline, word for word", "timeline", 240),
        whole("sub-questions, word for word", "split", 60),
        whole("decision: split", "need split", 4, chance=max(_share(asked, "compound"), 1 - _share(asked, "compound"))),
        whole(
            "decision: timeline", "need timeline", 4, chance=max(_share(asked, "leaning"), 1 - _share(asked, "leaning"))
        ),
        score("date arithmetic", shifts, [item.answer for item in sums], 8),
    ]


def _begin(model: PreTrainedModel) -> None:
    number_line(model, WORDS, [int(word) for word in WORDS if word.isdigit()])
    look_up_head(model)


def _share(items: Sequence[Item], name: str) -> float:
    return float(np.mean([getattr(item, name) for item in items]))


RECIPES = (
    Recipe(
        name="temporal",
        purpose="The model of the AdapTime chapter.",
        architecture=layout(3, 64),
        train=TrainConfig(
            steps=16000,
            batch_size=16,
            seq_len=CONTEXT,
            lr=2e-3,
            warmup=50,
            weight_decay=0.05,
            checkpoint_every=200,
        ),
        examples=examples,
        evaluate=evaluate,
        minutes=25,
        words=WORDS,
        initialise=_begin,
        short=SHORT,
    ),
)
