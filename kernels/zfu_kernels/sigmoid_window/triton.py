"""The same operator on a GPU, forward and backward, in O(T * window) time and O(T) memory.

Nothing divides by the sum of a row, so there is no running maximum, no log-sum-exp and no second pass, and the backward
pass needs neither the output nor a row statistic: it saves q, k, v and recomputes every weight. With A = sigmoid(Z)::

    dV_n = sum_m A_mn dO_m      dZ_mn = A_mn (1 - A_mn) (dO_m . v_n)      ds_h = sum_mn dZ_mn (m - n)
    dQ_m = sum_n dZ_mn k_n / sqrt(D)                dK_n = sum_m dZ_mn q_m / sqrt(D)

One kernel owns tiles of queries (dQ, slopes), another tiles of keys (dK, dV). Each number is summed by one program in a
fixed order: no atomics, the same bits every time. Products are summed in fp32; weights are rounded to the dtype of the
inputs only to be multiplied.

Letters: B batch, H query heads, G = H / Hkv heads that share a key head, T positions, D columns, BD those of a tile, BM
and BN rows of a tile of queries and of keys; m is the query's position, n the key's.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from zfu_kernels.documents import document_bounds
from zfu_kernels.elastic_softmax.triton import elastic_softmax_attention_triton
from zfu_kernels.tiles import (
    DECODE_TILE,
    decode_parts,
    dot,
    head,
    keys_of,
    launch,
    load_rows,
    padded,
    queries_of,
    refuse,
    seen,
    store_rows,
    unit_columns,
)


@triton.jit
def _weights(qk, m, n, Starts, slope, shift, scale, T, window, edge):
    """A = sigmoid(q.k * scale + slope (m - n) + shift); on an ``edge`` 0 where m does not see n."""
    z = qk * scale + (slope * (m - n).to(tl.float32) + shift)
    A = 1.0 / (1.0 + tl.exp2(z * -1.4426950408889634))
    if edge:
        A = tl.where(seen(m, n, Starts, T, window), A, 0.0)
    return A


@triton.jit
def _slope(Slopes, h):
    if Slopes is None:
        return 0.0
    return tl.load(Slopes + h)


@triton.jit
def _forward(
    Q, q_s, K, k_s, V, v_s, Out, o_s, Slopes, Starts, T, H, G, scale, shift, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h, r0 = tl.program_id(1) // H, tl.program_id(1) % H, tl.program_id(0) * BM
    K, V = head(K, k_s, b, h // G), head(V, v_s, b, h // G)
    if Starts is not None:
        Starts += b * T
    m, slope = r0 + tl.arange(0, BM)[:, None], _slope(Slopes, h)
    q = load_rows(head(Q, q_s, b, h), q_s[2], r0, T, D, BM, BD)
    acc = tl.zeros([BM, BD], tl.float32)
    lo, hi, all_lo, all_hi = keys_of(r0, T, Starts, window, BM, BN)
    for c0 in tl.range(lo, hi, BN):
        k, v = load_rows(K, k_s[2], c0, T, D, BN, BD), load_rows(V, v_s[2], c0, T, D, BN, BD)
        n = c0 + tl.arange(0, BN)[None, :]
        edge = (c0 < all_lo) | (c0 + BN > all_hi)
        A = _weights(dot(q, tl.trans(k)), m, n, Starts, slope, shift, scale, T, window, edge)
        acc += dot(A.to(v.dtype), v)
    store_rows(head(Out, o_s, b, h), o_s[2], r0, T, acc, D, BM, BD)


@triton.jit
def _backward_queries(
    Q, q_s, K, k_s, V, v_s, dO, do_s, dQ, dq_s, Slopes, dSlopes, Starts, T, H, G, scale, shift, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h, r0 = tl.program_id(1) // H, tl.program_id(1) % H, tl.program_id(0) * BM
    K, V = head(K, k_s, b, h // G), head(V, v_s, b, h // G)
    if Starts is not None:
        Starts += b * T
    m, slope = r0 + tl.arange(0, BM)[:, None], _slope(Slopes, h)
    q = load_rows(head(Q, q_s, b, h), q_s[2], r0, T, D, BM, BD)
    do = load_rows(head(dO, do_s, b, h), do_s[2], r0, T, D, BM, BD)
    dq, ds = tl.zeros([BM, BD], tl.float32), tl.zeros([BM], tl.float32)
    lo, hi, all_lo, all_hi = keys_of(r0, T, Starts, window, BM, BN)
    for c0 in tl.range(lo, hi, BN):
        k, v = load_rows(K, k_s[2], c0, T, D, BN, BD), load_rows(V, v_s[2], c0, T, D, BN, BD)
        n = c0 + tl.arange(0, BN)[None, :]
        edge = (c0 < all_lo) | (c0 + BN > all_hi)
        A = _weights(dot(q, tl.trans(k)), m, n, Starts, slope, shift, scale, T, window, edge)
        dz = dot(do, tl.trans(v)) * A * (1.0 - A)
        if dSlopes is not None:
            ds += tl.sum(dz * (m - n).to(tl.float32), 1)
        dq += dot(dz.to(k.dtype), k)
    store_rows(head(dQ, dq_s, b, h), dq_s[2], r0, T, dq * scale, D, BM, BD)
    if dSlopes is not None:
        tl.store(dSlopes + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(ds, 0))


@triton.jit
def _backward_keys(
    Q, q_s, K, k_s, V, v_s, dO, do_s, dK, dk_s, dV, dv_s, Slopes, Starts, Ends, T, H, G, scale, shift, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, g, c0 = tl.program_id(1) // (H // G), tl.program_id(1) % (H // G), tl.program_id(0) * BN
    if Starts is not None:
        Starts += b * T
        Ends += b * T
    n = c0 + tl.arange(0, BN)[:, None]
    k = load_rows(head(K, k_s, b, g), k_s[2], c0, T, D, BN, BD)
    v = load_rows(head(V, v_s, b, g), v_s[2], c0, T, D, BN, BD)
    dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
    lo, hi, all_lo, all_hi = queries_of(c0, T, Ends, window, BM, BN)
    for i in tl.range(G):
        h = g * G + i
        Qh, dOh, slope = head(Q, q_s, b, h), head(dO, do_s, b, h), _slope(Slopes, h)
        for r0 in tl.range(lo, hi, BM):
            q, do = load_rows(Qh, q_s[2], r0, T, D, BM, BD), load_rows(dOh, do_s[2], r0, T, D, BM, BD)
            m = r0 + tl.arange(0, BM)[None, :]
            edge = (r0 < all_lo) | (r0 + BM > all_hi)
            A = _weights(dot(k, tl.trans(q)), m, n, Starts, slope, shift, scale, T, window, edge)
            dv += dot(A.to(do.dtype), do)
            dz = dot(v, tl.trans(do)) * A * (1.0 - A)
            dk += dot(dz.to(q.dtype), q)
    store_rows(head(dK, dk_s, b, g), dk_s[2], c0, T, dk * scale, D, BN, BD)
    store_rows(head(dV, dv_s, b, g), dv_s[2], c0, T, dv, D, BN, BD)


@triton.jit
def _decode(
    Q, q_s, K, k_s, V, v_s, Out, Distance, distance_b, Slopes, S, K_HEADS, G: tl.constexpr, part, scale, shift, window,
    D: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, kv, first = tl.program_id(0) // K_HEADS, tl.program_id(0) % K_HEADS, tl.program_id(1) * part
    K, V = head(K, k_s, b, kv), head(V, v_s, b, kv)
    q = load_rows(head(Q, q_s, b, kv * G), q_s[1], 0, G, D, BG, BD)
    h = kv * G + tl.arange(0, BG)[:, None]
    slope = 0.0
    if Slopes is not None:
        slope = tl.load(Slopes + h, mask=h < kv * G + G, other=0.0)
    acc = tl.zeros([BG, BD], tl.float32)
    for c0 in tl.range(first, tl.minimum(first + part, S), BN):
        k, v = load_rows(K, k_s[2], c0, S, D, BN, BD), load_rows(V, v_s[2], c0, S, D, BN, BD)
        n = c0 + tl.arange(0, BN)[None, :]
        distance = tl.load(Distance + b * distance_b + n, mask=n < S, other=-1)
        z = dot(q, tl.trans(k)) * scale + (slope * distance.to(tl.float32) + shift)
        A = 1.0 / (1.0 + tl.exp2(z * -1.4426950408889634))
        acc += dot(tl.where((distance >= 0) & (distance < window), A, 0.0).to(v.dtype), v)
    rows = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * G
    store_rows(Out, D, rows, rows + G, acc, D, BG, BD)


def _common(q: torch.Tensor, k: torch.Tensor, shift: float, window: int) -> tuple:
    """T, H, G, scale, shift, window: the scalars that end the list of every kernel's arguments."""
    H, T, D = q.shape[1:]
    return T, H, H // k.shape[1], 1.0 / math.sqrt(D), shift, window


