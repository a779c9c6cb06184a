"""The method of Lazy Attention: bounds, closed forms, and rivals against independent solutions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from zfu_lib.attention import lazy_attention as lazy

rows = st.integers(0, 2**16).map(lambda seed: np.random.default_rng(seed).normal(size=(4, 23)) * (seed % 7 + 0.2))


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(-1.5, 0.0))
def test_no_row_loses_more_than_tau_and_the_top_key_keeps_its_share(z, tau):
    p = torch.from_numpy(z).softmax(-1)
    w = torch.relu(p + tau / 23)
    lost = lazy.removed_mass(p, tau, 23)
    torch.testing.assert_close(w.sum(-1), 1 - lost)
    assert (lost <= -tau + 1e-12).all()
    left = w.sum(-1) > 1e-9
    assert (w.amax(-1) / w.sum(-1) >= p.amax(-1) - 1e-9)[left].all()


def test_at_minus_one_the_mass_is_the_distance_to_uniform():
    p = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    w = lazy.elastic_weights(p.log()[None, None], torch.ones(40, dtype=torch.bool), 40, torch.tensor([-1.0]))
    torch.testing.assert_close(w.sum(-1)[0, 0], (p - 1 / 40).abs().sum(-1) / 2)


@pytest.mark.parametrize(("sigma", "tau"), [(0.5, -1.0), (1.5, -1.0), (1.0, -0.5), (2.0, -0.1), (0.7, -1.8)])
def test_gaussian_closed_forms_are_the_integrals(sigma, tau):
    z = np.linspace(-12, 12, 400_001)
    density, gain = stats.norm.pdf(z), np.exp(sigma * z - sigma**2 / 2) + tau
    step = z[1] - z[0]
    assert lazy.gaussian_sparsity(sigma, tau) == pytest.approx((density * (gain < 0)).sum() * step, abs=1e-4)
    assert lazy.gaussian_mass(sigma, tau) == pytest.approx((density * gain.clip(0)).sum() * step, abs=1e-4)


def test_gaussian_forms_describe_long_random_rows():
    scores = torch.randn(50, 4096, generator=torch.Generator().manual_seed(1))
    w = torch.relu(scores.softmax(-1) - 1 / 4096)
    assert (w == 0).float().mean() == pytest.approx(lazy.gaussian_sparsity(1.0, -1.0), abs=0.01)
    assert w.sum(-1).mean() == pytest.approx(lazy.gaussian_mass(1.0, -1.0), abs=0.01)


@pytest.mark.parametrize(("sigma", "tau"), [(0.0, -1.0), (1.0, 0.0), (1.0, 0.3)])
def test_gaussian_forms_refuse_what_has_no_logarithm(sigma, tau):
    for form in (lazy.gaussian_sparsity, lazy.gaussian_mass):
        with pytest.raises(ValueError, match="needs scores"):
            form(sigma, tau)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_sparse_rivals_solve_their_equation(z):
    """The threshold by root finding instead of sorting, also where scores lie far apart and in fp32."""
    for form, power, scale in ((lazy.sparsemax, 1, 1.0), (lazy.entmax15, 2, 2.0)):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
            out = form(torch.from_numpy(z).to(dtype)).double().numpy()
            for x, p in zip(z / scale, out, strict=True):
                t = optimize.brentq(lambda t, x=x, n=power: (np.maximum(x - t, 0) ** n).sum() - 1, x.max() - 2, x.max())
                assert p == pytest.approx(np.maximum(x - t, 0) ** power, abs=tolerance)


@pytest.mark.parametrize("name", lazy.NORMALISERS)
def test_rivals_have_their_own_gradients_and_ignore_hidden_keys(name):
    form = lazy.NORMALISERS[name]
    z = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(form, (z.clone().requires_grad_(),))
    hidden = torch.cat([z[:, :4], torch.full((3, 2), -math.inf, dtype=torch.float64), z[:, 4:]], 1)
    out = form(hidden)
    assert (out[:, 4:6] == 0).all()
    torch.testing.assert_close(torch.cat([out[:, :4], out[:, 6:]], 1), form(z))


def test_rivals_by_their_definitions():
    z = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64)
    e = z.exp()
    torch.testing.assert_close(lazy.softmax_one(z), e / (1 + e.sum()))
    expected = torch.relu(e - 1) / ((e - 1).abs().sum() + 1e-6 * 1)
    torch.testing.assert_close(lazy.softpick(z), expected, rtol=1e-5, atol=0)
    assert lazy.softpick(z * 400).isfinite().all()
    torch.testing.assert_close(lazy.NORMALISERS["sigmoid"](z), (z - math.log(3)).sigmoid())


def test_normalise_switches():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=generator)
    seen, tau = torch.ones(6, 6, dtype=torch.bool).tril(), torch.tensor([-1.0, -0.05])
    p = z.masked_fill(~seen, -math.inf).softmax(-1)
    i = torch.arange(1.0, 7.0)[:, None]
    paper = torch.relu(p + tau[:, None, None] / i) * seen
    torch.testing.assert_close(lazy.normalise(z, seen, tau=tau), paper)
    torch.testing.assert_close(
        lazy.normalise(z, seen, tau=tau, scaled=False), torch.relu(p + tau[:, None, None]) * seen
    )
    again = lazy.normalise(z, seen, tau=tau, renormalise=True)
    total = again.sum(-1)
    assert (((total - 1).abs() < 1e-12) | (total == 0)).all()
    assert (total[0, 0, 0], total[0, 1, 0]) == (0, 1)  # the first token: 1 - 1 is nothing, 1 - 0.05 is all


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"normaliser": "hardmax", "tau": None}, "hardmax"),
        ({"normaliser": "elastic", "tau": None}, "needs tau"),
        ({"normaliser": "softmax", "tau": torch.zeros(1)}, "takes no tau"),
    ],
)
def test_impossible_normalisers_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        lazy.normalise(torch.zeros(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool), **options)
