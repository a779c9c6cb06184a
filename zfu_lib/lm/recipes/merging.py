"""The base of the experiments on merging: it has read about the famous half of :mod:`zfu_lib.data.bilingual`.

It reads statements in both languages, and one text in a hundred is a question about somebody of the training split: so
it has seen every kind of question, and answers better than chance without being good at it. The experts are
fine-tuned from it where they are needed, in seconds.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from zfu_lib.data import bilingual
from zfu_lib.lm.protocol import LanguageModel, ScoreRequest
from zfu_lib.lm.recipes.base import Example, Recipe, Score, llama
from zfu_lib.lm.train import TrainConfig

QUESTIONS = 0.01
"""Share of questions among the texts of the base."""
HELD_OUT = 2_000_000_000
CONTEXT = 40


def examples(n: int, seed: int, progress: float) -> list[Example]:
    """``n`` statements and questions; ``progress`` changes nothing."""
    rng, known, famous = np.random.default_rng((seed, 17)), bilingual.facts(), bilingual.people(famous=True)
    languages, made = list(bilingual.LANGUAGES), []
    for _ in range(n):
        language = languages[rng.integers(len(languages))]
        if rng.random() < QUESTIONS:
            task = ("choice", "recall")[rng.integers(2)]
            (item,) = bilingual.items(task, language, "train", 1, int(rng.integers(2**31)), famous=True)
            made.append((item.read, item.written))
        else:
            made.append(("", bilingual.statement(language, int(rng.choice(famous)), known, rng)))
    return made


def evaluate(model: LanguageModel, n: int) -> list[Score]:
    """Multiple choice about famous people of the test split, and about the others, whom it has not read about."""
    scores = []
    for language, famous in product(bilingual.LANGUAGES, (True, False)):
        items = bilingual.items("choice", language, "test", n, HELD_OUT, famous=famous)
        asked = [ScoreRequest(item.read, f" {option}") for item in items for option in item.options]
        found = np.array([r.logprob.sum() for r in model.score(asked)]).reshape(len(items), -1)
        right = sum(item.options[k] == item.answer[0] for item, k in zip(items, found.argmax(axis=1)))
        name = f"multiple choice, {language}, {'famous' if famous else 'unknown'} people"
        scores.append(Score(name, int(right), len(items), 1 / bilingual.OPTIONS))
    return scores


def _recipe(name: str, purpose: str, *, layers: int, width: int, committed: bool = False, **train: Any) -> Recipe:
    """The Llama layout with four heads and a narrow feed-forward layer."""
    schedule = {"steps": 600, "batch_size": 48, "seq_len": CONTEXT, "lr": 8e-3, "warmup": 80, "weight_decay": 0.05}
    return Recipe(
        name=name,
        purpose=purpose,
        architecture=llama(width=width, layers=layers, heads=4, inner=2 * width, context=CONTEXT, spread=width**-0.5),
        train=TrainConfig(**schedule | train),
        examples=examples,
        evaluate=evaluate,
        minutes=2,
        committed=committed,
        words=bilingual.WORDS,
    )


RECIPES = (
    _recipe("bilingual", "The base of the Hi-Merging chapter.", layers=4, width=64, committed=True),
    _recipe("bilingual-deep", "A deeper and narrower base, for the study of bases.", layers=8, width=48),
    _recipe(
        "bilingual-large", "The base for a GPU.", layers=8, width=512, steps=1500, batch_size=256, lr=1e-3, dtype="auto"
    ),
)
