"""Backbones against their definitions, written row by row."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.prediction import msr_backbones as b

D, S = 6, 3


def inputs(n=40, seed=0, scenarios=S):
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(n, D, generator=g, dtype=torch.float64)
    return e, torch.randint(0, scenarios, (n,), generator=g)


def made(name, **options):
    torch.manual_seed(1)
    model = b.BACKBONES[name](D, S, hidden=(8, 5), **options).double().eval()
    for p in model.parameters():  # nothing at its special starting value
        torch.nn.init.normal_(p, std=0.5)
    return model


def linear(layer, s, x):
    return F.linear(x, layer.weight_SOI[s], layer.bias_SO[s])


def expert_outputs(experts, x):
    first = F.linear(x, experts.first.weight, experts.first.bias).relu().view(experts.experts, -1)
    for layer in experts.later:
        first = torch.stack([linear(layer, i, row).relu() for i, row in enumerate(first)])
    return first


def shared_bottom(m, x, s):
    return linear(m.last, s, linear(m.tower, s, m.bottom(x)).relu())


def mmoe(m, x, s):
    weights = linear(m.gate, s, x).softmax(0)
    mixture = sum(w * out for w, out in zip(weights, expert_outputs(m.experts, x)))
    return linear(m.last, s, linear(m.tower, s, mixture).relu())


def ple(m, x, s):
    streams, common = [x] * S, x
    for level in range(len(m.own)):
        own = [expert_outputs(m.own[level][k], streams[k]) for k in range(S)]
        shared = expert_outputs(m.shared[level], common)
        before = common
        if level < len(m.own) - 1:
            everything = torch.cat([*own, shared])
            common = m.shared_gate[level](before).softmax(0) @ everything
        streams = [linear(m.gate[level], k, streams[k]).softmax(0) @ torch.cat([own[k], shared]) for k in range(S)]
    return linear(m.last, s, linear(m.tower, s, streams[s]).relu())


def star(m, x, s):
    n = m.norm
    h = (n.scale_D * n.scale_SD[s]) * (x - n.mean_SD[s]) / (n.variance_SD[s] + n.eps).sqrt()
    h = h + n.shift_D + n.shift_SD[s]
    for layer in [*m.layers, m.last]:
        weight = layer.weight_SOI[s] * layer.shared.weight
        h = weight @ h + layer.bias_SO[s] + layer.shared.bias
        h = h.relu() if layer is not m.last else h
    return h + m.auxiliary(torch.cat([x, m.scenario.weight[s]]))


def pooled(m, x, s):
    return shared_bottom(m, x, 0)


DEFINITIONS = {"pooled": pooled, "shared_bottom": shared_bottom, "mmoe": mmoe, "ple": ple, "star": star}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in DEFINITIONS), ("ple", {"levels": 1}), ("ple", {"levels": 3, "own": 2})],
)
def test_equals_its_definition_row_by_row(name, options):
    model, (e, s) = made(name, **options), inputs()
    expected = torch.stack([DEFINITIONS[name](model, x, int(k))[0] for x, k in zip(e, s)])
    assert torch.allclose(model(e, s), expected, atol=1e-10)


@pytest.mark.parametrize("name", b.BACKBONES)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_neighbours(name, n, seed):
    model, (e, s) = made(name), inputs(n, seed)
    whole = model(e, s)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(model(e[order], s[order]), whole[order], atol=1e-10)
    assert torch.allclose(model(e[:1], s[:1]), whole[:1], atol=1e-10)


@pytest.mark.parametrize("name", b.BACKBONES)
def test_gradient_reaches_every_parameter_of_the_scenarios_present_and_is_right(name):
    model, (e, s) = made(name), inputs(12)
    e.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, s), (e,))
    model(e, s).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ["star", "shared_bottom", "mmoe", "ple"])
def test_scenario_weights_are_the_scenarios_own(name):
    """Training on one scenario leaves what only another scenario reads alone."""
    model, (e, _) = made(name), inputs(12)
    model(e, torch.zeros(12, dtype=torch.long)).sum().backward()
    own = [
        p.grad for n, p in model.named_parameters() if n.endswith("_SOI") and p.grad is not None and "later" not in n
    ]
    assert own
    if name != "ple":  # PLE's shared stream reads all scenarios' experts below the last level
        assert all(g[1:].abs().sum() == 0 for g in own)


def test_partitioned_norm_uses_the_statistics_of_its_scenario():
    torch.manual_seed(0)
    norm = b.PartitionedNorm(2, D).double().train()
    x = torch.randn(50, D, dtype=torch.float64) * 3 + 7
    s = torch.tensor([0] * 20 + [1] * 30)
    x[20:] += 100
    out = norm(x, b.Groups(s, 2))
    for part in (out[:20], out[20:]):
        assert torch.allclose(part.mean(0), torch.zeros(D, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(part.var(0, correction=0), torch.ones(D, dtype=torch.float64), atol=1e-4)
    one = torch.nn.BatchNorm1d(D).double()
    norm = b.PartitionedNorm(1, D).double()
    groups = b.Groups(torch.zeros(50, dtype=torch.long), 1)
    assert torch.allclose(norm(x, groups), one(x))  # one scenario: plain batch normalisation, training ...
    norm.eval(), one.eval()
    assert torch.allclose(norm(x, groups), one(x))  # ... and its moving averages afterwards


def test_a_row_alone_in_its_scenario_does_not_become_its_own_mean():
    norm = b.PartitionedNorm(2, D).train()
    x = torch.full((1, D), 3.0)
    assert torch.allclose(norm(x, b.Groups(torch.tensor([1]), 2)), x, atol=1e-4)
    assert torch.equal(norm.mean_SD, torch.zeros(2, D))


def test_star_with_untouched_scenario_weights_is_one_shared_network():
    torch.manual_seed(0)
    layer = b.StarLinear(S, D, 4)
    e, s = inputs()
    groups = b.Groups(s, S)
    assert torch.allclose(groups.unsort(layer(groups.sort(e.float()), groups)), layer.shared(e.float()), atol=1e-6)


def test_one_scenario_and_one_expert_are_the_plain_network():
    torch.manual_seed(0)
    plain, mixture = b.SharedBottom(D, 1, (8, 5)), b.MMoE(D, 1, (8, 5), experts=1)
    mixture.experts.first.load_state_dict(plain.bottom[0].state_dict())
    for part in ("tower", "last"):
        getattr(mixture, part).load_state_dict(getattr(plain, part).state_dict())
    e, s = inputs(scenarios=1)
    assert torch.allclose(plain(e.float(), s), mixture(e.float(), s), atol=1e-6)


def test_fused_table_equals_one_table_per_field():
    torch.manual_seed(0)
    sizes = (3, 5, 2)
    fused = b.FusedEmbedding(sizes, 4)
    tables = fused.table.split(sizes)
    ids = torch.stack([torch.randint(0, n, (9,)) for n in sizes], dim=1)
    expected = torch.cat([table[ids[:, i]] for i, table in enumerate(tables)], dim=1)
    assert torch.equal(fused(ids), expected)


def test_a_pooled_backbone_meets_a_scenario_it_does_not_know():
    model, (e, s) = made("pooled"), inputs()
    assert torch.equal(model(e, s), model(e, s + 90))


@pytest.mark.parametrize("s", [[0, 3], [-1, 0], []])
def test_a_scenario_that_does_not_exist_is_refused(s):
    model = b.SharedBottom(D, S)
    with pytest.raises(ValueError, match="numbers from 0 to 2"):
        model(torch.randn(len(s), D), torch.tensor(s, dtype=torch.long))


@pytest.mark.parametrize("call", [
    lambda: b.SharedBottom(D, S, hidden=(8,)), lambda: b.PLE(D, S, levels=0), lambda: b.FusedEmbedding((), 4),
    lambda: b.FusedEmbedding((3, 0), 4), lambda: b.STAR(0, S),
])  # fmt: skip
def test_shapes_that_make_no_network_are_refused(call):
    with pytest.raises(ValueError):
        call()
