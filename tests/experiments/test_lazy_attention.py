"""The measurements of the Lazy Attention chapter on cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zfu_lib.attention import lazy_attention as method
from zfu_lib.experiments import lazy_attention as lazy
from zfu_lib.report import claims, statistics, verdicts

TINY = replace(
    lazy.QUICK, seeds=2, layers=2, width=32, length=16, tokens=1500, batch_tokens=64, evaluation_tokens=1024,
    look_steps=10, recall_steps=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    return lazy.Lab(TINY, device="cpu")


def verdict(name, **measured):
    (claim,) = [c for c in claims.load("lazy_attention").claims if c.id == f"lazy_attention.{name}"]
    return verdicts.judge(claim, "quick", {k: statistics.exact(v) for k, v in measured.items()}).verdict


def test_a_kernel_that_leaks_or_rounds_loses_its_verdict(monkeypatch):
    assert verdict("Z14", z14_error=lazy.kernel_error("banded")) == "reproduced"
    real = method.elastic_softmax_attention

    def renormalising(*args, tau, **options):
        out = real(*args, tau=tau, **options)
        return out if options["backend"] == "reference" else out * 1.001

    monkeypatch.setattr(method, "elastic_softmax_attention", renormalising)
    assert verdict("Z14", z14_error=lazy.kernel_error("banded")) == "not reproduced"


def test_decoding_that_counts_rows_of_the_call_loses_its_verdict(lab, monkeypatch):
    model, text = lab.build("lazy", 0).eval(), lab.sample(texts=1)
    assert verdict("Z18", z18_error=lazy.decode_error(model, text)) == "reproduced"
    share = type(model.model).share

    def first_key_only(self, x, distance, hidden):
        seen = share(self, x, distance, hidden)
        if seen is not None and distance.shape[0] == 1:
            seen = torch.zeros_like(seen).index_fill_(-1, torch.tensor([0]), True)
        return seen

    monkeypatch.setattr(type(model.model), "share", first_key_only)
    assert verdict("Z18", z18_error=lazy.decode_error(model, text)) == "not reproduced"


def silent(model):
    """Every score 0."""
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.attention.qkv_proj.weight[: 2 * TINY.width].detach())
    return model.eval()


def test_probe_of_uniform_softmax(lab):
    found = lazy.probe(silent(lab.build("softmax", 0)), lab.sample())
    assert (found.mass, found.entropy) == pytest.approx((1, 1))
    assert (found.sink, found.sink_raw) == pytest.approx((0, 0), abs=1e-6)
    assert (found.sparsity, found.sink_rate) == (0, 0)


def test_probe_of_an_elastic_head_that_abstains(lab):
    model = silent(lab.build("elastic", 0))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attention.theta.fill_(-1.01)
    found = lazy.probe(model, lab.sample())
    assert found.mass == 0
    assert found.sparsity == 1
    assert found.sink == found.sink_raw == found.strongest == 0


def test_probe_sees_a_sink_raw_and_normalised(lab, monkeypatch):
    """All of a mass of one half on the first token: normalised the sink is whole."""
    model = lab.build("softmax", 0).eval()
    forward = model.forward

    def half_on_first(*args, **kw):
        out = forward(*args, **kw)
        out.attentions = [torch.zeros_like(A).index_fill_(-1, torch.tensor([0]), 0.5) for A in out.attentions]
        return out

    monkeypatch.setattr(model, "forward", half_on_first)
    found = lazy.probe(model, lab.sample())
    uniform = np.mean([1 / i for i in range(9, 17)])
    assert (found.sink, found.sink_raw) == pytest.approx((1 - uniform, 0.5 - 0.5 * uniform), rel=1e-5)
    assert (found.strongest, found.sink_rate, found.mass) == pytest.approx((1, 1, 0.5))


def test_effective_rank_of_known_matrices():
    assert lazy.effective_rank(torch.eye(6)[None]) == pytest.approx(6)
    assert lazy.effective_rank(torch.ones(1, 5, 7)) == pytest.approx(1, abs=1e-6)


def test_sparsity_control_at_equal_mass():
    for sigma in (0.3, 1.0, 2.5):
        for tau in (-0.4, -1.0, -1.7):
            mass = method.gaussian_mass(sigma, tau)
            assert lazy.sparsity_at_mass(mass, tau) == pytest.approx(method.gaussian_sparsity(sigma, tau), abs=1e-5)
    assert lazy.sparsity_at_mass(0.99, -1e-3) <= 0.01


def test_random_scores_are_as_sparse_as_their_control(lab, monkeypatch):
    """With the text's scores replaced by noise, the model is its own control."""
    T, model = 256, lab.build("elastic", 0).eval()
    noise = torch.randn(4, TINY.heads, T, T, generator=torch.Generator().manual_seed(0)) * 1.3
    monkeypatch.setattr(type(model.model.layers[0].attention), "logits", lambda self, q, k, d: noise)
    found = lazy.sparsity_control(model, torch.randint(256, (4, T), generator=torch.Generator().manual_seed(0)))
    assert found.same_spread == pytest.approx(found.measured, abs=0.01)
    assert found.same_mass == pytest.approx(found.measured, abs=0.01)


