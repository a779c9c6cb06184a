"""Experiments of the Lazy Attention chapter (arXiv 2601.00919).

A :class:`Lab` trains every arm once per seed and remembers it. Every text begins with one fixed token, as with the
tokenizer of the public training stack, so that a sink has a place to form; arms of claim Z10 have it elsewhere.
Rows are read in the second half of a text, where i is large enough for a share of 1/i to be small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from scipy.optimize import brentq
from torch import Tensor

from zfu_lib.attention import lazy_attention as method
from zfu_lib.attention.lazy_model import LazyConfig, LazyForCausalLM
from zfu_lib.data import needle, triggers
from zfu_lib.experiments.language import (
    FINEWEB_EDU,
    FULL_COST,
    PAPER_SCALE,
    QUICK_COST,
    LanguageLab,
    LanguageProfile,
)
from zfu_lib.lm.evaluate import loss_by_position
from zfu_lib.lm.train import BatchFn, TrainConfig, TrainLog, random_slices, train
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost
from zfu_lib.report.statistics import Interval, over_seeds, proportion


@dataclass(frozen=True)
class LazyProfile(LanguageProfile):
    """What the chapter trains. ``length`` is the training length T in tokens and the length of the bias table;
    ``stretch`` the multiples of T that are read; ``starts`` the places of the fixed token in claim Z10; ``look_steps``
    and ``recall_steps`` the steps of the two generated tasks; ``extra`` further arms to train."""

    length: int
    stretch: tuple[int, ...]
    starts: tuple[int, ...]
    look_steps: int
    recall_steps: int
    extra: tuple[str, ...] = ()


QUICK = LazyProfile(
    profile="quick",
    cost=QUICK_COST,
    seeds=3,
    corpus="standard",
    layers=2,
    width=64,
    heads=4,
    length=64,
    tokens=64_000,
    batch_tokens=256,
    learning_rate=1e-2,
    evaluation_tokens=16_384,
    stretch=(1, 2, 4),
    starts=(1, 9, 17),
    look_steps=600,
    recall_steps=200,
)
EXTRA = ("softmax1", "entmax15", "sigmoid", "half", "magnitude", "lazy_short")
FULL = replace(
    QUICK,
    profile="full",
    cost=FULL_COST,
    corpus="books",
    layers=6,
    width=384,
    heads=8,
    length=512,
    tokens=6_000_000,
    batch_tokens=32_768,
    learning_rate=1e-3,
    evaluation_tokens=262_144,
    starts=(1, 2, 5, 9, 17, 33),
    recall_steps=400,
    extra=EXTRA,
)
# The public 340M configuration; what the paper used is not confirmed.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 21 arms x 3 seeds x 27 hours, arithmetic at 40% utilisation",
        minutes=102_000,
        memory_gb=64,
        gpu_memory_gb=100,
        disk_gb=5,
        downloads=FINEWEB_EDU,
    ),
    **PAPER_SCALE,
    length=4096,
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile's models: this is what changes there, and the run says so.
FULL_ON_CPU = {
    "layers": 4,
    "width": 64,
    "heads": 4,
    "length": 64,
    "tokens": 128_000,
    "batch_tokens": 512,
    "learning_rate": 7e-3,
    "evaluation_tokens": 32_768,
    "starts": (1, 9, 17),
    "extra": ("softmax1", "entmax15", "sigmoid"),
}


@dataclass(frozen=True)
class Arm:
    """One way to build and train the same model: everything else is equal.

    ``bias`` is the length of the bias table over the training length; ``start`` the place, from 1, of the fixed token;
    ``lr_scale`` and ``freeze_after`` concern offsets and biases. The rest is :class:`LazyConfig`'s.
    """

    label: str
    normaliser: str = "softmax"
    bias: float = 0.0
    tau_init: float = -1.0
    tau_form: str = "free"
    tau_scaled: bool = True
    renormalise: bool = False
    lr_scale: float = 10.0
    freeze_after: float = 1.0
    start: int = 1


LAZY = Arm("Lazy: bias + elastic", "elastic", bias=1.0)
ARMS = {
    "softmax": Arm("softmax"),
    "bias": Arm("softmax + bias", bias=1.0),
    "elastic": Arm("elastic", "elastic"),
    "lazy": LAZY,
    "softpick": Arm("softpick", "softpick"),
    "softmax1": Arm("softmax-1", "softmax1"),
    "entmax15": Arm("entmax-1.5", "entmax15"),
    "sigmoid": Arm("sigmoid", "sigmoid"),
    "zero": replace(LAZY, label="Lazy, τ starts at 0", tau_init=0.0),
    "half": replace(LAZY, label="Lazy, τ starts at −0.5", tau_init=-0.5),
    "unscaled": replace(LAZY, label="Lazy, offset not divided by i", tau_scaled=False),
    "renormalised": replace(LAZY, label="Lazy, rows renormalised", renormalise=True),
    "slow": replace(LAZY, label="Lazy, τ and b at the common rate", lr_scale=1.0),
    "frozen": replace(LAZY, label="Lazy, τ and b frozen after 10%", freeze_after=0.1),
    "magnitude": replace(LAZY, label="Lazy, τ = −|θ|", tau_form="magnitude"),
    "lazy_short": replace(LAZY, label="Lazy, bias table of a quarter", bias=0.25),
    **{f"softmax_{p}": Arm(f"softmax, fixed token at {p}", start=p) for p in (2, 5, 9, 17, 33)},
}


class Lab(LanguageLab):
    """Trains arms on demand, once per seed, and measures them.

    The arms of a seed start from the same weights and see the same texts in the same order; all are evaluated on the
    same held-out texts, spread evenly over the held-out documents. Intervals are over seeds, given those texts.
    """

    on_cpu = FULL_ON_CPU

    @property
    def start_token(self) -> int:
        """The fixed token, which the corpus does not have."""
        return self.corpus.vocabulary

    def _length(self, profile: LazyProfile) -> str:
        return f"T = {profile.length}"

    def description(self) -> str:
        """What will be trained, on what, and how far that is from what the profile asks for on a GPU."""
        return self._describe(sum(x.numel() for x in self.build("lazy", 0).parameters()))

    def build(self, name: str, seed: int, **changes: object) -> LazyForCausalLM:
        """An untrained model of an arm; ``changes`` overrides fields of its configuration."""
        arm = ARMS[name]
        config = self._shape(self.corpus.vocabulary + 1) | {
            "normaliser": arm.normaliser,
            "bias_length": round(arm.bias * self.profile.length),
            "tau_init": arm.tau_init,
            "tau_form": arm.tau_form,
            "tau_scaled": arm.tau_scaled,
            "renormalise": arm.renormalise,
        }
        torch.manual_seed(seed)
        return LazyForCausalLM(LazyConfig(**config | changes)).to(self.device)

    def _batches(self, seed: int, batch: int, start: int = 1) -> BatchFn:
        slices = random_slices(self.corpus.train, self.profile.length, batch, seed)

        def batch_fn(step: int) -> Tensor:
            tokens = slices(step)
            tokens[:, start - 1] = self.start_token
            return tokens

        return batch_fn

    def _train(self, name: str, seed: int) -> tuple[LazyForCausalLM, History]:
        if (name, seed) not in self._trained:
            arm, p, model = ARMS[name], self.profile, self.build(name, seed)
            config = self._schedule(p.tokens, p.length, seed)
            history, few = History([], [], []), self.sample(arm.start, texts=4)

            def remember(step: int, log: TrainLog) -> None:
                due = len(history.step) * config.steps <= step * 20 or step == config.steps - 1
                if arm.normaliser == "elastic" and due:
                    history.step.append(step)
                    history.tau.append([layer.attention.tau.tolist() for layer in model.model.layers])
                    history.mass.append(layer_mass(model, few))

            groups = model.parameter_groups(config.weight_decay, lr_scale=arm.lr_scale, freeze_after=arm.freeze_after)
            batches = self._batches(seed, config.batch_size, arm.start)
            train(model, batches, config, device=self.device, groups=groups, on_step=remember)
            self._trained[name, seed] = model.eval(), history
        return self._trained[name, seed]

    def trained(self, name: str, seed: int) -> LazyForCausalLM:
        """The model of an arm; trains it the first time it is asked for."""
        return self._train(name, seed)[0]

    def models(self, name: str) -> Iterator[LazyForCausalLM]:
        """The models of an arm, one per seed."""
        for seed in range(self.profile.seeds):
            yield self.trained(name, seed)

    def history(self, name: str) -> History:
        """What an elastic arm looked like during training: arrays with the seeds first."""
        found = [self._train(name, seed)[1] for seed in range(self.profile.seeds)]
        return History(found[0].step, *(np.array([getattr(h, field) for h in found]) for field in ("tau", "mass")))

    def text(self, length: int, start: int = 1) -> np.ndarray:
        """Held-out text in pieces of ``length`` tokens, the fixed token in its place: int64 [pieces, length]."""
        longest = max(self.profile.stretch) * self.profile.length
        whole = self._held_out(longest).astype(np.int64)
        pieces = whole[:, : longest // length * length].reshape(-1, length)
        pieces[:, start - 1] = self.start_token
        return pieces

    def loss(self, name: str, stretch: int = 1) -> np.ndarray:
        """Held-out loss on texts of ``stretch`` times the training length: nats per byte [seeds]."""
        length = stretch * self.profile.length
        text = self.text(length, ARMS[name].start)
        options = {"seq_len": length, "sequences": len(text), "batch_size": max(1, 8192 // length)}
        losses = [loss_by_position(m, text.ravel(), **options, device=self.device) for m in self.models(name)]
        # Predicting the fixed token is no task; where it comes first nothing is left out.
        keep = np.arange(1, length) != ARMS[name].start - 1
        return np.array([x[:, keep].mean() for x in losses])

    def counting_loss(self) -> np.ndarray:
        """Held-out loss of a table of symbol pairs counted on the texts the arms were trained on: [seeds]."""
        length = self.profile.length
        return self._counting_loss(self._batches, length, self.text(length), self.start_token + 1)

    def sample(self, start: int = 1, texts: int = 32) -> Tensor:
        """Held-out texts of the training length: int64 [texts, T]."""
        found = self.text(self.profile.length, start)
        return torch.from_numpy(found[:: max(1, len(found) // texts)][:texts]).to(self.device)

    def probes(self, name: str, *, trained: bool = True) -> list[Probe]:
        """:func:`probe` of an arm's models, one per seed, or of the same models before training."""
        sample = self.sample(ARMS[name].start)
        models = self.models(name) if trained else (self.build(name, s).eval() for s in range(self.profile.seeds))
        return [probe(model, sample, ARMS[name].start) for model in models]

    def sparsity_controls(self, name: str) -> list[Sparsity]:
        """:func:`sparsity_control` of an elastic arm's models, one per seed."""
        return [sparsity_control(model, self.sample()) for model in self.models(name)]

    def post_hoc(self) -> list[PostHoc]:
        """The offset applied to trained softmax models, one per seed."""
        return [post_hoc(model, self.sample()) for model in self.models("softmax")]

    def swapped_bias(self) -> np.ndarray:
        """Loss of Lazy with every head's table replaced by the layer's mean table, minus its own: [seeds]."""
        text = self.text(self.profile.length)
        options = {"seq_len": text.shape[1], "sequences": len(text), "batch_size": 128, "device": self.device}
        found = []
        for model in self.models("lazy"):
            tables = [layer.attention.distance_bias for layer in model.model.layers]
            kept = [table.detach().clone() for table in tables]
            own = loss_by_position(model, text.ravel(), **options).mean()
            with torch.no_grad():
                for table in tables:
                    table.copy_(table.mean(dim=0, keepdim=True).expand_as(table))
                found.append(loss_by_position(model, text.ravel(), **options).mean() - own)
                for table, old in zip(tables, kept, strict=True):
                    table.copy_(old)
        return np.array(found)

    def bias_tables(self, name: str = "lazy") -> np.ndarray:
        """Learned b: [seeds, layers, heads, distances]."""
        return np.array(
            [
                [layer.attention.distance_bias.detach().cpu().numpy() for layer in model.model.layers]
                for model in self.models(name)
            ]
        )

    def looking_back(self, name: str, seed: int) -> dict[str, Rows]:
        """Train one layer with one head on streams of triggers, and read rows that must ``look`` back and rows that are
        ``idle`` apart, see :mod:`zfu_lib.data.triggers`. Rows before the eighth are left out.
        """
        length, transitions = 32, triggers.chain()
        shape = {"vocab_size": triggers.VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 1}

        def batch(step: int) -> Tensor:
            return torch.from_numpy(
                triggers.trigger_batch(np.random.default_rng((seed, step)), TASK_ROWS, length, transitions).tokens
            )

        model = self._task_model(name, seed, batch, length, self.profile.look_steps, 1e-2, shape)
        test = triggers.trigger_batch(np.random.default_rng((seed, 10**6)), 256, length, transitions)
        tokens = torch.from_numpy(test.tokens).to(self.device)
        with torch.inference_mode():
            out = model(tokens, output_attentions=True)
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        excess = loss.view(len(tokens), -1).cpu().numpy() - test.floor[:, :-1]
        weights = out.attentions[0][:, 0, :-1, :-1].cpu().numpy()
        mass = weights.sum(-1)
        normal = weights / np.maximum(mass, 1e-9)[..., None]
        n = np.arange(length - 1)
        shares = {"first": normal[:, :, 0], "self": normal[:, n, n]}
        shares["previous"] = np.pad(normal[:, n[1:], n[:-1]], ((0, 0), (1, 0)))
        found = {}
        for kind, which in (("look", test.looks_back[:, :-1]), ("idle", ~test.looks_back[:, :-1])):
            rows = which & (n >= 8)
            found[kind] = Rows(
                mass[rows].mean(), excess[rows].mean(), *(float(x[rows].mean()) for x in shares.values())
            )
        return found

    def recall(self, name: str, seed: int, lengths: Sequence[int]) -> Recall:
        """Train one layer to name a value hidden in 32 tokens, or to say that there is none; read at ``lengths``."""
        length = 32
        none = needle.vocabulary(8, 16)
        shape = {"vocab_size": none + 2, "num_hidden_layers": 1, "num_attention_heads": 2}
        if ARMS[name].bias:
            shape["bias_length"] = length

        def questions(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, ...]:
            distance = rng.integers(1, length - 3, count)
            tokens, answers, _ = needle.needle_batch(rng, count, length - 1, distance)
            absent = rng.random(count) < 0.5
            filler = rng.integers(needle.FIRST_FILLER, needle.FIRST_FILLER + 16, tokens.shape)
            filler[:, -1] = needle.QUERY
            tokens = np.where(absent[:, None], filler, tokens)
            tokens = np.concatenate([np.full((count, 1), none + 1), tokens], axis=1)
            return tokens, np.where(absent, none, answers), absent, distance

        def batch(step: int) -> tuple[Tensor, Tensor]:
            tokens, answers, *_ = questions(np.random.default_rng((seed, step)), TASK_ROWS, length)
            targets = np.full_like(tokens, -100)
            targets[:, -1] = answers
            return torch.from_numpy(tokens), torch.from_numpy(targets)

        model = self._task_model(name, seed, batch, length, self.profile.recall_steps, 5e-3, shape)
        right, on_value, mass = {"present": [], "absent": []}, [], {"present": [], "absent": []}
        for size in lengths:
            tokens, answers, absent, distance = questions(
                np.random.default_rng((seed, 10**6, size)), RECALL_ITEMS, size
            )
            said, rows = [], []
            with torch.inference_mode():
                for part in torch.from_numpy(tokens).to(self.device).split(max(1, 16_384 // size)):
                    # Weights of the question's row alone: those of all rows would be the square of the stream.
                    cache = model(part[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
                    out = model(part[:, -1:], past_key_values=cache, output_attentions=True)
                    said.append(out.logits[:, -1].argmax(-1).cpu().numpy())
                    rows.append(out.attentions[0][:, :, -1].cpu().numpy())
            said, rows = np.concatenate(said), np.concatenate(rows)
            value = rows[np.arange(RECALL_ITEMS), :, size - 1 - distance]
            on_value.append(float(value[~absent].mean(axis=0).max()))
            for kind, which in (("present", ~absent), ("absent", absent)):
                right[kind].append((int((said == answers)[which].sum()), int(which.sum())))
                mass[kind].append(float(rows[which].sum(-1).mean()))
        return Recall(list(lengths), right["present"], right["absent"], on_value, mass["present"], mass["absent"])

    def _task_model(self, name, seed, batch, length, steps, rate, shape) -> LazyForCausalLM:
        shape = {"bias_length": length if ARMS[name].bias else 0, "hidden_size": 64, "initializer_range": 0.125} | shape
        model = self.build(name, seed, **shape)
        config = TrainConfig(steps, TASK_ROWS, length, rate, warmup=steps // 10, seed=seed)
        train(model, batch, config, device=self.device, groups=model.parameter_groups(config.weight_decay))
        return model.eval()


class History(NamedTuple):
    """About 21 moments of training: ``step``; ``tau`` [moments, layers, heads]; ``mass`` [moments, layers], mean sums
    of the rows' weights."""

    step: list[int]
    tau: Sequence
    mass: Sequence


@torch.no_grad()
def layer_mass(model: LazyForCausalLM, tokens_BT: Tensor) -> list[float]:
    """Mean sum of the weights of each layer's rows, second half of the texts."""
    weights = model(tokens_BT, output_attentions=True).attentions
    return [float(A[..., A.shape[-1] // 2 :, :].sum(-1).mean()) for A in weights]


# Streams in a step of the generated tasks, and questions asked at each length.
TASK_ROWS, RECALL_ITEMS = 16, 128


class Recall(NamedTuple):
    """By length: correct answers and questions where the value is ``present`` and where it is ``absent``, the mean
    weight ``on_value`` of the head that puts most there, and the sum of the weights of the question's row."""

    lengths: list[int]
    present: list[tuple[int, int]]
    absent: list[tuple[int, int]]
    on_value: list[float]
    mass_present: list[float]
    mass_absent: list[float]


class Rows(NamedTuple):
    """Means over rows of one kind: sum of the weights, loss above the best possible (nats), and the shares of that sum
    on the ``first`` token, on the row's own token, and on the ``previous`` one."""

    mass: float
    excess: float
    first: float
    own: float
    previous: float


class Probe(NamedTuple):
    """What a model's weights look like on some texts: means over layers, heads, texts and the rows of the second half.

    ``mass``: sum of the raw weights. ``sparsity``: share of visible pairs with weight 0 exactly. ``sink_raw``: weight
    on the fixed token, less 1/i where the weights sum to one (uniform rows would give it that); ``sink``: the same
    after dividing rows by their sum. ``sink_rate``: share of layers, heads and texts in which the normalised weight
    exceeds 0.3 on average. ``strongest``: the head that gives the fixed token most, normalised. ``entropy``: of
    normalised rows, over ln i. ``rank``: effective rank of the last hidden states; ``cosine`` their mean pairwise
    cosine. ``variance_ratio``: channel variance of the hidden state at the fixed token over the median token's,
    entering the second layer.
    """

    mass: float
    sparsity: float
    sink_raw: float
    sink: float
    sink_rate: float
    strongest: float
    entropy: float
    rank: float
    cosine: float
    variance_ratio: float


@torch.no_grad()
def probe(model: LazyForCausalLM, tokens_BT: Tensor, start: int = 1) -> Probe:
    """Measure attention weights and hidden states; ``start`` is the place of the fixed token, from 1."""
    out = model(tokens_BT, output_attentions=True, output_hidden_states=True)
    T = tokens_BT.shape[1]
    count = torch.arange(T // 2 + 1, T + 1, device=tokens_BT.device).float()
    seen = torch.arange(T, device=tokens_BT.device) < count[:, None]
    found = []
    for weights in out.attentions:
        rows = weights[..., T // 2 :, :].float()
        mass = rows.sum(-1)
        normal = rows / mass.clamp_min(1e-9)[..., None]
        fixed = normal[..., start - 1]
        entropy = -(normal * normal.clamp_min(1e-12).log()).sum(-1) / count.log()
        empty = mass < 1e-9
        found.append(
            [
                mass.mean(),
                (rows == 0)[..., seen].float().mean(),
                (rows[..., start - 1] - mass / count).mean(),
                (fixed - ~empty / count).mean(),
                (fixed.mean(-1) > 0.3).float().mean(),
                fixed.mean((0, 2)).max(),
                entropy[~empty].mean() if (~empty).any() else torch.tensor(0.0),
            ]
        )
    means = np.mean([[float(x) for x in layer] for layer in found], axis=0)
    hidden = out.hidden_states[-1].float()
    cosine = F.normalize(hidden, dim=-1)
    cosine = (cosine @ cosine.mT).mean() - 1 / T
    variance = out.hidden_states[1].float().var(dim=-1)
    ratio = (variance[:, start - 1] / variance.median(dim=1).values).mean()
    return Probe(*means, effective_rank(hidden), float(cosine) * T / (T - 1), float(ratio))


def effective_rank(hidden_BTE: Tensor) -> float:
    """exp of the entropy of the normalised singular values of each text's hidden states, mean over texts."""
    values = torch.linalg.svdvals(hidden_BTE.double().cpu())
    share = values / values.sum(-1, keepdim=True)
    return float((-(share * share.clamp_min(1e-12).log()).sum(-1)).exp().mean())


class Sparsity(NamedTuple):
    """``measured`` sparsity of an elastic model and of two models of it that read no text: normal scores of the same
    spread in each row (``same_spread``) and normal scores that leave each head the same mass (``same_mass``)."""

    measured: float
    same_spread: float
    same_mass: float


@torch.no_grad()
def sparsity_control(model: LazyForCausalLM, tokens_BT: Tensor) -> Sparsity:
    """Sparsity beside that of random scores, rows of the second half, means over layers and heads.

    Spreads and masses are taken from the model's own logits and weights. A head whose offset is not negative has no
    zeros in either control.
    """
    T = tokens_BT.shape[1]
    count = torch.arange(T // 2 + 1, T + 1).float()
    seen = torch.arange(T) < count[:, None]
    weights = model(tokens_BT, output_attentions=True).attentions
    found = []
    for layer, A, z in zip(model.model.layers, weights, logits(model, tokens_BT), strict=True):
        A, z = A[..., T // 2 :, :].float().cpu(), z[..., T // 2 :, :].float().cpu().masked_fill(~seen, 0)
        centred = (z - z.sum(-1, keepdim=True) / count[:, None]).masked_fill(~seen, 0)
        spread = (centred.square().sum(-1) / count).sqrt().clamp_min(1e-4)
        for h, tau in enumerate(layer.attention.tau.tolist()):
            measured, mass = float((A[:, h] == 0)[..., seen].float().mean()), float(A[:, h].sum(-1).mean())
            if tau < 0:
                random = np.mean([method.gaussian_sparsity(s, tau) for s in spread[::4, h, ::4].flatten().tolist()])
                found.append((measured, random, sparsity_at_mass(mass, tau)))
            else:
                found.append((measured, 0.0, 0.0))
    return Sparsity(*(float(x) for x in np.mean(found, axis=0)))


def sparsity_at_mass(mass: float, tau: float) -> float:
    """Sparsity of normal scores whose spread is chosen such that an offset ``tau`` < 0 leaves ``mass``."""

    def excess(sigma: float) -> float:
        return method.gaussian_mass(sigma, tau) - mass

    low, high = 1e-3, 60.0
    if excess(low) > 0:  # |tau| < 1 leaves at least 1 - |tau|, at any spread
        return method.gaussian_sparsity(low, tau)
    return method.gaussian_sparsity(brentq(excess, low, high), tau) if excess(high) > 0 else 1.0


def logits(model: LazyForCausalLM, tokens_BT: Tensor) -> list[Tensor]:
    """Scores of every layer before any normaliser, ``[B, H, T, T]`` each (those of the future included)."""
    position = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    distance_TT = (position[:, None] - position).clamp_min(0)
    found: list[Tensor] = []

    def keep(module, arguments) -> None:
        q, k, _ = module.project(arguments[0], arguments[1].table)
        found.append(module.logits(q, k.repeat_interleave(module.H // module.K, dim=1), distance_TT))

    hooks = [layer.attention.register_forward_pre_hook(keep) for layer in model.model.layers]
    try:
        with torch.no_grad():
            model(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class PostHoc(NamedTuple):
    """An offset of -1 put on trained softmax weights, rows of the second half. Changes of normalised shares:
    ``worst_top``, the smallest change of any row's largest weight; ``sink_rows``, the mean change of the first token
    where it is that largest weight; ``first``, its mean change over all rows. ``sparsity``: share of zeros made."""

    worst_top: float
    sink_rows: float
    first: float
    sparsity: float


@torch.no_grad()
def post_hoc(model: LazyForCausalLM, tokens_BT: Tensor) -> PostHoc:
    """Elastic-Softmax with tau = -1 on the weights of a model that was trained with softmax, layer by layer."""
    T = tokens_BT.shape[1]
    count = torch.arange(T // 2 + 1, T + 1, device=tokens_BT.device)[:, None]
    seen = torch.arange(T, device=tokens_BT.device) < count
    p = torch.stack(model(tokens_BT, output_attentions=True).attentions)[..., T // 2 :, :].double()
    p = p / p.sum(-1, keepdim=True)
    w = torch.relu(p - 1 / count)
    share = w / w.sum(-1, keepdim=True)
    top = p.argmax(-1, keepdim=True)
    change = (share - p).gather(-1, top)[..., 0]
    first = (share - p)[..., 0]
    sinks = top[..., 0] == 0
    return PostHoc(
        float(change.min()),
        float(first[sinks].mean()) if sinks.any() else math.nan,
        float(first.mean()),
        float((w == 0)[..., seen].double().mean()),
    )


@torch.no_grad()
def bound_violations(model: LazyForCausalLM, tokens_BT: Tensor) -> int:
    """Rows whose weights sum to less than 1 - |tau| or more than 1 + max(tau, 0), beyond rounding; should be 0."""
    wrong = 0
    for layer, A in zip(model.model.layers, model(tokens_BT, output_attentions=True).attentions, strict=True):
        mass, tau = A.double().sum(-1), layer.attention.tau.double()[:, None]
        wrong += int(((mass < 1 - tau.abs() - 1e-5) | (mass > 1 + tau.clamp_min(0) + 1e-5)).sum())
    return wrong


@torch.no_grad()
def empty_tiles(model: LazyForCausalLM, tokens_BT: Tensor, size: int = 64) -> float:
    """Share of ``size`` x ``size`` tiles with no active pair, of those that hold a visible one."""
    T = tokens_BT.shape[1]
    if T % size:
        raise ValueError(f"texts of {T} tokens do not divide into tiles of {size}")
    A = torch.stack(model(tokens_BT, output_attentions=True).attentions)
    largest = A.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).amax((-3, -1))
    visible = torch.ones(largest.shape[-2:], dtype=torch.bool).tril().to(A.device)
    return float((largest == 0)[..., visible].float().mean())


@torch.no_grad()
def decode_error(model: LazyForCausalLM, tokens_BT: Tensor) -> float:
    """Largest difference of logits, token by token through a cache against all at once, over the largest logit."""
    whole = model(tokens_BT, use_cache=False).logits
    cache, parts = model.new_cache(), []
    for t in range(tokens_BT.shape[1]):
        parts.append(model(tokens_BT[:, t : t + 1], past_key_values=cache).logits)
    return float((torch.cat(parts, 1) - whole).abs().max() / whole.abs().max())


@torch.no_grad()
def cache_growth(lab: Lab, context: int = 256) -> int:
    """Cache bytes of Lazy minus those of softmax after ``context`` tokens."""
    sizes = []
    for name in ("lazy", "softmax"):
        model = lab.build(name, 0).eval()
        cache = model.new_cache()
        model(torch.zeros(1, context, dtype=torch.int64, device=model.device), past_key_values=cache)
        sizes.append(cache.nbytes)
    return sizes[0] - sizes[1]


def kernel_error(backend: str, taus: Sequence[float] = (-1.2, -1.0, -0.3, 0.0, 0.2)) -> float:
    """Largest relative error of output and gradients in fp32 against the dense form in fp64, over offsets and lengths
    that fit no tile; each tensor's error is over its own largest value."""
    worst = 0.0
    for tau, (T, W) in zip(taus, ((65, 300), (130, 16), (200, 200), (97, 1), (129, 64)), strict=True):
        generator = torch.Generator().manual_seed(T)
        tensors = [torch.randn(1, 2, T, 16, generator=generator) for _ in range(3)]
        tensors += [torch.randn(2, W, generator=generator), torch.full((2,), tau)]
        found = []
        for dtype, way in ((torch.float64, "reference"), (torch.float32, backend)):
            q, k, v, bias, offset = (x.to(dtype).requires_grad_() for x in tensors)
            out = method.elastic_softmax_attention(q, k, v, bias=bias, tau=offset, backend=way)
            found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias, offset))])
        for exact, ours in zip(*found, strict=True):
            error = (ours - exact).abs().max() / exact.abs().max().clamp_min(1e-12)
            worst = max(worst, error.item())
    return worst


def cost_ratios(length: int = 1024, repeats: int = 9) -> dict[str, np.ndarray]:
    """CPU seconds of elastic softmax over those of softmax with the same bias, same code base (B1 H4 D64, fp32):
    ``forward`` and ``both`` (with backward), one ratio per repeat."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, length, 64, generator=generator).requires_grad_() for _ in range(3))
    bias, tau = torch.zeros(4, length, requires_grad=True), torch.full((4,), -1.0, requires_grad=True)

    def run(offset: Tensor | None, backward: bool) -> float:
        begin = time.process_time()
        out = method.elastic_softmax_attention(q, k, v, bias=bias, tau=offset, backend="banded")
        if backward:
            torch.autograd.grad(out.sum(), [q, k, v, bias] + ([] if offset is None else [offset]))
        return time.process_time() - begin

    ratios: dict[str, list[float]] = {"forward": [], "both": []}
    for i in range(-1, repeats):
        for name, found in ratios.items():
            ratio = run(tau, name == "both") / run(None, name == "both")
            if i >= 0:
                found.append(ratio)
    return {name: np.array(found) for name, found in ratios.items()}


def drift(mass: np.ndarray) -> np.ndarray:
    """Largest relative change of a layer's mass over the second half of training, from [seeds, moments, layers]."""
    half = mass[:, mass.shape[1] // 2]
    return (np.abs(mass[:, -1] - half) / half).max(axis=-1)


def probe_table(probed: dict[str, list[Probe]]) -> dict[str, tuple[Interval, ...]]:
    """One row of intervals over seeds per arm, one cell per field of :class:`Probe`."""
    return {label: tuple(over_seeds(column) for column in zip(*found, strict=True)) for label, found in probed.items()}


def field(probes: Sequence[Probe], name: str) -> np.ndarray:
    """One field of several probes: [seeds]."""
    return np.array([getattr(found, name) for found in probes])


def quoted() -> dict:
    """Numbers as the paper's sources print them (``book/quoted/lazy_attention.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "lazy_attention.yml").read_text(encoding="utf-8"))


def accuracy(recalls: Sequence[Recall], kind: str = "present") -> dict[str, list[float]]:
    """Accuracy by length with an exact binomial interval, seeds pooled, for a figure."""
    counts = np.array([getattr(r, kind) for r in recalls]).sum(axis=0)
    found = [proportion(int(right), int(asked)) for right, asked in counts]
    ends = {end: [getattr(interval, end) for interval in found] for end in ("low", "high")}
    return {"x": recalls[0].lengths, "y": [interval.mean for interval in found], **ends}
