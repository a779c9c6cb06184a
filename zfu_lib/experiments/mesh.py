"""Experiments of the MESH chapter (Findings of ACL 2025, arXiv 2506.14235).

A :class:`Lab` trains encoders and arms once per seed and ranks them; the functions below it need no training.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_union
from torch import Tensor, nn
from torch.nn import functional as F

from zfu_lib.data.tkg import Events, generated_events, icews14s
from zfu_lib.lm import encoder
from zfu_lib.lm.encoder import TextEncoder
from zfu_lib.prediction.mesh import CLEAN, RELEASED, Mesh, Quirks
from zfu_lib.prediction.mesh_controls import Names, OneGate, Structure, WithCopy
from zfu_lib.prediction.recurrency import Recurrency, baselines
from zfu_lib.prediction.regcn import REGCN, Frozen, word_graph
from zfu_lib.prediction.tkg import SPLITS, TemporalGraph
from zfu_lib.prediction.tkg_ranking import Metrics, Ranking, Scorer, evaluate
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import replacing
from zfu_lib.report.statistics import Interval, exact, over_seeds


@dataclass(frozen=True)
class EncoderSettings:
    """How RE-GCN is trained. ``history`` in days; ``static``: with the word graph of the names; the learning rate
    falls from ``learning_rate`` to zero along a half cosine, or stays (``decay=False``, the released recipe)."""

    width: int
    epochs: int
    history: int = 3
    static: bool = False
    learning_rate: float = 1e-3
    decay: bool = True
    weight_decay: float = 1e-5
    clip: float = 1.0
    dropout: float = 0.2


@dataclass(frozen=True)
class MeshProfile(Profile):
    """What the chapter runs.

    ``data``: ``generated`` (a graph for each seed) or ``icews14s``. ``first_day`` and ``num_entities`` cut a slice of
    it for the arms (0: the whole graph). ``encoder`` and ``whole`` say how RE-GCN is trained for the arms and, where
    they work on a slice, once on the whole graph (``whole.epochs`` 0: not at all). ``features``: a name of
    :func:`zfu_lib.lm.encoder.load`. ``hidden``, ``channels``, ``epochs``, ``learning_rate`` are those of the experts;
    ``arms`` which of :data:`ARMS` are trained.
    """

    data: str
    first_day: int
    num_entities: int
    encoder: EncoderSettings
    whole: EncoderSettings
    features: str
    hidden: int
    channels: int
    epochs: int
    learning_rate: float
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One model on the frozen encoder. ``kind``: ``mesh``, ``one_gate``, ``structure`` or ``names``; ``features``:
    ``names``, ``tfidf`` or ``random``; ``copy``: with the recurrency score as a third branch; ``omega`` and
    ``semantic_weight`` of the loss; ``options`` of :class:`~zfu_lib.prediction.mesh.Mesh`."""

    label: str
    kind: str = "mesh"
    features: str = "names"
    copy: bool = False
    omega: float = 1.0
    semantic_weight: float = 1.0
    options: tuple[tuple[str, object], ...] = ()


DUAL = (("dual_candidates", True),)
ARMS = {
    "structure": Arm("structure, trained as long", "structure"),
    "names": Arm("names alone", "names"),
    "one_gate": Arm("one gate, same size", "one_gate"),
    "even_gates": Arm("MESH, every gate ½", options=(("even_gates", True),)),
    "no_names": Arm("MESH without names", options=(("names", False),)),
    "mesh": Arm("MESH"),
    "mesh_random": Arm("MESH, random vectors", features="random"),
    "mesh_tfidf": Arm("MESH, TF-IDF vectors", features="tfidf"),
    "omega_0": Arm("MESH, ω = 0", omega=0.0),
    "no_semantic_loss": Arm("MESH without L_sem", semantic_weight=0.0),
    "dual": Arm("dual candidates", options=DUAL),
    "dual_random": Arm("dual candidates, random vectors", features="random", options=DUAL),
    "copy": Arm("MESH with a copy branch", copy=True),
    "released": Arm("MESH as released", options=(("quirks", RELEASED),)),
    "omega_0.1": Arm("MESH, ω = 0.1", omega=0.1),
    "omega_0.5": Arm("MESH, ω = 0.5", omega=0.5),
    "omega_2": Arm("MESH, ω = 2", omega=2.0),
}
EXTRA = ("even_gates", "mesh_tfidf", "released", "omega_0.1", "omega_0.5", "omega_2")
CONTROLS = tuple(name for name in ARMS if name not in EXTRA)

