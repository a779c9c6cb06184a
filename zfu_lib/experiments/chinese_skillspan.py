"""Experiments of the Chinese-SkillSpan chapter (arXiv 2604.23009).

Everything that is scored here is synthetic: sentences of :mod:`zfu_lib.data.zh_jobs`, whose gold is known by
construction, and annotators of :mod:`zfu_lib.experiments.simulated_coders`, whose error rates are stated. A seed is a
world: other postings, other coders, other training. The one real file, an unlabelled sample of the corpus, is counted
and never quoted (:func:`sample_statistics`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
import yaml

from zfu_lib.data import catalogue, zh_jobs
from zfu_lib.data.tables import table
from zfu_lib.data.worlds import jobads
from zfu_lib.data.zh_jobs import IMBALANCED, STRATIFIED, Advert
from zfu_lib.experiments import simulated_coders as simulated
from zfu_lib.experiments.char_tagger import CharTagger, Head
from zfu_lib.experiments.simulated_coders import EXPERT, MODEL, Coder, Layer, sentence_of
from zfu_lib.experiments.span_models import Crf, Lexicon, Tagger, add_lora
from zfu_lib.experiments.sricl import chat_batches
from zfu_lib.lm import encoder as encoders
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.recipes.base import Recipe
from zfu_lib.lm.train import TrainConfig, train
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import DataUsed
from zfu_lib.report.statistics import Interval, over_items, over_seeds
from zfu_lib.skills import agreement, annotation, chinese_skillspan, metrics, release
from zfu_lib.skills.chinese_skillspan import MARKERS
from zfu_lib.skills.markers import encode
from zfu_lib.skills.spans import Sentence, Span, untyped

Pairs = dict[str, tuple[Sequence[float], Sequence[float]]]
BASELINES: dict[str, str] = {
    "lexicon": "dictionary",
    "crf": "CRF",
    "tagger": "character classifier",
    "lstm_crf": "LSTM-CRF",
    "span": "span classifier",
}
"""Extractors that are trained on the gold of a world, with their names in figures."""
HEADS: dict[str, Head] = {"tagger": "softmax", "lstm_crf": "crf", "span": "biaffine"}
NO_MODEL = "no language model that reads Chinese is on this machine"


@dataclass(frozen=True)
class SkillspanProfile(Profile):
    """What the chapter makes.

    ``train`` and ``test`` sentences per world; ``coded`` sentences go through the annotation pipeline; ``tagger_steps``
    train the character classifier; ``calibrated`` ads per split are held against the draft's table; ``fits`` settings
    of simulated coders are tried for each explanation of an agreement; ``sample`` says whether the real sample is
    counted; ``base`` is a language model to be prompted and fine-tuned in ``sft_steps`` (empty: none).
    """

    train: int
    test: int
    coded: int
    tagger_steps: int
    calibrated: int
    fits: int
    sample: bool
    base: str = ""
    sft_steps: int = 0
    sft_batch: int = 16
    context: int = 2048
    max_tokens: int = 512


QUICK = SkillspanProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=2, memory_gb=2),
    seeds=3,
    train=400,
    test=400,
    coded=200,
    tagger_steps=300,
    calibrated=500,
    fits=300,
    sample=False,
)
FULL = replace(
    QUICK,
    profile="full",
    cost=Cost(machine="4 CPU cores", minutes=25, memory_gb=4, data=("chinese_skillspan",)),
    seeds=5,
    train=16_000,
    test=3_000,
    coded=2_000,
    tagger_steps=6_000,
    calibrated=2_000,
    fits=1_500,
    sample=True,
)
# Base, rank and rate of the authors' own adapter runs of 2026 (public notes); the preprint names no training recipe.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 3 adapters of 800 steps and 6 decodings of 2,600 sentences, arithmetic at 40% use",
        minutes=420,
        memory_gb=64,
        gpu_memory_gb=80,
        disk_gb=35,
        downloads=(Download("Qwen/Qwen2.5-14B-Instruct", 29.5),),
        data=FULL.cost.data,
    ),
    seeds=3,
    test=2_601,
    base="hf:Qwen/Qwen2.5-14B-Instruct",
    sft_steps=800,
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}
# What one CPU thread changes; the run says so.
FULL_ON_CPU = {
    "train": 2_000, "test": 1_000, "coded": 600, "tagger_steps": 1_000, "calibrated": 1_000, "fits": 500
}  # fmt: skip


class Lab:
    """Makes worlds, coders and extractors on demand, once per seed."""

    def __init__(self, profile: SkillspanProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.asked = profile
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.used: list[DataUsed] = list(catalogue.used("chinese_skillspan")) if profile.sample else []
        self._kept: dict[tuple, Any] = {}

    def description(self) -> str:
        """What is made, and how far that is from what the profile asks for."""
        p, a = self.profile, self.asked
        text = (
            f"Synthetic job ads: {p.train} training and {p.test} test sentences, {p.coded} that are annotated, in each "
            f"of {p.seeds} worlds (seeds), on {self.device}; language model: {p.base or 'none'}."
        )
        if p != a:
            text += (
                f" Scaled down for a CPU: the profile asks for {a.train} training, {a.test} test and {a.coded} "
                f"annotated sentences, {a.tagger_steps} steps of the classifier (here {p.tagger_steps}) and {a.fits} "
                f"settings of coders (here {p.fits})."
            )
        return text

    @property
    def seeds(self) -> range:
        """The worlds."""
        return range(self.profile.seeds)

    def once(self, key: tuple, made: Callable[[], Any]) -> Any:
        """Compute something once."""
        if key not in self._kept:
            self._kept[key] = made()
        return self._kept[key]

    # Worlds.

    def ads(self, seed: int, split: str, *, mix: str = "stratified", n: int = 0) -> list[Advert]:
        """``n`` synthetic sentences of a split; ``mix`` is ``stratified`` or ``imbalanced`` (the draft's sources)."""
        n = n or {"train": self.profile.train, "test": self.profile.test, "coded": self.profile.coded}[split]
        shares = (IMBALANCED if mix == "imbalanced" else STRATIFIED)["train" if split == "train" else "test"]
        numbers = {"train": 1, "test": 2, "coded": 3}

        def made() -> list[Advert]:
            postings = max(8, round(n / 9))
            found = zh_jobs.postings(postings, 10 * seed + numbers[split], mix=shares, name=f"{split}_")
            return found[:n]

        return self.once(("ads", seed, split, mix, n), made)

    def train(self, seed: int, *, mix: str = "stratified", n: int = 0) -> list[Sentence]:
        """Training sentences with gold."""
        return [sentence_of(ad) for ad in self.ads(seed, "train", mix=mix, n=n)]

    def test(self, seed: int, *, mix: str = "stratified") -> list[Sentence]:
        """Test sentences with gold."""
        return self.once(("test", seed, mix), lambda: [sentence_of(ad) for ad in self.ads(seed, "test", mix=mix)])

    # Extractors.

    def fitted(self, name: str, seed: int, *, mix: str = "stratified") -> Lexicon | Crf | CharTagger:
        """One of :data:`BASELINES`, trained on the gold of the world."""

        def made() -> Lexicon | Crf | CharTagger:
            train_set = self.train(seed, mix=mix)
            if name == "lexicon":
                return Lexicon(train_set)
            if name == "crf":
                return Crf(train_set, iterations=40)
            steps = self.profile.tagger_steps
            return CharTagger(train_set, steps=steps, seed=seed, head=HEADS[name], device=self.device)

        return self.once(("fitted", name, seed, mix), made)

    def predictions(self, name: str, seed: int) -> list[list[Span]]:
        """Test predictions of one of :data:`BASELINES`."""
        return self.once(("predictions", name, seed), lambda: self.fitted(name, seed).predict(self.test(seed)))

    def f1(self, name: str) -> np.ndarray:
        """Typed exact F1 on the test set, one per world."""
        return np.array([exact(self.test(seed), self.predictions(name, seed)) for seed in self.seeds])

    def unseen(self, name: str) -> np.ndarray:
        """Recall on test spans whose words are no span of the training set, one per world."""
        found = []
        for seed in self.seeds:
            known = {s.words(span) for s in self.train(seed) for span in s.spans}
            right, total = metrics.recall_of(
                self.test(seed), self.predictions(name, seed), lambda s, span, k=known: s.words(span) not in k
            )
            found.append(right / max(1, total))
        return np.array(found)


def exact(sentences: Sequence[Sentence], predicted: Sequence[Sequence[Span]], *, typed: bool = True) -> float:
    """STRICT F1 summed over sentences."""
    return metrics.strict([s.spans for s in sentences], predicted, typed=typed).score().f1


def relaxed(sentences: Sequence[Sentence], predicted: Sequence[Sequence[Span]]) -> float:
    """F1 with an intersection over union of at least one half, typed."""
    return metrics.overlap([s.spans for s in sentences], predicted).score().f1


P = ParamSpec("P")
R = TypeVar("R")


def _once(function: Callable[Concatenate[Lab, P], R]) -> Callable[Concatenate[Lab, P], R]:
    """Keep what a function of a lab returns, in that lab."""

    @functools.wraps(function)
    def kept(lab: Lab, *args: P.args, **named: P.kwargs) -> R:
        key = (function.__name__, args, tuple(sorted(named.items())))
        return lab.once(key, lambda: function(lab, *args, **named))

    return kept


# The world against the table of the draft (C2).


@_once
def calibration(lab: Lab) -> dict[str, dict[str, list[float]]]:
    """Per split of the draft's table: mean characters, spans per sentence, shares of L, K, S, T, one per world."""
    found: dict[str, dict[str, list[float]]] = {}
    for split, mix in IMBALANCED.items():
        rows: dict[str, list[float]] = {name: [] for name in ("characters", "spans", *"LKST")}
        for seed in lab.seeds:
            ads = zh_jobs.postings(lab.profile.calibrated, 100 + seed, mix=mix, name=f"{split}_")
            kinds = [mark.type for ad in ads for mark in ad.spans]
            rows["characters"].append(float(np.mean([len(ad.text) for ad in ads])))
            rows["spans"].append(len(kinds) / len(ads))
            for label in "LKST":
                rows[label].append(kinds.count(label) / len(kinds))
        found[split] = rows
    return found


def calibration_errors(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The largest relative error of characters and of spans, and of a type's share (absolute), per world."""
    said = quoted()["corpus"]["rows"]
    worlds = range(len(next(iter(rows.values()))["spans"]))
    errors: dict[str, list[float]] = {"c2_characters": [], "c2_spans": [], "c2_mix": []}
    for w in worlds:
        off = {"characters": 0.0, "spans": 0.0, "mix": 0.0}
        for split, row in rows.items():
            _, characters, spans, *types = said[split]
            total = sum(types)
            off["characters"] = max(off["characters"], abs(row["characters"][w] / characters - 1))
            off["spans"] = max(off["spans"], abs(row["spans"][w] / spans - 1))
            for label, rate in zip("LKST", types, strict=True):
                off["mix"] = max(off["mix"], abs(row[label][w] - rate / total))
        for name, value in off.items():
            errors[f"c2_{name}"].append(value)
    return errors


def table_audit() -> dict[str, float]:
    """Arithmetic on the draft's tables: parts against totals, F1 against its precision and recall, and the recount."""
    said = quoted()
    parts = [abs(row[2] - sum(row[3:7])) for row in said["corpus"]["rows"].values()]
    f1 = []
    for p, r, f in (said["agreement"]["rows"][kind] for kind in ("strict", "relaxed")):
        f1.append(abs(2 * p * r / (p + r) - f))
    sentences, per = said["corpus"]["rows"]["test"][0], said["corpus"]["rows"]["test"][2]
    recount = said["recount"]["rows"]["test spans"][0] / sentences
    return {"a1_parts": max(parts), "a1_f1": max(f1), "a2_recount": recount / per - 1}


# Macro and micro (C1, C4).


class Chain(NamedTuple):
    """One project from texts to frozen gold, with what each stage was worth against the truth."""

    project: annotation.Project
    ads: list[Advert]
    silver: list[tuple[Span, ...]]
    blind: list[Layer]
    coded: list[Layer]
    gold: list[tuple[Span, ...]]


def chain(lab: Lab, seed: int, *, coder: Coder = MODEL, breaks: float = 0.15, n: int = 0) -> Chain:
    """Texts through macro, two assisted coders and adjudication by the guideline, in one project."""

    def made() -> Chain:
        ads = lab.ads(seed, "coded", n=n)
        bare = [sentence_of(ad, gold=False) for ad in ads]
        project = annotation.Project()
        project.add(bare, coders=2)
        model = simulated.model(ads, coder, seed, breaks=breaks)
        silver = chinese_skillspan.macro(model, bare, retries=2)
        for sentence, suggestion in zip(bare, silver, strict=True):
            project.suggest(sentence.id, suggestion, by="simulated model")
        rng = np.random.default_rng((seed, 61))
        blind = [simulated.code(ads, EXPERT, rng) for _ in range(2)]
        coded = [simulated.assisted(ads, [s.spans for s in silver], layer, rng) for layer in blind]
        for k, layer in enumerate(coded):
            for sentence, spans in zip(bare, layer, strict=True):
                project.code(sentence.id, spans, by=f"simulated expert {k + 1}", assisted=True)
        for sentence in bare:
            project.adjudicate(sentence.id)
        project.freeze()
        gold = [item.gold or () for item in project.items.values()]
        return Chain(project, ads, [s.spans or () for s in silver], blind, coded, gold)

    return lab.once(("chain", seed, coder, breaks, n), made)


@_once
def chain_scores(lab: Lab, **options: Any) -> dict[str, np.ndarray]:
    """F1 against the truth of silver, of one expert with and without suggestions, and of the adjudicated set; edits per
    sentence of an assisted expert, and spans to be written per sentence without suggestions; one per world."""
    rows: dict[str, list[float]] = {
        k: [] for k in ("silver", "assisted", "blind", "adjudicated", "edits", "scratch", "quarantined")
    }
    for seed in lab.seeds:
        done = chain(lab, seed, **options)
        truth = [sentence_of(ad) for ad in done.ads]
        rows["silver"].append(exact(truth, done.silver))
        rows["assisted"].append(exact(truth, done.coded[0]))
        rows["blind"].append(exact(truth, done.blind[0]))
        rows["adjudicated"].append(exact(truth, done.gold))
        effort = done.project.effort()
        rows["edits"].append(effort.edits / (2 * len(truth)))
        rows["scratch"].append(float(np.mean([len(spans) for spans in done.blind[0]])))
        rows["quarantined"].append(len(done.project.quarantined()) / len(truth))
    return {name: np.array(values) for name, values in rows.items()}


def violations(lab: Lab) -> int:
    """Broken rules of form in everything that the chain froze and released, and in what it made of random answers."""
    done = chain(lab, 0)
    frozen = done.project.gold()
    made = release.build(
        frozen, name="synth_check", description="check", licence="none", synthetic=True, guideline="check"
    )
    wrong = sum(
        a.text != b.text
        for a, b in zip(frozen, (sentence_of(ad) for ad in done.ads if done.project.items[ad.id].frozen))
    )
    for sentence in frozen:
        for a, b in zip(sentence.spans, sentence.spans[1:], strict=False):
            wrong += b.start < a.end
        wrong += sum(span.type not in chinese_skillspan.LABELS for span in sentence.spans)
        wrong += sum(sentence.words(span) not in sentence.text for span in sentence.spans)
    wrong += len(set(made.split.values()) - set(release.SPLITS))
    rng = np.random.default_rng(71)
    pieces = ["@@", "##", "[S]", "[K]", "[Q]", "#", "@", "数据", "清洗", " ", "和"]
    for sentence in frozen[:200]:
        marked = encode(sentence, MARKERS)
        at = int(rng.integers(len(marked) + 1))
        answer = marked[:at] + str(rng.choice(pieces)) + marked[at:]
        checked = chinese_skillspan.verify(sentence, answer, MARKERS, types=chinese_skillspan.LABELS)
        wrong += bool(checked.errors and checked.spans)
        sentence.with_spans(checked.spans)
    return wrong


# Agreement (C5, C13, A4).


def coders(lab: Lab, seed: int, settings: Sequence[Coder], n: int = 0) -> tuple[list[Sentence], list[Layer]]:
    """Sentences and what coders of these settings mark in them without suggestions."""
    ads = lab.ads(seed, "coded", n=n)
    layers = [simulated.code(ads, c, np.random.default_rng((seed, 67, k))) for k, c in enumerate(settings)]
    return [sentence_of(ad, gold=False) for ad in ads], layers


@_once
def blind_and_assisted(lab: Lab) -> dict[str, np.ndarray]:
    """Agreement of two simulated experts without and with suggestions of the model, and F1 of
    each against the model's suggestions and against the truth; one figure per world."""
    rows: dict[str, list[float]] = {}
    for seed in lab.seeds:
        done = chain(lab, seed)
        texts = [sentence_of(ad, gold=False) for ad in done.ads]
        for name, layers in (("blind", done.blind), ("assisted", done.coded)):
            found = agreement.report(texts, layers, resamples=0)
            for what in ("strict", "boundary", "relaxed", "kappa", "kappa_marked", "alpha"):
                rows.setdefault(f"{name} {what}", []).append(getattr(found, what).value)
            rows.setdefault(f"{name} identical", []).append(found.identical)
            machine = [t.with_spans(spans) for t, spans in zip(texts, done.silver, strict=True)]
            truth = [sentence_of(ad) for ad in done.ads]
            rows.setdefault(f"{name} machine", []).append(float(np.mean([exact(machine, x) for x in layers])))
            rows.setdefault(f"{name} truth", []).append(float(np.mean([exact(truth, x) for x in layers])))
    return {name: np.array(values) for name, values in rows.items()}


def noise_curves(lab: Lab, kind: Literal["recall", "edges", "types"], rates: Sequence[float]) -> dict[str, dict]:
    """Agreement of two coders whose only errors are of one kind, at several rates; means over worlds with intervals."""
    names = {"strict": "exact F1", "relaxed": "relaxed F1", "kappa": "kappa", "kappa_marked": "kappa, marked only"}
    found: dict[str, list[list[float]]] = {label: [] for label in names.values()}
    for rate in rates:
        coder = Coder(recall=1 - rate) if kind == "recall" else Coder(**{kind: rate})
        columns: dict[str, list[float]] = {label: [] for label in names.values()}
        for seed in lab.seeds:
            made = agreement.report(*coders(lab, seed, (coder, coder)), resamples=0)
            for field, label in names.items():
                columns[label].append(getattr(made, field).value)
        for label, values in columns.items():
            found[label].append(values)
    return {label: curve(rates, np.array(rows).T) for label, rows in found.items()}


REGIMES: dict[str, dict[str, float]] = {
    "a": {"precision": 0.707, "recall": 0.426, "strict": 0.532, "relaxed": 0.624, "kappa": 0.554},
    "b": {"strict": 0.818, "boundary": 0.850, "alpha": 0.907},
}
"""What was reported: regime A of two coders in the draft (its table 2), B of three blinded coders in 2026."""

CAUSES = ("scope", "boundary", "type", "all")
"""Which errors a fit may use: whether to mark, where to cut, which type, or all."""


class Explanation(NamedTuple):
    """The setting that comes closest: its largest deviation from the targets, what it reaches, and the coders."""

    deviation: float
    reached: dict[str, float]
    coders: tuple[Coder, ...]
    fitting: float


def fit(lab: Lab, seed: int, regime: Literal["a", "b"], cause: str, *, close: float = 0.05) -> Explanation:
    """Random search over the coders' error rates for a reported agreement.

    Half of the settings are drawn at large, the rest near the best so far. ``fitting`` is the share of all settings
    within ``close`` of every target.
    """

    def made() -> Explanation:
        rng = np.random.default_rng((seed, 73, CAUSES.index(cause), regime == "b"))
        ads = lab.ads(seed, "coded", n=120)
        best, near = Explanation(np.inf, {}, (), 0.0), 0
        for trial in range(lab.profile.fits):
            settings = _settings(rng, regime, cause, best.coders if 2 * trial >= lab.profile.fits else ())
            layers = [simulated.code(ads, c, np.random.default_rng((seed, 79, k))) for k, c in enumerate(settings)]
            reached = _reached(ads, layers, regime)
            off = max(abs(reached[name] - value) for name, value in REGIMES[regime].items())
            near += off <= close
            if off < best.deviation:
                best = Explanation(off, reached, settings, 0.0)
        return best._replace(fitting=near / lab.profile.fits)

    return lab.once(("fit", seed, regime, cause), made)


def _settings(rng: np.random.Generator, regime: str, cause: str, near: tuple[Coder, ...]) -> tuple[Coder, ...]:
    def draw(k: int, name: str, low: float, high: float, used: bool, neutral: float) -> float:
        if not used:
            return neutral
        if near:
            return float(np.clip(getattr(near[k], name) + rng.normal(0, 0.04), 0, 1))
        return float(rng.uniform(low, high))

    found = []
    for k in range(2 if regime == "a" else 3):
        found.append(
            Coder(
                recall=draw(k, "recall", 0.4, 1.0, cause in ("scope", "all"), 1.0),
                spurious=draw(k, "spurious", 0.0, 0.6, cause in ("scope", "all"), 0.0),
                edges=draw(k, "edges", 0.0, 0.6 if cause == "boundary" else 0.3, cause in ("boundary", "all"), 0.0),
                types=draw(k, "types", 0.0, 0.5 if cause == "type" else 0.2, cause in ("type", "all"), 0.0),
            )
        )
    return tuple(found)


def _reached(ads: Sequence[Advert], layers: Sequence[Layer], regime: str) -> dict[str, float]:
    """The figures of a regime, as :func:`zfu_lib.skills.agreement.report` gives them, without intervals."""
    kinds = list(zh_jobs.TYPES)
    rows = [
        np.concatenate([agreement.labels(len(ad.text), spans, kinds) for ad, spans in zip(ads, layer, strict=True)])
        for layer in layers
    ]
    if regime == "b":
        pairs = list(combinations(layers, 2))
        table = agreement.coincidence(np.array(rows), 1 + len(kinds))
        return {
            "strict": float(np.mean([metrics.strict(*pair).score().f1 for pair in pairs])),
            "boundary": float(np.mean([metrics.strict(*pair, typed=False).score().f1 for pair in pairs])),
            "alpha": float(agreement.krippendorff_alpha(table)),
        }
    score, near = metrics.strict(*layers).score(), metrics.overlap(*layers).score()
    kappa = float(agreement.cohen_kappa(agreement.confusion(*rows, 1 + len(kinds))))
    shares = {"precision": score.precision, "recall": score.recall, "strict": score.f1}
    return shares | {"relaxed": near.f1, "kappa": kappa}


def sampling_error(lab: Lab, sizes: Sequence[int] = (50, 100, 200, 400)) -> dict[str, dict[str, list[float]]]:
    """Half the width of the 95% interval of exact F1 and of kappa of two experts by the number of sentences."""
    rows: dict[str, list[list[float]]] = {"exact F1": [], "kappa": []}
    for n in sizes:
        widths: dict[str, list[float]] = {name: [] for name in rows}
        for seed in lab.seeds:
            texts, layers = coders(lab, seed, (EXPERT, EXPERT), n=max(sizes))
            made = agreement.report(texts[:n], [layer[:n] for layer in layers], resamples=300, seed=seed)
            for name, estimate in (("exact F1", made.strict), ("kappa", made.kappa)):
                widths[name].append((estimate.high - estimate.low) / 2)
        for name, values in widths.items():
            rows[name].append(values)
    return {name: curve(sizes, np.array(values).T) for name, values in rows.items()}


# The audit of scoring (section 3 of the dossier): what a score can hide (C7, C8, A3, A5).


def pooled(gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span] | None]) -> float:
    """F1 of a scorer that puts (start, end, type) of the whole corpus into one set: wrong, shown to compare."""
    a, b = ({tuple(span) for spans in side for span in spans or ()} for side in (gold, predicted))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


