"""A notebook that belongs to no paper: run, sealed and listed like a chapter, without claims or a page of a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from zfu_lib.report import claims, dependencies, papers, record

EXPERIMENT = """
from zfu_lib.report.profiles import Cost, Profile
QUICK = Profile("quick", Cost("any laptop", 0.1, 0.2), 3)
PROFILES = {"quick": QUICK}
"""


@pytest.fixture
def appended(project: Any) -> Any:
    """A project with the appendix ``extra``, whose notebook measures something and shows no ledger."""
    library = project.folder / "zfu_lib"
    listed = library / "report" / "papers.py"
    text = listed.read_text()
    none = "APPENDICES: dict[str, str] = {"
    assert none in text
    listed.write_text(text.replace(none, f'{none}"extra": "An extra",'.replace(",}", "}")))
    project.write("zfu_lib/experiments/extra.py", EXPERIMENT)
    code = nbformat.v4.new_code_cell
    cells = [
        code('profile = "quick"', metadata={"tags": ["parameters"]}),
        code(
            "from zfu_lib import report\nfrom zfu_lib.experiments.extra import PROFILES\n"
            'run = report.begin("extra", PROFILES, globals())'
        ),
        code('run.measure("one", [1.0, 1.1, 0.9]);'),
        code("run.seal()"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    project.write("notebooks/extra.ipynb", nbformat.writes(made))
    return project


def test_an_appendix_without_claims_runs_seals_and_is_listed(appended: Any) -> None:
    done = appended.zfu("run", "extra")
    assert done.returncode == 0, done.stderr
    assert "(no claims)" in done.stdout
    found = record.read(appended.runs("extra") / appended.current("extra") / "result.json")
    assert (found.slug, found.claims, found.measurements["one"].n) == ("extra", [], 3)
    rows = {row["slug"]: row for row in json.loads(appended.zfu("list", "--json").stdout)}
    assert (rows["extra"]["state"], rows["extra"]["runs"]["quick"]) == ("appendix", "here")
    assert rows["mini"]["state"] == "chapter"
    assert {row["slug"] for row in json.loads(appended.zfu("plan", "--json").stdout)} == {"mini", "other", "extra"}
    dry = appended.call("snakemake", "--cores", "1", "--dry-run", "runs", timeout=120)
    assert dry.returncode == 0, dry.stderr
    assert "runs/quick/mini/current.json" in dry.stdout
    assert "runs/quick/extra/current.json" not in dry.stdout.partition("rule runs")[0], "it is up to date"


def test_a_chapter_without_its_claims_file_still_fails(appended: Any) -> None:
    (appended.folder / "book" / "claims" / "mini.yml").unlink()
    done = appended.zfu("run", "mini")
    assert done.returncode == 1
    assert "no claims file book/claims/mini.yml" in done.stderr


def test_only_a_listed_appendix_may_lack_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_toc.yml").touch()
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    monkeypatch.setattr(papers, "APPENDICES", {"extra": "An appendix"})
    assert claims.load("extra").claims == ()
    with pytest.raises(claims.ClaimsError, match="no claims file"):
        claims.load("swat")
    file = tmp_path / "book" / "claims" / "extra.yml"
    file.parent.mkdir(parents=True)
    file.write_text("claims: [")
    with pytest.raises(claims.ClaimsError, match=r"extra\.yml"):
        claims.load("extra")


def test_an_appendix_whose_notebook_is_missing_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "APPENDICES", {"nowhere": "An appendix that is not there"})
    assert papers.notebooks() == papers.chapters()


def test_claims_that_an_appendix_has_are_a_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "fingerprint", lambda slug: dependencies.paths.notebook(slug))
    assert "book/claims/swat.yml" in dependencies.of_paper("swat")
    monkeypatch.setattr(papers, "APPENDICES", {"swat": "as if"})
    assert "book/claims/swat.yml" in dependencies.of_paper("swat")
    monkeypatch.setattr(dependencies.paths, "claims", lambda slug: Path("nowhere.yml"))
    assert not [
        file
        for file in dependencies.of_paper("swat")
        if file.endswith(("swat.yml", "nowhere.yml")) and "claims" in file
    ]
