"""The same operator in O(T * window): only the band of keys that a query can see is ever computed.

The chunks and tiles of :mod:`zfu_kernels.band`; a tile holds distance term and mask. Each step is three calls on many
small matrices at once: ``baddbmm`` (tile + scaled scores, into a reused buffer), the activation in place, ``bmm``. The
buffer stays in the cache of one core. The backward pass recomputes the weights and keeps q, k and v only: without a
normaliser neither the output nor a row statistic is needed.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.autograd.function import once_differentiable

from zfu_kernels import band
from zfu_kernels.band import Plan, Step, bmm_into, distance_tile, view
from zfu_kernels.documents import each_document


def _build_tile(slopes: torch.Tensor, bias: float, window: int, rows: int, keys: int, copies: int) -> torch.Tensor:
    distance_CK = distance_tile(rows, keys, slopes.device)
    tile_HCK = slopes[:, None, None] * distance_CK + bias
    tile_HCK = tile_HCK.masked_fill((distance_CK < 0) | (distance_CK >= window), -math.inf)
    return tile_HCK.repeat(copies, 1, 1)


@functools.lru_cache(maxsize=16)
def _cached_tile(slopes: tuple[float, ...], dtype: torch.dtype, device: torch.device, *shape) -> torch.Tensor:
    return _build_tile(torch.tensor(slopes, dtype=dtype, device=device), *shape)


def _plan(q_GTD, slopes, window: int, bias: float, *, backward: bool, constant: bool) -> Plan:
    def tile(rows: int, keys: int, copies: int) -> torch.Tensor:
        shape = bias, window, rows, keys, copies
        if constant and copies * len(slopes) * rows * keys <= 4 * band.BUFFER_ELEMENTS:
            return _cached_tile(tuple(slopes.tolist()), q_GTD.dtype, q_GTD.device, *shape)
        return _build_tile(slopes.to(q_GTD.dtype), *shape)

    return Plan(q_GTD, len(slopes), window, tile, backward=backward)


def _weights(step: Step, buffer, q_GTD, k_GTD, softmax: bool) -> torch.Tensor:
    """A of Eq. 5 for one step, in the buffer."""
    A_MCK = view(buffer, step.matrices, step.rows, step.keys)
    scale = 1.0 / math.sqrt(q_GTD.shape[-1])
    torch.baddbmm(step.tile_MCK, step.queries(q_GTD), step.window(k_GTD).transpose(1, 2), alpha=scale, out=A_MCK)
    return torch.softmax(A_MCK, dim=-1, out=A_MCK) if softmax else A_MCK.sigmoid_()


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_GTD, k_GTD, v_GTD, slopes, window: int, softmax: bool, bias: float):
        ctx.save_for_backward(q_GTD, k_GTD, v_GTD, slopes)
        ctx.options = window, softmax, bias
        ctx.train_slopes = slopes.requires_grad
        plan = _plan(q_GTD, slopes, window, bias, backward=False, constant=not ctx.train_slopes)
        buffer = q_GTD.new_empty(plan.buffer_elements)
        o_GTD = torch.empty_like(q_GTD)
        for step in plan.steps(q_GTD.shape[-1]):
            bmm_into(step.queries(o_GTD), _weights(step, buffer, q_GTD, k_GTD, softmax), step.window(v_GTD))
        return o_GTD

    @staticmethod
    @once_differentiable
    def backward(ctx, do_GTD):
        q_GTD, k_GTD, v_GTD, slopes = ctx.saved_tensors
        window, softmax, bias = ctx.options
        do_GTD = do_GTD.contiguous()
        D = q_GTD.shape[-1]
        plan = _plan(q_GTD, slopes, window, bias, backward=True, constant=not ctx.train_slopes)
        buffer_A, buffer_Z = q_GTD.new_empty(2, plan.buffer_elements)
        dq_GTD, dk_GTD, dv_GTD = torch.empty_like(q_GTD), torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        d_slopes = torch.zeros_like(slopes) if ctx.train_slopes else None
        for step in plan.steps(D):
            q, k, v, do = step.queries(q_GTD), step.window(k_GTD), step.window(v_GTD), step.queries(do_GTD)
            A_MCK = _weights(step, buffer_A, q_GTD, k_GTD, softmax)
            step.add_to_window(dv_GTD, torch.bmm(A_MCK.transpose(1, 2), do))
            dZ_MCK = torch.bmm(do, v.transpose(1, 2), out=view(buffer_Z, *A_MCK.shape))
            if softmax:
                torch.ops.aten._softmax_backward_data.out(dZ_MCK, A_MCK, -1, A_MCK.dtype, grad_input=dZ_MCK)
            else:
                torch.ops.aten.sigmoid_backward.grad_input(dZ_MCK, A_MCK, grad_input=dZ_MCK)
            bmm_into(step.queries(dq_GTD), dZ_MCK, k)
            step.add_to_window(dk_GTD, torch.bmm(dZ_MCK.transpose(1, 2), q))
            if d_slopes is not None:
                # Outside the window A is 0, so dZ is too.
                distance_CK = distance_tile(step.rows, step.keys, q.device).to(dZ_MCK.dtype)
                ds_M = dZ_MCK.flatten(1) @ distance_CK.flatten()
                if step.head is None:
                    d_slopes += ds_M.view(-1, plan.H).sum(0)
                else:
                    d_slopes[step.head] += ds_M.sum()
        scale = 1.0 / math.sqrt(D)
        return dq_GTD.mul_(scale), dk_GTD.mul_(scale), dv_GTD, d_slopes, None, None, None


def sliding_window_attention_banded(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    window: int | None,
    slopes: torch.Tensor | None = None,
    activation: str = "sigmoid",
    sigmoid_bias: float = 0.0,
    document: torch.Tensor | None = None,
) -> torch.Tensor:
    """o_m = sum over the window of A_mn v_n (Eq. 5); arguments as ``attention_weights`` of the reference. Documents are
    computed one by one.

    Half precision is computed in fp32 and rounded once, at the end. Gradients reach q, k, v and, if it requires one,
    slopes; there is no second derivative. A NaN or an infinite product taints every row of the tile that holds it,
    also rows that do not see that key: never fewer rows than the reference marks through its weights.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.
    """
    if document is not None:
        options = {"window": window, "slopes": slopes, "activation": activation, "sigmoid_bias": sigmoid_bias}
        return each_document(sliding_window_attention_banded, q_BHTD, k_BHTD, v_BHTD, document, **options)
    B, H, T, D = q_BHTD.shape
    window = T if window is None else min(window, T)
    dtype = q_BHTD.dtype if q_BHTD.dtype in (torch.float32, torch.float64) else torch.float32
    if slopes is None:
        slopes = q_BHTD.new_zeros(H, dtype=dtype)
    q_GTD, k_GTD, v_GTD = (x.to(dtype).reshape(B * H, T, D).contiguous() for x in (q_BHTD, k_BHTD, v_BHTD))
    o_GTD = _BandedAttention.apply(q_GTD, k_GTD, v_GTD, slopes, window, activation == "softmax", float(sigmoid_bias))
    return o_GTD.view(B, H, T, D).to(q_BHTD.dtype)
