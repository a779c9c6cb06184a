"""A two-page book made here: one page of prose with every directive, one miniature notebook, executed and sealed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from zfu_lib.report import record, site

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "20260101T000000Z-abcdef"

CLAIMS = """\
claims:
  - {id: swat.S1, statement: The field is exact., source: section 3, kind: equality, metric: count, scale_free: true,
     reported: [{label: field, value: 5, unit: tokens}],
     test: {quick: {measures: exact count, conditions: [{measurement: count, min: 5, max: 5}]}}}
  - {id: swat.S2, statement: The printed mean is the mean., source: Table 1, kind: audit, metric: mean,
     reported: [{label: mean, value: 51.85, unit: "%", n: 8}], scale_free: true,
     test: {quick: {measures: mean of the row, conditions: [{measurement: mean_gap, min: -0.01, max: 0.01}]}}}
  - {id: swat.S3, statement: The gap is positive <at every size>., source: Table 2, kind: ordering, metric: gap,
     deviations: [smaller model, other text],
     test: {quick: {measures: gap, conditions: [{measurement: gap, min: 0}]}}}
  - {id: swat.S4, statement: The loss falls., source: Figure 3, kind: trend, metric: slope,
     test: {quick: {measures: slope, conditions: [{measurement: slope, max: 0}]}}}
  - {id: swat.S5, statement: There is a difference., source: Figure 4, kind: existence, metric: noise, confirmed: false,
     test: {quick: {measures: noise, conditions: [{measurement: noise, min: 0}]}}}
  - {id: swat.S6, statement: It wins at scale., source: Table 1, kind: ordering, metric: none, test: {}}
  - {id: swat.S7, statement: It is fast on many GPUs., source: section 5, kind: ordering, metric: time,
     test: {quick: {cannot_run: needs eight GPUs}}}
bands:
  quick: {gap: [0.5, 2.0]}
"""

VERDICTS = {
    "swat.S1": "reproduced",
    "swat.S2": "does not add up",
    "swat.S3": "direction holds",
    "swat.S4": "not reproduced",
    "swat.S5": "inconclusive",
    "swat.S6": "not run",
    "swat.S7": "cannot run here",
}

INDEX = """\
# A book of two pages

The word perspicuous stands here to be found. Inline $a^2 + b^2 = c^2$ and

$$ o_m = \\sum_{n=m-\\omega+1}^{m} \\sigma\\left(\\boldsymbol{q}_m^\\top k_n\\right) v_n $$ (eq-one)

The gap is {glue:text}`../notebooks/swat.ipynb::gap:.2f`.

```{zfu-matrix}
```
```{zfu-claims} swat
```
```{zfu-results}
```
```{zfu-runs}
```
```{zfu-downloads} swat
```
"""

CELLS = [
    new_markdown_cell("# Miniature\n\nA formula $x_i$ and a figure."),
    new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]}),
    new_code_cell(
        "from zfu_lib.report import begin, figures\n"
        "from zfu_lib.report.profiles import Cost, Profile\n"
        "from zfu_lib.report.statistics import exact\n"
        'run = begin("swat", {"quick": Profile("quick", Cost("any", 1, 1), 3)}, '
        '{"profile": profile})'
    ),
    new_code_cell(
        'run.measure("count", exact(5))\nrun.measure("mean_gap", exact(0.52))\nrun.measure("gap", [1.0, 1.1, 0.9])\n'
        'run.measure("slope", [0.5, 0.6, 0.4])\nrun.measure("noise", [-1.0, 0.2, 1.0]);'
    ),
    new_code_cell(
        'plot = figures.lines({"a": {"x": [1, 2], "y": [1, 2]}}, xlabel="x", ylabel="y")\n'
        'run.figure("line", plot, caption="A line.", alt="a rising line")'
    ),
    new_markdown_cell(
        "```{exercise} Count\n:label: ex-count\n\nHow many keys?\n```\n\n"
        "````{solution} ex-count\n:class: dropdown\n\nThe answer is forty-two.\n````"
    ),
    new_code_cell("run.ledger()"),
    new_code_cell("run.seal()"),
]


def make_book(root: Path) -> None:
    """A book of two pages under ``root``, with this project's settings, directives and styles."""
    for folder in ("_ext", "_static"):
        shutil.copytree(REPOSITORY / "book" / folder, root / "book" / folder)
    shutil.copy(REPOSITORY / "_config.yml", root)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n  - file: notebooks/swat\n")
    (root / "book" / "claims").mkdir()
    (root / "book" / "claims" / "swat.yml").write_text(CLAIMS)
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "index.md").write_text(INDEX)
    (root / "notebooks").mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=CELLS, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(notebook, root / "notebooks" / "swat.ipynb")


def execute(root: Path) -> None:
    """Run the miniature notebook under ``root`` and point ``current.json`` to it."""
    folder = root / "runs" / "quick" / "swat" / RUN
    folder.mkdir(parents=True)
    changes = {"ZFU_ROOT": str(root), "ZFU_RUN_DIR": str(folder)}
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        papermill.execute_notebook(
            str(root / "notebooks" / "swat.ipynb"),
            str(folder / "notebook.ipynb"),
            {"profile": "quick"},
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
        )
    finally:
        os.environ.clear()
        os.environ.update(before)
    point(root)


def point(root: Path) -> None:
    """Make the run under ``root`` the current one."""
    folder = root / "runs" / "quick" / "swat"
    seal = json.loads((folder / RUN / "result.json").read_text())["seal"]
    (folder / "current.json").write_text(json.dumps({"run_id": RUN, "seal": seal}))


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executed book; copied, never changed."""
    root = tmp_path_factory.mktemp("executed") / "book"
    root.mkdir()
    make_book(root)
    execute(root)
    return root


@pytest.fixture
def book(executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the executed book to change at will."""
    root = tmp_path / "book"
    shutil.copytree(executed, root)
    monkeypatch.setenv("ZFU_ROOT", str(root))
    return root


Built = tuple[Path, dict[tuple[str, str], record.Record]]


@pytest.fixture(scope="session")
def built(executed: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The built site and its records."""
    root = tmp_path_factory.mktemp("built") / "book"
    shutil.copytree(executed, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZFU_ROOT", str(root))
        return site.build("quick")
