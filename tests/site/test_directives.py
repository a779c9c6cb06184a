"""What the directives show, without building a site: rows, files, and the HTML of each verdict."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from zfu_lib.report.verdicts import Verdict

from .conftest import REPOSITORY, VERDICTS


@pytest.fixture(scope="session")
def extension() -> ModuleType:
    """``book/_ext/zfu.py``, imported without leaving a cache in the book."""
    spec = importlib.util.spec_from_file_location("zfu_extension", REPOSITORY / "book" / "_ext" / "zfu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


@pytest.fixture
def shelf(extension: ModuleType, book: Path):
    """The executed book's claims and its run, placed where a staged tree has it."""
    run = next((book / "runs" / "quick" / "swat").glob("*/result.json"))
    place = book / "records" / "quick" / "swat.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(run.read_bytes())
    return extension.load(book)


def test_every_verdict_occurs(extension, shelf):
    assert set(VERDICTS.values()) == set(Verdict)
    assert {claim.id: judged.verdict for claim, judged in shelf.judged("swat", "quick")} == VERDICTS


def test_a_profile_without_a_run_is_not_run(shelf):
    assert {judged.verdict for _, judged in shelf.judged("swat", "full")} == {Verdict.NOT_RUN}


def test_a_claim_that_cannot_run_says_so_without_a_run(extension, book: Path):
    judged = {claim.id: judged for claim, judged in extension.load(book).judged("swat", "quick")}
    assert judged["swat.S7"].verdict == Verdict.CANNOT_RUN
    assert judged["swat.S7"].reason == "needs eight GPUs"
    assert judged["swat.S1"].verdict == Verdict.NOT_RUN


def test_a_claim_listed_after_the_run_is_not_run(extension, book: Path, shelf):
    file = book / "book" / "claims" / "swat.yml"
    more = "claims:\n  - {id: swat.S9, statement: New., source: here, kind: trend, metric: x}\n"
    file.write_text(file.read_text().replace("claims:\n", more, 1))
    judged = {claim.id: judged for claim, judged in extension.load(book).judged("swat", "quick")}
    assert (judged["swat.S9"].verdict, judged["swat.S9"].reason) == (Verdict.NOT_RUN, "listed after this run was made")


def test_without_a_chapter_nothing_is_done(extension, book: Path, shelf):
    (book / "notebooks" / "swat.ipynb").unlink()
    again = extension.load(book)
    assert not again.done("swat")
    assert again.run("swat", "quick") is None
    assert {judged.verdict for _, judged in again.judged("swat", "quick")} <= {Verdict.NOT_RUN, Verdict.CANNOT_RUN}


def test_json_and_csv_hold_every_claim_in_every_profile(extension, shelf):
    rows = json.loads(extension.as_json(shelf))
    assert {(row["id"], row["profile"]) for row in rows} == {
        (claim, profile) for claim in VERDICTS for profile in ("quick", "full", "paper")
    }
    assert {row["id"]: row["verdict"] for row in rows if row["profile"] == "quick"} == VERDICTS
    table = list(csv.DictReader(io.StringIO(extension.as_csv(shelf))))
    assert {row["claim"]: row["verdict"] for row in table if row["profile"] == "quick"} == VERDICTS
    gap = next(row for row in table if row["claim"] == "swat.S3" and row["profile"] == "quick")
    assert float(gap["mean"]) == pytest.approx(1.0)
    assert gap["deviations"] == "smaller model | other text"


def test_a_tampered_record_is_refused(extension, book: Path, shelf):
    file = book / "records" / "quick" / "swat.json"
    file.write_text(file.read_text().replace('"not reproduced"', '"reproduced"'))
    with pytest.raises(extension.record.RecordError, match="changed after it was sealed"):
        extension.load(book)


def test_text_of_a_claim_is_escaped(extension, shelf):
    claim = next(claim for claim in shelf.claims["swat"] if claim.id == "swat.S3")
    assert "&lt;at every size&gt;" in extension.said(claim)
    assert "Deviations (2)" in extension.said(claim)
    doubtful = next(claim for claim in shelf.claims["swat"] if claim.id == "swat.S5")
    assert "not confirmed" in extension.said(doubtful)


def test_bars_in_docstrings_are_absolute_values(extension):
    lines = ["The norm |x| of ``a | b``::", "", "    | drawn |", "", "and |y|."]
    extension._keep_bars(None, "", "", None, None, lines)
    assert lines == [r"The norm \|x\| of ``a | b``::", "", "    | drawn |", "", r"and \|y\|."]


def test_the_reference_names_every_module(extension):
    source = ["# Title\n\n% modules: zfu_lib.report\n"]
    extension._write_modules(None, "page", source)
    assert "automodule:: zfu_lib.report\n" in source[0]
    assert "## `zfu_lib.report.record`\n\n```{eval-rst}\n.. automodule:: zfu_lib.report.record\n" in source[0]


@pytest.mark.parametrize(("seconds", "words"), [(3.4, "3 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")])
def test_durations(extension, seconds: float, words: str):
    assert extension._duration(seconds) == words
