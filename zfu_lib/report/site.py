"""From sealed runs to a site: stage a tree, build it, put it in place in one step, and look at it.

``python -m zfu_lib.report.site`` builds ``_build/html`` from the current runs of a profile. It refuses a run that is
not sealed, was changed, or was made from other code than the notebook has now. The last line it prints is the path of
the site.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from zfu_lib.report import browser, claims, papers, paths, record, verdicts
from zfu_lib.report.record import Record, RecordError

# A folder of somebody's machine, in the text of a notebook or a page.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|mnt)/[\w.-]+|[A-Z]:\\\\?Users\\\\?\w+")
SOLUTION = re.compile(r"^(?P<fence>`{3,}|:{3,})\{solution(?P<gate>-start|-end)?\}", re.MULTILINE)


class SiteError(RuntimeError):
    """The site cannot be built; the message says what to do."""


@dataclass(frozen=True)
class SealedRun:
    """A run fit to be shown: its record and its executed notebook."""

    record: Record
    notebook: NotebookNode


# What goes into the site.


def current(profile: str, slug: str) -> SealedRun:
    """The current run of a chapter.

    Raises:
        SiteError: there is none, its seal does not match, or its notebook is not the one that sealed it.
    """
    again = f"run `zfu run {slug} --profile {profile}`"
    folder = paths.runs(profile, slug)
    try:
        pointer = json.loads((folder / "current.json").read_text(encoding="utf-8"))
        run_id, seal = pointer["run_id"], pointer["seal"]
    except FileNotFoundError:
        raise SiteError(f"there is no {profile} run of {slug}; {again}") from None
    except (ValueError, TypeError, KeyError):
        raise SiteError(f"current.json of {slug} ({profile}) is not a pointer to a run; {again}") from None
    try:
        result = record.read(folder / run_id / "result.json")
    except RecordError as error:
        raise SiteError(f"the {profile} run {run_id} of {slug} is not sealed: {error}; {again}") from None
    if (result.slug, result.profile, result.run_id, result.seal) != (slug, profile, run_id, seal):
        raise SiteError(f"the {profile} run {run_id} of {slug} is not the run that was sealed under this name; {again}")
    try:
        notebook = nbformat.read(folder / run_id / "notebook.ipynb", as_version=4)
    except (OSError, ValueError) as error:
        where = f"the notebook of the {profile} run {run_id} of {slug}"
        raise SiteError(f"{where} cannot be read ({error}); {again}") from None
    if f"sealed {slug} {profile} {run_id}" not in _printed(notebook):
        raise SiteError(f"the notebook of the {profile} run {run_id} of {slug} does not end with its seal; {again}")
    return SealedRun(result, notebook)


def laid_over(clean: NotebookNode, executed: NotebookNode, slug: str = "") -> NotebookNode:
    """``clean`` with the outputs of ``executed``. Prose may have been edited since the run, code may not.

    Raises:
        SiteError: the code is not the code that was executed.
    """
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    ran = [c for c in executed.cells if c.cell_type == "code" and c not in injected]
    code = [c for c in clean.cells if c.cell_type == "code"]
    if [c.source for c in ran] != [c.source for c in code]:
        raise SiteError(f"the code of notebooks/{slug}.ipynb changed since its run; run `zfu run {slug}` again")
    page = copy.deepcopy(clean)
    page.cells = []
    done = iter(ran)
    for cell in clean.cells:
        kept = copy.deepcopy(cell)
        page.cells.append(kept)
        if cell.cell_type == "code":
            source = next(done)
            kept.outputs, kept.execution_count = copy.deepcopy(source.outputs), source.execution_count
        if "parameters" in cell.metadata.get("tags", []):
            page.cells += [_unseen(cell) for cell in injected]
    return without_traces(page)


def _unseen(cell: NotebookNode) -> NotebookNode:
    """A copy that stays in the notebook and off the page: the parameters stand in the header of the run."""
    cell = copy.deepcopy(cell)
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), "remove-cell"]
    return cell


def without_traces(notebook: NotebookNode) -> NotebookNode:
    """A copy without what Papermill notes about times and places."""
    notebook = copy.deepcopy(notebook)
    for holder in (notebook, *notebook.cells):
        holder.metadata.pop("papermill", None)
        holder.metadata.pop("execution", None)
    return notebook


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy for students: cells of solutions are gone, also those between ``solution-start`` and ``solution-end``."""
    notebook = copy.deepcopy(notebook)
    kept, inside = [], False
    for cell in notebook.cells:
        gates = list(SOLUTION.finditer(cell.source)) if cell.cell_type == "markdown" else []
        was_inside = inside
        for gate in gates:
            inside = {"-start": True, "-end": False}.get(gate["gate"] or "", inside)
        if not gates and not inside:
            kept.append(cell)
        elif gates and not was_inside and (before := cell.source[: gates[0].start()].strip()):
            cell.source = before
            kept.append(cell)
    notebook.cells = kept
    return notebook


