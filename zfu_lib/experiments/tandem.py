"""Experiments of the Tandem chapter (arXiv 2604.23623).

A :class:`Lab` asks the models once for everything (:func:`zfu_lib.reasoning.tandem.collect`), and every policy and
baseline is replayed on that table. In quick and full the questions are ChainCalc's and the models tiny; in paper they
are MATH's and DeepSeek's distilled ones.

Seeds: the test questions and the models are the same for all; a seed draws which questions the classifier is fitted,
stopped and tuned on, and its weights. Intervals resample questions and seeds together.
"""

from __future__ import annotations

import itertools
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError, State
from zfu_lib.data.worlds import chaincalc
from zfu_lib.data.worlds import problem as world
from zfu_lib.experiments import router_data, sandbox
from zfu_lib.experiments.tandem_audit import detectable
from zfu_lib.lm import models, tiny
from zfu_lib.lm.protocol import GenRequest, LanguageModel, ModelError, ScoreRequest
from zfu_lib.lm.recipes import reasoning as recipes
from zfu_lib.lm.server import serving
from zfu_lib.reasoning import routing
from zfu_lib.reasoning.insights import TRANSPORTS, ChatFormat, Format, Prompt, Question, Transport
from zfu_lib.reasoning.routing import Outcome, Table
from zfu_lib.reasoning.tandem import Split, SufficiencyClassifier, collect, split_by_question, tandem
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.statistics import Interval, crossed, exact

SHARES = (0.6, 0.1, 0.3, 0.0)
"""Shares of the tuning questions for fitting, early stopping and thresholds; the test questions are others."""
RARE = 10
"""Fewer right, or fewer wrong, answers at a stage give no AUC: a resample repeats the few, and its spread says
nothing."""
GAP = 1.0
"""Points below the mentor that still count as matching it (claim T2)."""


@dataclass(frozen=True)
class TandemProfile(Profile):
    """``tuning`` and ``test`` are numbers of questions; ``budgets`` cumulative mentor tokens, ``forced`` thinking
    budgets of budget forcing; ``lengths`` those of the curve of insight lengths; ``limit`` the most tokens of an
    answer. ``controls``: how many of the test questions the controls of T13 and T15, the other transports and the
    lengths are measured on; ``timed``: how many are answered one at a time; ``served``: how many the mentor gets as a
    server. ``peer``: a model of the intern's size that was taught what the mentor was, where there is one.
    ``interns``: a smaller and a larger one. ``travellers``: the pair that knows the other ``worlds``,
    asked ``visited`` questions in each."""

    mentor: str
    intern: str
    questions: str
    tuning: int
    test: int
    controls: int
    budgets: tuple[int, ...]
    forced: tuple[int, ...]
    lengths: tuple[int, ...]
    limit: int
    timed: int = 20
    served: int = 20
    peer: str | None = None
    interns: tuple[str, str] | None = None
    travellers: tuple[str, str] = ("tiny:mentor-worlds", "tiny:intern-worlds")
    worlds: tuple[str, ...] = ()
    visited: int = 300
    transport: str = "prompt"
    kind: str = "mlp"


