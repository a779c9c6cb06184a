"""Where to stop and what it costs: Tandem and its rivals replayed on one table of cached outcomes.

Every policy is a function of a :class:`Table`, filled once by :func:`zfu_lib.reasoning.tandem.collect`, and returns an
:class:`Outcome`, question by question, so that all comparisons are paired and none calls a model.

Letters: n questions; T stages, with stage 0 for no insight, so arrays by stage have T + 1 columns. Costs are TFLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np

GRID = np.arange(1, 20) / 20  # 0.05, 0.10 ... 0.95: thresholds tried per stage
Cost = Literal["paper", "honest"]
EarlyEnd = Literal["answer", "argmax"]

# Termination


class Stops(NamedTuple):
    """Per question ``[n]``: ``stage`` answered from, last stage ``paid``, and why ("t0", "threshold", "ended",
    "argmax")."""

    stage: np.ndarray
    paid: np.ndarray
    reason: np.ndarray


def thresholds(tau: float | Sequence[float], stages: int, allow_t0: bool = False) -> np.ndarray:
    """One threshold per stage ``[T + 1]``, infinite at stage 0 unless that is a legal stop.

    ``tau`` is one number for all stages, one per stage 1 ... T, or one per stage 0 ... T.

    Raises:
        ValueError: another number of thresholds, or a NaN.
    """
    tau = np.asarray(tau, dtype=float)
    if tau.ndim == 0:
        tau = np.full(stages + 1, tau)
    elif tau.shape == (stages,) and not allow_t0:
        tau = np.concatenate([[np.inf], tau])
    if tau.shape != (stages + 1,) or np.isnan(tau).any():
        raise ValueError(f"need 1, T = {stages} (without stage 0) or {stages + 1} thresholds, got {tau}")
    return tau if allow_t0 else np.concatenate([[np.inf], tau[1:]])


def stop(
    scores: np.ndarray,
    tau: float | Sequence[float],
    last: np.ndarray | None = None,
    *,
    allow_t0: bool = False,
    early_end: EarlyEnd = "answer",
) -> Stops:
    """The first stage t with s^t >= tau^t, else argmax_t s^t (ties: the earlier stage); the argmax is known only after
    all stages were written, so it pays for all of them.

    Args:
        scores: s ``[n, T + 1]``. Column 0 counts only with ``allow_t0`` (a legal stop in the public code; in the paper
            not confirmed).
        last: ``[n]`` the stage at which the mentor had nothing to add. Before T the intern answers from there
            (``early_end="answer"``) or the argmax of what there is decides (``"argmax"``). Ours, not confirmed.

    Raises:
        ValueError: thresholds or scores that do not fit.
    """
    n, stages = scores.shape[0], scores.shape[1] - 1
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: was the intern's uncertainty measured?")
    tau = thresholds(tau, stages, allow_t0)
    last = np.full(n, stages) if last is None else last
    stage = np.arange(stages + 1)
    seen = (stage <= last[:, None]) & (stage >= (0 if allow_t0 else 1))
    enough = seen & (scores >= tau)
    hit, early = enough.any(1), (last < stages) & (early_end == "answer")
    fallback = np.where(early, last, np.where(seen, scores, -np.inf).argmax(1))
    chosen = np.where(hit, enough.argmax(1), fallback)
    reason = np.where(hit, np.where(chosen == 0, "t0", "threshold"), np.where(early, "ended", "argmax"))
    return Stops(chosen, np.where(hit, chosen, last), reason)


# Cost


def paper_cost(n_mentor: Any, n_intern: Any, theta_mentor: float, theta_intern: float) -> Any:
    """2 [|theta_L| L_L + |theta_S| (L_L + L_S)] / 10^12 TFLOPs for generated tokens L_L and L_S; the intern reads L_L.

    The printed law (as quoted in a digest) lacks the factor 2 that its tables need. Prompts, attention's quadratic term
    and the classifier are not counted. A model alone: the other one has 0 tokens, or 0 parameters.
    """
    return 2 * (theta_mentor * n_mentor + theta_intern * (n_mentor + n_intern)) / 1e12


def per_layer_parameters(layers: int, width: int, feed_forward: int) -> int:
    """L (4 h^2 + 2 h f): takes the place of |theta| for the per-layer form of the cost, 2 L (4 h^2 + 2 h f) per token,
    of a co-author's figure script."""
    return layers * (4 * width**2 + 2 * width * feed_forward)


