"""Models that solve ChainCalc, StackProg and ChronoFacts step by step: large and small ones for Tandem.

None of these recipes has yet made a model that passes the gate (skill above chance, a gap between large and small), so
no weights are committed; the shares and steps below are being tuned.

All of them read the same mixture, so that size (and in one case layout) is the only difference between a mentor and an
intern: solutions and insights in every mode, solutions continued from insights that end anywhere, and solutions of
their own beside insights or a hint, one tenth of them with a wrong value that the reader must not believe.
"""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np

from zfu_lib.data.worlds import chaincalc, chronofacts, stackprog
from zfu_lib.data.worlds.problem import Problem, aided, answer, covered, own_solution, prompt, solution
from zfu_lib.lm.protocol import GenRequest, LanguageModel
from zfu_lib.lm.recipes.base import Example, Recipe, Score
from zfu_lib.lm.train import TrainConfig

WORLDS: dict[str, ModuleType] = {"chaincalc": chaincalc, "stackprog": stackprog, "chronofacts": chronofacts}
SHARES = {"chaincalc": 0.6, "stackprog": 0.2, "chronofacts": 0.2}
LEVELS = {"chaincalc": range(1, 9), "stackprog": range(1, 3), "chronofacts": range(1, 4)}
"""Share of each world in training, and the levels that the models learn."""
WRONG = 0.1
"""Share of insights in training in which one value is wrong."""
COPYING = 0.08
"""Share of the training that copies only; as much again looks up pairs only."""
CONTEXT = 512
HELD_OUT = 2_000_000_000
"""Seeds from here on are never trained on."""


def examples(n: int, seed: int, progress: float, *, drills: float = 0.0) -> list[Example]:
    """``n`` texts of the mixture.

    Args:
        progress: 0 to 1; the first third of the training grows from short problems to all.
        drills: share of single operations of ChainCalc, asked directly.
    """
    rng = np.random.default_rng((seed, 7))
    made = [_drill(rng) for _ in range(rng.binomial(n, drills))]
    counts = rng.multinomial(n - len(made), list(SHARES.values()))
    for (name, world), count in zip(WORLDS.items(), counts):
        options = {"levels": LEVELS[name]} | (easier(progress) if name == "chaincalc" else {})
        for problem in world.problems(int(count), seed, **options):
            made.append(_recall(rng, progress) if rng.random() < recall(progress) else _example(problem, rng))
    return [made[i] for i in rng.permutation(len(made))]


def recall(progress: float) -> float:
    """Share of texts that only repeat names: from them a model learns first to copy, then to look up.

    Copying different words is learnt in some 300 steps, and looking up a pair in 100 more after it; without it, ours
    had not learnt to look up in 4,000.
    """
    return 1.0 if progress < 2 * COPYING else 0.2 if progress < 0.4 else 0.05


def easier(progress: float) -> dict[str, range]:
    """Options of ChainCalc that begin with short chains: without them the look-up of a name is learnt much later."""
    if progress < 0.25:
        return {"levels": range(1, 4), "distractors": range(3)}
    return {"levels": range(1, 6), "distractors": range(5)} if progress < 0.4 else {}


