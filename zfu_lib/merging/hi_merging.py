"""Hi-Merging: prune and scale each expert's delta, then settle conflicts block by block (arXiv 2506.12379).

Models are mappings from tensor names to arrays, as in :mod:`zfu_lib.merging.methods`. ``base`` is the model that all
experts were fine-tuned from, and ``D[m] = experts[m] - base`` the delta of expert m. A *block* is one Transformer
layer; tensors outside of blocks (embeddings, final norm, head) stay as stage 1 leaves them. Scores come from the
caller: ``score(m, model)`` says how well a model does the task of expert m, higher is better. No gradient is taken.

The paper leaves several steps open. Each is a named option; its first value is the default:

| option | what is open |
|---|---|
| ``scope`` | what TopAbs ranks together: each ``tensor`` (the released pipeline), each ``layer``, the ``model`` |
| ``consensus`` | the merge is the sum (``none``), or the sum of what has its sign (``sum``, the released pipeline) |
| ``partial`` | in a partial conflict it is the ``dominant`` delta that is trimmed, or the ``weakened`` one |
| ``again`` | what is trimmed again: what stage 1 left (``current``), or the expert's ``raw`` delta |
| ``survivor`` | what is kept in a severe conflict is merged with its own weight (``weighted``), or with 1 (``whole``) |
| ``remeasure_every`` | contributions are measured once (0), or anew after every so many blocks |

Measured once, the blocks are settled independently of each other: the order of the "iteration" then changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from zfu_lib.merging.methods import Consensus, Scope, Tensors, add_deltas, deltas, layer, names, prune_and_scale

Block = tuple[str, int]
Score = Callable[[int, Tensors], float]
Partial = Literal["dominant", "weakened"]
Again = Literal["current", "raw"]
Survivor = Literal["weighted", "whole"]
Case = Literal["severe", "partial", "mutual"]

GRID = tuple(i / 10 for i in range(10, 0, -1))
"""The values that the paper tries for p and for s: 1.0, 0.9, ..., 0.1."""


class Choice(NamedTuple):
    """The kept fraction ``p`` and the factor ``s`` of one expert, with the scores of all pairs: [p, s]."""

    p: float
    s: float
    scores: np.ndarray


@dataclass(frozen=True)
class Table:
    """What each block contributes to each task: ``own`` in the task's expert, ``merged`` in the merge; both [M, L]."""

    blocks: tuple[Block, ...]
    own: np.ndarray
    merged: np.ndarray

    @property
    def gamma(self) -> np.ndarray:
        """Conflict [M, L]: above zero where merging has weakened what the block does for the task."""
        return self.own - self.merged

    @property
    def severity(self) -> np.ndarray:
        """Gamma [L], the conflict of a block summed over the tasks."""
        return self.gamma.sum(axis=0)

    @property
    def order(self) -> list[int]:
        """Positions of the blocks, the most severe first; of equal ones the earlier block."""
        return np.argsort(-self.severity, kind="stable").tolist()


class Decision(NamedTuple):
    """What stage 2 did to a block: the deltas of these ``experts`` were zeroed (severe) or trimmed (partial)."""

    block: Block
    case: Case
    experts: tuple[int, ...]


class Merge(NamedTuple):
    """A merged model and how it came about: the deltas it is the sum of, and what each stage found and did."""

    model: Tensors
    deltas: list[Tensors]
    choices: list[Choice]
    table: Table
    decisions: list[Decision]
    evaluations: int


