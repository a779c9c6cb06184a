"""One new query per row against a cache, whatever the order of its slots: a sum has none, a slot knows its distance.

Reading the cache is the whole cost: 2 * window * D numbers per key head. One program reads a head's slots for all the
query heads that share it. Where that would leave most of a GPU idle, several programs take a part of the slots each; a
sigmoid needs nothing from the other parts, so the partial outputs simply add up.
"""

from __future__ import annotations

import math

import torch

from zfu_kernels.checks import check_decode, check_per_head, check_window, runs_on_gpu


def sliding_window_decode(
    q_BHD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSD: torch.Tensor,
    distance: torch.Tensor,
    *,
    window: int | None = None,
    slopes: torch.Tensor | None = None,
    sigmoid_bias: float = 0.0,
    backend: str = "auto",
) -> torch.Tensor:
    """o = sum_n sigmoid(q k_n / sqrt(D) + s_h distance_n + sigmoid_bias) v_n over 0 <= distance_n < window (Eq. 5).

    Args:
        q_BHD: one query per row ``[B, H, D]``, already rotated.
        k_BKSD, v_BKSD: the slots of a cache ``[B, Hkv, S, D]``, keys rotated where they stood.
        distance: integers ``[S]`` or ``[B, S]``, how far before the query a slot's key stands; negative where a slot is
            empty or hidden. A row that sees no slot gives 0.
        window, slopes, sigmoid_bias: as for :func:`~zfu_kernels.sigmoid_window.sliding_window_attention`.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``.

    Returns:
        ``[B, H, D]`` in the dtype of ``q_BHD``. The Triton kernel has no gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, window below 1, an unknown backend.
    """
    check_decode(q_BHD, k_BKSD, v_BKSD, distance, backend)
    check_window(window)
    check_per_head("slopes", slopes, q_BHD.shape[1], q_BHD.device)
    distance = distance.expand(q_BHD.shape[0], -1)
    if backend == "triton" or (backend == "auto" and runs_on_gpu(q_BHD)):
        from zfu_kernels.sigmoid_window.triton import decode

        reach = 2**31 - 1 if window is None else window
        slopes = None if slopes is None else slopes.float().contiguous()
        return decode(q_BHD, k_BKSD, v_BKSD, distance, slopes, reach, float(sigmoid_bias))
    group = q_BHD.shape[1] // k_BKSD.shape[1]
    k_BHSD, v_BHSD = (x.repeat_interleave(group, dim=1) for x in (k_BKSD, v_BKSD))
    z_BHS = (k_BHSD @ q_BHD[..., None]).squeeze(-1) / math.sqrt(q_BHD.shape[-1]) + sigmoid_bias
    if slopes is not None:
        z_BHS = z_BHS + slopes.to(z_BHS.dtype)[:, None] * distance[:, None]
    seen_BS = (distance >= 0) & (distance < (math.inf if window is None else window))
    A_BHS = torch.sigmoid(z_BHS).masked_fill(~seen_BS[:, None], 0.0)
    return (A_BHS[:, :, None] @ v_BHSD).squeeze(2)
