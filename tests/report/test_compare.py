from typing import Any

from zfu_lib.report import record
from zfu_lib.report.compare import Change, compare
from zfu_lib.report.verdicts import Judgement, Verdict


def make(mean: float = 1.0, **changes: Any) -> record.Record:
    measured = record.Measurement(mean=mean, low=mean - 0.1, high=mean + 0.1, n=3, method="t")
    fields = {
        "slug": "p",
        "profile": "quick",
        "run_id": "r",
        "started": "now",
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "parameters": {"resolved": {"seeds": 3}},
        "provenance": {"device": "cpu", "versions": {"torch": "2"}},
        "data": [],
        "values": {"m": mean, "word": "a"},
        "measurements": {"m": measured},
        "figures": {},
        "claims": [Judgement(claim="p.S1", verdict=Verdict.REPRODUCED, reason="r")],
    }
    return record.Record(**(fields | changes))


def test_runs_that_differ_in_time_only_are_equal() -> None:
    assert compare(make(), make(run_id="other", wall_seconds=9.0, started="later", peak_memory_bytes=5)) == []


def test_every_kind_of_difference_is_found() -> None:
    other = make(
        mean=2.0,
        parameters={"resolved": {"seeds": 5}},
        provenance={"device": "cuda", "versions": {"torch": "3"}},
        data=[record.DataUsed(name="text", sha256="ab" * 32, bytes=1)],
        values={"m": 2.0, "word": "b"},
        claims=[Judgement(claim="p.S1", verdict=Verdict.INCONCLUSIVE, reason="r")],
    )
    found = {change.what: change for change in compare(make(), other)}
    assert found["parameter"] == Change("parameter", "seeds", 3, 5)
    assert found["version"] == Change("version", "torch", "2", "3")
    assert found["provenance"] == Change("provenance", "device", "cpu", "cuda")
    assert found["data"].a is None
    assert found["value"] == Change("value", "word", "a", "b")
    assert found["measurement"].remark == "intervals do not overlap"
    assert (found["verdict"].a, found["verdict"].b) == ("reproduced", "inconclusive")
    assert len(found) == 7


def test_overlap_is_said() -> None:
    assert compare(make(1.0), make(1.15))[0].remark == "intervals overlap"
    assert compare(make(), make(measurements={}, values={"word": "a"}))[0].remark == "only in one run"
