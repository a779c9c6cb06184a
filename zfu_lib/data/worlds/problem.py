"""A problem with its solution in steps, and the texts that models read and write about it.

A full solution has up to three blocks of four lines, then the answer::

    Goal : fig *5 plum +4 kiwi 3        what is asked and what it rests on, backwards
    Planning : kiwi plum                the order of the steps
    Retrieval : kiwi 3 ; plum +4 kiwi   what each step needs to know
    Action : kiwi = 3 ; plum = 3 +4 = 7 each step done
    Goal : fig
    ...
    Answer : 2

The four headings are the insight categories of Tandem (arXiv 2604.23623); cutting the solution into blocks gives each
level of effort all four. *Insights* are a solution that stops before the result of its last step, so that they never
contain the answer by construction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

BLOCKS = 3
HEADINGS = ("Goal", "Planning", "Retrieval", "Action")
Mode = Literal["think", "brief", "direct", "insights", "brief insights"]
"""``think``: full solution. ``brief``: without the backward search in the first goal. ``direct``: the answer only.
``insights``, ``brief insights``: the solution up to the result of its last step."""


@dataclass(frozen=True)
class Step:
    """One step: its name in the plan, the fact it needs, the work, and what comes out."""

    plan: str
    fact: str
    work: str
    result: str


@dataclass(frozen=True)
class Problem:
    """A question of a world, with the steps that answer it.

    ``target`` is what is asked; ``search`` what it rests on, from the target backwards; ``level`` how hard it is
    (the number of steps in ChainCalc and StackProg). Each step's ``plan`` names it; a block's goal is its last step.
    """

    world: str
    question: str
    target: str
    search: tuple[str, ...]
    steps: tuple[Step, ...]
    answer: str
    level: int


def blocks(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """``steps`` in at most three runs of nearly equal length, longer ones first."""
    size, longer = divmod(len(steps), BLOCKS)
    ends = [0]
    for i in range(BLOCKS):
        ends.append(ends[-1] + size + (i < longer))
    return [steps[a:b] for a, b in zip(ends, ends[1:]) if b > a]


def prompt(problem: Problem, mode: Mode = "think", *, hint: str = "") -> str:
    """What a model reads: the question, a hint if there is one, and the kind of answer wanted."""
    return frame(problem.question, mode, hint=hint)


def frame(question: str, mode: Mode = "think", *, hint: str = "") -> str:
    """:func:`prompt` of a question alone."""
    shown = f"Hint :\n{hint.rstrip()}\n" if hint else ""
    return f"Problem : {question}\n{shown}Mode : {mode}\n"


def aided(question: str, insights: str) -> str:
    """The frame of the *prompt* transport: insights under their heading, then the reader's own solution."""
    return f"Problem : {question}\nInsights :\n{insights.rstrip()}\nMode : solution\n"


def solution(problem: Problem, mode: Mode = "think") -> str:
    """What a model should write after :func:`prompt`."""
    answer = f"Answer : {problem.answer}\n"
    if mode == "direct":
        return answer
    goal = [problem.target] if mode.startswith("brief") else list(problem.search)
    text = _render(problem.steps, " ".join(goal))
    if mode.endswith("insights"):
        return text[: -len(f" {problem.steps[-1].result}\n")]
    return text + answer


def own_solution(problem: Problem, insights: str) -> str:
    """What a reader should write after :func:`aided`: every step whose fact it was given done anew, then the rest.

    The values in the insights are not trusted: a wrong one is corrected here.
    """
    known = min(covered(insights), len(problem.steps))
    if known == 0:
        return solution(problem)
    text = f"Action : {' ; '.join(map(_action, problem.steps[:known]))}\n"
    if rest := problem.steps[known:]:
        text += _render(rest, None)
    return f"{text}Answer : {problem.answer}\n"


def covered(insights: str) -> int:
    """How many steps' facts are complete in a text of insights that may end anywhere."""
    lines = re.findall(r"^Retrieval : ([^\n]*)(\n|\Z)", insights, flags=re.MULTILINE)
    return sum(len(facts.split(" ; ")) - (end == "") for facts, end in lines)


def answer(text: str) -> str | None:
    """The answer a text gives: what follows its last ``Answer :``; None if there is none."""
    found = re.findall(r"^Answer : *([^\n]*)", text, flags=re.MULTILINE)
    return found[-1].strip() or None if found else None


def _render(steps: tuple[Step, ...], first_goal: str | None) -> str:
    lines = []
    for i, block in enumerate(blocks(steps)):
        goal = first_goal if i == 0 and first_goal else block[-1].plan
        lines += [
            f"Goal : {goal}",
            f"Planning : {' '.join(step.plan for step in block)}",
            f"Retrieval : {' ; '.join(step.fact for step in block)}",
            f"Action : {' ; '.join(map(_action, block))}",
        ]
    return "\n".join(lines) + "\n"


def _action(step: Step) -> str:
    return f"{step.work} {step.result}"
