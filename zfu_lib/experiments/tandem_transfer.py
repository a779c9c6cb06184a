"""Claims T7 and T7b of the Tandem chapter: does a classifier fitted on ChainCalc, with its thresholds, serve in a world
that it has never seen?

The chapter's pair knows ChainCalc alone, so a second pair (:mod:`zfu_lib.lm.recipes.transfer`) is asked: the same two
models, the intern with one layer more, taught StackProg and ChronoFacts as well. Classifier and thresholds see
ChainCalc questions only. One fitted in the new world itself, on as many questions, tells what the journey costs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zfu_lib.experiments import router_data
from zfu_lib.experiments.tandem import ChainFormat, Lab, TandemProfile, Tuned, curve, equal_cost, points, tune
from zfu_lib.lm.recipes import reasoning, transfer
from zfu_lib.reasoning import routing
from zfu_lib.reasoning.insights import Question
from zfu_lib.reasoning.routing import Table
from zfu_lib.report.statistics import Interval

HOME = "chaincalc"
NAMES = {"chaincalc": "ChainCalc", "stackprog": "StackProg", "chronofacts": "ChronoFacts"}
RESAMPLES = 200


class WorldFormat(ChainFormat):
    """The same texts in any world."""

    def leaks(self, question: Question, insight: str) -> bool:
        """Does some part of the insight end in the answer?"""
        return re.search(rf" {re.escape(question.gold)}(?= ;|\n|$)", insight) is not None


class Transfer:
    """The second pair, its tables by world, and what of a classifier survives the journey."""

    def __init__(self, profile: TandemProfile, *, cache: Any = True, device: str = "auto") -> None:
        mentor, intern = profile.travellers
        self.lab = Lab(replace(profile, mentor=mentor, intern=intern, peer=None), cache=cache, device=device)
        self.lab.format = WorldFormat()
        self.profile = self.lab.profile
        self._tables: dict[tuple[str, str], Table] = {}
        self._tuned: dict[tuple[str, str, int], Tuned] = {}

    def table(self, world: str, part: str) -> Table:
        """Questions of a world that classifiers are fitted on (``tuning``) or that nothing is (``test``)."""
        if (world, part) not in self._tables:
            seed = reasoning.HELD_OUT + 10 + (part == "test")
            drawn = transfer.problems(world, self.profile.visited, seed)
            questions = [Question(f"{world}-{part}-{i}", p.question, p.answer) for i, p in enumerate(drawn)]
            self._tables[world, part] = self.lab.collect(questions, self.profile.budgets)
        return self._tables[world, part]

    def tuned(self, origin: str, world: str, seed: int) -> Tuned:
        """Classifier and thresholds of one world, replayed in another (or the same)."""
        if (origin, world, seed) not in self._tuned:
            tables = self.table(origin, "tuning"), self.table(world, "test")
            others = ("stage only",) if origin != world else ()
            self._tuned[origin, world, seed] = tune(*tables, self.profile.kind, seed, others)
        return self._tuned[origin, world, seed]

    def alone(self, world: str) -> dict[str, Interval]:
        """Percent right: the intern alone and at each level, and the mentor alone."""
        t = self.table(world, "test")
        rows = {"intern alone": t.correct[:, 0]}
        rows |= {f"level {k}": t.correct[:, k] for k in range(1, t.stages + 1)}
        return {name: points(right) for name, right in (rows | {"mentor alone": t.alone_correct}).items()}

    def measure(self, world: str) -> dict[str, Interval | None]:
        """Gap and gain in the world; AUC over all stages of the classifier from ChainCalc, minus one that knows the
        stage alone, and minus one of this world; Tandem minus fixed levels at equal cost, and minus the same stages
        dealt out at random. None where it is undefined."""
        t = self.table(world, "test")
        away = [self.tuned(HOME, world, s) for s in self.lab.seeds]
        local = [self.tuned(world, world, s) for s in self.lab.seeds]
        fixed = curve("fixed levels", [routing.fixed(t, k) for k in range(1, t.stages + 1)])
        stage_only, own = [x.others["stage only"] for x in away], [x.scores for x in away]
        random = [
            x.outcome.correct.astype(float) - routing.random_stop(t, x.outcome.stage, s).correct
            for s, x in zip(self.lab.seeds, away)
        ]
        found = {
            "gap": points(t.alone_correct.astype(float) - t.correct[:, 0]),
            "level_gain": points(t.correct[:, -1].astype(float) - t.correct[:, 0]),
            "auc_transfer": auc(t, own),
            "auc_local": auc(t, [x.scores for x in local]),
            "auc_lost": auc(t, [x.scores for x in local], own),
            "transfer_minus_fixed": equal_cost([curve("Tandem", x.curve_points) for x in away], fixed),
            "transfer_minus_random": points(random),
            "leak_share": points(t.leak[:, -1]),
        }
        named = {f"{name}_{world}": interval for name, interval in found.items()}
        return named | {f"auc_transfer_{world}_over_stage_only": auc(t, own, stage_only)}


def auc(table: Table, scores: Sequence[np.ndarray], minus: Sequence[np.ndarray] = ()) -> Interval | None:
    """AUC of sufficiency over stages 1 to T together, less that of ``minus``, mean over seeds; bootstrap over questions
    and seeds. None if all insights suffice, or none does."""
    right = table.correct[:, 1:]
    if right.all() or not right.any():
        return None

    def once(rows: np.ndarray, seeds: Sequence[int]) -> float:
        def mean(of: Sequence[np.ndarray]) -> float:
            return float(np.mean([router_data.auc(of[s][rows, 1:].ravel(), right[rows].ravel()) for s in seeds]))

        return mean(scores) - (mean(minus) if minus else 0.0)

    rng, n = np.random.default_rng(0), len(right)
    drawn = [once(rng.integers(0, n, n), rng.integers(0, len(scores), len(scores))) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    mean = once(np.arange(n), range(len(scores)))
    return Interval(mean, float(low), float(high), n, "bootstrap over questions and seeds")
