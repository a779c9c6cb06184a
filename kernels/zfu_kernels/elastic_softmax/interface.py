"""The one entry point: checks its input, then picks an implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zfu_kernels.checks import check_bias, check_document, check_per_head, check_qkv, check_window, runs_on_gpu
from zfu_kernels.elastic_softmax.banded import elastic_softmax_attention_banded
from zfu_kernels.elastic_softmax.reference import elastic_softmax_attention_reference


def _on_gpu(*tensors: torch.Tensor, **options) -> torch.Tensor:
    # Triton exists on Linux only, and takes a third of a second to import.
    from zfu_kernels.elastic_softmax.triton import elastic_softmax_attention_triton

    return elastic_softmax_attention_triton(*tensors, **options)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": elastic_softmax_attention_reference,
    "banded": elastic_softmax_attention_banded,
    "triton": _on_gpu,
}


def elastic_softmax_attention(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    window: int | None = None,
    document: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """o_m = sum_n w_mn v_n with w = ReLU(softmax(q.k / sqrt(D) + b_h[m - n]) + tau_h / i) (Lazy Attention, Eq. 4, 5).

    Causal, and not renormalised: the weights of a row sum to at most 1 for tau <= 0. i counts the keys that the query
    sees. Rotations are the caller's: pass rotated q and k.

    Args:
        q_BHTD: queries ``[B, H, T, D]``, fp64, fp32, bf16 or fp16.
        k_BHTD, v_BHTD: keys and values ``[B, Hkv, T, D]`` with H a multiple of Hkv; query head h reads key head
            ``h // (H / Hkv)``.
        bias: ``[H, W]``, one number per query head and distance 0 ... W-1; 0 beyond; None for none. Keep it in fp32.
        tau: ``[H]``, one offset per query head; negative takes mass away, positive adds it; None for plain softmax.
            Keep it in fp32.
        window: how many keys a query sees, itself included; None, or anything >= T, for all earlier ones. Not in the
            paper: i is then min(i, window).
        document: integers ``[B, T]`` for packed documents; a new one begins wherever the number changes. Nothing
            is seen across, and distances and i count inside.
        backend: ``"reference"`` dense, O(T^2); ``"banded"`` O(T * window), document by document; ``"triton"`` O(T *
            window) for GPUs, up to D = 256, not in fp64; ``"auto"`` takes ``"triton"`` where it can and else chooses by
            size.

    Gradients reach q, k, v and, where they require one, bias and tau.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an empty dimension, ``window`` below 1, a bias
            that is not ``[H, W]``, a tau that is not ``[H]``, documents that are not integers ``[B, T]``, an unknown
            backend, tensors that the backend cannot take.
    """
    _check(q_BHTD, k_BHTD, v_BHTD, bias, tau, window, document, backend)
    if backend == "auto":
        backend = _choose_backend(q_BHTD, document)
    group = q_BHTD.shape[1] // k_BHTD.shape[1]
    if group > 1 and backend != "triton":
        k_BHTD, v_BHTD = (x.repeat_interleave(group, dim=1) for x in (k_BHTD, v_BHTD))
    return BACKENDS[backend](q_BHTD, k_BHTD, v_BHTD, bias=bias, tau=tau, window=window, document=document)


def _choose_backend(q_BHTD: torch.Tensor, document: torch.Tensor | None) -> str:
    """The band costs a few calls per chunk and saves work per weight; of packed documents it takes one at a time."""
    if runs_on_gpu(q_BHTD):
        return "triton"
    B, H, T, _ = q_BHTD.shape
    large = B * H * T * T >= 1 << 17 if document is None else H * T * T >= 1 << 22
    return "banded" if large else "reference"


def _check(q, k, v, bias, tau, window, document, backend) -> None:
    check_qkv(q, k, v)
    check_window(window)
    H = q.shape[1]
    check_per_head("tau", tau, H, q.device)
    check_bias(bias, H, q.device)
    check_document(document, q)
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
