"""The operator as the paper writes it: dense, readable, differentiable, right in every dtype. O(T^2) time and memory.

Letters: B batch, H heads, T positions, D head width; m is the query's position, n the key's.

With ``window = 3`` position m sees itself and the two before it; ``x`` is a weight, ``.`` an exact zero::

        n  0 1 2 3 4
    m=0    x . . . .
    m=1    x x . . .
    m=2    x x x . .
    m=3    . x x x .
    m=4    . . x x x
"""

from __future__ import annotations

import math

import torch

from zfu_kernels.documents import document_starts


def attention_weights(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    *,
    window: int | None,
    slopes: torch.Tensor | None = None,
    activation: str = "sigmoid",
    sigmoid_bias: float = 0.0,
    document: torch.Tensor | None = None,
) -> torch.Tensor:
    """A_mn of Eq. 5: act(q_m k_n / sqrt(D) + s_h (m - n) + sigmoid_bias) if 0 <= m - n < window, else exactly 0.

    Args:
        q_BHTD, k_BHTD: queries and keys ``[B, H, T, D]``, already rotated if RoPE is wanted.
        window: keys a query sees, itself included; None for all earlier ones.
        slopes: ``[H]``, s of Eq. 3 with the paper's sign (negative favours recent keys); None for no distance term.
        activation: ``"sigmoid"``, no normaliser, or ``"softmax"`` over the keys in the window.
        sigmoid_bias: a constant added to every logit (0 in the paper; it cancels under softmax).
        document: integers ``[B, T]``; a query sees only keys of its own run of equal numbers.

    Returns:
        ``[B, H, T, T]`` in the dtype of ``q_BHTD``.
    """
    T, D = q_BHTD.shape[-2:]
    position = torch.arange(T, device=q_BHTD.device)
    distance_TT = position[:, None] - position[None, :]
    seen = (distance_TT >= 0) & (distance_TT < (T if window is None else window))
    if document is not None:
        start_BT = document_starts(document)
        seen = seen & (start_BT[:, None, :, None] == start_BT[:, None, None, :])

    z_BHTT = q_BHTD @ k_BHTD.transpose(-2, -1) / math.sqrt(D) + sigmoid_bias
    if slopes is not None:
        z_BHTT = z_BHTT + slopes.to(z_BHTT.dtype)[:, None, None] * distance_TT
    if activation == "sigmoid":
        return torch.sigmoid(z_BHTT).masked_fill(~seen, 0.0)
    return torch.softmax(z_BHTT.masked_fill(~seen, -math.inf), dim=-1)


def sliding_window_attention_reference(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, **options
) -> torch.Tensor:
    """o_m = sum_n A_mn v_n (Eq. 5); the options are those of :func:`attention_weights`. Returns ``[B, H, T, D]``."""
    return attention_weights(q_BHTD, k_BHTD, **options) @ v_BHTD
