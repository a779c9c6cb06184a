"""StackProg: what does the program that made these lists make of one more list?

    1 5 3 2 -> ? ; 3 1 4 -> 4 1 ; 2 5 7 0 -> 0 7 ; 6 8 9 -> 9 8        reverse ; take 2: 2 3

A list, and three examples of a hidden program of one to four operations. Finding the program is the search; running it
on the list is the action, so that the program can be told without telling the answer. The first goal names what the
outputs show, the last operation first: ``list take reverse``.

Idealised: seven kinds of operation on lists of three to five different digits; every operation changes every list it
meets, none leaves an empty list or a number above 99. Of the programs that do the same, the solution names the first in
the order of ``OPERATIONS``. By construction no other program of the same number of operations or fewer fits the three
examples, so the answer is unique; longer ones may fit. Small models learn to copy a list of different digits at the
beginning of the text much earlier than one with repetitions at its end.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from zfu_lib.data.worlds.problem import Problem, Step

List = tuple[int, ...]
OPERATIONS = {
    "take 1": lambda x: x[:1],
    "take 2": lambda x: x[:2],
    "take 3": lambda x: x[:3],
    "keep even": lambda x: tuple(v for v in x if v % 2 == 0),
    "keep odd": lambda x: tuple(v for v in x if v % 2 == 1),
    "sort": lambda x: tuple(sorted(x)),
    "reverse": lambda x: x[::-1],
    "add 1": lambda x: tuple(v + 1 for v in x),
    "add 2": lambda x: tuple(v + 2 for v in x),
    "add 3": lambda x: tuple(v + 3 for v in x),
    "times 2": lambda x: tuple(v * 2 for v in x),
    "times 3": lambda x: tuple(v * 3 for v in x),
    "sum": lambda x: (sum(x),),
}
WORDS = (
    *("take", "keep", "even", "odd", "sort", "reverse", "add", "times", "sum"),
    *("via", "list", "number"),
)
MOST = 4
LARGEST = 99


def problems(n: int, seed: int, *, levels: Sequence[int] = range(1, MOST + 1)) -> list[Problem]:
    """``n`` independent problems; ``levels`` are numbers of operations, drawn uniformly.

    Raises:
        ValueError: a level that is not 1..4.
    """
    if min(levels) < 1 or max(levels) > MOST:
        raise ValueError(f"levels {list(levels)}: programs have 1 to {MOST} operations")
    rng = np.random.default_rng((seed, 13))
    return [_problem(rng, int(rng.choice(levels))) for _ in range(n)]


def solve(question: str) -> str:
    """The answer to a question, worked out from its text alone.

    Raises:
        ValueError: not a StackProg question, or its examples do not decide the answer.
    """
    return _search(question)[1]


def check(question: str, answer: str) -> bool:
    """Whether ``answer`` is the right one; there is exactly one."""
    return solve(question) == " ".join(answer.split())


def program(text: str) -> str | None:
    """The program that a solution (or insights) names in its lines ``Retrieval``, ``reverse ; take 2``; None if none.

    >>> program("Retrieval : reverse\\nAction : 1 2 reverse = 2 1\\nGoal : take\\nRetrieval : take 2\\n")
    'reverse ; take 2'
    """
    return " ; ".join(re.findall(r"^Retrieval : (.+)$", text, flags=re.MULTILINE)) or None


def runs(question: str, program: str) -> bool:
    """Whether a program does on 20 lists, which the question determines, what the shortest fitting program does."""
    operations = program.split(" ; ")
    rng = np.random.default_rng(zlib.crc32(question.encode()))
    right = _search(question)[0]
    hidden = [_list(rng) for _ in range(20)]
    return OPERATIONS.keys() >= set(operations) and all(_run(operations, x)[-1] == _run(right, x)[-1] for x in hidden)


def _search(question: str) -> tuple[tuple[str, ...], str]:
    """The first of the shortest programs that fit a question's examples, and the answer on which they all agree."""
    number = r"\d+(?: \d+)*"
    if not re.fullmatch(rf"{number} -> \?(?: ; {number} -> {number})+", question):
        raise ValueError(f"not a StackProg question: {question!r}")
    pairs = [[tuple(map(int, re.findall(r"\d+", side))) for side in text.split("->")] for text in question.split(" ; ")]
    wanted = [output for _, output in pairs[1:]]
    found = {tuple(x for x, _ in pairs): ()}
    front = found
    for _ in range(MOST):
        after = {}
        for lists, done in front.items():
            for name, operation in OPERATIONS.items():
                after.setdefault(tuple(map(operation, lists)), (*done, name))
        front = {lists: done for lists, done in after.items() if lists not in found}
        found = found | front
        if fitting := {lists[0]: done for lists, done in front.items() if list(lists[1:]) == wanted}:
            if len(fitting) > 1:
                raise ValueError(f"the examples leave {len(fitting)} answers: {question!r}")
            return next((done, _text(output)) for output, done in fitting.items())
    raise ValueError(f"no program of at most {MOST} operations fits: {question!r}")