def evaluate(model: LanguageModel, n: int) -> list[Score]:
    """Held-out skill: each world solved step by step and answered directly, ChainCalc by length of its chain."""
    scores = []
    for name, world in WORLDS.items():
        problems = world.problems(n, HELD_OUT, levels=LEVELS[name])
        asked = [problem.answer for problem in problems]
        chance = max(map(asked.count, set(asked))) / n
        for mode in ("think", "direct"):
            scores.append(Score(f"{name}, {mode}", _right(model, problems, mode), n, chance))
    for level in (2, 4, 6, 8):
        problems = chaincalc.problems(n // 2, HELD_OUT + level, levels=(level,))
        scores.append(Score(f"chaincalc, chain of {level}", _right(model, problems, "think"), len(problems)))
    return scores


def _right(model: LanguageModel, problems: list[Problem], mode: str) -> int:
    requests = [GenRequest(prompt(problem, mode), max_tokens=320) for problem in problems]
    return sum(answer(r.text) == p.answer for r, p in zip(model.generate(requests), problems))


def _recall(rng: np.random.Generator, progress: float) -> Example:
    """Different names, begun anywhere and gone through once; later pairs of names, told again in another order."""
    names = [chaincalc.NAMES[i] for i in rng.permutation(len(chaincalc.NAMES))]
    if progress < COPYING:
        words = names[: int(rng.integers(4, 25))]
        begin = int(rng.integers(len(words)))
        facts, told = " ".join(words), " ".join(words[begin:] + words[:begin])
    else:
        n = int(rng.integers(3, 13))
        pairs = [f"{name} {names[int(i)]}" for name, i in zip(names, rng.integers(len(names), size=n))]
        facts, told = " ; ".join(pairs), " ; ".join(pairs[i] for i in rng.permutation(n))
    return f"Problem : {facts}\nMode : recall\n", f"{told}\n"


def _example(problem: Problem, rng: np.random.Generator) -> Example:
    kind = rng.choice(5, p=(0.4, 0.25, 0.15, 0.12, 0.08))
    brief = rng.random() < 0.2
    if kind == 0:
        mode = "direct" if rng.random() < 0.1 else "brief" if brief else "think"
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
    if kind == 3 and covered(insights):
        return aided(problem.question, insights), own_solution(problem, insights)
    return prompt(problem, hint=insights), solution(problem)


def _end(text: str, rng: np.random.Generator) -> int:
    """Where insights are cut: the end of a word, or (every third time) of a line."""
    ends = [m.start() for m in re.finditer(r"\n" if rng.random() < 1 / 3 else r"(?=[ \n])", text)]
    return ends[rng.integers(len(ends))] if ends else len(text)


def _spoilt(insights: str, rng: np.random.Generator) -> str:
    """``insights`` with the result of one step replaced by another number (results below ChainCalc's modulus only)."""
    found = re.finditer(r"(?<== )\d+(?= ;|\n)", insights)
    results = [result for result in found if int(result[0]) < chaincalc.MODULUS]
    if not results:
        return insights
    chosen = results[rng.integers(len(results))]
    wrong = (int(chosen[0]) + rng.integers(1, chaincalc.MODULUS)) % chaincalc.MODULUS
    return f"{insights[: chosen.start()]}{wrong}{insights[chosen.end() :]}"


def _drill(rng: np.random.Generator) -> Example:
    a, b = (int(x) for x in rng.integers(chaincalc.MODULUS, size=2))
    sign = tuple(chaincalc.OPERATIONS)[rng.integers(len(chaincalc.OPERATIONS))]
    value = chaincalc.OPERATIONS[sign](a, b) % chaincalc.MODULUS
    return f"Problem : {a} {sign}{b} ?\nMode : direct\n", f"Answer : {value}\n"


def _recipe(name: str, purpose: str, minutes: float, *, layers: int, width: int, **changes) -> Recipe:
    """The Llama layout with heads of 32 numbers."""
    return Recipe(
        name=name,
        purpose=purpose,
        architecture={
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 32,
            "intermediate_size": 64 * round(width * 8 / 3 / 64),
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            "initializer_range": 0.03,
        },
        train=TrainConfig(
            steps=4500,
            batch_size=16,
            seq_len=CONTEXT,
            lr=3e-3,
            warmup=100,
            weight_decay=0.05,
            dtype="bfloat16",
            checkpoint_every=500,
        ),
        examples=changes.get("examples", examples),
        evaluate=evaluate,
        minutes=minutes,
        committed=changes.get("committed", True),
    )


RECIPES = (
    _recipe("mentor", "The large model of the Tandem chapter.", 40, layers=6, width=256),
    _recipe("intern", "The small model of the Tandem chapter.", 7, layers=3, width=96),
    _recipe("intern-small", "A smaller intern, for the study of sizes.", 5, layers=2, width=64),
    _recipe("intern-large", "A larger intern, for the study of sizes.", 12, layers=4, width=128),
)