def hi_merge(
    base: Tensors,
    experts: Sequence[Tensors],
    score: Score,
    *,
    weights: Sequence[float] | None = None,
    ps: Sequence[float] = GRID,
    ss: Sequence[float] = GRID,
    scope: Scope = "tensor",
    consensus: Consensus = "none",
    partial: Partial = "dominant",
    again: Again = "current",
    survivor: Survivor = "weighted",
    remeasure_every: int = 0,
) -> Merge:
    """Both stages.

    Args:
        score: of task m (the task of expert m) for a model, on data that are not those the result is judged on.
        weights: of the experts in the sum; None is 1 for each (a reading: the released script has 1/2 for each of two,
            its first version 1).
        ps, ss: what stage 1 tries.

    Returns:
        The merge. It took ``M |ps| |ss|`` evaluations of ``score`` for stage 1 and ``4 L M + 3 M`` for stage 2, more
            with ``remeasure_every``.

    Raises:
        ValueError: no expert or no block, names or shapes that differ, weights that are not one for each, an option
            that does not exist, or a score that is not finite.
    """
    count = 0

    def counted(m: int, model: Tensors) -> float:
        nonlocal count
        count += 1
        if not math.isfinite(value := float(score(m, model))):
            raise ValueError(f"the score of task {m} is {value}; a score must be a finite number")
        return value

    weights = [1.0] * len(experts) if weights is None else list(weights)
    if not experts or len(weights) != len(experts):
        raise ValueError(f"{len(weights)} weights for {len(experts)} experts" if experts else "no experts to merge")
    if not len(ps) or not len(ss):
        raise ValueError("stage 1 needs at least one value in ps and ss each")
    given = {"consensus": consensus, "partial": partial, "again": again, "survivor": survivor}
    for option, kind in zip(given, (Consensus, Partial, Again, Survivor)):
        if given[option] not in get_args(kind):
            raise ValueError(f"{option} {given[option]!r}: one of {', '.join(get_args(kind))}")
    if remeasure_every < 0 or (survivor == "whole" and 0 in weights):
        raise ValueError(
            f"remeasure_every {remeasure_every}, weights {weights}: the first must be 0 or more, and the "
            "weight of a whole survivor must not be 0"
        )
    if not blocks(base):
        raise ValueError(f"no blocks: no name such as model.layers.3.* among {', '.join(names(base)[:3])}")
    raw = [deltas(base, expert) for expert in experts]
    choices = [model_wise(base, delta, functools.partial(counted, m), ps, ss, scope) for m, delta in enumerate(raw)]
    D = [prune_and_scale(delta, c.p, c.s, scope) for delta, c in zip(raw, choices)]
    table = measured = analyse(base, D, counted, weights, consensus)
    decisions, todo = [], list(table.blocks)
    while todo:
        now = [decide(measured, measured.blocks[i], partial) for i in measured.order][: remeasure_every or None]
        for decision in now:
            D = settle(
                D,
                decision,
                choices,
                source=raw if again == "raw" else D,
                scope=scope,
                weights=weights if survivor == "whole" else None,
            )
        decisions += now
        todo = [block for block in todo if block not in {decision.block for decision in now}]
        if todo:
            measured = analyse(base, D, counted, weights, consensus, todo)
    return Merge(add_deltas(base, D, weights, consensus), D, choices, table, decisions, count)


# Stage 1: model-wise pruning and scaling.


def model_wise(
    base: Tensors,
    delta: Tensors,
    score: Callable[[Tensors], float],
    ps: Sequence[float] = GRID,
    ss: Sequence[float] = GRID,
    scope: Scope = "tensor",
) -> Choice:
    """The p and s with which ``base + s TopAbs(delta, p)`` scores best; of equal ones the first, p before s."""
    scores = np.empty((len(ps), len(ss)))
    for i, p in enumerate(ps):
        pruned = prune_and_scale(delta, p, 1.0, scope)
        for j, s in enumerate(ss):
            scores[i, j] = score(add_deltas(base, [pruned], [s]))
    i, j = np.unravel_index(scores.argmax(), scores.shape)
    return Choice(ps[i], ss[j], scores)


# Contribution analysis.


def blocks(model: Tensors) -> tuple[Block, ...]:
    """The blocks of a model in order, by the names of its tensors."""
    return tuple(dict.fromkeys(block for name in names(model) if (block := layer(name))))


