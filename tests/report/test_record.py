import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from zfu_lib.report import record


def make(**changes: Any) -> record.Record:
    measured = record.Measurement(mean=0.1 + 0.2, low=1e-17, high=1e17, n=3, method="t", values=[0.1, 1 / 3, 5e-324])
    fields = {
        "slug": "p",
        "profile": "quick",
        "run_id": "r",
        "started": "2026-01-01T00:00:00+00:00",
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "parameters": {"seeds": 3},
        "provenance": {"python": "3.11"},
        "data": [],
        "values": {"word": "ω ≥ 5", "count": 2**60},
        "measurements": {"m": measured},
        "claims": [],
        "figures": {"f": record.Figure(caption="c", alt="a", data=[1.5, None, {"x": [1, 2]}])},
    }
    return record.Record(**(fields | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    record.write(make(), file)
    read = record.read(file)
    assert read == make(seal=read.seal)
    assert len(read.seal) == 64


@pytest.mark.parametrize("place", [("values", "count"), ("measurements", "m"), ("provenance", "python"), ("run_id",)])
def test_a_changed_record_is_refused(tmp_path: Path, place: tuple[str, ...]) -> None:
    file = tmp_path / "result.json"
    record.write(make(), file)
    content = json.loads(file.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = {**inner["m"], "mean": 0.5} if place[-1] == "m" else "other"
    file.write_text(json.dumps(content))
    with pytest.raises(record.RecordError, match="changed after it was sealed"):
        record.read(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"slug": "p"}'])
def test_half_a_record_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(record.RecordError, match="not a run record"):
        record.read(file)


def test_no_record_is_a_run_without_its_last_cell(tmp_path: Path) -> None:
    with pytest.raises(record.RecordError, match="last cell"):
        record.read(tmp_path / "result.json")


def test_a_record_without_seal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(make().model_dump_json())
    with pytest.raises(record.RecordError):
        record.read(file)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(record.RecordError, match=r"record\.values\.loss"):
        record.write(make(values={"loss": bad}), tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/home/me/x", "/root/x", "/tmp/x", "/Users/me/x", "C:\\Users\\me"])
def test_a_path_of_this_machine_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(record.RecordError, match="no paths"):
        record.write(make(values={"file": path}), tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


def test_provenance_names_nobody() -> None:
    text = json.dumps(record.provenance())
    assert os.uname().nodename not in text or len(os.uname().nodename) < 3
    assert "/" not in text.replace("cpu/", "")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pointer"
    record.write_atomically(file, "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        record.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