def unrelated(sentences: Sequence[Sentence], predicted: Sequence[Sequence[Span]], seed: int) -> list[list[Span]]:
    """A system without skill but with natural spans: each sentence gets what was predicted for another one."""
    order = np.roll(np.random.default_rng((seed, 83)).permutation(len(sentences)), 1)
    return [[span for span in predicted[j] if span.end <= len(s.tokens)] for s, j in zip(sentences, order, strict=True)]


def systems(lab: Lab, seed: int) -> dict[str, list[list[Span] | None]]:
    """Systems for the audit: baselines, one with right edges and poor types, one that often fails, one unrelated."""
    test, rng = lab.test(seed), np.random.default_rng((seed, 89))
    crf, lexicon = lab.predictions("crf", seed), lab.predictions("lexicon", seed)
    retyped = [
        [s._replace(type=simulated.CONFUSED[s.type]) if rng.random() < 0.45 else s for s in spans] for spans in crf
    ]
    failing = [None if rng.random() < 0.4 else spans for spans in crf]
    return {
        "CRF": crf,
        "dictionary": lexicon,
        "right edges, poor types": retyped,
        "fails on 40%": failing,
        "unrelated": unrelated(test, crf, seed),
    }


SCORERS = ("typed, all sentences", "untyped", "failed left out", "pooled")


