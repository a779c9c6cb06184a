"""The checks between a run that Papermill calls a success and a run that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zfu_lib.report import execute, record
from zfu_lib.report.profiles import Cost

RUN = "20260101T000000Z-abcdef"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of paper ``p`` before it is checked."""
    (tmp_path / "_toc.yml").touch()
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    folder = tmp_path / "runs" / "quick" / "p" / f"{RUN}.partial"
    folder.mkdir(parents=True)
    write(folder)
    record.write(made(), folder / "result.json")
    return folder


def made(**changes: Any) -> record.Record:
    fields: dict[str, Any] = {
        "slug": "p",
        "profile": "quick",
        "run_id": RUN,
        "started": "now",
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "parameters": {},
        "provenance": {},
        "data": [],
        "values": {},
        "measurements": {},
        "claims": [],
        "figures": {},
    }
    return record.Record(**(fields | changes))


def write(folder: Path, **changes: Any) -> None:
    cell = {
        "cell_type": "code",
        "source": ["run.seal()"],
        "metadata": {},
        "execution_count": 1,
        "outputs": [],
    } | changes
    about = {"papermill": {"input_path": "/elsewhere/p.ipynb", "output_path": "/elsewhere/o.ipynb"}}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": [cell]}
    (folder / "notebook.ipynb").write_text(json.dumps(notebook))


def check(work: Path) -> record.Record:
    return execute._check("p", "quick", RUN, work)


def test_a_whole_run_passes_and_loses_its_paths(work: Path) -> None:
    assert check(work).run_id == RUN
    assert "elsewhere" not in (work / "notebook.ipynb").read_text()


def refused(work: Path) -> execute.RunFailed:
    with pytest.raises(execute.RunFailed) as caught:
        check(work)
    return caught.value


def test_a_cell_that_did_not_run(work: Path) -> None:
    write(work, execution_count=None)
    assert refused(work).kind == "unfinished"
    write(work, execution_count=None, metadata={"tags": ["skip-execution"]})
    assert check(work)


@pytest.mark.parametrize(("name", "kind"), [("ValueError", "exception"), ("SystemExit", "unfinished")])
def test_an_error_in_an_output(work: Path, name: str, kind: str) -> None:
    error = {"output_type": "error", "ename": name, "evalue": "0", "traceback": []}
    write(work, outputs=[error])
    assert refused(work).kind == kind
    write(work, outputs=[error], metadata={"tags": ["raises-exception"]})
    assert check(work), "an error that is shown on purpose"


def test_no_seal(work: Path) -> None:
    (work / "result.json").unlink()
    assert refused(work).reason == "the notebook ended without a seal (run.seal() is its last cell)"


def test_a_broken_seal(work: Path) -> None:
    (work / "result.json").write_text((work / "result.json").read_text().replace("1.0", "2.0"))
    assert "changed after its seal" in refused(work).reason


@pytest.mark.parametrize("other", [{"slug": "q"}, {"profile": "full"}, {"run_id": "another"}])
def test_a_record_of_another_run(work: Path, other: dict[str, str]) -> None:
    record.write(made(**other), work / "result.json")
    assert refused(work).kind == "mismatch"


def test_a_path_in_an_output(work: Path) -> None:
    private = f"see {work.parents[3]}/secret"
    write(work, outputs=[{"output_type": "stream", "name": "stdout", "text": [private]}])
    assert "path of this machine" in refused(work).reason


def test_limits_leave_room_and_grow_with_the_work() -> None:
    assert execute.time_limit(Cost("a", minutes=1, memory_gb=1)) == 15 * 60
    assert execute.time_limit(Cost("a", minutes=25, memory_gb=1)) == 150 * 60
    assert execute.time_limit(Cost("a", minutes=25, memory_gb=1), factor=2) == 300 * 60


def test_environment_is_offline_and_one_thread_for_quick(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFU_DATA", "relative")
    quick, full, paper = (execute.environment(profile, work, work) for profile in ("quick", "full", "paper"))
    assert (quick["OMP_NUM_THREADS"], quick["HF_HUB_OFFLINE"], quick["CUDA_VISIBLE_DEVICES"]) == ("1", "1", "")
    assert full["HF_HUB_OFFLINE"] == "1"
    assert full.get("CUDA_VISIBLE_DEVICES") != ""
    assert paper.get("HF_HUB_OFFLINE") != "1"
    assert Path(quick["ZFU_DATA"]).is_absolute()
    assert quick["ZFU_RUN_DIR"] == str(work)