def take(model: Tensors, block: Block, source: Tensors) -> Tensors:
    """``model`` with one block taken from ``source``; the arrays themselves are shared, not copied."""
    return {name: source[name] if layer(name) == block else array for name, array in model.items()}


def contribution(
    base: Tensors, model: Tensors, block: Block, score: Callable[[Tensors], float], of_base: float, of_model: float
) -> float:
    """``c = alpha + beta`` of a block: what the model loses without it, and what it alone adds to the base."""
    alpha = of_model - score(take(model, block, base))
    beta = score(take(base, block, model)) - of_base
    return alpha + beta


def analyse(
    base: Tensors,
    D: Sequence[Tensors],
    score: Score,
    weights: Sequence[float] | None = None,
    consensus: Consensus = "none",
    only: Sequence[Block] | None = None,
) -> Table:
    """Contributions of all blocks (or of ``only`` some) to each task, in its expert and in the merge."""
    chosen = blocks(base) if only is None else tuple(only)
    G = add_deltas(base, D, weights or [1.0] * len(D), consensus)
    own, merged = np.empty((2, len(D), len(chosen)))
    for m, delta in enumerate(D):
        expert, of = add_deltas(base, [delta], [1.0]), functools.partial(score, m)
        of_base, of_expert, of_merge = of(base), of(expert), of(G)
        for k, block in enumerate(chosen):
            own[m, k] = contribution(base, expert, block, of, of_base, of_expert)
            merged[m, k] = contribution(base, G, block, of, of_base, of_merge)
    return Table(chosen, own, merged)


# Stage 2: layer-wise conflict elimination.


def decide(table: Table, block: Block, partial: Partial = "dominant") -> Decision:
    """The case of a block, and whose delta has to give way.

    severe: every task is weakened; all deltas go but that of the expert whose block contributes most. partial: some
    tasks are weakened and some gain; the deltas of those that gain (``dominant``) or of the weakened are trimmed.
    mutual: no task is weakened, or some are and the others neither gain nor lose; nothing is done.
    The paper has the rules for two experts; for more this is their nearest extension.
    """
    k = table.blocks.index(block)
    gamma, own = table.gamma[:, k], table.own[:, k]
    if (gamma > 0).all():
        return Decision(block, "severe", tuple(m for m in range(len(gamma)) if m != own.argmax()))
    if (gamma > 0).any() and (gamma < 0).any():
        trimmed = gamma < 0 if partial == "dominant" else gamma > 0
        return Decision(block, "partial", tuple(np.flatnonzero(trimmed).tolist()))
    return Decision(block, "mutual", ())


def settle(
    D: Sequence[Tensors],
    decision: Decision,
    choices: Sequence[Choice],
    source: Sequence[Tensors] | None = None,
    scope: Scope = "tensor",
    weights: Sequence[float] | None = None,
) -> list[Tensors]:
    """The deltas after a decision; those given stay as they are.

    Args:
        choices: p and s of each expert; a trimmed delta is ``s/2 TopAbs(delta, p/2)`` within the block.
        source: what is trimmed; None is ``D`` itself.
        scope: ``model`` counts as ``layer`` here, as there is one block only.
        weights: given, the survivor of a severe conflict is divided by its weight, and so merged with weight 1.
    """
    edited = [dict(delta) for delta in D]
    block = [name for name in D[0] if layer(name) == decision.block]
    for m in decision.experts:
        if decision.case == "severe":
            edited[m] |= {name: np.zeros_like(D[m][name]) for name in block}
        else:
            part = {name: (source or D)[m][name] for name in block}
            within = "layer" if scope == "model" else scope
            edited[m] |= prune_and_scale(part, choices[m].p / 2, choices[m].s / 2, within)
    if decision.case == "severe" and weights is not None:
        (kept,) = set(range(len(D))) - set(decision.experts)
        edited[kept] |= {name: D[kept][name] / np.float32(weights[kept]) for name in block}
    return edited