@dataclass(frozen=True)
class Table:
    """What pairs of models did on n questions at every stage, and what it took; see ``collect``.

    Truncated answers count as wrong. After ``last`` the mentor has nothing to add and columns repeat.
    """

    qid: np.ndarray  # [n] text
    budgets: np.ndarray  # [T] cumulative mentor tokens
    transport: str
    theta_mentor: float  # parameters; replace() them for another cost law
    theta_intern: float
    kv_reuse: bool  # do later stages find earlier ones in a cache? (honest cost; False: everything is read again)
    correct: np.ndarray  # [n, T+1] bool: the intern, given I^t
    truncated: np.ndarray  # [n, T+1] bool
    leak: np.ndarray  # [n, T+1] bool: the answer stands in I^t
    features: np.ndarray  # [n, T+1, 16]; NaN if not measured
    last: np.ndarray  # [n] stage with which the mentor ended, T if it was cut there
    n_mentor: np.ndarray  # [n, T+1] tokens of I^t, cumulative, by the mentor's tokenizer
    mentor_prompt: np.ndarray  # [n] tokens the mentor read
    n_intern: np.ndarray  # [n, T+1] tokens the intern wrote
    intern_prompt: np.ndarray  # [n, T+1] tokens it read for that, insight included
    n_score: np.ndarray  # [n, T+1] tokens it read to be measured
    mentor_seconds: np.ndarray  # [n, T+1] cumulative
    intern_seconds: np.ndarray  # [n, T+1]
    score_seconds: np.ndarray  # [n, T+1]
    alone_correct: np.ndarray  # [n] bool: the mentor by itself
    alone_truncated: np.ndarray  # [n] bool
    alone_tokens: np.ndarray  # [n] written
    alone_prompt: np.ndarray  # [n] read
    alone_seconds: np.ndarray  # [n]
    forced_budgets: np.ndarray  # [J] thinking tokens after which the mentor had to answer
    forced_correct: np.ndarray  # [n, J] bool
    forced_truncated: np.ndarray  # [n, J] bool
    forced_tokens: np.ndarray  # [n, J] written, thinking included
    forced_prompt: np.ndarray  # [n, J] read by the second call; 0 where the mentor was done before
    forced_seconds: np.ndarray  # [n, J]
    vote_agreement: np.ndarray  # [n] share of the intern's samples that agree with their majority; NaN if not sampled
    vote_correct: np.ndarray  # [n] bool: the majority
    vote_tokens: np.ndarray  # [n] written for all samples
    vote_prompt: np.ndarray  # [n] read for all samples
    vote_seconds: np.ndarray  # [n]

    def __post_init__(self) -> None:
        n, columns = len(self.qid), len(self.budgets) + 1
        for name in self._rows():
            shape = getattr(self, name).shape
            wants = (n, columns) if name in _BY_STAGE else (n, len(self.forced_budgets)) if "forced" in name else (n,)
            if shape[:2] != wants:
                raise ValueError(f"{name} is {shape}, a table of {n} questions and {columns - 1} stages needs {wants}")

    @property
    def stages(self) -> int:
        """T."""
        return len(self.budgets)

    def take(self, rows: np.ndarray) -> Table:
        """The table of some questions, such as one part of a split."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._rows()})

    def save(self, path: str | PathLike[str]) -> None:
        """As compressed npz."""
        with open(path, "wb") as file:
            np.savez_compressed(file, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Table:
        """What :meth:`save` wrote. Nothing is unpickled."""
        with np.load(path, allow_pickle=False) as found:
            return cls(**{f.name: found[f.name] if found[f.name].ndim else found[f.name].item() for f in fields(cls)})

    @classmethod
    def _rows(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.type == "np.ndarray" and not f.name.endswith("budgets")]


_BY_STAGE = {"correct", "truncated", "leak", "features", "n_mentor", "n_intern", "intern_prompt", "n_score"} | {
    "mentor_seconds",
    "intern_seconds",
    "score_seconds",
}


# Policies


@dataclass(frozen=True)
class Outcome:
    """What one policy did ``[n]``. ``stage`` is the one the intern answered from, -1 where the mentor answered;
    ``insight_read`` counts the mentor's tokens that the paper lets the intern read."""

    name: str
    theta_mentor: float
    theta_intern: float
    stage: np.ndarray
    paid: np.ndarray
    correct: np.ndarray
    mentor_read: np.ndarray
    mentor_written: np.ndarray
    insight_read: np.ndarray
    intern_read: np.ndarray
    intern_written: np.ndarray
    seconds: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of questions answered correctly."""
        return float(self.correct.mean())

    @property
    def length(self) -> np.ndarray:
        """ "Len" of the paper's tables: tokens written by both ``[n]``."""
        return self.mentor_written + self.intern_written

    @property
    def paper(self) -> np.ndarray:
        """TFLOPs by the paper's law ``[n]``: see :func:`paper_cost`."""
        intern = self.insight_read + self.intern_written
        return 2 * (self.theta_mentor * self.mentor_written + self.theta_intern * intern) / 1e12

    @property
    def honest(self) -> np.ndarray:
        """TFLOPs ``[n]``: 2 theta for every token computed, prompts and measurements included."""
        mentor, intern = self.mentor_read + self.mentor_written, self.intern_read + self.intern_written
        return 2 * (self.theta_mentor * mentor + self.theta_intern * intern) / 1e12

    def cost(self, kind: Cost) -> np.ndarray:
        """``paper`` or ``honest`` ``[n]``."""
        return {"paper": self.paper, "honest": self.honest}[kind]

    def money(self, mentor: tuple[float, float], intern: tuple[float, float]) -> np.ndarray:
        """Price ``[n]`` for prices (of a read token, of a written token) per model."""
        return (
            mentor[0] * self.mentor_read
            + mentor[1] * self.mentor_written
            + intern[0] * self.intern_read
            + intern[1] * self.intern_written
        )


