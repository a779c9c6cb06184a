"""The one entry point: checks its input, then picks an implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zfu_kernels.checks import check_document, check_per_head, check_qkv, check_window, runs_on_gpu
from zfu_kernels.sigmoid_window.banded import sliding_window_attention_banded
from zfu_kernels.sigmoid_window.reference import sliding_window_attention_reference

ACTIVATIONS = ("sigmoid", "softmax")


def _on_gpu(*tensors: torch.Tensor, **options) -> torch.Tensor:
    # Triton exists on Linux only, and takes a third of a second to import.
    from zfu_kernels.sigmoid_window.triton import sliding_window_attention_triton

    return sliding_window_attention_triton(*tensors, **options)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": sliding_window_attention_reference,
    "banded": sliding_window_attention_banded,
    "triton": _on_gpu,
}


def sliding_window_attention(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    window: int | None,
    slopes: torch.Tensor | None = None,
    activation: str = "sigmoid",
    sigmoid_bias: float = 0.0,
    document: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """o_m = sum_n act(q_m k_n / sqrt(D) + s_h (m - n) + sigmoid_bias) v_n over 0 <= m - n < window (SWAT, Eq. 5).

    The rotations of Eq. 5 are the caller's: pass rotated q and k. Causal in every case.

    Args:
        q_BHTD: queries ``[B, H, T, D]``, fp64, fp32, bf16 or fp16.
        k_BHTD, v_BHTD: keys and values ``[B, Hkv, T, D]`` with H a multiple of Hkv; query head h reads key head
            ``h // (H / Hkv)``.
        window: how many keys a query sees, itself included; None, or anything >= T, for all earlier ones.
        slopes: ``[H]`` with the paper's sign (s < 0 favours recent keys, s > 0 old ones); None for no distance term.
            Gets a gradient if it requires one.
        activation: ``"sigmoid"``, no normaliser (the paper), or ``"softmax"`` over the window (the released code).
        sigmoid_bias: constant added to every logit; 0 in the paper, no effect under softmax.
        document: integers ``[B, T]`` for packed documents; a new one begins wherever the number changes, and nothing is
            seen across.
        backend: ``"reference"`` dense, O(T^2); ``"banded"`` O(T * window); ``"triton"`` the same for GPUs, D <= 256,
            not in fp64; ``"auto"`` takes ``"triton"`` where it can and else chooses by size.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an empty dimension, ``window`` below 1, slopes
            that are not ``[H]``, documents that are not integers ``[B, T]``, an unknown activation or backend, tensors
            that the backend cannot take.
    """
    _check(q_BHTD, k_BHTD, v_BHTD, window, slopes, activation, document, backend)
    if backend == "auto":
        backend = _choose_backend(q_BHTD)
    group = q_BHTD.shape[1] // k_BHTD.shape[1]
    if group > 1 and backend != "triton":
        k_BHTD, v_BHTD = (x.repeat_interleave(group, dim=1) for x in (k_BHTD, v_BHTD))
    return BACKENDS[backend](
        q_BHTD, k_BHTD, v_BHTD, window=window, slopes=slopes, activation=activation, sigmoid_bias=sigmoid_bias,
        document=document,
    )  # fmt: skip


def _choose_backend(q_BHTD: torch.Tensor) -> str:
    """The band costs a few calls per chunk and saves work per weight: half the square even without a window."""
    if runs_on_gpu(q_BHTD):
        return "triton"
    B, H, T, _ = q_BHTD.shape
    return "banded" if B * H * T * T >= 1 << 17 else "reference"


def _check(q, k, v, window, slopes, activation, document, backend) -> None:
    check_qkv(q, k, v)
    check_window(window)
    check_per_head("slopes", slopes, q.shape[1], q.device)
    check_document(document, q)
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