QUICK = MeshProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=3,
    data="generated",
    first_day=0,
    num_entities=0,
    encoder=EncoderSettings(width=32, epochs=10, learning_rate=1e-2),
    whole=EncoderSettings(width=0, epochs=0),
    features="minilm",
    hidden=64,
    channels=8,
    epochs=6,
    learning_rate=1e-2,
    arms=CONTROLS,
)
FULL = replace(
    QUICK,
    profile="full",
    cost=Cost(machine="one GPU with 24 GB", minutes=25, memory_gb=8, gpu_memory_gb=16, data=("icews14s",)),
    data="icews14s",
    encoder=EncoderSettings(width=200, epochs=20, static=True, learning_rate=2e-3),
    whole=EncoderSettings(width=100, epochs=20, static=True, learning_rate=2e-3),
    hidden=1024,
    channels=50,
    epochs=8,
    learning_rate=1e-3,
    arms=(*CONTROLS, "even_gates", "mesh_tfidf", "released"),
)
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one GPU with 40 GB; an estimate, nobody has run it",
        minutes=900,
        memory_gb=32,
        gpu_memory_gb=30,
        disk_gb=15,
        downloads=(Download("meta-llama/Llama-2-7b-hf", 13.5),),
        data=("icews14s",),
    ),
    encoder=EncoderSettings(width=100, epochs=200, static=True, decay=False),
    whole=EncoderSettings(width=200, epochs=200, static=True, decay=False),
    features="hf:meta-llama/Llama-2-7b-hf",
    epochs=200,
    arms=tuple(ARMS),
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile: this is what changes there, and the run says so.
FULL_ON_CPU = {
    "first_day": 185,
    "num_entities": 1000,
    "encoder": EncoderSettings(width=64, epochs=12, learning_rate=4e-3),
    "whole": EncoderSettings(width=200, epochs=12, static=True, learning_rate=2e-3),
    "hidden": 128,
    "channels": 16,
    "epochs": 4,
    "learning_rate": 2e-3,
    "arms": (*CONTROLS, "even_gates", "mesh_tfidf", "released"),
}


