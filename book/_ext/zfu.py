"""What the pages of the book show of claims and runs: five directives, the API pages, and the site's offline habits.

Everything shown here is read from ``book/claims`` (what a paper says) and from sealed run records (what was measured);
nothing is typed. Records lie in ``records/<profile>/<slug>.json`` of the staged tree and, for runs that not every
machine can repeat, in ``book/results/<slug>/<profile>.json``.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import pkgutil
import re
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zfu_lib.report import claims, papers, paths, record
from zfu_lib.report.claims import Claim
from zfu_lib.report.papers import Paper
from zfu_lib.report.record import Record
from zfu_lib.report.run import chip, finding_text
from zfu_lib.report.verdicts import Judgement, Verdict

PROFILES: tuple[str, ...] = typing.get_args(claims.Profile)
GLYPHS = {
    Verdict.REPRODUCED: "✓",
    Verdict.DIRECTION_HOLDS: "↗",
    Verdict.NOT_REPRODUCED: "✗",
    Verdict.INCONCLUSIVE: "?",
    Verdict.DOES_NOT_ADD_UP: "≠",
    Verdict.NOT_RUN: "–",
    Verdict.CANNOT_RUN: "⊘",
}
EXTRA = "extra"
DOWNLOADS = "downloads"


@dataclass(frozen=True)
class Shelf:
    """Claims and records of every paper (and records of appendices), as found in one tree."""

    claims: dict[str, tuple[Claim, ...]]
    records: dict[tuple[str, str], Record]

    def done(self, slug: str) -> bool:
        """Whether there is a notebook; what has none is never shown as done."""
        return slug in papers.notebooks()

    def run(self, slug: str, profile: str) -> Record | None:
        """The sealed run of a chapter, if there is one."""
        return self.records.get((slug, profile)) if self.done(slug) else None

    def judged(self, slug: str, profile: str) -> list[tuple[Claim, Judgement]]:
        """Every claim of a paper with its verdict in ``profile``."""
        run = self.run(slug, profile)
        return [(claim, judgement(claim, profile, run)) for claim in self.claims.get(slug, ())]


def load(root: Path) -> Shelf:
    """Read claims and records under ``root``.

    Raises:
        RecordError: a record that is broken or was changed after it was sealed.
        ClaimsError: a claims file that breaks the schema.
    """
    found = {slug: claims.load(slug).claims for slug in papers.PAPERS if paths.claims(slug).is_file()}
    records = {}
    for slug in (*papers.PAPERS, *papers.APPENDICES):
        for profile in PROFILES:
            places = (root / "records" / profile / f"{slug}.json", paths.results(slug) / f"{profile}.json")
            if file := next((place for place in places if place.is_file()), None):
                records[slug, profile] = record.read(file)
    return Shelf(found, records)


@lru_cache(maxsize=1)
def _shelf(root: str) -> Shelf:
    return load(Path(root))


def judgement(claim: Claim, profile: str, run: Record | None) -> Judgement:
    """What ``run`` says of ``claim``; without a run, that and why it was not run."""
    if run:
        by_id = {j.claim: j for j in run.claims}
        missing = Judgement(claim=claim.id, verdict=Verdict.NOT_RUN, reason="listed after this run was made")
        return by_id.get(claim.id, missing)
    test = claim.test.get(typing.cast(claims.Profile, profile))
    if test and test.cannot_run:
        return Judgement(claim=claim.id, verdict=Verdict.CANNOT_RUN, reason=test.cannot_run)
    reason = f"no {profile} run is recorded" if test else f"the {profile} profile has no test for it"
    return Judgement(claim=claim.id, verdict=Verdict.NOT_RUN, reason=reason)


def rows(shelf: Shelf) -> Iterator[tuple[Paper, Claim, str, Judgement, Record | None]]:
    """Every claim of every paper in every profile."""
    for slug, paper in papers.PAPERS.items():
        for profile in PROFILES:
            run = shelf.run(slug, profile)
            for claim, judged in shelf.judged(slug, profile):
                yield paper, claim, profile, judged, run


def as_json(shelf: Shelf) -> str:
    """Every claim with every verdict, for programs."""
    out = []
    for paper, claim, profile, judged, run in rows(shelf):
        about = {"run_id": run.run_id, "started": run.started, **_origin(run)} if run else None
        out.append(
            {
                "paper": paper.slug,
                "profile": profile,
                **claim.model_dump(mode="json", exclude={"test"}),
                **judged.model_dump(mode="json", exclude={"claim"}),
                "run": about,
            }
        )
    return json.dumps(out, indent=1, ensure_ascii=False) + "\n"


def as_csv(shelf: Shelf) -> str:
    """Every finding of every claim in every profile, one a line, for spreadsheets."""
    finding_fields = ("measurement", "mean", "low", "high", "n", "method", "detectable", "min", "max", "state")
    head = ("claim", "paper", "profile", "verdict", "reason", "statement", "source", "kind", "reported", "confirmed")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, *finding_fields, "deviations", "run_id", "started", "commit", "device"])
    for paper, claim, profile, judged, run in rows(shelf):
        first = [
            claim.id,
            paper.slug,
            profile,
            judged.verdict,
            judged.reason,
            claim.statement,
            claim.source,
            claim.kind,
            _reported(claim),
            claim.confirmed,
        ]
        origin = _origin(run) if run else {"commit": "", "device": ""}
        last = [
            " | ".join(claim.deviations),
            run.run_id if run else "",
            run.started if run else "",
            origin["commit"],
            origin["device"],
        ]
        for finding in judged.findings or (None,):
            middle = [getattr(finding, field) if finding else "" for field in finding_fields]
            writer.writerow([*first, *middle, *last])
    return stream.getvalue()


def _origin(run: Record) -> dict[str, str]:
    commit = str(run.provenance.get("commit") or "")
    return {"commit": commit, "device": str(run.provenance.get("device") or "unknown")}


def _reported(claim: Claim) -> str:
    def one(r: claims.Reported) -> str:
        number = f"{r.value:g}" if isinstance(r.value, float) else str(r.value)
        size = f" (n = {r.n})" if r.n else ""
        return f"{r.label} {number}{f' {r.unit}' if r.unit else ''}{size}".strip()

    return "; ".join(one(r) for r in claim.reported or ())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _date(run: Record) -> str:
    when = datetime.fromisoformat(run.started)
    return f'<time datetime="{escape(run.started)}">{when.day} {when:%B %Y}</time>'


def _commit(run: Record) -> str:
    commit = _origin(run)["commit"]
    changed = " with uncommitted changes" if run.provenance.get("changed_files") else ""
    return f"commit <code>{escape(commit[:10])}</code>{changed}" if commit else "not from a git checkout"


def _notes(run: Record) -> str:
    """What a reader must know beside the numbers (a budget that was scaled down, say)."""
    return "".join(f'<span class="zfu-note">{escape(note)}</span>' for note in run.notes)


def _counts(judged: list[tuple[Claim, Judgement]]) -> Counter[Verdict]:
    return Counter(judgement.verdict for _, judgement in judged)


def _short(claim: Claim) -> str:
    return claim.id.partition(".")[2]


def _scroll(label: str, table: str) -> str:
    """A table in a box of its own that scrolls; reachable by keyboard, so the arrows scroll it."""
    return f'<div class="zfu-scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}">{table}</div>'


def _table(kind: str, caption: str, heads: list[str], body: str, *, hidden_caption: bool = False) -> str:
    hide = ' class="zfu-sr"' if hidden_caption else ""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return (
        f'<table class="{kind}"><caption{hide}><span>{caption}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _measured(judged: Judgement) -> str:
    found = "".join(f"<li>{finding_text(finding)}</li>" for finding in judged.findings)
    return f"{escape(judged.reason)}" + (f'<ul class="zfu-found">{found}</ul>' if found else "")


class Shown(SphinxDirective):
    """A directive that shows HTML made from the shelf."""

    has_content = False
    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        root = str(self.env.srcdir)
        self.env.note_reread()
        text = self.html(_shelf(root))
        return [nodes.raw("", f'<div class="zfu {type(self).__name__.lower()}">{text}</div>', format="html")]

    def html(self, shelf: Shelf) -> str:
        """The directive's HTML."""
        raise NotImplementedError

    def slug(self) -> str:
        """The paper named by the directive's argument."""
        slug = self.arguments[0].strip()
        if slug not in papers.PAPERS:
            raise self.error(f"{slug!r} is no paper of this book; there are: {', '.join(papers.PAPERS)}")
        return slug

    def page(self, document: str) -> str | None:
        """Address of another page of the book from this one, or None where the book has no such page."""
        if document not in self.env.found_docs:
            return None
        return self.env.app.builder.get_relative_uri(self.env.docname, document)

    def file(self, name: str) -> str:
        """Address of a file of the site that is not a page."""
        return "../" * self.env.docname.count("/") + f"{DOWNLOADS}/{name}"

    def ledger(self, claim: Claim) -> str | None:
        """Address of a claim's row in the ledger of its notebook."""
        page = self.page(f"notebooks/{claim.id.partition('.')[0]}")
        return f"{page}#claim-{claim.id}" if page else None


