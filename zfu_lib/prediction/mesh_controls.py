"""What MESH has to beat: models on the same frozen encoder and the same names with something taken away.

All have the interface of :class:`zfu_lib.prediction.mesh.Mesh`: ``semantics``, ``loss``, ``scores``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfu_lib.prediction.mesh import Semantics, check_names
from zfu_lib.prediction.regcn import Evolved, QueryDecoder


class OneGate(nn.Module):
    """Structure and names behind one gate, without event-aware experts, with the parameters of MESH: its two query
    encoders have twice the channels. Trained by L_main, L_sem and L_rel."""

    branches = ("semantic", "structural")

    def __init__(
        self,
        entities_NL: Tensor,
        relations_RL: Tensor,
        width: int,
        *,
        hidden: int = 1024,
        channels: int = 100,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_names(entities_NL, relations_RL)
        self.register_buffer("entities_NL", entities_NL, persistent=False)
        self.register_buffer("relations_RL", relations_RL, persistent=False)
        if "semantic" in self.branches:
            sizes = (entities_NL.shape[1], hidden, width)
            self.project_entities, self.project_relations = (
                nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])) for _ in range(2)
            )
            self.relation = QueryDecoder(width, channels // 2, dropout)
        self.encode = nn.ModuleDict({name: QueryDecoder(width, channels, dropout) for name in self.branches})
        self.gate = nn.Linear(2 * width, 1)

    def semantics(self, state: Evolved) -> Semantics:
        """S and V, or structure where no names are read."""
        if "semantic" not in self.branches:
            return Semantics(state.entities, state.relations, state.entities, state.relations)
        S_ND = F.normalize(self.project_entities(self.entities_NL))
        V_RD = F.normalize(self.project_relations(self.relations_RL)).repeat(2, 1)
        return Semantics(S_ND, V_RD, S_ND, V_RD)

    def query(self, state: Evolved, names: Semantics, s_B: Tensor, r_B: Tensor) -> tuple[Tensor, Tensor]:
        """The query vector and its semantic branch, [B, D] each."""
        S_BD, V_BD = torch.tanh(names.entities)[s_B], names.relations[r_B]
        semantic_BD = self.encode["semantic"](S_BD, V_BD)
        structural_BD = self.encode["structural"](torch.tanh(state.entities[s_B]), state.relations[r_B])
        g = torch.sigmoid(self.gate(torch.cat([S_BD, V_BD], dim=1)))
        return g * semantic_BD + (1 - g) * structural_BD, semantic_BD

    def scores(self, state: Evolved, names: Semantics, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N] against the structural candidates."""
        return self.query(state, names, s_B, r_B)[0] @ torch.tanh(state.entities).T

    def loss(self, state: Evolved, facts_B4: Tensor, historical_B: Tensor, *, task_weight: float = 0.7) -> Tensor:
        """As MESH without the side loss; the flag is not used."""
        names = self.semantics(state)
        s_B, r_B, o_B = facts_B4[:, 0], facts_B4[:, 1], facts_B4[:, 2]
        query_BD, semantic_BD = self.query(state, names, s_B, r_B)
        loss = F.cross_entropy(query_BD @ torch.tanh(state.entities).T, o_B)
        loss = loss + F.cross_entropy(semantic_BD @ torch.tanh(names.entities).T, o_B)
        count = len(self.relations_RL)
        forward, S_ND = r_B < count, torch.tanh(names.entities)
        told_BD = self.relation(S_ND[s_B[forward]], S_ND[o_B[forward]])
        relation = F.cross_entropy(told_BD @ names.relations[:count].T, r_B[forward])
        return task_weight * loss + (1 - task_weight) * relation


class Structure(OneGate):
    """A fresh query encoder on the frozen states: what the extra training alone is worth. Its candidates are H."""

    branches = ("structural",)

    def scores(self, state: Evolved, names: Semantics, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N]."""
        table_ND = torch.tanh(names.entities)
        (encode,) = self.encode.values()
        return encode(table_ND[s_B], names.relations[r_B]) @ table_ND.T

    def loss(self, state: Evolved, facts_B4: Tensor, historical_B: Tensor) -> Tensor:
        """Cross entropy over the entities."""
        names = self.semantics(state)
        return F.cross_entropy(self.scores(state, names, facts_B4[:, 0], facts_B4[:, 1]), facts_B4[:, 2])


class Names(Structure):
    """Names alone, scored against names: no structure, no time."""

    branches = ("semantic",)


class WithCopy(nn.Module):
    """Any of these models with a third branch that repeats the past: its scores plus softplus(w · x) times the
    recurrency score, x being the gates' view of the query.

    Args:
        model: one with ``semantics`` and ``scores``.
        width: D.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.strength = model, nn.Linear(2 * width, 1)
        nn.init.constant_(self.strength.bias, 3.0)

    def semantics(self, state: Evolved) -> Semantics:
        """Of the model inside."""
        return self.model.semantics(state)

    def scores(self, state: Evolved, names: Semantics, s_B: Tensor, r_B: Tensor, copied_BN: Tensor) -> Tensor:
        """Scores [B, N]; ``copied_BN`` are those of :class:`zfu_lib.prediction.recurrency.Recurrency`."""
        x_BX = torch.cat([torch.tanh(names.entities)[s_B], names.relations[r_B]], dim=1)
        return self.model.scores(state, names, s_B, r_B) + F.softplus(self.strength(x_BX)) * copied_BN

    def loss(self, state: Evolved, facts_B4: Tensor, historical_B: Tensor, copied_BN: Tensor) -> Tensor:
        """The model's own loss plus the cross entropy of the three branches together."""
        names = self.semantics(state)
        together_BN = self.scores(state, names, facts_B4[:, 0], facts_B4[:, 1], copied_BN)
        own = self.model.loss(state, facts_B4, historical_B)
        return own + F.cross_entropy(together_BN, facts_B4[:, 2])