def test_logits_are_those_behind_the_weights(lab):
    model, text = lab.build("bias", 0).eval(), lab.sample(texts=3)
    A = model(text, output_attentions=True).attentions
    seen = torch.ones(16, 16, dtype=torch.bool).tril()
    for z, weights in zip(lazy.logits(model, text), A, strict=True):
        torch.testing.assert_close(z.masked_fill(~seen, -torch.inf).softmax(-1), weights)


def test_post_hoc_offset_never_shrinks_the_top_share(lab):
    found = lazy.post_hoc(lab.build("softmax", 0, initializer_range=1.0).eval(), lab.sample())
    assert found.worst_top >= -1e-9
    assert 0 < found.sparsity < 1
    assert verdict("Z3", z3_worst_top=-0.01, z3_sink_rows=0.1) == "not reproduced"


def test_bound_violations_are_counted(lab, monkeypatch):
    model, text = lab.build("lazy", 0).eval(), lab.sample()
    assert lazy.bound_violations(model, text) == 0
    attention = type(model.model.layers[0].attention)
    weigh = attention.weigh
    monkeypatch.setattr(attention, "weigh", lambda self, q, k, this: 3 * weigh(self, q, k, this) + 1.0)
    assert lazy.bound_violations(model, text) > 0


def test_empty_tiles(lab, monkeypatch):
    model, text = lab.build("softmax", 0).eval(), lab.sample(texts=2)
    assert lazy.empty_tiles(model, text, 8) == 0
    forward = model.forward

    def near_only(*args, **kw):
        out = forward(*args, **kw)
        near = torch.arange(16)[:, None] - torch.arange(16) < 3
        out.attentions = [A * near for A in out.attentions]
        return out

    monkeypatch.setattr(model, "forward", near_only)
    # Of the ten visible 4 x 4 tiles the three two or more off the diagonal hold nothing.
    assert lazy.empty_tiles(model, text, 4) == pytest.approx(3 / 10)
    with pytest.raises(ValueError, match="tiles of 5"):
        lazy.empty_tiles(model, text, 5)


def test_texts_have_the_fixed_token_where_the_arm_wants_it(lab):
    for start in (1, 9):
        text = lab.text(16, start)
        assert (text[:, start - 1] == lab.start_token).all()
        assert (text == lab.start_token).sum() == len(text)
        batch = lab._batches(0, 4, start)(0)
        assert (batch[:, start - 1] == lab.start_token).all()


def test_arms_of_a_seed_start_alike_and_unscaled_stays_dead(lab):
    a, b = (dict(lab.build(name, 1).named_parameters()) for name in ("softmax", "lazy"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    tau = lab.history("unscaled").tau
    assert (tau == -1).all()
    assert (lab.history("unscaled").mass == 0).all()


def test_history_and_losses_have_the_stated_shapes(lab):
    history = lab.history("lazy")
    assert history.tau.shape == (2, len(history.step), 2, 4)
    assert history.mass.shape == (2, len(history.step), 2)
    assert history.step[-1] == lab._schedule(TINY.tokens, TINY.length, 0).steps - 1
    assert lab.loss("lazy").shape == lab.counting_loss().shape == (2,)
    assert lab.loss("softmax", 4).shape == (2,)
    assert lab.swapped_bias().shape == (2,)
    assert lab.bias_tables().shape == (2, 2, 4, 16)
    assert lazy.cache_growth(lab) == 0


def test_drift():
    mass = np.ones((2, 5, 3))
    assert lazy.drift(mass).tolist() == [0, 0]
    mass[1, -1, 2] = 0.5
    assert lazy.drift(mass).tolist() == [0, 0.5]


def test_tasks_count_what_they_ask(lab):
    found = lab.recall("lazy", 0, [32, 40])
    assert [r[1] + a[1] for r, a in zip(found.present, found.absent, strict=True)] == [lazy.RECALL_ITEMS] * 2
    assert set(lazy.accuracy([found])) == {"x", "y", "low", "high"}
    rows = lab.looking_back("softmax", 0)
    assert rows["look"].mass == pytest.approx(1)
    assert 0 <= rows["idle"].first + rows["idle"].own <= 1


def test_quoted_offsets_match_what_is_said_of_them():
    offsets = lazy.quoted()["offsets"]
    assert len(offsets) == 24
    assert np.mean(np.abs(offsets)) == pytest.approx(0.222, abs=5e-4)
    assert sum(t <= -0.5 for t in offsets) == 4
    assert sum(t <= -0.1 for t in offsets) == 12