class Matrix(Shown):
    """All papers by family, with the verdict on every claim of those that have a chapter."""

    def html(self, shelf: Shelf) -> str:
        chapters = [slug for slug in papers.PAPERS if shelf.done(slug)]
        total: Counter[Verdict] = sum((_counts(shelf.judged(slug, "quick")) for slug in chapters), Counter())
        legend = "".join(
            f'<li><span class="zfu-key zfu-{_dashes(v)}" aria-hidden="true">{GLYPHS[v]}</span> {v}'
            f" <b>{total[v]}</b></li>"
            for v in Verdict
        )
        done = f"{len(chapters)} of {len(papers.PAPERS)} papers have a chapter."
        say = f"{done} Verdicts of their <em>quick</em> runs, on {sum(total.values())} claims:"
        families = "".join(self.family(shelf, key, name) for key, name in papers.FAMILIES.items())
        return f'<div class="zfu-summary"><p>{say}</p><ul class="zfu-legend">{legend}</ul></div>{families}'

    def family(self, shelf: Shelf, key: str, name: str) -> str:
        """One family's papers."""
        members = [paper for paper in papers.PAPERS.values() if paper.family == key]
        shown = "".join(self.paper(shelf, paper) for paper in members)
        return f'<section aria-labelledby="family-{key}"><h3 id="family-{key}">{escape(name)}</h3>{shown}</section>'

    def paper(self, shelf: Shelf, paper: Paper) -> str:
        """One paper: title, status, and a strip of verdicts per run."""
        arxiv = f'<a class="zfu-arxiv" href="https://arxiv.org/abs/{paper.arxiv}">arXiv {paper.arxiv}</a>'
        title = escape(paper.title)
        if not shelf.done(paper.slug):
            status = '<span class="zfu-status">in progress</span>'
            return (
                f'<div class="zfu-paper zfu-waiting"><div class="zfu-title">{title}</div>'
                f'<div class="zfu-meta">{arxiv}{status}</div></div>'
            )
        page, chapter = self.page(f"book/papers/{paper.slug}"), self.page(f"notebooks/{paper.slug}")
        links = [("Claims in detail", page), ("Read the chapter", chapter)]
        reading = "".join(f'<a class="zfu-read" href="{address}">{text}</a>' for text, address in links if address)
        main = f'<a href="{chapter or page}">{title}</a>' if chapter or page else title
        return (
            f'<div class="zfu-paper"><div class="zfu-title">{main}</div><div class="zfu-meta">{arxiv}{reading}</div>'
            f"{self.strips(shelf, paper)}</div>"
        )

    def strips(self, shelf: Shelf, paper: Paper) -> str:
        """Claims x verdicts, a row for each profile, and below it where each run comes from."""
        listed = shelf.claims.get(paper.slug, ())
        if not listed:
            return '<p class="zfu-origin">No claims are listed yet.</p>'
        body, origins, missing = "", "", []
        for profile in PROFILES:
            run = shelf.run(paper.slug, profile)
            if run is None and profile != "quick":
                missing.append(profile)
                continue
            judged = shelf.judged(paper.slug, profile)
            body += f'<tr><th scope="row">{profile}</th>{"".join(self.cell(*pair) for pair in judged)}</tr>'
            origins += f"<li><b>{profile}</b> {self.origin(run, _counts(judged))}</li>"
        if missing:
            origins += f"<li><b>{', '.join(missing)}</b> not run</li>"
        heads = ["run", *(_short(claim) for claim in listed)]
        caption = f"Verdicts on the claims of {escape(paper.title)}"
        table = _table("zfu-strip", caption, heads, body, hidden_caption=True)
        return _scroll(f"Verdicts: {paper.title}", table) + f'<ul class="zfu-origin">{origins}</ul>'

    def cell(self, claim: Claim, judged: Judgement) -> str:
        """One verdict: a glyph for the eye, the word for a screen reader and the tooltip."""
        glyph = f'<span aria-hidden="true">{GLYPHS[judged.verdict]}</span><span class="zfu-sr">{judged.verdict}</span>'
        tip = escape(f"{_short(claim)}: {judged.verdict}. {claim.statement}", quote=True)
        address = self.ledger(claim)
        inner = f'<a href="{address}" title="{tip}">{glyph}</a>' if address else f'<span title="{tip}">{glyph}</span>'
        return f'<td class="zfu-{_dashes(judged.verdict)}">{inner}</td>'

    def origin(self, run: Record | None, counts: Counter[Verdict]) -> str:
        """Verdict counts of a run, and when, from which commit and where it was made."""
        if run is None:
            return "not run on this machine yet"
        said = ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])
        device = escape(_origin(run)["device"])
        return f"{said}. {_date(run)}, {_commit(run)}, {device}, {_duration(run.wall_seconds)}{_notes(run)}"