@dataclass
class Curve:
    """What happened in training, by epoch: mean loss, validation MRR (time-filtered, two directions), CPU seconds."""

    loss: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Schedule:
    """Adam over ``epochs`` with the settings' learning rate; one step is one day."""

    def __init__(self, parameters: list[torch.nn.Parameter], settings: EncoderSettings, steps: int) -> None:
        self.parameters, self.settings, self.steps = parameters, settings, steps
        self.adam = torch.optim.Adam(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
        )

    def step(self, loss: Tensor, number: int) -> None:
        """One update; ``number`` counts from 0 over the whole run."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if self.settings.decay:
            rate = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * number / self.steps))
            for group in self.adam.param_groups:
                group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()


def pretrain(
    graph: TemporalGraph,
    settings: EncoderSettings,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
) -> tuple[Frozen, Curve]:
    """Train RE-GCN on both directions, one day a step in random order, and keep the epoch that is best on validation.

    Args:
        checkpoint: a safetensors file; if it exists and belongs to these settings the run goes on from it.

    Raises:
        ValueError: the checkpoint belongs to other settings.
    """
    torch.manual_seed(seed)
    words = word_graph(graph.entities) if settings.static else None
    model = REGCN(
        graph.num_entities,
        graph.num_relations,
        settings.width,
        words=words,
        blocks=math.gcd(100, settings.width),
        dropout=settings.dropout,
    ).to(device)
    frozen, curve = Frozen(model, graph, settings.history, device), Curve()
    days = graph.days("train")[1:]
    schedule = Schedule(list(model.parameters()), settings, settings.epochs * len(days))
    facts = {day: torch.as_tensor(graph.with_inverses(graph.on(day)), device=device) for day in days}
    best = {name: t.clone() for name, t in model.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        curve, best = _resume(checkpoint, settings, seed, model, schedule.adam)
    for epoch in range(len(curve.loss), settings.epochs):
        began, losses = time.process_time(), []
        torch.manual_seed(1_000_003 * seed + epoch)
        model.train()
        for i, day in enumerate(np.random.default_rng([seed, epoch]).permutation(days).tolist()):
            loss = model.loss(model.evolve(frozen.history(day), day), facts[day])
            schedule.step(loss, epoch * len(days) + i)
            losses.append(float(loss.detach()))
        curve.seconds.append(time.process_time() - began)
        frozen.forget()
        curve.loss.append(float(np.mean(losses)))
        curve.valid.append(evaluate(graph, frozen, "valid", device=device).metrics().mrr)
        if curve.valid[-1] == max(curve.valid):
            best = {name: t.clone() for name, t in model.state_dict().items()}
        if checkpoint is not None:
            _keep(checkpoint, settings, seed, model, schedule.adam, curve, best)
    model.load_state_dict(best)
    model.eval().requires_grad_(False)
    frozen.forget()
    return frozen, curve


def _keep(
    file: Path,
    settings: EncoderSettings,
    seed: int,
    model: REGCN,
    adam: torch.optim.Adam,
    curve: Curve,
    best: dict[str, Tensor],
) -> None:
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"best.{name}": t for name, t in best.items()}
    for index, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": t for name, t in state.items()}
    about = {"settings": json.dumps(asdict(settings) | {"seed": seed}), "curve": json.dumps(asdict(curve))}
    with replacing(file) as new:
        save_file({name: t.contiguous() for name, t in tensors.items()}, new, metadata=about)


def _resume(
    file: Path, settings: EncoderSettings, seed: int, model: REGCN, adam: torch.optim.Adam
) -> tuple[Curve, dict[str, Tensor]]:
    with safe_open(file, framework="pt") as stream:
        about = stream.metadata() or {}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    if json.loads(about["settings"]) != asdict(settings) | {"seed": seed}:
        raise ValueError(f"{file.name} was written with other settings ({about['settings']}); delete it to start anew")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["adam"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    return Curve(**json.loads(about["curve"])), parts["best"]


SUBSETS: dict[str, Callable[[TemporalGraph], np.ndarray]] = {
    "all": lambda graph: np.ones(len(graph.test), bool),
    "historical": lambda graph: graph.historical("test"),
    "new": lambda graph: ~graph.historical("test"),
    "historical, all earlier days": lambda graph: graph.historical("test", "past"),
    "new, all earlier days": lambda graph: ~graph.historical("test", "past"),
    "new object of a known pair": lambda graph: ~graph.historical("test", "past") & graph.pair_seen("test"),
    "unseen pair": lambda graph: ~graph.pair_seen("test"),
}
"""Masks of the test facts. ``historical`` and ``new`` by the released rule (training days only), then by all days
before the fact; a pair is a subject with a relation."""


class Scored:
    """A trained arm as a :class:`~zfu_lib.prediction.tkg_ranking.Scorer`."""

    def __init__(self, model: nn.Module, frozen: Frozen, recurrency: Recurrency) -> None:
        self.model, self.frozen, self.recurrency = model.eval(), frozen, recurrency

    @torch.no_grad()
    def score(self, day: int, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N]."""
        state = self.frozen.state(day)
        extra = (self.recurrency.score(day, s_B, r_B).float(),) if isinstance(self.model, WithCopy) else ()
        return self.model.scores(state, self.model.semantics(state), s_B, r_B, *extra)


class Gates(NamedTuple):
    """Gates of every fact of a period, asked for its object: float [F] each."""

    alpha: np.ndarray
    historical: np.ndarray
    other: np.ndarray


