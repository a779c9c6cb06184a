"""Experiments of the LLM4MSR chapter (arXiv 2406.12529; the method is a reconstruction, see its module).

A :class:`Lab` trains every arm once per seed and remembers it. An *arm* is a way to use text, or not to; a *task* is a
log with the texts of its users and scenarios: a generated world, of which each seed has its own, or real logs, which
each seed splits anew. AUC is the mean over scenarios unless it says otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from scipy import stats
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from zfu_lib.data import catalogue, ctr, recsys_world
from zfu_lib.data.catalogue import DataError
from zfu_lib.data.ctr import Log
from zfu_lib.experiments import msr_reader
from zfu_lib.experiments.ctr import Fit, FitConfig, fit, predict, resident
from zfu_lib.lm import encoder
from zfu_lib.lm.hidden import HiddenStates
from zfu_lib.prediction import ctr_metrics, text_controls
from zfu_lib.prediction.ctr_metrics import Scores, evaluate
from zfu_lib.prediction.llm4msr import LLM4MSR, Choices, Knowledge, Recommender, scenario_prompt, user_prompt
from zfu_lib.prediction.msr_backbones import BACKBONES, FusedEmbedding
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import DataUsed
from zfu_lib.report.statistics import Interval, over_seeds, paired


@dataclass(frozen=True)
class MsrProfile(Profile):
    """What the chapter trains.

    ``users``, ``items``, ``rows``, ``test_rows``: of a generated world. ``dim`` of a field's vector, ``text`` of a
    text vector after PCA (0: as the encoder gives it). ``strengths``: the dial. ``thresholds``: least number of
    training rows of a user who gets a text. ``channels``, ``held_out``, ``channel_rows``: scenarios of the world with
    many, how many of them are never trained on, and its rows. ``reader``: the causal language model, ``tiny``
    (trained here in ``reader_steps``) or a hub id.

    ``logs``: real logs, with ``log_seeds`` splits, read at most ``log_epochs`` times. ``rates``: learning rates to
    choose from by validation rows of the first split (generated worlds take :data:`RATES`). ``encoder`` of their
    texts; ``minilm``: with an arm that encodes the prompts by MiniLM.
    """

    users: int
    items: int
    rows: int
    test_rows: int
    dim: int
    text: int
    batch: int
    epochs: int
    decay: float
    strengths: tuple[float, ...]
    thresholds: tuple[int, ...]
    channels: int
    held_out: int
    channel_rows: int
    reader: str
    reader_steps: int
    encoder: str = "tfidf"
    rates: tuple[float, ...] = ()
    log_seeds: int = 0
    log_batch: int = 1024
    log_epochs: int = 12
    minilm: bool = False
    logs: tuple[str, ...] = ()


QUICK = MsrProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=3,
    users=1000,
    items=100,
    rows=12_000,
    test_rows=12_000,
    dim=16,
    text=32,
    batch=256,
    epochs=8,
    decay=3e-4,
    strengths=(0.0, 0.5),
    thresholds=(10, 20),
    channels=40,
    held_out=10,
    channel_rows=12_000,
    reader="tiny",
    reader_steps=200,
)
FULL = replace(
    QUICK,
    profile="full",
    seeds=5,
    cost=Cost(
        machine="one GPU with 8 GB",
        minutes=25,
        memory_gb=4,
        gpu_memory_gb=4,
        data=("movielens_100k", "amazon_pairs"),
    ),
    channel_rows=60_000,
    rates=(1e-3, 3e-3, 1e-2),
    log_seeds=5,
    logs=("movielens", "movielens by hour", "amazon"),
    minilm=True,
)
# The paper's logs; its ChatGLM2-6B needs code from the hub, so a model of its size that transformers has stands in.
# Settings of the paper's training are not confirmed.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 53,000 prompts at up to 7 s (the authors' figure), then 20 arms x 5 seeds",
        minutes=9_000,
        memory_gb=64,
        gpu_memory_gb=60,
        disk_gb=20,
        downloads=(Download("Qwen/Qwen2.5-7B-Instruct", 15.2), Download("KuaiSAR (Zenodo 8181109)", 2.5)),
    ),
    text=0,
    log_batch=4096,
    reader="Qwen/Qwen2.5-7B-Instruct",
    encoder="reader",
    minilm=True,
    logs=("kuaisar", "amazon reviews"),
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile: this is what changes there, and the run says so.
FULL_ON_CPU = {"rates": (3e-3,), "log_epochs": 8}


@dataclass(frozen=True)
class Arm:
    """One way to build and train a recommender; all else equal.

    ``net``: ``llm4msr`` with ``choices``, or a control of :mod:`zfu_lib.prediction.text_controls`. ``text``: ``own``,
    ``shuffled`` among users and among scenarios (or scenarios only), ``random`` vectors, or another encoder. ``wide``:
    hidden layers widened until the arm has as many parameters as the full method.
    """

    label: str
    net: str = "llm4msr"
    backbone: str = "star"
    choices: Choices = field(default_factory=Choices)
    text: str = "own"
    wide: bool = False


OTHERS = {"shared_bottom": "SharedBottom", "mmoe": "MMoE", "ple": "PLE"}
ARMS = {
    "bare": Arm("STAR", "bare"),
    "bare_wide": Arm("STAR, as many parameters as LLM4MSR", "bare", wide=True),
    "full": Arm("LLM4MSR on STAR"),
    "user": Arm("user level only", choices=Choices(scenario_layers=0)),
    "scenario": Arm("scenario level only", choices=Choices(user_layers=0)),
    "id_hypernet": Arm("scenario level from ids, no text", "id_hypernet", choices=Choices(user_layers=0)),
    "concat": Arm("text as features", "concat"),
    "film": Arm("FiLM by user text", "film"),
    "dot": Arm("dot product of user text and item", "dot"),
    "shuffled": Arm("LLM4MSR, texts shuffled", text="shuffled"),
    "random": Arm("LLM4MSR, random vectors", text="random"),
    "dcn": Arm("DCN-v2 with text features", "dcn"),
    "deepfm": Arm("DeepFM with text features", "deepfm"),
    "deep": Arm("LLM4MSR, two meta layers per level", choices=Choices(user_layers=2, scenario_layers=2)),
    "cold_bare": Arm("no scenario level", backbone="pooled", choices=Choices(scenario_layers=0)),
    "cold_text": Arm("scenario level from text", backbone="pooled"),
    "cold_shuffled": Arm("scenario level from shuffled text", backbone="pooled", text="shuffled scenarios"),
    "cold_ids": Arm("scenario level from ids", "id_hypernet", backbone="pooled"),
    "reader": Arm("LLM4MSR, hidden state of a language model", text="reader"),
    "minilm": Arm("LLM4MSR, MiniLM on the prompt", text="minilm"),
    **{f"bare_{b}": Arm(label, "bare", b) for b, label in OTHERS.items()},
    **{f"full_{b}": Arm(f"LLM4MSR on {label}", backbone=b) for b, label in OTHERS.items()},
}  # fmt: skip
BACKBONE_PAIRS = {"STAR": ("full", "bare")} | {label: (f"full_{b}", f"bare_{b}") for b, label in OTHERS.items()}

# Learning rates on generated worlds: the better of 0.003 and 0.01 by validation AUC on a world that no run uses
# (:func:`tune`). Arms that are not listed take DEFAULT_RATE.
DEFAULT_RATE = 1e-2
RATES = dict.fromkeys(
    (
        "bare",
        "bare_wide",
        "scenario",
        "id_hypernet",
        "concat",
        "bare_shared_bottom",
        "bare_ple",
        "full_shared_bottom",
        "cold_bare",
        "cold_text",
        "cold_shuffled",
    ),
    3e-3,
)


GENERATED = ("world", "channels")


class Task(NamedTuple):
    """A log in three parts with texts. ``p_N``: true click probabilities of the test rows, where they are known.
    ``user_texts``: None for a user without one."""

    train: Log
    validation: Log
    test: Log
    p_N: np.ndarray | None
    user_texts: list[str | None]
    scenario_texts: list[str]


class Outcome(NamedTuple):
    """A trained arm on its test rows."""

    scores: Scores
    p_N: np.ndarray
    fit: Fit
    parameters: int
    model: Recommender


LOG_ARMS = (
    "bare", "full", "user", "scenario", "id_hypernet", "concat", "film", "dot", "shuffled", "dcn", "deepfm", "minilm",
    *(arm for pair in list(BACKBONE_PAIRS.values())[1:] for arm in pair),
)  # fmt: skip


class RealLogs(NamedTuple):
    """Measurements on real logs by name with their unit, gains over STAR for a figure, and rows of a table."""

    measurements: dict[str, tuple[Sequence[float] | Interval, str]]
    gains: dict[str, Interval]
    table: dict[str, tuple]
    columns: tuple[str, ...]


def over_draws(draws: np.ndarray) -> Interval:
    """95% percentile interval of bootstrap draws of a difference."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(draws.mean()), float(low), float(high), len(draws), "bootstrap over users")