@cache
def _programs() -> dict[tuple[str, ...], int]:
    """Programs of at most ``MOST`` operations, shortest first, of which no two do the same; each with its length."""
    rng = np.random.default_rng(0)
    lists = tuple(_list(rng) for _ in range(60))
    known, front = {lists}, {(): lists}
    programs = {}
    for length in range(1, MOST + 1):
        after = {}
        for done, outputs in front.items():
            for name, operation in OPERATIONS.items():
                if (new := tuple(map(operation, outputs))) not in known:
                    known.add(new)
                    after[(*done, name)] = new
        programs |= dict.fromkeys(after, length)
        front = after
    return programs


def _problem(rng: np.random.Generator, level: int) -> Problem:
    kinds = sorted({name.split()[0] for name in OPERATIONS})
    while True:
        drawn = [kinds[i] for i in rng.integers(len(kinds), size=level)]
        variants = [[name for name in OPERATIONS if name.split()[0] == kind] for kind in drawn]
        done = tuple(names[int(rng.integers(len(names)))] for names in variants)
        if done not in _programs():
            continue
        tries = (_run(done, _list(rng)) for _ in range(100))
        traces = [x for x in tries if all(_plain(a, b) for a, b in zip(x, x[1:]))][:4]
        if len(traces) == 4 and _fitting(traces[:3], level) == [done]:
            break
    *shown, asked = traces
    target = "number" if all(len(trace[-1]) == 1 for trace in shown) else "list"
    names = [name.split()[0] for name in done]
    steps = tuple(
        Step(kind, name, f"{_text(x)} {name}{_totals(x) if name == 'sum' else ''} =", _text(y))
        for kind, name, x, y in zip(names, done, asked, asked[1:])
    )
    question = " ; ".join([f"{_text(asked[0])} -> ?", *(f"{_text(t[0])} -> {_text(t[-1])}" for t in shown)])
    return Problem("stackprog", question, target, (target, *names[::-1]), steps, _text(asked[-1]), level)


def _fitting(examples: Sequence[Sequence[List]], level: int) -> list[tuple[str, ...]]:
    """The programs of at most ``level`` operations that make each example's last list of its first."""
    (first, *others), states, found = examples, {(): examples[0][0]}, []
    for done, length in _programs().items():
        if length > level:
            break
        states[done] = OPERATIONS[done[-1]](states[done[:-1]])
        if states[done] == first[-1] and all(_run(done, x[0])[-1] == x[-1] for x in others):
            found.append(done)
    return found


def _run(operations: Sequence[str], values: List) -> list[List]:
    lists = [values]
    for name in operations:
        lists.append(OPERATIONS[name](lists[-1]))
    return lists


def _plain(before: List, after: List) -> bool:
    return len(after) > 0 and before != after and max(after) <= LARGEST


def _list(rng: np.random.Generator) -> List:
    return tuple(int(v) for v in rng.permutation(10)[: rng.integers(3, 6)])


def _totals(values: List) -> str:
    """The running totals on the way to a sum, so that each is an addition of two numbers."""
    totals = [sum(values[:i]) for i in range(2, len(values))]
    return f" via {_text(totals)}" if totals else ""


def _text(values: Sequence[int]) -> str:
    return " ".join(map(str, values))