class Lab:
    """Trains encoders and arms on demand, once per seed, and ranks them.

    The arms of a seed share graph, frozen encoder and the order of days. On generated data a seed has a graph of its
    own; on ICEWS14 it changes initial weights and order alone, and intervals are over those.
    """

    def __init__(self, profile: MeshProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.asked, self.profile = profile, replace(profile, **FULL_ON_CPU) if scaled else profile
        self.as_frozen: dict[int, dict[str, Tensor]] = {}
        self._events: dict[int, Events] = {}
        self._graphs: dict[int, TemporalGraph] = {}
        self._encoders: dict[int, tuple[Frozen, Curve]] = {}
        self._features: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._trained: dict[tuple[str, int], tuple[nn.Module, Curve]] = {}
        self._ranked: dict[tuple[str, int, str], Ranking] = {}
        self._whole: tuple[TemporalGraph, Frozen, Curve] | None = None
        self._text: TextEncoder | None = None

    def description(self) -> str:
        """What will be trained, on what, and how far that is from what the profile asks for on a GPU."""
        p, graph = self.profile, self.graph(0)
        sizes = " / ".join(f"{len(graph.split(name)):,}" for name in SPLITS)
        text = (
            f"{p.data}: {graph.num_entities:,} entities, {graph.num_relations} relations, {sizes} facts on "
            f"{len(graph.days())} days. Encoder of width {p.encoder.width}, {p.encoder.epochs} epochs; experts "
            f"{p.epochs} epochs; names as vectors of {p.features}; {p.seeds} seeds, on {self.device}."
        )
        if p != self.asked:
            a = self.asked
            text += (
                f" Scaled down for a CPU: the profile asks for all days and entities, an encoder of width "
                f"{a.encoder.width} for {a.encoder.epochs} epochs, projections of {a.hidden} units (here {p.hidden}), "
                f"{a.channels} channels (here {p.channels}) and {a.epochs} epochs of the experts."
            )
        return text

    def events(self, seed: int) -> Events:
        """The data of a seed; ICEWS14 is the same for all."""
        key = seed if self.profile.data == "generated" else 0
        if key not in self._events:
            self._events[key] = generated_events(key) if self.profile.data == "generated" else icews14s()
        return self._events[key]

    def graph(self, seed: int) -> TemporalGraph:
        """The graph of the arms."""
        key = seed if self.profile.data == "generated" else 0
        if key not in self._graphs:
            graph = graph_of(self.events(key))
            p = self.profile
            self._graphs[key] = graph.slice(p.first_day, p.num_entities) if p.num_entities else graph
        return self._graphs[key]

    def encoder(self, seed: int) -> tuple[Frozen, Curve]:
        """RE-GCN of the arms, trained and frozen."""
        if seed not in self._encoders:
            kept = self._checkpoint(f"encoder-{seed}")
            self._encoders[seed] = pretrain(
                self.graph(seed), self.profile.encoder, seed, device=self.device, checkpoint=kept
            )
            state = self._encoders[seed][0].model.state_dict()
            self.as_frozen[seed] = {name: x.clone() for name, x in state.items()}
        return self._encoders[seed]

    def whole(self) -> tuple[TemporalGraph, Frozen, Curve] | None:
        """RE-GCN on the whole graph, one seed; None where the profile has none."""
        if self.profile.whole.epochs and self._whole is None:
            graph = graph_of(self.events(0))
            kept = self._checkpoint("whole-0")
            self._whole = graph, *pretrain(graph, self.profile.whole, 0, device=self.device, checkpoint=kept)
        return self._whole

    def features(self, kind: str, seed: int) -> tuple[Tensor, Tensor]:
        """Vectors of entities [N, L] and relations [R, L].

        Args:
            kind: ``names`` by the profile's text encoder; ``tfidf`` of their letters; ``random``, which no name has
                anything to do with. All are centred and scaled (mean 0 and variance 1 in each dimension), so that
                sources differ in what they say and not in how easily they are learnt from.
        """
        graph = self.graph(seed)
        key = kind, seed if kind == "random" or self.profile.data == "generated" else 0
        if key not in self._features:
            texts = [name.replace("_", " ") for name in (*graph.entities, *graph.relations)]
            if kind == "names":
                self._text = self._text or encoder.load(self.profile.features, device=self.device)
                table = torch.as_tensor(self._text.encode(texts))
            elif kind == "tfidf":
                table = tfidf(texts)
            elif kind == "random":
                generator = torch.Generator().manual_seed(seed)
                table = torch.randn(len(texts), 384, generator=generator)
            else:
                raise ValueError(f"features {kind!r}; there are names, tfidf and random")
            parts = table[: graph.num_entities], table[graph.num_entities :]
            self._features[key] = tuple(((x - x.mean(0)) / x.std(0).clamp_min(1e-6)).to(self.device) for x in parts)
        return self._features[key]

    def build(self, name: str, seed: int) -> nn.Module:
        """An untrained arm."""
        p, arm = self.profile, ARMS[name]
        torch.manual_seed(seed)
        made = {"mesh": Mesh, "one_gate": OneGate, "structure": Structure, "names": Names}[arm.kind]
        channels = p.channels * (2 if arm.kind == "one_gate" else 1)
        model = made(
            *self.features(arm.features, seed),
            p.encoder.width,
            hidden=p.hidden,
            channels=channels,
            **dict(arm.options),
        )
        return (WithCopy(model, p.encoder.width) if arm.copy else model).to(self.device)

    def trained(self, name: str, seed: int) -> tuple[nn.Module, Curve]:
        """An arm and its curve; trains it the first time it is asked for."""
        if (name, seed) not in self._trained:
            self._trained[name, seed] = self._train(name, seed)
        return self._trained[name, seed]

    def ranking(self, name: str, seed: int, split: str = "test") -> Ranking:
        """Ranks of an arm, of the frozen ``encoder`` with its own decoder, or of a baseline of
        :func:`zfu_lib.prediction.recurrency.baselines`."""
        if (name, seed, split) not in self._ranked:
            graph = self.graph(seed)
            if name == "encoder":
                scorer = self.encoder(seed)[0]
            elif name in ARMS:
                scorer = self.scorer(name, seed)
            else:
                scorer = baselines(graph)[name]
            self._ranked[name, seed, split] = evaluate(graph, scorer, split, device=self.device)
        return self._ranked[name, seed, split]

    def scorer(self, name: str, seed: int) -> Scored:
        """A trained arm, ready to be ranked."""
        return Scored(self.trained(name, seed)[0], self.encoder(seed)[0], Recurrency(self.graph(seed)))

    def mrr(self, name: str, subset: str = "all", **protocol: object) -> np.ndarray:
        """Test MRR in percent by seed, [seeds].

        Args:
            subset: one of :data:`SUBSETS`.
            protocol: of :meth:`zfu_lib.prediction.tkg_ranking.Ranking.of`.
        """
        found = []
        for seed in range(self.profile.seeds):
            mask = SUBSETS[subset](self.graph(seed))
            found.append(self.ranking(name, seed).metrics(facts=mask, **protocol).mrr)
        return np.array(found)

    def anchor(self) -> dict[str, Interval]:
        """MRR and Hits@10 of RE-GCN on the whole of ICEWS14, which must be near the published 42.1 and 62.7 before a
        model on top of it is judged; empty for generated data. From the arms' own encoders where they work on the
        whole graph, else from the one seed of :meth:`whole`."""
        if self.profile.data == "generated":
            return {}
        if self.profile.num_entities:
            graph, frozen, _ = self.whole()
            found = evaluate(graph, frozen, device=self.device).metrics()
            return {"anchor_mrr": exact(found.mrr), "anchor_hits10": exact(found.hits10)}
        each = [self.ranking("encoder", seed).metrics() for seed in range(self.profile.seeds)]
        return {"anchor_mrr": over_seeds([m.mrr for m in each]), "anchor_hits10": over_seeds([m.hits10 for m in each])}

    @torch.no_grad()
    def gates(self, name: str, seed: int, split: str = "test") -> Gates:
        """Gates of a :class:`~zfu_lib.prediction.mesh.Mesh`, object queries, in the order of the facts."""
        model, frozen = self.trained(name, seed)[0].eval(), self.encoder(seed)[0]
        parts = []
        for day in self.graph(seed).days(split):
            facts = torch.as_tensor(self.graph(seed).on(day), device=self.device)
            state = frozen.state(day)
            found = model.experts(facts[:, 0], facts[:, 1], state, model.semantics(state))
            gates = (found.alpha, found.gate_historical, found.gate_other)
            parts.append(torch.cat(gates, dim=1).cpu().numpy())
        return Gates(*np.concatenate(parts).T)

    def _train(self, name: str, seed: int) -> tuple[nn.Module, Curve]:
        p, arm, graph = self.profile, ARMS[name], self.graph(seed)
        quirks = dict(arm.options).get("quirks", CLEAN)
        frozen, recurrency = self.encoder(seed)[0], Recurrency(graph)
        model = self.build(name, seed)
        weights = {"omega": arm.omega, "semantic_weight": arm.semantic_weight} if arm.kind == "mesh" else {}
        days = graph.days("train")[1:]
        flags = dict(zip(graph.days("train"), split_by_day(graph, graph.historical("train"))))
        settings = replace(p.encoder, learning_rate=p.learning_rate)
        parameters = [x for x in model.parameters() if x.requires_grad]
        schedule, curve, best = Schedule(parameters, settings, p.epochs * len(days)), Curve(), model.state_dict()
        copied: dict[int, Tensor] = {}
        for epoch in range(p.epochs):
            began, losses = time.process_time(), []
            torch.manual_seed(1_000_003 * seed + epoch)
            model.train()
            for i, day in enumerate(np.random.default_rng([seed, epoch]).permutation(days).tolist()):
                facts = graph.on(day) if quirks.object_queries_only else graph.with_inverses(graph.on(day))
                flag = torch.as_tensor(np.resize(flags[day], len(facts)), device=self.device)
                facts = torch.as_tensor(facts, device=self.device)
                extra: dict[str, object] = dict(weights)
                if quirks.second_pass:
                    extra["second"] = frozen.state(day, noisy=quirks.encoder_dropout)
                if arm.copy:
                    extra = {"copied_BN": copied.get(day)}
                    if extra["copied_BN"] is None:
                        extra["copied_BN"] = recurrency.score(day, facts[:, 0], facts[:, 1]).float()
                        copied[day] = extra["copied_BN"]
                loss = model.loss(frozen.state(day, noisy=quirks.encoder_dropout), facts, flag, **extra)
                schedule.step(loss, epoch * len(days) + i)
                losses.append(float(loss.detach()))
            curve.seconds.append(time.process_time() - began)
            curve.loss.append(float(np.mean(losses)))
            found = evaluate(graph, Scored(model, frozen, recurrency), "valid", device=self.device)
            curve.valid.append(found.metrics(directions="object" if quirks.object_queries_only else "both").mrr)
            if curve.valid[-1] == max(curve.valid) or quirks.last_epoch:
                best = {key: x.clone() for key, x in model.state_dict().items()}
        model.load_state_dict(best)
        return model.eval(), curve

    def _checkpoint(self, name: str) -> Path | None:
        # Only where a run takes long: a checkpoint knows its settings, not the code that made it.
        kept = os.environ.get("ZFU_CHECKPOINTS")
        return Path(kept) / f"mesh-{self.profile.profile}-{name}.safetensors" if kept else None


def graph_of(events: Events) -> TemporalGraph:
    """The graph of loaded or generated events."""
    return TemporalGraph(*events[:5])


def split_by_day(graph: TemporalGraph, of_facts: np.ndarray, split: str = "train") -> list[np.ndarray]:
    """Something known of every fact of a period, cut into its days."""
    days = graph.split(split)[:, 3]
    return np.split(of_facts, np.flatnonzero(np.diff(days)) + 1)


def tfidf(texts: Sequence[str], width: int = 128) -> Tensor:
    """Letters instead of meaning: TF-IDF of runs of two to four letters and of words, reduced to ``width`` numbers of
    length one. [texts, width], or fewer where there are fewer different texts."""
    letters = make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
        TfidfVectorizer(token_pattern=r"\w+"),
    ).fit_transform(texts)
    reduce = TruncatedSVD(min(width, min(letters.shape) - 1), random_state=0)
    return F.normalize(torch.as_tensor(reduce.fit_transform(letters), dtype=torch.float32))


