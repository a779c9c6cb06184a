"""MESH in its limiting cases, the gradients that must and must not flow, and each quirk of the release."""

import math

import pytest
import torch
from torch.nn import functional as F

from zfu_lib.prediction.mesh import CLEAN, RELEASED, Mesh, Mixture, Quirks
from zfu_lib.prediction.mesh_controls import Names, OneGate, Structure, WithCopy
from zfu_lib.prediction.regcn import Evolved

N, R, D, L, B = 9, 3, 8, 5, 24
OPTIONS = {"hidden": 7, "channels": 4}


def tables(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, L, generator=generator), torch.randn(R, L, generator=generator)


def state_of(seed=1):
    generator = torch.Generator().manual_seed(seed)
    H = F.normalize(torch.randn(N, D, generator=generator)).requires_grad_()
    q = F.normalize(torch.randn(2 * R, D, generator=generator)).requires_grad_()
    return Evolved(H, q, (), H)


def facts_of(seed=2):
    generator = torch.Generator().manual_seed(seed)
    s, o = (torch.randint(N, (B,), generator=generator) for _ in range(2))
    r = torch.randint(2 * R, (B,), generator=generator)
    return torch.stack([s, r, o, torch.ones_like(s)], dim=1), torch.rand(B, generator=generator) < 0.5


def mesh_of(seed=0, **options):
    torch.manual_seed(seed)
    return Mesh(*tables(), D, **OPTIONS | options)


def call(model, **kw):
    state, (facts, _) = state_of(), facts_of()
    return model.experts(facts[:, 0], facts[:, 1], state, model.semantics(state), **kw), state, facts


def test_gates_lie_between_zero_and_one_and_mix():
    model = mesh_of().eval()
    found, _, _ = call(model)
    for gate in (found.alpha, found.gate_historical, found.gate_other):
        assert ((gate > 0) & (gate < 1)).all()
    for part in (0, 1):
        mixed = found.alpha * found.historical[part] + (1 - found.alpha) * found.other[part]
        assert torch.allclose(found.prediction[part], mixed)


def test_limiting_cases():
    """α = 1 is the historical expert; g = 0 its structural branch; g = 1 its semantic branch."""
    model = mesh_of().eval()
    with torch.no_grad():
        model.gate_alpha.bias.fill_(80)
        model.gate_his.bias.fill_(-80)
    found, state, facts = call(model)
    for a, b in zip(found.prediction, found.historical):
        assert torch.equal(a, b)
    H = torch.tanh(state.entities)
    structure = model.encode["structural_his"](H[facts[:, 0]], state.relations[facts[:, 1]])
    assert torch.allclose(sum(found.historical), structure)
    with torch.no_grad():
        model.gate_his.bias.fill_(80)
    found, _, _ = call(model)
    assert torch.allclose(sum(found.historical), found.semantic)


def test_scores_are_the_equation():
    """y = (α e_his + (1-α) e_nhis) tanh(H)ᵀ; with dual candidates each branch against its own table."""
    for dual in (False, True):
        model = mesh_of(dual_candidates=dual).eval()
        found, state, facts = call(model)
        names = model.semantics(state)
        H, S = torch.tanh(state.entities), torch.tanh(names.entities)
        expected = 0
        for weight, expert in ((found.alpha, found.historical), (1 - found.alpha, found.other)):
            expected = expected + weight * (expert.semantic @ (S if dual else H).T + expert.structural @ H.T)
        assert torch.allclose(model.scores(state, names, facts[:, 0], facts[:, 1]), expected, atol=1e-5)


def test_names_of_a_relation_and_its_inverse_are_the_same():
    names = mesh_of().semantics(state_of())
    assert torch.equal(names.relations[:R], names.relations[R:])
    assert torch.allclose(names.entities.norm(dim=1), torch.ones(N))


def test_the_loss_is_its_parts():
    model, state, (facts, flags) = mesh_of().eval(), state_of(), facts_of()
    s, r, o = facts[:, 0], facts[:, 1], facts[:, 2]
    names = model.semantics(state)
    found = model.experts(s, r, state, names)
    main = F.cross_entropy(model.scores(state, names, s, r), o)
    assert torch.allclose(model.loss(state, facts, flags, omega=0, semantic_weight=0, task_weight=1), main)
    H = torch.tanh(state.entities)
    own = torch.stack([sum(found.historical)[i] if flags[i] else sum(found.other)[i] for i in range(B)])
    side = F.cross_entropy(own @ H.T, o)
    semantic = F.cross_entropy(found.semantic @ torch.tanh(names.entities).T, o)
    relation = model.relation_loss(names, s, r, o)
    expected = 0.7 * (main + 2 * side + semantic) + 0.3 * relation
    assert torch.allclose(model.loss(state, facts, flags, omega=2), expected)


def test_the_side_loss_trains_only_the_expert_of_the_flag():
    model, state, (facts, _) = mesh_of().eval(), state_of(), facts_of()
    all_historical = torch.ones(B, dtype=torch.bool)
    names = model.semantics(state)
    found = model.experts(facts[:, 0], facts[:, 1], state, names)
    own = Mixture(*(torch.where(all_historical[:, None], a, b) for a, b in zip(found.historical, found.other)))
    F.cross_entropy(model.logits(own, state, names), facts[:, 2]).backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("encode.structural_his") for n in touched)
    assert not any("nhis" in n or "alpha" in n for n in touched)


