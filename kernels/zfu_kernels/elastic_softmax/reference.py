"""The operator as the paper writes it: dense, readable, differentiable, right in every dtype. O(T^2) time and memory.

Letters: B batch, H heads, T positions (S where keys are counted apart), D head width, W distances of the bias table;
m is the query's position, n the key's, both from 0. The paper's i, from 1, counts the keys that query m sees.
"""

from __future__ import annotations

import math

import torch

from zfu_kernels.documents import document_starts


def distance_bias(bias_HW: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """b_h of Eq. 4 at each distance: the table, and 0 beyond its length. ``[H, *distance.shape]``."""
    W = bias_HW.shape[1]
    return bias_HW[:, distance.clamp(0, W - 1)] * (distance < W)


def elastic_weights(
    z_BHTS: torch.Tensor, seen: torch.Tensor, count: torch.Tensor | int, tau_H: torch.Tensor | None
) -> torch.Tensor:
    """ReLU(softmax(z) + tau_h / i) on the keys that are seen, exactly 0 elsewhere (Eq. 5). Not renormalised.

    Args:
        z_BHTS: logits, fp32 or fp64: at tau = -1 a weight may be the difference of two numbers near 1/i.
        seen: bool, broadcasts to ``[B, H, T, S]``; a row that sees no key has only zeros.
        count: i, how many keys a row sees; broadcasts to ``[B, H, T, 1]``.
        tau_H: offsets; negative takes mass away, positive adds it; None for plain softmax.
    """
    w_BHTS = torch.softmax(z_BHTS.masked_fill(~seen, -math.inf), dim=-1)
    if tau_H is not None:
        w_BHTS = torch.relu(w_BHTS + tau_H.to(w_BHTS.dtype)[:, None, None] / count)
    return w_BHTS.masked_fill(~seen, 0.0)


def attention_weights(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    window: int | None = None,
    document: torch.Tensor | None = None,
) -> torch.Tensor:
    """w_mn = ReLU(softmax_n(q_m.k_n / sqrt(D) + b_h[m - n]) + tau_h / i) for the keys n <= m that m sees.

    Args:
        q_BHTD, k_BHTD: queries and keys ``[B, H, T, D]``, already rotated if RoPE is wanted.
        bias: ``[H, W]``, b of Eq. 4 for the distances 0 ... W-1, 0 beyond; None for none.
        tau: ``[H]``, offsets of Eq. 5 with the sign of the public code; None for plain softmax.
        window: keys a query sees, itself included; None for all earlier ones. An extension: i is then min(i, window).
        document: integers ``[B, T]``; a query sees only keys of its own run of equal numbers, and i counts inside it.

    Returns:
        ``[B, H, T, T]``, fp32 for half precision, else the dtype of ``q_BHTD``.
    """
    T, D = q_BHTD.shape[-2:]
    dtype = q_BHTD.dtype if q_BHTD.dtype in (torch.float32, torch.float64) else torch.float32
    position_T = torch.arange(T, device=q_BHTD.device)
    distance_TT = position_T[:, None] - position_T[None, :]
    seen = (distance_TT >= 0) & (distance_TT < (T if window is None else window))
    count = position_T[:, None] + 1
    if document is not None:
        start_BT = document_starts(document)
        seen = seen & (start_BT[:, None, :, None] == start_BT[:, None, None, :])
        count = (position_T - start_BT + 1)[:, None, :, None]
    if window is not None:
        count = count.clamp_max(window)

    z_BHTT = q_BHTD.to(dtype) @ k_BHTD.to(dtype).transpose(-2, -1) / math.sqrt(D)
    if bias is not None:
        z_BHTT = z_BHTT + distance_bias(bias.to(dtype), distance_TT)
    return elastic_weights(z_BHTT, seen, count, tau)


def elastic_softmax_attention_reference(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, **options
) -> torch.Tensor:
    """o_m = sum_n w_mn v_n; the options are those of :func:`attention_weights`. Returns ``[B, H, T, D]``."""
    return attention_weights(q_BHTD, k_BHTD, **options).to(v_BHTD.dtype) @ v_BHTD
