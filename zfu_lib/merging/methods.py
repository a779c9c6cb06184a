"""Merging methods on whole named tensors, written as the papers define them: what the engine must equal bit by bit.

A model is a mapping from tensor names to arrays. All models of a call have the same names and shapes; arithmetic is
fp32 whatever the arrays hold, and results are fp32. ``base`` is the model that the others were fine-tuned from and
``delta = model - base`` (Task Arithmetic, arXiv 2212.04089, section 2). Sums run over the models in the order given.

Every delta method is ``merged = base + lambda * combine(weight_m * sparsify(delta_m))``:

| method | sparsify | combine | normalised |
|---|---|---|---|
| task_arithmetic | keep all | sum | no |
| ties | largest magnitudes | sum of those with the elected sign | yes |
| dare_linear, dare_ties | random, rescaled | sum; elected sign | no |
| della_linear, della | random, more of the larger | sum; elected sign | no; yes |
| breadcrumbs, breadcrumbs_ties | without outliers and small ones | sum; elected sign | no |
| hi_merging | largest magnitudes, scaled | sum, or elected sign | no |
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Literal

import numpy as np

Array = np.ndarray
Tensors = Mapping[str, Array]
Rescale = Literal["none", "density", "l1"]
Consensus = Literal["none", "sum"]
Scope = Literal["tensor", "layer", "model"]

SCOPES = ("tensor", "layer", "model")
BLOCK = 1024  # elements that one partial sum covers, so that a sum does not depend on how a tensor is cut


# Averages of whole models.


def linear(models: Sequence[Tensors], weights: Sequence[float], normalize: bool = True) -> dict[str, Array]:
    """Weighted average ``sum(w * model) / sum(w)`` (Model Soups, arXiv 2203.05482); ``normalize=False``: the sum.

    Each product is added with one rounding, like a fused multiply-add, so that nothing is lost to a cancellation.

    Raises:
        ValueError: names, shapes or the number of weights do not match, or the weights to divide by sum to zero.
    """
    _count(models, weights=weights)
    _check(models)
    total = sum_of_weights(weights) if normalize else np.float32(1)
    if total == 0:
        raise ValueError("the weights of a normalised average sum to zero")
    merged = {}
    for name in names(models[0]):
        x = _f32(models[0][name]) * np.float32(weights[0])
        for model, weight in zip(models[1:], weights[1:]):
            x = (x + _f32(model[name]) * np.float64(np.float32(weight))).astype(np.float32)
        merged[name] = x / total
    return merged


def slerp(base: Tensors, model: Tensors, t: float, threshold: float = 0.9995) -> dict[str, Array]:
    """Along the arc from ``base`` (t = 0) to ``model`` (t = 1), tensor by tensor.

    A tensor whose cosine with its counterpart exceeds ``threshold`` in size is interpolated on the line instead.
    """
    _check([base, model])
    merged = {}
    for name in names(base):
        x, y = _f32(base[name]), _f32(model[name])
        a, b = slerp_coefficients(sum_products(x, x), sum_products(y, y), sum_products(x, y), t, threshold)
        merged[name] = a * x + b * y
    return merged


def slerp_coefficients(xx: float, yy: float, xy: float, t: float, threshold: float) -> tuple[np.float32, np.float32]:
    """What the two ends are multiplied by, from their three inner products."""
    norm = (math.sqrt(xx) if xx > 1e-16 else 1.0) * (math.sqrt(yy) if yy > 1e-16 else 1.0)
    cosine = max(-1.0, min(1.0, xy / norm))
    if abs(cosine) > threshold:
        return np.float32(1 - t), np.float32(t)
    angle = math.acos(cosine)
    return np.float32(math.sin((1 - t) * angle) / math.sin(angle)), np.float32(math.sin(t * angle) / math.sin(angle))


def model_stock(base: Tensors, models: Sequence[Tensors]) -> dict[str, Array]:
    """``t * mean(models) + (1 - t) * base`` with ``t = N cos / (1 + (N - 1) cos)`` (arXiv 2403.19522, section 4.2).

    ``cos`` is the mean cosine between the deltas of two models, per tensor. N = ``len(models)`` >= 2.
    """
    _check([base, *models])
    if len(models) < 2:
        raise ValueError("model_stock takes at least two models besides the base")
    merged = {}
    for name in names(base):
        x = _f32(base[name])
        deltas = [_f32(m[name]) - x for m in models]
        products = [sum_products(a, b) for i, a in enumerate(deltas) for b in deltas[i:]]
        t = stock_ratio(products, len(models))
        mean = reduce(np.add, [_f32(m[name]) for m in models]) / np.float32(len(models))
        merged[name] = t * mean + (np.float32(1) - t) * x
    return merged


def stock_ratio(products: Sequence[float], count: int) -> np.float32:
    """The ratio t from the inner products of the deltas (i <= j, row by row); 0 where it has a pole."""
    table = dict(zip([(i, j) for i in range(count) for j in range(i, count)], products, strict=True))
    cosines = [
        max(-1.0, min(1.0, table[i, j] / max(math.sqrt(table[i, i] * table[j, j]), 1e-6)))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    below = 1 + (count - 1) * cosine
    return np.float32(0 if abs(below) < 1e-6 else count * cosine / below)


# Methods on deltas.


def task_arithmetic(
    base: Tensors, models: Sequence[Tensors], weights: Sequence[float], scale: float = 1.0, normalize: bool = False
) -> dict[str, Array]:
    """``base + scale * sum(w * delta)`` (arXiv 2212.04089, section 4); ``normalize`` divides by the sum of weights."""
    return _merge(base, models, weights, lambda name, m, delta: delta, "none", normalize, scale)


def ties(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float = 1.0,
    normalize: bool = True,
    rescale: Rescale = "none",
) -> dict[str, Array]:
    """Trim each delta to its largest magnitudes, elect a sign per parameter, merge what agrees (arXiv 2306.01708, 3.2).

    ``normalize`` divides by the weights of the models that agree (the paper's disjoint mean).
    """

    def trim(name: str, m: int, delta: Array) -> Array:
        return rescaled(delta, delta * top_abs(delta, kept(delta.size, densities[m])), rescale, densities[m])

    return _merge(base, models, weights, trim, "sum", normalize, scale, densities=densities)


def dare(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    densities: Sequence[float],
    consensus: Consensus = "none",
    seed: int = 0,
    rescale: Rescale = "density",
    scale: float = 1.0,
    normalize: bool = False,
) -> dict[str, Array]:
    """Keep each parameter's delta with probability ``density`` and divide it by that (arXiv 2311.03099, section 3.2).

    ``consensus="sum"`` elects signs as :func:`ties` does. ``rescale="l1"`` restores the L1 norm instead (mergekit's).
    """

    def drop(name: str, m: int, delta: Array) -> Array:
        if densities[m] >= 1:
            return delta
        keep = random_bits(seed, m, name, 0, delta.size) < below(densities[m])
        return rescaled(delta, delta * keep.reshape(delta.shape), rescale, densities[m])

    return _merge(base, models, weights, drop, consensus, normalize, scale, densities=densities)


def della(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    densities: Sequence[float],
    epsilon: float = 0.15,
    consensus: Consensus = "sum",
    seed: int = 0,
    rescale: Rescale = "density",
    scale: float = 1.0,
    normalize: bool = True,
) -> dict[str, Array]:
    """MAGPRUNE: the probability to keep grows with the rank of the magnitude in its row (arXiv 2406.11617, section 3).

    It runs from ``density - epsilon`` to ``density + epsilon``; what is kept is divided by its probability.

    Raises:
        ValueError: that range is not inside (0, 1).
    """

    def prune(name: str, m: int, delta: Array) -> Array:
        if densities[m] >= 1:
            return delta
        chance = keep_chances(delta, densities[m], epsilon)
        keep = random_bits(seed, m, name, 0, delta.size).reshape(delta.shape) < chance * 2.0**32
        return rescaled(delta, delta * keep, rescale, chance.astype(np.float32), row(delta.shape))

    return _merge(base, models, weights, prune, consensus, normalize, scale, densities=densities)


def breadcrumbs(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    densities: Sequence[float],
    gamma: float = 0.01,
    consensus: Consensus = "none",
    scale: float = 1.0,
    normalize: bool = False,
    rescale: Rescale = "none",
) -> dict[str, Array]:
    """Drop the fraction ``gamma`` of largest magnitudes and the smallest, keep ``density`` (arXiv 2312.06795, 3.1)."""

    def mask(name: str, m: int, delta: Array) -> Array:
        upper, lower = breadcrumbs_counts(delta.size, densities[m], gamma)
        keep = top_abs(delta, lower) & ~top_abs(delta, upper)
        return rescaled(delta, delta * keep, rescale, densities[m])

    return _merge(base, models, weights, mask, consensus, normalize, scale, densities=densities)


def hi_merging(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    densities: Sequence[float],
    scales: Sequence[float],
    scope: Scope = "tensor",
    consensus: Consensus = "none",
) -> dict[str, Array]:
    """Stage 1 of Hi-Merging and the initial merge: ``base + sum(w * s * TopAbs(delta, p))`` (arXiv 2506.12379).

    ``densities`` are the kept fractions p, ``scales`` the factors s, one per model. Not normalised, or the scales of a
    single model would cancel. ``consensus="sum"`` elects signs as in the released pipeline.
    """
    _count(models, weights=weights, densities=densities, scales=scales)
    pruned = [prune_and_scale(deltas(base, m), p, s, scope) for m, p, s in zip(models, densities, scales)]
    return _merge(base, models, weights, lambda name, m, delta: pruned[m][name], consensus, False, 1.0)


# The parts they are made of.


def deltas(base: Tensors, model: Tensors) -> dict[str, Array]:
    """``model - base``, fp32."""
    _check([base, model])
    return {name: _f32(model[name]) - _f32(base[name]) for name in names(base)}


def prune_and_scale(delta: Tensors, p: float, s: float, scope: Scope = "tensor") -> dict[str, Array]:
    """``s * TopAbs(delta, p)``: keep the fraction ``p`` of largest magnitudes, times ``s`` (Hi-Merging, stage 1).

    ``scope`` is over what the fraction is taken: each tensor, each block of the network (tensors outside the blocks
    each for themselves), or the whole model. Of equal magnitudes the first are kept: tensors in the order of
    :func:`names`, elements in memory order.
    """
    pruned = {}
    for group in groups(delta, scope):
        flat = np.concatenate([_f32(delta[name]).ravel() for name in group])
        keep = top_abs(flat, kept(flat.size, p))
        ends = np.cumsum([delta[name].size for name in group])
        for name, part in zip(group, np.split(np.float32(s) * (flat * keep), ends[:-1])):
            pruned[name] = part.reshape(delta[name].shape)
    return pruned


def add_deltas(
    base: Tensors, deltas: Sequence[Tensors], weights: Sequence[float], consensus: Consensus = "none"
) -> dict[str, Array]:
    """``base + combine(w * delta)``, not normalised: from edited deltas back to a model."""
    _count(deltas, weights=weights)
    _check([base, *deltas])
    return {
        name: _f32(base[name]) + combine([_f32(d[name]) for d in deltas], weights, consensus, False, 1.0)
        for name in names(base)
    }


def combine(parts: Sequence[Array], weights: Sequence[float], consensus: Consensus, normalize: bool, scale: float):
    """``scale * sum(w * part)``; ``consensus="sum"``: of the parts that share the sign of that sum (TIES, 3.2).

    ``normalize`` divides by the sum of weights, of the agreeing ones under consensus. A sum of zero counts as positive,
    a part of zero agrees with nothing, and where the weights sum to zero nothing is divided.
    """
    parts = [part * np.float32(w) for part, w in zip(parts, weights, strict=True)]
    total = reduce(np.add, parts)
    if consensus == "sum":
        agree = [np.where(total >= 0, part > 0, part < 0) for part in parts]
        total = reduce(np.add, [part * a for part, a in zip(parts, agree)])
        divisor = reduce(np.add, [np.float32(w) * a for w, a in zip(weights, agree)])
        divisor = divisor + (divisor == 0)
    else:
        divisor = sum_of_weights(weights)
        divisor = divisor if abs(divisor) >= 1e-8 else np.float32(1)
    return (total / divisor if normalize else total) * np.float32(scale)


def kept(size: int, density: float) -> int:
    """How many of ``size`` elements a density keeps: ``floor(density * size)``, at least one if it is positive."""
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 and size else 0


def breadcrumbs_counts(size: int, density: float, gamma: float) -> tuple[int, int]:
    """Ranks by falling magnitude between which :func:`breadcrumbs` keeps: ``upper <= rank < lower``."""
    if density >= 1:
        return 0, size
    keep = int(density * size)
    smallest = max(0, size - keep - int(gamma * size))
    return size - smallest - keep, size - smallest


def top_abs(values: Array, k: int) -> Array:
    """Where the ``k`` largest magnitudes are, exactly ``k`` of them; of equal ones the first in memory order."""
    magnitude = np.abs(values).ravel()
    keep = np.zeros(magnitude.size, bool)
    if k:
        threshold = np.partition(magnitude, -k)[-k]
        keep = magnitude > threshold
        keep[np.flatnonzero(magnitude == threshold)[: k - np.count_nonzero(keep)]] = True
    return keep.reshape(values.shape)


def keep_chances(delta: Array, density: float, epsilon: float) -> Array:
    """fp64 probabilities of :func:`della`, by rank in the last dimension; a row of one element has ``density``."""
    check_chances(density, epsilon)
    rows = np.abs(delta).reshape(-1, row(delta.shape))
    last = rows.shape[1] - 1
    if not last:
        return np.full(delta.shape, float(density))
    rank = np.empty(rows.shape)
    np.put_along_axis(rank, np.argsort(rows, axis=1, kind="stable"), np.arange(last + 1.0)[None], axis=1)
    return (density - epsilon + rank / last * (2 * epsilon)).reshape(delta.shape)


def check_chances(density: float, epsilon: float) -> None:
    """Refuse a range of probabilities that is not inside (0, 1) with a ValueError."""
    if not (epsilon >= 0 and density - epsilon > 0 and density + epsilon <= 1 - 2**-32):
        raise ValueError(f"density {density} +- epsilon {epsilon} leaves (0, 1)")


def rescaled(before: Array, after: Array, how: Rescale, density: float | Array, block: int = BLOCK) -> Array:
    """``after`` (a thinned ``before``) divided by its ``density``, or with the L1 norm of ``before``, or as it is."""
    if how == "density":
        return after / np.float32(density) if np.ndim(density) or 0 < density < 1 else after
    if how == "l1":
        return after * l1_factor(sum_magnitudes(before, block), sum_magnitudes(after, block))
    return after


def l1_factor(before: float, after: float) -> np.float32:
    """What restores a norm of ``before``; 1 if there is nothing to restore."""
    return np.float32(before / after if before >= 1e-7 and after >= 1e-7 else 1)


def random_bits(seed: int, model: int, name: str, start: int, count: int) -> Array:
    """``count`` 32-bit numbers (uint32) for the elements from ``start`` of a tensor of the model at position ``model``.

    Counter-based (Philox 4x64): element i has the same number however the tensor is cut.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()[:16], "little")
    first, skip = divmod(start, 8)
    raw = np.random.Philox(key=key, counter=first).random_raw((skip + count + 1) // 2)
    return raw.view(np.uint32)[skip : skip + count]


def below(density: float) -> np.uint32:
    """32-bit numbers under this come with probability ``density`` < 1."""
    return np.uint32(max(0.0, density) * 2.0**32)


def lora_delta(a: Array, b: Array, scale: float) -> Array:
    """``scale * B A`` for factors A (rank, in) and B (out, rank), summed rank by rank (arXiv 2106.09685, eq. 3)."""
    a, b = _f32(a), _f32(b)
    total = b[:, :1] * a[:1]
    for j in range(1, a.shape[0]):
        total += b[:, j : j + 1] * a[j]
    return total * np.float32(scale)


def sum_magnitudes(x: Array, block: int = BLOCK) -> float:
    """Sum of magnitudes in fp64."""
    return math.fsum(block_sums(np.abs(x.ravel()).astype(np.float64), block))


def sum_products(x: Array, y: Array) -> float:
    """Inner product in fp64."""
    return math.fsum(block_sums(x.ravel().astype(np.float64) * y.ravel(), BLOCK))


def block_sums(x: Array, block: int = BLOCK) -> list[float]:
    """Sums of consecutive blocks of a flat array; the last block may be shorter."""
    whole = x.size - x.size % block
    sums = np.add.reduce(x[:whole].reshape(-1, block), axis=1).tolist() if whole else []
    return [*sums, float(np.add.reduce(x[whole:]))] if whole < x.size else sums


def sum_of_weights(weights: Iterable[float]) -> np.float32:
    """fp32 sum in order."""
    return reduce(np.add, [np.float32(w) for w in weights])


def row(shape: Sequence[int]) -> int:
    """Elements of a row (the last dimension)."""
    return max(1, shape[-1]) if len(shape) else 1


# Names.


def layer(name: str) -> tuple[str, int] | None:
    """Stack and number of the block that a tensor belongs to: the first number among the parts of its name.

    ``model.layers.3.mlp.up_proj.weight`` is in block 3 of ``model.layers``; embeddings, final norm and head in none.
    """
    found = re.match(r"(.*?)\.(\d+)\.", f"{name}.")
    return (found.group(1), int(found.group(2))) if found else None


def names(tensors: Iterable[str]) -> list[str]:
    """Tensor names in the order that ties are broken in: numbers by value, so block 2 comes before block 10."""
    return sorted(tensors, key=lambda name: [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")])


def groups(tensors: Iterable[str], scope: Scope) -> list[list[str]]:
    """Names that share one threshold under ``scope``."""
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r}: one of {', '.join(SCOPES)}")
    found: dict[object, list[str]] = {}
    for name in names(tensors):
        key = {"tensor": name, "layer": layer(name) or name, "model": None}[scope]
        found.setdefault(key, []).append(name)
    return list(found.values())


def _merge(
    base: Tensors,
    models: Sequence[Tensors],
    weights: Sequence[float],
    sparsify: Callable[[str, int, Array], Array],
    consensus: Consensus,
    normalize: bool,
    scale: float,
    **per_model: Sequence[float],
) -> dict[str, Array]:
    _count(models, weights=weights, **per_model)
    _check([base, *models])
    merged = {}
    for name in names(base):
        x = _f32(base[name])
        parts = [sparsify(name, m, _f32(model[name]) - x) for m, model in enumerate(models)]
        merged[name] = x + combine(parts, weights, consensus, normalize, scale)
    return merged


def _check(models: Sequence[Tensors]) -> None:
    first = models[0]
    for i, model in enumerate(models[1:], 1):
        if different := set(first) ^ set(model):
            raise ValueError(f"model {i}: tensor {min(different)!r} is not in both it and the first model")
        for name, tensor in model.items():
            if tensor.shape != first[name].shape:
                raise ValueError(f"model {i}: {name!r} has shape {tensor.shape}, in the first {first[name].shape}")


def _count(models: Sequence[Tensors], **per_model: Sequence[float]) -> None:
    if not models:
        raise ValueError("no models to merge")
    for what, values in per_model.items():
        if len(values) != len(models):
            raise ValueError(f"{len(values)} {what} for {len(models)} models")


def _f32(x: Array) -> Array:
    return np.asarray(x, dtype=np.float32)