@_once
def scores(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Every system under every scorer; the first scorer is the right one."""
    gold = [s.spans for s in lab.test(seed)]
    found = {}
    for name, said in systems(lab, seed).items():
        valid = metrics.denominators(gold, said)["valid only"].f1
        found[name] = dict(
            zip(
                SCORERS,
                (
                    metrics.strict(gold, said).score().f1,
                    metrics.strict(gold, said, typed=False).score().f1,
                    valid,
                    pooled(gold, said),
                ),
                strict=True,
            )
        )
    return found


def scorer_pairs(lab: Lab) -> Pairs:
    """Differences of C8 and A3."""
    rows = [scores(lab, seed) for seed in lab.seeds]

    def of(system: str, scorer: str) -> list[float]:
        return [row[system][scorer] for row in rows]

    right = SCORERS[0]
    spread = [max(row["fails on 40%"].values()) - min(row["fails on 40%"].values()) for row in rows]
    gap = [row["CRF"][right] - row["dictionary"][right] for row in rows]
    return {
        "c8_pooled_lift": (of("unrelated", "pooled"), of("unrelated", right)),
        "c8_spread_minus_gap": (spread, gap),
        "a3_typed": (of("dictionary", right), of("right edges, poor types", right)),
        "a3_untyped": (of("right edges, poor types", "untyped"), of("dictionary", "untyped")),
    }


def circular(lab: Lab, *, checked: float = 0.25) -> Pairs:
    """A5: two simulated models of the same true quality; gold is made from the silver of the first, lightly checked.

    A checker notices each error of the suggestion with chance ``checked``. The pair is the first model's gain from
    being scored on that gold instead of the truth, and the second model's.
    """
    own, other = [], []
    for seed in lab.seeds:
        ads = lab.ads(seed, "coded")
        truth = [sentence_of(ad) for ad in ads]
        first, second = (simulated.code(ads, MODEL, np.random.default_rng((seed, 97, k))) for k in (0, 1))
        human = simulated.code(ads, EXPERT, np.random.default_rng((seed, 101)))
        gold = simulated.assisted(ads, first, human, np.random.default_rng((seed, 103)), checked)
        made = [s.with_spans(spans) for s, spans in zip(truth, gold, strict=True)]
        own.append(exact(made, first) - exact(truth, first))
        other.append(exact(made, second) - exact(truth, second))
    return {"a5_flattered": (own, other)}


def english_only(lab: Lab) -> np.ndarray:
    """C7: edges-only F1 of an English encoder, trained on English ads, on Chinese ones; one per world."""
    found = []
    encoder = lab.once(("encoder",), lambda: encoders.load("minilm", device=lab.device, max_length=96))
    for seed in lab.seeds:
        ads = jobads.ads(200, 200 + seed)
        english = [Sentence(ad.tokens, tuple(Span(*s) for s in ad.spans), id=ad.id) for ad in ads]
        layers = len(encoder.model.encoder.layer)
        tagger = Tagger(encoder, english, steps=200, seed=seed, frozen=layers)
        # A token that is white space has no sub-word; such sentences are left out for this system only.
        test = [s for s in lab.test(seed)[:150] if all(t.strip() for t in s.tokens)]
        said = [untyped(spans) for spans in tagger.predict(test)]
        found.append(exact([s.with_spans(untyped(s.spans)) for s in test], said))
    return np.array(found)


# Baselines and what spoils them (C6, C9, C10, C12).


def shifted(sentence: Sentence) -> Sentence:
    """The sentence as a writer with inclusive ends would tag it: every span takes in the next character, if free."""
    starts = {span.start for span in sentence.spans}
    n = len(sentence.tokens)
    return sentence.with_spans(
        s._replace(end=s.end + 1) if s.end < n and s.end not in starts else s for s in sentence.spans
    )


def coarse(ad: Advert) -> Sentence:
    """An older scheme: one span a clause that holds any, from where its core begins to its last word, so that lists are
    merged and scene words and tails kept; with the first span's type."""
    sentence, found = sentence_of(ad, gold=False), []
    for _, end, _, core in ad.clauses:
        inside = [mark for mark in ad.spans if core <= mark.start and mark.end <= end]
        if inside:
            found.append(Span(core, end, inside[0].type))
    return sentence.with_spans(found)


@_once
def shift_curves(lab: Lab, shares: Sequence[float] = (0.0, 0.25, 0.5, 1.0)) -> dict[str, np.ndarray]:
    """C9: exact and relaxed F1 of a CRF trained with a share of sentences whose ends are one too far:
    [worlds, shares] each."""
    exactly, nearly = [], []
    for seed in lab.seeds:
        train_set, test = lab.train(seed), lab.test(seed)
        order = np.random.default_rng((seed, 107)).permutation(len(train_set))
        rows: list[tuple[float, float]] = []
        for share in shares:
            spoilt = set(order[: round(share * len(train_set))].tolist())
            mixed = [shifted(s) if i in spoilt else s for i, s in enumerate(train_set)]
            said = (Crf(mixed, iterations=40) if spoilt else lab.fitted("crf", seed)).predict(test)
            rows.append((exact(test, said), relaxed(test, said)))
        exactly.append([a for a, _ in rows])
        nearly.append([b for _, b in rows])
    return {"exact": np.array(exactly), "relaxed": np.array(nearly)}


@_once
def by_source(lab: Lab) -> dict[str, dict[str, np.ndarray]]:
    """C10: F1 by source of the test set for a CRF trained on the draft's sources, and on all; one per world."""
    found: dict[str, dict[str, list[float]]] = {"imbalanced": {}, "stratified": {}}
    for seed in lab.seeds:
        for mix, rows in found.items():
            fitted = lab.fitted("crf", seed, mix=mix)
            for source in zh_jobs.SOURCES:
                n = min(150, lab.profile.test)
                ads = zh_jobs.postings(30, 500 + seed, mix={source: 1.0}, name=f"{source}_")[:n]
                test = [sentence_of(ad) for ad in ads]
                rows.setdefault(source, []).append(exact(test, fitted.predict(test)))
    return {mix: {source: np.array(v) for source, v in rows.items()} for mix, rows in found.items()}


@_once
def scheme_scores(lab: Lab) -> dict[str, np.ndarray]:
    """C12: F1 of a CRF by label scheme of its training set and size: [worlds, sizes]; sizes are a quarter, a half and
    all of the training set."""
    found: dict[str, list[list[float]]] = {"same scheme": [], "same scheme, noisy": [], "coarser scheme": []}
    for seed in lab.seeds:
        ads, test = lab.ads(seed, "train"), lab.test(seed)
        noisy = simulated.code(ads, replace(EXPERT, recall=0.85, edges=0.15), np.random.default_rng((seed, 109)))
        sets = {
            "same scheme": [sentence_of(ad) for ad in ads],
            "same scheme, noisy": [sentence_of(ad).with_spans(s) for ad, s in zip(ads, noisy, strict=True)],
            "coarser scheme": [coarse(ad) for ad in ads],
        }
        for name, train_set in sets.items():
            sizes = scheme_sizes(lab)
            found[name].append([exact(test, Crf(train_set[:n], iterations=40).predict(test)) for n in sizes])
    return {name: np.array(rows) for name, rows in found.items()}


def scheme_sizes(lab: Lab) -> list[int]:
    """Sizes of :func:`scheme_scores`."""
    return [max(8, lab.profile.train // k) for k in (4, 2, 1)]


def slices(lab: Lab, name: str, by: Literal["type", "length", "tag"]) -> dict[str, list[float]]:
    """Recall of gold spans by type, by length in characters or by phenomenon, one per world (X5)."""
    found: dict[str, list[float]] = {}
    for seed in lab.seeds:
        hits: dict[str, list[bool]] = {}
        for ad, said in zip(lab.ads(seed, "test"), lab.predictions(name, seed), strict=True):
            for mark in ad.spans:
                span = Span(*mark[:3])
                length = mark.end - mark.start
                keys = {
                    "type": [mark.type],
                    "length": [f"{length}" if length < 10 else "10+"],
                    "tag": [tag for tag in ad.tags if tag != "nothing"] or ["none"],
                }[by]
                for key in keys:
                    hits.setdefault(key, []).append(span in said)
        for key, values in hits.items():
            found.setdefault(key, []).append(float(np.mean(values)))
    return found


# The real sample: counted, never quoted.


def sample_statistics() -> dict[str, dict[str, float]]:
    """Numbers about the unlabelled real sample by source and in all; no text leaves this function.

    ``characters`` mean length; ``latin`` share of sentences with a Latin letter; ``repeated`` share that stand in the
    sample before; ``known`` share with a competence of the synthetic lexicon in them (coverage, no accuracy);
    ``labels`` filled label fields.
    """
    rows = list(table("chinese_skillspan", "unlabelled_sample.json"))
    heads = [entry.head for entry in zh_jobs.lexicon() if len(entry.head) > 1]
    names = {"人工智能招聘": "AI", "应届生招聘": "graduate", "阿里云公开数据集": "hosted", "事业单位招聘": "public"}
    groups: dict[str, list[Any]] = {"all": rows}
    for row in rows:
        groups.setdefault(names.get(row["source_domain"], "other"), []).append(row)
    found = {}
    for name, group in groups.items():
        texts = [row["sentence"] for row in group]
        found[name] = {
            "sentences": len(texts),
            "postings": len({row["global_id"] for row in group}),
            "characters": float(np.mean([len(t) for t in texts])),
            "latin": float(np.mean([any(c.isascii() and c.isalpha() for c in t) for t in texts])),
            "repeated": 1 - len(set(texts)) / len(texts),
            "known": float(np.mean([any(head in t for head in heads) for t in texts])),
            "labels": float(sum(bool(row["skill_spans"]) for row in group)),
        }
    return found


def sample_length() -> Interval:
    """Mean length of a real sentence, with a bootstrap interval over postings."""
    rows = list(table("chinese_skillspan", "unlabelled_sample.json"))
    by_posting: dict[str, list[int]] = {}
    for row in rows:
        by_posting.setdefault(row["global_id"], []).append(len(row["sentence"]))
    groups = list(by_posting.values())
    rng = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        drawn = [groups[i] for i in rng.integers(0, len(groups), len(groups))]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    whole = over_items([len(row["sentence"]) for row in rows])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(whole.mean, float(low), float(high), len(groups), "bootstrap over postings")


# A language model (profile `paper`).


def answer_pair(sentence: Sentence) -> tuple[list, str]:
    """What the model is asked, and the marked sentence it should write."""
    return chinese_skillspan.prompt(sentence), encode(sentence, MARKERS)


def fine_tune(lab: Lab, base: TransformersLM, seed: int) -> None:
    """LoRA on the macro prompt, answers only; the base is changed in place."""
    p, train_set = lab.profile, lab.train(seed)
    torch.manual_seed(seed)
    add_lora(base.model)

    def examples(count: int, draw: int, _: float) -> list[tuple[str, str]]:
        chosen = np.random.default_rng((draw, 113)).integers(0, len(train_set), count)
        pairs = [answer_pair(train_set[i]) for i in chosen]
        return [
            (
                base.tokenizer.apply_chat_template(
                    [{"role": t.role, "content": t.content} for t in turns], tokenize=False, add_generation_prompt=True
                ),
                answer,
            )
            for turns, answer in pairs
        ]

    schedule = TrainConfig(
        p.sft_steps, p.sft_batch, p.context, 1e-4, warmup=max(1, p.sft_steps // 10), weight_decay=0.01, seed=seed,
        dtype="auto", micro_batch=1,
    )  # fmt: skip
    recipe = Recipe("chinese_skillspan", "", {}, schedule, examples, lambda *_: [], 0, committed=False)
    log = train(base.model, chat_batches(recipe, base.tokenizer), schedule, device=lab.device)
    if log.diverged:
        raise ValueError(f"fine-tuning diverged at step {len(log.loss)}")
    base.model.eval()


def model_scores(lab: Lab) -> dict[str, list[tuple[float, float]]]:
    """Exact and relaxed F1 of the profile's language model on the test sentences, prompted and after LoRA; one per
    world; nothing where the profile has no model."""
    if not lab.profile.base:
        return {}
    found: dict[str, list[tuple[float, float]]] = {"prompted": [], "LoRA": []}
    for seed in lab.seeds:
        base = TransformersLM(lab.profile.base.removeprefix("hf:"), device=lab.device)
        test = lab.test(seed)
        bare = [s.with_spans(()) for s in test]
        for name in found:
            if name == "LoRA":
                fine_tune(lab, base, seed)
            silver = chinese_skillspan.macro(base, bare, max_tokens=lab.profile.max_tokens)
            said = [s.spans or () for s in silver]
            found[name].append((exact(test, said), relaxed(test, said)))
    return found


# For the notebook.


def pairs(lab: Lab) -> Pairs:
    """Every paired difference that the claims need."""
    worth, views = chain_scores(lab), blind_and_assisted(lab)
    none = np.zeros(lab.profile.seeds)
    shift, schemes, sources = shift_curves(lab), scheme_scores(lab), by_source(lab)
    missing = [np.mean([sources[mix][s] for s in ("hosted", "public")], axis=0) for mix in ("stratified", "imbalanced")]
    deviation = {
        (regime, cause): np.array([fit(lab, seed, regime, cause).deviation for seed in lab.seeds])
        for regime in REGIMES
        for cause in CAUSES
    }
    return {
        "c4_gain": (worth["adjudicated"], worth["silver"]),
        "c4_edits_saved": (worth["scratch"], worth["edits"]),
        "c5_fit_a": (deviation["a", "all"], none),
        "c5_fit_b": (deviation["b", "all"], none),
        "c5_boundary_a": (deviation["a", "boundary"], none),
        "c5_boundary_minus_scope": (deviation["a", "boundary"], deviation["a", "scope"]),
        "c6_crf": (lab.f1("crf"), lab.f1("lexicon")),
        "c6_tagger": (lab.f1("tagger"), lab.f1("lexicon")),
        "c6_unseen": (lab.unseen("tagger"), lab.unseen("lexicon")),
        "tagger_minus_crf": (lab.f1("tagger"), lab.f1("crf")),
        "lstm_crf_minus_tagger": (lab.f1("lstm_crf"), lab.f1("tagger")),
        "lstm_crf_minus_crf": (lab.f1("lstm_crf"), lab.f1("crf")),
        "lstm_crf_unseen_minus_crf": (lab.unseen("lstm_crf"), lab.unseen("crf")),
        "span_minus_lstm_crf": (lab.f1("span"), lab.f1("lstm_crf")),
        "c7_english": (english_only(lab), none),
        "c9_exact_left": (shift["exact"][:, -1], none),
        "c9_relaxed_kept": (shift["relaxed"][:, -1] / shift["relaxed"][:, 0], none),
        "c10_gap": tuple(missing),
        "c12_scheme_minus_volume": (schemes["same scheme"][:, 1], schemes["coarser scheme"][:, 2]),
        "c13_kappa_minus_f1": (views["blind kappa"], views["blind strict"]),
        "c13_kappa_minus_marked": (views["blind kappa"], views["blind kappa_marked"]),
        "a4_anchoring": (views["assisted machine"], views["blind machine"]),
        "a4_truth": (views["assisted truth"], views["blind truth"]),
        "assisted_minus_blind": (views["assisted strict"], views["blind strict"]),
        "adjudicated_minus_blind": (worth["adjudicated"], worth["blind"]),
        **scorer_pairs(lab),
        **circular(lab),
    }


def curve(x: Sequence[float], by_seed: np.ndarray) -> dict[str, list[float]]:
    """A line with its interval over worlds: ``by_seed`` [worlds, points]."""
    made = [over_seeds(column) for column in np.asarray(by_seed, dtype=float).T]
    return {
        "x": list(x),
        "y": [i.mean for i in made],
        "low": [i.low for i in made],
        "high": [i.high for i in made],
    }


@functools.cache
def quoted() -> dict[str, Any]:
    """What others report (``book/quoted/chinese_skillspan.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "chinese_skillspan.yml").read_text(encoding="utf-8"))
