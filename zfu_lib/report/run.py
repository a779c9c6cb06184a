"""A run of a notebook, from its parameters to its seal.

A notebook calls :func:`begin` once, hands every number and figure it makes to the :class:`Run` it gets back, and seals
it in its last cell. Prose, ledger, tests and site all read what the run recorded, so a number exists once.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import inspect
import os
import secrets
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from IPython import get_ipython
from IPython.display import Markdown, display

from zfu_lib.report import claims, figures, paths, profiles, record, statistics, verdicts
from zfu_lib.report.profiles import ParameterError, Profile
from zfu_lib.report.statistics import Interval


def begin(slug: str, known: Mapping[str, Profile], namespace: Mapping[str, object]) -> Run:
    """Start a run with the parameters found in a notebook's ``globals()``.

    Args:
        slug: the paper.
        known: the paper's profiles by name.
        namespace: the notebook's globals: the parameters cell, what Papermill injected, and imports.

    Raises:
        ParameterError: a parameter nobody knows, of the wrong type (``-p flag false`` injects the *string*
            ``"false"``; ``-y`` gives typed values), or out of range. The run then ends without a seal.
    """
    shell = get_ipython()
    hidden = set(shell.user_ns_hidden) if shell else set()
    parameters = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in hidden
        and not isinstance(value, ModuleType)
        and not callable(value)
        and value is not known
    }
    run = Run(slug, profiles.resolve(known, parameters), parameters)
    run._show_header()
    return run


class Run:
    """What a notebook has measured so far. ``profile`` is the resolved profile, ``seeds`` the seeds to loop over."""

    def __init__(self, slug: str, profile: Profile, parameters: Mapping[str, Any]) -> None:
        self.slug, self.profile = slug, profile
        self.seeds = range(profile.seeds)
        self.device = "cpu"
        self.folder = self._folder()
        self._claims = claims.load(slug)
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        # At the start: the code that runs is the code of that moment.
        self._provenance = record.provenance()
        self._parameters = {name: value for name, value in parameters.items() if value is not None}
        self._data: dict[str, record.DataUsed] = {}
        self._values: dict[str, Any] = {}
        self._measurements: dict[str, record.Measurement] = {}
        self._figures: dict[str, record.Figure] = {}
        self._notes: list[str] = []
        self._omitted: dict[str, str] = {}
        self._judged: list[verdicts.Judgement] | None = None

    def _folder(self) -> Path:
        if given := os.environ.get("ZFU_RUN_DIR"):
            return Path(given)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return paths.runs(self.profile.profile, self.slug) / f"{stamp}-{secrets.token_hex(3)}"

    def on(self, device: str) -> str:
        """Say which device the run computes on; returns it."""
        self.device = device
        return device

    def uses(self, data: Iterable[record.DataUsed]) -> None:
        """Record the data sets that were read."""
        self._data |= {used.name: used for used in data}

    def note(self, text: str) -> None:
        """Add a sentence about this run that a reader must know (a scaled-down budget, a diverged seed)."""
        self._notes.append(text)
        display({"text/plain": text, "text/markdown": f"*{text}*"}, raw=True)

    def omit(self, name: str, why: str) -> None:
        """Say that a measurement cannot be made on this machine; claims that need it are `cannot run here`."""
        self._omitted[name] = why

    def value(self, name: str, value: float | int | str) -> Any:
        """Record a number or a word and make it available to prose through the ``glue`` role; returns it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._values or name in self._measurements:
            raise ValueError(f"{name!r} is already recorded in this run")
        plain = value.item() if isinstance(value, np.generic) else value
        self._values[name] = plain
        _glue(name, plain)
        return plain

    def measure(self, name: str, sample: Interval | Iterable[float], *, unit: str = "") -> Interval:
        """Record a measurement that claims may be decided by.

        Args:
            name: its name in ``book/claims/<slug>.yml``. Prose reads the mean as ``name`` and the ends of the
                interval as ``name_low`` and ``name_high``.
            sample: one number per seed, or an :class:`Interval` made by :mod:`zfu_lib.report.statistics`.
            unit: unit of the number.

        Raises:
            ValueError: the name is taken, or the sample is too small or not finite.
        """
        if isinstance(sample, Interval):
            return self._record(name, sample, [], unit)
        values = [float(x) for x in sample]
        return self._record(name, statistics.over_seeds(values), values, unit)

    def difference(self, name: str, a: Sequence[float], b: Sequence[float], *, unit: str = "") -> Interval:
        """Record ``a - b``, paired seed by seed; otherwise as :meth:`measure`.

        Raises:
            ValueError: different numbers of seeds, or as :meth:`measure`.
        """
        values = [float(x - y) for x, y in zip(a, b, strict=True)]
        return self._record(name, statistics.paired(a, b), values, unit)

    def _record(self, name: str, interval: Interval, values: list[float], unit: str) -> Interval:
        if not np.isfinite(interval[:3]).all():
            raise ValueError(f"{name!r} is not finite: {interval}")
        self.value(name, float(interval.mean))
        _glue(f"{name}_low", float(interval.low))
        _glue(f"{name}_high", float(interval.high))
        plain = {field: getattr(interval, field) for field in Interval._fields}
        plain |= {field: float(plain[field]) for field in ("mean", "low", "high")}
        plain["detectable"] = None if interval.detectable is None else float(interval.detectable)
        self._measurements[name] = record.Measurement(**plain, unit=unit, values=values)
        return interval

    def figure(self, name: str, plot: figures.Plot | figures.Row, *, caption: str, alt: str) -> None:
        """Draw a figure in both themes, show it, and record its data.

        Args:
            name: unique in the notebook; its anchor on the page is ``fig-<name>``.
            caption: what to see in it.
            alt: what the picture shows, for those who cannot see it.
        """
        if name in self._figures:
            raise ValueError(f"there is already a figure {name!r} in this run")
        self._figures[name] = record.Figure(caption=caption, alt=alt, data=figures.plain(plot.data))
        show = {"text/html": figures.markup(plot, name, caption, alt), "text/plain": f"[figure: {alt}]"}
        display(show, raw=True)

    def ledger(self) -> None:
        """Decide every claim by what was measured and show the result.

        Raises:
            KeyError: a claim's rule names something this run did not measure.
        """
        measured = {name: m.interval for name, m in self._measurements.items()}
        profile = self.profile.profile
        self._judged = [verdicts.judge(claim, profile, measured, self._omitted) for claim in self._claims.claims]
        for judgement in self._judged:
            _glue("verdict_" + judgement.claim.partition(".")[2], str(judgement.verdict))
        by_id = {claim.id: claim for claim in self._claims.claims}
        rows = "".join(_row(by_id[judgement.claim], judgement) for judgement in self._judged)
        heads = ("claim", "verdict", "the paper says", "measured here")
        head = "".join(f'<th scope="col">{text}</th>' for text in heads)
        table = f'<table class="zfu-ledger"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        plain = "\n".join(f"{j.claim:12} {j.verdict}" for j in self._judged)
        display({"text/html": f'<div class="zfu-scroll">{table}</div>', "text/plain": plain}, raw=True)

    def seal(self) -> None:
        """Write the record. Only a sealed run reaches the site.

        Raises:
            RuntimeError: there are claims and the ledger was not shown first.
        """
        if self._judged is None and self._claims.claims:
            raise RuntimeError("show the ledger (run.ledger()) before sealing the run")
        result = record.Record(
            slug=self.slug,
            profile=self.profile.profile,
            run_id=self.folder.name.removesuffix(record.PARTIAL),
            started=self._started.isoformat(timespec="seconds"),
            wall_seconds=round(time.monotonic() - self._clock, 1),
            peak_memory_bytes=record.peak_memory_bytes(),
            parameters=self._parameters | {"resolved": _plain(self.profile)},
            provenance=self._provenance | {"device": self.device},
            data=list(self._data.values()),
            values=self._values,
            measurements=self._measurements,
            claims=self._judged or [],
            figures=self._figures,
            notes=self._notes,
        )
        record.write(result, self.folder / "result.json")
        print(f"sealed {result.slug} {result.profile} {result.run_id}: {len(result.claims)} claims judged")

    def _show_header(self) -> None:
        about = self._provenance
        versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v and name != "papermill")
        changes = " with uncommitted changes" if about["changed_files"] else ""
        words = {
            "profile": self.profile.profile,
            "seeds": str(self.profile.seeds),
            "commit": (about["commit"][:10] or "not a git checkout") + changes,
            "python": about["python"],
            "versions": versions,
        }
        cells = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in words.items())
        plain = "; ".join(f"{k} {v}" for k, v in words.items())
        display({"text/html": f'<dl class="zfu-header">{cells}</dl>', "text/plain": plain}, raw=True)


