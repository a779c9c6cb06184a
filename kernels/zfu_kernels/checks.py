"""Checks of what all attention operators take, with errors that say what was given and what to do."""

from __future__ import annotations

import importlib.util

import torch


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """q is ``[B, H, T, D]``, k and v are ``[B, Hkv, T, D]`` with H a multiple of Hkv; one floating dtype, one device.

    Raises:
        ValueError: whatever of this does not hold, or an empty dimension.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or x.ndim != 4:
            got = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a tensor [B, H, T, D], got {got}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
        if 0 in x.shape:
            raise ValueError(f"{name} is empty, shape {tuple(x.shape)}: every dimension must be at least 1")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"q is {q.dtype} on {q.device} but {name} is {x.dtype} on {x.device}; convert one of them")
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    (B, H, T, D), (Bk, Hk, Tk, Dk) = q.shape, k.shape
    if (Bk, Tk, Dk) != (B, T, D):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in B, T and D")
    if H % Hk:
        raise ValueError(f"{H} query heads cannot share {Hk} key heads: H must be a multiple of the heads of k and v")


def check_window(window: int | None) -> None:
    """None, or an integer of at least 1."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"window counts the query itself, so it is an integer >= 1, or None; got {window!r}")


def check_per_head(name: str, x: torch.Tensor | None, heads: int, device: torch.device) -> None:
    """None, or one floating number per query head."""
    if x is not None and (not isinstance(x, torch.Tensor) or tuple(x.shape) != (heads,)):
        got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a tensor with one number per query head, shape ({heads},); got {got}")
    if x is not None and (not x.is_floating_point() or x.device != device):
        raise ValueError(f"{name} must be floating point on {device}, got {x.dtype} on {x.device}")


def check_document(document: torch.Tensor | None, q: torch.Tensor) -> None:
    """None, or one integer per position."""
    shape = (q.shape[0], q.shape[2])
    if document is not None:
        if not isinstance(document, torch.Tensor) or tuple(document.shape) != shape:
            got = tuple(document.shape) if isinstance(document, torch.Tensor) else type(document).__name__
            raise ValueError(f"document must be a tensor with one integer per position, shape {shape}; got {got}")
        if document.is_floating_point() or document.is_complex() or document.device != q.device:
            raise ValueError(f"document must hold integers on {q.device}, got {document.dtype} on {document.device}")


def check_bias(bias: torch.Tensor | None, heads: int, device: torch.device) -> None:
    """None, or a table of floating numbers, one per query head and distance."""
    if bias is None:
        return
    if not isinstance(bias, torch.Tensor) or bias.ndim != 2 or bias.shape[0] != heads or not bias.shape[1]:
        got = tuple(bias.shape) if isinstance(bias, torch.Tensor) else type(bias).__name__
        raise ValueError(f"bias must be a tensor [query heads, distances], here ({heads}, W) with W >= 1; got {got}")
    if not bias.is_floating_point() or bias.device != device:
        raise ValueError(f"bias must be floating point on {device}, got {bias.dtype} on {bias.device}")


def check_decode(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, distance: torch.Tensor, backend: str) -> None:
    """q is ``[B, H, D]``, k and v are slots ``[B, Hkv, S, D]``, distance is ``[S]`` or ``[B, S]`` of integers."""
    if not isinstance(q, torch.Tensor) or q.ndim != 3:
        got = f"shape {tuple(q.shape)}" if isinstance(q, torch.Tensor) else type(q).__name__
        raise ValueError(f"q must be a tensor [B, H, D], one query per row; got {got}")
    S = k.shape[2] if isinstance(k, torch.Tensor) and k.ndim == 4 else 1
    check_qkv(q[:, :, None].expand(-1, -1, max(S, 1), -1), k, v)
    if not isinstance(distance, torch.Tensor) or tuple(distance.shape) not in ((S,), (q.shape[0], S)):
        got = tuple(distance.shape) if isinstance(distance, torch.Tensor) else type(distance).__name__
        raise ValueError(
            f"distance must be a tensor with an integer per slot, ({S},) or ({q.shape[0]}, {S}); got {got}"
        )
    if distance.is_floating_point() or distance.device != q.device:
        raise ValueError(f"distance must hold integers on {q.device}, got {distance.dtype} on {distance.device}")
    if backend not in ("auto", "reference", "triton"):
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, reference, triton")


def runs_on_gpu(q: torch.Tensor) -> bool:
    """Whether the Triton kernels can take ``q``: a CUDA device, Triton installed, a dtype and a width of theirs."""
    if not q.is_cuda or importlib.util.find_spec("triton") is None:
        return False
    from zfu_kernels.tiles import refuse

    return refuse(q) is None
