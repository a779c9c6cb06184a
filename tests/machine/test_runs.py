"""What `zfu run` does with notebooks, also with those that fail in ways that look like success."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from zfu_lib.report import record


@pytest.fixture(scope="module")
def ran(shared_project: Any) -> Any:
    """A project whose miniature has one good run."""
    done = shared_project.zfu("run", "mini")
    assert done.returncode == 0, done.stderr
    return shared_project


def test_a_good_run_is_sealed_and_current(ran: Any) -> None:
    folder = ran.runs() / ran.current()
    found = record.read(folder / "result.json")
    assert (found.slug, found.profile, found.run_id) == ("mini", "quick", ran.current())
    assert found.parameters["resolved"]["scale"] == 1.0
    assert found.claims[0].verdict == "direction holds"
    assert found.provenance["threads"] == 1
    assert {p.name for p in folder.iterdir()} == {"result.json", "notebook.ipynb", "log.txt"}
    assert json.loads((ran.runs() / "current.json").read_text())["seal"] == found.seal


def test_a_run_with_own_parameters_is_sealed_and_not_current(ran: Any) -> None:
    before = ran.current()
    done = ran.zfu("run", "mini", "-p", "scale=1e-3", "-p", "sizes=[4, 5]", "--seeds", "4")
    assert done.returncode == 0, done.stderr
    folder = ran.folder / re.search(r"runs/quick/mini/\S+", done.stdout).group(0)
    found = record.read(folder / "result.json")
    assert {name: found.parameters["resolved"][name] for name in ("scale", "sizes", "seeds")} == {
        "scale": 0.001,
        "sizes": [4, 5],
        "seeds": 4,
    }
    assert found.measurements["doubled"].n == 4
    assert ran.current() == before
    changes = json.loads(ran.zfu("diff", "quick/mini", str(folder), "--json").stdout)
    assert {(change["what"], change["name"]) for change in changes} >= {
        ("parameter", "scale"),
        ("parameter", "seeds"),
        ("measurement", "doubled"),
    }


def test_a_sealed_notebook_names_no_place(ran: Any) -> None:
    text = (ran.runs() / ran.current() / "notebook.ipynb").read_text()
    assert str(ran.folder) not in text
    assert json.loads(text)["metadata"]["papermill"]["input_path"] == "notebooks/mini.ipynb"


def test_the_source_notebook_stays_clean(ran: Any) -> None:
    notebook = nbformat.read(ran.folder / "notebooks" / "mini.ipynb", as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)


@pytest.mark.parametrize(
    ("parameters", "code", "says"),
    [
        (["act=raise"], 1, r"exception: RuntimeError: half-way \(in code cell 4 of 7\)"),
        (["act=exit"], 1, r"unfinished: the notebook stopped itself: SystemExit: 0"),
        (["act=die"], 1, r"killed: the kernel died in code cell 4 of 7"),
        (["sead=9"], 2, r"unknown parameter 'sead'; did you mean 'seeds'"),
        (["flag='false'"], 2, r"flag = 'false' is str, not bool"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_failed_run_says_why_and_replaces_nothing(ran: Any, parameters: list[str], code: int, says: str) -> None:
    before = ran.current()
    done = ran.zfu("run", "mini", *(word for parameter in parameters for word in ("-p", parameter)))
    assert done.returncode == code
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert ran.current() == before
    assert not list(ran.runs().glob("*.partial"))
    if code == 1:
        failed = list(ran.runs().glob("*.failed"))
        assert len(failed) == 1, "only the newest failure is kept"
        assert not (failed[0] / "result.json").exists()
        log = (failed[0] / "log.txt").read_text()
        assert re.search(says, log)
        assert "act=raise" not in parameters or 'raise RuntimeError("half-way")' in log
        assert "\x1b[" not in log


def test_a_notebook_that_hangs_is_stopped_with_its_kernel(ran: Any) -> None:
    before = ran.current()
    started = time.monotonic()
    done = ran.zfu("run", "mini", "-p", "act=sleep", "--limit", "0.2")
    assert done.returncode == 1
    assert "time limit: stopped after 0.2 minutes in code cell 4 of 7" in done.stderr
    assert time.monotonic() - started < 60
    assert ran.current() == before
    assert not family(ran.folder)


def family(folder: Path) -> list[psutil.Process]:
    """Processes that work for a project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ZFU_ROOT") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("moment", ["before the kernel", "in a cell"])
def test_killed_at_any_moment_it_completes_the_next_time(project: Any, moment: str) -> None:
    runner = project.start("zfu_lib.cli", "run", "mini", "-p", "act=sleep")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        work = list(project.runs().glob("*.partial"))
        # Papermill saves the notebook after each cell; the one that sleeps is the fourth.
        file = work[0] / "notebook.ipynb" if work else None
        if work and (moment == "before the kernel" or (file.is_file() and begun(file) >= 3)):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the run never got that far")
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert project.current() is None
    assert not [place for place in project.runs().iterdir() if re.fullmatch(r"[0-9TZ]+-[0-9a-f]+", place.name)]
    again = project.zfu("run", "mini")
    assert again.returncode == 0, again.stderr
    assert record.read(project.runs() / project.current() / "result.json").run_id == project.current()
    assert not list(project.runs().glob("*.partial"))
    deadline = time.monotonic() + 15
    while left := family(project.folder):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


def begun(file: Path) -> int:
    try:
        cells = json.loads(file.read_text())["cells"]
    except ValueError:
        return 0
    return sum(cell.get("execution_count") is not None for cell in cells)


def test_a_run_waits_for_the_one_under_way_and_is_published(ran: Any) -> None:
    with open(ran.runs() / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = ran.start("zfu_lib.cli", "run", "mini", "--publish", stdout=subprocess.PIPE)
        for line in second.stdout:
            if "waiting for it to end" in line:
                break
        assert not list(ran.runs().glob("*.partial"))
    assert second.wait(60) == 0
    second.stdout.close()
    published = ran.folder / "book" / "results" / "mini" / "quick.json"
    assert published.read_text() == (ran.runs() / ran.current() / "result.json").read_text()
    assert record.read(published).slug == "mini"


def test_a_record_changed_after_its_seal_is_broken(ran: Any) -> None:
    result = ran.runs() / ran.current() / "result.json"
    good = result.read_text()
    result.write_text(good.replace("direction holds", "reproduced"))
    listed = ran.zfu("claims", "mini")
    result.write_text(good)
    assert listed.returncode == 1
    assert "changed after it was sealed" in listed.stderr