class Claims(Shown):
    """The claims of one paper: what it says, what was measured, the verdicts, the deviations."""

    required_arguments = 1

    def html(self, shelf: Shelf) -> str:
        slug = self.slug()
        listed = shelf.claims.get(slug)
        if not listed:
            return "<p>The claims of this paper are not listed yet.</p>"
        shown = [p for p in PROFILES if p != "paper" or shelf.run(slug, p)]
        body = "".join(self.claim(shelf, claim, shown) for claim in listed)
        caption = (
            "Left: quoted from the paper or its public code, with the place. Right: measured by this book's runs, "
            "mean [95% interval]. The two are never mixed."
        )
        heads = ["Claim", "The paper says", *(f"Measured: {profile}" for profile in shown)]
        runs = ((profile, shelf.run(slug, profile)) for profile in shown)
        about = "".join(f"<p><strong>{profile}</strong> {_date(run)}{_notes(run)}</p>" for profile, run in runs if run)
        return about + _scroll("Claims of the paper", _table("zfu-claims-table", caption, heads, body))

    def claim(self, shelf: Shelf, claim: Claim, shown: list[str]) -> str:
        """One row."""
        slug = claim.id.partition(".")[0]
        address = self.ledger(claim)
        name = f'<a href="{address}">{_short(claim)}</a>' if address else _short(claim)
        cells = ""
        for profile in shown:
            judged = judgement(claim, profile, shelf.run(slug, profile))
            cells += f'<td data-head="Measured: {profile}">{chip(judged.verdict)}<div>{_measured(judged)}</div></td>'
        return f'<tr><th scope="row">{name}</th><td data-head="The paper says">{said(claim)}</td>{cells}</tr>'


