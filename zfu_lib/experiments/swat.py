"""Experiments of the SWAT chapter (arXiv 2502.18845).

A :class:`Lab` trains every arm once per seed and remembers it; the functions below it measure what needs no training.
Lengths are counted in windows (ω): an arm "trained at 8ω" saw texts of eight windows.
"""

from __future__ import annotations

import copy
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
from zfu_lib.data.needle import needle_batch
from zfu_lib.experiments.language import (
    FINEWEB_EDU,
    FULL_COST,
    PAPER_SCALE,
    QUICK_COST,
    TOKENIZER,
    LanguageLab,
    LanguageProfile,
)
from zfu_lib.lm.evaluate import loss_by_length, loss_by_position
from zfu_lib.lm.harness import evaluate
from zfu_lib.lm.train import BatchFn, TrainLog, random_slices, train
from zfu_lib.report import paths
from zfu_lib.report.figures import curve
from zfu_lib.report.profiles import Cost, Download
from zfu_lib.report.statistics import Interval, over_seeds, proportion


@dataclass(frozen=True)
class SwatProfile(LanguageProfile):
    """What the chapter trains. ``sweep`` holds the training lengths (in windows) of claim S8; ``longest`` is the
    longest evaluation text (in windows); ``needle_tokens`` the budget of the recall model. ``benchmarks`` are
    lm-evaluation-harness tasks as ``task:metric``, if any.
    """

    window: int
    sweep: tuple[int, ...]
    longest: int
    needle_tokens: int
    decode_context: int
    train_at_longest: bool
    benchmarks: tuple[str, ...] = ()


QUICK = SwatProfile(
    profile="quick",
    cost=QUICK_COST,
    seeds=3,
    corpus="standard",
    layers=2,
    width=64,
    heads=4,
    window=16,
    tokens=90_000,
    batch_tokens=512,
    learning_rate=1e-2,
    evaluation_tokens=16_384,
    sweep=(1, 4),
    longest=64,
    needle_tokens=100_000,
    decode_context=65_536,
    train_at_longest=False,
)
FULL = replace(
    QUICK,
    profile="full",
    seeds=3,
    cost=FULL_COST,
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
# Window, learning rate and batch are not confirmed for Table 1 (256 keys are in the early public configuration, 4e-4
# and 0.5M tokens in the paper whose baselines it quotes).
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 17 arms x 3 seeds x 27 hours, arithmetic at 40% utilisation",
        minutes=82_600,
        memory_gb=64,
        gpu_memory_gb=100,
        disk_gb=5,
        downloads=(*FINEWEB_EDU, Download("eight lm-evaluation-harness tasks", 0.5)),
    ),
    **PAPER_SCALE,
    window=256,
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
    "layers": 4,
    "width": 128,
    "window": 32,
    "tokens": 240_000,
    "batch_tokens": 1024,
    "learning_rate": 4e-3,
    "evaluation_tokens": 65_536,
    "needle_tokens": 200_000,
    "train_at_longest": False,
}


@dataclass(frozen=True)
class Arm:
    """One way to build and train the same model: everything else is equal.

    ``slopes`` is a mode of :func:`zfu_lib.attention.swat.balanced_slopes` or None, ``windowed`` whether the model's
    window is ω, ``length`` the training length in windows. ``released`` below is what the public repository runs:
    softmax with slopes and a window.
    """

    label: str
    activation: str = "softmax"
    slopes: str | None = None
    rope: bool = True
    windowed: bool = True
    length: int = 8
    sigmoid_bias: float = 0.0


ARMS = {
    "full_short": Arm("full softmax, trained at ω", windowed=False, length=1),
    "full": Arm("full softmax", windowed=False),
    "windowed": Arm("windowed softmax"),
    "released": Arm("windowed softmax with slopes", slopes="recency"),
    "recency": Arm("SWAT (−)", "sigmoid", "recency"),
    "balanced": Arm("SWAT (−+)", "sigmoid", "balanced"),
    "history": Arm("SWAT (+)", "sigmoid", "history"),
    "recency_no_rope": Arm("SWAT (−) without RoPE", "sigmoid", "recency", rope=False),
    "balanced_no_rope": Arm("SWAT (−+) without RoPE", "sigmoid", "balanced", rope=False),
    "sigmoid_short": Arm("full sigmoid, trained at ω", "sigmoid", windowed=False, length=1),
    "full_long": Arm("full softmax, trained at 64ω", windowed=False, length=64),
    "recency_long": Arm("SWAT (−), trained at 64ω", "sigmoid", "recency", length=64),
    **{f"windowed_{r}": Arm(f"windowed softmax, trained at {r}ω", length=r) for r in (2, 3, 4, 5, 6)},
}


