"""Strict F1 of 100,000 sentences, one thread, beside nervaluate's strict schema on a tenth of them.

    python benchmarks/span_f1.py [--quick] [--check] [--json FILE]

Sentences of 40 characters with zero to four spans each; predictions are the gold with a third of the edges moved.
Target: our score takes at most two seconds; its F1 equals nervaluate's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time

import numpy as np
from _timing import Report, options, paired_seconds
from nervaluate import Evaluator

from zfu_lib.skills import metrics
from zfu_lib.skills.spans import Span

Layer = list[list[Span]]


def made(n: int, rng: np.random.Generator) -> tuple[Layer, Layer]:
    """Gold and predictions of ``n`` sentences."""
    gold, said = [], []
    for count in rng.integers(0, 5, n).tolist():
        starts = [10 * i + int(rng.integers(0, 4)) for i in range(count)]
        spans = [Span(a, a + int(rng.integers(2, 6)), "LSKT"[int(rng.integers(4))]) for a in starts]
        gold.append(spans)
        said.append([s._replace(end=s.end + 1) if rng.random() < 1 / 3 else s for s in spans])
    return gold, said


def theirs(gold: Layer, said: Layer) -> float:
    """F1 by nervaluate, whose ends are inclusive."""
    sides = [
        [[{"label": s.type, "start": s.start, "end": s.end - 1} for s in spans] for spans in side]
        for side in (gold, said)
    ]
    found = Evaluator(*sides, tags=list("LSKT"), loader="dict").evaluate()
    return found["overall"]["strict"].f1


def main() -> int:
    given = options(__doc__).parse_args()
    n = 5_000 if given.quick else 100_000
    gold, said = made(n, np.random.default_rng(0))
    report = Report(f"strict F1, {n} sentences")
    start = time.process_time()
    score = metrics.strict(gold, said).score().f1
    report.note(f"CPU time of one score: {time.process_time() - start:.2f} s (target: at most 2 s for 100,000)")
    part, other = gold[: n // 10], said[: n // 10]
    assert np.isclose(metrics.strict(part, other).score().f1, theirs(part, other)), "the same F1"
    assert 0.5 < score < 0.8
    seconds = paired_seconds(
        lambda: metrics.strict(part, other).score(), lambda: theirs(part, other), min(given.pairs, 5)
    )
    report.add(
        f"strict F1, {n // 10} sentences",
        "zfu",
        "nervaluate",
        *seconds,
        target=None if given.quick else 1.0,
        at_most=True,
    )
    return report.finish(given)


if __name__ == "__main__":
    raise SystemExit(main())
