"""The methods on pieces of tensors, equal bit by bit to ``zfu_lib.merging.methods`` on whole ones.

A piece is a run of consecutive elements. What a method has to know about a whole tensor (a threshold, a norm) is
gathered in passes before the pass that merges; each pass reads the pieces again, so that memory is a few buffers a
thread whatever the size and number of the models.

The k-th largest magnitude is found without sorting: the bits of an fp32 number without its sign, read as a whole
number, are in the order of magnitudes. One pass counts their upper 15 bits, a second the lower 16 of those that share
the upper bits of the k-th. Where more elements equal the threshold than are wanted, a third counts those by piece, and
the first are kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from zfu_lib.merging import methods
from zfu_lib.merging.engine.checkpoint import SIZES, Buffers, encode
from zfu_lib.merging.engine.errors import DtypeError, NotFiniteError
from zfu_lib.merging.engine.plan import Input, Job, Plan
from zfu_lib.merging.engine.recipe import METHODS

PIECE = 1 << 18  # elements, at most
MEMORY = 24 << 20  # bytes of all buffers together, about
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_LOWS = 1 << 16  # lower bits gathered before they are counted


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop`` of a job's tensor, the ``index``-th piece of it."""

    job: Job
    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cut:
    """The largest magnitudes of a group: ``threshold`` as bits, and how many that equal it are kept in each piece.

    ``equal`` maps tensor names to one count per piece, -1 for all; None: all of them everywhere.
    """

    threshold: int
    equal: dict[str, np.ndarray] | None = None

    def mask(self, magnitude: np.ndarray, piece: Piece, out: np.ndarray) -> np.ndarray:
        """Where ``magnitude`` (bits without the sign) is kept, into ``out``."""
        wanted = -1 if self.equal is None else int(self.equal[piece.job.name][piece.index])
        if wanted < 0:
            return np.greater_equal(magnitude, np.uint32(self.threshold), out=out)
        np.greater(magnitude, np.uint32(self.threshold), out=out)
        if wanted:
            out[np.flatnonzero(magnitude == np.uint32(self.threshold))[:wanted]] = True
        return out


ALL, NONE = Cut(0), Cut(2**31)


