"""RE-GCN (Li et al., SIGIR 2021), the structural encoder of MESH, in plain PyTorch.

The state of every entity and relation evolves over the last m days: on each day relations read the entities they
touch (a GRU), entities read their neighbours (two relational GCN layers) and a gate mixes the result with the day
before. A convolutional decoder scores queries against the evolved entities.

Aggregation is linear, so messages are summed first and multiplied by the layer's matrix once a node, not once an edge;
the sums over relations are the same for both layers and are made once. Shape letters: N entities, R relations, E edges
of a day with inverses, A entities with an edge that day, B queries, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfu_lib.prediction.tkg import GraphError, TemporalGraph, check_history

# The released code calls a randomised leaky ReLU without its training flag: always the mean of its two slopes.
SLOPE = (1 / 8 + 1 / 3) / 2


def leaky(x: Tensor) -> Tensor:
    """The encoder's activation."""
    return F.leaky_relu(x, SLOPE)


class Dropout(nn.Module):
    """Dropout at a rate of whole 256ths that draws one random byte for each number: a third of the time on a CPU.

    Args:
        rate: 0 to 1; rounded to a 256th.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a rate of dropout is from 0 to below 1, got {rate}")
        self.dropped = round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with some numbers zeroed and the others scaled up; in evaluation mode ``x`` itself."""
        if not (self.training and self.dropped):
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int32, device=x.device).random_(-(2**31), 2**31)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (keep * (256 / (256 - self.dropped)))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One day as index tensors.

    ``source``, ``relation``, ``target`` [E]: edges with inverses, ``target`` a place in ``active``; ``active`` [A]:
    entities with an edge; ``degree`` [A, 1]: their edges; ``touched`` and ``toucher`` [P]: entities and relations
    (without inverses) that meet that day, each pair once; ``touches`` [R, 1]: pairs of a relation, at least 1.
    """

    day: int
    source: Tensor
    relation: Tensor
    target: Tensor
    active: Tensor
    degree: Tensor
    touched: Tensor
    toucher: Tensor
    touches: Tensor

    def to(self, device: str | torch.device) -> Snapshot:
        """The same on another device."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Snapshot(**moved)


def snapshot(graph: TemporalGraph, facts: np.ndarray) -> Snapshot:
    """Index tensors of the facts of one day.

    Raises:
        GraphError: no facts, or facts of more than one day.
    """
    days = np.unique(facts[:, 3])
    if len(days) != 1:
        raise GraphError(f"a snapshot holds the facts of one day, got {len(days)} days in {len(facts)} facts")
    edges = graph.with_inverses(facts)
    active, target = np.unique(edges[:, 2], return_inverse=True)
    pairs = np.unique(np.concatenate([facts[:, [1, 0]], facts[:, [1, 2]]]), axis=0)
    touches = np.bincount(pairs[:, 0], minlength=graph.num_relations).clip(min=1)
    return Snapshot(
        int(days[0]),
        *(torch.as_tensor(x) for x in (edges[:, 0].copy(), edges[:, 1].copy(), target, active)),
        torch.as_tensor(np.bincount(target)[:, None].astype(np.float32)),
        torch.as_tensor(pairs[:, 1].copy()),
        torch.as_tensor(pairs[:, 0].copy()),
        torch.as_tensor(touches[:, None].astype(np.float32)),
    )