def _printed(notebook: NotebookNode) -> str:
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


def _refuse_machine_paths(notebook: NotebookNode, slug: str) -> None:
    for number, cell in enumerate(notebook.cells):
        text = json.dumps([cell.source, [o.get("data") or o for o in cell.get("outputs", [])]], ensure_ascii=False)
        found = MACHINE_PATH.search(re.sub(r"data:image/[^\"]*", "", text))
        if found or str(paths.root()) in text:
            place = found.group(0) if found else str(paths.root())
            raise SiteError(f"the executed notebook of {slug} shows a path of this machine in cell {number}: {place}")


def stage(profile: str, *, student: bool = False) -> dict[tuple[str, str], Record]:
    """Make ``_build/stage``, the tree that Jupyter Book builds; returns the records in it by (slug, profile).

    Raises:
        SiteError: a chapter or an appendix has no sealed run of ``profile``.
    """
    root, to = paths.root(), paths.root() / "_build" / "stage"
    runs = {slug: current(profile, slug) for slug in papers.notebooks()}
    shutil.rmtree(to, ignore_errors=True)
    downloads = to / "extra" / "downloads"
    downloads.mkdir(parents=True)
    shutil.copy(root / "_toc.yml", to)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    if student:
        config["title"] += " (student edition)"
        config["sphinx"]["config"]["hide_solutions"] = True
    (to / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    shutil.copytree(root / "book", to / "book", ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    (to / "notebooks").mkdir()
    records: dict[tuple[str, str], Record] = {}
    for slug, run in runs.items():
        clean = nbformat.read(paths.notebook(slug), as_version=4)
        executed = laid_over(clean, run.notebook, slug)
        _refuse_machine_paths(executed, slug)
        if student:
            clean, executed = without_solutions(clean), without_solutions(executed)
        nbformat.write(executed, to / "notebooks" / f"{slug}.ipynb")
        nbformat.write(executed, downloads / f"{slug}.executed.ipynb")
        nbformat.write(clean, downloads / f"{slug}.ipynb")
        records[slug, profile] = run.record
        for other in sorted(paths.results(slug).glob("*.json")):
            if other.stem != profile:
                records[slug, other.stem] = _committed(other, slug)
    for (slug, name), result in records.items():
        text = result.model_dump_json(indent=1) + "\n"
        record.write_atomically(to / "records" / name / f"{slug}.json", text)
        record.write_atomically(downloads / f"{slug}.{name}.json", text)
    return records


def _committed(file: Path, slug: str) -> Record:
    try:
        result = record.read(file)
    except RecordError as error:
        raise SiteError(f"committed record of {slug}: {error}") from None
    if (result.slug, result.profile) != (slug, file.stem):
        raise SiteError(f"{file.name} of {slug} holds a {result.profile} record of {result.slug}")
    return result


# Building it.


def build(profile: str, *, student: bool = False) -> tuple[Path, dict[tuple[str, str], Record]]:
    """Stage, build and put in place; returns the site's folder and the records it shows.

    Raises:
        SiteError: nothing to show, or the build has a warning. The site that was there before stays.
    """
    place = paths.root() / "_build" / ("student" if student else "html")
    place.parent.mkdir(exist_ok=True)
    with _alone(place.parent / ".site.lock"):
        records = stage(profile, student=student)
        work = Path(tempfile.mkdtemp(dir=place.parent, prefix=".site-"))
        try:
            _jupyter_book(place.parent / "stage", work)
            _put_in_place(work / "_build" / "html", place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return place, records


def _jupyter_book(source: Path, work: Path) -> None:
    # The package cannot be started with -m, and its script need not be on the PATH.
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(source), "--path-output", str(work)]
    environment = os.environ | {"ZFU_ROOT": str(source), "PYTHONWARNINGS": "ignore", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, "-W", "-n", "--keep-going", "--quiet"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stdout + done.stderr
        said = re.sub(r"\x1b\[[0-9;]*m", "", said)
        lines = [line for line in said.splitlines() if re.search(r"WARNING|ERROR|Error", line)]
        shown = "\n".join(dict.fromkeys(lines or said.splitlines()[-30:]))
        raise SiteError("the build has warnings:\n" + shown.replace(f"{source}/", ""))


def _put_in_place(new: Path, place: Path) -> None:
    """A folder cannot replace a folder in one call, so the old one steps aside first; ``place`` never holds a part."""
    aside = place.with_name(f".{place.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.rename(aside)
    new.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One build at a time; what a killed one left behind is removed."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in lock.parent.glob(".site-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


# Looking at it.


def check_records(records: dict[tuple[str, str], Record]) -> list[str]:
    """What is wrong with the shown numbers: outside the band expected on any machine, or judged by other rules than
    the claims file has now."""
    found = []
    for (slug, profile), result in records.items():
        listed = claims.load(slug)
        where = f"{slug} ({profile}, run {result.run_id})"
        for name, (low, high) in listed.bands.get(result.profile, {}).items():  # type: ignore[call-overload]
            value = result.measurements[name].mean if name in result.measurements else result.values.get(name)
            if not isinstance(value, (int, float)):
                found.append(f"{where}: {name} has an expected band but was not measured")
            elif not low <= value <= high:
                found.append(f"{where}: {name} = {value:.6g} is outside its expected band [{low:g}, {high:g}]")
        found += [f"{where}: {problem}" for problem in _rejudged(listed, result)]
    return found


def _rejudged(listed: claims.ClaimsFile, result: Record) -> Iterator[str]:
    measured = {name: m.interval for name, m in result.measurements.items()}
    rules = {claim.id: claim for claim in listed.claims}
    for judged in result.claims:
        if judged.claim not in rules:
            yield f"claim {judged.claim} is no longer in the claims file; run it again"
            continue
        try:
            now = verdicts.rejudge(rules[judged.claim], result.profile, measured, judged)  # type: ignore[arg-type]
        except KeyError as error:
            yield f"{error.args[0]}; run it again"
            continue
        if now.verdict != judged.verdict:
            yield f"{judged.claim} was judged {judged.verdict!s}, today's rule says {now.verdict!s}; run it again"


def check_browser(site: Path, *, word: str = "window") -> tuple[str, list[str]]:
    """Open every page of the site in Chromium; returns a line for the log and the problems."""
    executable = browser.chromium()
    if executable is None:
        must = os.environ.get("ZFU_REQUIRE_BROWSER") == "1"
        return "browser checks: not run", ["no Chromium found and ZFU_REQUIRE_BROWSER=1"] if must else []
    pages = browser.documents(site)
    problems = browser.check(site, executable, word=word, pages=pages)
    return f"browser checks: {len(pages)} pages, {len(problems)} problems", problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 where the site could not be built or has a problem."""
    parser = argparse.ArgumentParser(prog="python -m zfu_lib.report.site", description="Build the book's site.")
    parser.add_argument("--profile", default="quick", choices=("quick", "full", "paper"), help="whose runs are shown")
    parser.add_argument("--student", action="store_true", help="without solutions, into _build/student")
    options = parser.parse_args(arguments)
    try:
        site, records = build(options.profile, student=options.student)
        problems = check_records(records)
    except (SiteError, claims.ClaimsError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"sealed runs: {len(records)}, outside their bands or rules: {len(problems)}")
    line, seen = check_browser(site)
    print(line)
    for problem in (*problems, *seen):
        print(f"problem: {problem}", file=sys.stderr)
    print(site / "index.html")
    return 1 if problems or seen else 0


if __name__ == "__main__":
    sys.exit(main())
