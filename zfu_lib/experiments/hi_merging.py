"""Experiments of the Hi-Merging chapter (arXiv 2506.12379).

A :class:`Lab` fine-tunes experts from one base, once per task and seed, and scores any mapping of tensors on a task. A
:class:`Trial` is one pair of experts of one seed: every way to merge it, each tuned on calibration questions with the
same number of evaluations, and judged on test questions. Scores are percentages; an *evaluation* is the score of one
task for one model.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor

from zfu_lib.data.bilingual import Split
from zfu_lib.experiments.merging_bench import SOURCES, Kind, lessons, tensors_of
from zfu_lib.lm.train import TrainConfig, train
from zfu_lib.merging import hi_merging as hi
from zfu_lib.merging import low_rank, methods
from zfu_lib.merging.methods import Tensors
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.statistics import over_seeds


@dataclass(frozen=True)
class HiMergingProfile(Profile):
    """What the chapter fine-tunes and measures.

    ``source`` names the questions, ``model`` the base. Experts take ``steps`` of ``batch`` texts; ``small`` is the
    share of them that the experts of claim H8 see. ``calibration`` questions choose, all test questions of a task (at
    most ``test``) judge. ``ps`` and ``ss`` are what stage 1 tries. ``pairs`` are merged with each of the tuned
    ``methods`` (none named: all), ``lora`` of them once more with low-rank experts; ``studied`` ones are merged in
    every reading, with contributions measured anew, from experts with less data, and held against fine-tuning on both
    tasks. ``draws`` random labellings are averaged. ``others`` are further bases (claim H9).
    """

    source: str
    model: str
    steps: int
    batch: int
    learning_rate: float
    lora_rank: int
    lora_learning_rate: float
    small: float
    calibration: int
    test: int
    ps: tuple[float, ...]
    ss: tuple[float, ...]
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    lora: tuple[str, ...]
    studied: tuple[str, ...]
    draws: int
    others: tuple[str, ...] = ()


QUICK = HiMergingProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=3,
    source="bilingual",
    model="bilingual",
    steps=100,
    batch=36,
    learning_rate=3e-3,
    lora_rank=8,
    lora_learning_rate=1e-2,
    small=0.2,
    calibration=64,
    test=342,
    ps=(1.0, 0.5, 0.1),
    ss=(1.0, 0.7, 0.4),
    pairs=("two languages", "two kinds"),
    methods=(
        "task arithmetic",
        "task arithmetic, two factors",
        "TIES",
        "DARE",
        "DELLA",
        "Breadcrumbs",
        "SLERP",
        "layer swapping",
        "greedy per block",
    ),
    lora=("two languages",),
    studied=("two languages",),
    draws=4,
)

TENTHS = hi.GRID
FULL = replace(
    QUICK,
    profile="full",
    seeds=5,
    cost=Cost(machine="one GPU with 24 GB", minutes=25, memory_gb=8, gpu_memory_gb=8),
    model="bilingual-large",
    steps=300,
    learning_rate=5e-4,
    lora_learning_rate=2e-3,
    calibration=320,
    ps=TENTHS,
    ss=TENTHS,
    pairs=("two languages", "two kinds", "both"),
    methods=(),
    lora=("two languages", "two kinds", "both"),
    studied=("two languages", "two kinds", "both"),
    draws=16,
    others=("bilingual-deep",),
)
# Set-up of the public code: rank 8, rate 1e-4, batches of 8, three epochs of at most 10,000 samples.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200 and 400 GB of memory: 3 seeds x 4 experts, 434 evaluations a pair and method (arithmetic)",
        minutes=60_000,
        memory_gb=400,
        gpu_memory_gb=80,
        disk_gb=5,
        downloads=(
            Download("Qwen/Qwen2-7B-Instruct", 15.2),
            Download("GBaker/MedQA-USMLE-4-options", 0.02),
            Download("fzkuji/CMExam", 0.1),
            Download("lavita/ChatDoctor-HealthCareMagic-100k", 0.15),
            Download("wangrongsheng/cMedQA-V2.0", 0.1),
        ),
    ),
    seeds=3,
    source="medical",
    model="Qwen/Qwen2-7B-Instruct",
    steps=3750,
    batch=8,
    lora_learning_rate=1e-4,
    calibration=500,
    test=4000,
    lora=(),
    studied=("two languages",),
    others=(),
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile: this is what changes there, and the run says so.
FULL_ON_CPU = {
    "model": "bilingual",
    "steps": QUICK.steps,
    "learning_rate": QUICK.learning_rate,
    "lora_learning_rate": QUICK.lora_learning_rate,
    "calibration": 160,
    "ps": QUICK.ps,
    "ss": QUICK.ss,
    "lora": QUICK.lora,
    "studied": QUICK.studied,
}

QUESTIONS = 10_000
"""The seed that draws calibration and test questions."""


class Lab:
    """Fine-tunes experts on demand, once per task, seed and kind, and scores weights.

    All experts start from one base. The seed draws an expert's training questions; calibration and test questions are
    the same for all seeds, about people that no expert was trained on. Intervals are over seeds, given that base and
    those questions.
    """

    def __init__(self, profile: HiMergingProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.asked = profile
        self.source = SOURCES[profile.source](self.profile.model, self.device, self.profile.calibration)
        self.base = tensors_of(self.source.model)
        self._experts: dict[tuple, Tensors] = {}
        self._choices: dict[tuple, hi.Choice] = {}
        self._batches: dict[tuple, Any] = {}

    def description(self) -> str:
        """What is merged."""
        p, model = self.profile, self.source.model
        millions = sum(x.size for x in self.base.values()) / 1e6
        text = (
            f"Base here: {p.model} ({type(model).__name__}), {len(hi.blocks(self.base))} blocks, {millions:.2f}M "
            f"parameters; experts of {p.steps} steps of {p.batch} texts; {p.calibration} calibration questions a task; "
            f"{p.seeds} seeds, on {self.device}."
        )
        if p != self.asked:
            asked = self.asked
            text += (
                f" Scaled down for a CPU: the profile asks for the base {asked.model}, {asked.steps} steps, "
                f"{asked.calibration} calibration questions and a grid of {len(asked.ps)} by {len(asked.ss)} (here "
                f"{len(p.ps)} by {len(p.ss)}); low-rank experts and the closer studies are made for fewer pairs."
            )
        return text

    def expert(self, tasks: str | tuple[str, ...], seed: int, kind: Kind | None = None, share: float = 1.0) -> Tensors:
        """The base fine-tuned on a task, or on the questions of several, shuffled.

        Args:
            kind: ``full`` changes all weights, ``lora`` low-rank parts of the matrices in the blocks; None is what the
                source has (the paper's experts are ``lora``).
            share: of the texts, and so of the steps.
        """
        kind = kind or self.source.kind
        tasks = (tasks,) if isinstance(tasks, str) else tasks
        key = (tasks, seed, kind, share)
        if key not in self._experts:
            p = self.profile
            steps = max(2, round(p.steps * share)) * len(tasks)
            texts = [text for task in tasks for text in self.source.lessons(task, steps * p.batch // len(tasks), seed)]
            order = np.random.default_rng((seed, 19)).permutation(len(texts))
            self._experts[key] = self._tuned([texts[i] for i in order], steps, seed, kind)
        return self._experts[key]

    def _tuned(self, texts: Sequence[tuple[str, str]], steps: int, seed: int, kind: Kind) -> Tensors:
        p, model = self.profile, copy.deepcopy(self.source.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = low_rank.add_low_rank(model, p.lora_rank, 2 * p.lora_rank) if kind == "lora" else []
        config = TrainConfig(
            steps,
            p.batch,
            seq_len=4096,
            lr=p.lora_learning_rate if kind == "lora" else p.learning_rate,
            warmup=max(1, steps // 10),
            weight_decay=0.0,
            seed=seed,
            dtype="auto",
        )

        def batch(step: int) -> tuple[Tensor, Tensor]:
            return lessons(texts[step * p.batch : (step + 1) * p.batch], self.source.tokenizer)

        log = train(model, batch, config, device=self.device)
        if log.diverged:
            raise ValueError(f"fine-tuning diverged at step {len(log.loss)}; a lower learning rate may help")
        low_rank.fold(adapted)
        return tensors_of(model)

    def answers(self, task: str, tensors: Tensors, split: Split = "test") -> np.ndarray:
        """Share of each answer that is right, [questions]; the questions of a split are the same in every call."""
        p = self.profile
        if (task, split) not in self._batches:
            n = p.calibration if split == "calibration" else None
            items = self.source.questions(task, split, n, QUESTIONS)
            self._batches[task, split] = self.source.prepared(items[: p.test] if split == "test" else items)
        return self.source.answers(tensors, self._batches[task, split])

    def score(self, task: str, tensors: Tensors, split: Split = "test") -> float:
        """Percentage of right answers."""
        return 100 * float(self.answers(task, tensors, split).mean())

    def half(self, task: str) -> np.ndarray:
        """Which half of the calibration questions each is in, 0 or 1: questions about one person are together."""
        items = self.source.questions(task, "calibration", self.profile.calibration, QUESTIONS)
        about = [self.source.about(item) for item in items]
        place = {name: i % 2 for i, name in enumerate(dict.fromkeys(about))}
        return np.array([place[name] for name in about])

    def choice(
        self, task: str, seed: int, kind: Kind | None = None, share: float = 1.0, scope: methods.Scope = "tensor"
    ) -> hi.Choice:
        """Stage 1 for an expert, on calibration questions."""
        key = (task, seed, kind, share, scope)
        if key not in self._choices:
            p, delta = self.profile, methods.deltas(self.base, self.expert(task, seed, kind, share))
            own = functools.partial(self.score, task, split="calibration")
            self._choices[key] = hi.model_wise(self.base, delta, own, p.ps, p.ss, scope)
        return self._choices[key]


# Merging a pair.


class Arm(NamedTuple):
    """A merged model: its test scores on the two tasks, its mean score on calibration questions (NaN where nothing was
    chosen), and how many evaluations chose it."""

    scores: tuple[float, float]
    calibration: float
    evaluations: int

    @property
    def mean(self) -> float:
        """Mean test score of the two tasks."""
        return sum(self.scores) / 2


class Hi(NamedTuple):
    """A model that Hi-Merging made: the deltas it sums, each with ``weight``; choices of stage 1, contributions and
    decisions of stage 2."""

    model: Tensors
    deltas: list[Tensors]
    choices: list[hi.Choice]
    weight: float
    table: hi.Table | None
    decisions: list[hi.Decision]


WEIGHTS = (1.0, 0.5)
"""What the released script has had as the weight of each of two experts, first and later."""
DENSITIES = (0.2, 0.4, 0.6, 0.8)
LONGEST = 1.5
"""Methods that end in a factor try factors up to this."""


class Trial:
    """Two experts of one seed, merged in every way.

    ``budget`` is the number of evaluations that Hi-Merging takes; every tuned method gets as many.
    """

    def __init__(self, lab: Lab, pair: str, seed: int, kind: Kind | None = None, share: float = 1.0) -> None:
        self.lab, self.tasks, self.seed = lab, lab.source.pairs[pair], seed
        self.kind, self.share = kind, share
        self.base, self.blocks = lab.base, hi.blocks(lab.base)
        self.experts = [lab.expert(task, seed, kind, share) for task in self.tasks]
        self.deltas = [methods.deltas(self.base, expert) for expert in self.experts]
        p = lab.profile
        self.budget = 2 * len(p.ps) * len(p.ss) + 2 * len(WEIGHTS) + 8 * len(self.blocks) + 6
        self._tables: dict[tuple, hi.Table] = {}

    def score(self, m: int, model: Tensors) -> float:
        """Of task m on its calibration questions: one evaluation."""
        return self.lab.score(self.tasks[m], model, "calibration")

    def calibrated(self, model: Tensors) -> float:
        """Mean of both tasks on calibration questions: two evaluations."""
        return (self.score(0, model) + self.score(1, model)) / 2

    def judged(self, model: Tensors, calibration: float = math.nan, evaluations: int = 0) -> Arm:
        """A model on the test questions of both tasks."""
        return Arm(tuple(self.lab.score(task, model) for task in self.tasks), calibration, evaluations)

    def summed(self, D: Sequence[Tensors], weight: float, consensus: methods.Consensus = "none") -> Tensors:
        """The base with both deltas, each times ``weight``."""
        return methods.add_deltas(self.base, D, [weight] * len(D), consensus)

    def weight(self, D: Sequence[Tensors], consensus: methods.Consensus = "none") -> float:
        """The better of :data:`WEIGHTS` on calibration questions; of equal ones the first."""
        return max(WEIGHTS, key=lambda w: self.calibrated(self.summed(D, w, consensus)))

    # Hi-Merging, its parts and its readings.

    def stage_one(self, scope: methods.Scope = "tensor") -> tuple[list[Tensors], list[hi.Choice]]:
        """Deltas after stage 1, and what it chose."""
        choices = [self.lab.choice(task, self.seed, self.kind, self.share, scope) for task in self.tasks]
        return [methods.prune_and_scale(d, c.p, c.s, scope) for d, c in zip(self.deltas, choices)], choices

    def hi_merging(
        self,
        stages: tuple[int, ...] = (1, 2),
        *,
        scope: methods.Scope = "tensor",
        consensus: methods.Consensus = "none",
        partial: hi.Partial = "dominant",
        again: hi.Again = "current",
        survivor: hi.Survivor = "weighted",
        weight: float | None = None,
    ) -> Hi:
        """Hi-Merging in a reading of :mod:`zfu_lib.merging.hi_merging`, or one of its stages alone.

        Args:
            weight: of both experts in the sum; None chooses one (:meth:`weight`).
        """
        D, choices = self.stage_one(scope) if 1 in stages else (self.deltas, [hi.Choice(1.0, 1.0, np.ones((1, 1)))] * 2)
        w = self.weight(D, consensus) if weight is None else weight
        if 2 not in stages:
            return Hi(self.summed(D, w, consensus), D, choices, w, None, [])
        key = (1 in stages, scope, consensus, w)
        if key not in self._tables:
            self._tables[key] = hi.analyse(self.base, D, self.score, [w, w], consensus)
        table = self._tables[key]
        decisions = [hi.decide(table, table.blocks[k], partial) for k in table.order]
        lone = [w, w] if survivor == "whole" else None
        D = self.settled(D, choices, decisions, self.deltas if again == "raw" else None, scope, lone)
        return Hi(self.summed(D, w, consensus), D, choices, w, table, decisions)

    @staticmethod
    def settled(
        D: Sequence[Tensors],
        choices: Sequence[hi.Choice],
        decisions: Sequence[hi.Decision],
        source: Sequence[Tensors] | None = None,
        scope: methods.Scope = "tensor",
        weights: Sequence[float] | None = None,
    ) -> list[Tensors]:
        """Deltas after all decisions."""
        for decision in decisions:
            D = hi.settle(D, decision, choices, source, scope, weights)
        return list(D)

    def readings(self) -> dict[str, Arm]:
        """Hi-Merging as it stands, and with one reading changed at a time."""
        changed: dict[str, dict[str, Any]] = {
            "as it stands": {},
            "weakened side trimmed": {"partial": "weakened"},
            "raw delta trimmed": {"again": "raw"},
            "survivor with weight 1": {"survivor": "whole"},
            "sign election": {"consensus": "sum"},
            "weight 1": {"weight": 1.0},
            "weight 1/2": {"weight": 0.5},
            "TopAbs over layers": {"scope": "layer"},
            "TopAbs over the model": {"scope": "model"},
        }
        return {name: self.judged(self.hi_merging(**options).model) for name, options in changed.items()}

    def ablation(self) -> dict[str, Arm]:
        """Both stages, each alone, and the plain sum with the better of :data:`WEIGHTS`."""
        stages = {"both stages": (1, 2), "layer-wise only": (2,), "model-wise only": (1,), "neither": ()}
        return {name: self.judged(self.hi_merging(which).model) for name, which in stages.items()}

    def random_labels(self, draws: int) -> list[Arm]:
        """Stage 2 with its decisions given to the wrong blocks: the same cases and sides, shuffled over the blocks."""
        found, rng = self.hi_merging(), np.random.default_rng((self.seed, 23))
        D, choices = self.stage_one()
        arms = []
        for _ in range(draws):
            moved = [
                d._replace(block=self.blocks[i]) for d, i in zip(found.decisions, rng.permutation(len(self.blocks)))
            ]
            arms.append(self.judged(self.summed(self.settled(D, choices, moved), found.weight)))
        return arms

    def remeasured(self, random_order: bool = False) -> Arm:
        """Stage 2 with contributions measured anew after each block, most severe first or in random order."""
        D, choices = self.stage_one()
        w, todo, rng = self.weight(D), list(self.blocks), np.random.default_rng((self.seed, 29))
        while todo:
            table = hi.analyse(self.base, D, self.score, [w, w], only=todo)
            block = table.blocks[int(rng.integers(len(todo))) if random_order else table.order[0]]
            D = hi.settle(D, hi.decide(table, block), choices)
            todo.remove(block)
        return self.judged(self.summed(D, w))

    def halves(self) -> tuple[hi.Table, hi.Table]:
        """Contributions measured on two halves of the calibration questions, about different people."""
        D, _ = self.stage_one()
        w = self.weight(D)
        noted: list[np.ndarray] = []

        def noting(m: int, model: Tensors) -> float:
            noted.append(self.lab.answers(self.tasks[m], model, "calibration"))
            return 0.0

        hi.analyse(self.base, D, noting, [w, w])
        tables = []
        for half in (0, 1):
            replayed = iter(noted)

            def score(m: int, model: Tensors, half: int = half, replayed: Iterator = replayed) -> float:
                return 100 * float(next(replayed)[self.lab.half(self.tasks[m]) == half].mean())

            tables.append(hi.analyse(self.base, D, score, [w, w]))
        return tables[0], tables[1]

    # Everything else.

    def untuned(self) -> dict[str, Arm]:
        """Models for which nothing is chosen: base, experts, plain average, model stock."""
        return {
            "base": self.judged(self.base),
            "first expert": self.judged(self.experts[0]),
            "second expert": self.judged(self.experts[1]),
            "average": self.judged(methods.linear(self.experts, [0.5, 0.5])),
            "model stock": self.judged(methods.model_stock(self.base, self.experts)),
        }

    def tuned(self) -> dict[str, Arm]:
        """Each method with the setting that scores best on calibration questions, out of ``budget // 2`` settings."""
        settings, n = self._settings(self.budget // 2), self.budget // 2
        wanted = self.lab.profile.methods or (*settings, "greedy per block")
        arms = {name: self._best(made()) for name, made in settings.items() if name in wanted}
        return arms | ({"greedy per block": self._greedy(n)} if "greedy per block" in wanted else {})

    def task_arithmetic(self) -> Arm:
        """As in :meth:`tuned`, without the other methods."""
        return self._best(self._settings(self.budget // 2)["task arithmetic"]())

    def _best(self, settings: Iterable[Callable[[], Tensors]]) -> Arm:
        found = [(self.calibrated(build()), build) for build in settings]
        score, build = max(found, key=lambda pair: pair[0])
        return self.judged(build(), score, 2 * len(found))

    def _settings(self, n: int) -> dict[str, Callable[[], list[Callable[[], Tensors]]]]:
        """At most ``n`` settings of each method, made when they are asked for."""
        ones, experts, base = [1.0, 1.0], self.experts, self.base

        def along(*directions: Tensors) -> list[Callable[[], Tensors]]:
            """Factors on each of some directions from the base."""
            each = n // len(directions)
            factors = LONGEST * np.arange(1, each + 1) / each
            return [functools.partial(methods.add_deltas, base, [d], [float(f)]) for d in directions for f in factors]

        def sparse(method: Callable[..., Tensors], **options: Any) -> Callable[[], list]:
            return lambda: along(
                *(methods.deltas(base, method(base, experts, ones, [d, d], **options)) for d in DENSITIES)
            )

        def two_factors() -> list[Callable[[], Tensors]]:
            factors = LONGEST * np.arange(side := math.isqrt(n)) / (side - 1)
            pairs = [[float(a), float(b)] for a in factors for b in factors]
            return [functools.partial(methods.add_deltas, base, self.deltas, pair) for pair in pairs]

        cuts = [(cut, first) for first in (0, 1) for cut in range(1, len(self.blocks))]
        seeded = {"seed": self.seed}
        return {
            "task arithmetic": lambda: along(methods.deltas(base, methods.task_arithmetic(base, experts, ones))),
            "task arithmetic, two factors": two_factors,
            "TIES": sparse(methods.ties),
            "DARE": sparse(methods.dare, **seeded),
            "DARE + election": sparse(methods.dare, consensus="sum", **seeded),
            "DELLA": sparse(methods.della, **seeded),
            "DELLA without election": sparse(methods.della, consensus="none", normalize=False, **seeded),
            "Breadcrumbs": sparse(methods.breadcrumbs),
            "Breadcrumbs + election": sparse(methods.breadcrumbs, consensus="sum"),
            "SLERP": lambda: [functools.partial(methods.slerp, *experts, float(t)) for t in np.linspace(0, 1, n)],
            "layer swapping": lambda: [functools.partial(self._swapped, *cut) for cut in cuts],
        }

    def _swapped(self, cut: int, first: int) -> Tensors:
        """Blocks below ``cut`` from one expert, the others from the other, the rest averaged."""
        merged = methods.linear(self.experts, [0.5, 0.5])
        for k, block in enumerate(self.blocks):
            merged = hi.take(merged, block, self.experts[first if k < cut else 1 - first])
        return merged

    def _greedy(self, n: int) -> Arm:
        """Coordinate search: start from the better of :data:`WEIGHTS`, then change one expert's weight in one block at
        a time, in random order, and keep what scores better; what is outside of blocks keeps the first weight."""
        rng = np.random.default_rng((self.seed, 31))
        w = self.weight(self.deltas)
        merged, left = self.summed(self.deltas, w), n - len(WEIGHTS) - 1
        weights, best = np.full((2, len(self.blocks)), w), self.calibrated(merged)
        while left > 0:
            m, k = int(rng.integers(2)), int(rng.integers(len(self.blocks)))
            tried = weights.copy()
            tried[m, k] = rng.choice([x for x in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25) if x != weights[m, k]])
            block = [name for name in self.base if methods.layer(name) == self.blocks[k]]
            changed = methods.add_deltas(
                {name: self.base[name] for name in block},
                [{name: d[name] for name in block} for d in self.deltas],
                tried[:, k].tolist(),
            )
            left -= 1
            if (score := self.calibrated(candidate := {**merged, **changed})) > best:
                merged, weights, best = candidate, tried, score
        return self.judged(merged, best, 2 * n)

    def full(self) -> Arm:
        """Hi-Merging as it stands."""
        found = self.hi_merging()
        return self.judged(found.model, self.calibrated(found.model), self.budget)

    def compared(self) -> dict[str, Arm]:
        """Every model that the chapter compares: base, experts, and all merges."""
        return self.untuned() | self.tuned() | {"Hi-Merging": self.full()}


MODELS = ("base", "first expert", "second expert")
"""Arms of :meth:`Trial.compared` that are no merges."""


def interference(arms: dict[str, Arm]) -> float:
    """What the plain average loses against the experts, each on its own task; points."""
    return (arms["first expert"].scores[0] + arms["second expert"].scores[1]) / 2 - arms["average"].mean


def rank(arms: dict[str, Arm], name: str = "Hi-Merging") -> float:
    """Place of a merge among all merges by test score, 1 is best; equal ones share the mean of their places."""
    others = [arm.mean for other, arm in arms.items() if other not in (*MODELS, name)]
    own = arms[name].mean
    return 1 + sum(x > own for x in others) + sum(x == own for x in others) / 2


def best(arms: dict[str, Arm]) -> str:
    """The tuned method, other than Hi-Merging, that scores best on calibration questions."""
    tuned = {name: arm.calibration for name, arm in arms.items() if arm.evaluations and name != "Hi-Merging"}
    return max(tuned, key=lambda name: tuned[name])


def agreement(halves: Sequence[tuple[hi.Table, hi.Table]]) -> tuple[float, float]:
    """How often two measurements of gamma have one sign: the share, and Cohen's kappa (0: as often as by chance)."""
    a, b = (np.concatenate([(tables[i].gamma > 0).ravel() for tables in halves]) for i in (0, 1))
    share, chance = float((a == b).mean()), float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return share, (share - chance) / (1 - chance) if chance < 1 else 0.0


def early(table: hi.Table) -> float:
    """Mean contribution to the experts' tasks of the first half of the blocks minus that of the others; points."""
    half = len(table.blocks) // 2
    return float(table.own[:, :half].mean() - table.own[:, half:].mean())


def cases(decisions: Sequence[hi.Decision]) -> dict[str, int]:
    """How many blocks are in each case."""
    return {case: sum(d.case == case for d in decisions) for case in ("severe", "partial", "mutual")}


def sizes(base: Tensors, delta: Tensors) -> np.ndarray:
    """Norm of a delta over that of the base, block by block: [blocks]."""
    found = []
    for block in hi.blocks(base):
        own = [name for name in base if methods.layer(name) == block]
        d, x = (math.sqrt(sum(float(np.square(t[name]).sum()) for name in own)) for t in (delta, base))
        found.append(d / x)
    return np.array(found)


def same_sign(a: Tensors, b: Tensors, p: float = 1.0) -> np.ndarray:
    """Share of parameters on which two deltas agree in sign, block by block, among those that both keep: [blocks].

    Args:
        p: the fraction of largest magnitudes that each keeps in each tensor; what one of them lacks is not counted.
    """
    a, b = (methods.prune_and_scale(x, p, 1.0) for x in (a, b))
    found = []
    for block in hi.blocks(a):
        products = np.concatenate([(a[n] * b[n]).ravel() for n in a if methods.layer(n) == block])
        found.append((products > 0).sum() / max(1, (products != 0).sum()))
    return np.array(found)


class Study:
    """Everything that the chapter measures, each result [seeds]: means over the pairs of a profile, in points."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.profile = lab, lab.profile
        self._trials: dict[tuple, Trial] = {}
        self._arms: dict[tuple, dict[str, Arm]] = {}

    def trial(self, pair: str, seed: int, kind: Kind | None = None, share: float = 1.0) -> Trial:
        """Made once."""
        key = (pair, seed, kind, share)
        if key not in self._trials:
            self._trials[key] = Trial(self.lab, *key)
        return self._trials[key]

    def arms(self, pair: str, seed: int, kind: Kind | None = None) -> dict[str, Arm]:
        """All models of a trial, compared once."""
        key = (pair, seed, kind)
        if key not in self._arms:
            self._arms[key] = self.trial(*key).compared()
        return self._arms[key]

    def each(self, pairs: Sequence[str], measured: Callable[[str, int], float]) -> np.ndarray:
        """The mean over ``pairs`` of a number, for each seed."""
        return np.array([np.mean([measured(pair, seed) for pair in pairs]) for seed in range(self.profile.seeds)])

    def gap(self, pairs: Sequence[str], to: str | None, kind: Kind | None = None) -> np.ndarray:
        """Hi-Merging minus another arm; None is what calibration would pick among the tuned methods (:func:`best`)."""

        def measured(pair: str, seed: int) -> float:
            arms = self.arms(pair, seed, kind)
            return arms["Hi-Merging"].mean - arms[to or best(arms)].mean

        return self.each(pairs, measured)

    def skills(self, kind: Kind | None = None, pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Gain of each expert over the base on its own task, by task."""
        wanted = dict.fromkeys(task for pair in pairs or self.profile.pairs for task in self.lab.source.pairs[pair])
        return {
            task: np.array(
                [
                    self.lab.score(task, self.lab.expert(task, seed, kind)) - self.lab.score(task, self.lab.base)
                    for seed in range(self.profile.seeds)
                ]
            )
            for task in wanted
        }

    def gate(self, kind: Kind | None = None, pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """``skill_worst`` and ``interference``: what there must be for a comparison to mean anything."""
        chosen = pairs or self.profile.pairs
        return {
            "skill_worst": np.min(list(self.skills(kind, chosen).values()), axis=0),
            "interference": self.each(chosen, lambda pair, seed: interference(self.arms(pair, seed, kind))),
        }

    def low_rank(self) -> dict[str, np.ndarray]:
        """The measurements of claim H1b; none where the profile makes no low-rank experts."""
        if not (pairs := self.profile.lora):
            return {}
        gate = {f"lora_{name}": values for name, values in self.gate("lora", pairs).items()}
        return gate | {"h1b_gap": self.gap(pairs, None, "lora")}

    def mixed(self) -> np.ndarray:
        """Hi-Merging minus one model tuned on the texts of both tasks (H2)."""

        def measured(pair: str, seed: int) -> float:
            tasks = self.lab.source.pairs[pair]
            both = self.lab.expert(tasks, seed)
            return self.arms(pair, seed)["Hi-Merging"].mean - np.mean([self.lab.score(task, both) for task in tasks])

        return self.each(self.profile.studied, measured)

    def grid(self, task: str, ps: Sequence[float], ss: Sequence[float]) -> np.ndarray:
        """Test score of an expert pruned to p and scaled by s, minus that of the whole expert: [seeds, p, s]."""
        found = []
        for seed in range(self.profile.seeds):
            expert = self.lab.expert(task, seed)
            score = functools.partial(self.lab.score, task)
            scores = hi.model_wise(self.lab.base, methods.deltas(self.lab.base, expert), score, ps, ss).scores
            found.append(scores - score(expert))
        return np.array(found)

    def pruning(self) -> dict[str, np.ndarray]:
        """The measurements of claim H4: means over the experts."""
        tasks = list(self.skills())
        sparse = np.mean([self.grid(task, (0.1,), (0.9,))[:, 0, 0] for task in tasks], axis=0)
        faint = np.mean([self.grid(task, (1.0,), (0.1,))[:, 0, 0] for task in tasks], axis=0)
        return {"h4_loss": -sparse, "h4_steep": -faint}

    def ablation(self) -> dict[str, np.ndarray]:
        """Score with both stages, one and none, by name."""
        found = {
            (pair, seed): self.trial(pair, seed).ablation()
            for pair in self.profile.pairs
            for seed in range(self.profile.seeds)
        }
        names = next(iter(found.values()))
        return {name: self.each(self.profile.pairs, lambda p, s, n=name: found[p, s][n].mean) for name in names}

    def signs(self) -> dict[str, np.ndarray]:
        """The measurements of claim H6."""
        pairs, seeds = self.profile.pairs, range(self.profile.seeds)
        found = np.array([agreement([self.trial(pair, seed).halves() for pair in pairs]) for seed in seeds])
        return {
            "h6_agreement": found[:, 0],
            "h6_kappa": found[:, 1],
            "h6_early": self.each(pairs, lambda pair, seed: early(self.trial(pair, seed).hi_merging().table)),
        }

    def counted(self) -> dict[str, np.ndarray]:
        """Share of the blocks that are in each case, percent."""
        return {
            case: self.each(
                self.profile.pairs,
                lambda p, s, case=case: np.mean(
                    [100 * (d.case == case) for d in self.trial(p, s).hi_merging().decisions]
                ),
            )
            for case in ("severe", "partial", "mutual")
        }

    def against_random_labels(self) -> np.ndarray:
        """Hi-Merging minus the mean over shuffled decisions (H7)."""
        return self.each(
            self.profile.pairs,
            lambda pair, seed: (
                self.arms(pair, seed)["Hi-Merging"].mean
                - np.mean([arm.mean for arm in self.trial(pair, seed).random_labels(self.profile.draws)])
            ),
        )

    def losses(self, share: float) -> dict[str, np.ndarray]:
        """What the plain average and Hi-Merging lose against experts that were tuned on a share of the texts."""
        found: dict[str, np.ndarray] = {}
        for name in ("average", "Hi-Merging"):

            def measured(pair: str, seed: int, name: str = name) -> float:
                trial = self.trial(pair, seed, None, share)
                own = np.mean([self.lab.score(task, x) for task, x in zip(trial.tasks, trial.experts)])
                merged = methods.linear(trial.experts, [0.5, 0.5]) if name == "average" else trial.hi_merging().model
                return float(own - trial.judged(merged).mean)

            found[name] = self.each(self.profile.studied, measured)
        return found

    def growth(self) -> dict[str, np.ndarray]:
        """The measurements of claim H8."""
        few, all_ = self.losses(self.profile.small), self.losses(1.0)
        grown = {name: all_[name] - few[name] for name in few}
        return {
            "h8_growth_average": grown["average"],
            "h8_growth_difference": grown["average"] - grown["Hi-Merging"],
        }

    def readings(self) -> dict[str, np.ndarray]:
        """Score of Hi-Merging in each reading, by name."""
        found = {
            (pair, seed): self.trial(pair, seed).readings()
            for pair in self.profile.studied
            for seed in range(self.profile.seeds)
        }
        names = next(iter(found.values()))
        return {name: self.each(self.profile.studied, lambda p, s, n=name: found[p, s][n].mean) for name in names}

    def orders(self) -> dict[str, np.ndarray]:
        """Score where contributions are measured anew after each block, by the order of the blocks."""
        return {
            name: self.each(self.profile.studied, lambda p, s, r=at_random: self.trial(p, s).remeasured(r).mean)
            for name, at_random in (("most severe first", False), ("random order", True))
        }

    def other_bases(self) -> dict[str, np.ndarray]:
        """The measurements of claim H9; none where the profile has one base only."""
        if not self.profile.others:
            return {}
        gaps, skills = [], []
        for name in self.profile.others:
            study = Study(Lab(replace(self.lab.profile, model=name), self.lab.device))

            def measured(pair: str, seed: int, study: Study = study) -> float:
                trial = study.trial(pair, seed)
                return trial.full().mean - trial.task_arithmetic().mean

            gaps.append(study.each(self.profile.studied, measured))
            skills += study.skills(pairs=self.profile.studied).values()
        return {"h9_gap": np.mean(gaps, axis=0), "h9_skill_worst": np.min(skills, axis=0)}

    def gradient_steps(self) -> int:
        """How often a gradient is computed while both stages run."""
        trial, p = self.trial(self.profile.pairs[0], 0), self.profile
        with mock.patch.object(torch.autograd, "backward") as one, mock.patch.object(torch.autograd, "grad") as other:
            hi.hi_merge(trial.base, trial.experts, trial.score, ps=p.ps[:1], ss=p.ss[:2])
        return one.call_count + other.call_count

    def disagreement(self) -> np.ndarray:
        """Percentage of test questions that Hi-Merging and the plain sum do not answer equally well."""

        def measured(pair: str, seed: int) -> float:
            trial = self.trial(pair, seed)
            ours, plain = trial.hi_merging().model, trial.summed(trial.deltas, trial.weight(trial.deltas))
            lab = self.lab
            return 100 * np.mean([(lab.answers(t, ours) != lab.answers(t, plain)).mean() for t in trial.tasks])

        return self.each(self.profile.pairs, measured)


def curve(x: Sequence[float], by_seed: np.ndarray) -> dict[str, list[float]]:
    """Mean and 95% interval over seeds at each x, for :func:`zfu_lib.report.figures.lines`; ``by_seed`` [seeds, x]."""
    found = [over_seeds(column) for column in np.asarray(by_seed, dtype=float).T]
    ends = {field: [getattr(interval, field) for interval in found] for field in ("low", "high")}
    return {"x": list(x), "y": [interval.mean for interval in found], **ends}


# What the paper prints.


def quoted() -> dict[str, Any]:
    """Tables and figures of the paper (``book/quoted/hi_merging.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "hi_merging.yml").read_text(encoding="utf-8"))


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy in percent over ``n`` questions; points."""
    return 100 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / n)


def audit(tables: dict[str, Any]) -> dict[str, float]:
    """Arithmetic on the printed tables; keys are the measurements of claims A1 to A4.

    ``a2_discordant_<set>``: the largest percentage of questions on which only one of two models may be right for the
    printed lead to be 1.96 standard errors of the paired difference, (lead / 1.96)^2 n, in percent.
    """
    rows, n = tables["bilingual"]["rows"], tables["bilingual"]["n"]
    base, ours, plain = (rows[name] for name in ("base", "Hi-Merging", "Task Arithmetic"))
    errors = [abs(100 * (sum(r[:2]) / sum(base[:2]) - 1) - r[2]) for r in rows.values() if r[2] is not None]
    found = {"a1_largest_error": max(errors)}
    for i, name in enumerate(("MedQA", "CMExam")):
        lead = ours[i] - plain[i]
        found[f"a2_lead_{name.lower()}"] = lead / standard_error(ours[i], n[name])
        found[f"a2_discordant_{name.lower()}"] = 100 * (lead / 100 / 1.96) ** 2 * n[name]
    grid = tables["figure_2"]["rows"]
    found["a2_figure_2_gain"] = max(map(max, grid.values())) - grid[1.0][0]
    found["a2_figure_2_error"] = standard_error(grid[1.0][0], tables["figure_2"]["n"])
    quantity = tables["data_quantity"]
    for name, key in (("HealthCareMagic", "hcm"), ("cMedQA2", "cmedqa2")):
        samples = np.array(quantity["samples"]) / 10_000
        found[f"a3_slope_{key}"] = float(np.polyfit(samples, quantity[name]["Model Soups"], 1)[0])
    found["a4_equal_cells"] = sum(x == y for x, y in zip(grid[1.0], grid[0.9], strict=True))
    return found