def replay(
    table: Table,
    scores: np.ndarray,
    tau: float | Sequence[float],
    *,
    allow_t0: bool = False,
    early_end: EarlyEnd = "answer",
    ahead: bool = False,
    name: str = "Tandem",
) -> Outcome:
    """Tandem with the scores ``[n, T + 1]`` of a classifier.

    ``ahead``: the scores depend on the question alone (:func:`question_only`), so the stage is known before the mentor
    is called: one call, nothing wasted, and only the question is measured.
    """
    stage, paid, _ = stop(scores, tau, table.last, allow_t0=allow_t0, early_end=early_end)
    columns = np.arange(table.stages + 1)
    if ahead:
        return _intern(table, name, stage, stage, np.broadcast_to(columns == 0, scores.shape))
    scored = (columns <= paid[:, None]) & (columns >= (0 if allow_t0 else 1))
    return _intern(table, name, stage, paid, scored, grown=True)


def always_high_then_argmax(table: Table, scores: np.ndarray, *, allow_t0: bool = False) -> Outcome:
    """All stages are written and read, the best score answers: what is left of Tandem when it never stops early."""
    name = "all stages, then argmax"
    return replay(table, scores, np.inf, allow_t0=allow_t0, early_end="argmax", name=name)


def fixed(table: Table, k: int, name: str = "") -> Outcome:
    """Always stage k, without a classifier; 0 is the intern alone."""
    stage = np.full(len(table.qid), k)
    return _intern(table, name or f"fixed level {k}", stage, stage)


def single_intern(table: Table) -> Outcome:
    """The intern alone."""
    return fixed(table, 0, "intern alone")


def single_mentor(table: Table) -> Outcome:
    """The mentor alone."""
    t = table
    return _mentor(t, "mentor alone", t.alone_correct, t.alone_prompt, t.alone_tokens, t.alone_seconds)


def budget_forcing(table: Table, j: int) -> Outcome:
    """The mentor alone, its thinking cut after ``table.forced_budgets[j]`` tokens and answered at once."""
    t = table
    read = t.alone_prompt + (0 if t.kv_reuse else t.forced_prompt[:, j])
    name = f"budget forcing {t.forced_budgets[j]}"
    return _mentor(t, name, t.forced_correct[:, j], read, t.forced_tokens[:, j], t.forced_seconds[:, j])


