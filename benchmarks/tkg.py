"""Temporal knowledge graphs: ranking by counting against sorting, an encoder layer against its plain form, an epoch.

    python benchmarks/tkg.py [--quick] [--check] [--json FILE]

Sizes are those of ICEWS14 (7,128 entities, 230 relations, a busy day); scores and facts are random, so no data is
needed. The ranking peer is written here after the functions that RE-GCN's code and those built on it share: a Python
loop that filters every query, then a full sort. One thread. PyTorch Geometric's FastRGCNConv is timed beside the layer
where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch
from _timing import Report, cpu_seconds, options, paired_seconds
from torch import nn
from torch.nn import functional as F

from zfu_lib.prediction import regcn
from zfu_lib.prediction.tkg import TemporalGraph
from zfu_lib.prediction.tkg_ranking import BYTES_PER_SCORE, also_true, ranks_in_blocks

ENTITIES, RELATIONS, FACTS_A_DAY, WIDTH = 7128, 230, 389, 200


def random_graph(days: int, entities: int, a_day: int) -> TemporalGraph:
    """Random facts with the skew of news: few entities are in most of them."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, entities + 1)
    rows = []
    for day in range(1, days + 1):
        s, o = rng.choice(entities, size=(2, a_day), p=weight / weight.sum())
        facts = np.unique(np.stack([s, rng.integers(RELATIONS, size=a_day), o], axis=1), axis=0)
        rows.append(np.column_stack([facts, np.full(len(facts), day)]))
    train, valid, test = rows[:-2], rows[-2:-1], rows[-1:]
    names = tuple(map(str, range(entities))), tuple(map(str, range(RELATIONS)))
    return TemporalGraph(*names, *(np.concatenate(part) for part in (train, valid, test)))


def ranks_by_sorting(scores: torch.Tensor, s: list, r: list, o: torch.Tensor, answers: dict) -> tuple:
    """The peer: raw ranks by a full sort; filtered ranks by a copy, a loop over queries, and another full sort."""
    _, order = torch.sort(scores, dim=1, descending=True)
    raw = torch.nonzero(order == o.view(-1, 1))[:, 1] + 1
    filtered = scores.clone()
    for i, (head, relation) in enumerate(zip(s, r)):
        answer = o[i]
        known = list(answers[head][relation])
        known.remove(answer.item())
        ground = filtered[i][answer].clone()
        filtered[i][torch.LongTensor(known)] = 0
        filtered[i][answer] = ground
    _, order = torch.sort(filtered, dim=1, descending=True)
    return raw, torch.nonzero(order == o.view(-1, 1))[:, 1] + 1


