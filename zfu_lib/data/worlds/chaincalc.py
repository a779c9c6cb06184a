"""ChainCalc: a chain of definitions with values modulo a small number, shuffled among others that are not needed::

    lime -2 plum ; kiwi 3 ; fig *5 plum ; plum +4 kiwi ; fig ?

A definition is the name it defines, what is done, and to what: ``plum +4 kiwi`` says plum = kiwi + 4. In this order
each token but the operation is found by the one before it, which small models learn early; written as an equation,
ours had not learnt to look up a name after a million tokens.

What is asked rests on one other name, which rests on one before it, down to a number. Idealised: one chain, three
operations with a constant, values below the modulus, every name defined exactly once, nothing irrelevant but further
definitions that hang off the chain. Nothing is multiplied by zero, which would make 0 a frequent answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zfu_lib.data.worlds.problem import Problem, Step

MODULUS = 11
# fmt: off
NAMES = (
    "apple", "apricot", "banana", "berry", "cherry", "citron", "coconut", "currant", "date", "durian", "fig",
    "grape", "guava", "kiwi", "lemon", "lime", "lychee", "mango", "melon", "mulberry", "nectar", "olive",
    "orange", "papaya", "peach", "pear", "plum", "pomelo", "prune", "quince", "raisin", "satsuma", "acorn",
    "almond", "barley", "basil", "bean", "beet", "carrot", "celery", "chive", "clove", "corn", "fennel",
    "garlic", "ginger", "leek", "maize",
)
# fmt: on
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
WORDS = (*NAMES, *(f"{sign}{constant}" for sign in OPERATIONS for constant in range(1, MODULUS)))


def problems(
    n: int,
    seed: int,
    *,
    levels: Sequence[int] = range(1, 9),
    distractors: Sequence[int] = range(7),
    modulus: int = MODULUS,
) -> list[Problem]:
    """``n`` independent problems.

    Args:
        levels: numbers of definitions in the needed chain, drawn uniformly.
        distractors: numbers of definitions that are not needed, drawn uniformly.
        modulus: values are 0..modulus-1.

    Raises:
        ValueError: a level below 1, or more definitions than there are names.
    """
    if min(levels) < 1 or min(distractors) < 0 or max(levels) + max(distractors) > len(NAMES) or modulus < 2:
        raise ValueError(
            f"levels {list(levels)}, distractors {list(distractors)}, modulus {modulus}: a chain needs at least one "
            f"definition, there are {len(NAMES)} names, and values need a modulus of at least 2"
        )
    rng = np.random.default_rng((seed, 11))
    return [_problem(rng, int(rng.choice(levels)), int(rng.choice(distractors)), modulus) for _ in range(n)]


def solve(question: str, *, modulus: int = MODULUS) -> str:
    """The answer to a question, worked out from its text alone.

    Raises:
        ValueError: not a ChainCalc question, a name without definition, or a circle of definitions.
    """
    *definitions, asked = question.split(" ; ")
    pairs = dict(text.split(" ", 1) for text in definitions if " " in text)
    if not asked.endswith(" ?") or len(pairs) != len(definitions):
        raise ValueError(f"not a ChainCalc question: {question!r}")

    def value(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above or name not in pairs:
            raise ValueError(f"{name!r} is {'defined by itself' if name in above else 'not defined'} in {question!r}")
        match pairs[name].split(" "):
            case [number] if number.isdigit():
                return int(number) % modulus
            case [operation, of] if operation[0] in OPERATIONS and operation[1:].isdigit():
                return OPERATIONS[operation[0]](value(of, (*above, name)), int(operation[1:])) % modulus
        raise ValueError(f"not a definition: {name} {pairs[name]!r}")

    return str(value(asked.removesuffix(" ?")))


def _problem(rng: np.random.Generator, level: int, distractors: int, modulus: int) -> Problem:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[: level + distractors]]
    chain, others = names[:level], names[level:]
    value = int(rng.integers(modulus))
    steps = [Step(chain[0], f"{chain[0]} {value}", f"{chain[0]} =", str(value))]
    search = [f"{chain[0]} {value}"]
    for of, name in zip(chain, chain[1:]):
        sign, constant = _operation(rng, modulus)
        if sign == "*" and value == 0:
            sign = "+"
        work = f"{name} = {value} {sign}{constant} ="
        value = OPERATIONS[sign](value, constant) % modulus
        steps.append(Step(name, f"{name} {sign}{constant} {of}", work, str(value)))
        search.append(f"{name} {sign}{constant}")
    facts = [step.fact for step in steps]
    for i, name in enumerate(others):
        known = chain + others[:i]
        sign, constant = _operation(rng, modulus)
        facts.append(f"{name} {sign}{constant} {known[rng.integers(len(known))]}")
    shuffled = [facts[i] for i in rng.permutation(len(facts))]
    question = " ; ".join([*shuffled, f"{chain[-1]} ?"])
    return Problem("chaincalc", question, chain[-1], tuple(search[::-1]), tuple(steps), steps[-1].result, level)


def _operation(rng: np.random.Generator, modulus: int) -> tuple[str, int]:
    return tuple(OPERATIONS)[rng.integers(len(OPERATIONS))], int(rng.integers(1, modulus))