def cascade(table: Table, score: np.ndarray, tau: float, *, votes: bool = False, pay_both: bool = True) -> Outcome:
    """The intern where ``score`` ``[n]`` >= tau, else the mentor alone, no insights.

    With a classifier's score of stage 0 the question is measured; the mentor comes on top of the intern's answer as in
    the public code, or instead of it (``pay_both=False``). ``votes``: self-consistency; the score is
    ``table.vote_agreement`` and the intern's samples are always paid.

    Raises:
        ValueError: votes without samples in the table.
    """
    if votes and np.isnan(table.vote_agreement).any():
        raise ValueError("the table holds no samples of the intern: collect(..., votes=5)")
    keep, mentor = score >= tau, single_mentor(table)
    if votes:
        intern = replace(
            single_intern(table),
            correct=table.vote_correct,
            intern_read=table.vote_prompt,
            intern_written=table.vote_tokens,
            seconds=table.vote_seconds,
        )
    else:
        stage = np.zeros(len(table.qid), int)
        scored = np.broadcast_to(np.arange(table.stages + 1) == 0, table.correct.shape)
        intern = _intern(table, "", stage, stage, scored)
    if votes or pay_both:
        before = (intern.intern_read, intern.intern_written, intern.seconds)
    else:
        before = (table.n_score[:, 0], mentor.intern_written, table.score_seconds[:, 0])
    mentor = replace(mentor, intern_read=before[0], intern_written=before[1], seconds=mentor.seconds + before[2])
    return _either("self-consistency cascade" if votes else "cascade", keep, intern, mentor)


def random_stop(table: Table, stage: np.ndarray, seed: int = 0) -> Outcome:
    """The stages of another policy dealt out at random: the same frequencies without any knowledge of the question, in
    one call of the mentor each. What Tandem gains over this is what its classifier knows."""
    stage = np.random.default_rng(seed).permutation(stage)
    return _intern(table, "random stop", stage, stage)


def oracle(table: Table, *, allow_t0: bool = True, cost: Cost = "paper") -> Outcome:
    """The cheapest stage that answers correctly, the cheapest of all where none does: what a perfect score reaches."""
    levels = [fixed(table, t) for t in range(0 if allow_t0 else 1, table.stages + 1)]
    price = np.stack([level.cost(cost) for level in levels], 1)
    right = np.stack([level.correct for level in levels], 1)
    price = np.where(right | ~right.any(1, keepdims=True), price, np.inf)
    stage = price.argmin(1) + (0 if allow_t0 else 1)
    return _intern(table, "oracle stage", stage, stage)


def best_of_two(table: Table) -> Outcome:
    """An oracle router between the two models alone: the mentor where only it is right, else the intern."""
    keep = table.correct[:, 0] | ~table.alone_correct
    return _either("best of two", keep, single_intern(table), single_mentor(table))


def question_only(features: np.ndarray) -> np.ndarray:
    """Features of the question at every stage ``[n, T + 1, F]``: trains a classifier that never sees an insight."""
    return np.repeat(features[:, :1], features.shape[1], axis=1)


def _intern(
    t: Table, name: str, stage: np.ndarray, paid: np.ndarray, scored: np.ndarray | None = None, grown: bool = False
) -> Outcome:
    """The intern answers from ``stage``, the mentor wrote up to ``paid`` (stage by stage if ``grown``), and the stages
    ``scored`` ``[n, T + 1]`` were measured."""
    rows = np.arange(len(t.qid))
    scored = np.zeros(t.correct.shape, bool) if scored is None else scored
    calls = (paid > 0).astype(int)
    read = calls * t.mentor_prompt
    if grown and not t.kv_reuse:  # every later stage reads the prompt and what was written before
        again = np.concatenate([np.zeros((len(rows), 1), int), np.cumsum(t.n_mentor, 1)[:, :-1]], 1)[rows, paid]
        read = paid * t.mentor_prompt + again
    measured = np.where(scored, t.n_score, 0)
    return Outcome(
        name=name,
        theta_mentor=t.theta_mentor,
        theta_intern=t.theta_intern,
        stage=stage,
        paid=paid,
        correct=t.correct[rows, stage],
        mentor_read=read,
        mentor_written=t.n_mentor[rows, paid],
        insight_read=t.n_mentor[rows, paid],
        intern_read=t.intern_prompt[rows, stage] + (measured.max(1) if t.kv_reuse else measured.sum(1)),
        intern_written=t.n_intern[rows, stage],
        seconds=t.mentor_seconds[rows, paid]
        + np.where(scored, t.score_seconds, 0).sum(1)
        + t.intern_seconds[rows, stage],
    )


