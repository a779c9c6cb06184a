"""The files of a new chapter, ready to be filled in: what they say is little, but it runs, seals and is tested."""

from __future__ import annotations

import json
import keyword
import re
from typing import Any

import yaml

from zfu_lib.report import papers, paths, record
from zfu_lib.report.papers import FAMILIES, Paper


class ScaffoldError(ValueError):
    """A chapter that cannot be started; nothing was written."""


def create(slug: str, title: str | None = None, family: str | None = None, arxiv: str | None = None) -> list[str]:
    """Write every piece of a chapter that is not there yet; returns what to do next, in order.

    Args:
        slug: key of the paper. One that the book already lists needs no other argument.
        title, family, arxiv: of a paper the book does not list yet.

    Raises:
        ScaffoldError: a bad slug, family or arXiv number, or a chapter that exists.
    """
    listed = papers.PAPERS.get(slug)
    paper = listed or _new_paper(slug, title, family, arxiv)
    root, package = paths.root(), paper.slug
    if paths.notebook(slug).is_file():
        raise ScaffoldError(f"{slug} has a chapter: notebooks/{slug}.ipynb")
    names = {"slug": slug, "family": paper.family, "title": paper.title, "arxiv": paper.arxiv, "Name": _camel(slug)}
    files = {
        f"zfu_lib/{paper.family}/{package}.py": METHOD,
        f"zfu_lib/experiments/{package}.py": EXPERIMENT,
        f"book/claims/{slug}.yml": CLAIMS,
        f"book/papers/{slug}.md": PAGE,
        f"book/results/{slug}/README.md": RESULTS,
        f"tests/{paper.family}/test_{slug}.py": TEST,
    }
    texts = {path: _fill(text, names) for path, text in files.items()}
    if not (root / "zfu_lib" / paper.family / "__init__.py").is_file():
        texts[f"zfu_lib/{paper.family}/__init__.py"] = f'"""{FAMILIES[paper.family]}: one module per paper."""\n'
    texts["_toc.yml"] = _toc((root / "_toc.yml").read_text(encoding="utf-8"), paper)
    if listed is None:
        file = root / "zfu_lib" / "report" / "papers.py"
        texts["zfu_lib/report/papers.py"] = _listed(file.read_text(encoding="utf-8"), paper)
    texts[f"notebooks/{slug}.ipynb"] = (
        json.dumps(_notebook(names), indent=1, ensure_ascii=False) + "\n"
    )  # last: it makes the chapter count
    for path, text in texts.items():
        if path.endswith(("_toc.yml", "papers.py")) or not (root / path).exists():
            record.write_atomically(root / path, text)
    return [
        f"book/claims/{slug}.yml            what the paper says: one record per claim, with its table and number",
        f"zfu_lib/{paper.family}/{slug}.py  the method, in the paper's symbols and order",
        f"zfu_lib/experiments/{slug}.py     its profiles and the runs the notebook shows",
        f"notebooks/{slug}.ipynb            the chapter; prose reads numbers with glue, the last cell seals",
        f"book/papers/{slug}.md             the paper's page",
        f"tests/{paper.family}/test_{slug}.py  limiting cases, gradients, equality with another implementation",
        f"then: zfu run {slug}, make test, make book (CONTRIBUTING.md has the checklist)",
    ]


def _new_paper(slug: str, title: str | None, family: str | None, arxiv: str | None) -> Paper:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug) or keyword.iskeyword(slug):
        raise ScaffoldError(f"{slug!r} cannot name a paper: lower case letters, digits and underscores, a letter first")
    if missing := [name for name, value in (("title", title), ("family", family), ("arxiv", arxiv)) if not value]:
        raise ScaffoldError(f"{slug!r} is a new paper: give --{' --'.join(missing)}")
    if family not in FAMILIES:
        raise ScaffoldError(f"no family {family!r}; there are: {', '.join(FAMILIES)}")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
        raise ScaffoldError(f"{arxiv!r} is not an arXiv number such as 2502.18845")
    return Paper(slug, title, family, arxiv)