def with_released_defect(graph: TemporalGraph) -> TemporalGraph:
    """Q9: ICEWS14 as the released test file has it: (41, 15, 37, 335) is missing and (935, 2, 41, 335) there twice.

    Raises:
        ValueError: not the whole of ICEWS14.
    """
    missing = (graph.test == (41, 15, 37, 335)).all(axis=1)
    twice = (graph.test == (935, 2, 41, 335)).all(axis=1)
    if missing.sum() != 1 or twice.sum() != 1:
        raise ValueError("the released defect is one of the test file of ICEWS14 (icews14s), whole")
    test = np.concatenate([graph.test[~missing], graph.test[twice]])
    return replace(graph, test=test[test[:, 3].argsort(kind="stable")], repeats=True)


def score_as(
    graph: TemporalGraph, scorer: Scorer, quirks: Quirks = CLEAN, *, device: str = "cpu"
) -> dict[str, Metrics]:
    """What a test run reports under the quirks of evaluation (Q1, Q8, Q9, Q11): all test facts, and those that are
    historical and new, by the training days alone or by both rules.

    Raises:
        ValueError: as :func:`with_released_defect`, under Q9.
    """
    graph = with_released_defect(graph) if quirks.defective_test_file else graph
    ranking = evaluate(graph, scorer, ties="sorted" if quirks.sorted_ties else "mean", device=device)
    directions = "object" if quirks.object_queries_only else "both"
    found = {"all": ranking.metrics(directions=directions)}
    for definition in ("train",) if quirks.training_flags else ("train", "past"):
        flags = graph.historical("test", definition)
        for name, mask in (("historical", flags), ("new", ~flags)):
            found[f"{name} ({definition})"] = ranking.metrics(directions=directions, facts=mask)
    return found


