"""The Tandem pair taught two more worlds, for the question whether a classifier fitted on ChainCalc serves in them.

The weights are those of mentor and intern, trained further on ChainCalc, StackProg and ChronoFacts. The intern has one
layer more, and is at first often told to tell ChronoFacts again: without either it could not finish a problem even
after true insights, for it did not look a leader up. In the new worlds, too, it sees longer problems only together with
insights. Numbers that ChainCalc has not begin on a line
(:func:`~zfu_lib.lm.recipes.initial.number_line`).
"""

from __future__ import annotations

import functools

import numpy as np
from transformers import PreTrainedModel

from zfu_lib.data.worlds import chronofacts, stackprog
from zfu_lib.data.worlds.problem import Problem, aided, prompt, solution
from zfu_lib.lm.protocol import LanguageModel
from zfu_lib.lm.recipes import reasoning
from zfu_lib.lm.recipes.base import Example, Recipe, Score
from zfu_lib.lm.recipes.initial import grown, number_line
from zfu_lib.lm.recipes.words import WORDS
from zfu_lib.lm.train import TrainConfig

LEVELS = range(1, 4)
"""Numbers of operations of a program, and of look-ups of a question, that the models learn."""
SHARES = {"chaincalc": 0.25, "stackprog": 0.4, "chronofacts": 0.35}
DRILLS = 0.25
"""Share of the texts about the new worlds that are one operation."""


def problems(world: str, n: int, seed: int) -> list[Problem]:
    """``n`` problems of a world as these models know it."""
    match world:
        case "chaincalc":
            return reasoning.problems(n, seed)
        case "stackprog":
            return stackprog.problems(n, seed, levels=LEVELS)
        case "chronofacts":
            return chronofacts.problems(n, seed, levels=LEVELS)
    raise ValueError(f"no world {world!r}; there are: {', '.join(SHARES)}")


def examples(n: int, seed: int, progress: float, *, alone: dict[str, int], again: float) -> list[Example]:
    """``n`` texts of the three worlds.

    Args:
        progress: 0 to 1.
        alone: by world, the level above which its problems are never solved without insights.
        again: share of the ChronoFacts questions whose facts are only told again, in the first half of the training;
            a quarter of that in the second.
    """
    rng = np.random.default_rng((seed, 19))
    counts = dict(zip(SHARES, rng.multinomial(n, list(SHARES.values())).tolist()))
    made = reasoning.examples(counts.pop("chaincalc"), seed, 1.0, alone=alone["chaincalc"])
    for world, count in counts.items():
        for problem in problems(world, count, seed):
            drills = [step for step in problem.steps if step.work.endswith("=")]
            if again and world == "chronofacts" and rng.random() < (again if progress < 1 / 2 else again / 4):
                made.append(reasoning.recall(problem, rng))
            elif drills and rng.random() < DRILLS:
                step = drills[rng.integers(len(drills))]
                made.append((f"Action : {step.work}", f" {step.result}\n"))
            else:
                made.append(reasoning.example(problem, rng, alone[world]))
    return made


def evaluate(model: LanguageModel, n: int) -> list[Score]:
    """Held-out skill in each world: alone, by level, after and beside true insights."""
    scores = []
    for world in SHARES:
        asked = problems(world, n, reasoning.HELD_OUT)
        answers = [p.answer for p in asked]
        chance = max(map(answers.count, set(answers))) / n
        insights = [solution(p, "insights") for p in asked]
        texts = {
            "think": list(map(prompt, asked)),
            "after true insights": [prompt(p) + text for p, text in zip(asked, insights)],
            "beside true insights": [aided(p.question, text) for p, text in zip(asked, insights)],
        }
        for name, given in texts.items():
            scores.append(Score(f"{world}, {name}", reasoning.right(model, asked, given), n, chance))
    return scores


def _begin(base: str, model: PreTrainedModel) -> None:
    grown(base)(model)
    number_line(model, WORDS, [*range(reasoning.MODULUS, 100), *chronofacts.YEARS])


def _recipe(base: str, minutes: float, *, layers: int, width: int, alone: dict[str, int], again: float) -> Recipe:
    return Recipe(
        name=f"{base}-worlds",
        purpose=f"The {base} of the Tandem chapter, taught StackProg and ChronoFacts as well.",
        architecture=reasoning.layout(layers, width),
        train=TrainConfig(
            steps=12000,
            batch_size=16,
            seq_len=reasoning.CONTEXT,
            lr=1e-3,
            warmup=50,
            weight_decay=0.05,
            checkpoint_every=200,
            seed=2,
        ),
        examples=functools.partial(examples, alone=alone, again=again),
        evaluate=evaluate,
        minutes=minutes,
        initialise=functools.partial(_begin, base),
        base=base,
    )


EVERY = {"chaincalc": reasoning.LEVELS[-1], "stackprog": LEVELS[-1], "chronofacts": LEVELS[-1]}
SHORT = {"chaincalc": 2, "stackprog": 1, "chronofacts": 1}
RECIPES = (
    _recipe("mentor", 20, layers=3, width=128, alone=EVERY, again=0.0),
    _recipe("intern", 13, layers=3, width=64, alone=SHORT, again=0.4),
)