def unreached(model):
    state, (facts, flags) = state_of(), facts_of()
    model.train().loss(state, facts, flags).backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is None}


def test_every_parameter_learns_in_the_clean_form_and_one_does_not_in_the_released():
    assert not unreached(mesh_of())
    assert unreached(mesh_of(quirks=Quirks(inert_projection=True))) == {"inert_relations"}


def test_q2_the_second_projection_reaches_one_gate_only():
    plain, quirk = mesh_of().eval(), mesh_of(quirks=Quirks(inert_projection=True)).eval()
    before = call(quirk)[0]
    with torch.no_grad():
        for p in quirk.inert_entities.parameters():
            p.add_(1.0)
    after = call(quirk)[0]
    assert torch.equal(before.alpha, after.alpha)
    assert torch.equal(before.gate_historical, after.gate_historical)
    assert not torch.equal(before.gate_other, after.gate_other)
    assert not hasattr(plain, "inert_entities")


def test_q3_the_gate_changes_its_input_at_test():
    both = mesh_of(quirks=Quirks(inert_projection=True, untrained_gate_input=True))
    state = state_of()
    trained, tested = both.train().semantics(state), both.eval().semantics(state)
    assert torch.equal(trained.gate_relations, trained.relations)
    assert not torch.equal(tested.gate_relations, tested.relations)
    with pytest.raises(ValueError, match="Q3"):
        Quirks(untrained_gate_input=True)


def test_q4_the_second_pass_reaches_the_other_expert_only():
    model = mesh_of(quirks=Quirks(second_pass=True)).eval()
    one, _, _ = call(model)
    two, _, _ = call(model, second=state_of(seed=9))
    assert torch.equal(one.historical.structural, two.historical.structural)
    assert not torch.equal(one.other.structural, two.other.structural)


def test_q6_the_doubled_relation_loss_is_the_single_one_plus_ln_2():
    state, (facts, _) = state_of(), facts_of()
    forward = facts[facts[:, 1] < R]
    args = forward[:, 0], forward[:, 1], forward[:, 2]
    clean, doubled = mesh_of().eval(), mesh_of(quirks=Quirks(doubled_relations=True)).eval()
    single = clean.relation_loss(clean.semantics(state), *args)
    double = doubled.relation_loss(doubled.semantics(state), *args)
    assert float((double - single).detach()) == pytest.approx(math.log(2), abs=1e-5)


def test_released_has_every_quirk_and_clean_none():
    assert all(vars(RELEASED).values())
    assert not any(vars(CLEAN).values())


def test_ablations():
    even = call(mesh_of(even_gates=True).eval())[0]
    assert (even.alpha == 0.5).all()
    assert (even.gate_historical == 0.5).all()
    state = state_of()
    without = mesh_of(names=False).semantics(state)
    assert without.entities is state.entities
    assert without.relations is state.relations


@pytest.mark.parametrize("kind", [OneGate, Structure, Names])
def test_controls_learn(kind):
    """Steps on one batch lower the loss, and scores have the shape of the candidates."""
    torch.manual_seed(0)
    model, state, (facts, flags) = kind(*tables(), D, **OPTIONS), state_of(), facts_of()
    state = Evolved(*(x.detach() if isinstance(x, torch.Tensor) else x for x in state))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        adam.zero_grad()
        loss = model.loss(state, facts, flags)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    # Dropout moves a single step by about 0.05.
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1
    assert model.eval().scores(state, model.semantics(state), facts[:, 0], facts[:, 1]).shape == (B, N)


def test_one_gate_has_the_size_of_mesh():
    """At the widths of the release, within 3%."""
    entities, relations = torch.zeros(4, 384), torch.zeros(2, 384)
    sizes = [
        sum(p.numel() for p in made(entities, relations, 100, hidden=128, channels=channels).parameters())
        for made, channels in ((Mesh, 50), (OneGate, 100))
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


def test_size_at_the_release_is_what_its_code_says():
    """4,297,828 numbers a projection at L = 4096, and 603 in the gates."""
    model = Mesh(torch.zeros(2, 4096), torch.zeros(1, 4096), 100)
    assert sum(p.numel() for p in model.project_entities.parameters()) == 4_297_828
    gates = (model.gate_his, model.gate_nhis, model.gate_alpha)
    assert sum(p.numel() for gate in gates for p in gate.parameters()) == 603


def test_a_copy_branch_adds_its_scores():
    model = WithCopy(mesh_of(), D).eval()
    state, (facts, _) = state_of(), facts_of()
    names, s, r = model.semantics(state), facts[:, 0], facts[:, 1]
    none = model.scores(state, names, s, r, torch.zeros(B, N))
    assert torch.allclose(none, model.model.scores(state, names, s, r))
    with_copy = model.scores(state, names, s, r, F.one_hot(facts[:, 2], N).float())
    gain = (with_copy - none).gather(1, facts[:, 2:3])
    assert (gain > 0).all()


@pytest.mark.parametrize(
    ("entities", "relations", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 5), "got"),
        (torch.zeros(3), torch.zeros(2, 5), "got"),
        (torch.tensor([[0.0, 1], [torch.nan, 0]]), torch.zeros(2, 2), "entity 1 is not finite"),
    ],
)
def test_bad_names(entities, relations, message):
    with pytest.raises(ValueError, match=message):
        Mesh(entities, relations, 8)
