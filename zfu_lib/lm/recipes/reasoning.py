"""Models that solve ChainCalc step by step: a mentor and an intern for Tandem, and the apprentice between them.

Intern and apprentice are of one size and read the same kinds of text, but the intern sees chains of more than two steps
only together with insights (``alone``): solutions and insights, solutions continued from insights that end anywhere,
and solutions of their own beside insights or a hint, one tenth of them with a wrong value that the reader must not
believe. The mentor is the apprentice made five times as large (:mod:`~zfu_lib.lm.recipes.initial`) and taught on. For
a comparison there are a smaller and a larger intern. StackProg and ChronoFacts are not among the texts:
:mod:`~zfu_lib.lm.recipes.transfer` teaches them.

To look up a name a transformer first has to learn to match it with an earlier place where it stood ("induction").
On one CPU core that took longer than all the rest: models of the intern's size with random weights had not learnt it
after a minute of nothing else, so they are not born random. A head for it is built into the first two layers; from
there it is trained like every other weight. It survives only if many texts at first tell definitions again: in a pilot
with less than half as many, models of both sizes had lost it, and the time did not reach for a longer one of the
mentor's size, hence the growing.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from zfu_lib.data.worlds import chaincalc
from zfu_lib.data.worlds.problem import Problem, aided, answer, own_solution, prompt, solution
from zfu_lib.lm.protocol import GenRequest, LanguageModel
from zfu_lib.lm.recipes.base import Example, Recipe, Score, llama
from zfu_lib.lm.recipes.initial import grown, look_up_head
from zfu_lib.lm.train import TrainConfig

MODULUS = 7
LEVELS, DISTRACTORS = range(1, 6), range(5)
"""Lengths of chains and numbers of further definitions that the models learn."""
DRILLS = 0.5
"""Share of texts that are one operation: they are a tenth as long as the others."""
WRONG = 0.1
"""Share of insights in training in which one value is wrong."""
CONTEXT = 512
HELD_OUT = 2_000_000_000
"""Seeds from here on are never trained on."""


def problems(n: int, seed: int, *, levels: range = LEVELS, distractors: range = DISTRACTORS) -> list[Problem]:
    """ChainCalc as these models know it, values modulo 7."""
    return chaincalc.problems(n, seed, levels=levels, distractors=distractors, modulus=MODULUS)


def examples(n: int, seed: int, progress: float, *, alone: int = LEVELS[-1]) -> list[Example]:
    """``n`` texts of the mixture, half of them single operations; in the first third of the training three problems in
    ten are only told again, definition by definition, in another order.

    Args:
        progress: 0 to 1.
        alone: the longest chain that is ever solved without insights.
    """
    rng = np.random.default_rng((seed, 7))
    again = 0.3 if progress < 1 / 3 else 0.05
    made = []
    for problem in problems(n, seed):
        if rng.random() < DRILLS:
            made.append(_drill(rng))
        else:
            made.append(recall(problem, rng) if rng.random() < again else example(problem, rng, alone))
    return made


def _later(n: int, seed: int, progress: float, **options: Any) -> list[Example]:
    """:func:`examples` for a model that can look up already."""
    return examples(n, seed, 1.0, **options)


def evaluate(model: LanguageModel, n: int) -> list[Score]:
    """Held-out skill: step by step, answered directly, after and beside insights that are right, and by length."""
    asked = problems(n, HELD_OUT)
    answers = [problem.answer for problem in asked]
    chance = max(map(answers.count, set(answers))) / n
    scores = [Score(mode, right(model, asked, [prompt(p, mode) for p in asked]), n, chance) for mode in MODES]
    insights = [solution(p, "insights") for p in asked]
    after = [prompt(p) + text for p, text in zip(asked, insights)]
    beside = [aided(p.question, text) for p, text in zip(asked, insights)]
    for name, texts in (("after true insights", after), ("beside true insights", beside)):
        scores.append(Score(name, right(model, asked, texts), n, chance))
    for level in LEVELS:
        chains = problems(n // 2, HELD_OUT + level, levels=range(level, level + 1))
        scores.append(Score(f"chain of {level}", right(model, chains, list(map(prompt, chains))), n // 2))
    return scores


MODES = ("think", "brief", "direct")


def right(model: LanguageModel, problems: list[Problem], texts: list[str]) -> int:
    """How many of the problems are answered after these texts."""
    results = model.generate([GenRequest(text, max_tokens=200) for text in texts])
    return sum(answer(r.text) == p.answer for r, p in zip(results, problems))


def example(problem: Problem, rng: np.random.Generator, alone: int) -> Example:
    """A solution, insights, or a solution with insights given; problems above level ``alone`` never unaided."""
    kind = rng.choice(5, p=(0.42, 0.13, 0.15, 0.2, 0.1))
    if kind in (0, 1) and problem.level > alone:
        kind = 3
    brief = rng.random() < 0.1
    if kind == 0:
        mode = "direct" if rng.random() < 0.05 else "brief" if brief else "think"
        return prompt(problem, mode), solution(problem, mode)
    full = solution(problem, "brief insights" if brief else "insights")
    if kind == 1:
        return prompt(problem, "brief insights" if brief else "insights"), full
    insights = full[: _end(full, rng)]
    if kind == 2:
        mode = "brief" if brief else "think"
        return prompt(problem, mode) + insights, solution(problem, mode)[len(insights) :]
    if rng.random() < WRONG:
        insights = _spoilt(insights, rng)
    if kind == 3:
        return aided(problem.question, insights), own_solution(problem, insights)
    return prompt(problem, hint=insights), solution(problem)


def _end(text: str, rng: np.random.Generator) -> int:
    """Where insights are cut: the end of a word, or (every third time) of a line."""
    ends = [m.start() for m in re.finditer(r"\n" if rng.random() < 1 / 3 else r"(?=[ \n])", text)]
    return ends[rng.integers(len(ends))] if ends else len(text)


def _spoilt(insights: str, rng: np.random.Generator) -> str:
    """``insights`` with the result of one step replaced by another number."""
    results = list(re.finditer(r"(?<== )\d+(?= ;|\n)", insights))
    if not results:
        return insights
    chosen = results[rng.integers(len(results))]
    wrong = int(chosen[0]) + rng.integers(1, MODULUS)
    if int(chosen[0]) < MODULUS:
        wrong %= MODULUS
    return f"{insights[: chosen.start()]}{wrong}{insights[chosen.end() :]}"


def recall(problem: Problem, rng: np.random.Generator) -> Example:
    """The facts of a question, told again in another order."""
    facts = problem.question.split(" ; ")[:-1]
    told = " ; ".join(facts[i] for i in rng.permutation(len(facts)))
    return f"Problem : {' ; '.join(facts)}\nMode : recall\n", f"{told}\n"


def _drill(rng: np.random.Generator) -> Example:
    a, b = int(rng.integers(MODULUS)), int(rng.integers(1, MODULUS))
    sign = tuple(chaincalc.OPERATIONS)[rng.integers(len(chaincalc.OPERATIONS))]
    name = chaincalc.NAMES[rng.integers(len(chaincalc.NAMES))]
    return operation(name, a, sign, b)


def operation(name: str, a: int, sign: str, b: int) -> Example:
    """One operation and its result."""
    return f"Action : {name} = {a} {sign}{b} =", f" {chaincalc.OPERATIONS[sign](a, b) % MODULUS}\n"


def layout(layers: int, width: int) -> dict[str, Any]:
    """The Llama layout of the models that look things up."""
    return llama(
        width=width,
        layers=layers,
        heads=max(2, width // 32),
        inner=64 * round(width * 8 / 3 / 64),
        context=CONTEXT,
        spread=0.02,
        theta=1e6,
    )


def _recipe(
    name: str,
    purpose: str,
    minutes: float,
    *,
    layers: int,
    width: int,
    alone: int = LEVELS[-1],
    base: str | None = None,
    committed: bool = True,
) -> Recipe:
    """Grown out of ``base``, or with a built-in look-up head."""
    return Recipe(
        name=name,
        purpose=purpose,
        architecture=layout(layers, width),
        train=TrainConfig(
            steps=1200 if base else 6000,
            batch_size=16,
            seq_len=CONTEXT,
            lr=1e-3 if base else 2e-3,
            warmup=50,
            weight_decay=0.05,
            checkpoint_every=200,
            seed=1 if base else 0,
        ),
        examples=functools.partial(_later if base else examples, alone=alone),
        evaluate=evaluate,
        minutes=minutes,
        committed=committed,
        initialise=grown(base) if base else look_up_head,
        base=base,
    )


APPRENTICE = "As large as the intern and taught every chain, as the mentor is, which grew out of it."
INTERN = "The intern of the Tandem chapter: taught short chains alone."
MENTOR = "The mentor of the Tandem chapter: the apprentice, made five times as large and taught on."
SMALL = "As the intern, half as large."
LARGE = "As the intern, made as large as the mentor and taught on."
RECIPES = (
    _recipe("apprentice", APPRENTICE, 4, layers=2, width=64),
    _recipe("mentor", MENTOR, 4, layers=3, width=128, base="apprentice"),
    _recipe("intern", INTERN, 4, layers=2, width=64, alone=2),
    _recipe("intern-small", SMALL, 4, layers=2, width=48, alone=2),
    _recipe("intern-large", LARGE, 4, layers=3, width=128, alone=2, base="intern"),
    _recipe("mentor-large", "A larger mentor, for a GPU.", 120, layers=8, width=512, committed=False),
)