def texts(train: Log, histories: Sequence[dict[str, list[str]]], descriptions: Sequence[str], least: int = 1) -> tuple:
    """The two kinds of prompts: for users with at least ``least`` training rows and a history, and for scenarios."""
    rows_U = np.bincount(train.ids[:, 0], minlength=train.sizes[0])
    users = [user_prompt(told) if told and n >= least else None for told, n in zip(histories, rows_U)]
    scenarios = []
    for s, (name, description) in enumerate(zip(train.scenarios, descriptions)):
        own = train.take(np.flatnonzero(train.scenario == s))
        counts = {
            "interactions": len(own),
            "users": len(np.unique(own.ids[:, 0])),
            "items": len(np.unique(own.ids[:, 1])),
        }
        scenarios.append(scenario_prompt(name, description, counts))
    return users, scenarios


DESCRIPTIONS = {
    "action and thrillers": "Films of action, adventure, crime, war and suspense.",
    "family and fantasy": "Films for children and families, animation, musicals, fantasy and science fiction.",
    "comedies": "Comedies.",
    "dramas": "Dramas, romances, documentaries and horror films.",
    "night": "Films rated between midnight and six in the morning.",
    "morning": "Films rated between six and noon.",
    "afternoon": "Films rated between noon and six in the evening.",
    "evening": "Films rated between six in the evening and midnight.",
    "phone": "Phones and accessories.",
    "sport": "Sports and outdoor equipment.",
    "recommendation": "A feed of short videos that the platform recommends.",
    "search": "Short videos found by searching for words.",
}


