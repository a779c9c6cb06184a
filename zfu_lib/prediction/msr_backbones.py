"""Backbones of multi-scenario recommendation: SharedBottom, MMoE, PLE and STAR.

Each maps the embedded features of an impression and the number of its scenario to the logit of a click. Only what a
row's own scenario needs is computed: rows are sorted by scenario once, and every per-scenario layer is one matrix
product per scenario present, so the cost of a batch hardly grows with the number of scenarios.

``fuse``, where given, is applied to the last hidden state before the last layer; a method that adds to the hidden
state or widens it by ``extra`` (see :class:`Backbone`) hooks in there.

Shape letters: B rows, F fields, D width of the embedded features, H width of a hidden state, S scenarios, E experts,
I and O inputs and outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fuse = Callable[[Tensor], Tensor]


class FusedEmbedding(nn.Module):
    """All fields in one table: one look-up, and one tensor for the optimiser, however many fields there are.

    Args:
        sizes: how many values each field has.
        dim: width of one field's vector.

    Raises:
        ValueError: no fields, or one without values.
    """

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1 or dim < 1:
            raise ValueError(f"fields of sizes {tuple(sizes)} and width {dim}: all must be at least 1")
        self.width = len(sizes) * dim
        self.dim = dim
        self.table = nn.Parameter(torch.randn(sum(sizes), dim) * 0.05)
        self.register_buffer("first_F", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Values of the fields, int64 [B, F], as one vector each: [B, F·dim]."""
        rows_N = (ids_BF + self.first_F).flatten()
        # Not F.embedding, whose gradient takes five times as long on a CPU.
        return self.table.index_select(0, rows_N).view(len(ids_BF), self.width)