def _listed(text: str, paper: Paper) -> str:
    line = f'        Paper("{paper.slug}", {_quoted(paper.title)}, "{paper.family}", "{paper.arxiv}"),\n'
    before, bracket, after = text.rpartition("    )\n}")
    if not bracket:
        raise ScaffoldError("zfu_lib/report/papers.py does not end its list as expected; add the paper by hand")
    return before + line + bracket + after


def _toc(text: str, paper: Paper) -> str:
    """The table of contents with the chapter in its family's part, which is made if it is the family's first."""
    entry = f"      - file: book/papers/{paper.slug}\n        sections:\n          - file: notebooks/{paper.slug}\n"
    caption = f"  - caption: {FAMILIES[paper.family]}\n"
    if entry in text:
        return text
    if caption in text:
        head, _, tail = text.partition(caption)
        part, begins, rest = tail.partition("  - caption: ")
        text = head + caption + part + entry + begins + rest
    else:
        later = list(FAMILIES.values())[list(FAMILIES).index(paper.family) + 1 :]
        marks = [f"  - caption: {name}\n" for name in (*later, "What was measured")]
        at = min((text.index(mark) for mark in marks if mark in text), default=len(text))
        if "parts:" not in text:
            text, at = text + "parts:\n", len(text) + len("parts:\n")
        text = text[:at] + caption + "    chapters:\n" + entry + text[at:]
    yaml.safe_load(text)
    return text