def _mentor(
    t: Table, name: str, correct: np.ndarray, read: np.ndarray, written: np.ndarray, seconds: np.ndarray
) -> Outcome:
    """The mentor answers, the intern does nothing."""
    nothing = np.zeros(len(t.qid), int)
    none, paid = nothing - 1, nothing
    thetas = (t.theta_mentor, t.theta_intern)
    return Outcome(name, *thetas, none, paid, correct, read, written, nothing, nothing, nothing, seconds)


def _either(name: str, keep: np.ndarray, a: Outcome, b: Outcome) -> Outcome:
    """``a`` where ``keep``, else ``b``."""
    arrays = [f.name for f in fields(Outcome) if f.type == "np.ndarray"]
    return replace(a, name=name, **{x: np.where(keep, getattr(a, x), getattr(b, x)) for x in arrays})


# Thresholds


@dataclass(frozen=True)
class Sweep:
    """Every combination of thresholds: ``tau`` ``[m, T + 1]``, accuracy ``[m]`` and mean cost ``[m]``."""

    tau: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray


def sweep(
    table: Table,
    scores: np.ndarray,
    *,
    allow_t0: bool = False,
    early_end: EarlyEnd = "answer",
    cost: Cost = "paper",
    grid: np.ndarray = GRID,
) -> Sweep:
    """Replays all products of the grid, 19^T of them (times 19 with stage 0). Give it the threshold split and no other.

    A question's path depends on how many thresholds each of its scores reaches, k_t. So values are summed over
    questions into cells (k_1 ... k_t) once, and cumulative sums over the cells give every combination.
    """
    first = 0 if allow_t0 else 1
    used = range(first, table.stages + 1)
    n, m = len(table.qid), len(grid)
    columns = np.arange(table.stages + 1)
    grid = np.sort(np.asarray(grid, float))
    reach = np.where(columns <= table.last[:, None], np.searchsorted(grid, scores, side="right"), 0)
    never = replay(table, scores, np.inf, allow_t0=allow_t0, early_end=early_end)
    totals = np.zeros((2, *[m] * len(used)))
    for depth, t in enumerate([*used, None], 1):
        if t is None:
            outcome, upto = never, list(used)
        else:
            stage, upto = np.full(n, t), list(used)[:depth]
            scored = np.broadcast_to((columns <= t) & (columns >= first), scores.shape)
            outcome = _intern(table, "", stage, stage, scored, grown=True)
        cells = np.zeros((2, *[m + 1] * len(upto)))
        for value, cell in zip((outcome.correct, outcome.cost(cost)), cells):
            np.add.at(cell, tuple(reach[:, u] for u in upto), value)
        for axis, u in enumerate(upto, 1):
            if u == t:  # stops here: reaches more than i thresholds
                cells = np.flip(np.cumsum(np.flip(cells, axis), axis), axis)
                cells = np.take(cells, range(1, m + 1), axis)
            else:  # goes on: reaches at most i
                cells = np.take(np.cumsum(cells, axis), range(m), axis)
        totals += cells.reshape(*cells.shape, *[1] * (len(used) - len(upto)))
    tau = np.stack(np.meshgrid(*[grid] * len(used), indexing="ij"), -1).reshape(-1, len(used))
    tau = np.concatenate([np.full((len(tau), first), np.inf), tau], 1)
    accuracy, mean_cost = totals.reshape(2, -1) / n
    return Sweep(tau, accuracy, mean_cost)