def show(thing: object, *, docstring: bool = False) -> None:
    """Show the source of a function or class of this book, so that a page never carries a copy of it.

    Args:
        thing: the function or class, or its name ``"package.module:name"`` where the module cannot be imported on every
            machine (a GPU kernel).
        docstring: with its docstrings, which the reference has too.

    Raises:
        ValueError: no such module, or no such name in it.
    """
    if isinstance(thing, str):
        module, source = _source_of(thing)
    else:
        module = inspect.getmodule(thing).__name__
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    source = source if docstring else _without_docstrings(source)
    display(Markdown(f"*{module}*\n\n```python\n{source}\n```"))


def _source_of(name: str) -> tuple[str, str]:
    """Module and source of ``"package.module:name"``, read and not imported."""
    module, _, wanted = name.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ValueError(f"no module {module!r} to show {wanted!r} from")
    text = Path(spec.origin).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == wanted:
            first = min(x.lineno for x in (node, *node.decorator_list))
            return module, "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise ValueError(f"{module} defines no {wanted!r} to show")


def _without_docstrings(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            first, end = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:end] = [None] * (end - first)
            if end < len(lines) and lines[end] == "":
                lines[end] = None
    return "\n".join(line for line in lines if line is not None)


def table(rows: Mapping[str, Any], *, columns: Sequence[str]) -> None:
    """Show a table.

    Args:
        rows: first column -> one cell or a sequence of cells; an :class:`Interval` shows as mean [low, high].
        columns: heads, the first one for the row names.
    """
    body = []
    for name, cells in rows.items():
        cells = (cells,) if isinstance(cells, (str, Interval)) or not isinstance(cells, Sequence) else cells
        body.append((name, cells))
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{_cell_html(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in body
    )
    markup = f'<table class="zfu-table"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    plain = "\n".join("  ".join(row) for row in [columns, *([name, *map(_cell, cells)] for name, cells in body)])
    display({"text/html": f'<div class="zfu-scroll">{markup}</div>', "text/plain": plain}, raw=True)


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.mean:.3f}" if value.n == 1 else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _cell_html(value: Any) -> str:
    """A cell as HTML; an interval stands on a line of its own, which keeps columns narrow."""
    if isinstance(value, Interval) and value.n > 1:
        return f'{value.mean:.3f} <span class="zfu-interval">[{value.low:.3f}, {value.high:.3f}]</span>'
    return html.escape(_cell(value))