def standardised(vectors_KH: np.ndarray, width: int) -> Tensor:
    """Text vectors reduced by PCA to ``width`` (0: not), centred, with a mean square of 1: float32 [K, H].

    One scale for all dimensions: were each scaled by itself, the directions that hold noise would weigh as much as
    those that hold topics, and of few texts (scenarios) every pair would become equally alike.
    """
    x = np.asarray(vectors_KH, dtype=np.float64)
    x = x - x.mean(0)
    if width and width < x.shape[1]:
        x = PCA(min(width, *x.shape), random_state=0, svd_solver="full").fit_transform(x)
    return torch.from_numpy((x / max(np.sqrt((x**2).mean()), 1e-12)).astype(np.float32))


def tfidf(prompts: Sequence[str], width: int) -> np.ndarray:
    """A text encoder without weights: TF-IDF of words (numbers are none) and a truncated SVD, fitted on the prompts
    themselves: [K, H]."""
    x = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[^\W\d_]{2,}").fit_transform(prompts)
    return TruncatedSVD(min(width, min(x.shape) - 1), random_state=0).fit_transform(x)


class Lab:
    """Trains arms on demand, once per seed and task, and measures them.

    All arms of a seed see the same rows in the same order; differences between arms are paired.
    """

    def __init__(self, profile: MsrProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.asked = profile
        self.used: list[DataUsed] = []
        self._tasks: dict[tuple, Task] = {}
        self._logs: dict[str, tuple[Log, list[str]]] = {}
        self._vectors: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}
        self._outcomes: dict[tuple, Outcome] = {}
        self._rates: dict[tuple[str, str], float] = {}

    @property
    def seeds(self) -> range:
        """Seeds of the generated worlds."""
        return range(self.profile.seeds)

    def description(self) -> str:
        """What will be trained, and how far that is from what the profile asks for."""
        p, asked = self.profile, self.asked
        text = (
            f"Worlds here: {p.users} users, {p.items} items, {p.rows:,} training rows, {p.test_rows:,} test rows, "
            f"{p.seeds} seeds, each a world of its own; {len(p.logs)} real logs; on {self.device}."
        )
        if p != asked:
            text += (
                f" Scaled down for a CPU: on real logs {p.log_epochs} of {asked.log_epochs} epochs and one learning "
                f"rate ({p.rates[0]:g}) instead of a search among {len(asked.rates)} for each arm."
            )
        return text

    # Tasks and texts

    def task(self, name: str, seed: int, strength: float = 1.0) -> Task:
        """A task: ``world``, ``channels`` (many scenarios, of which the last ones are only tested) or a real log."""
        if (name, seed, strength) not in self._tasks:
            drawn = name in GENERATED
            self._tasks[name, seed, strength] = self._drawn(name, seed, strength) if drawn else self._real(name, seed)
        return self._tasks[name, seed, strength]

    def world(self, name: str, seed: int) -> recsys_world.World:
        """The truth behind a generated task."""
        p = self.profile
        if name == "world":
            return recsys_world.world(seed, users=p.users, items=p.items)
        return recsys_world.world(seed, users=300, items=p.items, scenarios=p.channels, contrast=1.0)

    def _drawn(self, name: str, seed: int, strength: float) -> Task:
        p, world = self.profile, self.world(name, seed)
        rows = p.channel_rows if name == "channels" else p.rows
        sizes = (rows, max(1000, rows // 6), p.test_rows)
        (train, _), (validation, _), (test, chance) = (world.log(n, part) for part, n in enumerate(sizes))
        if name == "channels":
            known = p.channels - p.held_out
            train, validation = (log.take(np.flatnonzero(log.scenario < known)) for log in (train, validation))
            rows = np.flatnonzero(test.scenario >= known)
            test, chance = test.take(rows), chance[rows]
        users, scenarios = texts(train, world.user_words(strength), world.scenario_words(strength))
        return Task(train, validation, test, chance, users, scenarios)

    def _real(self, name: str, seed: int) -> Task:
        if name not in self._logs:
            self._logs[name] = self._read(name)
        log, words = self._logs[name]
        train, validation, test = log.split(seed)
        histories = ctr.history(train, words) if words else [{} for _ in range(log.sizes[0])]
        descriptions = [DESCRIPTIONS.get(scenario, scenario) for scenario in log.scenarios]
        users, scenarios = texts(train, histories, descriptions)
        return Task(train, validation, test, None, users, scenarios)

    def _read(self, name: str) -> tuple[Log, list[str]]:
        loaders: dict[str, tuple[str, Callable[[], tuple[Log, list[str]]]]] = {
            "movielens": ("movielens_100k", lambda: ctr.movielens("genre")),
            "movielens by hour": ("movielens_100k", lambda: ctr.movielens("hour")),
            "amazon": ("amazon_pairs", lambda: (ctr.amazon_pair(), [])),
            "kuaisar": ("", lambda: ctr.kuaisar(_folder("recsys/kuaisar"))),
            "amazon reviews": ("", lambda: ctr.amazon_reviews(_review_files(_folder("recsys/amazon_reviews")))),
        }
        source, load = loaders[name]
        if source:
            self.used += catalogue.used(source)
        return load()

    def vectors(self, name: str, seed: int, strength: float, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Text vectors of users [U, H], of scenarios [S, H'] and which users have one [U], by kind of ``text``."""
        key = (name, seed, strength, text)
        if key not in self._vectors:
            self._vectors[key] = self._encoded(*key)
        return self._vectors[key]

    def _encoded(self, name: str, seed: int, strength: float, text: str) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((seed, 7))
        if text in ("shuffled", "shuffled scenarios", "random"):
            users, scenarios, known = self.vectors(name, seed, strength, "own")
            # No scenario keeps its own text.
            others = scenarios.roll(1 + seed % (len(scenarios) - 1), 0)
            if text == "shuffled scenarios":
                return users, others, known
            if text == "random":
                users, scenarios = (torch.from_numpy(rng.normal(size=x.shape)).float() for x in (users, scenarios))
                return users, scenarios, known
            order = torch.arange(len(users))
            order[known] = order[known][torch.from_numpy(rng.permutation(int(known.sum())))]
            return users[order], others, known
        task = self.task(name, seed, strength)
        known = torch.tensor([t is not None for t in task.user_texts])
        if not known.any():
            return torch.zeros(len(known), 1), torch.eye(len(task.scenario_texts)), known
        own = self.profile.encoder if text == "own" else text
        told = [t for t in task.user_texts if t is not None]
        width = self.profile.text
        if own == "tfidf":
            both = tfidf(told, width), tfidf(task.scenario_texts, width)
        elif own == "reader":
            spaced = msr_reader.spaced if self.profile.reader == "tiny" else str
            both = tuple(self.reader.encode(list(map(spaced, prompts))) for prompts in (told, task.scenario_texts))
        else:
            both = tuple(
                encoder.load(own, device=self.device).encode(prompts) for prompts in (told, task.scenario_texts)
            )
        users, scenarios = (standardised(x, width) for x in both)
        whole = torch.zeros(len(known), users.shape[1])
        whole[known] = users
        return whole, scenarios, known

    @cached_property
    def reader(self) -> HiddenStates:
        """The causal language model that writes a summary of each prompt and whose hidden state is taken."""
        if self.profile.reader == "tiny":
            trained = self.trained_reader
            return HiddenStates(trained.model, trained.tokenizer, new_tokens=3, name="tiny reader")
        return HiddenStates.load(self.profile.reader, device=self.device)

    @cached_property
    def trained_reader(self) -> msr_reader.Reader:
        """A small decoder trained on texts of worlds that no run uses, and its skill on held-out ones."""
        return msr_reader.train_reader(self.profile.reader_steps, device=self.device)

    # Arms

    def build(self, arm: Arm, task: Task, vectors: tuple[Tensor, Tensor, Tensor], seed: int) -> Recommender:
        """An untrained arm; those of a seed start from the same embeddings."""
        torch.manual_seed(seed)
        users, scenarios, known = vectors
        embedding = FusedEmbedding(task.train.sizes, self.profile.dim)
        d, s, h_u, h_s, rank = embedding.width, len(scenarios), users.shape[1], scenarios.shape[1], arm.choices.rank

        def backbone(width: int = d, extra: int = 0, hidden: tuple[int, ...] = (64, 32)) -> torch.nn.Module:
            return BACKBONES[arm.backbone](width, s, hidden, extra)

        if arm.net == "llm4msr":
            concat = arm.choices.fusion == "concat" and arm.choices.scenario_layers
            net = LLM4MSR(backbone(extra=d if concat else 0), h_u, h_s, arm.choices)
        elif arm.net == "bare":
            net = text_controls.Bare(backbone())
            if arm.wide:
                goal = _size(LLM4MSR(backbone(), h_u, h_s, arm.choices))
                widths = ((w, w // 2) for w in range(64, 10_000, 8))
                net = next(n for n in (text_controls.Bare(backbone(hidden=w)) for w in widths) if _size(n) >= goal)
        elif arm.net == "concat":
            net = text_controls.Concat(backbone(d + 2 * rank), h_u, h_s, rank)
        elif arm.net == "film":
            net = text_controls.FiLM(backbone(), h_u)
        elif arm.net == "dot":
            net = text_controls.Dot(backbone(), h_u, slice(self.profile.dim, 2 * self.profile.dim), rank)
        elif arm.net == "id_hypernet":
            net = text_controls.IdHypernet(backbone(), s, h_u, h_s, arm.choices)
        else:
            net = {"dcn": text_controls.DCN, "deepfm": text_controls.DeepFM}[arm.net](d, s, h_u, h_s)
        return Recommender(embedding, net, Knowledge(users, scenarios, known)).to(self.device)

    def outcome(self, name: str, arm: str, seed: int, *, strength: float = 1.0, least: int = 1) -> Outcome:
        """An arm trained on a task and read on its test rows; ``least``: training rows of a user who gets a text."""
        key = (name, arm, seed, strength, least)
        if key not in self._outcomes:
            self._outcomes[key] = self._trained(name, arm, seed, strength, least, self._rate(name, arm))
        return self._outcomes[key]

    def _rate(self, name: str, arm: str) -> float:
        if name in GENERATED:
            return RATES.get(arm, DEFAULT_RATE)
        if len(self.profile.rates) == 1:
            return self.profile.rates[0]
        if (name, arm) not in self._rates:
            found = {rate: self._trained(name, arm, 0, 1.0, 1, rate) for rate in self.profile.rates}
            best = max(found, key=lambda rate: max(found[rate].fit.validation))
            self._rates[name, arm] = best
            self._outcomes[name, arm, 0, 1.0, 1] = found[best]
        return self._rates[name, arm]

    def _trained(self, name: str, arm: str, seed: int, strength: float, least: int, rate: float) -> Outcome:
        p, task = self.profile, self.task(name, seed, strength)
        users, scenarios, known = self.vectors(name, seed, strength, ARMS[arm].text)
        if least > 1:
            rows_U = np.bincount(task.train.ids[:, 0], minlength=task.train.sizes[0])
            known = known & torch.from_numpy(rows_U >= least)
        model = self.build(ARMS[arm], task, (users, scenarios, known), seed)
        batch, epochs = (p.batch, p.epochs) if name in GENERATED else (p.log_batch, p.log_epochs)
        done = fit(model, task.train, task.validation, FitConfig(rate, batch, epochs, decay=p.decay, seed=seed))
        if isinstance(model.net, text_controls.IdHypernet):
            model.net.average_unknown(np.unique(task.train.scenario))
        chance = predict(model, resident(task.test, self.device))
        found = evaluate(task.test.label, chance, task.test.ids[:, 0], task.test.scenario, len(task.test.scenarios))
        return Outcome(found, chance, done, _size(model), model)

    # Measurements

    def auc(self, name: str, arm: str, seeds: Sequence[int] | None = None, **options: float) -> np.ndarray:
        """Mean AUC over scenarios: [seeds]."""
        seeds = self.seeds if seeds is None else seeds
        return np.array([self.outcome(name, arm, seed, **options).scores.mean_auc for seed in seeds])

    def outcomes(self, name: str, arm: str) -> list[Outcome]:
        """An arm of every seed of a generated task."""
        return [self.outcome(name, arm, seed) for seed in self.seeds]

    def ceiling(self, name: str) -> np.ndarray:
        """Bayes-optimal AUC of a generated task, mean over its scenarios: [seeds]."""
        found = []
        for seed in self.seeds:
            task = self.task(name, seed)
            parts = [task.p_N[task.test.scenario == s] for s in np.unique(task.test.scenario)]
            found.append(np.mean([ctr_metrics.expected_auc(part) for part in parts]))
        return np.array(found)

    def table_auc(self, name: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Mean AUC of a table of click rates by scenario and item, smoothed towards the item's: [seeds].

        The least a recommender must beat.
        """
        found = []
        for seed in self.seeds if seeds is None else seeds:
            train, _, test = self.task(name, seed)[:3]
            count, items = len(train.scenarios), train.sizes[1]
            cell = train.scenario * items + train.ids[:, 1]
            clicks, shown = (np.bincount(cell, w, count * items).reshape(count, items) for w in (train.label, None))
            rate_I = (clicks.sum(0) + train.label.mean() * 10) / (shown.sum(0) + 10)
            rate_SI = (clicks + 10 * rate_I) / (shown + 10)
            score = rate_SI[test.scenario, test.ids[:, 1]]
            found.append(evaluate(test.label, score, test.ids[:, 0], test.scenario, count).mean_auc)
        return np.array(found)

    def by_activity(self, name: str, arm: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """AUC on test rows of sparse users (fewer training rows than the median row's user) and of the others:
        [seeds, 2]."""
        found = []
        for seed in self.seeds if seeds is None else seeds:
            task, chance = self.task(name, seed), self.outcome(name, arm, seed).p_N
            rows_U = np.bincount(task.train.ids[:, 0], minlength=task.train.sizes[0])
            rows_N = rows_U[task.test.ids[:, 0]]
            sparse = rows_N < np.median(rows_N)
            found.append([ctr_metrics.auc(task.test.label[part], chance[part]) for part in (sparse, ~sparse)])
        return np.array(found)

    def by_scenario(self, name: str, arm: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """AUC in each scenario: [seeds, S]; NaN where it is undefined."""
        seeds = self.seeds if seeds is None else seeds
        rows = [self.outcome(name, arm, seed).scores.scenarios for seed in seeds]
        return np.array([[np.nan if s is None or s.auc is None else s.auc for s in row] for row in rows])

    def user_bootstrap(self, name: str, a: str, b: str, seed: int = 0) -> np.ndarray:
        """AUC of arm ``a`` minus ``b`` over resampled users of one seed's test rows: [resamples]."""
        task = self.task(name, seed)
        chances = (self.outcome(name, arm, seed).p_N for arm in (a, b))
        return ctr_metrics.bootstrap_difference(task.test.label, *chances, task.test.ids[:, 0])

    def likeness(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """For every pair of scenarios in the world with many: cosine of their text vectors, and correlation, over
        items, of how far their click rates lie from the mean scenario's. Each [pairs]."""
        task = self.task("channels", seed)
        world = self.world("channels", seed)
        log, _ = world.log(4_000 * len(task.scenario_texts), 3)
        _, scenarios, _ = self.vectors("channels", seed, 1.0, "own")
        unit = torch.nn.functional.normalize(scenarios, dim=1)
        count, items = len(task.scenario_texts), log.sizes[1]
        cell = log.scenario * items + log.ids[:, 1]
        clicks, shown = (np.bincount(cell, w, count * items).reshape(count, items) for w in (log.label, None))
        rate = (clicks + 1) / (shown + 3)
        own = rate - rate.mean(0)  # what sets a scenario apart from all
        pairs = np.triu_indices(count, 1)
        return (unit @ unit.T).numpy()[pairs], np.corrcoef(own)[pairs]

    def likeness_rank(self) -> np.ndarray:
        """Spearman correlation of the two columns of :meth:`likeness`: [seeds]."""
        return np.array([stats.spearmanr(*self.likeness(seed)).statistic for seed in self.seeds])

    def real_logs(self) -> RealLogs:
        """Everything that is measured on real logs; empty where the profile names none."""
        if not self.profile.logs:
            return RealLogs({}, {}, {}, ())
        seeds, main = range(self.profile.log_seeds), self.profile.logs[0]
        found: dict[str, tuple[Sequence[float] | Interval, str]] = {}
        arms = [arm for arm in LOG_ARMS if ARMS[arm].text != "minilm" or self.profile.minilm]
        auc = {arm: self.auc(main, arm, seeds) for arm in arms}
        table = self.table_auc(main, seeds)
        for arm in ("full", "bare", "user"):
            found[f"ml_skill_{arm}"] = (auc[arm] - table, "")
        found["ml_auc_bare"], found["ml_table_auc"] = (auc["bare"], ""), (table, "")
        found["ml_l1_gain"] = (auc["full"] - auc["bare"], "")
        for (with_it, without), key in zip(BACKBONE_PAIRS.values(), ("star", "shared_bottom", "mmoe", "ple")):
            found[f"ml_l2_gain_{key}"] = (auc[with_it] - auc[without], "")
        found["ml_l3a_user_gain"] = (auc["user"] - auc["bare"], "")
        gap = self.by_activity(main, "user", seeds) - self.by_activity(main, "bare", seeds)
        found["ml_l3a_sparse_minus_dense"] = (gap[:, 0] - gap[:, 1], "")
        found["ml_l3b_scenario_gain"] = (auc["scenario"] - auc["bare"], "")
        found["ml_l3b_over_ids"] = (auc["scenario"] - auc["id_hypernet"], "")
        for claim, arm in (
            ("l6", "concat"), ("l6", "shuffled"), ("l6b", "dot"), ("l6b", "film"), ("l7", "dcn"), ("l7", "deepfm"),
        ):  # fmt: skip
            found[f"ml_{claim}_over_{arm}"] = (auc["full"] - auc[arm], "")
        found["ml_l1_gain_over_users"] = (over_draws(self.user_bootstrap(main, "full", "bare")), "")
        gains = {
            ARMS[arm].label: paired(x, auc["bare"])
            for arm, x in auc.items()
            if ARMS[arm].backbone == "star" and arm != "bare"
        }
        rows = {f"{ARMS[arm].label}, {main}": self._row(main, arm, seeds) for arm in auc}
        for name in self.profile.logs[1:]:
            some = ("bare", "id_hypernet") if name == "amazon" else ("bare", "full", "dot", "id_hypernet")
            rows |= {f"{ARMS[arm].label}, {name}": self._row(name, arm, seeds) for arm in some}
            key = name.split()[-1]
            found[f"{key}_gain"] = (self.auc(name, some[1], seeds) - self.auc(name, "bare", seeds), "")
        return RealLogs(
            found, gains, rows, ("AUC", "AUC over all rows", "GAUC", "log loss (nats)", "rate", "parameters")
        )

    def _row(self, name: str, arm: str, seeds: Sequence[int]) -> tuple:
        """AUC with its interval; pooled AUC, GAUC and log loss as means; the rate; the number of parameters."""
        done = [self.outcome(name, arm, seed) for seed in seeds]
        means = (float(np.mean([getattr(o.scores, metric) for o in done])) for metric in ("auc", "gauc", "logloss"))
        pooled, within, loss = means
        rate = f"{self._rate(name, arm):g}"
        cells = (f"{pooled:.4f}", f"{within:.4f}", f"{loss:.4f}", rate, done[0].parameters)
        return (over_seeds([o.scores.mean_auc for o in done]), *cells)

    def serving(self, *, candidates: int = 100, repeats: int = 200) -> dict[str, np.ndarray]:
        """CPU milliseconds of one request, ``candidates`` items for one user in one scenario, in turn: [repeats] each.

        ``bare``; ``generated``: LLM4MSR making the weights from the text vectors in every request; ``cached``: from
        tables of weights. No language model runs in any of them.
        """
        bare, full = (self.outcome("world", arm, 0).model.eval() for arm in ("bare", "full"))
        cache, test = full.cache(), resident(self.task("world", 0).test, self.device)
        ways = {
            "bare": lambda ids, s: bare(ids, s),
            "generated": lambda ids, s: full(ids, s),
            "cached": lambda ids, s: full.serve(ids, s, cache, one_user=True),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        with torch.inference_mode():
            for i in range(-10, repeats):
                row = (i * 37) % len(test.s_N)
                ids = torch.stack(
                    [test.ids_NF[row, 0].expand(candidates), torch.arange(candidates) % self.profile.items], dim=1
                )
                s = test.s_N[row].expand(candidates)
                for way, call in ways.items():
                    began = time.process_time()
                    call(ids, s)
                    if i >= 0:
                        found[way].append(1000 * (time.process_time() - began))
        return {way: np.array(times) for way, times in found.items()}


def _size(model: torch.nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def _folder(path: str) -> Path:
    """A folder of data that no catalogue can fetch, below ``$ZFU_DATA``."""
    given = os.environ.get("ZFU_DATA")
    if not given or not (Path(given).expanduser() / path).is_dir():
        raise DataError(f"{path} is not there: its licence asks for a copy of your own; put it at $ZFU_DATA/{path}")
    return Path(given).expanduser() / path


def _review_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Reviews and products of each category: ``NAME.reviews.json`` and ``NAME.products.json``."""
    names = sorted(file.name.removesuffix(".reviews.json") for file in folder.glob("*.reviews.json"))
    return {n: (folder / f"{n}.reviews.json", folder / f"{n}.products.json") for n in names}


def quoted() -> dict:
    """Numbers as the paper's abstract and an independent re-run print them (``book/quoted/llm4msr.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "llm4msr.yml").read_text(encoding="utf-8"))


def audit(tables: dict) -> dict[str, float]:
    """Arithmetic on the independent re-run: cells that improved, and the least and largest gain in AUC."""
    cells = [after - before for before, after in tables["rerun_ctr_auc"].values()]
    return {
        "a1_cells": len(cells),
        "a1_improved": sum(gain > 0 for gain in cells),
        "a1_least": min(cells),
        "a1_largest": max(cells),
    }


def forms(base: np.ndarray, better: np.ndarray) -> dict[str, float]:
    """A gain in AUC in three forms that papers use: absolute, relative, and relative to chance (RelaImpr), means."""
    gain = better - base
    return {
        "absolute": float(gain.mean()),
        "relative": float((gain / base).mean()),
        "over_chance": float((gain / (base - 0.5)).mean()),
    }


def tune(rates: Sequence[float] = (3e-3, 1e-2), seed: int = 100) -> dict[str, float]:
    """The better rate of each arm by validation AUC on a world that no run uses: how :data:`RATES` was made."""
    lab, found = Lab(QUICK), {}
    for arm in (arm for arm in ARMS if ARMS[arm].text != "minilm"):
        task = "channels" if arm.startswith("cold") else "world"
        scores = {rate: max(lab._trained(task, arm, seed, 1.0, 1, rate).fit.validation) for rate in rates}
        found[arm] = max(scores, key=scores.get)
    return found