def choose(
    found: Sweep,
    objective: Literal["accuracy", "cost-aware"] = "accuracy",
    *,
    cap: float | None = None,
    weight: float | None = None,
    unit: float = 1.0,
) -> int:
    """The row of a sweep to use; among equals the cheapest, then the first.

    ``accuracy`` alone is what the public code maximises. ``cost-aware`` is ours: accuracy subject to cost <= ``cap``
    (the cheapest row if none is), or accuracy - ``weight`` * cost / ``unit``, with the mentor's own cost as unit.

    Raises:
        ValueError: cost-aware without exactly one of cap and weight, or accuracy with either.
    """
    if objective not in ("accuracy", "cost-aware"):
        raise ValueError(f"unknown objective {objective!r}: 'accuracy' or 'cost-aware'")
    if (cap is not None) + (weight is not None) != (objective == "cost-aware"):
        raise ValueError("'cost-aware' needs a cap or a weight, one of them; 'accuracy' takes neither")
    gain = found.accuracy if weight is None else found.accuracy - weight * found.cost / unit
    if cap is not None:
        gain = np.where(found.cost <= cap, gain, -np.inf)
    return int(np.lexsort((found.cost, -np.round(gain, 12)))[0])


def search_thresholds(
    table: Table, scores: np.ndarray, objective: Literal["accuracy", "cost-aware"] = "accuracy", **options: Any
) -> np.ndarray:
    """tau ``[T + 1]`` for a threshold split: :func:`sweep`, then :func:`choose` (``options`` of both)."""
    chooses = {key: options.pop(key) for key in ("cap", "weight", "unit") if key in options}
    found = sweep(table, scores, **options)
    return found.tau[choose(found, objective, **chooses)]


# Fronts and diagnosis


def pareto(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Rows that no other row beats (as cheap and better, or cheaper and as good), by rising cost; one of equals."""
    order = np.lexsort((-np.asarray(accuracy), cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], np.asarray(accuracy)[order]]))
    return order[np.diff(best) > 0]


def accuracy_at(cost: np.ndarray, accuracy: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The best accuracy at a cost of at most each of ``grid``; 0 where nothing is that cheap."""
    front = pareto(cost, accuracy)
    best = np.concatenate([[0.0], np.asarray(accuracy)[front]])
    return best[np.searchsorted(np.asarray(cost)[front], grid, side="right")]


def hypervolume(cost: np.ndarray, accuracy: np.ndarray, low: float, high: float) -> float:
    """The mean of :func:`accuracy_at` over costs from ``low`` to ``high``, exactly: the area under the front's steps,
    divided by its width."""
    inner = np.asarray(cost)[pareto(cost, accuracy)]
    edges = np.concatenate([[low], inner[(inner > low) & (inner < high)], [high]])
    return float(np.diff(edges) @ accuracy_at(cost, accuracy, edges[:-1]) / (high - low))


def taxonomy(table: Table, outcome: Outcome, *, allow_t0: bool = False) -> Mapping[str, np.ndarray]:
    """What went how ``[n]`` bool each, exactly one per question. The names are the public code's, the definitions ours.

    ``unavoidable``: no stage is right. ``false continuation``: an earlier stage than the last one paid was right.
    ``correct``: the answer is right and no earlier one was. ``false early stop``: only a stage not paid for is right.
    """
    columns = np.arange(table.stages + 1)
    right = table.correct & (columns >= (0 if allow_t0 else 1))
    before = (right & (columns < outcome.paid[:, None])).any(1)
    unavoidable = ~right.any(1)
    correct = ~unavoidable & ~before & outcome.correct
    continued = ~unavoidable & before
    return {
        "correct": correct,
        "false early stop": ~(unavoidable | continued | correct),
        "false continuation": continued,
        "unavoidable": unavoidable,
    }


def auc(scores: np.ndarray, correct: np.ndarray) -> float:
    """Area under the ROC curve of scores against sufficiency (any equal shapes); NaN if only one class is there."""
    from sklearn.metrics import roc_auc_score

    y = np.ravel(correct)
    return float(roc_auc_score(y, np.ravel(scores))) if 0 < y.sum() < y.size else float("nan")


def brier(scores: np.ndarray, correct: np.ndarray) -> float:
    """Mean squared error of scores as probabilities of sufficiency (any equal shapes)."""
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(np.ravel(correct).astype(int), np.ravel(scores), pos_label=1))


def reliability(scores: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean score, share sufficient, number) of every bin of equal width that is not empty."""
    s, y = np.ravel(scores), np.ravel(correct)
    where = np.minimum((s * bins).astype(int), bins - 1)
    found = [where == b for b in np.unique(where)]
    return [(float(s[here].mean()), float(y[here].mean()), int(here.sum())) for here in found]
