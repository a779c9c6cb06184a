"""One new query per row against a cache, whatever the order of its slots: two passes, as a weight needs the sum first.

The first pass reads the keys and keeps the scores, the second reads scores and values; each is cut into parts that
programs share. A tile of values in which no key is active is not read. K must be read whole, so a sparse row saves at
most half of the traffic.
"""

from __future__ import annotations

import math

import torch

from zfu_kernels.checks import check_bias, check_decode, check_per_head, check_window, runs_on_gpu
from zfu_kernels.elastic_softmax.reference import distance_bias, elastic_weights


def elastic_softmax_decode(
    q_BHD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSD: torch.Tensor,
    distance: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """o = sum_n ReLU(softmax_n(q k_n / sqrt(D) + b_h[distance_n]) + tau_h / i) v_n, i the number of keys that are seen.

    Args:
        q_BHD: one query per row ``[B, H, D]``, already rotated.
        k_BKSD, v_BKSD: the slots of a cache ``[B, Hkv, S, D]``, keys rotated where they stood.
        distance: integers ``[S]`` or ``[B, S]``, how far before the query a slot's key stands; negative where a slot is
            empty or hidden. A row that sees no slot gives 0.
        bias, tau, window: as for :func:`~zfu_kernels.elastic_softmax.elastic_softmax_attention`.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``.

    Returns:
        ``[B, H, D]`` in the dtype of ``q_BHD``. The Triton kernels have no gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, window below 1, an unknown backend.
    """
    check_decode(q_BHD, k_BKSD, v_BKSD, distance, backend)
    check_window(window)
    check_per_head("tau", tau, q_BHD.shape[1], q_BHD.device)
    check_bias(bias, q_BHD.shape[1], q_BHD.device)
    distance = distance.expand(q_BHD.shape[0], -1)
    if backend == "triton" or (backend == "auto" and runs_on_gpu(q_BHD)):
        from zfu_kernels.elastic_softmax.triton import decode

        reach = 2**31 - 1 if window is None else window
        bias, tau = (None if x is None else x.float().contiguous() for x in (bias, tau))
        return decode(q_BHD, k_BKSD, v_BKSD, distance, bias, tau, reach)
    group = q_BHD.shape[1] // k_BKSD.shape[1]
    k_BHSD, v_BHSD = (x.repeat_interleave(group, dim=1) for x in (k_BKSD, v_BKSD))
    dtype = torch.promote_types(q_BHD.dtype, torch.float32)
    z_BH1S = q_BHD[:, :, None].to(dtype) @ k_BHSD.to(dtype).mT / math.sqrt(q_BHD.shape[-1])
    if bias is not None:
        z_BH1S = z_BH1S + distance_bias(bias.to(dtype), distance).transpose(0, 1)[:, :, None]
    seen_B11S = ((distance >= 0) & (distance < (math.inf if window is None else window)))[:, None, None]
    w_BH1S = elastic_weights(z_BH1S, seen_B11S, seen_B11S.sum(-1, keepdim=True), tau)
    return (w_BH1S.to(v_BHSD.dtype) @ v_BHSD).squeeze(2)