def protocol_effects(graph: TemporalGraph) -> dict[str, Metrics]:
    """What the protocol alone does to the counting baselines, which learn nothing."""
    combined, strict = Recurrency(graph), Recurrency(graph, strict_share=1.0)
    frozen = Recurrency(graph, known_until=int(graph.train[-1, 3]))
    fair, counted = evaluate(graph, combined), evaluate(graph, strict)
    return {
        "ψ and ξ: two directions, time-filtered, mean ties (headline)": fair.metrics(),
        "the same, object only": fair.metrics(directions="object"),
        "the same, raw": fair.metrics(filtered=False),
        "history frozen after training, object only": evaluate(graph, frozen).metrics(directions="object"),
        "ψ alone: mean ties": counted.metrics(),
        "ψ alone: pessimistic ties": evaluate(graph, strict, ties="pessimistic").metrics(),
        "ψ alone: optimistic ties (NOT COMPARABLE)": evaluate(graph, strict, ties="optimistic").metrics(),
    }


def separation(values: np.ndarray, flags: np.ndarray) -> tuple[float, float]:
    """How a gate tells flagged from other facts: difference of its means, and area under its ROC curve."""
    return float(values[flags].mean() - values[~flags].mean()), float(roc_auc_score(flags, values))


def by_day(graph: TemporalGraph, ranking: Ranking) -> tuple[list[int], list[float]]:
    """Test MRR of each day, two directions, time-filtered, in percent."""
    parts = split_by_day(graph, ranking.filtered, "test")
    return graph.days("test"), [100 * float(np.mean(1 / part)) for part in parts]


