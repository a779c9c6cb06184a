"""A model that knows :mod:`zfu_lib.data.gazetteer` by heart, for experiments on knowledge editing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from zfu_lib.data import gazetteer
from zfu_lib.data.gazetteer import HOPS, LANDS, RELATIONS, SKILLS, VALUES, Question
from zfu_lib.lm.protocol import GenRequest, LanguageModel
from zfu_lib.lm.recipes.base import Example, Recipe, Score, llama
from zfu_lib.lm.train import TrainConfig

HELD_OUT = 2_000_000_000
CONTEXT, SENTENCES = 112, 5
WHOLE = 0.08
"""Share of whole texts, of which every word is learnt, among single questions."""


def examples(n: int, seed: int, progress: float, size: int = gazetteer.SIZE) -> list[Example]:
    """Questions of which the answer is learnt, and whole texts, about a world of ``size`` people."""
    rng, known = np.random.default_rng((seed, 59)), gazetteer.world(size=size)
    texts = gazetteer.texts(round(WHOLE * n), SENTENCES, seed, known)
    questions = [gazetteer.asked(known, rng, gazetteer.told(size)) for _ in range(n - len(texts))]
    return [("", text) for text in texts] + [(q.prompt, f" {q.answer}{gazetteer.STOP}") for q in questions]


def asked(model: LanguageModel, questions: Sequence[Question]) -> int:
    """How many are answered as the world has it, written out up to the full stop."""
    told = model.generate([GenRequest(q.prompt, max_tokens=4, stop=(gazetteer.STOP,)) for q in questions])
    return sum(r.text.strip() == q.answer for r, q in zip(told, questions))


def evaluate(model: LanguageModel, n: int, size: int = gazetteer.SIZE) -> list[Score]:
    """Facts in each phrasing; hops about people of whom none was told; skills. ``n`` of each, evenly spread."""
    known, who = gazetteer.world(size=size), gazetteer.people("editable", size).tolist()

    def spread(questions: Sequence[Question]) -> list[Question]:
        return [questions[i * len(questions) // n] for i in range(n)] if n < len(questions) else list(questions)

    def score(name: str, questions: Sequence[Question], chance: float) -> Score:
        return Score(name, asked(model, questions), len(questions), chance)

    def facts(phrasing: int) -> list[Question]:
        every = [(p, r) for p in who for r in range(len(RELATIONS))]
        return [
            Question(gazetteer.prompt(p, r, phrasing), gazetteer.value(r, int(known.facts[p, r]))) for p, r in every
        ]

    hops = [gazetteer.hop(p, r, int(known.facts[p, r]), known) for p in who for r in HOPS]
    chances = {"reading": 1 / VALUES, "sums": 0.1, "larger": 0.2, "places": 1 / LANDS}
    return [
        *(score(f"facts, phrasing {k + 1}", spread(facts(k)), 1 / VALUES) for k in range(4)),
        score("hops never told", spread(hops), 1 / LANDS),
        *(score(skill, gazetteer.questions(skill, n, HELD_OUT, known), chances[skill]) for skill in SKILLS),
    ]


def _recipe(
    name: str, purpose: str, *, layers: int, width: int, size: int, committed: bool = False, **train: Any
) -> Recipe:
    """The Llama layout with four heads and a feed-forward layer of three times the width."""
    schedule = {"steps": 1500, "batch_size": 64, "seq_len": CONTEXT, "lr": 8e-3, "warmup": 100, "weight_decay": 0.02}
    return Recipe(
        name=name,
        purpose=purpose,
        architecture=llama(width=width, layers=layers, heads=4, inner=3 * width, context=CONTEXT, spread=width**-0.5),
        train=TrainConfig(**schedule | train, checkpoint_every=100),
        examples=functools.partial(examples, size=size),
        evaluate=functools.partial(evaluate, size=size),
        minutes=2,
        committed=committed,
        words=gazetteer.WORDS,
    )


RECIPES = (
    _recipe(
        "gazetteer",
        "The model that is edited in the chapter on MM4KE.",
        layers=3,
        width=64,
        size=gazetteer.SIZE,
        committed=True,
    ),
    _recipe(
        "gazetteer-large",
        "A larger one that knows twice as many people, for a GPU.",
        layers=8,
        width=256,
        size=gazetteer.PEOPLE,
        steps=3000,
        batch_size=256,
        lr=1e-3,
        dtype="auto",
    ),
)
