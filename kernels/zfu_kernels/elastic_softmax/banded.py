"""The same operator in chunks of rows: only the causal band of keys is ever computed, in a buffer that is reused.

The chunks and tiles of :mod:`zfu_kernels.band`; a tile holds b[m - n] and the mask. A step of the forward pass is
``baddbmm``, softmax, offset, ReLU and ``bmm``. The backward pass recomputes p and w and needs, with G = dO v,

    dV = w dO,   dS = p (1[w > 0] G - sum_n p 1[w > 0] G),   dtau = sum 1[w > 0] G / i,   db[d] = sum over m-n=d of dS,

where inactive keys keep a gradient, -p sum(...), because they are part of the normaliser.
"""

from __future__ import annotations

import math

import torch
from torch.autograd.function import once_differentiable

from zfu_kernels.band import Plan, Step, bmm_into, distance_tile, view
from zfu_kernels.documents import each_document
from zfu_kernels.elastic_softmax.reference import distance_bias


def _plan(q_GTD: torch.Tensor, bias_HW: torch.Tensor, window: int, *, backward: bool) -> Plan:
    def tile(rows: int, keys: int, copies: int) -> torch.Tensor:
        # One row per head from the farthest key to the nearest; the tile's row c is the same row shifted by c.
        distance_N = torch.arange(keys - 1, -rows, -1, device=q_GTD.device)
        row_HN = distance_bias(bias_HW.to(q_GTD.dtype), distance_N)
        row_HN = row_HN.masked_fill((distance_N < 0) | (distance_N >= window), -math.inf)
        return row_HN.unfold(1, keys, 1).flip(1).repeat(copies, 1, 1)

    return Plan(q_GTD, len(bias_HW), window, tile, backward=backward)


def _probabilities(step: Step, buffer, q_GTD, k_GTD) -> torch.Tensor:
    p_MCK = view(buffer, step.matrices, step.rows, step.keys)
    scale = 1.0 / math.sqrt(q_GTD.shape[-1])
    torch.baddbmm(step.tile_MCK, step.queries(q_GTD), step.window(k_GTD).transpose(1, 2), alpha=scale, out=p_MCK)
    return torch.softmax(p_MCK, dim=-1, out=p_MCK)


