"""The reconstruction on cases whose answer is known."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from zfu_lib.prediction import llm4msr as method
from zfu_lib.prediction import msr_backbones as backbones
from zfu_lib.prediction import text_controls as controls

D, S, H = 8, 3, 5


def batch(n=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    e, h = (torch.randn(n, w, generator=g, dtype=torch.float64) for w in (D, H))
    return e, torch.randint(0, S, (n,), generator=g), h, torch.randn(S, H, generator=g, dtype=torch.float64)


def made(shaken=True, backbone="shared_bottom", **choices):
    torch.manual_seed(3)
    choices = method.Choices(rank=4, **choices)
    extra = D if choices.fusion == "concat" else 0
    model = method.LLM4MSR(backbones.BACKBONES[backbone](D, S, (6, 4), extra=extra), H, H, choices).double().eval()
    if shaken:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.5)
    return model


def by_definition(m, e, s, h, h_s):
    """z = ReLU(P h), W = reshape(A z + a), b = B z + β, one row at a time."""

    def layer(net, text, x):
        z = F.linear(text, net.code[0].weight, net.code[0].bias).relu()
        weight = (net.weight.weight @ z + net.weight.bias).view(net.shape)
        return weight @ x + net.bias.weight @ z + net.bias.bias

    x = e
    for i, net in enumerate(m.user):
        x = layer(net, h, x.relu() if i else x)
    lifted = e + x if m.choices.bottom == "residual" else x.relu()
    lifted = lifted if len(m.user) else e
    if m.out is None:
        return m.backbone(lifted[None], s[None])[0]
    r = lifted if m.choices.reads == "bottom" else e
    for net in m.scenario:
        r = layer(net, h_s[s], r).relu()
    o = m.out(r)
    if m.choices.fusion == "logit_sum":
        return m.backbone(lifted[None], s[None])[0] + m.choices.scale * o[0]
    join = (lambda k: k + o) if m.choices.fusion == "hidden_sum" else (lambda k: torch.cat([k, o[None]], 1))
    return m.backbone(lifted[None], s[None], fuse=join)[0]


@pytest.mark.parametrize(
    ("fusion", "bottom", "reads"),
    list(itertools.product(("logit_sum", "hidden_sum", "concat"), ("residual", "replace"), ("bottom", "embedding"))),
)
def test_equals_the_reconstruction_row_by_row(fusion, bottom, reads):
    for depth in (1, 2):
        model = made(fusion=fusion, bottom=bottom, reads=reads, user_layers=depth, scenario_layers=depth, scale=0.7)
        e, s, h, h_s = batch()
        expected = torch.stack([by_definition(model, *row, h_s) for row in zip(e, s, h)])
        assert torch.allclose(model(e, s, h, h_s), expected, atol=1e-10)


@pytest.mark.parametrize("name", backbones.BACKBONES)
@pytest.mark.parametrize("fusion", ["logit_sum", "hidden_sum"])
def test_starts_as_the_bare_backbone(name, fusion):
    model = made(shaken=False, backbone=name, fusion=fusion)
    e, s, h, h_s = batch()
    assert torch.allclose(model(e, s, h, h_s), model.backbone(e, s), atol=1e-12)


def test_starts_as_the_bare_backbone_and_still_learns_from_text():
    model = made(shaken=False)
    e, s, h, h_s = batch()
    model(e, s, h, h_s).square().sum().backward()
    assert model.user[0].weight.weight.grad.abs().sum() > 0
    assert model.out.weight.grad.abs().sum() > 0


def test_a_level_that_is_left_out_reads_no_text():
    e, s, h, h_s = batch()
    user_only = made(scenario_layers=0)
    assert torch.equal(user_only(e, s, h, h_s), user_only(e, s, h, h_s + 1))
    scenario_only = made(user_layers=0)
    assert torch.equal(scenario_only(e, s, h, h_s), scenario_only(e, s, h + 1, h_s))
    neither = made(user_layers=0, scenario_layers=0)
    assert torch.equal(neither(e, s, h, h_s), neither.backbone(e, s))


def test_the_bilinear_form_is_the_generated_layer():
    torch.manual_seed(0)
    net = method.MetaNetwork(H, D, 7, 4, "usual").double()
    x, h = torch.randn(9, D).double(), torch.randn(9, H).double()
    weight, bias = net(h)
    assert weight.shape == (9, 7, D)
    assert torch.allclose(net.apply_rows(x, h), torch.einsum("koi,ki->ko", weight, x) + bias, atol=1e-12)
    assert torch.autograd.gradcheck(net.apply_rows, (x.requires_grad_(), h.requires_grad_()))


def test_scenarios_may_be_numbered_in_any_order():
    model = made()
    e, s, h, h_s = batch()
    order = torch.tensor([2, 0, 1])
    r, other = (
        model.parallel(e, k, [net(x) for net in model.scenario])
        for k, x in ((s, h_s), (order.argsort()[s], h_s[order]))
    )
    assert torch.allclose(r, other, atol=1e-12)


def test_cached_weights_serve_the_same_logits():
    users, n = 6, 30
    e, s, h, h_s = batch(n)
    for depth in (1, 2):
        net = made(user_layers=depth)
        table = backbones.FusedEmbedding((users, 5), D // 2).double()
        known = torch.tensor([True, False, True, True, False, True])
        knowledge = method.Knowledge(h[:users], h_s, known).double()
        knowledge.default_H.data.normal_()
        model = method.Recommender(table, net, knowledge)
        ids = torch.stack([torch.randint(0, users, (n,)), torch.randint(0, 5, (n,))], 1)
        assert torch.allclose(model.serve(ids, s, model.cache()), model(ids, s), atol=1e-10)
        ids[:, 0] = 4
        assert torch.allclose(model.serve(ids, s, model.cache(), one_user=True), model(ids, s), atol=1e-10)


def test_users_without_a_text_share_a_default_that_learns():
    h = torch.randn(4, H)
    h[2] = float("nan")  # not read: that user has no text
    knowledge = method.Knowledge(h, torch.randn(S, H), torch.tensor([True, True, False, True]))
    out = knowledge.users(torch.tensor([2, 0]))
    assert torch.equal(out[1], h[0])
    assert torch.equal(out[0], knowledge.default_H)
    out.sum().backward()
    assert (knowledge.default_H.grad == 1).all()


def test_text_vectors_that_are_not_finite_are_refused():
    h = torch.randn(4, H)
    h[1, 2] = float("inf")
    with pytest.raises(ValueError, match="user 1 is not finite"):
        method.Knowledge(h, torch.randn(S, H))
    with pytest.raises(ValueError, match="mask"):
        method.Knowledge(torch.randn(4, H), torch.randn(S, H), torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [
    {"rank": 0}, {"fusion": "sum"}, {"bottom": "skip"}, {"reads": "e"}, {"dropout": 1.0}, {"user_layers": -1},
])  # fmt: skip
def test_choices_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        method.Choices(**wrong)


def test_concat_needs_room_in_the_backbone():
    with pytest.raises(ValueError, match="concat needs 8"):
        method.LLM4MSR(backbones.SharedBottom(D, S), H, H, method.Choices(fusion="concat"))


def test_prompts():
    history = {"feed": ["a", "b", "c"], "search": ["d"], "shop": []}
    text = method.user_prompt(history, longest=2)
    assert "In feed: b; c." in text
    assert "a;" not in text
    assert "shop" not in text
    assert "search" not in method.user_prompt(history, withhold="search")
    with pytest.raises(ValueError, match="without a history"):
        method.user_prompt({"feed": ["a"]}, withhold="feed")
    text = method.scenario_prompt("feed", "Short films.", {"users": 3}, {"shop": "Things."})
    assert all(part in text for part in ("feed", "3 users", "Short films.", "shop: Things."))
    with pytest.raises(ValueError, match="no description"):
        method.scenario_prompt("feed", " ", {})


# Controls


def test_controls_by_their_formulas():
    e, s, h, h_s = batch()
    torch.manual_seed(0)
    film = controls.FiLM(backbones.SharedBottom(D, S), H).double()
    assert torch.allclose(film(e, s, h, h_s), film.backbone(e, s))
    torch.nn.init.normal_(film.gain_shift.weight)
    gain, shift = film.gain_shift(h).chunk(2, 1)
    assert torch.allclose(film(e, s, h, h_s), film.backbone(e * (1 + gain) + shift, s))
    dot = controls.Dot(backbones.SharedBottom(D, S), H, slice(4, 8), rank=3).double()
    assert torch.allclose(dot(e, s, h, h_s), dot.backbone(e, s))
    torch.nn.init.normal_(dot.product.weight)
    expected = [u @ i for u, i in zip(dot.user(h), dot.product(e[:, 4:]))]
    assert torch.allclose(dot(e, s, h, h_s) - dot.backbone(e, s), torch.stack(expected))
    wide = controls.Concat(backbones.SharedBottom(D + 6, S), H, H, rank=3).double()
    expected = wide.backbone(torch.cat([e, wide.user(h), wide.scenario(h_s)[s]], 1), s)
    assert torch.allclose(wide(e, s, h, h_s), expected)


def test_deepfm_pairs_are_all_pairs_of_fields():
    torch.manual_seed(0)
    model = controls.DeepFM(D, S, H, H, hidden=(4, 3), dim=4).double()
    for part in (model.linear, model.deep[-1]):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    e, s, h, h_s = batch()
    fields = [e[:, :4], e[:, 4:], model.ids(s), model.user(h), model.scenario(h_s)[s]]
    expected = sum((a * c).sum(1) for a, c in itertools.combinations(fields, 2))
    assert torch.allclose(model(e, s, h, h_s), expected, atol=1e-10)
    with pytest.raises(ValueError, match="fields of width"):
        controls.DeepFM(D, S, H, H, dim=3)


def test_cross_layers_by_their_formula():
    torch.manual_seed(0)
    model = controls.DCN(D, S, H, H, hidden=(4, 3), rank=2).double()
    e, s, h, h_s = batch(3)
    x_0 = torch.cat([e, model.ids(s), model.user(h), model.scenario(h_s)[s]], 1)
    x = x_0
    for cross in model.crosses:
        x = x_0 * (x @ cross.weight.T + cross.bias) + x
    expected = model.last(torch.cat([x, model.deep(x_0)], 1))[:, 0]
    assert torch.allclose(model(e, s, h, h_s), expected)


def test_the_id_hypernet_is_the_scenario_branch_and_reads_no_text():
    torch.manual_seed(0)
    net = controls.IdHypernet(backbones.SharedBottom(D, S), S, H, H).double()
    torch.nn.init.normal_(net.net.out.weight)
    e, s, h, h_s = batch()
    out = net(e, s, h, h_s)
    assert torch.equal(out, net(e, s, h, h_s + 1))
    # Whatever text computes on a fixed set of scenarios, it can.
    assert torch.equal(net.net(e, s, h, net.vectors_SH), out)
    before = net.vectors_SH.detach().clone()
    net.average_unknown([0, 2])
    assert torch.equal(net.vectors_SH[[0, 2]], before[[0, 2]])
    assert torch.allclose(net.vectors_SH[1], before[[0, 2]].mean(0))