class RelationalLayer(nn.Module):
    """h_o ← leaky( mean over edges into o of (h_s + q_r) W_n  +  h_o W ), W being W_loop where o has an edge that day
    and W_evolve where it has none; then dropout."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        gain = nn.init.calculate_gain("relu")
        self.neighbour, self.loop, self.evolve = (nn.Parameter(torch.empty(width, width)) for _ in range(3))
        for weight in (self.neighbour, self.loop, self.evolve):
            nn.init.xavier_uniform_(weight, gain=gain)
        self.dropout = Dropout(dropout)

    def forward(self, h_ND: Tensor, relations_AD: Tensor, day: Snapshot) -> Tensor:
        """One layer.

        Args:
            h_ND: entities.
            relations_AD: sum of q_r over the edges of each active entity.
        """
        sum_AD = relations_AD.index_add(0, day.target, h_ND[day.source])
        active_AD = sum_AD / day.degree @ self.neighbour + h_ND[day.active] @ self.loop
        return self.dropout(leaky((h_ND @ self.evolve).index_copy(0, day.active, active_AD)))


class WordGraph(NamedTuple):
    """Edges from entities to what their names say: ``entity``, ``word``, ``kind`` int64 [W edges]."""

    entity: Tensor
    word: Tensor
    kind: Tensor
    num_words: int


def word_graph(names: Sequence[str]) -> WordGraph:
    """The static graph of entity names: *Police_(Kenya)* is a *Police* (kind 0) of *Kenya* (kind 1); a name without
    brackets is itself (kind 2). Words are numbered in the order in which they first appear."""
    words: dict[str, int] = {}
    edges = []
    for entity, name in enumerate(names):
        head, bracket, rest = name.partition("(")
        said = [(0, head.strip("_ ")), (1, rest.partition(")")[0])] if bracket else [(2, name)]
        edges += [(entity, words.setdefault(word, len(words)), kind) for kind, word in said]
    entity, word, kind = torch.tensor(edges).T.contiguous()
    return WordGraph(entity, word, kind, len(words))


class StaticLayer(nn.Module):
    """One R-GCN layer with block-diagonal weights over entities and words, which starts and anchors the evolution.

    Mean over incoming edges, no self loop; ``blocks`` blocks of width D / blocks.
    """

    def __init__(self, graph: WordGraph, num_entities: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        if width % blocks:
            raise ValueError(f"width {width} is not a multiple of {blocks} blocks")
        self.num_entities, self.blocks = num_entities, blocks
        self.words = nn.Parameter(nn.init.xavier_normal_(torch.empty(graph.num_words, width)))
        self.weight = nn.Parameter(torch.empty(6, blocks, width // blocks, width // blocks))
        nn.init.xavier_uniform_(self.weight, gain=nn.init.calculate_gain("relu"))
        self.dropout = Dropout(dropout)
        word = graph.word + num_entities
        source, target = torch.cat([graph.entity, word]), torch.cat([word, graph.entity])
        kind = torch.cat([graph.kind, graph.kind + 3])
        degree = torch.bincount(target, minlength=num_entities + graph.num_words).clamp_min(1)
        for name, value in (("source", source), ("target", target), ("kind", kind), ("degree", degree[:, None])):
            self.register_buffer(name, value, persistent=False)

    def forward(self, entities_ND: Tensor) -> Tensor:
        """Entities [N, D] after the layer."""
        x = torch.cat([entities_ND, self.words])
        out = torch.zeros_like(x)
        for kind in range(6):
            edges = self.kind == kind
            into = self.target[edges]
            from_EBI = x[self.source[edges]].unflatten(1, (self.blocks, -1))
            message_EBJ = torch.einsum("ebi,bij->ebj", from_EBI, self.weight[kind])
            out = out.index_add(0, into, message_EBJ.flatten(1))
        return self.dropout(leaky(out / self.degree))[: self.num_entities]


class QueryDecoder(nn.Module):
    """ConvTransE without its candidates: two vectors in, one out, not negative.

    Two channels [a; b] → batch norm → convolution of width 3 → batch norm → ReLU → linear → batch norm → ReLU, with
    dropout between.

    Args:
        channels: of the convolution; 50 in the papers.
    """

    def __init__(self, width: int, channels: int = 50, dropout: float = 0.2) -> None:
        super().__init__()
        self.before, self.between, self.after = nn.BatchNorm1d(2), nn.BatchNorm1d(channels), nn.BatchNorm1d(width)
        self.convolve = nn.Conv1d(2, channels, 3, padding=1)
        self.project = nn.Linear(channels * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """f(a, b): [B, D]."""
        x_B2D = self.dropout(self.before(torch.stack([a_BD, b_BD], dim=1)))
        x_BCD = self.dropout(F.relu(self.between(self.convolve(x_B2D))))
        return F.relu(self.after(self.dropout(self.project(x_BCD.flatten(1)))))


class Evolved(NamedTuple):
    """Entities [N, D] and relations [2R, D] after the last day of a history, and the states of all days before
    normalisation, which the static constraint needs."""

    entities: Tensor
    relations: Tensor
    states: tuple[Tensor, ...]
    start: Tensor


class REGCN(nn.Module):
    """Encoder and decoders.

    Args:
        words: the static graph; None starts from the entity table alone, without the static constraint.
        blocks: of the static layer.
        layers, dropout, channels: as the papers: 2, 0.2 and 50.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        width: int,
        *,
        words: WordGraph | None = None,
        blocks: int = 100,
        layers: int = 2,
        dropout: float = 0.2,
        channels: int = 50,
    ) -> None:
        super().__init__()
        self.num_relations = num_relations
        self.entities = nn.Parameter(torch.randn(num_entities, width))
        self.relations = nn.Parameter(nn.init.xavier_normal_(torch.empty(2 * num_relations, width)))
        self.static = None if words is None else StaticLayer(words, num_entities, width, blocks, dropout)
        self.relation_cell = nn.GRUCell(2 * width, width)
        self.layers = nn.ModuleList(RelationalLayer(width, dropout) for _ in range(layers))
        self.gate = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.gate.weight, gain=nn.init.calculate_gain("relu"))
        nn.init.zeros_(self.gate.bias)
        self.decoder = QueryDecoder(width, channels, dropout)
        self.relation_decoder = QueryDecoder(width, channels, dropout)

    def evolve(self, history: Sequence[Snapshot], day: int) -> Evolved:
        """State on the eve of ``day``, from the snapshots before it, oldest first.

        Raises:
            GraphError: no snapshot, or snapshots that are not in the order of days.
            LeakError: a snapshot of ``day`` or later.
        """
        self._check(history, day)
        start_ND = F.normalize(self.entities if self.static is None else self.static(self.entities))
        h_ND, q_RD, states = start_ND, self.relations, []
        for today in history:
            met = h_ND.new_zeros(self.num_relations, h_ND.shape[1])
            met = met.index_add(0, today.toucher, h_ND[today.touched]) / today.touches
            q_RD = F.normalize(self.relation_cell(torch.cat([self.relations, met.repeat(2, 1)], dim=1), q_RD))
            relations_AD = h_ND.new_zeros(len(today.active), h_ND.shape[1])
            relations_AD = relations_AD.index_add(0, today.target, q_RD[today.relation])
            new_ND = h_ND
            for layer in self.layers:
                new_ND = layer(new_ND, relations_AD, today)
            h_ND = torch.lerp(h_ND, F.normalize(new_ND), torch.sigmoid(self.gate(h_ND)))
            states.append(h_ND)
        return Evolved(F.normalize(h_ND), q_RD, tuple(states), start_ND)

    def scores(self, state: Evolved, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N] of the objects of (s, r, ?)."""
        candidates_ND = torch.tanh(state.entities)
        return self.decoder(candidates_ND[s_B], state.relations[r_B]) @ candidates_ND.T

    def relation_scores(self, state: Evolved, s_B: Tensor, o_B: Tensor) -> Tensor:
        """Scores [B, 2R] of the relations of (s, ?, o)."""
        entities_ND = torch.tanh(state.entities)
        return self.relation_decoder(entities_ND[s_B], entities_ND[o_B]) @ state.relations.T

    def loss(
        self,
        state: Evolved,
        facts_F4: Tensor,
        *,
        task_weight: float = 0.7,
        static_weight: float = 0.5,
        angle: float = 10.0,
    ) -> Tensor:
        """0.7 of the entity loss plus 0.3 of the relation loss plus the static constraint.

        Args:
            facts_F4: facts of the predicted day with inverses.
            angle: degrees by which an entity may leave its static start on each day of the history.
        """
        s_F, r_F, o_F = facts_F4[:, 0], facts_F4[:, 1], facts_F4[:, 2]
        entity = F.cross_entropy(self.scores(state, s_F, r_F), o_F)
        relation = F.cross_entropy(self.relation_scores(state, s_F, o_F), r_F)
        loss = task_weight * entity + (1 - task_weight) * relation
        if self.static is not None:
            for i, state_ND in enumerate(state.states):
                allowed = math.cos(math.radians(angle * (i + 1)))
                cosine_N = (state.start * F.normalize(state_ND)).sum(1)
                loss = loss + static_weight * F.relu(allowed - cosine_N).sum()
        return loss

    @staticmethod
    def _check(history: Sequence[Snapshot], day: int) -> None:
        days = [today.day for today in history]
        if not days:
            raise GraphError(f"day {day} has no history; the first day cannot be predicted")
        if days != sorted(set(days)):
            raise GraphError(f"the history of day {day} is out of order: days {days}, oldest first is needed")
        check_history([np.array([[0, 0, 0, days[-1]]])], day)


class Frozen:
    """A trained encoder without gradient that remembers the state of each day it was asked for.

    Args:
        length: days of history, m.
    """

    def __init__(self, model: REGCN, graph: TemporalGraph, length: int, device: str | torch.device = "cpu") -> None:
        self.model, self.graph, self.length, self.device = model.to(device), graph, length, device
        self._snapshots: dict[int, Snapshot] = {}
        self._states: dict[int, tuple[Tensor, Tensor]] = {}

    def history(self, day: int) -> list[Snapshot]:
        """Snapshots of the last m days before ``day``."""
        found = []
        for facts in self.graph.window(day, self.length):
            when = int(facts[0, 3])
            if when not in self._snapshots:
                self._snapshots[when] = snapshot(self.graph, facts).to(self.device)
            found.append(self._snapshots[when])
        return found

    @torch.no_grad()
    def state(self, day: int, *, noisy: bool = False) -> Evolved:
        """State on the eve of ``day``, in evaluation mode; kept as float16, which halves the memory.

        Args:
            noisy: with the encoder's dropout and never remembered, as released code does (quirk Q5).
        """
        if noisy:
            self.model.train()
            return self.model.evolve(self.history(day), day)
        if day not in self._states:
            self.model.eval()
            state = self.model.evolve(self.history(day), day)
            self._states[day] = state.entities.half(), state.relations.half()
        entities, relations = (x.float() for x in self._states[day])
        return Evolved(entities, relations, (), entities)

    def forget(self) -> None:
        """Drop the remembered states: the model has changed."""
        self._states.clear()

    @torch.no_grad()
    def score(self, day: int, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N] by the encoder's own decoder."""
        self.model.eval()
        return self.model.scores(self.state(day), s_B, r_B)
