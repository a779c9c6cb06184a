"""The house rules: every chapter has its pieces, notebooks are clean, arrows go one way, settings agree."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from zfu_lib.report import claims, notebook, papers, paths, profiles, record, verdicts

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHAPTERS = papers.chapters()
NOTEBOOKS = papers.notebooks()
SECTIONS = [
    "The problem",
    "The method, one step at a time",
    "Predict, then run",
    "The reproduction",
    "Claims",
    "Where it breaks",
    "Exercises",
]


def toc() -> set[str]:
    """Every page of the table of contents."""
    found, todo = set(), [yaml.safe_load((ROOT / "_toc.yml").read_text())]
    while todo:
        node = todo.pop()
        todo += node if isinstance(node, list) else [v for v in node.values() if isinstance(v, dict | list)]
        if isinstance(node, dict) and "file" in node:
            found.add(node["file"])
    return found


# Chapters and their pieces.


def test_there_are_eleven_papers_and_each_family_has_one() -> None:
    assert len(papers.PAPERS) >= 11
    assert {paper.family for paper in papers.PAPERS.values()} == set(papers.FAMILIES)
    assert all(slug == paper.slug for slug, paper in papers.PAPERS.items())


def test_there_is_a_chapter() -> None:
    assert "swat" in CHAPTERS


@pytest.mark.parametrize("slug", CHAPTERS)
def test_a_chapter_has_its_pieces(slug: str) -> None:
    for piece in (
        f"book/claims/{slug}.yml",
        f"book/papers/{slug}.md",
        f"zfu_lib/experiments/{slug}.py",
        f"zfu_lib/{papers.PAPERS[slug].family}/{slug}.py",
        f"tests/{papers.PAPERS[slug].family}/test_{slug}.py",
    ):
        assert (ROOT / piece).is_file(), piece
    assert {f"book/papers/{slug}", f"notebooks/{slug}"} <= toc()
    assert claims.load(slug).claims


@pytest.mark.parametrize("slug", [slug for slug in papers.PAPERS if slug not in CHAPTERS])
def test_a_paper_in_progress_appears_nowhere_as_done(slug: str) -> None:
    assert not {f"book/papers/{slug}", f"notebooks/{slug}"} & toc()
    for piece in (f"book/papers/{slug}.md", f"book/results/{slug}"):
        assert not (ROOT / piece).exists(), f"{piece} without notebooks/{slug}.ipynb"


@pytest.mark.parametrize("slug", papers.APPENDICES)
def test_an_appendix_has_its_pieces_and_no_paper(slug: str) -> None:
    assert slug in NOTEBOOKS
    assert slug not in papers.PAPERS
    assert (ROOT / f"zfu_lib/experiments/{slug}.py").is_file()
    assert f"notebooks/{slug}" in toc()


def test_nothing_is_there_for_a_paper_nobody_lists() -> None:
    listed, appended = set(papers.PAPERS), set(papers.APPENDICES)
    for pattern, known in {
        "notebooks/*.ipynb": listed | appended,
        "book/results/*": listed | appended,
        "book/claims/*.yml": listed | appended,
        "book/papers/*.md": listed,
    }.items():
        assert {place.stem for place in ROOT.glob(pattern)} <= known, pattern


@pytest.mark.parametrize("slug", NOTEBOOKS)
def test_profiles_say_what_they_cost(slug: str) -> None:
    known = importlib.import_module(f"zfu_lib.experiments.{slug}").PROFILES
    assert list(known) == ["quick", "full", "paper"]
    for name, profile in known.items():
        assert profile.profile == name
        assert profiles.resolve(known, {"profile": name}) == profile
    quick = known["quick"].cost
    assert quick.minutes <= 3
    assert quick.memory_gb <= 4, "two run in parallel on 8 GB"
    assert not quick.downloads
    assert known["full"].cost.minutes <= 25
    assert known["quick"].seeds >= 3


def test_committed_records_are_sealed_and_judged_by_todays_rules() -> None:
    for file in ROOT.glob("book/results/*/*.json"):
        found = record.read(file)
        assert (found.slug, found.profile) == (file.parent.name, file.stem)
        measured = {name: measurement.interval for name, measurement in found.measurements.items()}
        before = {judgement.claim: judgement for judgement in found.claims}
        now = [
            verdicts.rejudge(claim, found.profile, measured, before[claim.id])
            for claim in claims.load(found.slug).claims
        ]
        assert {j.claim: j.verdict for j in now} == {j.claim: j.verdict for j in found.claims}, file.name


# Notebooks.


@pytest.fixture(params=NOTEBOOKS)
def page(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A notebook of the book."""
    return notebook.read(paths.notebook(request.param))


