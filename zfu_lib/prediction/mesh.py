"""MESH (Deng et al., Findings of ACL 2025): experts that mix what the graph's structure and the entities' names say.

A frozen encoder gives every entity a structural vector H and every relation q; a language model's vectors of the names,
projected, give S and V. One expert is trained for facts that have happened before, one for facts that have not, and a
third mixes the two without being told which is which. The text of the paper could not be obtained; this follows the
released code (dymanne123/MESH-TKGR at e39a2e1), cleaned of :class:`Quirks`. Shape letters: N entities, R relations (2R
with inverses), B queries, D width, L width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfu_lib.prediction.regcn import Evolved, QueryDecoder


@dataclass(frozen=True)
class Quirks:
    """What the released code does and the clean form does not. All off by default; :data:`RELEASED` has all on.

    ``object_queries_only`` (Q1): train and test on (s, r, ?) alone.
    ``inert_projection`` (Q2): a second pair of projections whose entity part reaches one gate and whose relation part
    nothing. ``untrained_gate_input`` (Q3, needs Q2): at test that gate reads the relation part that was never trained.
    ``second_pass`` (Q4): the non-historical expert reads a second pass of the same encoder.
    ``encoder_dropout`` (Q5): the frozen encoder keeps its dropout while the experts are trained.
    ``doubled_relations`` (Q6): the relation loss tells 2R relations apart of which each two have the same vector.
    ``training_flags`` (Q8): facts count as historical by the training period alone.
    ``defective_test_file`` (Q9): one test fact missing, another there twice.
    ``last_epoch`` (Q10): no selection on validation. ``sorted_ties`` (Q11): equals are ranked as a sort leaves them.

    Q7, candidates from structure for every expert, is how the method is built; the extension is
    ``Mesh(dual_candidates=True)``. Q1, Q5 and Q8 to Q11 concern training and evaluation
    (:mod:`zfu_lib.experiments.mesh`), the others this module.

    Raises:
        ValueError: Q3 without Q2.
    """

    object_queries_only: bool = False
    inert_projection: bool = False
    untrained_gate_input: bool = False
    second_pass: bool = False
    encoder_dropout: bool = False
    doubled_relations: bool = False
    training_flags: bool = False
    defective_test_file: bool = False
    last_epoch: bool = False
    sorted_ties: bool = False

    def __post_init__(self) -> None:
        if self.untrained_gate_input and not self.inert_projection:
            raise ValueError("untrained_gate_input (Q3) reads the projection that inert_projection (Q2) makes")


CLEAN = Quirks()
RELEASED = Quirks(*(True for _ in fields(Quirks)))


class Semantics(NamedTuple):
    """Projected names: S [N, D] and V [2R, D], and what the non-historical gate reads instead under Q2 and Q3."""

    entities: Tensor
    relations: Tensor
    gate_entities: Tensor
    gate_relations: Tensor


class Mixture(NamedTuple):
    """A query vector in two parts, [B, D] each: what came from names and what came from structure."""

    semantic: Tensor
    structural: Tensor


class Experts(NamedTuple):
    """The two experts, their mixture, the gates [B, 1], and the semantic branch of the historical expert [B, D]."""

    historical: Mixture
    other: Mixture
    prediction: Mixture
    gate_historical: Tensor
    gate_other: Tensor
    alpha: Tensor
    semantic: Tensor


class Mesh(nn.Module):
    """Experts and gates on top of a frozen encoder.

    Args:
        entities_NL, relations_RL: vectors of the names; kept as they are.
        width: D, that of the encoder.
        hidden: of the projections L → hidden → D; 1024 in the release.
        channels, dropout: of the query encoders.
        names: False is the ablation without semantics: structure takes the place of the projected names.
        even_gates: the ablation without gates: every one is one half.
        dual_candidates: the extension: a branch scores against the table it comes from.
        quirks: of the released code.

    Raises:
        ValueError: name vectors that are not two tables of the same width, or not finite.
    """

    def __init__(
        self,
        entities_NL: Tensor,
        relations_RL: Tensor,
        width: int,
        *,
        hidden: int = 1024,
        channels: int = 50,
        dropout: float = 0.2,
        names: bool = True,
        even_gates: bool = False,
        dual_candidates: bool = False,
        quirks: Quirks = CLEAN,
    ) -> None:
        super().__init__()
        check_names(entities_NL, relations_RL)
        self.names, self.even_gates, self.dual, self.quirks = names, even_gates, dual_candidates, quirks
        self.register_buffer("entities_NL", entities_NL, persistent=False)
        self.register_buffer("relations_RL", relations_RL, persistent=False)

        def projection() -> nn.Module:
            return nn.Sequential(nn.Linear(entities_NL.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, width))

        self.project_entities, self.project_relations = projection(), projection()
        if quirks.inert_projection:
            self.inert_entities, self.inert_relations = projection(), projection()
        parts = ("semantic_his", "structural_his", "semantic_nhis", "structural_nhis", "relation")
        self.encode = nn.ModuleDict({name: QueryDecoder(width, channels, dropout) for name in parts})
        self.gate_his, self.gate_nhis, self.gate_alpha = (nn.Linear(2 * width, 1) for _ in range(3))

    def semantics(self, state: Evolved) -> Semantics:
        """S and V; a relation and its inverse have the same vector. Once a step, for all entities."""
        if not self.names:
            return Semantics(state.entities, state.relations, state.entities, state.relations)
        S_ND = F.normalize(self.project_entities(self.entities_NL))
        V_RD = F.normalize(self.project_relations(self.relations_RL)).repeat(2, 1)
        if not self.quirks.inert_projection:
            return Semantics(S_ND, V_RD, S_ND, V_RD)
        gate_ND, gate_RD = F.normalize(self.inert_entities(self.entities_NL)), V_RD
        if self.quirks.untrained_gate_input and not self.training:
            gate_RD = F.normalize(self.inert_relations(self.relations_RL)).repeat(2, 1)
        return Semantics(S_ND, V_RD, gate_ND, gate_RD)

    def experts(
        self, s_B: Tensor, r_B: Tensor, state: Evolved, names: Semantics, second: Evolved | None = None
    ) -> Experts:
        """Experts of queries (s, r, ?). The gates look at names only and never at a flag.

        Args:
            second: under Q4, another pass of the encoder for the non-historical expert.
        """
        second = second or state
        S_BD, V_BD = torch.tanh(names.entities)[s_B], names.relations[r_B]
        semantic_BD = self.encode["semantic_his"](S_BD, V_BD)
        structural_BD = self.encode["structural_his"](torch.tanh(state.entities[s_B]), state.relations[r_B])
        other_BD = self.encode["semantic_nhis"](S_BD, V_BD)
        second_BD = self.encode["structural_nhis"](torch.tanh(second.entities[s_B]), second.relations[r_B])
        x_BX = torch.cat([S_BD, V_BD], dim=1)
        x_nhis_BX = torch.cat([torch.tanh(names.gate_entities)[s_B], names.gate_relations[r_B]], dim=1)
        g_his, g_nhis = self._gate(self.gate_his, x_BX), self._gate(self.gate_nhis, x_nhis_BX)
        alpha = self._gate(self.gate_alpha, x_BX)
        historical = Mixture(g_his * semantic_BD, (1 - g_his) * structural_BD)
        other = Mixture(g_nhis * other_BD, (1 - g_nhis) * second_BD)
        prediction = Mixture(*(alpha * a + (1 - alpha) * b for a, b in zip(historical, other)))
        return Experts(historical, other, prediction, g_his, g_nhis, alpha, semantic_BD)

    def logits(self, query: Mixture, state: Evolved, names: Semantics) -> Tensor:
        """Scores [B, N]: e tanh(H)ᵀ, or with dual candidates the two parts each against its own table."""
        if self.dual:
            return query.semantic @ torch.tanh(names.entities).T + query.structural @ torch.tanh(state.entities).T
        return (query.semantic + query.structural) @ torch.tanh(state.entities).T

    def scores(self, state: Evolved, names: Semantics, s_B: Tensor, r_B: Tensor) -> Tensor:
        """Scores [B, N] of the prediction expert."""
        return self.logits(self.experts(s_B, r_B, state, names).prediction, state, names)

    def loss(
        self,
        state: Evolved,
        facts_B4: Tensor,
        historical_B: Tensor,
        *,
        omega: float = 1.0,
        semantic_weight: float = 1.0,
        task_weight: float = 0.7,
        second: Evolved | None = None,
    ) -> Tensor:
        """0.7 (L_main + ω L_side + L_sem) + 0.3 L_rel on facts of one day.

        L_main: the prediction expert. L_side: only the expert that a fact's flag names. L_sem: the semantic branch
        against semantic candidates. L_rel: the relation from the two names.

        Args:
            facts_B4: facts; rows whose relation is an inverse take no part in L_rel unless Q6 is on.
            historical_B: bool, the flag of each fact.
        """
        names = self.semantics(state)
        s_B, r_B, o_B = facts_B4[:, 0], facts_B4[:, 1], facts_B4[:, 2]
        found = self.experts(s_B, r_B, state, names, second)
        loss = F.cross_entropy(self.logits(found.prediction, state, names), o_B)
        if omega:
            own = Mixture(*(torch.where(historical_B[:, None], a, b) for a, b in zip(found.historical, found.other)))
            loss = loss + omega * F.cross_entropy(self.logits(own, state, names), o_B)
        if semantic_weight and self.names:
            semantic_BN = found.semantic @ torch.tanh(names.entities).T
            loss = loss + semantic_weight * F.cross_entropy(semantic_BN, o_B)
        if task_weight == 1 or not self.names:
            return loss
        return task_weight * loss + (1 - task_weight) * self.relation_loss(names, s_B, r_B, o_B)

    def relation_loss(self, names: Semantics, s_B: Tensor, r_B: Tensor, o_B: Tensor) -> Tensor:
        """L_rel: which of R relations holds between s and o, by their names; under Q6 which of 2R, with equal twins."""
        count = len(self.relations_RL)
        if not self.quirks.doubled_relations:
            forward = r_B < count
            s_B, r_B, o_B = s_B[forward], r_B[forward], o_B[forward]
        table_RD = names.relations if self.quirks.doubled_relations else names.relations[:count]
        S_ND = torch.tanh(names.entities)
        return F.cross_entropy(self.encode["relation"](S_ND[s_B], S_ND[o_B]) @ table_RD.T, r_B)

    def _gate(self, layer: nn.Linear, x_BX: Tensor) -> Tensor:
        return torch.full_like(x_BX[:, :1], 0.5) if self.even_gates else torch.sigmoid(layer(x_BX))


def check_names(entities_NL: Tensor, relations_RL: Tensor) -> None:
    """Refuse vectors of names that no model can be built on.

    Raises:
        ValueError: not two tables of the same width, or a vector that is not finite.
    """
    if entities_NL.ndim != 2 or relations_RL.ndim != 2 or entities_NL.shape[1] != relations_RL.shape[1]:
        raise ValueError(
            f"vectors of names are [N, L] and [R, L], got {tuple(entities_NL.shape)} and {tuple(relations_RL.shape)}"
        )
    for what, table in (("entity", entities_NL), ("relation", relations_RL)):
        wrong = (~torch.isfinite(table)).any(dim=1).nonzero()
        if len(wrong):
            raise ValueError(f"the vector of {what} {int(wrong[0])} is not finite")