QUICK = TandemProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=3,
    mentor="tiny:mentor",
    intern="tiny:intern",
    peer="tiny:apprentice",
    interns=("tiny:intern-small", "tiny:intern-large"),
    worlds=("stackprog", "chronofacts"),
    questions="chaincalc",
    tuning=500,
    test=500,
    controls=250,
    budgets=(16, 32, 48),
    forced=(8, 16, 32, 48),
    lengths=(2, 4, 8, 16, 24, 32, 40, 48, 64),
    limit=200,
    transport="continuation",
)
FULL = replace(
    QUICK,
    profile="full",
    seeds=5,
    cost=Cost(machine="2 CPU cores (a GPU makes models this small no faster)", minutes=25, memory_gb=2),
    tuning=2000,
    test=5000,
    controls=800,
    visited=800,
    timed=60,
    served=100,
)
PAPER = replace(
    FULL,
    profile="paper",
    seeds=3,
    cost=Cost(
        machine="two H200 (arithmetic: 12,500 questions, some 13,000 tokens of a 7B and 2,600 of a 32B model each)",
        minutes=4000,
        memory_gb=64,
        gpu_memory_gb=140,
        disk_gb=85,
        downloads=(
            Download("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 65.5),
            Download("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 15.2),
            Download("EleutherAI/hendrycks_math", 0.01),
        ),
    ),
    mentor="hf:deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    intern="hf:deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    peer=None,
    interns=None,
    worlds=(),
    questions="EleutherAI/hendrycks_math",
    tuning=7500,
    test=5000,
    controls=5000,
    budgets=(100, 500, 1000),
    forced=(500, 1000, 2000),
    lengths=(50, 100, 200, 300, 500, 1000),
    limit=4096,
    transport="prompt",
    kind="dropout-mlp",
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


# Questions


@dataclass(frozen=True)
class ChainFormat(Format):
    """How the tiny models are written to (:mod:`zfu_lib.data.worlds.problem`); ``brief``: without the backward search
    in the first goal."""

    brief: bool = False

    def mentor(self, question: Question) -> Prompt:
        return Prompt(world.frame(question.text, "brief insights" if self.brief else "insights"))

    def alone(self, question: Question) -> Prompt:
        return Prompt(world.frame(question.text, "brief" if self.brief else "think"))

    def force(self, question: Question, thinking: str) -> Prompt:
        return self.alone(question)._replace(prefill=f"{thinking.rstrip()}\nAnswer :")

    def intern(self, question: Question, insight: str, transport: Transport) -> Prompt:
        if insight and transport == "prompt":
            return Prompt(world.aided(question.text, insight))
        if insight and transport == "hint":
            return Prompt(world.frame(question.text, hint=insight))
        return Prompt(world.frame(question.text), prefill=insight)

    def read(self, question: Question, insight: str) -> ScoreRequest:
        start = world.frame(question.text)
        return ScoreRequest(start, insight) if insight else ScoreRequest("", start)

    def extract(self, text: str) -> str | None:
        return world.answer(text)

    def correct(self, question: Question, text: str) -> bool:
        return self.extract(text) == question.gold

    def leaks(self, question: Question, insight: str) -> bool:
        """Is the asked name's value in the insight? (The same number elsewhere gives nothing away.)"""
        asked = question.text.rsplit(" ; ", 1)[-1].split(" ")[0]
        return re.search(rf"\b{asked} = (?:[^;\n]*= )?{re.escape(question.gold)}(?= ;|\n|$)", insight) is not None


def chain_questions(n: int, seed: int) -> list[Question]:
    """``n`` different ChainCalc questions."""
    drawn = recipes.problems(n, recipes.HELD_OUT + seed)
    return [Question(f"{seed}-{i}", p.question, p.answer) for i, p in enumerate(drawn)]


def math_questions(source: str, split: str, n: int, seed: int = 0) -> list[Question]:
    """At most ``n`` problems of MATH from the hub (or a folder in its layout), all subjects, in a drawn order.

    Raises:
        DataError: the data set cannot be loaded or has other columns.
    """
    from datasets import load_dataset

    from zfu_lib.reasoning.answers import extract

    found = []
    for subject in SUBJECTS:
        try:
            rows = load_dataset(source, subject, split=split)
            found += [
                Question(f"{split}-{subject}-{i}", row["problem"], extract(row["solution"]) or "")
                for i, row in enumerate(rows)
            ]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DataError(f"{source}, {subject}, {split} cannot be read ({error}); give the id or a copy") from None
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in order[:n]]


# Measurements over questions and seeds


@dataclass(frozen=True)
class Curve:
    """Points of one policy on the same questions: ``correct`` and ``cost`` ``[points, n]``."""

    name: str
    correct: np.ndarray
    cost: np.ndarray

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean cost and accuracy (percent), by rising cost."""
        order = np.argsort(self.cost.mean(1), kind="stable")
        return self.cost.mean(1)[order], 100 * self.correct.mean(1)[order]


def curve(name: str, outcomes: Sequence[Outcome], cost: routing.Cost = "paper") -> Curve:
    """The points of several outcomes."""
    return Curve(name, np.stack([o.correct for o in outcomes]), np.stack([o.cost(cost) for o in outcomes]))


def _heights(c: Curve, weight: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Accuracy at the costs ``grid`` where question i counts ``weight[i]``, points joined by straight lines."""
    x, y = c.cost @ weight, c.correct @ weight
    order = np.argsort(x, kind="stable")
    return np.interp(grid, x[order], y[order])


def _resampled(
    measure: Callable[[np.ndarray, Sequence[int]], Any], n: int, seeds: int, resamples: int, seed: int = 0
) -> tuple[Any, np.ndarray]:
    """``measure(weight of questions, seeds)`` as it is, and on resamples of questions and seeds."""
    rng = np.random.default_rng(seed)
    drawn = [
        measure(np.bincount(rng.integers(0, n, n), minlength=n) / n, rng.integers(0, seeds, seeds))
        for _ in range(resamples)
    ]
    return measure(np.full(n, 1 / n), range(seeds)), np.array(drawn)


def band(curves: Sequence[Curve], *, resamples: int = 200) -> dict[str, list[float]]:
    """``x`` (cost), ``y`` (percent right, mean over the curves), ``low`` and ``high`` of a policy, one curve per seed;
    bootstrap over questions and seeds. One point, or none in common, stays one point."""
    n = curves[0].cost.shape[1]
    low, high = max(c.points[0][0] for c in curves), min(c.points[0][-1] for c in curves)
    grid = np.unique(np.concatenate([c.points[0] for c in curves])) if len(curves) == 1 else np.linspace(low, high, 12)
    if not low < high:
        grid = np.array([np.mean([c.cost.mean() for c in curves])])

    def accuracy(weight: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return 100 * np.mean([_heights(curves[s], weight, grid) for s in seeds], 0)

    mean, drawn = _resampled(accuracy, n, len(curves), resamples)
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {"x": grid.tolist(), "y": mean.tolist(), "low": ends[0].tolist(), "high": ends[1].tolist()}


def equal_cost(ours: Sequence[Curve], theirs: Curve, *, resamples: int = 500, seed: int = 0) -> Interval | None:
    """Mean difference in accuracy (points) over the costs that both reach, points joined by straight lines.

    Args:
        ours: one curve per seed, all on the questions of ``theirs``.

    Returns:
        Bootstrap over questions and seeds; None where the two share no cost.
    """
    n = theirs.cost.shape[1]
    low = max(theirs.points[0][0], max(c.points[0][0] for c in ours))
    high = min(theirs.points[0][-1], min(c.points[0][-1] for c in ours))
    if not low < high:
        return None
    grid = np.linspace(low, high, 33)

    def difference(weight: np.ndarray, seeds: Sequence[int]) -> float:
        mine = np.mean([_heights(ours[s], weight, grid) for s in seeds], 0)
        return 100 * float((mine - _heights(theirs, weight, grid)).mean())

    mean, drawn = _resampled(difference, n, len(ours), resamples, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean, float(low), float(high), n, "bootstrap over questions and seeds", 2.8 * float(np.std(drawn)))


def ratio(a: np.ndarray, b: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Ratio of the means of ``a`` ``[seeds, n]`` and ``b`` ``[n]``; bootstrap over questions and seeds."""
    a, rng = np.atleast_2d(a), np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(0, len(b), len(b))
        drawn.append(a[rng.integers(0, len(a), len(a))][:, rows].mean() / b[rows].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(a.mean() / b.mean(), float(low), float(high), len(b), "bootstrap over questions and seeds")


# The chapter's runs


@dataclass(frozen=True)
class Tuned:
    """One seed: its classifier, the thresholds, and what they did on the test questions. ``scores`` ``[n, T + 1]``;
    ``others`` has the scores of classifiers that know less, by name; ``curve_points`` Tandem tuned for rising costs."""

    classifier: SufficiencyClassifier
    tau: np.ndarray
    scores: np.ndarray
    others: dict[str, np.ndarray]
    outcome: Outcome
    matched: Outcome
    curve_points: tuple[Outcome, ...]
    optimism: float
    split: Split = field(repr=False)


def tune(tuning: Table, test: Table, kind: str, seed: int, others: Sequence[str] = ()) -> Tuned:
    """Fits a classifier of a ``kind`` and chooses thresholds on one table, and replays them on another; ``others`` are
    classifiers that know less, by their names in :data:`OTHERS`."""
    split = split_by_question(tuning.qid, SHARES, seed)

    def classify(kind: str, change: Callable[[Table], np.ndarray]) -> Any:
        x = change(tuning)
        made = SufficiencyClassifier(kind, seed=seed)
        early = (x[split.early], tuning.correct[split.early])
        made.fit(x[split.fit], tuning.correct[split.fit], early if kind != "logistic" else None)
        return made, made.scores(change(test)), made.scores(x[split.threshold])

    classifier, scores, held = classify(kind, lambda t: t.features)
    part = tuning.take(split.threshold)
    found = routing.sweep(part, held)
    best = routing.choose(found)
    fixed_costs = [routing.fixed(part, k).cost("paper").mean() for k in (1, part.stages)]
    caps = np.linspace(fixed_costs[0], 1.02 * fixed_costs[1], 12)
    rows = dict.fromkeys(routing.choose(found, "cost-aware", cap=cap) for cap in caps)
    target = part.alone_correct.mean() - GAP / 100
    enough = np.flatnonzero(found.accuracy >= target)
    matched = enough[np.argmin(found.cost[enough])] if len(enough) else best
    outcome = routing.replay(test, scores, found.tau[best])
    own = routing.sweep(test, scores)
    return Tuned(
        classifier,
        found.tau[best],
        scores,
        {name: classify("logistic" if name == "logistic" else kind, OTHERS[name])[1] for name in others},
        outcome,
        routing.replay(test, scores, found.tau[matched]),
        tuple(routing.replay(test, scores, found.tau[row]) for row in rows),
        100 * float(own.accuracy.max() - outcome.accuracy),
        split,
    )


class Lab:
    """Mentor, intern and their table; classifiers and thresholds by seed; every measurement of the claims."""

    def __init__(self, profile: TandemProfile, *, cache: Any = True, device: str = "auto") -> None:
        self.profile = profile
        self.device = device
        self._load = lambda name: models.load(name, cache=cache, device=device)
        self.mentor, self.intern = self._load(profile.mentor), self._load(profile.intern)
        self.format: Format = ChainFormat() if profile.questions == "chaincalc" else ChatFormat()
        p = profile
        if p.questions == "chaincalc":
            self.tuning_questions, self.questions = chain_questions(p.tuning, 1), chain_questions(p.test, 2)
        else:
            self.tuning_questions = math_questions(p.questions, "train", p.tuning)
            self.questions = math_questions(p.questions, "test", p.test)
        self._tuned: dict[int, Tuned] = {}

    def collect(self, questions: Sequence[Question], budgets: Sequence[int], **options: Any) -> Table:
        """A table of these models (or of another ``intern``); ``options`` of
        :func:`zfu_lib.reasoning.tandem.collect`."""
        options = {"intern": self.intern, "format": self.format, "transport": self.profile.transport} | options
        limits = {"mentor_tokens": self.profile.limit, "intern_tokens": self.profile.limit, "force_tokens": 8}
        if self.profile.questions != "chaincalc":
            limits["force_tokens"] = 2048
        return collect(questions, self.mentor, budgets=budgets, **limits | options)

    @cached_property
    def tuning(self) -> Table:
        """The questions that classifiers and thresholds see."""
        return self.collect(self.tuning_questions, self.profile.budgets)

    @cached_property
    def test(self) -> Table:
        """The questions that nothing is tuned on."""
        return self.collect(self.questions, self.profile.budgets, force=self.profile.forced)

    @cached_property
    def peer(self) -> np.ndarray:
        """``[n]``: does the peer answer the test questions alone?"""
        p = self.profile
        starts = [self.format.alone(q) or self.format.mentor(q) for q in self.questions]
        asked = [GenRequest(x.prompt, x.prefill, p.limit, self.format.mentor_stop) for x in starts]
        told = zip(self.questions, starts, self._load(p.peer).generate(asked))
        return np.array([self.format.correct(q, start.prefill + result.text) for q, start, result in told], float)

    def tuned(self, seed: int) -> Tuned:
        """Fits and tunes one seed, once."""
        if seed not in self._tuned:
            others = ("question only", "lengths only", "logistic")
            self._tuned[seed] = tune(self.tuning, self.test, self.profile.kind, seed, others)
        return self._tuned[seed]

    @property
    def seeds(self) -> range:
        """Seeds of the classifiers."""
        return range(self.profile.seeds)

    def example(self) -> Question:
        """The first test question that the mentor answers alone and the intern does not (else the first of all)."""
        return self.questions[int(np.argmax(self.test.alone_correct & ~self.test.correct[:, 0]))]

    def alone(self) -> dict[str, Interval]:
        """Accuracy, percent, of both models alone, of the intern at each fixed level, and of the peer alone."""
        t = self.test
        rows = {"intern alone": t.correct[:, 0]}
        rows |= {f"level {k}, {b} mentor tokens": t.correct[:, k] for k, b in enumerate(self.profile.budgets, 1)}
        if self.profile.peer:
            rows["apprentice alone"] = self.peer
        return {name: points(right) for name, right in (rows | {"mentor alone": t.alone_correct}).items()}

    def gate(self) -> dict[str, Interval]:
        """What the claims require: skill over the commonest answer, the mentor's lead, and few answers for which the
        limit was too short (``cut_short``). ``truncated`` counts those as well that never end. Where there is a peer,
        the lead in two parts: what size makes (mentor minus peer) and what teaching makes (peer minus intern)."""
        t = self.test
        chance = np.array([q.gold == commonest(self.questions) for q in self.questions], float)
        cut = np.concatenate([t.truncated, t.alone_truncated[:, None]], 1).mean(1)
        parts = {}
        if self.profile.peer:
            parts = {"gap_of_size": t.alone_correct - self.peer, "gap_of_teaching": self.peer - t.correct[:, 0]}
        return {
            "skill_mentor": points(t.alone_correct - chance),
            "skill_intern": points(t.correct[:, 0] - chance),
            "gap_mentor_intern": points(t.alone_correct.astype(float) - t.correct[:, 0]),
            "truncated": points(cut),
            "cut_short": points(self.cut_short().mean(1)),
            **{name: points(part) for name, part in parts.items()},
        }

    def cut_short(self) -> np.ndarray:
        """``[n, T + 2]`` bool: answers of the intern at each stage, and of the mentor, that the limit cut and that end
        within twice the limit. A model that runs in circles is wrong at any limit."""
        t, p = self.test, self.profile
        cut = np.concatenate([t.truncated, t.alone_truncated[:, None]], 1)
        found = np.zeros(cut.shape, bool)
        for k in np.flatnonzero(cut.any(0)):
            rows = np.flatnonzero(cut[:, k])
            asked = [self.questions[i] for i in rows]
            if k > t.stages:
                model, stop = self.mentor, self.format.mentor_stop
                prompts = [self.format.alone(q) or self.format.mentor(q) for q in asked]
            else:
                model, stop = self.intern, self.format.intern_stop
                texts = self.insights(asked, p.budgets[k - 1]) if k else [""] * len(asked)
                prompts = [self.format.intern(q, text, p.transport) for q, text in zip(asked, texts)]
            longer = [GenRequest(x.prompt, x.prefill, 2 * p.limit, stop, thinking=x.thinking) for x in prompts]
            found[rows, k] = [result.finish == "stop" for result in model.generate(longer)]
        return found

    def outcomes(self) -> dict[str, Interval]:
        """Claims T1 to T4 and T13 without its control, and the oracle's room."""
        t, tuned = self.test, [self.tuned(s) for s in self.seeds]
        right = np.array([x.outcome.correct for x in tuned], float)
        matched = np.array([x.matched.correct for x in tuned], float)
        mentor = routing.single_mentor(t)
        levels, oracle = t.correct[:, 1:] @ slope_weights(t.stages), routing.oracle(t, allow_t0=False)
        best = max(range(1, t.stages + 1), key=lambda k: t.correct[:, k].mean())
        found = {
            "tandem_minus_mentor": points(right - t.alone_correct),
            "tandem_minus_intern": points(right - t.correct[:, 0]),
            "matched_minus_mentor": points(matched - t.alone_correct),
            "level_trend": points(levels),
            "first_level_minus_none": points(t.correct[:, 1].astype(float) - t.correct[:, 0]),
            "gain_medium_intern": points(t.correct[:, -1].astype(float) - t.correct[:, 0]),
            "oracle_minus_best_fixed": points(oracle.correct.astype(float) - t.correct[:, best]),
        }
        for name, law in (("cost_ratio_matched", "paper"), ("cost_ratio_matched_honest", "honest")):
            found[name] = ratio(np.array([x.matched.cost(law) for x in tuned]), mentor.cost(law))
        found["cost_ratio_tandem"] = ratio(np.array([x.outcome.cost("paper") for x in tuned]), mentor.cost("paper"))
        return found

    def curves(self, cost: routing.Cost = "paper") -> tuple[list[Curve], dict[str, Curve]]:
        """Accuracy against cost on the test questions: Tandem, one curve per seed, and its rivals by name."""
        t, first = self.test, self.tuned(0)
        rivals = {
            "fixed levels": curve("fixed levels", [routing.fixed(t, k) for k in range(1, t.stages + 1)], cost),
            "cascade": curve("cascade", [routing.cascade(t, first.scores[:, 0], tau) for tau in cuts(first)], cost),
            "budget forcing": curve(
                "budget forcing",
                [*(routing.budget_forcing(t, j) for j in range(len(t.forced_budgets))), routing.single_mentor(t)],
                cost,
            ),
        }
        return [curve("Tandem", self.tuned(s).curve_points, cost) for s in self.seeds], rivals

    def rivals(self) -> dict[str, Interval | None]:
        """Claims T5 and T6: Tandem minus a rival at equal cost, points; None where they share no cost."""
        ours, theirs = self.curves()
        names = {
            "tandem_minus_best_fixed_equal_cost": "fixed levels",
            "tandem_minus_cascade": "cascade",
            "tandem_minus_budget_forcing": "budget forcing",
        }
        return {name: equal_cost(ours, theirs[rival]) for name, rival in names.items()}

    def random_stop(self) -> Interval:
        """Tandem minus the same stages dealt out at random, points: what the classifier knows of single questions."""
        t = self.test
        pairs = [(self.tuned(s).outcome, s) for s in self.seeds]
        return points([o.correct.astype(float) - routing.random_stop(t, o.stage, s).correct for o, s in pairs])

    def classifier(self) -> dict[str, Interval | None]:
        """Claim T14: AUC within each stage, and over what needs no insight; bootstrap over questions and seeds. None
        at a stage with fewer than ``RARE`` right or wrong answers, which the differences leave out."""
        t, tuned = self.test, [self.tuned(s) for s in self.seeds]
        right = t.correct[:, 1:].sum(0)
        enough = np.minimum(right, len(t.qid) - right) >= RARE

        def within(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
            stages = zip(scores[rows, 1:].T, t.correct[rows, 1:].T, enough)
            return np.array([router_data.auc(s, y) if fine else np.nan for s, y, fine in stages])

        rng, n = np.random.default_rng(0), len(t.qid)
        names = [f"auc_stage_{k}" for k in range(1, t.stages + 1)]
        names += ["auc_minus_question_only", "auc_minus_length_only", "auc_minus_logistic"]

        def once(rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
            own = np.mean([within(tuned[s].scores, rows) for s in seeds], 0)
            others = [
                np.mean([within(tuned[s].others[other], rows) for s in seeds], 0)
                for other in ("question only", "lengths only", "logistic")
            ]
            return np.array([*own, *((own - other)[enough].sum() / enough.sum() for other in others)])

        if not enough.any():
            return dict.fromkeys(names)
        mean = once(np.arange(n), self.seeds)
        drawn = np.array([once(rng.integers(0, n, n), rng.integers(0, len(tuned), len(tuned))) for _ in range(200)])
        found: dict[str, Interval | None] = {}
        for name, value, column in zip(names, mean, drawn.T, strict=True):
            column = column[np.isfinite(column)]
            if not np.isfinite(value) or not len(column):
                found[name] = None
                continue
            low, high = np.quantile(column, [0.025, 0.975])
            found[name] = Interval(float(value), float(low), float(high), n, "bootstrap over questions and seeds")
        return found

    def calibration(self) -> dict[str, list[float]]:
        """By seed: mean distance of score and share sufficient over bins, weighted; and the Brier score, both of
        stages 1 to T."""
        rows = [(self.tuned(s).scores[:, 1:], self.test.correct[:, 1:]) for s in self.seeds]
        bins = [np.array(routing.reliability(*row)) for row in rows]
        return {
            "calibration_error": [float(np.average(abs(b[:, 0] - b[:, 1]), weights=b[:, 2])) for b in bins],
            "brier": [routing.brier(*row) for row in rows],
        }

    def reliability(self) -> list[tuple[float, float, int]]:
        """Mean score, share sufficient and number per bin, stages 1 to T, seeds pooled."""
        scores = np.concatenate([self.tuned(s).scores[:, 1:] for s in self.seeds])
        return routing.reliability(scores, np.concatenate([self.test.correct[:, 1:]] * self.profile.seeds))

    def savings(self) -> dict[str, Interval]:
        """Percent of the mentor's cost (the paper's law) that Tandem saves, split: what stopping the mentor at the last
        level saves anyway (``cap``), and what stopping earlier adds (``stopping``)."""
        t = self.test
        mentor, high = routing.single_mentor(t).cost("paper"), routing.fixed(t, t.stages).cost("paper")
        pair = np.array([self.tuned(s).outcome.cost("paper") for s in self.seeds])
        parts = {"total": mentor - pair, "cap": (mentor - high)[None], "stopping": high - pair}
        return {f"measured_saving_{name}": ratio(100 * part, mentor) for name, part in parts.items()}

    def by_length(self) -> dict[str, list[float]]:
        """Percent right of the intern against the length of the insight, from none to ``lengths``, with intervals."""
        t = self.collect(self.questions[: self.profile.controls], self.profile.lengths, measure=False)
        found = [points(t.correct[:, k]) for k in range(t.stages + 1)]
        ends = {end: [getattr(i, end) for i in found] for end in ("low", "high")}
        return {"x": [0, *self.profile.lengths], "y": [i.mean for i in found]} | ends

    def by_cap(self) -> dict[str, dict[str, list[float]]]:
        """Percent right if every answer had been cut at fewer tokens. Decoding is greedy, so an answer that is longer
        than the cap is the same answer, unfinished, and no model is asked again."""
        t, p = self.test, self.profile
        caps = [round(p.limit * share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)]
        rows = {
            "mentor alone": (t.alone_correct, t.alone_tokens),
            "intern, last level": (t.correct[:, -1], t.n_intern[:, -1]),
            "intern alone": (t.correct[:, 0], t.n_intern[:, 0]),
        }
        return {
            name: {"x": caps, "y": [100 * float((right & (n <= cap)).mean()) for cap in caps]}
            for name, (right, n) in rows.items()
        }

    def controls(self) -> dict[str, Interval]:
        """Claims T13 and T15: insights of another question, filler of the same length, and the same words without
        order, on the first ``controls`` test questions, paired."""
        p, m = self.profile, self.profile.controls
        asked, t = self.questions[:m], self.test.take(np.arange(m))
        first, last = p.budgets[0], p.budgets[-1]
        whole = self.insights(asked, last)
        others = {q.qid: whole[(i + 1) % m] for i, q in enumerate(asked)}

        def foreign(question: Question, insight: str) -> str:
            return self.mentor.truncate(others[question.qid], self.mentor.count(insight))

        right = {"foreign": self.collect(asked, (first, last), edit=foreign).correct}
        for name, edit in (("filler", self._filler), ("unstructured", unstructured)):
            right[name] = self.collect(asked, (last,), edit=edit).correct
        return {
            "first_level_minus_foreign": points(t.correct[:, 1].astype(float) - right["foreign"][:, 1]),
            "structure_minus_foreign": points(t.correct[:, -1].astype(float) - right["foreign"][:, 2]),
            "structure_minus_filler": points(t.correct[:, -1].astype(float) - right["filler"][:, 1]),
            "structure_minus_unstructured": points(t.correct[:, -1].astype(float) - right["unstructured"][:, 1]),
        }

    def leaks(self) -> dict[str, Interval]:
        """Share of the last insights that hold the answer, percent, and what the last level gains over no insight where
        they do not, points."""
        t = self.test
        clean = ~t.leak[:, -1]
        gain = t.correct[clean, -1].astype(float) - t.correct[clean, 0]
        return {"leak_share": points(t.leak[:, -1])} | ({"gain_without_leak": points(gain)} if clean.any() else {})

    def served(self) -> dict[str, Interval] | str:
        """Claim T10: the mentor behind a server (``transformers serve``) on this machine, which gives text only: on how
        many of the first ``served`` test questions its last insight, or the intern's answer to it, is another one than
        with the mentor in this process; and the gain over the intern alone. A sentence where there is no server."""
        p, asked = self.profile, self.questions[: self.profile.served]
        kind, _, place = p.mentor.partition(":")
        folder = tiny.path(place) if kind == "tiny" else Path(place).expanduser()
        if not folder.is_dir():
            return f"only a checkpoint in a folder is served here, not {p.mentor}"
        try:
            with serving(folder) as url:
                options = {"tokenizer": folder, "n_params": self.mentor.n_params, "context": self.mentor.context}
                texts = self.insights(asked, p.budgets[-1], models.load(url, cache=False, **options))
        except ModelError as error:
            return str(error)
        answers = []
        for given in (texts, self.insights(asked, p.budgets[-1])):
            prompts = [self.format.intern(q, text, p.transport) for q, text in zip(asked, given)]
            wanted = [GenRequest(x.prompt, x.prefill, p.limit, self.format.intern_stop) for x in prompts]
            told = zip(given, prompts, self.intern.generate(wanted))
            answers.append([(text, prompt.prefill + result.text) for text, prompt, result in told])
        right = [self.format.correct(q, text) for q, (_, text) in zip(asked, answers[0])]
        alone = self.test.correct[: len(asked), 0]
        return {
            "http_differences": exact(sum(a != b for a, b in zip(*answers))),
            "gain_http_mentor": points(np.array(right, float) - alone),
        }

    def insights(self, questions: Sequence[Question], budget: int, mentor: LanguageModel | None = None) -> list[str]:
        """What the mentor (or another one) writes within a budget."""
        stop = (*self.format.insight_end, *self.format.mentor_stop)
        prompts = [self.format.mentor(q) for q in questions]
        requests = [GenRequest(p.prompt, p.prefill, budget, stop, thinking=p.thinking) for p in prompts]
        return [result.text for result in (mentor or self.mentor).generate(requests)]

    def _filler(self, question: Question, insight: str) -> str:
        word = " ;" if self.profile.questions == "chaincalc" else " ..."
        return word.strip() + word * (self.mentor.count(insight) - 1)

    def transports(self) -> dict[str, Interval]:
        """Accuracy, percent, of the last level by each transport on the first ``controls`` test questions."""
        m, own = self.profile.controls, self.profile.transport
        found = {own: points(self.test.correct[:m, -1])}
        for transport in TRANSPORTS:
            if transport != own:
                options = {"transport": transport, "measure": False}
                table = self.collect(self.questions[:m], self.profile.budgets[-1:], **options)
                found[transport] = points(table.correct[:, -1])
        return {transport: found[transport] for transport in TRANSPORTS}

    def description(self) -> str:
        """Which models, how large, and how many questions."""
        p = self.profile
        return (
            f"Mentor {self.mentor.name} with {self.mentor.n_params:,} parameters (embeddings not counted), intern "
            f"{self.intern.name} with {self.intern.n_params:,}. {p.tuning} questions to fit and tune on, "
            f"{p.test} to test on; budgets of {', '.join(map(str, p.budgets))} mentor tokens; {p.seeds} seeds of the "
            "classifier."
        )

    def omitted(self) -> dict[str, str]:
        """Measurements of the claims that this test bed cannot make, with the reason."""
        calculator = "no intern was trained on more arithmetic than its mentor"
        if self.profile.questions == "chaincalc":
            right, n = self.operations()
            calculator += f": of the {n} single operations the mentor does {right} right"
        calculated = ("step_advantage", "tandem_minus_mentor", "tandem_minus_plain")
        names = dict.fromkeys((*(f"calculator_{x}" for x in calculated), "gap_mentor_calculator"), calculator)
        no_other = "no mentor of another family: two trainings of one of Qwen2's layout did not get ahead of the intern"
        names |= dict.fromkeys(("gap_cross_family", "gain_cross_family"), no_other)
        if self.profile.interns is None:
            sizes = "interns of three sizes are not part of this profile"
            names |= dict.fromkeys(("gain_medium_minus_small", "gain_medium_minus_large"), sizes)
        names["humaneval_tandem_minus_fixed"] = "HumanEval is not part of this run"
        return names

    def operations(self) -> tuple[int, int]:
        """How many single operations the mentor does right, and how many there are: the room for claim T1b."""
        values = range(recipes.MODULUS)
        every = itertools.product(values, chaincalc.OPERATIONS, values[1:])
        asked = [recipes.operation(chaincalc.NAMES[0], a, sign, b) for a, sign, b in every]
        told = self.mentor.generate([GenRequest(read, max_tokens=2) for read, _ in asked])
        return sum(r.text.split()[:1] == gold.split() for r, (_, gold) in zip(told, asked)), len(asked)

    def brief(self) -> dict[str, Interval]:
        """Claim T11: a mentor that writes no search, stopped at the last level (no classifier is trained for it)."""
        m, last = self.profile.controls, self.profile.budgets[-1]
        t = self.collect(self.questions[:m], (last,), format=ChainFormat(brief=True), measure=False)
        high, mentor = routing.fixed(t, 1), routing.single_mentor(t)
        alone = t.correct[:, 0].astype(float)
        return {
            "gap_nonthinking_mentor_intern": points(t.alone_correct - alone),
            "nonthinking_minus_intern": points(high.correct - alone),
            "nonthinking_minus_mentor": points(high.correct.astype(float) - t.alone_correct),
            "nonthinking_cost_ratio": ratio(high.cost("paper"), mentor.cost("paper")),
        }

    @cached_property
    def by_size(self) -> dict[str, Table]:
        """The last level for interns of three sizes, smallest first, on the first ``controls`` test questions."""
        small, large = self.profile.interns
        interns = {"small": self._load(small), "medium": self.intern, "large": self._load(large)}
        asked, last = self.questions[: self.profile.controls], self.profile.budgets[-1:]
        return {size: self.collect(asked, last, intern=intern, measure=False) for size, intern in interns.items()}

    def sizes(self) -> dict[str, Interval]:
        """Claim T9: what the medium intern gains at the last level minus what a smaller and a larger one gain."""
        if self.profile.interns is None:
            return {}
        gain = {size: t.correct[:, 1].astype(float) - t.correct[:, 0] for size, t in self.by_size.items()}
        return {f"gain_medium_minus_{size}": points(gain["medium"] - gain[size]) for size in ("small", "large")}

    def size_table(self) -> dict[str, tuple[Any, ...]]:
        """Parameters, percent right alone and at the last level, and the share of the gap to the mentor that closes."""
        rows = {}
        for size, t in self.by_size.items():
            alone, aided, mentor = t.correct[:, 0].mean(), t.correct[:, 1].mean(), t.alone_correct.mean()
            closed = f"{(aided - alone) / (mentor - alone):.0%}" if mentor > alone else "no gap"
            rows[size] = (f"{t.theta_intern:,.0f}", f"{100 * alone:.1f}", f"{100 * aided:.1f}", closed)
        return rows

    def latency(self) -> Interval:
        """Claim T12: seconds of Tandem over the mentor's alone, question after question with nothing cached, by the
        thresholds of the first seed; measuring and classifying are in it."""
        p, tuned = self.profile, self.tuned(0)
        mentor, intern = (models.load(name, cache=False, device=self.device) for name in (p.mentor, p.intern))
        seconds = []
        for question in self.questions[: p.timed]:
            begun = time.perf_counter()
            tandem(
                question,
                mentor,
                intern,
                tuned.classifier,
                tuned.tau,
                p.budgets,
                p.transport,
                format=self.format,
                intern_tokens=p.limit,
            )
            between = time.perf_counter()
            start = self.format.alone(question) or self.format.mentor(question)
            mentor.generate([GenRequest(start.prompt, start.prefill, p.limit, self.format.mentor_stop)])
            seconds.append((between - begun, time.perf_counter() - between))
        return ratio(*np.array(seconds).T)

    def smallest_effect(self) -> float:
        """Points that the test questions show at 15% discordance (McNemar, 80% power)."""
        return detectable(len(self.questions), 0.15)


def points(values: Any) -> Interval:
    """Percent or points: mean over questions, of an array ``[n]`` or ``[seeds, n]``."""
    return crossed(100 * np.asarray(values, float))


def half_length(found: dict[str, list[float]]) -> float:
    """The first length of :meth:`Lab.by_length` at which half of the highest gain over no insight is there."""
    gain = np.array(found["y"]) - found["y"][0]
    return found["x"][int(np.argmax(2 * gain >= gain.max()))]


def slope_weights(stages: int) -> np.ndarray:
    """Weights that turn the values at levels 1 ... T into their least-squares slope per level."""
    x = np.arange(stages) - (stages - 1) / 2
    return x / (x @ x)


def cuts(tuned: Tuned) -> np.ndarray:
    """Thresholds of a cascade that send every twelfth of the questions more to the mentor."""
    s = tuned.scores[:, 0]
    return np.array([-np.inf, *np.quantile(s, np.linspace(1 / 12, 11 / 12, 11)), np.inf])


def lengths(table: Table) -> np.ndarray:
    """What can be known without reading: tokens of question and insight, and the stage (told to every classifier)."""
    question = np.broadcast_to(table.n_score[:, :1], table.n_mentor.shape)
    return np.stack([question, table.n_mentor], -1).astype(float)


OTHERS: dict[str, Callable[[Table], np.ndarray]] = {
    "question only": lambda t: routing.question_only(t.features),
    "lengths only": lengths,
    "stage only": lambda t: np.zeros((*t.correct.shape, 1)),
    "logistic": lambda t: t.features,
}
"""What a classifier may know instead of all features; the last knows them and is a logistic regression."""


def commonest(questions: Sequence[Question]) -> str:
    """The answer that most questions have."""
    answers = [q.gold for q in questions]
    return max(sorted(set(answers)), key=answers.count)


def unstructured(question: Question, insight: str) -> str:
    """The words of an insight without headings and line breaks, in another order (drawn by the question's text)."""
    words = [w for w in insight.split() if w not in (*world.HEADINGS, ":")]
    order = np.random.default_rng(zlib.crc32(question.text.encode())).permutation(len(words))
    return " ".join(words[i] for i in order)


# Recorded outcomes, and programs


def recorded() -> tuple[dict[str, router_data.Routing], Interval] | str:
    """RouteLLM's recorded answers of two real models to GSM8K, routed by scores that read the text alone: every arm,
    and APGR of the best router minus that of question length. A sentence where the data set is not at hand; nothing is
    downloaded."""
    if set(catalogue.verify("routellm_gsm8k").values()) != {State.OK}:
        return "The recorded outcomes are not on this machine (data set routellm_gsm8k), so no router is measured."
    found = router_data.load()
    routings, difference = router_data.measure(found, router_data.arms(found))
    return routings, difference("router", "length")


def recorded_data() -> Sequence[Any]:
    """What :func:`recorded` reads, for the record of a run."""
    return catalogue.used("routellm_gsm8k")


PROGRAMS = {
    "right": "def double(x):\n    return 2 * x",
    "wrong": "def double(x):\n    return x",
    "prints what a pass prints": "print('passed')\nimport os\nos._exit(0)",
    "reads a file outside": "SECRET = open('/etc/passwd').read()\ndef double(x):\n    return 2 * x",
    "connects to the network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "starts a process": "import os\nos.fork()\ndef double(x):\n    return 2 * x",
    "never ends": "def double(x):\n    while True:\n        pass",
}
"""Programs as a model might write them, good and bad."""


def sandboxed() -> dict[str, str] | str:
    """What the sandbox says of :data:`PROGRAMS`; a sentence where this machine cannot isolate a program."""
    if why := sandbox.unavailable():
        return f"No program is run here: {why}"
    limits = sandbox.Limits(seconds=3)
    found = {
        name: sandbox.run(program, "assert double(3) == 6", ["double"], limits=limits)
        for name, program in PROGRAMS.items()
    }
    return {
        name: f"{result.status}: {result.reason.splitlines()[-1]}" if result.reason else result.status
        for name, result in found.items()
    }