def sizes(plan: Plan, threads: int) -> tuple[int, int, int]:
    """Sets of buffers in use, elements of a piece so that they fit into ``MEMORY``, bytes for each element."""
    slots = threads + 1 if threads > 1 else 1
    each = 32 + 4 * max(len(job.inputs) for job in plan.jobs) + (48 if "della" in plan.recipe.method else 0)
    return slots, min(PIECE, MEMORY // (slots * each)), each


class Stream:
    """Computes the tensors of a plan piece by piece.

    Args:
        threads: worker threads; the result does not depend on them.
        piece: elements of a piece, rounded up to whole blocks; the result does not depend on it.
    """

    def __init__(self, plan: Plan, threads: int = 1, piece: int | None = None) -> None:
        self.plan = plan
        self.method = plan.recipe.method
        slots, fitting, _ = sizes(plan, threads)
        self.piece = piece or fitting
        self.buffers = [Buffers() for _ in range(slots)]
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._cuts: dict[tuple[str, int], tuple[Cut, ...]] = {}

    def close(self) -> None:
        """End the threads."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def tensor(self, job: Job) -> Iterator[np.ndarray]:
        """The pieces of an output tensor as they are stored. A piece is valid until the next is asked for.

        Raises:
            NotFiniteError: an input or the result holds NaN or infinity.
        """
        if job.copy:
            return self._scan(self._copy, [job])
        merge = getattr(self, f"_{self.method}", None) or self._deltas
        return self._scan(self._encoded(merge(job)), [job])

    # Pieces.

    def pieces(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """The pieces of tensors, in order."""
        for job in jobs:
            step = self._block(job)
            step *= max(1, -(-self.piece // step))
            for index, start in enumerate(range(0, max(job.size, 1), step)):
                yield Piece(job, index, start, min(job.size, start + step))

    def _block(self, job: Job) -> int:
        """Elements that must not be separated: a row where magnitudes are ranked in rows."""
        return methods.row(job.shape) if "della" in self.method else methods.BLOCK

    def _scan(self, function: Callable[[Piece, Buffers], Any], jobs: Iterable[Job]) -> Iterator[Any]:
        """``function`` of every piece, in order. A result is used up before its buffers are used again."""
        if self.pool is None:
            for piece in self.pieces(jobs):
                yield function(piece, self.buffers[0])
            return
        waiting: deque[Any] = deque()
        for i, piece in enumerate(self.pieces(jobs)):
            if len(waiting) == len(self.buffers):
                yield waiting.popleft().result()
            waiting.append(self.pool.submit(function, piece, self.buffers[i % len(self.buffers)]))
        while waiting:
            yield waiting.popleft().result()

    def _encoded(self, merge: Callable[[Piece, Buffers], np.ndarray]) -> Callable[[Piece, Buffers], np.ndarray]:
        def encoded(piece: Piece, buffers: Buffers) -> np.ndarray:
            with np.errstate(all="ignore"):
                merged = merge(piece, buffers)
            try:
                return encode(merged, piece.job.dtype, buffers)
            except NotFiniteError as error:
                raise NotFiniteError(f"{piece.job.name!r}: {error}") from None

        return encoded

    def _read(self, source: Input, piece: Piece, name: str, buffers: Buffers) -> np.ndarray:
        out = buffers(name, np.float32, piece.stop - piece.start)
        return self.plan.models[source.model].read(source.name, piece.start, out, buffers)

    def _copy(self, piece: Piece, buffers: Buffers) -> np.ndarray:
        """A buffer of whole numbers, which has to be the same in all models."""
        first, *others = piece.job.sources
        size = (piece.stop - piece.start) * SIZES[piece.job.dtype]
        out = buffers("copy", np.uint8, size)
        self.plan.models[first.model].checkpoint.raw(first.name, piece.start, out)
        for other in others:
            compared = buffers("compared", np.uint8, size)
            self.plan.models[other.model].checkpoint.raw(other.name, piece.start, compared)
            if not np.array_equal(out, compared):
                a, b = self.plan.models[first.model].folder, self.plan.models[other.model].folder
                raise DtypeError(f"{piece.job.name!r} holds {piece.job.dtype} that differ between {a} and {b}")
        return out

    # Methods on whole models.

    def _linear(self, job: Job) -> Callable[[Piece, Buffers], np.ndarray]:
        weights = [np.float32(i.parameters["weight"]) for i in job.inputs]
        total = methods.sum_of_weights(weights) if job.shared["normalize"] else np.float32(1)
        # Where a product is exact in fp32, the sum has only one rounding in any case.
        exact = [self._exact_product(source, weight) for source, weight in zip(job.inputs, weights)]

        def merge(piece: Piece, buffers: Buffers) -> np.ndarray:
            merged = self._read(job.inputs[0], piece, "merged", buffers)
            np.multiply(merged, weights[0], out=merged)
            for source, weight, fp32 in list(zip(job.inputs, weights, exact))[1:]:
                x = self._read(source, piece, "x", buffers)
                product = x if fp32 else buffers("product", np.float64, x.size)
                np.multiply(x, weight if fp32 else np.float64(weight), out=product)
                np.add(merged, product, out=merged, casting="same_kind")
            return merged if total == 1 else np.divide(merged, total, out=merged)

        return merge

    def _exact_product(self, source: Input, weight: np.float32) -> bool:
        """Whether ``weight`` times any 16-bit number of the tensor is an fp32 number: a power of two, not too small."""
        model = self.plan.models[source.model]
        short = model.adapter is None and SIZES[model.checkpoint.entry(source.name).dtype] == 2
        return short and math.frexp(weight)[0] == 0.5 and 2**-16 <= weight <= 1

    def _passthrough(self, job: Job) -> Callable[[Piece, Buffers], np.ndarray]:
        scale = np.float32(job.inputs[0].parameters["scale"])

        def merge(piece: Piece, buffers: Buffers) -> np.ndarray:
            x = self._read(job.inputs[0], piece, "x", buffers)
            return np.multiply(x, scale, out=x)

        return merge

    def _slerp(self, job: Job) -> Callable[[Piece, Buffers], np.ndarray]:
        def products(piece: Piece, buffers: Buffers) -> list[list[float]]:
            x, y = (self._read(i, piece, i.name + str(i.model), buffers) for i in job.sources)
            return _products([x, y])

        xx, xy, yy = self._sums(products, job)
        a, b = methods.slerp_coefficients(xx, yy, xy, job.shared["t"], 0.9995)

        def merge(piece: Piece, buffers: Buffers) -> np.ndarray:
            x = self._read(job.base, piece, "base", buffers)
            y = self._read(job.inputs[0], piece, "x", buffers)
            return np.add(np.multiply(x, a, out=x), np.multiply(y, b, out=y), out=x)

        return merge

    def _model_stock(self, job: Job) -> Callable[[Piece, Buffers], np.ndarray]:
        def products(piece: Piece, buffers: Buffers) -> list[list[float]]:
            base = self._read(job.base, piece, "base", buffers)
            return _products([self._delta(m, piece, base, buffers) for m in range(len(job.inputs))])

        t = methods.stock_ratio(self._sums(products, job), len(job.inputs))

        def merge(piece: Piece, buffers: Buffers) -> np.ndarray:
            merged = self._read(job.inputs[0], piece, "merged", buffers)
            for source in job.inputs[1:]:
                np.add(merged, self._read(source, piece, "x", buffers), out=merged)
            np.divide(merged, np.float32(len(job.inputs)), out=merged)
            base = self._read(job.base, piece, "base", buffers)
            np.multiply(base, np.float32(1) - t, out=base)
            return np.add(np.multiply(merged, t, out=merged), base, out=merged)

        return merge

    def _sums(self, function: Callable[[Piece, Buffers], list[list[float]]], job: Job) -> list[float]:
        """Sums over the tensor of what ``function`` gives as sums of blocks; exact, so in any order."""
        columns = zip(*self._scan(function, [job]), strict=True)
        return [math.fsum(x for part in column for x in part) for column in columns]

    # Methods on deltas.

    def _deltas(self, job: Job) -> Callable[[Piece, Buffers], np.ndarray]:
        weights = [np.float32(i.parameters["weight"]) for i in job.inputs]
        scale = np.float32(job.shared.get("lambda", 1.0))
        elect = METHODS[self.method].elect or job.shared.get("consensus") == "sum"
        normalize = job.shared.get("normalize", False)
        whole = methods.sum_of_weights(weights)
        whole = whole if abs(whole) >= 1e-8 else np.float32(1)
        cuts = self._cuts_of(job)
        factors = self._l1_factors(job, cuts)

        def merge(piece: Piece, buffers: Buffers) -> np.ndarray:
            base = self._read(job.base, piece, "base", buffers)
            parts = []
            for m, weight in enumerate(weights):
                part = self._thinned(m, piece, self._delta(m, piece, base, buffers), cuts[m], factors[m], buffers)
                parts.append(np.multiply(part, weight, out=part))
            merged, divisor = (_elected if elect else _summed)(parts, weights, normalize, buffers)
            if normalize:
                np.divide(merged, whole if divisor is None else divisor, out=merged)
            if scale != 1:
                np.multiply(merged, scale, out=merged)
            return np.add(base, merged, out=merged)

        return merge

    def _delta(self, m: int, piece: Piece, base: np.ndarray, buffers: Buffers) -> np.ndarray:
        x = self._read(piece.job.inputs[m], piece, f"delta {m}", buffers)
        return np.subtract(x, base, out=x)

    def _thinned(
        self,
        m: int,
        piece: Piece,
        delta: np.ndarray,
        cuts: tuple[Cut, ...],
        factor: np.float32 | None,
        buffers: Buffers,
    ) -> np.ndarray:
        """What the method keeps of a delta, in place."""
        parameters = piece.job.inputs[m].parameters
        density = parameters.get("density", 1.0)
        if density < 1 and "dare" in self.method:
            bits = methods.random_bits(self.plan.seed, m, piece.job.name, piece.start, delta.size)
            keep = np.less(bits, methods.below(density), out=buffers("keep", bool, delta.size))
            np.multiply(delta, keep, out=delta)
            if piece.job.shared["rescale"] is True and density > 0:
                np.divide(delta, np.float32(density), out=delta)
        elif density < 1 and "della" in self.method:
            self._magprune(m, piece, delta, buffers)
        elif len(cuts) > 1 or cuts[0] is not ALL:
            bits = buffers("bits", np.uint32, delta.size)
            magnitude = np.bitwise_and(delta.view(np.uint32), _MAGNITUDE, out=bits)
            keep = cuts[0].mask(magnitude, piece, buffers("keep", bool, delta.size))
            if len(cuts) > 1:
                outliers = cuts[1].mask(magnitude, piece, buffers("outliers", bool, delta.size))
                np.greater(keep, outliers, out=keep)
            np.multiply(delta, keep, out=delta)
        if factor is not None:
            np.multiply(delta, factor, out=delta)
        if self.method == "hi_merging":
            np.multiply(delta, np.float32(parameters["scale"]), out=delta)
        return delta

    def _magprune(self, m: int, piece: Piece, delta: np.ndarray, buffers: Buffers) -> None:
        """DELLA on whole rows: ranks by one sort of keys that hold magnitude and column."""
        parameters = piece.job.inputs[m].parameters
        rows = delta.reshape(-1, methods.row(piece.job.shape))
        columns = np.arange(rows.shape[1], dtype=np.uint64)
        keys = buffers("keys", np.uint64, delta.size).reshape(rows.shape)
        keys[...] = rows.view(np.uint32) & _MAGNITUDE
        np.left_shift(keys, np.uint64(32), out=keys)
        np.bitwise_or(keys, columns, out=keys)
        keys.sort(axis=1)
        np.bitwise_and(keys, np.uint64(0xFFFFFFFF), out=keys)
        keys += (np.arange(rows.shape[0], dtype=np.uint64) * np.uint64(rows.shape[1]))[:, None]
        # The chances of a row that is already in order are those of its ranks.
        chances = methods.keep_chances(columns.astype(np.float32), parameters["density"], parameters["epsilon"])
        rank = buffers("rank", np.uint32, delta.size)
        rank[keys.view(np.int64).ravel()] = np.tile(columns.astype(np.uint32), rows.shape[0])
        bits = methods.random_bits(self.plan.seed, m, piece.job.name, piece.start, delta.size)
        keep = np.less(bits, np.ceil(chances * 2.0**32).astype(np.uint32)[rank])
        np.multiply(delta, keep, out=delta)
        if piece.job.shared["rescale"] is True:
            np.divide(delta, chances.astype(np.float32)[rank], out=delta)

    def _l1_factors(self, job: Job, cuts: Sequence[tuple[Cut, ...]]) -> list[np.float32 | None]:
        """What restores the L1 norm of each thinned delta, where the recipe asks for that."""
        rescale = job.shared.get("rescale")
        drawn = "dare" in self.method or "della" in self.method
        if not (rescale == "l1" or rescale and not drawn):
            return [None] * len(job.inputs)
        block = self._block(job)

        def norms(piece: Piece, buffers: Buffers) -> list[list[float]]:
            base = self._read(job.base, piece, "base", buffers)
            found = []
            for m in range(len(job.inputs)):
                delta = self._delta(m, piece, base, buffers)
                before = methods.block_sums(np.abs(delta).astype(np.float64), block)
                delta = self._thinned(m, piece, delta, cuts[m], None, buffers)
                found += [before, methods.block_sums(np.abs(delta).astype(np.float64), block)]
            return found

        sums = self._sums(norms, job)
        return [methods.l1_factor(*sums[2 * m : 2 * m + 2]) for m in range(len(job.inputs))]

    # Selection by counting.

    def _cuts_of(self, job: Job) -> list[tuple[Cut, ...]]:
        """For each model what it keeps above, and for breadcrumbs what it then drops above."""
        models = range(len(job.inputs))
        if self.method not in ("ties", "hi_merging", "breadcrumbs", "breadcrumbs_ties"):
            return [(ALL,) for _ in models]
        if (job.name, 0) not in self._cuts:
            group = self._group(job)
            size = sum(one.size for one in group)
            wanted = []
            for source in job.inputs:
                density = source.parameters["density"]
                if "gamma" in source.parameters:
                    upper, lower = methods.breadcrumbs_counts(size, density, source.parameters["gamma"])
                    wanted.append((lower, upper))
                else:
                    wanted.append((methods.kept(size, density),))
            cuts = self._select(group, size, wanted)
            self._cuts = {(one.name, m): cuts[m] for one in group for m in models}
        return [self._cuts[job.name, m] for m in models]

    def _group(self, job: Job) -> list[Job]:
        scope = job.shared.get("scope", "tensor")
        if scope == "tensor":
            return [job]
        floats = {one.name: one for one in self.plan.jobs if not one.copy}
        group = next(names for names in methods.groups(floats, scope) if job.name in names)
        return [floats[name] for name in group]

    def _select(self, jobs: list[Job], size: int, wanted: list[tuple[int, ...]]) -> list[tuple[Cut, ...]]:
        """Cuts that keep exactly the wanted numbers of the ``size`` elements of ``jobs``, for each model."""
        models = [m for m, counts in enumerate(wanted) if any(0 < k < size for k in counts)]
        highs = {m: np.zeros(1 << 15, np.int64) for m in models}

        def count_high(piece: Piece, buffers: Buffers) -> list[np.ndarray]:
            return [np.bincount(bits >> 16, minlength=1 << 15) for bits in self._bits(models, piece, buffers)]

        for counts in self._scan(count_high, jobs) if models else ():
            for m, count in zip(models, counts):
                highs[m] += count
        places = {(m, k): _locate(highs[m], k) for m in models for k in wanted[m] if 0 < k < size}
        lows = {place: _Lows() for place in places}

        def gather_low(piece: Piece, buffers: Buffers) -> list[np.ndarray]:
            found = {}
            for m, bits in zip(models, self._bits(models, piece, buffers)):
                high = np.right_shift(bits, 16, out=buffers("high", np.uint32, bits.size))
                for (n, k), (upper, _) in places.items():
                    if n == m:
                        there = np.equal(high, np.uint32(upper), out=buffers("keep", bool, bits.size))
                        found[n, k] = bits[there].astype(np.uint16)
            return [found[place] for place in places]

        for gathered in self._scan(gather_low, jobs) if places else ():
            for low, values in zip(lows.values(), gathered):
                low.add(values)
        thresholds, partial = {}, {}
        for (m, k), (upper, rest) in places.items():
            counts = lows[m, k].counts()
            lower, need = _locate(counts, rest)
            thresholds[m, k] = upper << 16 | lower
            if need < counts[lower]:
                partial[m, k] = need
        equal = self._share(jobs, models, thresholds, partial)
        found = {place: Cut(threshold, equal.get(place)) for place, threshold in thresholds.items()}
        return [
            tuple(ALL if k >= size else NONE if k <= 0 else found[m, k] for k in counts)
            for m, counts in enumerate(wanted)
        ]

    def _share(
        self,
        jobs: list[Job],
        models: list[int],
        thresholds: dict[tuple[int, int], int],
        partial: dict[tuple[int, int], int],
    ) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """How many of the elements that equal a threshold each piece keeps, where not all are kept: the first."""

        def count_equal(piece: Piece, buffers: Buffers) -> tuple[str, list[int]]:
            counts = {}
            for m, bits in zip(models, self._bits(models, piece, buffers)):
                for place in partial:
                    if place[0] == m:
                        same = np.equal(bits, np.uint32(thresholds[place]), out=buffers("keep", bool, bits.size))
                        counts[place] = int(np.count_nonzero(same))
            return piece.job.name, [counts[place] for place in partial]

        shares: dict[tuple[int, int], dict[str, list[int]]] = {place: {} for place in partial}
        left = dict(partial)
        for name, counts in self._scan(count_equal, jobs) if partial else ():
            for place, count in zip(partial, counts):
                shares[place].setdefault(name, []).append(-1 if count <= left[place] else left[place])
                left[place] = max(0, left[place] - count)
        return {place: {name: np.array(n) for name, n in share.items()} for place, share in shares.items()}

    def _bits(self, models: list[int], piece: Piece, buffers: Buffers) -> Iterator[np.ndarray]:
        """The magnitudes of the deltas of some models as whole numbers, one model at a time."""
        base = self._read(piece.job.base, piece, "base", buffers)
        for m in models:
            x = self._read(piece.job.inputs[m], piece, "delta 0", buffers)
            bits = np.subtract(x, base, out=x).view(np.uint32)
            yield np.bitwise_and(bits, _MAGNITUDE, out=bits)


class _Lows:
    """Counts of 16-bit numbers that come in small portions."""

    def __init__(self) -> None:
        self._total = np.zeros(1 << 16, np.int64)
        self._portions: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray) -> None:
        self._portions.append(values)
        self._size += values.size
        if self._size > _LOWS:
            self.counts()

    def counts(self) -> np.ndarray:
        if self._size:
            self._total += np.bincount(np.concatenate(self._portions), minlength=1 << 16)
            self._portions, self._size = [], 0
        return self._total


def _locate(counts: np.ndarray, k: int) -> tuple[int, int]:
    """The bin of the k-th largest of counted numbers, and the how-manieth largest of that bin it is (1 <= k)."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, k - before


def _products(arrays: list[np.ndarray]) -> list[list[float]]:
    """Block sums of all products of two, in the order (0, 0), (0, 1), ... (1, 1), ..."""
    return [
        methods.block_sums(x.astype(np.float64) * y, methods.BLOCK) for i, x in enumerate(arrays) for y in arrays[i:]
    ]


def _summed(
    parts: list[np.ndarray], weights: list[np.float32], normalize: bool, buffers: Buffers
) -> tuple[np.ndarray, None]:
    """The sum of weighted parts, in the memory of the first."""
    for part in parts[1:]:
        np.add(parts[0], part, out=parts[0])
    return parts[0], None


def _elected(
    parts: list[np.ndarray], weights: list[np.float32], normalize: bool, buffers: Buffers
) -> tuple[np.ndarray, np.ndarray | None]:
    """The sum of the weighted parts that share the sign of their sum, and the sum of their weights."""
    size = parts[0].size
    merged = buffers("merged", np.float32, size)
    merged[...] = parts[0]
    for part in parts[1:]:
        np.add(merged, part, out=merged)
    positive = np.greater_equal(merged, 0, out=buffers("positive", bool, size))
    negative = np.logical_not(positive, out=buffers("negative", bool, size))
    agree, below = buffers("keep", bool, size), buffers("outliers", bool, size)
    divisor = buffers("divisor", np.float32, size) if normalize else None
    for m, (part, weight) in enumerate(zip(parts, weights)):
        np.greater(part, 0, out=agree)
        np.less(part, 0, out=below)
        np.bitwise_and(agree, positive, out=agree)
        np.bitwise_and(below, negative, out=below)
        np.bitwise_or(agree, below, out=agree)
        np.multiply(part, agree, out=merged if m == 0 else part)
        if m:
            np.add(merged, part, out=merged)
        if divisor is not None:
            share = np.multiply(agree, weight, out=divisor if m == 0 else buffers("share", np.float32, size))
            if m:
                np.add(divisor, share, out=divisor)
    if divisor is not None:
        zero = np.equal(divisor, 0, out=agree)
        np.add(divisor, zero, out=divisor)
    return merged, divisor
