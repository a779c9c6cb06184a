"""RE-GCN equals a slow implementation of its equations, edge by edge, and never reads the day it predicts."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zfu_lib.prediction import regcn
from zfu_lib.prediction.tkg import GraphError, LeakError, TemporalGraph
from zfu_lib.prediction.tkg_ranking import evaluate

from .tkg_graphs import random_graph

WIDTH = 8


@pytest.fixture(scope="module")
def graph():
    return random_graph(0)


def model_of(graph, static=False, seed=0, width=WIDTH):
    torch.manual_seed(seed)
    words = regcn.word_graph([f"Police_({e})" if i % 2 else e for i, e in enumerate(graph.entities)])
    model = regcn.REGCN(
        graph.num_entities, graph.num_relations, width, words=words if static else None, blocks=width // 2, channels=6
    )
    return model.double().eval()


def norm(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def slope(x):
    return torch.where(x > 0, x, x * (1 / 8 + 1 / 3) / 2)


def start_of(model, graph):
    """The static layer, one edge at a time: a block-diagonal matrix a kind of edge, mean over incoming edges."""
    words = regcn.word_graph([f"Police_({e})" if i % 2 else e for i, e in enumerate(graph.entities)])
    x = torch.cat([model.entities, model.static.words])
    incoming = [[] for _ in x]
    for e, w, k in zip(words.entity.tolist(), words.word.tolist(), words.kind.tolist()):
        w += graph.num_entities
        incoming[w].append(x[e] @ torch.block_diag(*model.static.weight[k]))
        incoming[e].append(x[w] @ torch.block_diag(*model.static.weight[k + 3]))
    return norm(slope(torch.stack([sum(m) / len(m) for m in incoming])))[: graph.num_entities]


def reference(model, graph, day, length, static):
    """Transform every message, then average; one entity, one relation at a time."""
    n, width = graph.num_entities, model.entities.shape[1]
    h = start_of(model, graph) if static else norm(model.entities)
    q = model.relations
    for facts in graph.window(day, length):
        z = torch.zeros(2 * graph.num_relations, width, dtype=h.dtype)
        for r in range(graph.num_relations):
            ends = {e for s, rel, o, _ in facts.tolist() if rel == r for e in (s, o)}
            if ends:
                z[r] = z[r + graph.num_relations] = torch.stack([h[e] for e in ends]).mean(0)
        q = norm(model.relation_cell(torch.cat([model.relations, z], 1), q))
        new = h
        for layer in model.layers:
            out = []
            for o in range(n):
                edges = [(s, r) for s, r, other, _ in graph.with_inverses(facts).tolist() if other == o]
                if edges:
                    message = sum((new[s] + q[r]) @ layer.neighbour for s, r in edges) / len(edges)
                    out.append(message + new[o] @ layer.loop)
                else:
                    out.append(new[o] @ layer.evolve)
            new = slope(torch.stack(out))
        u = torch.sigmoid(h @ model.gate.weight.T + model.gate.bias)
        h = u * norm(new) + (1 - u) * h
    return norm(h), q


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_evolution_equals_the_equations(graph, static, length):
    model = model_of(graph, static)
    frozen = regcn.Frozen(model, graph, length)
    for day in (2, graph.days("test")[0]):
        history = [as_double(s) for s in frozen.history(day)]
        state = model.evolve(history, day)
        entities, relations = reference(model, graph, day, length, static)
        assert torch.allclose(state.entities, entities, atol=1e-10)
        assert torch.allclose(state.relations, relations, atol=1e-10)


def as_double(s):
    return regcn.Snapshot(**{k: v.double() if k in ("degree", "touches") else v for k, v in vars(s).items()})


def test_a_layer_has_the_gradient_of_its_equations(graph):
    model = model_of(graph)
    today = as_double(regcn.snapshot(graph, graph.on(3)))
    layer = model.layers[0]
    relations = torch.randn(len(today.active), WIDTH, dtype=torch.double, requires_grad=True)
    h = torch.randn(graph.num_entities, WIDTH, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: layer(a, b, today), (h, relations))


def test_the_decoder_is_its_definition():
    torch.manual_seed(0)
    decoder = regcn.QueryDecoder(WIDTH, channels=4).eval()
    decoder.between.running_mean += 0.3
    a, b = torch.randn(2, 5, WIDTH)
    x = decoder.before(torch.stack([a, b], 1))
    padded = F.pad(x, (1, 1))
    out = torch.zeros(5, 4, WIDTH)
    for c in range(4):
        for j in range(WIDTH):
            window = padded[:, :, j : j + 3]
            out[:, c, j] = (window * decoder.convolve.weight[c]).sum((1, 2)) + decoder.convolve.bias[c]
    expected = F.relu(decoder.after(decoder.project(F.relu(decoder.between(out)).flatten(1))))
    assert torch.allclose(decoder(a, b), expected, atol=1e-5)
    assert (decoder(a, b) >= 0).all()


def test_the_loss_is_its_parts(graph):
    model = model_of(graph, static=True)
    frozen = regcn.Frozen(model, graph, 2)
    day = 4
    state = model.evolve([as_double(s) for s in frozen.history(day)], day)
    facts = torch.as_tensor(graph.with_inverses(graph.on(day)))
    s, r, o = facts[:, 0], facts[:, 1], facts[:, 2]
    entity = F.cross_entropy(model.scores(state, s, r), o)
    relation = F.cross_entropy(model.relation_scores(state, s, o), r)
    hinge = 0.0
    for i, h in enumerate(state.states):
        for e in range(graph.num_entities):
            angle = math.cos(math.radians(10 * (i + 1))) - float((state.start[e] @ norm(h[e])).detach())
            hinge += max(angle, 0.0)
    found = model.loss(state, facts, task_weight=0.6, static_weight=0.2, angle=10)
    assert float(found.detach()) == pytest.approx(float((0.6 * entity + 0.4 * relation).detach()) + 0.2 * hinge)


def test_words_of_names():
    found = regcn.word_graph(["Police_(Kenya)", "China", "Army_(Kenya)", "Member_(Govt)_(Iran)"])
    edges = list(zip(found.entity.tolist(), found.word.tolist(), found.kind.tolist()))
    # Police 0, Kenya 1, China 2, Army 3, Member 4, Govt 5.
    assert edges == [(0, 0, 0), (0, 1, 1), (1, 2, 2), (2, 3, 0), (2, 1, 1), (3, 4, 0), (3, 5, 1)]
    assert found.num_words == 6


def test_the_future_does_not_matter(graph):
    day = graph.days("test")[0]
    later = graph.test[graph.test[:, 3] > day].copy()
    cut = TemporalGraph(graph.entities, graph.relations, graph.train, graph.valid, later)
    queries = torch.as_tensor(graph.with_inverses(graph.on(day)))
    found = [regcn.Frozen(model_of(g).float(), g, 3).score(day, queries[:, 0], queries[:, 1]) for g in (graph, cut)]
    assert torch.equal(*found)


def test_names_of_entities_do_not_matter(graph):
    """Permute ids and, with them, the entity table: the metrics stay."""
    order = np.random.default_rng(0).permutation(graph.num_entities)
    moved = graph.renamed(order)
    here, there = model_of(graph).float(), model_of(moved).float()
    there.load_state_dict(here.state_dict())
    with torch.no_grad():
        there.entities[torch.as_tensor(order)] = here.entities
    a, b = (evaluate(g, regcn.Frozen(m, g, 3)).metrics() for g, m in ((graph, here), (moved, there)))
    assert a == pytest.approx(b)


def test_a_leaking_history_is_refused(graph):
    model, day = model_of(graph).float(), graph.days("test")[0]
    history = regcn.Frozen(model, graph, 2).history(day)
    today = regcn.snapshot(graph, graph.on(day))
    with pytest.raises(LeakError, match=f"history of day {day}"):
        model.evolve([*history, today], day)
    with pytest.raises(GraphError, match="out of order"):
        model.evolve(history[::-1], day)
    with pytest.raises(GraphError, match="no history"):
        model.evolve([], 1)
    with pytest.raises(GraphError, match="one day"):
        regcn.snapshot(graph, graph.facts)


def test_dropout_keeps_the_mean_and_the_rate():
    torch.manual_seed(0)
    drop = regcn.Dropout(0.2)
    x = torch.ones(999, 1001)
    found = drop(x)
    # One number in five is zeroed; 1M of them: the standard error of the rate is 0.0004.
    assert float((found == 0).float().mean()) == pytest.approx(51 / 256, abs=0.002)
    assert float(found.mean()) == pytest.approx(1, abs=0.002)
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        regcn.Dropout(1.0)


def test_a_width_that_does_not_split():
    with pytest.raises(ValueError, match="not a multiple"):
        regcn.StaticLayer(regcn.word_graph(["a"]), 1, 6, 4, 0.0)
