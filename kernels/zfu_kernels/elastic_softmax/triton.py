"""The same operator on a GPU, forward and backward, in O(T) memory; without tau it is softmax attention.

ReLU(p + tau / i) needs p itself, so the forward pass walks over the keys twice: for the log-sum-exp of each row, then
for the weights. The second walk also sums the values of the *active* keys, m_ij = [p_ij + tau / i > 0], which gives
P_i = sum_j m_ij p_ij v_j. With P the backward pass needs no walk of its own for the term delta of a row::

    w_ij = m_ij (p_ij + tau / i)         O_i = sum_j w_ij v_j = P_i + tau / i sum_j m_ij v_j
    G_ij = dO_i . v_j                    delta_i = sum_j m_ij p_ij G_ij = dO_i . P_i
    dS_ij = p_ij (m_ij G_ij - delta_i)   dQ_i = sum_j dS_ij k_j / sqrt(D)     dK_j = sum_i dS_ij q_i / sqrt(D)
    dV_j = sum_i w_ij dO_i               dtau = sum_ij m_ij G_ij / i          db[t] = sum of dS_ij over i - j = t

P is kept in fp32: delta is the difference that G is compared with. Without tau P is O.

dS is not zero where m is: an inactive key still feeds the normaliser. Sparse rows save nothing in the backward pass.

db is a sum along diagonals. Between a tile of queries and the tile of keys o tiles before it, element (a, c) has the
distance o B + a - c wherever the pair lies. One program per head and o therefore adds up whole tiles of dS and leaves
the diagonals to the end, when the tile is written with its rows shifted so that a distance is a column.

Each number is summed by one program in a fixed order: no atomics, the same bits every time. Logits are kept in base 2.

Letters as in :mod:`zfu_kernels.sigmoid_window.triton`; m and n are positions from 0, W distances of the bias table.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from zfu_kernels.documents import document_bounds
from zfu_kernels.tiles import (
    DECODE_TILE,
    PROGRAMS,
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
def _logits(qk, m, n, nearest, Bias, W, scale, Starts, T, window, edge):
    """log2(e) (q.k / sqrt(D) + b[m - n]), on an ``edge`` -inf where m does not see n; all distances >= ``nearest``."""
    s = qk * scale
    if Bias is not None:  # noqa: SIM102 (decided when the kernel is compiled, the other when it runs)
        if nearest < W:
            s += tl.load(Bias + (m - n), mask=(m >= n) & (m - n < W), other=0.0)
    if edge:
        s = tl.where(seen(m, n, Starts, T, window), s, -float("inf"))
    return s


@triton.jit
def _count(m, Starts, T, window):
    """i: how many keys the queries m see."""
    count = m + 1
    if Starts is not None:
        count = count - tl.load(Starts + m, mask=m < T, other=0)
    return tl.minimum(count, window).to(tl.float32)


@triton.jit
def _active(p, offset, m, n, Starts, T, window, edge):
    """m_ij. A NaN counts as active, so that it is not lost; tau > 0 must not lift what is not seen above zero."""
    active = (p + offset <= 0.0) == 0
    if edge:
        active = active & seen(m, n, Starts, T, window)
    return active


@triton.jit
def _forward(
    Q, q_s, K, k_s, V, v_s, Out, o_s, Plain, p_s, Lse, Bias, Tau, Starts, T, H, G, W, scale, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # The longest walks start first.
    b, h, r0 = tl.program_id(1) // H, tl.program_id(1) % H, (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    K, V = head(K, k_s, b, h // G), head(V, v_s, b, h // G)
    if Starts is not None:
        Starts += b * T
    if Bias is not None:
        Bias += h * W
    m = r0 + tl.arange(0, BM)
    q = load_rows(head(Q, q_s, b, h), q_s[2], r0, T, D, BM, BD)
    acc = tl.zeros([BM, BD], tl.float32)
    row_max, row_sum = tl.full([BM], -float("inf"), tl.float32), tl.zeros([BM], tl.float32)
    lo, hi, all_lo, all_hi = keys_of(r0, T, Starts, window, BM, BN)
    for c0 in tl.range(lo, hi, BN):
        k, n = load_rows(K, k_s[2], c0, T, D, BN, BD), c0 + tl.arange(0, BN)[None, :]
        edge = (c0 < all_lo) | (c0 + BN > all_hi)
        s = _logits(dot(q, tl.trans(k)), m[:, None], n, r0 - c0 - BN + 1, Bias, W, scale, Starts, T, window, edge)
        new_max = tl.maximum(row_max, tl.max(s, 1))
        base = tl.where(new_max == -float("inf"), 0.0, new_max)  # a row may see nothing in its first tiles
        e, shrink = tl.exp2(s - base[:, None]), tl.exp2(row_max - base)
        row_max, row_sum = new_max, row_sum * shrink + tl.sum(e, 1)
        if Tau is None:
            v = load_rows(V, v_s[2], c0, T, D, BN, BD)
            acc = acc * shrink[:, None] + dot(e.to(v.dtype), v)
    lse = row_max + tl.log2(row_sum)
    tl.store(Lse + tl.program_id(1) * T + m, lse, mask=m < T)
    if Tau is None:
        acc = acc / row_sum[:, None]
    else:
        offset = (tl.load(Tau + h) / _count(m, Starts, T, window))[:, None]
        total = tl.zeros([BM, BD], tl.float32)
        for c0 in tl.range(lo, hi, BN):
            k, v = load_rows(K, k_s[2], c0, T, D, BN, BD), load_rows(V, v_s[2], c0, T, D, BN, BD)
            n = c0 + tl.arange(0, BN)[None, :]
            edge = (c0 < all_lo) | (c0 + BN > all_hi)
            s = _logits(dot(q, tl.trans(k)), m[:, None], n, r0 - c0 - BN + 1, Bias, W, scale, Starts, T, window, edge)
            p = tl.exp2(s - lse[:, None])
            active = _active(p, offset, m[:, None], n, Starts, T, window, edge)
            acc += dot(tl.where(active, p + offset, 0.0).to(v.dtype), v)
            if Plain is not None:
                total += dot(active.to(v.dtype), v)
        if Plain is not None:
            store_rows(head(Plain, p_s, b, h), p_s[2], r0, T, acc - offset * total, D, BM, BD)
    store_rows(head(Out, o_s, b, h), o_s[2], r0, T, acc, D, BM, BD)


@triton.jit
def _backward_queries(
    Q, q_s, K, k_s, V, v_s, Plain, p_s, dO, do_s, dQ, dq_s, Lse, Delta, dTau, Bias, Tau, Starts,
    T, H, G, W, scale, window, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h, r0 = tl.program_id(1) // H, tl.program_id(1) % H, (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    K, V = head(K, k_s, b, h // G), head(V, v_s, b, h // G)
    if Starts is not None:
        Starts += b * T
    if Bias is not None:
        Bias += h * W
    m = r0 + tl.arange(0, BM)
    do = load_rows(head(dO, do_s, b, h), do_s[2], r0, T, D, BM, BD)
    plain = load_rows(head(Plain, p_s, b, h), p_s[2], r0, T, D, BM, BD)
    delta = tl.sum(do.to(tl.float32) * plain.to(tl.float32), 1)
    tl.store(Delta + tl.program_id(1) * T + m, delta, mask=m < T)

    q = load_rows(head(Q, q_s, b, h), q_s[2], r0, T, D, BM, BD)
    lse = tl.load(Lse + tl.program_id(1) * T + m, mask=m < T, other=0.0)
    count = _count(m, Starts, T, window)
    dq, pull = tl.zeros([BM, BD], tl.float32), tl.zeros([BM], tl.float32)
    lo, hi, all_lo, all_hi = keys_of(r0, T, Starts, window, BM, BN)
    for c0 in tl.range(lo, hi, BN):
        k, v = load_rows(K, k_s[2], c0, T, D, BN, BD), load_rows(V, v_s[2], c0, T, D, BN, BD)
        n = c0 + tl.arange(0, BN)[None, :]
        edge = (c0 < all_lo) | (c0 + BN > all_hi)
        s = _logits(dot(q, tl.trans(k)), m[:, None], n, r0 - c0 - BN + 1, Bias, W, scale, Starts, T, window, edge)
        p, G_mn = tl.exp2(s - lse[:, None]), dot(do, tl.trans(v))
        if Tau is not None:
            offset = (tl.load(Tau + h) / count)[:, None]
            G_mn = tl.where(_active(p, offset, m[:, None], n, Starts, T, window, edge), G_mn, 0.0)
            pull += tl.sum(G_mn, 1)
        dq += dot((p * (G_mn - delta[:, None])).to(k.dtype), k)
    store_rows(head(dQ, dq_s, b, h), dq_s[2], r0, T, dq * (scale * 0.6931471805599453), D, BM, BD)
    if Tau is not None:
        tl.store(dTau + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(pull / count, 0))


@triton.jit
def _backward_keys(
    Q, q_s, K, k_s, V, v_s, dO, do_s, dK, dk_s, dV, dv_s, Lse, Delta, Bias, Tau, Starts, Ends,
    T, H, G, W, scale, window, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
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
        Qh, dOh, row = head(Q, q_s, b, h), head(dO, do_s, b, h), (b * H + h) * T
        bias = Bias
        if Bias is not None:
            bias = Bias + h * W
        for r0 in tl.range(lo, hi, BM):
            q, do = load_rows(Qh, q_s[2], r0, T, D, BM, BD), load_rows(dOh, do_s[2], r0, T, D, BM, BD)
            m = r0 + tl.arange(0, BM)[None, :]
            lse = tl.load(Lse + row + m, mask=m < T, other=0.0)
            delta = tl.load(Delta + row + m, mask=m < T, other=0.0)
            edge = (r0 < all_lo) | (r0 + BM > all_hi)
            s = _logits(dot(k, tl.trans(q)), m, n, r0 - c0 - BN + 1, bias, W, scale, Starts, T, window, edge)
            p, G_mn = tl.exp2(s - lse), dot(v, tl.trans(do))
            w = p
            if Tau is not None:
                offset = tl.load(Tau + h) / _count(m, Starts, T, window)
                active = _active(p, offset, m, n, Starts, T, window, edge)
                w, G_mn = tl.where(active, p + offset, 0.0), tl.where(active, G_mn, 0.0)
            dv += dot(w.to(do.dtype), do)
            dk += dot((p * (G_mn - delta)).to(q.dtype), q)
    store_rows(head(dK, dk_s, b, g), dk_s[2], c0, T, dk * (scale * 0.6931471805599453), D, BN, BD)
    store_rows(head(dV, dv_s, b, g), dv_s[2], c0, T, dv, D, BN, BD)


@triton.jit
def _backward_distances(
    Q, q_s, K, k_s, V, v_s, dO, do_s, dDiagonals, Lse, Delta, Bias, Tau, Starts,
    T, H, G, W, scale, window, B, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    h, o, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    Bias += h * W
    total = tl.zeros([BM, BM], tl.float32)
    pairs = tl.cdiv(T, BM) - o  # tiles of queries that have a tile of keys o tiles before them
    for i in tl.range(part, B * pairs, parts):
        b, r0 = i // pairs, (o + i % pairs) * BM
        c0, starts = r0 - o * BM, Starts
        if Starts is not None:
            starts = Starts + b * T
        q = load_rows(head(Q, q_s, b, h), q_s[2], r0, T, D, BM, BD)
        do = load_rows(head(dO, do_s, b, h), do_s[2], r0, T, D, BM, BD)
        k = load_rows(head(K, k_s, b, h // G), k_s[2], c0, T, D, BM, BD)
        v = load_rows(head(V, v_s, b, h // G), v_s[2], c0, T, D, BM, BD)
        m, n = r0 + tl.arange(0, BM)[:, None], c0 + tl.arange(0, BM)[None, :]
        lse = tl.load(Lse + (b * H + h) * T + m, mask=m < T, other=0.0)
        delta = tl.load(Delta + (b * H + h) * T + m, mask=m < T, other=0.0)
        s = _logits(dot(q, tl.trans(k)), m, n, r0 - c0 - BM + 1, Bias, W, scale, starts, T, window, True)
        p, G_mn = tl.exp2(s - lse), dot(do, tl.trans(v))
        if Tau is not None:
            offset = tl.load(Tau + h) / _count(m, starts, T, window)
            G_mn = tl.where(_active(p, offset, m, n, starts, T, window, True), G_mn, 0.0)
        total += p * (G_mn - delta)
    a, c = tl.arange(0, BM)[:, None], tl.arange(0, BM)[None, :]
    tile = (part * tl.num_programs(1) + o) * H + h
    tl.store(dDiagonals + (tile.to(tl.int64) * BM + a) * (2 * BM) + (a - c + BM - 1), total)


@triton.jit
def _decode_scores(
    Q, q_s, K, k_s, Scores, Stats, Distance, distance_b, Bias, S, K_HEADS, G: tl.constexpr, W, part, scale, window,
    D: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scores ``[B H, S]``; maximum, sum and number of keys of each row's part, Stats ``[parts, B H, 3]``."""
    b, kv, first = tl.program_id(0) // K_HEADS, tl.program_id(0) % K_HEADS, tl.program_id(1) * part
    q = load_rows(head(Q, q_s, b, kv * G), q_s[1], 0, G, D, BG, BD)
    g = tl.arange(0, BG)
    h, row = (kv * G + g)[:, None], (tl.program_id(0) * G + g)[:, None]
    row_max, row_sum = tl.full([BG], -float("inf"), tl.float32), tl.zeros([BG], tl.float32)
    count = tl.zeros([BG], tl.float32)
    for c0 in tl.range(first, tl.minimum(first + part, S), BN):
        k, n = load_rows(head(K, k_s, b, kv), k_s[2], c0, S, D, BN, BD), c0 + tl.arange(0, BN)[None, :]
        distance = tl.load(Distance + b * distance_b + n, mask=n < S, other=-1)
        sees, used = (distance >= 0) & (distance < window), (g < G)[:, None]
        s = dot(q, tl.trans(k)) * scale
        if Bias is not None:
            s += tl.load(Bias + h * W + distance, mask=sees & (distance < W) & used, other=0.0)
        s = tl.where(sees, s, -float("inf"))
        tl.store(Scores + row.to(tl.int64) * S + n, s, mask=(n < S) & used)
        new_max = tl.maximum(row_max, tl.max(s, 1))
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp2(row_max - base) + tl.sum(tl.exp2(s - base[:, None]), 1)
        row_max, count = new_max, count + tl.sum(sees.to(tl.float32), 1)
    place = Stats + ((tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * G + g) * 3
    tl.store(place, row_max, mask=g < G)
    tl.store(place + 1, row_sum, mask=g < G)
    tl.store(place + 2, count, mask=g < G)


@triton.jit
def _decode_values(
    V, v_s, Scores, Stats, Out, Distance, distance_b, Tau, S, K_HEADS, G: tl.constexpr, part, parts, window,
    D: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, kv, first = tl.program_id(0) // K_HEADS, tl.program_id(0) % K_HEADS, tl.program_id(1) * part
    g = tl.arange(0, BG)
    row, used = tl.program_id(0) * G + g, g < G
    row_max, row_sum = tl.full([BG], -float("inf"), tl.float32), tl.zeros([BG], tl.float32)
    count = tl.zeros([BG], tl.float32)
    for i in tl.range(parts):
        place = Stats + (i * tl.num_programs(0) * G + row) * 3
        part_max = tl.load(place, mask=used, other=0.0)
        new_max = tl.maximum(row_max, part_max)
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp2(row_max - base)
        row_sum += tl.load(place + 1, mask=used, other=1.0) * tl.exp2(part_max - base)
        row_max, count = new_max, count + tl.load(place + 2, mask=used, other=1.0)
    # A row that sees nothing has only zeros.
    lse = tl.where(row_max == -float("inf"), 0.0, row_max + tl.log2(row_sum))[:, None]
    acc = tl.zeros([BG, BD], tl.float32)
    for c0 in tl.range(first, tl.minimum(first + part, S), BN):
        n = c0 + tl.arange(0, BN)[None, :]
        s = tl.load(Scores + row[:, None].to(tl.int64) * S + n, mask=(n < S) & used[:, None], other=-float("inf"))
        w = tl.exp2(s - lse)
        if Tau is not None:
            distance = tl.load(Distance + b * distance_b + n, mask=n < S, other=-1)
            w += tl.load(Tau + kv * G + g, mask=used, other=0.0)[:, None] / count[:, None]
            active = ((w <= 0.0) == 0) & (distance >= 0) & (distance < window) & used[:, None]
            w = tl.where(active, w, 0.0)
        if tl.max((w != 0.0).to(tl.int32)) > 0:
            v = load_rows(head(V, v_s, b, kv), v_s[2], c0, S, D, BN, BD)
            acc += dot(w.to(v.dtype), v)
    rows = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * G
    store_rows(Out, D, rows, rows + G, acc, D, BG, BD)


def _scalars(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, window: int) -> tuple:
    """T, H, G, W, scale, window: what ends the list of every kernel's arguments. The scale is for base 2."""
    H, T, D = q.shape[1:]
    W = 0 if bias is None else bias.shape[1]
    return T, H, H // k.shape[1], W, math.log2(math.e) / math.sqrt(D), window


def _strided(*tensors: torch.Tensor | None) -> list:
    """Each tensor followed by its strides over B, H and T."""
    return [part for x in tensors for part in (x, (0, 0, 0) if x is None else x.stride()[:3])]


def _in_base_2(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias * math.log2(math.e)


@torch.library.custom_op("zfu::elastic_softmax", mutates_args=())
def elastic_softmax(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    tau: torch.Tensor | None,
    starts: torch.Tensor | None,
    ends: torch.Tensor | None,
    window: int,
    train: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward pass as one operator: the output, P (empty unless ``train`` and there is a tau), the log-sum-exp
    ``[B, H, T]`` in base 2. ``starts`` and ``ends`` are those of ``document_bounds``; shapes are checked by the public
    entry point."""
    q, k, v = map(unit_columns, (q, k, v))
    B, H, T, D = q.shape
    o, lse = torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)
    plain = torch.empty_like(q, dtype=torch.float32) if train and tau is not None else None
    bias = _in_base_2(bias)

    def start(BM: int, BN: int, options: dict[str, int]) -> None:
        _forward[triton.cdiv(T, BM), B * H](
            *_strided(q, k, v, o, plain), lse, bias, tau, starts, *_scalars(q, k, bias, window),
            D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    launch("elastic forward", q, window, start)
    return o, lse.new_empty(0) if plain is None else plain, lse


@torch.library.custom_op("zfu::elastic_softmax_backward", mutates_args=())
def elastic_softmax_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    tau: torch.Tensor | None,
    starts: torch.Tensor | None,
    ends: torch.Tensor | None,
    plain: torch.Tensor,
    lse: torch.Tensor,
    window: int,
    train_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv, db ``[H, W]`` (empty unless ``train_bias``) and dtau ``[H]`` (empty without tau), these in fp32."""
    do, q, k, v = map(unit_columns, (do, q, k, v))
    B, H, T, D = q.shape
    dq, dk, dv, delta = *map(torch.empty_like, (q, k, v)), torch.empty_like(lse)
    scalars, bias2, partial = _scalars(q, k, bias, window), _in_base_2(bias), {}

    def queries(BM: int, BN: int, options: dict[str, int]) -> None:
        tiles = triton.cdiv(T, BM)
        partial["tau"] = None if tau is None else lse.new_empty(B, H, tiles)
        _backward_queries[tiles, B * H](
            *_strided(q, k, v, plain, do, dq), lse, delta, partial["tau"], bias2, tau, starts, *scalars,
            D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    def keys(BM: int, BN: int, options: dict[str, int]) -> None:
        _backward_keys[triton.cdiv(T, BN), B * k.shape[1]](
            *_strided(q, k, v, do, dk, dv), lse, delta, bias2, tau, starts, ends, *scalars,
            D=D, BD=padded(D), BM=BM, BN=BN, **options,
        )  # fmt: skip

    def distances(BM: int, BN: int, options: dict[str, int]) -> None:
        tiles, longest = triton.cdiv(T, BM), min(bias.shape[1], window, T) - 1
        offsets = min((longest + BM - 1) // BM + 1, tiles)
        parts = min(triton.cdiv(PROGRAMS, H * offsets), B * tiles)
        partial["bias"] = lse.new_zeros(parts, offsets, H, BM, 2 * BM)
        _backward_distances[H, offsets, parts](
            *_strided(q, k, v, do), partial["bias"], lse, delta, bias2, tau, starts, *scalars, B,
            D=D, BD=padded(D), BM=BM, **options,
        )  # fmt: skip

    launch("elastic queries", q, window, queries)
    launch("elastic keys", q, window, keys)
    db, dtau = lse.new_empty(0), lse.new_empty(0)
    if train_bias:
        launch("distances", q, window, distances)
        db = _along_distances(partial["bias"], bias.shape[1])
    if tau is not None:
        dtau = partial["tau"].sum((0, 2))
    return dq, dk, dv, db, dtau


def _along_distances(diagonals: torch.Tensor, W: int) -> torch.Tensor:
    """``[H, W]`` from ``[parts, offsets, H, B, 2 B]``, where column t of offset o holds distance o B + t - (B - 1)."""
    o_H_t = diagonals.sum((0, 3))
    B = o_H_t.shape[-1] // 2
    db_oHB = o_H_t[:, :, B - 1 : 2 * B - 1].clone()
    db_oHB[:-1, :, 1:] += o_H_t[1:, :, : B - 1]
    db_HW = db_oHB.transpose(0, 1).flatten(1)[:, :W]
    return torch.nn.functional.pad(db_HW, (0, W - db_HW.shape[1]))


@elastic_softmax.register_fake
def _(q, k, v, bias, tau, starts, ends, window, train):
    o = torch.empty_like(unit_columns(q))
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    plain = torch.empty_like(o, dtype=torch.float32) if train and tau is not None else lse.new_empty(0)
    return o, plain, lse


@elastic_softmax_backward.register_fake
def _(do, q, k, v, bias, tau, starts, ends, plain, lse, window, train_bias):
    db = lse.new_empty(bias.shape if train_bias else 0)
    return *(torch.empty_like(unit_columns(x)) for x in (q, k, v)), db, lse.new_empty(0 if tau is None else q.shape[1])


def _save(ctx, inputs, output):
    *tensors, ctx.window, _ = inputs
    o, plain, lse = output
    ctx.save_for_backward(*tensors, o if inputs[4] is None else plain, lse)
    ctx.set_materialize_grads(False)


def _backward(ctx, do, _dplain, _dlse):
    train_bias = ctx.needs_input_grad[3]
    dq, dk, dv, db, dtau = elastic_softmax_backward(do, *ctx.saved_tensors, ctx.window, train_bias)
    none = (None,) * 4
    return dq, dk, dv, db if train_bias else None, dtau if ctx.needs_input_grad[4] else None, *none


elastic_softmax.register_autograd(_backward, setup_context=_save)


def elastic_softmax_attention_triton(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    window: int | None = None,
    document: torch.Tensor | None = None,
) -> torch.Tensor:
    """o_m = sum_n w_mn v_n; arguments as ``attention_weights`` of the reference, and k and v with their Hkv heads.
    Without tau this is softmax attention at its usual cost: one walk.

    Gradients reach q, k, v and, where they require one, bias and tau; there is no second derivative.

    Returns:
        ``[B, H, T, D]`` in the dtype of ``q_BHTD``.

    Raises:
        ValueError: tensors that the kernels cannot take here: not on a GPU, fp64, wider than 256 columns, bfloat16 in
            the interpreter.
    """
    if reason := refuse(q_BHTD):
        raise ValueError(reason)
    T = q_BHTD.shape[2]
    bias, tau = (None if x is None else x.float().contiguous() for x in (bias, tau))
    starts, ends = document_bounds(document)
    window = T if window is None else min(window, T)
    learned = (q_BHTD, k_BHTD, v_BHTD, bias, tau)
    train = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
    return elastic_softmax(q_BHTD, k_BHTD, v_BHTD, bias, tau, starts, ends, window, train)[0]


@torch.library.custom_op("zfu::elastic_softmax_decode", mutates_args=())
def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    distance: torch.Tensor,
    bias: torch.Tensor | None,
    tau: torch.Tensor | None,
    window: int,
) -> torch.Tensor:
    """One query per row ``[B, H, D]`` against slots ``[B, Hkv, S, D]`` at integer ``distance [B, S]``."""
    if reason := refuse(q):
        raise ValueError(reason)
    q, k, v, distance = map(unit_columns, (q, k, v, distance))
    (B, H, D), (_, heads, S, _) = q.shape, k.shape
    parts, part = decode_parts(B * heads, S)
    scores, stats = (q.new_empty(shape, dtype=torch.float32) for shape in ((B * H, S), (parts, B * H, 3)))
    partial = q.new_empty(parts, B, H, D, dtype=q.dtype if parts == 1 else torch.float32)
    W, tile = 0 if bias is None else bias.shape[1], {"D": D, "BD": padded(D), "BG": padded(H // heads)}
    _decode_scores[B * heads, parts](
        q, (*q.stride()[:2], 0), k, k.stride()[:3], scores, stats, distance, distance.stride(0), _in_base_2(bias),
        S, heads, H // heads, W, part, math.log2(math.e) / math.sqrt(D), window, BN=DECODE_TILE, **tile,
    )  # fmt: skip
    _decode_values[B * heads, parts](
        v, v.stride()[:3], scores, stats, partial, distance, distance.stride(0), tau,
        S, heads, H // heads, part, parts, window, BN=DECODE_TILE, **tile,
    )  # fmt: skip
    return partial[0] if parts == 1 else partial.sum(0).to(q.dtype)


@decode.register_fake
def _(q, k, v, distance, bias, tau, window):
    return q.new_empty(q.shape)