def ranking(report: Report, queries: int, pairs: int, target: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    s, r = rng.integers(ENTITIES, size=queries), rng.integers(2 * RELATIONS, size=queries)
    # One question in ten is asked twice, with another answer.
    twice = rng.integers(queries, size=queries // 10)
    s[: len(twice)], r[: len(twice)] = s[twice], r[twice]
    o = rng.integers(ENTITIES, size=queries)
    # All scores differ and are positive, so that both sides have one answer (the peer hides entities by a zero).
    scores = 1 + torch.rand(queries, ENTITIES, generator=generator).argsort(dim=1).float()
    answers: dict = {}
    for head, relation, tail in zip(s.tolist(), r.tolist(), o.tolist()):
        answers.setdefault(head, {}).setdefault(relation, set()).add(tail)
    asked = torch.as_tensor(o)

    def count():
        return ranks_in_blocks(lambda block: scores[block], asked, ENTITIES, *also_true(s, r, o))

    def sort():
        return ranks_by_sorting(scores, s.tolist(), r.tolist(), asked, answers)

    for ours, theirs in zip(count(), sort()):
        assert torch.equal(ours, theirs.double()), "ranks differ"
    report.note(f"ranks of {queries} queries over {ENTITIES} entities: raw and filtered identical on both sides")
    seconds = paired_seconds(sort, count, pairs)
    report.add("ranking: sort / count", "sort", "count", *seconds, target)
    for budget in (1 << 20, 16 << 20):
        largest = []
        ranks_in_blocks(
            lambda block, seen=largest: seen.append(scores[block]) or seen[-1],
            asked, ENTITIES, *also_true(s, r, o), budget_bytes=budget,
        )  # fmt: skip
        rows = max(len(block) for block in largest)
        taken = rows * ENTITIES * BYTES_PER_SCORE
        assert taken <= max(budget, ENTITIES * BYTES_PER_SCORE)
        report.note(f"memory: a budget of {budget >> 20} MiB is met with {rows} rows a block ({taken / 2**20:.1f} MiB)")


class PlainLayer(regcn.RelationalLayer):
    """The same layer as it is usually written: transform every message, add, and two self loops for all entities."""

    def forward(self, h, q, day):
        message = (h[day.source] + q[day.relation]) @ self.neighbour
        total = torch.zeros_like(h).index_add(0, day.active[day.target], message)
        degree = torch.zeros(len(h), 1).index_copy(0, day.active, day.degree)
        loop = torch.where(degree > 0, h @ self.loop, h @ self.evolve)
        return self.dropout(regcn.leaky(total / degree.clamp_min(1) + loop))


def layer(report: Report, graph: TemporalGraph, width: int, pairs: int, target: float | None) -> None:
    today = regcn.snapshot(graph, graph.on(graph.days()[0]))
    torch.manual_seed(0)
    ours, plain = regcn.RelationalLayer(width, 0.0), PlainLayer(width, 0.0)
    plain.load_state_dict(ours.state_dict())
    h = F.normalize(torch.randn(graph.num_entities, width)).requires_grad_()
    q = F.normalize(torch.randn(2 * RELATIONS, width)).requires_grad_()

    def fast():
        relations = torch.zeros(len(today.active), width).index_add(0, today.target, q[today.relation])
        out = ours(h, relations, today)
        out.square().sum().backward()
        return out

    def slow():
        out = plain(h, q, today)
        out.square().sum().backward()
        return out

    assert torch.allclose(fast(), slow(), atol=1e-5)
    seconds = paired_seconds(fast, slow, pairs)
    report.add(f"layer, width {width}: ours / plain", "ours", "index_add", *seconds, target, at_most=True)
    if importlib.util.find_spec("torch_geometric"):
        from torch_geometric.nn import FastRGCNConv

        peer = FastRGCNConv(width, width, 2 * RELATIONS, num_bases=1, aggr="mean")
        edges = torch.stack([today.source, today.active[today.target]])

        def geometric():
            peer(h, edges, today.relation).square().sum().backward()

        seconds = paired_seconds(fast, geometric, pairs)
        report.add(f"layer, width {width}: ours / PyG", "ours", "FastRGCNConv", *seconds)
    else:
        report.note("PyTorch Geometric is not installed: FastRGCNConv not measured")


def epoch(report: Report, graph: TemporalGraph, width: int, steps: int) -> None:
    """One training step of RE-GCN split into its parts, and an epoch of ICEWS14 (303 steps) from the medians."""
    torch.manual_seed(0)
    model = regcn.REGCN(graph.num_entities, RELATIONS, width)
    frozen = regcn.Frozen(model, graph, 3)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    parts: dict[str, list[float]] = {"evolve": [], "score and loss": [], "backward": [], "update": []}
    days = graph.days()[3:]
    for i in range(steps + 2):
        day = days[i % len(days)]
        facts, kept = torch.as_tensor(graph.with_inverses(graph.on(day))), {}
        history = frozen.history(day)
        model.train()
        calls = {
            "evolve": lambda h=history, d=day, k=kept: k.update(state=model.evolve(h, d)),
            "score and loss": lambda f=facts, k=kept: k.update(loss=model.loss(k["state"], f)),
            "backward": lambda k=kept: k["loss"].backward(),
            "update": lambda: (nn.utils.clip_grad_norm_(model.parameters(), 1.0), adam.step(), adam.zero_grad()),
        }
        for name, call in calls.items():
            seconds = cpu_seconds(call)
            if i >= 2:
                parts[name].append(seconds)
    median = {name: float(np.median(seconds)) for name, seconds in parts.items()}
    total = sum(median.values())
    split = ", ".join(f"{name} {100 * x / total:.0f}%" for name, x in median.items())
    report.note(f"epoch, width {width}: {303 * total:.0f} CPU s for 303 days ({total:.3f} a step): {split}")


def main() -> int:
    parser = options(__doc__.splitlines()[0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("temporal knowledge graphs")
    small = chosen.quick
    graph = random_graph(8, 500 if small else ENTITIES, 60 if small else FACTS_A_DAY)
    ranking(report, 200 if small else 2000, chosen.pairs, None if small else 15)
    for width in (32,) if small else (100, WIDTH):
        layer(report, graph, width, max(9, chosen.pairs), None if small else 0.85)
        epoch(report, graph, width, 3 if small else 8)
    return report.finish(chosen)


if __name__ == "__main__":
    sys.exit(main())
