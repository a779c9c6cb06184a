"""`zfu new`: a chapter that runs, seals and is found by the house's tests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

NEW = ("new", "fresh", "--title", 'A "fresh" paper', "--family", "merging", "--arxiv", "2601.00001")


@pytest.fixture(scope="module")
def fresh(shared_project: Any) -> Any:
    """A project with a new chapter beside its two old ones, and a paper that is in progress."""
    done = shared_project.zfu(*NEW)
    assert done.returncode == 0, done.stderr
    return shared_project


def test_every_piece_is_there(fresh: Any) -> None:
    for path in (
        "book/claims/fresh.yml",
        "book/papers/fresh.md",
        "book/results/fresh/README.md",
        "notebooks/fresh.ipynb",
        "zfu_lib/merging/fresh.py",
        "zfu_lib/experiments/fresh.py",
        "tests/merging/test_fresh.py",
    ):
        text = (fresh.folder / path).read_text()
        assert text
        assert "<<" not in text, path
    toc = yaml.safe_load((fresh.folder / "_toc.yml").read_text())
    chapters = {part["caption"]: part["chapters"] for part in toc["parts"]}
    expected = {"file": "book/papers/fresh", "sections": [{"file": "notebooks/fresh"}]}
    assert expected in chapters["Model merging and knowledge editing"]
    listed = json.loads(fresh.zfu("list", "--json").stdout)
    assert [row["title"] for row in listed if row["slug"] == "fresh"] == ['A "fresh" paper']


def test_it_runs_and_decides_its_claim(fresh: Any) -> None:
    done = fresh.zfu("run", "fresh")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(fresh.zfu("claims", "fresh", "--json").stdout)
    assert row["verdicts"] == {"quick": "direction holds", "full": "not run", "paper": "not run"}


def test_its_test_passes_and_its_style_is_ours(fresh: Any, request: pytest.FixtureRequest) -> None:
    done = fresh.call("pytest", "-q", "-p", "no:cacheprovider", "tests/merging")
    assert done.returncode == 0, done.stdout
    settings = request.config.rootpath / "pyproject.toml"
    files = [
        str(fresh.folder / f)
        for f in ("zfu_lib/merging/fresh.py", "zfu_lib/experiments/fresh.py", "tests", "notebooks/fresh.ipynb")
    ]
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--config", settings, *files],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert ruff.returncode == 0, ruff.stdout


def test_a_listed_paper_needs_only_its_slug(project: Any) -> None:
    (project.folder / "notebooks" / "other.ipynb").unlink()
    for path in ("zfu_lib/merging/other.py", "zfu_lib/experiments/other.py"):
        (project.folder / path).unlink()
    claims = (project.folder / "book/claims/other.yml").read_text()
    papers = (project.folder / "zfu_lib/report/papers.py").read_text()
    assert project.zfu("run", "other").returncode == 2
    assert project.zfu("new", "other").returncode == 0
    assert (project.folder / "book/claims/other.yml").read_text() == claims, "what was there stays"
    assert (project.folder / "zfu_lib/report/papers.py").read_text() == papers
    assert "Another miniature" in (project.folder / "notebooks/other.ipynb").read_text()