@torch.library.custom_op("zfu::sigmoid_window", mutates_args=())
def sigmoid_window(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    starts: torch.Tensor | None,
    ends: torch.Tensor | None,
    window: int,
    shift: float,
) -> torch.Tensor:
    """The forward pass as one operator. ``starts`` and ``ends`` are those of ``document_bounds``; shapes are checked by
    the public entry point."""
    q, k, v = map(unit_columns, (q, k, v))
    o = torch.empty_like(q)
    B, H, T, D = q.shape

    def start(BM: int, BN: int, options: dict[str, int]) -> None:
        _forward[triton.cdiv(T, BM), B * H](
            q, q.stride()[:3], k, k.stride()[:3], v, v.stride()[:3], o, o.stride()[:3], slopes, starts,
            *_common(q, k, shift, window), D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    launch("forward", q, window, start)
    return o


@torch.library.custom_op("zfu::sigmoid_window_backward", mutates_args=())
def sigmoid_window_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    starts: torch.Tensor | None,
    ends: torch.Tensor | None,
    window: int,
    shift: float,
    train_slopes: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv and the slopes' gradient ``[H]`` in fp32 (empty unless ``train_slopes``)."""
    do, q, k, v = map(unit_columns, (do, q, k, v))
    dq, dk, dv = map(torch.empty_like, (q, k, v))
    B, H, T, D = q.shape
    common = _common(q, k, shift, window)
    partial: list[torch.Tensor] = []

    def queries(BM: int, BN: int, options: dict[str, int]) -> None:
        tiles = triton.cdiv(T, BM)
        partial[:] = [q.new_empty(B, H, tiles, dtype=torch.float32)] if train_slopes else []
        _backward_queries[tiles, B * H](
            q, q.stride()[:3], k, k.stride()[:3], v, v.stride()[:3], do, do.stride()[:3], dq, dq.stride()[:3], slopes,
            partial[0] if train_slopes else None, starts, *common,
            D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    def keys(BM: int, BN: int, options: dict[str, int]) -> None:
        _backward_keys[triton.cdiv(T, BN), B * k.shape[1]](
            q, q.stride()[:3], k, k.stride()[:3], v, v.stride()[:3], do, do.stride()[:3], dk, dk.stride()[:3],
            dv, dv.stride()[:3], slopes, starts, ends, *common,
            D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    launch("queries", q, window, queries)
    launch("keys", q, window, keys)
    d_slopes = partial[0].sum((0, 2)) if train_slopes else q.new_empty(0, dtype=torch.float32)
    return dq, dk, dv, d_slopes


@sigmoid_window.register_fake
def _(q, k, v, slopes, starts, ends, window, shift):
    return torch.empty_like(unit_columns(q))


@sigmoid_window_backward.register_fake
def _(do, q, k, v, slopes, starts, ends, window, shift, train_slopes):
    d_slopes = q.new_empty(q.shape[1] if train_slopes else 0, dtype=torch.float32)
    return *(torch.empty_like(unit_columns(x)) for x in (q, k, v)), d_slopes


def _save(ctx, inputs, output):
    *tensors, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, do):
    q, k, v, slopes, starts, ends = ctx.saved_tensors
    train_slopes = ctx.needs_input_grad[3]
    dq, dk, dv, d_slopes = sigmoid_window_backward(
        do, q, k, v, slopes, starts, ends, ctx.window, ctx.shift, train_slopes
    )
    return dq, dk, dv, d_slopes if train_slopes else None, None, None, None, None


sigmoid_window.register_autograd(_backward, setup_context=_save)


def sliding_window_attention_triton(
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
    """o_m = sum over the window of A_mn v_n (Eq. 5); arguments as ``attention_weights`` of the reference, and keys and
    values with their Hkv heads. Softmax goes through the kernel of :mod:`zfu_kernels.elastic_softmax`, which has the
    row statistics that it needs.

    Gradients reach q, k, v and, if it requires one, slopes; there is no second derivative.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.

    Raises:
        ValueError: tensors that the kernels cannot take here: not on a GPU, fp64, wider than 256 columns, bfloat16 in
            the interpreter.
    """
    T, device = q_BHTD.shape[2], q_BHTD.device
    if activation == "softmax":
        reach = T if window is None else min(window, T)
        bias = None if slopes is None else slopes.float()[:, None] * torch.arange(reach, device=device)
        return elastic_softmax_attention_triton(q_BHTD, k_BHTD, v_BHTD, bias=bias, window=window, document=document)
    if reason := refuse(q_BHTD):
        raise ValueError(reason)
    if slopes is not None:
        slopes = slopes.float().contiguous()
    starts, ends = document_bounds(document)
    window = T if window is None else min(window, T)
    return sigmoid_window(q_BHTD, k_BHTD, v_BHTD, slopes, starts, ends, window, float(sigmoid_bias))


@torch.library.custom_op("zfu::sigmoid_window_decode", mutates_args=())
def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    distance: torch.Tensor,
    slopes: torch.Tensor | None,
    window: int,
    shift: float,
) -> torch.Tensor:
    """One query per row ``[B, H, D]`` against slots ``[B, Hkv, S, D]`` at integer ``distance [B, S]``."""
    if reason := refuse(q):
        raise ValueError(reason)
    q, k, v, distance = map(unit_columns, (q, k, v, distance))
    (B, H, D), (_, heads, S, _) = q.shape, k.shape
    parts, part = decode_parts(B * heads, S)
    partial = q.new_empty(parts, B, H, D, dtype=q.dtype if parts == 1 else torch.float32)
    _decode[B * heads, parts](
        q, (*q.stride()[:2], 0), k, k.stride()[:3], v, v.stride()[:3], partial, distance, distance.stride(0), slopes,
        S, heads, H // heads, part, 1.0 / math.sqrt(D), shift, window,
        D=D, BD=padded(D), BG=padded(H // heads), BN=DECODE_TILE,
    )  # fmt: skip
    return partial[0] if parts == 1 else partial.sum(0).to(q.dtype)


@decode.register_fake
def _(q, k, v, distance, slopes, window, shift):
    return q.new_empty(q.shape)
