"""Other ways to give a recommender the same text vectors, from plain to strong: what the meta layers must beat.

All have the signature of :class:`~zfu_lib.prediction.llm4msr.LLM4MSR`: features e, scenario s, the vector of each row's
user, the vectors of all scenarios. Letters as there; N is the number of fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zfu_lib.prediction.llm4msr import LLM4MSR, Choices
from zfu_lib.prediction.msr_backbones import Backbone, mlp


class Bare(nn.Module):
    """The backbone without any text."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        return self.backbone(e_BD, s_B)


class Concat(nn.Module):
    """Text vectors as further features: backbone([e; P h_u; Q h_s]), of width D + 2·``rank``."""

    def __init__(self, backbone: Backbone, user_text: int, scenario_text: int, rank: int = 16) -> None:
        super().__init__()
        self.backbone = backbone
        self.user, self.scenario = nn.Linear(user_text, rank), nn.Linear(scenario_text, rank)

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        return self.backbone(torch.cat([e_BD, self.user(h_BH), self.scenario(h_SH)[s_B]], -1), s_B)


class FiLM(nn.Module):
    """A gain and a shift for each feature (Perez et al., AAAI 2018): e' = e ⊙ (1 + G h_u) + B h_u. Starts at e' = e."""

    def __init__(self, backbone: Backbone, user_text: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.gain_shift = nn.Linear(user_text, 2 * backbone.width)
        nn.init.zeros_(self.gain_shift.weight)
        nn.init.zeros_(self.gain_shift.bias)

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        gain_BD, shift_BD = self.gain_shift(h_BH).chunk(2, -1)
        return self.backbone(e_BD * (1 + gain_BD) + shift_BD, s_B)


class Dot(nn.Module):
    """The plainest product of text and item: logit = backbone(e, s) + ⟨P h_u, Q e_item⟩, of ``rank`` dimensions.

    Args:
        item: which part of e is the item's.
    """

    def __init__(self, backbone: Backbone, user_text: int, item: slice, rank: int = 16) -> None:
        super().__init__()
        self.backbone, self.item = backbone, item
        self.user, self.product = nn.Linear(user_text, rank), nn.Linear(item.stop - item.start, rank)
        nn.init.zeros_(self.product.weight)
        nn.init.zeros_(self.product.bias)

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        return self.backbone(e_BD, s_B) + (self.user(h_BH) * self.product(e_BD[:, self.item])).sum(-1)


class IdHypernet(nn.Module):
    """LLM4MSR with a learnt vector for each scenario in place of its text.

    Whatever scenario text tells about a *fixed* set of scenarios, this can learn.
    """

    def __init__(
        self, backbone: Backbone, scenarios: int, user_text: int, scenario_text: int, choices: Choices | None = None
    ) -> None:
        super().__init__()
        self.net = LLM4MSR(backbone, user_text, scenario_text, choices)
        self.vectors_SH = nn.Parameter(torch.randn(scenarios, scenario_text))

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        return self.net(e_BD, s_B, h_BH, self.vectors_SH)

    @torch.no_grad()
    def average_unknown(self, trained: Sequence[int]) -> None:
        """Give scenarios that were not trained on the mean of those that were: the best guess without text."""
        known = torch.zeros(len(self.vectors_SH), dtype=torch.bool)
        known[torch.as_tensor(trained)] = True
        self.vectors_SH[~known] = self.vectors_SH[known].mean(0)


class DCN(nn.Module):
    """Deep & cross network v2 (Wang et al., WWW 2021) with text and scenario as features.

    x_{l+1} = x_0 ⊙ (W x_l + b) + x_l over x_0 = [e; v_s; P h_u; Q h_s], beside a deep part.
    """

    def __init__(
        self,
        width: int,
        scenarios: int,
        user_text: int,
        scenario_text: int,
        hidden: Sequence[int] = (64, 32),
        rank: int = 16,
        crosses: int = 2,
    ) -> None:
        super().__init__()
        self.user, self.scenario = nn.Linear(user_text, rank), nn.Linear(scenario_text, rank)
        self.ids = nn.Embedding(scenarios, rank)
        full = width + 3 * rank
        self.crosses = nn.ModuleList(nn.Linear(full, full) for _ in range(crosses))
        self.deep = mlp([full, *hidden])
        self.last = nn.Linear(full + hidden[-1], 1)

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        x_0 = torch.cat([e_BD, self.ids(s_B), self.user(h_BH), self.scenario(h_SH)[s_B]], -1)
        x = x_0
        for cross in self.crosses:
            x = x_0 * cross(x) + x
        return self.last(torch.cat([x, self.deep(x_0)], -1)).squeeze(-1)


class DeepFM(nn.Module):
    """DeepFM (Guo et al., IJCAI 2017) with text and scenario as fields.

    Fields v_1 .. v_N of width d (ids, scenario, P h_u, Q h_s): w·x + Σ_{i<j} ⟨v_i, v_j⟩ + deep(v). Among the pairs are
    ⟨P h_u, v_item⟩, the control :class:`Dot`, and its like.
    """

    def __init__(
        self,
        width: int,
        scenarios: int,
        user_text: int,
        scenario_text: int,
        hidden: Sequence[int] = (64, 32),
        dim: int = 16,
    ) -> None:
        super().__init__()
        if width % dim:
            raise ValueError(f"features of width {width} are not fields of width {dim}")
        self.dim = dim
        self.user, self.scenario = nn.Linear(user_text, dim), nn.Linear(scenario_text, dim)
        self.ids = nn.Embedding(scenarios, dim)
        full = width + 3 * dim
        self.linear, self.deep = nn.Linear(full, 1), nn.Sequential(mlp([full, *hidden]), nn.Linear(hidden[-1], 1))

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits [B]."""
        x = torch.cat([e_BD, self.ids(s_B), self.user(h_BH), self.scenario(h_SH)[s_B]], -1)
        v_BNd = x.unflatten(-1, (-1, self.dim))
        pairs_B = 0.5 * (v_BNd.sum(1).square() - v_BNd.square().sum(1)).sum(-1)
        return (self.linear(x) + self.deep(x)).squeeze(-1) + pairs_B