def timelines(graph: TemporalGraph, rows: int = 6) -> tuple[str, dict[str, list[tuple[int, str]]]]:
    """The life of the pair of entities that, of those with test facts, met in most ways.

    Returns:
        The pair's names, and for each of its most frequent relations the days of its events with their period.
    """
    triples = np.unique(graph.facts[:, :3], axis=0)
    pairs, ways = np.unique(triples[:, 0] * graph.num_entities + triples[:, 2], return_counts=True)
    tested = np.isin(pairs, graph.test[:, 0] * graph.num_entities + graph.test[:, 2])
    s, o = divmod(int(pairs[(ways * tested).argmax()]), graph.num_entities)
    mine = graph.facts[(graph.facts[:, 0] == s) & (graph.facts[:, 2] == o)]
    often = np.argsort(-np.bincount(mine[:, 1], minlength=graph.num_relations), kind="stable")[:rows]
    ends = [int(graph.split(name)[-1, 3]) for name in SPLITS]
    found = {
        graph.relations[r].replace("_", " "): [
            (day, SPLITS[int(np.searchsorted(ends, day))]) for day in mine[mine[:, 1] == r, 3].tolist()
        ]
        for r in often.tolist()
    }
    title = f"{graph.entities[s]} to {graph.entities[o]}".replace("_", " ")
    return title, {label: events for label, events in found.items() if events}