def said(claim: Claim) -> str:
    """What the paper says: statement, numbers, place, and what this book did differently."""
    text = f"{escape(claim.statement)}"
    numbers = _reported(claim)
    doubt = "" if claim.confirmed else ' <span class="zfu-doubt">not confirmed from the paper itself</span>'
    quoted = f"{escape(numbers)} " if numbers else ""
    text += f'<div class="zfu-said">{quoted}<cite>({escape(claim.source)})</cite>{doubt}</div>'
    if claim.deviations:
        items = "".join(f"<li>{escape(deviation)}</li>" for deviation in claim.deviations)
        text += f"<details><summary>Deviations ({len(claim.deviations)})</summary><ul>{items}</ul></details>"
    return text


class Results(Shown):
    """Every claim of every paper in every profile, with filters; the table is complete without JavaScript."""

    def html(self, shelf: Shelf) -> str:
        listed = list(rows(shelf))
        slugs = sorted({paper.slug for paper, *_ in listed}, key=list(papers.PAPERS).index)
        body = "".join(self.row(*row) for row in listed)
        titles = {slug: papers.PAPERS[slug].title for slug in slugs}
        form = (
            '<form class="zfu-filter" role="search" aria-label="Filter the claims">'
            + _select("paper", "Paper", titles)
            + _select("profile", "Profile", {p: p for p in PROFILES})
            + _select("verdict", "Verdict", {str(v): str(v) for v in Verdict})
            + '<label>Text <input type="search" name="text" placeholder="window, S3, perplexity …"></label>'
            + '<button type="reset">Clear</button></form>'
            f'<p class="zfu-shown" role="status" aria-live="polite">{len(listed)} rows</p>'
        )
        heads = ["Claim", "Paper", "Profile", "Verdict", "The paper says", "Measured here"]
        caption = "Every claim in every profile. A profile that was not run says so."
        table = _scroll("All claims", _table("zfu-results-table", caption, heads, body))
        files = "".join(
            f'<li><a download href="{self.file(name)}">{text}</a></li>'
            for name, text in (("claims.json", "All rows as JSON"), ("claims.csv", "All findings as CSV"))
        )
        return f'{form}{table}<ul class="zfu-files">{files}</ul>'

    def row(self, paper: Paper, claim: Claim, profile: str, judged: Judgement, run: Record | None) -> str:
        """One claim in one profile."""
        address = self.ledger(claim) if run else None
        name = f'<a href="{address}">{_short(claim)}</a>' if address else _short(claim)
        data = {"paper": paper.slug, "profile": profile, "verdict": judged.verdict}
        keys = " ".join(f'data-{key}="{escape(str(value), quote=True)}"' for key, value in data.items())
        return (
            f'<tr {keys}><th scope="row">{name}</th><td title="{escape(paper.title, quote=True)}">{paper.slug}</td>'
            f'<td>{profile}</td><td>{chip(judged.verdict)}</td><td data-head="The paper says">{said(claim)}</td>'
            f'<td data-head="Measured here">{_measured(judged)}</td></tr>'
        )


