"""Snakemake: what is out of date runs, nothing else does, and a killed one is continued."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

SITE = """
import os, pathlib
from zfu_lib.report import execute, papers, paths
shown = {slug: execute.current(slug, "quick").record.run_id for slug in papers.chapters()}
place = paths.root() / "_build" / "html"
place.mkdir(parents=True, exist_ok=True)
(place / "index.html").write_text(str(shown))
"""


def book(project: Any, *arguments: str) -> Any:
    return project.call("snakemake", "--cores", "2", *arguments, timeout=240)


@pytest.fixture(scope="module")
def built(shared_project: Any) -> Any:
    shared_project.write("zfu_lib/report/site.py", SITE)
    done = book(shared_project, "book")
    assert done.returncode == 0, done.stderr
    return shared_project


def state(project: Any) -> tuple[str | None, str | None, str]:
    site = project.folder / "_build" / "html" / "index.html"
    return project.current("mini"), project.current("other"), site.read_text()


def test_the_site_shows_the_sealed_runs(built: Any) -> None:
    mini, other, site = state(built)
    assert mini in site
    assert other in site


def test_nothing_changed_nothing_executes(built: Any) -> None:
    before = state(built)
    done = book(built, "book")
    assert done.returncode == 0
    assert state(built) == before
    assert "started" not in done.stdout


def test_a_changed_module_runs_its_dependants_and_no_other(built: Any) -> None:
    mini, other, _ = state(built)
    built.write("zfu_lib/attention/mini.py", "def double(x):\n    return x + x\n")
    assert book(built, "book").returncode == 0
    now = state(built)
    assert now[0] != mini
    assert now[1] == other
    assert now[0] in now[2]


def test_a_failed_run_keeps_the_one_before_and_stops_the_site(built: Any) -> None:
    before = state(built)
    built.write("zfu_lib/attention/mini.py", "def double(x):\n    raise RuntimeError('broken on purpose')\n")
    done = book(built, "book")
    assert done.returncode != 0
    assert "RuntimeError: broken on purpose" in done.stderr
    assert state(built) == before


def test_snakemake_killed_half_way_completes_the_next_time(built: Any) -> None:
    before = state(built)
    built.write("zfu_lib/attention/mini.py", "def double(x):\n    return 2 * x\n")
    built.write("zfu_lib/report/paths.py", (built.folder / "zfu_lib/report/paths.py").read_text() + "\n# changed\n")
    graph = built.start("snakemake", "--cores", "2", "book")
    deadline = time.monotonic() + 90
    while not list(built.runs().glob("*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(graph.pid, signal.SIGKILL)
    graph.wait()
    assert state(built) == before
    done = book(built, "book")
    assert done.returncode == 0, done.stderr
    now = state(built)
    assert now[0] != before[0]
    assert now[1] != before[1]
    assert not list(built.folder.glob("runs/*/*/*.partial"))
