"""Experiments of the SWAT chapter (arXiv 2502.18845).

A :class:`Lab` trains every arm once per seed and remembers it; the functions below it measure what needs no training.
Lengths are counted in windows (ω): an arm "trained at 8ω" saw texts of eight windows.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer

from zfu_lib.attention.swat import receptive_field, sliding_window_attention
from zfu_lib.attention.swat_model import SwatConfig, SwatForCausalLM
from zfu_lib.data.hub import hub_corpus
from zfu_lib.data.needle import needle_batch
from zfu_lib.data.text import Corpus, books_corpus, standard_corpus
from zfu_lib.lm.evaluate import loss_by_length, loss_by_position
from zfu_lib.lm.harness import evaluate
from zfu_lib.lm.train import TrainConfig, TrainLog, random_slices, train
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.statistics import over_seeds

TOKENIZER = "meta-llama/Llama-2-7b-hf"


def fineweb_edu() -> Corpus:
    """FineWeb-Edu with PG-19 as the other domain, in tokens of Llama 2 (sections 5.1 and 5.3)."""
    return hub_corpus(
        "HuggingFaceFW/fineweb-edu",
        name="sample-100BT",
        split="train",
        tokenizer=TOKENIZER,
        train_tokens=15_000_000_000,
        held_out_tokens=16_777_216,
        ood="emozilla/pg19",
        ood_options={"split": "test"},
    )


CORPORA = {"standard": standard_corpus, "books": books_corpus, "fineweb-edu": fineweb_edu}


@dataclass(frozen=True)
class SwatProfile(Profile):
    """What the chapter trains. ``tokens`` is the budget of each arm and seed, ``batch_tokens`` of one step.

    ``evaluation_tokens`` is the length of held-out text that every loss is measured on; ``sweep`` the training
    lengths (in windows) of claim S8; ``longest`` the longest evaluation text (in windows); ``needle_tokens`` the
    budget of the recall model. ``benchmarks`` are lm-evaluation-harness tasks as ``task:metric``, if any.
    """

    corpus: str
    layers: int
    width: int
    heads: int
    window: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    evaluation_tokens: int
    sweep: tuple[int, ...]
    longest: int
    needle_tokens: int
    decode_context: int
    train_at_longest: bool
    benchmarks: tuple[str, ...] = ()


QUICK = SwatProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=4,
    corpus="standard",
    layers=2,
    width=64,
    heads=4,
    window=16,
    tokens=60_000,
    batch_tokens=512,
    learning_rate=5e-3,
    evaluation_tokens=16_384,
    sweep=(1, 2, 4),
    longest=64,
    needle_tokens=160_000,
    decode_context=65_536,
    train_at_longest=False,
)
FULL = replace(
    QUICK,
    profile="full",
    seeds=3,
    cost=Cost(
        machine="one GPU with 24 GB",
        minutes=25,
        memory_gb=8,
        gpu_memory_gb=20,
        data=("gutenberg_books", "wikitext2", "tinyshakespeare"),
    ),
    corpus="books",
    layers=6,
    width=384,
    heads=8,
    window=64,
    tokens=12_000_000,
    batch_tokens=32_768,
    learning_rate=1e-3,
    evaluation_tokens=262_144,
    sweep=(1, 2, 3, 4, 5, 6),
    needle_tokens=8_000_000,
    train_at_longest=True,
)
# Width, depth and heads of the public 340M configuration; window, learning rate and batch are not confirmed for Table 1
# (256 keys are in the early public configuration, 4e-4 and 0.5M tokens in the paper whose baselines it quotes).
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 16 arms x 3 seeds x 27 hours = 1,300 GPU hours (arithmetic, at 40% utilisation)",
        minutes=78_000,
        memory_gb=64,
        gpu_memory_gb=100,
        disk_gb=120,
        downloads=(
            Download("HuggingFaceFW/fineweb-edu (sample-100BT, the part streamed)", 60),
            Download("emozilla/pg19 (test)", 0.1),
            Download("meta-llama/Llama-2-7b-hf (tokenizer only)", 0.01),
            Download("eight lm-evaluation-harness tasks", 0.5),
        ),
    ),
    corpus="fineweb-edu",
    layers=24,
    width=1024,
    heads=16,
    window=256,
    tokens=15_000_000_000,
    batch_tokens=524_288,
    learning_rate=4e-4,
    evaluation_tokens=4_194_304,
    benchmarks=(
        "lambada_openai:acc",
        "piqa:acc",
        "hellaswag:acc_norm",
        "winogrande:acc",
        "arc_easy:acc",
        "arc_challenge:acc_norm",
        "social_iqa:acc",
        "boolq:acc",
    ),
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile's models: this is what changes there, and the run says so.
FULL_ON_CPU = {
    "seeds": 4,
    "layers": 4,
    "width": 128,
    "window": 32,
    "tokens": 300_000,
    "batch_tokens": 1024,
    "learning_rate": 3e-3,
    "evaluation_tokens": 65_536,
    "needle_tokens": 300_000,
    "train_at_longest": False,
}


@dataclass(frozen=True)
class Arm:
    """One way to build and train the same model: everything else is equal.

    ``slopes`` is a mode of :func:`zfu_lib.attention.swat.balanced_slopes` or None, ``windowed`` whether the model's
    window is ω, ``length`` the training length in windows.
    """

    label: str
    activation: str = "softmax"
    slopes: str | None = None
    rope: bool = True
    windowed: bool = True
    length: int = 8


ARMS = {
    "full_short": Arm("full softmax, trained at ω", windowed=False, length=1),
    "full": Arm("full softmax", windowed=False),
    "windowed": Arm("windowed softmax"),
    "recency": Arm("SWAT (−)", "sigmoid", "recency"),
    "balanced": Arm("SWAT (−+)", "sigmoid", "balanced"),
    "history": Arm("SWAT (+)", "sigmoid", "history"),
    "recency_no_rope": Arm("SWAT (−) without RoPE", "sigmoid", "recency", rope=False),
    "balanced_no_rope": Arm("SWAT (−+) without RoPE", "sigmoid", "balanced", rope=False),
    "sigmoid_short": Arm("full sigmoid, trained at ω", "sigmoid", windowed=False, length=1),
    "full_long": Arm("full softmax, trained at 64ω", windowed=False, length=64),
    "recency_long": Arm("SWAT (−), trained at 64ω", "sigmoid", "recency", length=64),
    **{f"windowed_{r}": Arm(f"windowed softmax, trained at {r}ω", length=r) for r in (1, 2, 3, 4, 5, 6)},
}


# Tokens that go through a model at once; more are accumulated.
MICRO_BATCH_TOKENS = 32_768


class Lab:
    """Trains arms on demand, once per seed, and measures them.

    All arms of a seed see the same stretch of text in the same order, and all are evaluated on the same held-out
    bytes, so that differences between arms are paired.
    """

    def __init__(self, profile: SwatProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.asked = profile
        self.corpus: Corpus = CORPORA[profile.corpus]()
        self._trained: dict[tuple[str, int], tuple[SwatForCausalLM, TrainLog]] = {}

    def description(self) -> str:
        """What will be trained, on what, and how far that is from what the profile asks for on a GPU."""
        p, asked = self.profile, self.asked
        millions = sum(x.numel() for x in self.build(ARMS["full"], 0).parameters()) / 1e6
        epochs = p.tokens / len(self.corpus.train)
        text = (
            f"Models here: {p.layers} layers of width {p.width}, {millions:.2f}M parameters, ω = {p.window}, "
            f"{p.tokens / 1e6:g}M bytes of the {self.corpus.name} corpus per arm and seed ({epochs:.2g} epochs), "
            f"{p.seeds} seeds, on {self.device}."
        )
        if p != asked:
            text += (
                f" Scaled down for a CPU: the profile asks for {asked.layers} layers of width {asked.width}, "
                f"ω = {asked.window} and {asked.tokens / 1e6:g}M bytes, {asked.tokens / p.tokens:.0f} times as many."
            )
        return text

    def build(self, arm: Arm, seed: int, **changes: object) -> SwatForCausalLM:
        """An untrained model of an arm; ``changes`` overrides fields of its configuration."""
        p = self.profile
        config = {
            "vocab_size": self.corpus.vocabulary,
            "hidden_size": p.width,
            "num_hidden_layers": p.layers,
            "num_attention_heads": p.heads,
            "window": p.window if arm.windowed else None,
            "activation": arm.activation,
            "slopes": arm.slopes,
            "rope": arm.rope,
            "initializer_range": p.width**-0.5,
        }
        torch.manual_seed(seed)
        return SwatForCausalLM(SwatConfig(**config | changes)).to(self.device)

    def trained(self, name: str, seed: int) -> tuple[SwatForCausalLM, TrainLog]:
        """Model and training log of an arm; trains it the first time it is asked for."""
        if (name, seed) not in self._trained:
            arm, p = ARMS[name], self.profile
            length = arm.length * p.window
            config = self._schedule(p.tokens, length, seed)
            model = self.build(arm, seed)
            batches = random_slices(self.corpus.train, length, config.batch_size, seed)
            # Only where a run takes days: a checkpoint knows its configuration, not the code that made it.
            kept = os.environ.get("ZFU_CHECKPOINTS")
            checkpoint = Path(kept) / f"swat-{p.profile}-{name}-{seed}.safetensors" if kept else None
            log = train(model, batches, config, device=self.device, checkpoint=checkpoint)
            self._trained[name, seed] = model.eval(), log
        return self._trained[name, seed]

    def losses(
        self, name: str, lengths: Sequence[int], *, windowed: bool | None = None, ood: bool = False
    ) -> np.ndarray:
        """Held-out loss by text length.

        Args:
            lengths: text lengths in windows.
            windowed: True reads with the window ω, False without, None as the arm was trained.
            ood: use text of another kind.

        Returns:
            nats per byte [seeds, lengths]; every length is measured on the same bytes, cut into pieces.
        """
        p = self.profile
        text = (self.corpus.ood if ood else self.corpus.validation)[: p.evaluation_tokens]
        table = []
        for model in self._readers(name, windowed):
            sizes = [n * p.window for n in lengths]
            found = loss_by_length(model, text, sizes, tokens_per_length=len(text), device=self.device)
            table.append([found[size].mean for size in sizes])
        return np.array(table)

    def loss_by_position(self, name: str, length: int, *, windowed: bool | None = None) -> np.ndarray:
        """Held-out loss at each position of texts of ``length`` windows, mean over texts: [seeds, length·ω - 1]."""
        p, size = self.profile, length * self.profile.window
        options = {"seq_len": size, "sequences": 2 * p.evaluation_tokens // size, "batch_size": 16_384 // size + 1}
        text = self.corpus.validation
        readers = self._readers(name, windowed)
        return np.array([loss_by_position(m, text, **options, device=self.device).mean(axis=0) for m in readers])

    def benchmark_gap(self) -> dict[str, np.ndarray]:
        """Mean accuracy over the profile's benchmarks, SWAT (−) minus full softmax, in points: one entry, [seeds];
        empty where the profile names no benchmarks."""
        if not self.profile.benchmarks:
            return {}
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        wanted = [task.split(":") for task in self.profile.benchmarks]
        means = {}
        for name in ("recency", "full"):
            models = [self.trained(name, seed)[0] for seed in range(self.profile.seeds)]
            found = [evaluate(m, tokenizer, [task for task, _ in wanted], device=self.device)["scores"] for m in models]
            means[name] = np.array(
                [100 * np.mean([s[task][metric]["value"] for task, metric in wanted]) for s in found]
            )
        return {"s1_accuracy_gap": means["recency"] - means["full"]}

    def long_context_gap(self) -> dict[str, np.ndarray]:
        """Loss at 64ω of SWAT (−) minus full softmax, both trained at 64ω: one entry, [seeds]; empty where the profile
        trains nothing that long."""
        if not self.profile.train_at_longest:
            return {}
        return {"s18_loss_gap": self.losses("recency_long", [64])[:, 0] - self.losses("full_long", [64])[:, 0]}

    def omitted(self) -> dict[str, str]:
        """Measurements that the scaled-down profile leaves out, with the reason."""
        if self.asked.train_at_longest and not self.profile.train_at_longest:
            return {"s18_loss_gap": "training at 64ω was left out: this run was scaled down for a CPU"}
        return {}

    def training_length_sweep(self) -> dict[int, np.ndarray]:
        """Excess loss at 8ω over the windowed arm trained at 8ω, by training length in windows: each [seeds]."""
        full = self.losses("windowed", [8])[:, 0]
        # A window of ω hides nothing in a text of length ω, so the first point is the full arm trained there.
        excess = {1: self.losses("full_short", [8], windowed=True)[:, 0] - full}
        for r in self.profile.sweep[1:]:
            excess[r] = self.losses(f"windowed_{r}", [8])[:, 0] - full
        return excess

    def sample(self, length: int, texts: int = 8) -> Tensor:
        """Held-out texts of ``length`` windows: int64 [texts, length·ω]."""
        size = length * self.profile.window
        found = self.corpus.validation[: texts * size].astype(np.int64).reshape(texts, size)
        return torch.from_numpy(found).to(self.device)

    @torch.no_grad()
    def weights(self, name: str, tokens_BT: Tensor, *, trained: bool = True) -> np.ndarray:
        """Last layer's attention weights of the first seed, mean over heads, of the first text: [T, T]."""
        model = self.trained(name, 0)[0] if trained else self.build(ARMS[name], 0)
        return model(tokens_BT[:1], output_attentions=True).attentions[-1][0].mean(dim=0).cpu().numpy()

    def probes(self, name: str) -> tuple[list[Probe], list[Probe]]:
        """Probes of an arm's trained models and of the same models at random initialisation, one per seed."""
        p, text = self.profile, self.sample(length=4)
        models = (
            [self.trained(name, s)[0] for s in range(p.seeds)],
            [self.build(ARMS[name], s) for s in range(p.seeds)],
        )
        after, before = ([probe(model.eval(), text, p.window) for model in found] for found in models)
        return after, before

    def recall(self, seed: int) -> Recall:
        """Train a two-layer SWAT (−+) with window 8 to name a hidden value; accuracy by distance.

        Distances go one window further than the stack reaches, so training itself asks for what only chance can give.
        """
        window, layers, p = 8, 2, self.profile
        reach = receptive_field(window, layers) - 1
        farthest = reach + window
        length = farthest + 2
        model = self.build(ARMS["balanced"], seed, window=window, num_hidden_layers=layers)
        config = self._schedule(p.needle_tokens, length, seed, rate=3e-3)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            rng = np.random.default_rng((seed, step))
            distance = rng.integers(1, farthest + 1, config.batch_size)
            tokens, answers, _ = needle_batch(rng, config.batch_size, length, distance)
            targets = np.full_like(tokens, -100)
            targets[:, -1] = answers
            return torch.from_numpy(tokens), torch.from_numpy(targets)

        train(model, batch, config, device=self.device)
        rng = np.random.default_rng((seed, 2**31))
        accuracy = []
        for distance in range(1, farthest + 1):
            tokens, answers, _ = needle_batch(rng, 256, length, distance)
            with torch.no_grad():
                guess = model(torch.from_numpy(tokens).to(self.device)).logits[:, -1].argmax(-1).cpu().numpy()
            accuracy.append(float((guess == answers).mean()))
        return Recall(window, reach, 1 / 8, list(range(1, farthest + 1)), accuracy)

    def _readers(self, name: str, windowed: bool | None) -> Iterator[SwatForCausalLM]:
        """The arm's models, one per seed, reading with another window than they were trained with if asked to."""
        for seed in range(self.profile.seeds):
            model, _ = self.trained(name, seed)
            if windowed is None:
                yield model
            else:
                reader = self.build(replace(ARMS[name], windowed=windowed), seed)
                reader.load_state_dict(model.state_dict())
                yield reader.eval()

    def _schedule(self, tokens: int, length: int, seed: int, rate: float | None = None) -> TrainConfig:
        batch = max(1, self.profile.batch_tokens // length)
        steps = max(2, tokens // (batch * length))
        rate = rate or self.profile.learning_rate
        micro = max(1, MICRO_BATCH_TOKENS // length)
        return TrainConfig(
            steps,
            batch,
            length,
            rate,
            warmup=max(1, steps // 10),
            seed=seed,
            dtype="auto",
            micro_batch=micro if micro < batch else 0,
        )


class Recall(NamedTuple):
    """Accuracy at each distance; one layer sees D < ``window``, the stack D <= ``reach``; ``chance`` is guessing."""

    window: int
    reach: int
    chance: float
    distances: list[int]
    accuracy: list[float]


def recall_by_zone(recalls: Sequence[Recall]) -> dict[str, list[float]]:
    """Mean accuracy per seed ``inside`` the window, ``carried`` within reach, and ``beyond``."""
    first = recalls[0]
    zones = {
        "inside": lambda d: d < first.window,
        "carried": lambda d: first.window <= d <= first.reach,
        "beyond": lambda d: d > first.reach,
    }
    return {
        name: [float(np.mean([a for d, a in zip(r.distances, r.accuracy, strict=True) if inside(d)])) for r in recalls]
        for name, inside in zones.items()
    }


def largest_jump(losses: Sequence[float], span: int = 20) -> float:
    """Largest rise of a training loss over the median of the ``span`` steps before it, in nats; at least 0."""
    x = np.asarray(losses)
    return max([0.0] + [float(x[i] - np.median(x[i - span : i])) for i in range(span, len(x))])


class Probe(NamedTuple):
    """What a model's weights look like on one text; arrays are per layer.

    ``sink``: mean row-normalised weight of queries 1..ω-1 on token 0. ``strongest``: the same for whichever token
    receives most, over the ω-1 queries after it. ``entropy``: of the row-normalised weights over its maximum, rows
    with a full window. ``mass``: mean sum of those rows' raw weights. ``variance_ratio``: channel variance of the
    hidden state at token 0 over the median token's.
    """

    sink: np.ndarray
    strongest: np.ndarray
    entropy: np.ndarray
    mass: np.ndarray
    variance_ratio: np.ndarray


@torch.no_grad()
def probe(model: SwatForCausalLM, tokens_BT: Tensor, window: int) -> Probe:
    """Measure attention weights and hidden states.

    Args:
        model: any arm.
        tokens_BT: int64 [B, T], T >= 2·``window``.
        window: ω for which sinks and entropies are compared between arms; a full-attention arm is read on the queries
            and rows that a windowed one has too.
    """
    out = model(tokens_BT, output_attentions=True, output_hidden_states=True)
    columns = []
    for weights_BHTT, hidden_BTC in zip(out.attentions, out.hidden_states[1:], strict=True):
        normal = weights_BHTT / weights_BHTT.sum(-1, keepdim=True).clamp_min(1e-12)
        length = normal.shape[-1]
        received = torch.stack([normal[..., k + 1 : k + window, k].mean(dim=(0, 1, 2)) for k in range(length - window)])
        rows = normal[..., window - 1 : window, :window] if window == length else normal[..., window - 1 :, :]
        entropy = -(rows * rows.clamp_min(1e-12).log()).sum(-1)
        visible = (weights_BHTT[..., window - 1 :, :] > 0).sum(-1).clamp_min(2)
        variance = hidden_BTC.float().var(dim=-1)
        columns.append(
            (
                received[0].item(),
                received.max().item(),
                (entropy / visible.log()).mean().item(),
                weights_BHTT[..., window - 1 :, :].sum(-1).mean().item(),
                (variance[:, 0] / variance.median(dim=1).values).mean().item(),
            )
        )
    return Probe(*(np.array(column) for column in zip(*columns, strict=True)))


def receptive_field_violations(pairs: Sequence[tuple[int, int]] = ((3, 2), (4, 3), (6, 2)), seed: int = 0) -> int:
    """Distances at which one changed token moves, or does not move, the last logits against 1 + (ω-1)·L; should be 0.

    Args:
        pairs: (window, layers); models have random weights and run in double precision.
    """
    wrong = 0
    for window, layers in pairs:
        torch.manual_seed(seed)
        config = SwatConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            window=window,
            activation="sigmoid",
            slopes="balanced",
        )
        model = SwatForCausalLM(config).double().eval()
        for distance, moved in enumerate(influence(model, receptive_field(window, layers) + 3)):
            wrong += moved != (distance < receptive_field(window, layers))
    return wrong


@torch.no_grad()
def influence(model: SwatForCausalLM, reach: int) -> list[bool]:
    """Whether changing the token D places back moves the last logits at all, for D = 0..reach-1."""
    tokens = torch.arange(reach)[None] % 31
    base = model(tokens).logits[0, -1]
    moved = []
    for distance in range(reach):
        other = tokens.clone()
        other[0, -1 - distance] = 31
        moved.append(bool((model(other).logits[0, -1] != base).any()))
    return moved


def time_attention(
    ways: Sequence[str], lengths: Sequence[int], *, window: int = 64, repeats: int = 7
) -> dict[str, np.ndarray]:
    """CPU seconds of one forward pass of attention (B1 H4 D64, float32): [repeats, lengths] for each way.

    CPU seconds of this process rather than wall time, and the ways in turn within each repeat, so that other jobs on
    the machine disturb less and all ways alike.

    Args:
        ways: ``banded`` or ``banded_no_slopes``, the windowed operator, or ``dense``, full causal sigmoid attention.
    """
    slopes = torch.tensor([-0.5, -0.25, 0.25, 0.5])
    options = {
        "banded": {"window": window, "slopes": slopes, "backend": "banded"},
        "banded_no_slopes": {"window": window, "backend": "banded"},
        "dense": {"window": None, "slopes": slopes, "backend": "reference"},
    }
    generator = torch.Generator().manual_seed(0)
    seconds = {way: np.empty((repeats, len(lengths))) for way in ways}
    for j, length in enumerate(lengths):
        q, k, v = torch.randn(3, 1, 4, length, 64, generator=generator).unbind(0)
        for i, way in itertools.product(range(-1, repeats), ways):
            start = time.process_time()
            sliding_window_attention(q, k, v, **options[way])
            if i >= 0:
                seconds[way][i, j] = time.process_time() - start
    return seconds


def exponents(lengths: Sequence[int], seconds: np.ndarray) -> np.ndarray:
    """Slope of log time against log length, one per repeat: [repeats]."""
    return np.polyfit(np.log(lengths), np.log(seconds).T, 1)[0]


def quoted() -> dict:
    """The paper's tables as printed (``book/quoted/swat.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "swat.yml").read_text(encoding="utf-8"))


def audit(tables: dict) -> dict[str, float]:
    """Arithmetic on the printed tables; keys are the measurements of claims S2 and A1 to A3."""
    accuracies = slice(2, 10)
    swat, titans = (tables["table_1"]["760M"][row] for row in ("SWAT (-)", "Titans"))
    mean = {name: np.mean(row[accuracies]) for name, row in (("swat", swat), ("titans", titans))}
    t2, t3 = tables["table_2"], tables["table_3"]
    twice = {
        "Vanilla A (128, 128, 128)": "1 vanilla softmax RoPE 128/128",
        "Sliding A (128, 1024, 128)": "3 sliding softmax RoPE 128/1024",
        "Vanilla B (1024, 1024, 1024)": "10 vanilla softmax RoPE 1024/1024",
    }
    by_number = {name.split()[0]: row for name, row in t3.items()}
    rows = [row for name, row in t2.items() if name != "columns"]
    return {
        "s2_average_error": abs(mean["swat"] - swat[-1]),
        "s2_lead_over_titans": mean["swat"] - mean["titans"],
        "a1_largest_repeat_gap": max(abs(t2[a][7] - t3[b][1]) for a, b in twice.items()),
        "a2_gain_from_history_heads": by_number["4"][3] - min(by_number["5"][3], by_number["6"][3]),
        "a3_copied_cells": sum(row[i] == row[i + 4] for row in rows for i in range(4)),
    }


def averages(tables: dict) -> list[dict[str, float | str]]:
    """Rows of Table 1 whose printed average differs from the mean of the printed accuracies by more than rounding."""
    found = []
    for size in ("340M", "760M"):
        for name, row in tables["table_1"][size].items():
            if abs(np.mean(row[2:10]) - row[-1]) > 0.01:
                found.append({"size": size, "model": name, "printed": row[-1], "mean": float(np.mean(row[2:10]))})
    return found


class Decoding(NamedTuple):
    """Decoding after contexts of growing length: cache bytes and CPU seconds per token, one entry per context."""

    contexts: tuple[int, ...]
    cache_bytes: list[int]
    seconds_per_token: list[float]
    formula_bytes: int


@torch.no_grad()
def decode(model: SwatForCausalLM, contexts: Sequence[int], *, tokens: int = 128, chunk: int = 512) -> Decoding:
    """Read a random context in chunks, then time ``tokens`` single-token steps; for each context length.

    ``formula_bytes`` is 2·L·ω·d·bytes: keys and values of ω tokens in every layer.
    """
    model = model.eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    cache_bytes, seconds = [], []
    for context in contexts:
        text = torch.randint(256, (1, context), generator=generator).to(model.device)
        cache = None
        for start in range(0, context, chunk):
            cache = model(text[:, start : start + chunk], past_key_values=cache, use_cache=True).past_key_values
        begin = time.process_time()
        for i in range(tokens):
            cache = model(text[:, i : i + 1], past_key_values=cache, use_cache=True).past_key_values
        seconds.append((time.process_time() - begin) / tokens)
        cache_bytes.append(cache.nbytes)
    item = next(model.parameters()).element_size()
    formula = 2 * config.num_hidden_layers * config.window * config.hidden_size * item
    return Decoding(tuple(contexts), cache_bytes, seconds, formula)


PROBE_COLUMNS = ("sink", "sink, untrained", "strongest token", "entropy", "entropy, untrained", "variance ratio")


def probe_row(after: Sequence[Probe], before: Sequence[Probe]) -> tuple[object, ...]:
    """Means over layers with intervals over seeds, in the order of ``PROBE_COLUMNS``; the variance ratio is the
    largest over layers."""

    def over(probes: Sequence[Probe], field: str, reduce=np.mean) -> object:
        return over_seeds([reduce(getattr(x, field)) for x in probes])

    return (
        over(after, "sink"),
        over(before, "sink"),
        over(after, "strongest"),
        over(after, "entropy"),
        over(before, "entropy"),
        over(after, "variance_ratio", np.max),
    )


def sink_growth(after: Sequence[Probe], before: Sequence[Probe]) -> np.ndarray:
    """Mean sink over layers, trained less untrained: [seeds]."""
    return np.array([a.sink.mean() - b.sink.mean() for a, b in zip(after, before, strict=True)])


def doublings(longest: int) -> list[int]:
    """1, 2, 4, … up to ``longest``."""
    return [2**i for i in range(longest.bit_length()) if 2**i <= longest]


def curve(x: Sequence[float], by_seed: np.ndarray | Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and 95% interval over seeds at each x, for :func:`zfu_lib.report.figures.lines`; ``by_seed`` is
    [seeds, len(x)]."""
    found = [over_seeds(column) for column in np.asarray(by_seed, dtype=float).T]
    ends = {field: [getattr(interval, field) for interval in found] for field in ("low", "high")}
    return {"x": list(x), "y": [interval.mean for interval in found], **ends}


def binned(by_position: np.ndarray, size: int) -> dict[str, list[float]]:
    """:func:`curve` of losses by position [seeds, positions], averaged over bins of ``size`` positions."""
    bins = by_position.shape[1] // size
    means = by_position[:, : bins * size].reshape(len(by_position), bins, size).mean(axis=2)
    return curve([size * (i + 0.5) for i in range(bins)], means)


def training_curves(logs: dict[str, list[TrainLog]]) -> dict[str, dict[str, list[float]]]:
    """Training loss by arm label, :func:`binned` into twentieths of the run; the first two, warm-up, are left out."""
    curves = {}
    for name, found in logs.items():
        size = max(1, len(found[0].loss) // 20)
        whole = binned(np.array([log.loss for log in found]), size)
        curves[ARMS[name].label] = {field: values[2:] for field, values in whole.items()}
    return curves