def _select(name: str, label: str, options: dict[str, str]) -> str:
    items = "".join(f'<option value="{escape(v, quote=True)}">{escape(t)}</option>' for v, t in options.items())
    return f'<label>{label} <select name="{name}"><option value="">all</option>{items}</select></label>'


class Runs(Shown):
    """Which runs this site was made from: time, memory, machine, versions, data."""

    def html(self, shelf: Shelf) -> str:
        runs = [run for (slug, _), run in shelf.records.items() if shelf.done(slug)]
        if not runs:
            return "<p>No run is recorded yet.</p>"
        body = "".join(self.row(run) for run in runs)
        heads = ["Paper", "Profile", "Started", "Wall time", "Peak memory", "Device", "Commit"]
        caption = "Sealed runs shown in this site. Peak memory is that of the notebook's process."
        table = _scroll("Runs", _table("zfu-runs-table", caption, heads, body))
        return table + "".join(self.details(run) for run in runs)

    def row(self, run: Record) -> str:
        """One run."""
        page = self.page(f"notebooks/{run.slug}")
        name = f'<a href="{page}">{run.slug}</a>' if page else run.slug
        cells = [
            run.profile,
            _date(run),
            _duration(run.wall_seconds),
            _size(run.peak_memory_bytes),
            escape(_origin(run)["device"]),
            _commit(run),
        ]
        return f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

    def details(self, run: Record) -> str:
        """Versions, parameters, data and notes of a run, folded away."""
        about = run.provenance
        machine = {
            "Run": run.run_id,
            "Seal": run.seal,
            "Commit": _origin(run)["commit"] or "none",
            "Python": about.get("python"),
            "System": about.get("system"),
            "Cores": about.get("cores"),
            "Threads": about.get("threads") or "not limited",
            "Versions": ", ".join(f"{k} {v}" for k, v in (about.get("versions") or {}).items() if v),
            "Parameters": json.dumps(run.parameters.get("resolved", run.parameters), ensure_ascii=False),
        }
        terms = "".join(f"<dt>{key}</dt><dd>{escape(str(value))}</dd>" for key, value in machine.items())
        notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
        notes = f"<p>Notes of the run:</p><ul>{notes}</ul>" if notes else ""
        data = "".join(
            f'<tr><th scope="row">{escape(used.name)}</th><td>{escape(used.version) or "–"}</td>'
            f"<td>{_size(used.bytes)}</td><td><code>{escape(used.sha256)}</code></td></tr>"
            for used in run.data
        )
        table = _table("zfu-data-table", "Data the run read", ["Data set", "Version", "Size", "SHA-256"], data)
        table = _scroll("Data the run read", table) if data else "<p>The run read no data set.</p>"
        summary = f"{run.slug}, {run.profile}: versions, parameters and data"
        return f'<details><summary>{summary}</summary><dl class="zfu-facts">{terms}</dl>{notes}{table}</details>'