class Lab(LanguageLab):
    """Trains arms on demand, once per seed, and measures them.

    The arms of a seed start from the same weights; those with the same training length see the same texts in the same
    order. All are evaluated on the same held-out texts, spread evenly over the held-out documents, so that differences
    between arms are paired. Intervals are over seeds, given those texts.
    """

    on_cpu = FULL_ON_CPU

    def _length(self, profile: SwatProfile) -> str:
        return f"ω = {profile.window}"

    def description(self) -> str:
        """What will be trained, on what, and how far that is from what the profile asks for on a GPU."""
        return self._describe(sum(x.numel() for x in self.build(ARMS["full"], 0).parameters()))

    def build(self, arm: Arm, seed: int, **changes: object) -> SwatForCausalLM:
        """An untrained model of an arm; ``changes`` overrides fields of its configuration."""
        config = self._shape(self.corpus.vocabulary) | {
            "window": self.profile.window if arm.windowed else None,
            "activation": arm.activation,
            "slopes": arm.slopes,
            "rope": arm.rope,
            "sigmoid_bias": arm.sigmoid_bias,
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
        text = self.text(ood=ood).reshape(-1)
        table = []
        for model in self._readers(name, windowed):
            sizes = [n * p.window for n in lengths]
            found = loss_by_length(model, text, sizes, tokens_per_length=len(text), device=self.device)
            table.append([found[size].mean for size in sizes])
        return np.array(table)

    def text(self, *, ood: bool = False) -> np.ndarray:
        """The held-out texts: [texts, longest·ω] bytes, evenly spaced over the corpus."""
        return self._held_out(self.profile.longest * self.profile.window, ood=ood)

    def loss_by_position(self, name: str, length: int, *, windowed: bool | None = None) -> np.ndarray:
        """Held-out loss at each position of texts of ``length`` windows, mean over texts: [seeds, length·ω - 1]."""
        text, size = self.text().reshape(-1), length * self.profile.window
        options = {"seq_len": size, "sequences": len(text) // size, "batch_size": 16_384 // size + 1}
        readers = self._readers(name, windowed)
        return np.array([loss_by_position(m, text, **options, device=self.device).mean(axis=0) for m in readers])

    def counting_loss(self) -> np.ndarray:
        """Held-out loss of a table of symbol pairs counted on the texts the arms were trained on: [seeds]."""
        length = 8 * self.profile.window

        def batches(seed: int, size: int) -> BatchFn:
            return random_slices(self.corpus.train, length, size, seed)

        return self._counting_loss(batches, length, self.text().reshape(-1, length), self.corpus.vocabulary)

    def benchmark_gap(self) -> dict[str, np.ndarray]:
        """Differences of the mean accuracy over the profile's benchmarks, in points, each [seeds]; empty where the
        profile names no benchmarks."""
        if not self.profile.benchmarks:
            return {}
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        wanted = [task.split(":") for task in self.profile.benchmarks]
        means = {}
        for name in ("full", "recency", "balanced", "history"):
            models = [self.trained(name, seed)[0] for seed in range(self.profile.seeds)]
            found = [evaluate(m, tokenizer, [task for task, _ in wanted], device=self.device)["scores"] for m in models]
            means[name] = np.array(
                [100 * np.mean([s[task][metric]["value"] for task, metric in wanted]) for s in found]
            )
        return {
            "s1_accuracy_gap": means["recency"] - means["full"],
            "s3_accuracy_recency_minus_balanced": means["recency"] - means["balanced"],
            "s3_accuracy_balanced_minus_history": means["balanced"] - means["history"],
        }

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

    def extrapolation_penalty(self) -> dict[int, np.ndarray]:
        """What training at r windows costs on texts longer than that, by r: each [seeds].

        For a model trained at r windows take the change of its loss from texts of r windows to texts of eight. The
        penalty is that change minus the same change of the model trained at eight: differences in how well the two
        models read short texts cancel.
        """
        sweep = self.profile.sweep
        lengths = sorted({*sweep, 8})
        whole = dict(zip(lengths, self.losses("windowed", lengths).T, strict=True))
        penalty = {}
        for r in sweep:
            # A window of ω hides nothing in a text of length ω, so that point is the full arm trained there.
            name = "full_short" if r == 1 else f"windowed_{r}"
            own, eight = self.losses(name, [r, 8], windowed=True).T
            penalty[r] = (eight - own) - (whole[8] - whole[r])
        return penalty

    def sample(self, length: int) -> Tensor:
        """The beginnings of the held-out texts, ``length`` windows each: int64 [texts, length·ω]."""
        found = self.text()[:, : length * self.profile.window].astype(np.int64)
        return torch.from_numpy(found).to(self.device)

    @torch.no_grad()
    def weights(self, name: str, tokens_BT: Tensor, *, trained: bool = True) -> np.ndarray:
        """Last layer's attention weights of the first seed, mean over heads, of the first text: [T, T]."""
        model = self.trained(name, 0)[0] if trained else self.build(ARMS[name], 0)
        return model(tokens_BT[:1], output_attentions=True).attentions[-1][0].mean(dim=0).cpu().numpy()

    def probes(self, name: str) -> dict[str, list[Probe]]:
        """Probes of an arm's models, one per seed: ``trained``, ``untrained`` (random initialisation), and
        ``bias only`` (trained, but with every score q·k zero, which leaves slopes and window)."""
        p, text = self.profile, self.sample(length=4)
        found: dict[str, list[Probe]] = {"trained": [], "untrained": [], "bias only": []}
        for seed in range(p.seeds):
            trained, untrained = self.trained(name, seed)[0], self.build(ARMS[name], seed).eval()
            silent = copy.deepcopy(trained)
            for layer in silent.model.layers:
                layer.attention.qkv_proj.weight.data[: 2 * p.width] = 0
            for key, model in zip(found, (trained, untrained, silent), strict=True):
                found[key].append(probe(model, text, p.window))
        return found

    def recall(self, seed: int, *, full: bool = False) -> dict[str, Recall]:
        """Train a two-layer model to name a hidden value; correct answers by distance.

        Distances go one window further than the stack reaches, so training itself asks for what only chance can give.

        Args:
            full: train full softmax attention and read with and without a window; otherwise SWAT (−+) with the window.
        """
        window, layers, p = 8, 2, self.profile
        reach = receptive_field(window, layers) - 1
        farthest = reach + window
        length = farthest + 2
        shape = {"num_hidden_layers": layers, "window": None if full else window}
        model = self.build(ARMS["full" if full else "balanced"], seed, **shape)
        config = self._schedule(p.needle_tokens, length, seed, rate=5e-3)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            rng = np.random.default_rng((seed, step))
            distance = rng.integers(1, farthest + 1, config.batch_size)
            tokens, answers, _ = needle_batch(rng, config.batch_size, length, distance)
            targets = np.full_like(tokens, -100)
            targets[:, -1] = answers
            return torch.from_numpy(tokens), torch.from_numpy(targets)

        train(model, batch, config, device=self.device)
        readers = {"full": model} if full else {"swat": model}
        if full:
            readers["imposed"] = self.build(ARMS["full"], seed, **shape | {"window": window})
            readers["imposed"].load_state_dict(model.state_dict())
        return {name: self._answers(reader.eval(), seed, window, reach, farthest) for name, reader in readers.items()}

    @torch.no_grad()
    def _answers(self, model: SwatForCausalLM, seed: int, window: int, reach: int, farthest: int) -> Recall:
        rng = np.random.default_rng((seed, 2**31))
        correct = []
        for distance in range(1, farthest + 1):
            tokens, answers, _ = needle_batch(rng, RECALL_ITEMS, farthest + 2, distance)
            guess = model(torch.from_numpy(tokens).to(self.device)).logits[:, -1].argmax(-1).cpu().numpy()
            correct.append(int((guess == answers).sum()))
        return Recall(window, reach, 1 / 8, list(range(1, farthest + 1)), correct)

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


# Questions asked at each distance.
RECALL_ITEMS = 256


class Recall(NamedTuple):
    """Correct answers of ``RECALL_ITEMS`` at each distance D; one layer sees D < ``window``, the stack D <= ``reach``;
    ``chance`` is guessing."""

    window: int
    reach: int
    chance: float
    distances: list[int]
    correct: list[int]


def recall_curve(recalls: Sequence[Recall]) -> dict[str, list[float]]:
    """Accuracy at each distance with an exact binomial interval, seeds pooled."""
    n = RECALL_ITEMS * len(recalls)
    found = [proportion(sum(right), n) for right in zip(*(r.correct for r in recalls), strict=True)]
    ends = {field: [getattr(interval, field) for interval in found] for field in ("low", "high")}
    return {"x": list(recalls[0].distances), "y": [interval.mean for interval in found], **ends}


def recall_by_zone(recalls: Sequence[Recall]) -> dict[str, Interval]:
    """Accuracy ``inside`` the window, ``carried`` (beyond it, within reach), ``at reach`` (D = (ω-1)·L exactly) and
    ``beyond``; exact binomial intervals over items, seeds pooled."""
    first = recalls[0]
    zones = {
        "inside": lambda d: d < first.window,
        "carried": lambda d: first.window <= d <= first.reach,
        "at reach": lambda d: d == first.reach,
        "beyond": lambda d: d > first.reach,
    }
    found = {}
    for name, inside in zones.items():
        right = [c for r in recalls for d, c in zip(r.distances, r.correct, strict=True) if inside(d)]
        found[name] = proportion(sum(right), RECALL_ITEMS * len(right))
    return found


def largest_jump(losses: Sequence[float], span: int = 20) -> float:
    """Largest rise of a training loss over the median of the ``span`` steps before it, in nats; at least 0."""
    x = np.asarray(losses)
    return max([0.0] + [float(x[i] - np.median(x[i - span : i])) for i in range(span, len(x))])


class Probe(NamedTuple):
    """What a model's weights look like on some texts: means over layers, heads and texts.

    Weights are row-normalised. u_k is what uniform rows would give token k, from the w-1 queries after it.

    ``sink``: weight that queries 1..ω-1 give to token 0, minus u_0. ``strongest``: of the tokens k in the second
    window, the largest weight from the ω-1 queries after k, over u_k (1 is uniform). ``sink_rate``: share of
    layers, heads and texts where that weight exceeds 0.3 (Gu et al., arXiv 2410.10781). ``entropy``: over its
    maximum, rows with a full window. ``density``: share of those rows' weights above a tenth of uniform. ``mass``:
    mean sum of those rows' raw weights. ``variance_ratio``: channel variance of the hidden state at token 0 over
    the median token's, entering the second layer.
    """

    sink: float
    strongest: float
    sink_rate: float
    entropy: float
    density: float
    mass: float
    variance_ratio: float


@torch.no_grad()
def probe(model: SwatForCausalLM, tokens_BT: Tensor, window: int) -> Probe:
    """Measure attention weights and hidden states.

    Args:
        model: any arm with at least two layers.
        tokens_BT: int64 [B, T], T >= 3·``window``.
        window: ω for which sinks and entropies are compared between arms; a full-attention arm is read on the queries
            and rows that a windowed one has too.
    """
    out = model(tokens_BT, output_attentions=True, output_hidden_states=True)
    found = []
    for weights_BHTT in out.attentions:
        normal = weights_BHTT / weights_BHTT.sum(-1, keepdim=True).clamp_min(1e-12)
        # Visibility by position, not by weight: a softmax weight may underflow to zero.
        count_T = torch.arange(1, normal.shape[-1] + 1, device=normal.device).float()
        if model.config.window is not None:
            count_T = count_T.clamp_max(model.config.window)

        def received(k: int, normal=normal) -> Tensor:
            return normal[..., k + 1 : k + window, k].mean(-1)

        def uniform(k: int, count_T=count_T) -> Tensor:
            return (1 / count_T[k + 1 : k + window]).mean()

        later = torch.stack([received(k) for k in range(window, 2 * window)])
        relative = torch.stack([received(k) / uniform(k) for k in range(window, 2 * window)])
        rows, counts = normal[..., window - 1 :, :], count_T[window - 1 :]
        entropy = -(rows * rows.clamp_min(1e-12).log()).sum(-1) / counts.log()
        dense = (rows > 0.1 / counts[:, None]).sum(-1) / counts
        found.append(
            (
                (received(0) - uniform(0)).mean(),
                relative.amax(0).mean(),
                (later.amax(0) > 0.3).float().mean(),
                entropy.mean(),
                dense.mean(),
                weights_BHTT[..., window - 1 :, :].sum(-1).mean(),
            )
        )
    variance_BT = out.hidden_states[1].float().var(dim=-1)
    ratio = (variance_BT[:, 0] / variance_BT.median(dim=1).values).mean()
    return Probe(*(float(np.mean([float(layer[i]) for layer in found])) for i in range(6)), float(ratio))


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
    ways: Sequence[str], lengths: Sequence[int], *, window: int = 64, repeats: int = 15
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
        "a2_gain_of_8_4": by_number["4"][3] - by_number["5"][3],
        "a2_gain_of_6_6": by_number["4"][3] - by_number["6"][3],
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
    """Decoding after contexts of growing length: cache bytes per context, and the time of a token after the longest
    over that after the shortest, one ratio per round."""

    contexts: tuple[int, ...]
    cache_bytes: list[int]
    ratios: list[float]
    formula_bytes: int


@torch.no_grad()
def decode(
    model: SwatForCausalLM, contexts: Sequence[int], *, rounds: int = 15, tokens: int = 16, chunk: int = 512
) -> Decoding:
    """Read a random context of each length in chunks, then time single-token steps, the contexts in turn.

    ``formula_bytes`` is 2·L·ω·d·bytes: keys and values of ω tokens in every layer.
    """
    model = model.eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    caches = []
    for context in contexts:
        text = torch.randint(256, (1, context), generator=generator).to(model.device)
        cache = None
        for start in range(0, context, chunk):
            cache = model(text[:, start : start + chunk], past_key_values=cache, use_cache=True).past_key_values
        caches.append(cache)

    def seconds(cache: object) -> float:
        begin = time.perf_counter()
        for i in range(tokens):
            last = model(text[:, i : i + 1], past_key_values=cache, use_cache=True).logits
        last.sum().item()  # waits for a GPU
        return time.perf_counter() - begin

    taken = [[seconds(cache) for cache in caches] for _ in range(rounds + 1)][1:]
    item = next(model.parameters()).element_size()
    formula = 2 * config.num_hidden_layers * config.window * config.hidden_size * item
    ratios = [row[-1] / row[0] for row in taken]
    return Decoding(tuple(contexts), [cache.nbytes for cache in caches], ratios, formula)


def probe_table(probed: dict[str, dict[str, list[Probe]]]) -> dict[str, tuple[Interval, ...]]:
    """Rows "arm, control" of intervals over seeds, one cell per field of :class:`Probe`."""
    return {
        f"{ARMS[name].label}, {control}": tuple(over_seeds(column) for column in zip(*probes, strict=True))
        for name, controls in probed.items()
        for control, probes in controls.items()
    }


def sink_growth(probes: dict[str, list[Probe]]) -> np.ndarray:
    """Sink of the trained models less that of the untrained: [seeds]."""
    return np.array([a.sink - b.sink for a, b in zip(probes["trained"], probes["untrained"], strict=True)])


def doublings(longest: int) -> list[int]:
    """1, 2, 4, … up to ``longest``."""
    return [2**i for i in range(longest.bit_length()) if 2**i <= longest]


def binned(by_position: np.ndarray, size: int) -> dict[str, list[float]]:
    """A curve of losses by position [seeds, positions], averaged over bins of ``size`` positions."""
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
