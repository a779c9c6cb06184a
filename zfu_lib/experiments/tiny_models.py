"""The appendix on the book's own models: their cards, and one of their curves followed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from zfu_lib.data.worlds.problem import prompt, solution
from zfu_lib.lm import recipes, tiny
from zfu_lib.lm.recipes import make, reasoning
from zfu_lib.lm.recipes.base import Recipe
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import TrainLog, train
from zfu_lib.report.profiles import Cost, Profile


@dataclass(frozen=True)
class TinyProfile(Profile):
    """``model`` is trained again for ``steps``, the first of its recipe."""

    model: str
    steps: int


QUICK = TinyProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=1, memory_gb=1),
    seeds=3,
    model="intern",
    steps=600,
)
FULL = replace(QUICK, profile="full", steps=6000, cost=replace(QUICK.cost, minutes=6))
PAPER = replace(FULL, profile="paper")
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}


def cards() -> dict[str, dict[str, Any]]:
    """The card of every committed model by name."""
    return {name: tiny.card(name) for name in tiny.names()}


def rows(found: dict[str, dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """A table of cards: parameters, learnt tokens, minutes, kilobytes, and the first score with its interval."""
    made = {}
    for name, card in found.items():
        score = card["scores"][0]
        made[name] = (
            f"{card['non_embedding_parameters']:,}",
            f"{card['learnt_tokens']:,}",
            f"{card['training_seconds'] / 60:.0f}",
            f"{card['bytes'] / 1000:,.0f}",
            f"{score['name']}: {100 * score['right'] / score['n']:.0f} "
            f"({100 * score['low']:.0f} to {100 * score['high']:.0f})",
        )
    return made


def as_trained(recipe: Recipe) -> Recipe:
    """The recipe with the words that there were when its model was made: words are only ever added at the end, but a
    larger vocabulary draws other random weights.

    Raises:
        ValueError: no beginning of the recipe's words gives the vocabulary of the card.
    """
    size = tiny.card(recipe.name)["vocabulary"]
    for n in range(len(recipe.words), 0, -1):
        if len(word_tokenizer(recipe.words[:n])) == size:
            return replace(recipe, words=recipe.words[:n])
    raise ValueError(f"{recipe.name}: no beginning of its words gives a vocabulary of {size}")


def again(name: str, steps: int) -> TrainLog:
    """The first ``steps`` of a model's training, from its random weights, on the schedule of the whole."""
    recipe = as_trained(recipes.recipe(name))
    model, tokenizer = make.build(recipe)
    return train(model, make.batches(recipe, tokenizer), recipe.train, until=steps)


def at_birth(name: str, base: str) -> float:
    """The largest difference between the logits of a model before its training and those of a committed one, on a
    solved problem."""
    model, tokenizer = make.build(as_trained(recipes.recipe(name)))
    old = AutoModelForCausalLM.from_pretrained(tiny.path(base), dtype=torch.float32)
    (problem,) = reasoning.problems(1, reasoning.HELD_OUT)
    ids = tokenizer(prompt(problem) + solution(problem), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float((model(ids).logits - old(ids).logits).abs().max())


def followed(name: str, log: TrainLog) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The card's curve and the new one, both at the card's steps as far as the new one goes: nats per token, each point
    averaged since the one before."""
    points = [(step, loss) for step, loss in tiny.card(name)["curve"] if step <= len(log.loss)]
    steps = [step for step, _ in points]
    new = [float(np.mean(log.loss[a:b])) for a, b in zip([0, *steps], steps)]
    return {"x": steps, "y": [loss for _, loss in points]}, {"x": steps, "y": new}