def _notebook(names: dict[str, str]) -> dict[str, Any]:
    both = (
        f"from zfu_lib.{names['family']} import {names['slug']} as method",
        f"from zfu_lib.experiments import {names['slug']} as experiments",
    )
    names = names | {"imports": "\n".join(sorted(both))}
    cells = []
    for i, (kind, text) in enumerate(NOTEBOOK):
        cell: dict[str, Any] = {"cell_type": "markdown" if kind == "text" else "code", "id": f"cell-{i:02}"}
        cell["metadata"] = {"tags": ["parameters"]} if kind == "parameters" else {}
        cell["source"] = _fill(text, names).strip().splitlines(keepends=True)
        cells.append(cell if kind == "text" else cell | {"execution_count": None, "outputs": []})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _fill(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(f"<<{name}>>", value)
    return text


def _camel(slug: str) -> str:
    return "".join(part.capitalize() for part in slug.split("_"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


METHOD = '''"""<<title>> (arXiv <<arxiv>>): the method.

Same symbols and order as the paper. Shape letters: B batch, D width.
"""

from __future__ import annotations


def shrink(x: float, *, amount: float = 0.5) -> float:
    """A placeholder for the paper's first equation: ``amount * x``.

    Args:
        x: any number.
        amount: in (0, 1].

    Raises:
        ValueError: ``amount`` outside (0, 1].
    """
    if not 0 < amount <= 1:
        raise ValueError(f"amount = {amount} is not in (0, 1]")
    return amount * x
'''

EXPERIMENT = '''"""Experiments of the chapter on "<<title>>" (arXiv <<arxiv>>)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from zfu_lib.<<family>>.<<slug>> import shrink
from zfu_lib.report.profiles import Cost, Profile


@dataclass(frozen=True)
class <<Name>>Profile(Profile):
    """``items`` is how many numbers each seed looks at."""

    items: int = 100


QUICK = <<Name>>Profile("quick", Cost("any laptop", minutes=1, memory_gb=1), seeds=3)
FULL = replace(QUICK, profile="full", cost=Cost("one GPU", minutes=25, memory_gb=8, gpu_memory_gb=8), items=10_000)
PAPER = replace(FULL, profile="paper", cost=Cost("what the paper used", minutes=600, memory_gb=64, gpu_memory_gb=80))
PROFILES = {profile.profile: profile for profile in (QUICK, FULL, PAPER)}


def reduction(profile: <<Name>>Profile, seeds: Iterable[int]) -> list[float]:
    """Mean absolute value after the method minus before it, one number per seed."""
    found = []
    for seed in seeds:
        x = np.random.default_rng(seed).normal(size=profile.items)
        found.append(float(np.mean([abs(shrink(value)) - abs(value) for value in x])))
    return found
'''

CLAIMS = """# Claims of "<<title>>" (arXiv <<arxiv>>).
claims:
  - id: <<slug>>.S1
    statement: Replace this by the paper's first claim, in your own words.
    source: section, table or figure of the paper
    kind: ordering
    metric: What is compared (zfu_lib.experiments.<<slug>>.reduction).
    confirmed: false
    test:
      quick: &s1
        measures: Mean absolute value after the method minus before it; over seeds. Must be negative.
        conditions: [{measurement: s1_reduction, max: 0.0}]
      full: *s1
    deviations:
      - Nothing of the paper is measured yet.
bands:
  quick: {s1_reduction: [-0.6, -0.2]}
"""

PAGE = """---
html_theme.sidebar_secondary.remove: true
---

# <<title>>

Two sentences: the problem, and what the paper does about it.

- **Read**: [the chapter](../../notebooks/<<slug>>.ipynb)
- **Paper**: [arXiv <<arxiv>>](https://arxiv.org/abs/<<arxiv>>)

## Claims

```{zfu-claims} <<slug>>
```

## Downloads

```{zfu-downloads} <<slug>>
```
"""

RESULTS = """Records of runs that not every machine can repeat, written by `zfu run <<slug>> --profile full --publish`.
"""

TEST = '''"""The method of "<<title>>"."""

import pytest

from zfu_lib.<<family>>.<<slug>> import shrink


def test_amount_one_changes_nothing() -> None:
    assert shrink(3.0, amount=1.0) == 3.0


def test_refuses_an_amount_that_is_not_a_share() -> None:
    with pytest.raises(ValueError, match=r"not in \\(0, 1\\]"):
        shrink(3.0, amount=1.5)
'''

NOTEBOOK = (
    (
        "text",
        """# <<title>>

*Authors: <<title>>, [arXiv <<arxiv>>](https://arxiv.org/abs/<<arxiv>>).*

What the paper is about, in three sentences.

:::{admonition} What you will learn
:class: tip
- the failure the method repairs;
- the method, step by step;
- which of its claims hold here.

**Before you start:** what a reader should know. **Time:** `quick` one minute; `full` 25 minutes on one GPU.
:::""",
    ),
    (
        "parameters",
        'profile = "quick"  # quick | full\nseeds = None  # how many random seeds; None takes the profile\'s number',
    ),
    (
        "code",
        """import inspect

from zfu_lib import report
<<imports>>
from zfu_lib.report import figures

run = report.begin("<<slug>>", experiments.PROFILES, globals())""",
    ),
    ("text", "## The problem\n\nShow the failure on a small example before anything is fixed."),
    ("text", "## The method, one step at a time\n\n### Step 1\n\nThe equation, then the lines that implement it:"),
    ("code", "print(inspect.getsource(method.shrink))"),
    ("text", "A check that could fail:"),
    ("code", "assert method.shrink(3.0, amount=1.0) == 3.0"),
    ("text", "## Predict, then run\n\nSay what you expect before you run the next cell."),
    ("code", 's1 = run.measure("s1_reduction", experiments.reduction(run.profile, run.seeds))'),
    ("text", "## The reproduction\n\nFigures first, tables second. The mean is {glue:text}`s1_reduction:.2f`."),
    (
        "code",
        """run.figure(
    "reduction",
    figures.intervals({"after minus before": s1}, xlabel="mean absolute value", baseline=("no change", 0)),
    caption="What the method does to the mean absolute value; 95% interval over seeds. Left of the line is smaller.",
    alt="One dot with its interval, left of zero.",
)""",
    ),
    ("text", "## Claims"),
    ("code", "run.ledger()"),
    (
        "text",
        """### What differs from the paper, and from its code

- Nothing is reproduced yet.

## Where it breaks

Limits, ablations that surprised, open questions.

## Exercises

:::{exercise} A first question
:label: <<slug>>-first
What does `shrink` do to a number that is already zero?
:::

:::{solution} <<slug>>-first
:class: dropdown
Nothing.
:::""",
    ),
    ("code", "run.seal()"),
)