@pytest.fixture(params=CHAPTERS)
def chapter(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A notebook on a paper."""
    return notebook.read(paths.notebook(request.param))


def test_a_notebook_is_committed_clean(page: dict[str, Any]) -> None:
    for i, cell in notebook.code(page):
        assert not cell["outputs"], f"cell {i} has output: run nbstripout"
        assert cell["execution_count"] is None, f"cell {i} has a count: run nbstripout"
    for holder in (page, *page["cells"]):
        assert set(holder["metadata"]) <= {"tags", "kernelspec", "language_info"}, holder["metadata"]


def test_a_notebook_has_one_parameters_cell_and_it_comes_first(page: dict[str, Any]) -> None:
    code = [cell for _, cell in notebook.code(page)]
    tagged = [cell for cell in code if "parameters" in notebook.tags(cell)]
    assert tagged == code[:1]
    assert "begin(" in code[1]["source"]


def test_a_notebook_ends_with_its_seal(page: dict[str, Any]) -> None:
    code = [cell for _, cell in notebook.code(page)]
    assert code[-1]["source"].strip() == "run.seal()"


def test_a_chapter_has_one_ledger(chapter: dict[str, Any]) -> None:
    assert sum("run.ledger()" in cell["source"] for _, cell in notebook.code(chapter)) == 1


def test_a_chapter_has_its_sections_in_order(chapter: dict[str, Any]) -> None:
    assert re.findall(r"^## (.*)$", prose_of(chapter), re.MULTILINE) == SECTIONS


def test_a_notebook_has_one_title(page: dict[str, Any]) -> None:
    assert len(re.findall(r"^# ", prose_of(page), re.MULTILINE)) == 1


def prose_of(page: dict[str, Any]) -> str:
    return "\n".join(cell["source"] for cell in page["cells"] if cell["cell_type"] == "markdown")


def test_a_notebook_has_exercises_with_solutions(page: dict[str, Any]) -> None:
    prose = prose_of(page)
    exercises = re.findall(r"\{exercise(?:-start)?\}.*\n:label: (\S+)", prose)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)", prose)
    assert len(exercises) >= 5
    assert exercises == solutions


def test_a_cell_is_short_and_asks_nothing_of_the_machine(page: dict[str, Any]) -> None:
    forbidden = re.compile(
        r"^\s*[!%]|pip install|sys\.path|conda |if profile ==|requests\.|urlopen"
        r"|(?<![\w.])/(?:home|root|tmp|work|Users|mnt)/",
        re.MULTILINE,
    )
    for i, cell in notebook.code(page):
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert len(lines) <= 15, f"cell {i} has {len(lines)} lines"
        assert not (found := forbidden.search(cell["source"])), f"cell {i}: {found and found.group(0)!r}"


def test_a_dirty_notebook_would_be_seen(page: dict[str, Any]) -> None:
    dirty = json.loads(json.dumps(page))
    dirty["cells"][notebook.code(dirty)[0][0]]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    with pytest.raises(AssertionError, match="has output"):
        test_a_notebook_is_committed_clean(dirty)


# Arrows.


def test_imports_go_one_way() -> None:
    start = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    call = [sys.executable, "-c", start, "--no-cache"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_family_is_under_contract() -> None:
    contracts = {contract["id"]: contract for contract in SETTINGS["tool"]["importlinter"]["contracts"]}
    here = {f"zfu_lib.{family}" for family in papers.FAMILIES if (ROOT / "zfu_lib" / family / "__init__.py").is_file()}
    assert here <= set(contracts["families"]["source_modules"]), "add the new family to the contract `families`"
    assert all(f"zfu_lib.{family}" in contracts["layers"]["layers"][2] for family in papers.FAMILIES)


# Hugging Face's package named `kernels`.


def test_hugging_faces_kernels_is_absent() -> None:
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("place", [ROOT, ROOT / "notebooks", Path("/")], ids=["root", "notebooks", "elsewhere"])
def test_transformers_is_not_confused_by_our_folder(place: Path) -> None:
    code = (
        "from transformers import AutoModelForCausalLM, LlamaConfig; import zfu_kernels\n"
        "c = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)\n"  # noqa: E501
        "print(type(AutoModelForCausalLM.from_config(c)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout == "LlamaForCausalLM\n", done.stderr


# Settings that must agree.


def requirements() -> list[Requirement]:
    project = SETTINGS["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for listed in lists for text in listed]


def test_conda_and_pip_install_the_same() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = content["dependencies"]
    listed = {str(Requirement(text)) for text in pip["pip"] if not text.startswith("--")}
    assert listed == {str(requirement) for requirement in requirements()}
    assert f"python{SETTINGS['project']['requires-python']}" in conda
    assert [text for text in pip["pip"] if text.startswith("--")] == ["--constraint constraints.txt", "--editable ."]


def pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def test_constraints_pin_every_dependency_within_its_range() -> None:
    pinned = pins()
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_constraints_pin_what_the_dependencies_bring() -> None:
    pinned, todo, seen = pins(), [r.name for r in requirements()], set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen or name in ("setuptools", "wheel"):
            continue
        seen.add(name)
        assert name in pinned, f"{name} is not in constraints.txt"
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert len(seen) > 50


def test_workflows_are_valid() -> None:
    files = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    assert [Path(file).stem for file in files] == ["cpu", "gpu", "pages"]
    call = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_workflows_call_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    from zfu_lib import cli

    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            for step in job["steps"]:
                for line in step.get("run", "").splitlines():
                    program, *words = line.split()
                    if program == "make":
                        assert words[0] in targets
                    elif program == ".venv/bin/zfu":
                        assert words[0] in commands
                    else:
                        assert (ROOT / program).is_file(), line


@pytest.mark.parametrize("script", [".ci/run"])
def test_scripts_are_bash(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
    assert (ROOT / script).stat().st_mode & 0o111
    assert "set -euo pipefail" in (ROOT / script).read_text()


def test_nothing_names_this_machine() -> None:
    files = [
        ROOT / name for name in ("Makefile", "README.md", "CONTRIBUTING.md", ".ci/run", "Snakefile", "_config.yml")
    ]
    for pattern in (
        "zfu_lib/**/*.py",
        "kernels/**/*.py",
        "book/**/*.md",
        "book/**/*.yml",
        "notebooks/*.ipynb",
        "benchmarks/*.py",
    ):
        files += [file for file in ROOT.glob(pattern) if "_static" not in file.parts]
    for file in files:
        found = re.search(r"(?<![\w.:/])/(?:home|root|work|Users)/\w", file.read_text())
        assert not found, f"{file.relative_to(ROOT)}: {found and found.group(0)}"


def test_style() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
