"""What differs between two run records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zfu_lib.report.record import Measurement, Record


@dataclass(frozen=True)
class Change:
    """One difference. ``what`` is its kind, ``a`` and ``b`` the two sides (None: that run does not have it)."""

    what: str
    name: str
    a: Any
    b: Any
    remark: str = ""

    @staticmethod
    def show(side: Any) -> str:
        """One side in words."""
        if side is None:
            return "-"
        if isinstance(side, dict) and "mean" in side:
            return f"{side['mean']:.4g} [{side['low']:.4g}, {side['high']:.4g}], n = {side['n']}"
        return f"{side:.6g}" if isinstance(side, float) else str(side)


def compare(a: Record, b: Record) -> list[Change]:
    """Differences in parameters, environment, data, values, measurements and verdicts, in this order.

    Times, run ids and peak memory differ between any two runs and are left out.
    """
    found = [
        *_changes("paper", {"slug": a.slug}, {"slug": b.slug}),
        *_changes("parameter", _parameters(a), _parameters(b)),
        *_changes("version", a.provenance["versions"], b.provenance["versions"]),
        *_changes("provenance", _plain(a.provenance), _plain(b.provenance)),
        *_changes("data", {d.name: d.sha256[:12] for d in a.data}, {d.name: d.sha256[:12] for d in b.data}),
        *_changes("value", _values(a), _values(b)),
    ]
    for name in sorted(a.measurements.keys() | b.measurements.keys()):
        left, right = a.measurements.get(name), b.measurements.get(name)
        if left != right:
            found.append(Change("measurement", name, _interval(left), _interval(right), _remark(left, right)))
    verdicts = [{j.claim: j.verdict.value for j in r.claims} for r in (a, b)]
    return [*found, *_changes("verdict", *verdicts)]


def _changes(what: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield Change(what, name, a.get(name), b.get(name))


def _parameters(record: Record) -> dict[str, Any]:
    return record.parameters.get("resolved", record.parameters)


def _plain(provenance: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in provenance.items() if name != "versions"}


def _values(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.values.items() if name not in record.measurements}


def _interval(measurement: Measurement | None) -> dict[str, Any] | None:
    return None if measurement is None else {k: getattr(measurement, k) for k in ("mean", "low", "high", "n", "unit")}


def _remark(a: Measurement | None, b: Measurement | None) -> str:
    if a is None or b is None:
        return "only in one run"
    return "intervals overlap" if a.low <= b.high and b.low <= a.high else "intervals do not overlap"