class Groups:
    """The rows of a batch sorted by scenario.

    Args:
        s_B: scenario of each row, int64 [B], 0 <= s < ``scenarios``.

    Raises:
        ValueError: a scenario that does not exist.
    """

    def __init__(self, s_B: Tensor, scenarios: int) -> None:
        counts = s_B.bincount(minlength=scenarios).tolist() if len(s_B) and int(s_B.min()) >= 0 else []
        if len(counts) != scenarios:
            raise ValueError(f"scenarios must be numbers from 0 to {scenarios - 1} in a batch that is not empty")
        self.sizes: list[int] = counts
        self.order_B = s_B.argsort(stable=True)

    def sort(self, x: Tensor) -> Tensor:
        """Rows in the order of their scenarios."""
        return x[self.order_B]

    def unsort(self, x: Tensor) -> Tensor:
        """Sorted rows back in their places."""
        return torch.empty_like(x).index_copy(0, self.order_B, x)

    def parts(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Scenarios that occur, each with its part of sorted rows."""
        return [(s, part) for s, part in enumerate(x.split(self.sizes)) if len(part)]

    def linear(self, x_BI: Tensor, weight_SOI: Tensor, bias_SO: Tensor) -> Tensor:
        """Sorted rows, each through the affine map of its scenario: [B, O]."""
        weights, biases = weight_SOI.unbind(), bias_SO.unbind()
        return torch.cat([F.linear(part, weights[s], biases[s]) for s, part in self.parts(x_BI)])


class ScenarioLinear(nn.Module):
    """An affine map for each scenario, I -> O, each initialised as ``nn.Linear`` is."""

    def __init__(self, scenarios: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in)
        self.weight_SOI = nn.Parameter(torch.empty(scenarios, width_out, width_in).uniform_(-bound, bound))
        self.bias_SO = nn.Parameter(torch.empty(scenarios, width_out).uniform_(-bound, bound))

    def forward(self, x_BI: Tensor, groups: Groups) -> Tensor:
        """Sorted rows [B, I] -> [B, O]."""
        return groups.linear(x_BI, self.weight_SOI, self.bias_SO)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Affine maps between ``widths`` with a ReLU after each."""
    layers = [layer for i, o in zip(widths, widths[1:]) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers)


class Backbone(nn.Module):
    """What every backbone has.

    Args:
        width: D, width of the embedded features.
        scenarios: S.
        hidden: widths of the hidden layers; the last one is H, that of the state before the last layer.
        extra: by how much ``fuse`` widens that state.

    Raises:
        ValueError: fewer than two hidden layers, or a size below 1.
    """

    def __init__(self, width: int, scenarios: int, hidden: Sequence[int] = (64, 32), extra: int = 0) -> None:
        super().__init__()
        if len(hidden) < 2 or min(width, scenarios, *hidden) < 1 or extra < 0:
            raise ValueError(
                f"a backbone of width {width}, {scenarios} scenarios, hidden layers {tuple(hidden)}, extra {extra}: "
                "needs two hidden layers or more and sizes of at least 1"
            )
        self.width, self.scenarios, self.hidden, self.extra = width, scenarios, tuple(hidden), extra

    def forward(self, e_BD: Tensor, s_B: Tensor, fuse: Fuse | None = None) -> Tensor:
        """Logits of a click: [B].

        Raises:
            ValueError: a scenario that does not exist.
        """
        groups = Groups(s_B, self.scenarios)
        h_BH = self.state(groups.sort(e_BD), groups)
        if fuse is not None:
            h_BH = groups.sort(fuse(groups.unsort(h_BH)))
        return groups.unsort(self.last(h_BH, groups).squeeze(-1)) + self.beside(e_BD, s_B)

    def state(self, e_BD: Tensor, groups: Groups) -> Tensor:
        """Sorted features -> sorted last hidden states [B, H]."""
        raise NotImplementedError

    def beside(self, e_BD: Tensor, s_B: Tensor) -> Tensor | float:
        """What is added to the logit beside the last layer."""
        return 0.0


class SharedBottom(Backbone):
    """Shared layers, then a tower for each scenario: h = ReLU(W_s bottom(e)), logit = w_s h."""

    def __init__(self, width: int, scenarios: int, hidden: Sequence[int] = (64, 32), extra: int = 0) -> None:
        super().__init__(width, scenarios, hidden, extra)
        self.bottom = mlp([width, *hidden[:-1]])
        self.tower = ScenarioLinear(scenarios, hidden[-2], hidden[-1])
        self.last = ScenarioLinear(scenarios, hidden[-1] + extra, 1)

    def state(self, e_BD: Tensor, groups: Groups) -> Tensor:
        return self.tower(self.bottom(e_BD), groups).relu()


class Pooled(SharedBottom):
    """SharedBottom with one tower for all scenarios: nothing in it belongs to a scenario, so it can meet a new one."""

    def __init__(self, width: int, scenarios: int, hidden: Sequence[int] = (64, 32), extra: int = 0) -> None:
        super().__init__(width, 1, hidden, extra)

    def forward(self, e_BD: Tensor, s_B: Tensor, fuse: Fuse | None = None) -> Tensor:
        return super().forward(e_BD, torch.zeros_like(s_B), fuse)


class Experts(nn.Module):
    """E networks of the same shape side by side: [B, I] -> [B, E, O].

    The first layer of all experts is one matrix product; the following ones are batched.
    """

    def __init__(self, experts: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.experts = experts
        self.first = nn.Linear(widths[0], experts * widths[1])
        self.later = nn.ModuleList(ScenarioLinear(experts, i, o) for i, o in zip(widths[1:], widths[2:]))

    def forward(self, x_BI: Tensor) -> Tensor:
        """Outputs of every expert."""
        x_BEO = self.first(x_BI).relu().unflatten(-1, (self.experts, -1))
        for layer in self.later:
            x_BEO = (torch.einsum("bei,eoi->beo", x_BEO, layer.weight_SOI) + layer.bias_SO).relu()
        return x_BEO


def mixed(gate_BE: Tensor, experts_BEO: Tensor) -> Tensor:
    """Experts weighted by the softmax of their gate: [B, O]."""
    return (gate_BE.softmax(-1)[..., None] * experts_BEO).sum(1)


class MMoE(Backbone):
    """Multi-gate mixture of experts (Ma et al., KDD 2018), a scenario as a task.

    m_s = sum_i softmax(G_s e)_i expert_i(e), then the tower of the scenario. ``experts`` of all share one shape.
    """

    def __init__(
        self, width: int, scenarios: int, hidden: Sequence[int] = (64, 32), extra: int = 0, experts: int = 4
    ) -> None:
        super().__init__(width, scenarios, hidden, extra)
        self.experts = Experts(experts, [width, *hidden[:-1]])
        self.gate = ScenarioLinear(scenarios, width, experts)
        self.tower = ScenarioLinear(scenarios, hidden[-2], hidden[-1])
        self.last = ScenarioLinear(scenarios, hidden[-1] + extra, 1)

    def state(self, e_BD: Tensor, groups: Groups) -> Tensor:
        mixture_BO = mixed(self.gate(e_BD, groups), self.experts(e_BD))
        return self.tower(mixture_BO, groups).relu()


class PLE(Backbone):
    """Progressive layered extraction (Tang et al., RecSys 2020), a scenario as a task.

    Each level has ``own`` experts of each scenario and ``shared`` ones. A scenario's stream mixes its own and the
    shared experts; the shared stream mixes all of them and exists only between levels. With one level (``CGC``) a row
    meets the experts of its own scenario only; with more, every level before the last runs all experts on every row.
    """

    def __init__(
        self,
        width: int,
        scenarios: int,
        hidden: Sequence[int] = (64, 32),
        extra: int = 0,
        levels: int = 2,
        own: int = 1,
        shared: int = 2,
    ) -> None:
        super().__init__(width, scenarios, hidden, extra)
        if min(levels, own, shared) < 1:
            raise ValueError(f"levels {levels}, own {own}, shared {shared}: PLE needs at least one of each")
        out, inputs = hidden[-2], [width] + [hidden[-2]] * (levels - 1)
        shapes = [[i, *hidden[:-2], out] if level == 0 else [i, out] for level, i in enumerate(inputs)]
        self.own = nn.ModuleList(nn.ModuleList(Experts(own, shape) for _ in range(scenarios)) for shape in shapes)
        self.shared = nn.ModuleList(Experts(shared, shape) for shape in shapes)
        self.gate = nn.ModuleList(ScenarioLinear(scenarios, i, own + shared) for i in inputs)
        self.shared_gate = nn.ModuleList(nn.Linear(i, scenarios * own + shared) for i in inputs[:-1])
        self.tower = ScenarioLinear(scenarios, out, hidden[-1])
        self.last = ScenarioLinear(scenarios, hidden[-1] + extra, 1)

    def state(self, e_BD: Tensor, groups: Groups) -> Tensor:
        # Streams of all scenarios [S][B, .] on the way up, of the row's own scenario at the last level.
        streams, common = [e_BD] * self.scenarios, e_BD
        for level, shared_gate in enumerate(self.shared_gate):
            gates, biases = self.gate[level].weight_SOI.unbind(), self.gate[level].bias_SO.unbind()
            own = [experts(x) for experts, x in zip(self.own[level], streams, strict=True)]
            shared = self.shared[level](common)
            streams = [
                mixed(F.linear(x, gates[s], biases[s]), torch.cat([own[s], shared], 1)) for s, x in enumerate(streams)
            ]
            common = mixed(shared_gate(common), torch.cat([*own, shared], 1))
        starts = [0, *torch.tensor(groups.sizes).cumsum(0).tolist()]
        x_BI = torch.cat([x[starts[s] : starts[s + 1]] for s, x in enumerate(streams)])
        own_BEO = torch.cat([self.own[-1][s](part) for s, part in groups.parts(x_BI)])
        mixture = mixed(self.gate[-1](x_BI, groups), torch.cat([own_BEO, self.shared[-1](common)], 1))
        return self.tower(mixture, groups).relu()


class PartitionedNorm(nn.Module):
    """Batch normalisation with the statistics of a row's own scenario (STAR, section 3.3.1).

    z' = (γ γ_s) (z - μ_s) / sqrt(var_s + ε) + (β + β_s). While training, μ_s and var_s are those of the scenario's
    rows in the batch; afterwards, their moving averages. A row that is alone in its scenario uses the moving averages.
    """

    def __init__(self, scenarios: int, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.scale_D, self.shift_D = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.scale_SD = nn.Parameter(torch.ones(scenarios, width))
        self.shift_SD = nn.Parameter(torch.zeros(scenarios, width))
        self.register_buffer("mean_SD", torch.zeros(scenarios, width))
        self.register_buffer("variance_SD", torch.ones(scenarios, width))

    def forward(self, x_BD: Tensor, groups: Groups) -> Tensor:
        """Sorted rows [B, D], normalised."""
        scales, shifts = (self.scale_D * self.scale_SD).unbind(), (self.shift_D + self.shift_SD).unbind()
        found = []
        for s, part in groups.parts(x_BD):
            mean, variance = self.mean_SD[s], self.variance_SD[s]
            if self.training and len(part) > 1:
                variance, mean = torch.var_mean(part, 0, correction=0)
                with torch.no_grad():
                    self.mean_SD[s].lerp_(mean, self.momentum)
                    self.variance_SD[s].lerp_(variance * len(part) / (len(part) - 1), self.momentum)
            found.append((part - mean) * (scales[s] * (variance + self.eps).rsqrt()) + shifts[s])
        return torch.cat(found)


class StarLinear(nn.Module):
    """A layer of the star topology: W*_s = W_s ⊙ W, b*_s = b_s + b (STAR, Eq. 8).

    W starts as ``nn.Linear`` does, W_s at one and b_s at zero, so that all scenarios start from the shared network
    (the paper does not say how they start).
    """

    def __init__(self, scenarios: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width_in, width_out)
        self.weight_SOI = nn.Parameter(torch.ones(scenarios, width_out, width_in))
        self.bias_SO = nn.Parameter(torch.zeros(scenarios, width_out))

    def forward(self, x_BI: Tensor, groups: Groups) -> Tensor:
        """Sorted rows [B, I] -> [B, O]."""
        return groups.linear(x_BI, self.weight_SOI * self.shared.weight, self.bias_SO + self.shared.bias)


class STAR(Backbone):
    """Star topology adaptive recommender (Sheng et al., CIKM 2021, arXiv 2101.11427).

    Partitioned normalisation, a star network whose last layer is affine, and an auxiliary network that sees the
    scenario's embedding beside the features; the two logits are added.
    """

    def __init__(
        self, width: int, scenarios: int, hidden: Sequence[int] = (64, 32), extra: int = 0, scenario_dim: int = 8
    ) -> None:
        super().__init__(width, scenarios, hidden, extra)
        self.norm = PartitionedNorm(scenarios, width)
        self.layers = nn.ModuleList(StarLinear(scenarios, i, o) for i, o in zip([width, *hidden], hidden))
        self.last = StarLinear(scenarios, hidden[-1] + extra, 1)
        self.scenario = nn.Embedding(scenarios, scenario_dim)
        self.auxiliary = nn.Sequential(mlp([width + scenario_dim, hidden[-1]]), nn.Linear(hidden[-1], 1))

    def state(self, e_BD: Tensor, groups: Groups) -> Tensor:
        h = self.norm(e_BD, groups)
        for layer in self.layers:
            h = layer(h, groups).relu()
        return h

    def beside(self, e_BD: Tensor, s_B: Tensor) -> Tensor:
        return self.auxiliary(torch.cat([e_BD, self.scenario(s_B)], -1)).squeeze(-1)


BACKBONES = {"star": STAR, "shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "pooled": Pooled}
