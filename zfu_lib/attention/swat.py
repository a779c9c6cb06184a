"""SWAT, sliding window attention training, in the order of the paper's section 4. arXiv 2502.18845.

1. Softmax lets keys compete and parks what is left over on the first token; a sigmoid per key does not (Eq. 2).
2. A sigmoid keeps everything, so each head gets a slope on distance that tells the keys apart (Eq. 3); half of the
   heads lean to recent keys, half to old ones (Eq. 4): :func:`balanced_slopes`.
3. Queries and keys stay rotated, for stable training: :func:`rotary`.
4. A query sees a window of keys (Eq. 5): :func:`sliding_window_attention`. Depth carries what the window leaves
   behind (section 3): :func:`receptive_field`.

Letters: B batch, H heads, T positions (S where keys are counted apart), D head width.
"""

from __future__ import annotations

import math

import torch

from zfu_lib.attention.ops import attention_weights, sliding_window_attention

__all__ = [
    "SLOPE_MODES",
    "attention_weights",
    "balanced_slopes",
    "logit_bias",
    "receptive_field",
    "rotary",
    "rotary_table",
    "rotate",
    "row_mass",
    "sliding_window_attention",
]

SLOPE_MODES = ("recency", "history", "balanced")


def balanced_slopes(num_heads: int, mode: str = "balanced", ratio: tuple[int, int] | None = None) -> torch.Tensor:
    """s_h of Eq. 3, one fixed number per head; a logit gets + s_h (m - n).

    ``"balanced"``, SWAT(-+), is Eq. 4: recency heads first with -2^-k, then history heads with +2^-k, k = 1 ... h/2.
    With ``ratio = (a, b)`` there are a recency and b history heads ("ALiBi-8:4" of section 5.4 is ``(8, 4)``); Eq. 4
    does not cover a != b, here k runs from 1 to the size of each group.

    ``"recency"``, SWAT(-), and ``"history"``, SWAT(+), use -+2^(-8k/h), k = 1 ... h, the ALiBi slopes of the public
    code; the paper does not say which slopes it used for them.

    Returns:
        fp32 ``[num_heads]``.

    Raises:
        ValueError: no heads, an unknown mode, an odd number of heads to balance without a ratio, a ratio given to
            another mode or not summing to ``num_heads``.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    if mode not in SLOPE_MODES:
        raise ValueError(f"unknown slope mode {mode!r}; choose one of {', '.join(SLOPE_MODES)}")
    if mode != "balanced":
        if ratio is not None:
            raise ValueError(f"ratio {ratio} splits balanced slopes, mode {mode!r} has one direction; drop one of them")
        k = torch.arange(1, num_heads + 1, dtype=torch.float32)
        return (-1 if mode == "recency" else 1) * 2 ** (-8 * k / num_heads)
    if ratio is None:
        if num_heads % 2:
            raise ValueError(f"{num_heads} heads have no half (Eq. 4); give a ratio, such as ({num_heads - 1}, 1)")
        ratio = (num_heads // 2, num_heads // 2)
    recency, history = ratio
    if recency < 0 or history < 0 or recency + history != num_heads:
        raise ValueError(f"ratio {recency}:{history} must count all {num_heads} heads, recency : history")
    magnitude = 2.0 ** -torch.arange(1, max(ratio) + 1, dtype=torch.float32)
    return torch.cat([-magnitude[:recency], magnitude[:history]])


def rotary_table(positions: torch.Tensor, width: int, theta: float = 10000.0) -> torch.Tensor:
    """exp(i m theta^(-2j/D)) for j = 0 ... D/2 - 1: complex64 ``[T, D/2]`` for positions m ``[T]``.

    Angles are taken in fp64, since fp32 loses digits at positions of tens of thousands. fp64 positions keep the table
    complex128.
    """
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width)
    angle = positions.double()[:, None] * frequency
    table = torch.polar(torch.ones_like(angle), angle)
    return table if positions.dtype == torch.float64 else table.to(torch.complex64)


def rotary(x: torch.Tensor, positions: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """R_m x_m: every pair (x_2j, x_2j+1) turned by the angle m theta^(-2j/D), as in RoFormer, so that
    (R_m q) . (R_n k) depends on positions through m - n alone.

    Args:
        x: ``[..., T, D]``, D even.
        positions: ``[T]``.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: odd D, or as many positions as rows are not given.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"rotary turns pairs of channels, got an odd width {x.shape[-1]}")
    if positions.shape != x.shape[-2:-1]:
        raise ValueError(f"x {tuple(x.shape)} needs {x.shape[-2]} positions, got {tuple(positions.shape)}")
    positions = positions.double() if x.dtype == torch.float64 else positions
    return rotate(x, rotary_table(positions, x.shape[-1], theta))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """:func:`rotary` with the table at hand, for a model that uses one table in all its layers."""
    real = x if x.dtype in (torch.float32, torch.float64) else x.float()
    turned = torch.view_as_complex(real.unflatten(-1, (-1, 2))) * table
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def logit_bias(
    distance_TS: torch.Tensor, window: int | None, slopes: torch.Tensor | None = None, sigmoid_bias: float = 0.0
) -> torch.Tensor:
    """What Eq. 5 adds to q.k/sqrt(D): s_h (m - n) + b inside the window, -inf outside, for any set of distances m - n.

    Args:
        distance_TS: integers m - n ``[T, S]``.

    Returns:
        ``[H, T, S]``, or ``[1, T, S]`` without slopes; the dtype of ``slopes``, else fp32.
    """
    seen = distance_TS >= 0
    if window is not None:
        seen = seen & (distance_TS < window)
    if slopes is None:
        bias = torch.full((1, *distance_TS.shape), sigmoid_bias, device=distance_TS.device)
    else:
        bias = slopes[:, None, None] * distance_TS + sigmoid_bias
    return bias.masked_fill(~seen, -math.inf)


def receptive_field(window: int, layers: int) -> int:
    """1 + (w - 1) L: how many inputs, itself included, can reach a token through L layers (section 3).

    Raises:
        ValueError: window below 1 or a negative number of layers.
    """
    if window < 1 or layers < 0:
        raise ValueError(f"need window >= 1 and layers >= 0, got {window} and {layers}")
    return 1 + (window - 1) * layers


def row_mass(window: int, slopes: torch.Tensor, sigmoid_bias: float = 0.0) -> torch.Tensor:
    """sum over the window of sigma(s_h (m - n) + b): the total weight of a full row when q.k = 0 (fp32 ``[H]``).

    Softmax always gives 1. Without a normaliser the mass sets the scale of a head's output before anything is learnt:
    about ln 2 / |s| + 1/4 for s < 0, near the window's length for s > 0.
    """
    distance = torch.arange(window, device=slopes.device)
    return torch.sigmoid(slopes[:, None] * distance + sigmoid_bias).sum(-1)