def _glue(name: str, value: object) -> None:
    """Leave a value in the notebook where the book's ``glue`` role finds it; invisible in the notebook itself."""
    prefix = "application/papermill.record/"
    scrap = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display({f"{prefix}text/plain": repr(value)}, raw=True, metadata=scrap)


def _row(claim: claims.Claim, judgement: verdicts.Judgement) -> str:
    said = html.escape(claim.statement)
    if claim.reported:
        numbers = "; ".join(f"{r.label} {r.value}{' ' + r.unit if r.unit else ''}" for r in claim.reported)
        said += f'<div class="zfu-said">{html.escape(numbers)} <cite>({html.escape(claim.source)})</cite></div>'
    found = "".join(f"<div>{finding_text(finding)}</div>" for finding in judgement.findings)
    measured = html.escape(judgement.reason) + f'<div class="zfu-found">{found}</div>'
    return (
        f'<tr><th scope="row" id="claim-{claim.id}">{claim.id.partition(".")[2]}</th><td>{chip(judgement.verdict)}</td>'
        f'<td data-head="the paper says">{said}</td><td data-head="measured here">{measured}</td></tr>'
    )


def chip(verdict: str) -> str:
    """A verdict as a coloured label; the word carries the meaning, the colour only helps."""
    return f'<span class="zfu-verdict zfu-{verdict.replace(" ", "-")}">{verdict}</span>'


def finding_text(finding: verdicts.Finding) -> str:
    """One line: what was measured, its interval, the rule, and which side of it the interval lies on."""
    ends = [f"{sign} {end:g}" for sign, end in (("≥", finding.min), ("≤", finding.max)) if end is not None]
    interval = "" if finding.n == 1 else f" [{_number(finding.low)}, {_number(finding.high)}]"
    detectable = "" if finding.detectable is None else f", detectable {finding.detectable:.2g}"
    name = html.escape(finding.measurement)
    rule = " and ".join(ends)
    measured = f"<code>{name}</code> = {_number(finding.mean)}{interval}"
    needs = "the comparison requires" if finding.required else "needs"
    return f"{measured}, {needs} {rule}: {finding.state} (n = {finding.n}{detectable})"


def _number(value: float) -> str:
    """Three significant digits, and never fewer than a whole number has."""
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return digits.replace("-", "\N{MINUS SIGN}")  # a line never breaks after it


def _plain(profile: Profile) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(profile).items() if name != "cost"}


__all__ = ["ParameterError", "Run", "begin", "chip", "finding_text", "show", "table"]