def mean_by_day(lab: Lab, name: str) -> dict[str, list[float]]:
    """MRR of each test day, mean over seeds, for :func:`zfu_lib.report.figures.lines`."""
    each = [by_day(lab.graph(seed), lab.ranking(name, seed)) for seed in range(lab.profile.seeds)]
    return {"x": [float(day) for day in each[0][0]], "y": np.mean([values for _, values in each], axis=0).tolist()}


def gate_measures(lab: Lab, name: str = "mesh") -> dict[str, np.ndarray]:
    """What the gates of an arm do on historical and new test facts, asked for the object: [seeds] each.

    ``alpha_gap``: mean α on historical minus on new facts. ``auc``: of α for the flag; ``auc_pair``: of the bit "this
    subject had this relation before". ``his_on_historical``, ``nhis_on_new``: each expert's mean gate towards names on
    the facts that it is for; ``alpha_historical``, ``alpha_new``: the mean α.
    """
    rows = []
    for seed in range(lab.profile.seeds):
        graph, gates = lab.graph(seed), lab.gates(name, seed)
        flags = graph.historical("test")
        gap, auc = separation(gates.alpha, flags)
        pair = separation(graph.pair_seen("test").astype(float), flags)[1]
        means = (gates.historical[flags].mean(), gates.other[~flags].mean())
        rows.append((gap, auc, pair, *means, gates.alpha[flags].mean(), gates.alpha[~flags].mean()))
    names = ("alpha_gap", "auc", "auc_pair", "his_on_historical", "nhis_on_new", "alpha_historical", "alpha_new")
    return dict(zip(names, np.array(rows).T))


def cost(lab: Lab) -> dict[str, np.ndarray]:
    """What training the experts costs, [seeds] each: CPU seconds of an epoch of MESH over one of the encoder's, and the
    largest change that training the experts made to any number of the encoder (it must be none)."""
    ratio, change = [], []
    for seed in range(lab.profile.seeds):
        frozen, encoder_curve = lab.encoder(seed)
        _, curve = lab.trained("mesh", seed)
        now, before = frozen.model.state_dict(), lab.as_frozen[seed]
        change.append(max(float((now[name] - x).abs().max()) for name, x in before.items()))
        ratio.append(np.median(curve.seconds) / np.median(encoder_curve.seconds))
    return {"time_ratio": np.array(ratio), "encoder_change": np.array(change)}


def parameters(lab: Lab) -> dict[str, int]:
    """Numbers that are trained in MESH, by part, and in the control with one gate."""
    mesh, one = lab.build("mesh", 0), lab.build("one_gate", 0)

    def count(*parts: nn.Module) -> int:
        return sum(x.numel() for part in parts for x in part.parameters())

    return {
        "projections of names": count(mesh.project_entities, mesh.project_relations),
        "query encoders": count(mesh.encode),
        "gates": count(mesh.gate_his, mesh.gate_nhis, mesh.gate_alpha),
        "all of MESH": count(mesh),
        "all of the one-gate control": count(one),
    }
