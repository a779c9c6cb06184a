"""LLM4MSR (arXiv 2406.12529), reconstructed.

**A reconstruction.** The paper's equations, prompts and code could not be read. What is confirmed: a frozen language
model reads a prompt about each scenario and one about each user; its last hidden state, not its text, is kept; two
hierarchical meta networks turn these vectors into the weights and biases of *meta layers*, the user's at the bottom of
any multi-scenario backbone, the scenario's parallel to it; everything but the language model is trained end to end.
How exactly is not confirmed, so every open choice is a field of :class:`Choices` with a name.

Step 1, offline (:func:`scenario_prompt`, :func:`user_prompt`): h_s, h_u in R^H. Step 2, training
(:class:`MetaNetwork`, :class:`LLM4MSR`)::

    z = ReLU(P h),  W = A z + a,  b = B z + β
    e' = e + metalayers_u(e)
    logit = backbone(e', s) + λ w · metalayers_s(e')

Shape letters: B rows, D width of the embedded features e, H width of a text vector, R width of its code z, S scenarios,
U users, K texts, I and O inputs and outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfu_lib.prediction.msr_backbones import Backbone, Groups


def scenario_prompt(
    name: str, description: str, counts: Mapping[str, int], others: Mapping[str, str] | None = None
) -> str:
    """What the language model reads about a scenario (the paper's kind of prompt in our words).

    Args:
        counts: statistics of the training rows, such as interactions, users, items.
        others: descriptions of the other scenarios, by name, to find common ground with.

    Raises:
        ValueError: no description.
    """
    if not description.strip():
        raise ValueError(f"scenario {name!r} has no description: its prompt would say nothing")
    numbers = ", ".join(f"{count} {what}" for what, count in counts.items())
    lines = [f"Scenario: {name}.", f"Statistics: {numbers}." if numbers else "", f"Description: {description}"]
    lines += [f"Another scenario, {other}: {text}" for other, text in (others or {}).items()]
    lines.append("Question: what do users look for here, and what does this scenario share with the others?")
    return "\n".join(line for line in lines if line)


def user_prompt(history: Mapping[str, Sequence[str]], *, longest: int = 20, withhold: str | None = None) -> str:
    """What the language model reads about a user: what they liked in each scenario, last things last.

    Args:
        history: scenario -> items in words, in the order of time, from training rows only.
        longest: how many items of a scenario are told (the last ones).
        withhold: a scenario to leave out, for what other scenarios alone can tell.

    Raises:
        ValueError: nothing to tell.
    """
    told = {s: items[-longest:] for s, items in history.items() if s != withhold and items}
    if not told:
        raise ValueError("a user without a history has no prompt: leave their text out, the model has a default")
    lines = [f"In {scenario}: {'; '.join(items)}." for scenario, items in told.items()]
    return "\n".join(["A user's history.", *lines, "Question: what does this user prefer across scenarios?"])


class Knowledge(nn.Module):
    """Text vectors of users and scenarios, frozen; a learnt default for users without one.

    Args:
        user_UH: float [U, H_u]; rows where ``known_U`` is False are ignored.
        scenario_SH: float [S, H_s].
        known_U: bool [U], which users have a text; None for all.

    Raises:
        ValueError: shapes that do not fit, or a vector that is not finite.
    """

    def __init__(self, user_UH: Tensor, scenario_SH: Tensor, known_U: Tensor | None = None) -> None:
        super().__init__()
        known_U = torch.ones(len(user_UH), dtype=torch.bool) if known_U is None else known_U
        if user_UH.ndim != 2 or scenario_SH.ndim != 2 or known_U.shape != user_UH.shape[:1]:
            raise ValueError(
                f"knowledge needs user vectors [U, H], scenario vectors [S, H] and a mask [U], got "
                f"{list(user_UH.shape)}, {list(scenario_SH.shape)}, {list(known_U.shape)}"
            )
        for what, vectors in (("user", user_UH[known_U]), ("scenario", scenario_SH)):
            if not vectors.isfinite().all():
                row = int((~vectors.isfinite()).any(1).nonzero()[0])
                raise ValueError(f"the text vector of {what} {row} is not finite: encode that text again")
        self.register_buffer("user_UH", torch.where(known_U[:, None], user_UH, 0.0))
        self.register_buffer("scenario_SH", scenario_SH)
        self.register_buffer("known_U", known_U)
        self.default_H = nn.Parameter(torch.zeros(user_UH.shape[1]))

    def users(self, u_B: Tensor) -> Tensor:
        """Vectors of users, the default where there is no text: [B, H]."""
        return torch.where(self.known_U[u_B][:, None], self.user_UH[u_B], self.default_H)


class MetaNetwork(nn.Module):
    """Generates one layer's weights from a text vector: z = ReLU(P h), W = A z + a, b = B z + β.

    Args:
        text: H.
        width_in, width_out: I and O of the generated layer.
        rank: R, width of the code z; a direct map has H·I·O weights, this one R·(H + I·O).
        start: ``zero``: W = b = 0 for every text; ``usual``: W as ``nn.Linear`` starts, plus a small part that
            depends on the text.
    """

    def __init__(self, text: int, width_in: int, width_out: int, rank: int, start: str) -> None:
        super().__init__()
        self.shape = width_out, width_in
        self.code = nn.Sequential(nn.Linear(text, rank), nn.ReLU())
        self.weight, self.bias = nn.Linear(rank, width_out * width_in), nn.Linear(rank, width_out)
        with torch.no_grad():
            for part in (self.weight.weight, self.bias.weight):
                part.zero_() if start == "zero" else part.mul_(0.1)
            self.bias.bias.zero_()
            self.weight.bias.copy_(
                torch.zeros(width_out * width_in) if start == "zero" else nn.Linear(*self.shape[::-1]).weight.flatten()
            )

    def forward(self, h_KH: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [K, O, I] and biases [K, O] of the layers that K texts generate."""
        z_KR = self.code(h_KH)
        return self.weight(z_KR).unflatten(-1, self.shape), self.bias(z_KR)

    def apply_rows(self, x_BI: Tensor, h_BH: Tensor) -> Tensor:
        """The layer of each row's own text applied to that row, without building B matrices: [B, O].

        (A z + a) x + B z + β = A (x ⊗ z) + a x + B z + β: a meta layer is a bilinear map of features and text code,
        and as that it is one matrix product for the whole batch.
        """
        z_BR = self.code(h_BH)
        outer_B = (x_BI[:, :, None] * z_BR[:, None]).flatten(1)
        bilinear = F.linear(outer_B, self.weight.weight.view(self.shape[0], -1))
        return bilinear + F.linear(x_BI, self.weight.bias.view(self.shape)) + self.bias(z_BR)


@dataclass(frozen=True)
class Choices:
    """What the paper leaves open, or we could not read. None of the defaults is confirmed.

    ``rank``: R, width of the code. ``user_layers``, ``scenario_layers``: depth of the meta layers; 0 leaves a level
    out. ``bottom``: ``residual`` e' = e + x_L with an affine last layer, which starts at e' = e; ``replace``
    e' = ReLU(x_L). ``reads``: the parallel branch reads e' (``bottom``) or e (``embedding``). ``fusion``: how the
    parallel branch joins the backbone: ``logit_sum``, ``hidden_sum`` or ``concat`` with the state before the last
    layer. ``scale``: λ of the logit sum. ``dropout`` on the text vectors.
    """

    rank: int = 16
    user_layers: int = 1
    scenario_layers: int = 1
    bottom: Literal["residual", "replace"] = "residual"
    reads: Literal["bottom", "embedding"] = "bottom"
    fusion: Literal["logit_sum", "hidden_sum", "concat"] = "logit_sum"
    scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        wrong = {
            "rank": self.rank < 1,
            "user_layers": self.user_layers < 0,
            "scenario_layers": self.scenario_layers < 0,
            "bottom": self.bottom not in ("residual", "replace"),
            "reads": self.reads not in ("bottom", "embedding"),
            "fusion": self.fusion not in ("logit_sum", "hidden_sum", "concat"),
            "dropout": not 0 <= self.dropout < 1,
        }
        if bad := [f"{name} = {getattr(self, name)!r}" for name, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(f"choices that do not exist: {', '.join(bad)}")


Weights = list[tuple[Tensor, Tensor]]
"""Generated layers, one (weights, biases) each."""


class Cache(NamedTuple):
    """Generated layers of all users and of all scenarios."""

    user: Weights
    scenario: Weights


class LLM4MSR(nn.Module):
    """A backbone with meta layers generated from text.

    At initialisation, with the residual bottom, the model computes exactly what the bare backbone computes, except
    for ``concat``, whose wider last layer starts from other random numbers.

    Args:
        backbone: any; for ``concat`` built with ``extra`` = ``width``.
        user_text, scenario_text: H of the two kinds of text vectors.

    Raises:
        ValueError: ``concat`` with a backbone that leaves no room for it.
    """

    def __init__(self, backbone: Backbone, user_text: int, scenario_text: int, choices: Choices | None = None) -> None:
        super().__init__()
        self.backbone, self.choices = backbone, choices or Choices()
        c, width = self.choices, backbone.width
        if (backbone.extra != width) if c.fusion == "concat" and c.scenario_layers else backbone.extra:
            raise ValueError(f"fusion {c.fusion!r} with a backbone of extra = {backbone.extra}: concat needs {width}")
        last = "zero" if c.bottom == "residual" else "usual"
        starts = ["usual"] * (c.user_layers - 1) + [last] * (c.user_layers > 0)
        self.user = nn.ModuleList(MetaNetwork(user_text, width, width, c.rank, start) for start in starts)
        self.scenario = nn.ModuleList(
            MetaNetwork(scenario_text, width, width, c.rank, "usual") for _ in range(c.scenario_layers)
        )
        out = {"logit_sum": 1, "hidden_sum": backbone.hidden[-1], "concat": width}[c.fusion]
        self.out = nn.Linear(width, out) if c.scenario_layers else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, e_BD: Tensor, s_B: Tensor, h_BH: Tensor, h_SH: Tensor) -> Tensor:
        """Logits of a click: [B].

        Args:
            e_BD: embedded features.
            s_B: scenario of each row.
            h_BH: text vector of each row's user.
            h_SH: text vectors of all scenarios.
        """
        weights = [layer(self.dropout(h_SH)) for layer in self.scenario]
        return self._join(e_BD, self.bottom(e_BD, self.dropout(h_BH)), s_B, weights)

    def bottom(self, e_BD: Tensor, h_BH: Tensor) -> Tensor:
        """e': the features after the user's meta layers."""
        x_BD = e_BD
        for i, layer in enumerate(self.user):
            x_BD = layer.apply_rows(x_BD.relu() if i else x_BD, h_BH)
        return self._joined(e_BD, x_BD)

    def parallel(self, x_BD: Tensor, s_B: Tensor, weights: Weights) -> Tensor:
        """The scenario's meta layers: S sets of weights, and one matrix product per scenario and layer."""
        groups = Groups(s_B, len(weights[0][0]))
        r_BD = groups.sort(x_BD)
        for weight_SDD, bias_SD in weights:
            r_BD = groups.linear(r_BD, weight_SDD, bias_SD).relu()
        return groups.unsort(r_BD)

    def _join(self, e_BD: Tensor, lifted_BD: Tensor, s_B: Tensor, weights: Weights) -> Tensor:
        """The backbone on e' (``lifted_BD``), and the scenario's branch beside it."""
        if self.out is None:
            return self.backbone(lifted_BD, s_B)
        o = self.out(self.parallel(lifted_BD if self.choices.reads == "bottom" else e_BD, s_B, weights))
        if self.choices.fusion == "logit_sum":
            return self.backbone(lifted_BD, s_B) + self.choices.scale * o.squeeze(-1)
        if self.choices.fusion == "hidden_sum":
            return self.backbone(lifted_BD, s_B, fuse=lambda h: h + o)
        return self.backbone(lifted_BD, s_B, fuse=lambda h: torch.cat([h, o], -1))

    def _joined(self, e_BD: Tensor, x_BD: Tensor) -> Tensor:
        if not len(self.user):
            return e_BD
        return e_BD + x_BD if self.choices.bottom == "residual" else x_BD.relu()

    # Serving: the generated weights are tables, and no text vector is read.

    def cache(self, h_UH: Tensor, h_SH: Tensor) -> Cache:
        """Weights and biases of every user-level layer for every user, U·D·(D + 1) numbers each, and of every
        scenario-level layer for every scenario."""
        return Cache([layer(h_UH) for layer in self.user], [layer(h_SH) for layer in self.scenario])

    def serve(self, e_BD: Tensor, s_B: Tensor, u_B: Tensor, cache: Cache) -> Tensor:
        """:meth:`forward` from generated weights; ``u_B`` is the user of each row, or one user of all rows [1]."""
        x_BD = e_BD
        for i, (weight_UDD, bias_UD) in enumerate(cache.user):
            x_BD = x_BD.relu() if i else x_BD
            if len(u_B) == 1:
                x_BD = F.linear(x_BD, weight_UDD[u_B[0]], bias_UD[u_B[0]])
            else:
                x_BD = torch.baddbmm(bias_UD[u_B, :, None], weight_UDD[u_B], x_BD[:, :, None]).squeeze(-1)
        return self._join(e_BD, self._joined(e_BD, x_BD), s_B, cache.scenario)


class Recommender(nn.Module):
    """From ids to the logit of a click: embeddings, text vectors, and a method that uses them.

    Args:
        embedding: ``FusedEmbedding`` of the fields; field 0 is the user.
        net: :class:`LLM4MSR` or a control with its signature.
        knowledge: text vectors.
    """

    def __init__(self, embedding: nn.Module, net: nn.Module, knowledge: Knowledge) -> None:
        super().__init__()
        self.embedding, self.net, self.knowledge = embedding, net, knowledge

    def forward(self, ids_BF: Tensor, s_B: Tensor) -> Tensor:
        """Logits [B] of impressions with fields int64 [B, F] in scenarios int64 [B]."""
        h_BH = self.knowledge.users(ids_BF[:, 0])
        return self.net(self.embedding(ids_BF), s_B, h_BH, self.knowledge.scenario_SH)

    @torch.inference_mode()
    def cache(self) -> Cache:
        """What :meth:`serve` needs of an :class:`LLM4MSR`: no text vector is read after this."""
        users_U = torch.arange(len(self.knowledge.known_U), device=self.knowledge.known_U.device)
        return self.net.cache(self.knowledge.users(users_U), self.knowledge.scenario_SH)

    @torch.inference_mode()
    def serve(self, ids_BF: Tensor, s_B: Tensor, cache: Cache, *, one_user: bool = False) -> Tensor:
        """:meth:`forward` from :meth:`cache`; ``one_user``: all rows are candidates for the user of the first."""
        return self.net.serve(self.embedding(ids_BF), s_B, ids_BF[: 1 if one_user else None, 0], cache)