def _inverse_count(step: Step, T: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """1/i of the rows of a step, ``[C, 1]``; consecutive chunks of one head all see full windows."""
    first = step.first_row % T + 1
    return (
        torch.arange(first, first + step.rows, device=like.device)
        .clamp_max(window)
        .to(like.dtype)
        .reciprocal_()[:, None]
    )


def _elastic_(
    w_MCK: torch.Tensor, step: Step, tau_H: torch.Tensor, inverse_C1: torch.Tensor, adds: bool
) -> torch.Tensor:
    """ReLU(p + tau_h / i), in place."""
    tau_M = tau_H.repeat(step.matrices // len(tau_H)) if step.head is None else tau_H[step.head : step.head + 1]
    w_MCK.add_(tau_M[:, None, None] * inverse_C1).relu_()
    if adds:  # a hidden key has p = 0, which only a positive offset lifts
        w_MCK.masked_fill_(step.tile_MCK == -math.inf, 0.0)
    return w_MCK


class _BandedElastic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_GTD, k_GTD, v_GTD, bias_HW, tau_H, window: int):
        ctx.save_for_backward(q_GTD, k_GTD, v_GTD, bias_HW, tau_H)
        ctx.window = window
        ctx.adds = tau_H is not None and bool((tau_H > 0).any())
        T, D = q_GTD.shape[1:]
        plan = _plan(q_GTD, bias_HW, window, backward=False)
        buffer = q_GTD.new_empty(plan.buffer_elements)
        o_GTD = torch.empty_like(q_GTD)
        for step in plan.steps(D):
            w_MCK = _probabilities(step, buffer, q_GTD, k_GTD)
            if tau_H is not None:
                _elastic_(w_MCK, step, tau_H, _inverse_count(step, T, window, q_GTD), ctx.adds)
            bmm_into(step.queries(o_GTD), w_MCK, step.window(v_GTD))
        return o_GTD

    @staticmethod
    @once_differentiable
    def backward(ctx, do_GTD):
        q_GTD, k_GTD, v_GTD, bias_HW, tau_H = ctx.saved_tensors
        window = ctx.window
        do_GTD = do_GTD.contiguous()
        (T, D), (H, W) = q_GTD.shape[1:], bias_HW.shape
        plan = _plan(q_GTD, bias_HW, window, backward=True)
        buffer_p, buffer_w, buffer_G = q_GTD.new_empty(3, plan.buffer_elements)
        dq_GTD, dk_GTD, dv_GTD = torch.empty_like(q_GTD), torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        d_tau_H = q_GTD.new_zeros(H) if ctx.needs_input_grad[4] else None
        # The gradient of a tile, from the first column that the bias table reaches.
        reached = max(0, plan.tile.shape[-1] - plan.C - W + 1)
        d_tile_HCK = torch.zeros_like(plan.tile[:H, :, reached:]) if ctx.needs_input_grad[3] else None
        for step in plan.steps(D):
            q, k, v, do = step.queries(q_GTD), step.window(k_GTD), step.window(v_GTD), step.queries(do_GTD)
            p_MCK = w_MCK = _probabilities(step, buffer_p, q_GTD, k_GTD)
            if tau_H is not None:
                inverse_C1 = _inverse_count(step, T, window, q_GTD)
                w_MCK = view(buffer_w, *p_MCK.shape).copy_(p_MCK)
                _elastic_(w_MCK, step, tau_H, inverse_C1, ctx.adds)
            step.add_to_window(dv_GTD, torch.bmm(w_MCK.transpose(1, 2), do))
            G_MCK = torch.bmm(do, v.transpose(1, 2), out=view(buffer_G, *p_MCK.shape))
            if tau_H is not None:
                torch.ops.aten.threshold_backward.grad_input(G_MCK, w_MCK, 0, grad_input=G_MCK)
                if d_tau_H is not None:
                    d_tau_M = (G_MCK.sum(-1) @ inverse_C1)[:, 0]
                    if step.head is None:
                        d_tau_H += d_tau_M.view(-1, H).sum(0)
                    else:
                        d_tau_H[step.head] += d_tau_M.sum()
            dS_MCK = torch.ops.aten._softmax_backward_data.out(G_MCK, p_MCK, -1, p_MCK.dtype, grad_input=G_MCK)
            bmm_into(step.queries(dq_GTD), dS_MCK, k)
            step.add_to_window(dk_GTD, torch.bmm(dS_MCK.transpose(1, 2), q))
            if d_tile_HCK is not None:
                skip = max(0, reached - step.left)
                columns = slice(step.left + skip - reached, step.left + step.keys - reached)
                near_MCK = dS_MCK[..., skip:]
                if step.head is None:
                    d_tile_HCK[:, : step.rows, columns] += near_MCK.unflatten(0, (-1, H)).sum(0)
                else:
                    d_tile_HCK[step.head, :, columns] += near_MCK.sum(0)
        d_bias_HW = None if d_tile_HCK is None else _by_distance(d_tile_HCK, W).to(bias_HW.dtype)
        scale = 1.0 / math.sqrt(D)
        return dq_GTD.mul_(scale), dk_GTD.mul_(scale), dv_GTD, d_bias_HW, d_tau_H, None


def _by_distance(x_HCK: torch.Tensor, W: int) -> torch.Tensor:
    """Sums over the diagonals of equal m - n, ``[H, W]``."""
    H, C, K = x_HCK.shape
    distance_CK = distance_tile(C, K, x_HCK.device)
    inside = (distance_CK >= 0) & (distance_CK < W)
    return x_HCK.new_zeros(H, W).index_add_(1, distance_CK[inside], x_HCK[:, inside])


def elastic_softmax_attention_banded(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    window: int | None = None,
    document: torch.Tensor | None = None,
) -> torch.Tensor:
    """o_m = sum_n w_mn v_n; arguments as ``attention_weights`` of the reference. Documents are computed one by one.

    Half precision is computed in fp32 and rounded once, at the end. Gradients reach q, k, v, bias and tau; there is no
    second derivative.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.
    """
    if document is not None:
        options = {"bias": bias, "tau": tau, "window": window}
        return each_document(elastic_softmax_attention_banded, q_BHTD, k_BHTD, v_BHTD, document, **options)
    B, H, T, D = q_BHTD.shape
    window = T if window is None else min(window, T)
    dtype = q_BHTD.dtype if q_BHTD.dtype in (torch.float32, torch.float64) else torch.float32
    bias = q_BHTD.new_zeros(H, 1, dtype=dtype) if bias is None else bias.to(dtype)
    tau = None if tau is None else tau.to(dtype)
    q_GTD, k_GTD, v_GTD = (x.to(dtype).reshape(B * H, T, D).contiguous() for x in (q_BHTD, k_BHTD, v_BHTD))
    o_GTD = _BandedElastic.apply(q_GTD, k_GTD, v_GTD, bias, tau, window)
    return o_GTD.view(B, H, T, D).to(q_BHTD.dtype)