class Downloads(Shown):
    """Files of one chapter: the notebook clean and executed, and the record of each run."""

    required_arguments = 1

    def html(self, shelf: Shelf) -> str:
        slug = self.slug()
        known = {f"{slug}.ipynb": "Notebook, clean (to run it yourself)"}
        known |= {f"{slug}.executed.ipynb": "Notebook, executed (what this site shows)"}
        known |= {f"{slug}.{p}.json": f"Record of the <em>{p}</em> run (values, intervals, verdicts)" for p in PROFILES}
        folder = Path(self.env.srcdir) / EXTRA / DOWNLOADS
        items = "".join(
            f'<li><a download href="{self.file(name)}">{text}</a> <small>{_size(file.stat().st_size)}</small></li>'
            for name, text in known.items()
            if (file := folder / name).is_file()
        )
        return f'<ul class="zfu-files">{items}</ul>' if items else "<p>Nothing was run yet.</p>"


def _dashes(verdict: Verdict) -> str:
    return verdict.replace(" ", "-")


def _write_modules(app: Sphinx, document: str, source: list[str]) -> None:
    """Replace a line ``% modules: package`` by the package and a section for each of its modules, so that the
    reference never lags behind the packages."""

    def sections(match: re.Match[str]) -> str:
        package = match.group(1)
        text = ""
        for name in modules(package):
            head = "" if name == package else f"## `{name}`\n\n"
            text += f"{head}```{{eval-rst}}\n.. automodule:: {name}\n```\n\n"
        return text

    source[0] = re.sub(r"^% modules: (\S+)$", sections, source[0], flags=re.MULTILINE)


def modules(package: str) -> list[str]:
    """A package and its public modules, parents first."""
    found = importlib.import_module(package)
    names = [package] if (found.__doc__ or "").strip() else []
    for info in pkgutil.walk_packages(getattr(found, "__path__", []), prefix=f"{package}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            names.append(info.name)
    return names


def _keep_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Read ``|x|`` in a docstring as an absolute value, not as a substitution of reStructuredText."""
    literal: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            pieces = re.split(r"(``.*?``)", line)
            lines[number] = "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in pieces)
            if line.rstrip().endswith("::"):
                literal = indent


def _stay_offline(app: Sphinx, config: Any) -> None:
    """Thebe ("live code") would load from a CDN; the book has no use for it."""
    for event, listeners in list(app.events.listeners.items()):
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe" and event in ("env-before-read-docs", "doctree-resolved"):
                app.disconnect(listener.id)


def _serve_extra(app: Sphinx, config: Any) -> None:
    if (Path(app.srcdir) / EXTRA).is_dir():
        config.html_extra_path.append(EXTRA)


def _use_tree(app: Sphinx) -> None:
    """Read claims and chapters from the tree that is being built."""
    os.environ["ZFU_ROOT"] = str(app.srcdir)
    _shelf.cache_clear()


def _write_tables(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        shelf, folder = _shelf(str(app.srcdir)), Path(app.outdir) / DOWNLOADS
        record.write_atomically(folder / "claims.json", as_json(shelf))
        record.write_atomically(folder / "claims.csv", as_csv(shelf))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives ``zfu-matrix``, ``zfu-claims``, ``zfu-results``, ``zfu-runs`` and ``zfu-downloads``."""
    for directive in (Matrix, Claims, Results, Runs, Downloads):
        app.add_directive(f"zfu-{directive.__name__.lower()}", directive)
    app.add_css_file("zfu.css")
    app.add_js_file("zfu.js", defer="defer")
    app.connect("config-inited", _stay_offline)
    app.connect("config-inited", _serve_extra)
    app.connect("builder-inited", _use_tree)
    app.connect("source-read", _write_modules)
    app.connect("autodoc-process-docstring", _keep_bars)
    app.connect("build-finished", _write_tables)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
