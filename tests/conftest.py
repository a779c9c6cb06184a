"""A project of two miniature chapters around a copy of the real machinery, for tests that break things."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Triton decides when it is imported whether its kernels run on a GPU or in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

PAPERS = """
PAPERS = {
    paper.slug: paper
    for paper in (
        Paper("mini", "A miniature", "attention", "0000.00001"),
        Paper("other", "Another miniature", "merging", "0000.00002"),
    )
}
"""

EXPERIMENT = '''
"""Experiment of a miniature chapter."""
from dataclasses import dataclass
from zfu_lib.{family}.{slug} import double
from zfu_lib.report.profiles import Cost, Profile

@dataclass(frozen=True)
class MiniProfile(Profile):
    act: str = ""
    scale: float = 1.0
    ratio: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    flag: bool = False
    huge: int = 0

PROFILES = {{
    "quick": MiniProfile("quick", Cost("any laptop", 0.1, 0.2), 3),
    "full": MiniProfile("full", Cost("one GPU", 1, 0.2, gpu_memory_gb=1), 5),
    "paper": MiniProfile("paper", Cost("a cluster", 600, 100_000, gpu_memory_gb=10_000), 5),
}}

def numbers(seeds, scale):
    return [double(scale + seed) for seed in seeds]
'''

CLAIMS = """
claims:
  - id: {slug}.S1
    statement: Doubling makes a number larger.
    source: section 1
    kind: ordering
    metric: mean of the doubled numbers
    reported: [{{label: doubled, value: 2.0}}]
    test:
      quick: {{measures: the doubled numbers, conditions: [{{measurement: doubled, min: -10}}]}}
      full: {{measures: the doubled numbers, conditions: [{{measurement: doubled, min: -10}}]}}
"""

# What a run can be told to do half-way; every one of these looks like success to somebody.
ACTS = """
import os, signal, sys, time
act = run.profile.act
if act == "raise":
    raise RuntimeError("half-way")
if act == "exit":
    sys.exit(0)
if act == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "sleep":
    time.sleep(600)
if act == "path":
    print(os.getcwd() + "/secret")
"""


def notebook(slug: str) -> nbformat.NotebookNode:
    """A chapter of the least there can be."""
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        text(f"# {slug}"),
        code('profile = "quick"\nseeds = None', metadata={"tags": ["parameters"]}),
        code(
            f"from zfu_lib import report\nfrom zfu_lib.experiments.{slug} import PROFILES, numbers\n"
            f'run = report.begin("{slug}", PROFILES, globals())'
        ),
        code(ACTS.strip()),
        code('run.measure("doubled", numbers(run.seeds, run.profile.scale))'),
        code('if act != "skip ledger":\n    run.ledger()'),
        code("if act != 'no seal':\n    run.seal()"),
    ]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


class Project:
    """The project's folder and how to call its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        library = folder / "zfu_lib"
        ignore = shutil.ignore_patterns("__pycache__")
        for part in ("__init__.py", "cli.py"):
            library.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "zfu_lib" / part, library / part)
        for part in ("report", "data"):
            shutil.copytree(ROOT / "zfu_lib" / part, library / part, ignore=ignore)
        shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=ignore)
        for part in ("Snakefile", "profiles"):
            place = ROOT / part
            (shutil.copytree if place.is_dir() else shutil.copy)(place, folder / part)
        for package in ("experiments", "attention", "merging"):
            (library / package).mkdir()
            (library / package / "__init__.py").write_text("")
        papers = library / "report" / "papers.py"
        head, _, rest = papers.read_text().partition("PAPERS = {")
        papers.write_text(head + PAPERS.lstrip() + rest.partition("\n}\n")[2])
        for slug, family in (("mini", "attention"), ("other", "merging")):
            (library / family / f"{slug}.py").write_text("def double(x):\n    return 2 * x\n")
            (library / "experiments" / f"{slug}.py").write_text(EXPERIMENT.format(slug=slug, family=family))
            self.write(f"book/claims/{slug}.yml", CLAIMS.format(slug=slug))
            self.write(f"notebooks/{slug}.ipynb", nbformat.writes(notebook(slug)))
        self.write("_toc.yml", "format: jb-book\nroot: book/index\n")
        self.write("_config.yml", "title: miniature\n")
        self.write("book/index.md", "# Miniature\n")

    def write(self, path: str, text: str) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        # The copy must win over the installed package.
        paths = f"{self.folder}{os.pathsep}{self.folder / 'kernels'}"
        bare = {k: v for k, v in os.environ.items() if not k.startswith(("ZFU_", "HF_", "PYTEST_"))}
        return bare | {
            "PYTHONPATH": paths,
            "ZFU_ROOT": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{bare['PATH']}",
        }

    def call(self, *command: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a Python module of the project and wait for it."""
        call = [*prefix, sys.executable, "-m", *command]
        return subprocess.run(call, cwd=self.folder, env=self.environment, capture_output=True, text=True, **options)

    def zfu(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.call("zfu_lib.cli", *arguments, timeout=240, **options)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a module in a session of its own and do not wait."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment | options.pop("env", {}),
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options,
            start_new_session=True,
            text=True,
        )

    def runs(self, slug: str = "mini", profile: str = "quick") -> Path:
        return self.folder / "runs" / profile / slug

    def current(self, slug: str = "mini", profile: str = "quick") -> str | None:
        """Run id of the current run."""
        pointer = self.runs(slug, profile) / "current.json"
        return json.loads(pointer.read_text())["run_id"] if pointer.is_file() else None


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A miniature project of this test's own."""
    return Project(tmp_path / "book")


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A miniature project that the tests of a module share."""
    return Project(tmp_path_factory.mktemp("shared") / "book")
