"""The method's formulas against numbers worked out from the paper."""

import math

import pytest
import torch

from zfu_lib.attention.swat import (
    attention_weights,
    balanced_slopes,
    logit_bias,
    receptive_field,
    rotary,
    row_mass,
    sliding_window_attention,
)


def test_balanced_slopes_are_equation_4():
    assert balanced_slopes(8).tolist() == [-0.5, -0.25, -0.125, -0.0625, 0.5, 0.25, 0.125, 0.0625]
    assert balanced_slopes(2).tolist() == [-0.5, 0.5]


def test_ratio_counts_recency_then_history():
    slopes = balanced_slopes(12, "balanced", (8, 4))
    assert (slopes < 0).tolist() == [True] * 8 + [False] * 4
    assert slopes[:8].tolist() == [-(2.0**-k) for k in range(1, 9)]
    assert slopes[8:].tolist() == [2.0**-k for k in range(1, 5)]
    assert torch.equal(balanced_slopes(6, "balanced", (3, 3)), balanced_slopes(6))
    assert (balanced_slopes(12, "balanced", (12, 0)) < 0).all()


def test_one_sided_slopes_are_alibis():
    recency = balanced_slopes(8, "recency")
    assert recency.tolist() == [-(2.0**-k) for k in range(1, 9)]
    assert torch.equal(balanced_slopes(8, "history"), -recency)
    assert balanced_slopes(16, "recency")[0].item() == pytest.approx(-(2**-0.5))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "num_heads"),
        ((4, "-"), "mode"),
        ((3,), "ratio"),
        ((4, "recency", (2, 2)), "drop"),
        ((4, "balanced", (3, 2)), "3:2"),
        ((4, "balanced", (5, -1)), "5:-1"),
    ],
)
def test_impossible_slopes_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        balanced_slopes(*arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotary_turns_each_pair_by_its_angle(dtype):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.tensor([0, 1, 7, 50_000])
    out = rotary(x, positions, theta=100.0)
    assert out.shape == x.shape
    assert out.dtype == dtype
    expected = torch.empty_like(x, dtype=torch.float64)
    for t, m in enumerate(positions.tolist()):
        for j in range(3):
            c, s = math.cos(m * 100.0 ** (-2 * j / 6)), math.sin(m * 100.0 ** (-2 * j / 6))
            a, b = x[..., t, 2 * j].double(), x[..., t, 2 * j + 1].double()
            expected[..., t, 2 * j], expected[..., t, 2 * j + 1] = a * c - b * s, a * s + b * c
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_rotated_products_depend_on_distance_only():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def product(m, n):
        return (rotary(q, torch.tensor([m])) * rotary(k, torch.tensor([n]))).sum().item()

    assert product(5, 2) == pytest.approx(product(1005, 1002), abs=1e-10)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-3)


def test_rotary_refuses_odd_widths_and_missing_positions():
    with pytest.raises(ValueError, match="odd"):
        rotary(torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="positions"):
        rotary(torch.zeros(2, 4), torch.arange(3))


def test_logit_bias_by_hand():
    distance = torch.tensor([[0, -1], [2, 1], [3, 0]])
    bias = logit_bias(distance, 3, torch.tensor([-0.5, 1.0]), sigmoid_bias=0.25)
    inf = -math.inf
    assert bias.tolist() == [[[0.25, inf], [-0.75, -0.25], [inf, 0.25]], [[0.25, inf], [2.25, 1.25], [inf, 0.25]]]
    assert logit_bias(distance, None).tolist() == [[[0, inf], [0, 0], [0, 0]]]


def test_equation_5_in_one_line():
    """o_m = sum_n sigma((R_m q_m).(R_n k_n) / sqrt(d) + s (m - n)) v_n, written out for one query."""
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64, generator=g) for _ in range(3))
    slopes, m, window = balanced_slopes(2).double(), 6, 4
    where = torch.arange(9)
    out = sliding_window_attention(rotary(q, where), rotary(k, where), v, window=window, slopes=slopes)
    for h in range(2):
        expected = sum(
            torch.sigmoid(
                rotary(q, where)[0, h, m] @ rotary(k, where)[0, h, n] / 2 + slopes[h] * (m - n)
            ) * v[0, h, n]
            for n in range(m - window + 1, m + 1)
        )  # fmt: skip
        torch.testing.assert_close(out[0, h, m], expected)


def test_receptive_field():
    assert receptive_field(3, 2) == 5  # the paper's example, section 3
    assert receptive_field(1, 7) == 1
    assert receptive_field(128, 24) == 3049
    assert receptive_field(9, 0) == 1
    for bad in ((0, 1), (3, -1)):
        with pytest.raises(ValueError):
            receptive_field(*bad)


def test_row_mass_is_the_sum_of_weights_without_content():
    slopes = torch.tensor([-0.5, -0.25, 0.0, 0.25])
    assert row_mass(128, slopes).tolist() == pytest.approx([1.65, 3.03, 64.0, 125.0], abs=0.06)
    zero = torch.zeros(1, 4, 40, 2)
    for bias in (0.0, -3.0):
        A = attention_weights(zero, zero, window=16, slopes=slopes, sigmoid_bias=bias)
        torch.testing.assert_close(A.sum(-1)[0, :, -1], row_mass(16, slopes, bias))
