"""``zfu``: list, plan and run papers, read claims, compare runs, look after data. ``zfu --help`` has the exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from zfu_lib.report.profiles import Profile


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANNOT_RUN = 3
    DATA = 4


class Name(StrEnum):
    """Names of the profiles."""

    QUICK = "quick"
    FULL = "full"
    PAPER = "paper"


EPILOG = (
    "Exit codes: 0 done; 1 a run failed, a record is broken or a check of `doctor` is not met; "
    "2 wrong usage, unknown paper or parameter; 3 the run cannot be made on this machine; "
    "4 a data set or a model to merge is missing or damaged; 130 interrupted."
)

app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EPILOG, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="The catalogue of real data sets.", epilog=EPILOG)
app.add_typer(data_app, name="data")
lm_app = typer.Typer(no_args_is_help=True, help="The book's own small language models.", epilog=EPILOG)
app.add_typer(lm_app, name="lm")
# A pipe has no width: give every row of a table one line there.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 500)
err = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SeedsOption = Annotated[int | None, typer.Option(help="Seeds per stochastic measurement instead of the profile's.")]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A field of the profile; VALUE as in YAML."),
]
ProfileOption = Annotated[Name, typer.Option(help="quick: any laptop; full: real data; paper: the paper's own scale.")]


class Stop(Exception):
    """An error with its exit code and words for the user."""

    def __init__(self, code: Exit, words: str) -> None:
        super().__init__(words)
        self.code = code


@app.callback()
def _zfu() -> None:
    """Run and inspect the zfu book: eleven papers, one notebook each, every claim held against a measurement."""


@app.command("list")
def list_papers(as_json: Json = False) -> None:
    """The papers and appendices, their state, and the runs there are."""
    from zfu_lib.report import execute, papers, paths, record

    rows = []
    appendices = [(slug, title, "", "") for slug, title in papers.APPENDICES.items() if slug in papers.notebooks()]
    for paper in (*papers.PAPERS.values(), *(papers.Paper(*appendix) for appendix in appendices)):
        runs = {}
        for profile in Name:
            try:
                found = execute.current(paper.slug, profile)
            except record.RecordError:
                runs[profile.value] = "broken"
                continue
            committed = paths.results(paper.slug) / f"{profile}.json"
            runs[profile.value] = "here" if found else "recorded" if committed.is_file() else ""
        state = "in progress" if paper.in_progress else "chapter" if paper.slug in papers.PAPERS else "appendix"
        rows.append({**dataclasses.asdict(paper), "state": state, "runs": runs})
    if as_json:
        return _print_json(rows)
    table = _table("slug", "paper", "arXiv", "state", *Name)
    for row in rows:
        table.add_row(row["slug"], row["title"], row["arxiv"], row["state"], *row["runs"].values())
    out.print(table)
    _say("here: run on this machine; recorded: committed with the book")


@app.command()
def plan(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[SLUG]...", help="Papers or appendices; all notebooks if none.")
    ] = None,
    profile: ProfileOption = Name.QUICK,
    seeds: SeedsOption = None,
    parameter: ParameterOption = None,
    as_json: Json = False,
) -> None:
    """Time, memory, disk and downloads of runs before they start; exit code 3 if one cannot be made here.

    With parameters of your own: the time grows with the seeds; what other fields cost is not known before the run.
    """
    from zfu_lib.report import papers

    given = _parameters(parameter or []) | ({"seeds": seeds} if seeds is not None else {})
    plans = [_plan(slug, profile, given) for slug in (slugs or papers.notebooks())]
    if as_json:
        _print_json(plans)
    else:
        table = _table("paper", "machine", "minutes", "memory", "GPU memory", "disk", "downloads", "data", "fits")
        for p in plans:
            downloads = ", ".join(f"{d['id']} {d['gb']:g} GB{' (here)' if d['here'] else ''}" for d in p["downloads"])
            data = ", ".join(f"{name} ({state})" for name, state in p["data"].items())
            gpu = f"{p['gpu_memory_gb']:g} GB" if p["gpu_memory_gb"] else "-"
            sizes = (f"{p['minutes']:g}", f"{p['memory_gb']:g} GB", gpu, f"{p['disk_gb']:g} GB")
            table.add_row(
                p["slug"], p["machine"], *sizes, downloads or "-", data or "-", "no" if p["obstacles"] else "yes"
            )
        out.print(table)
        if len(plans) > 1:
            _say(f"{sum(p['minutes'] for p in plans):g} minutes one after the other")
        for p in plans:
            for words in p["remarks"]:
                _say(f"{p['slug']}: {words}")
    _refuse(plans)


@app.command()
def run(
    slugs: Annotated[list[str], typer.Argument(metavar="SLUG...", help="Papers or appendices to run.")],
    profile: ProfileOption = Name.QUICK,
    seeds: SeedsOption = None,
    parameter: ParameterOption = None,
    publish: Annotated[bool, typer.Option("--publish", help="Copy the sealed record to book/results/.")] = False,
    limit: Annotated[float | None, typer.Option(help="Stop a notebook after this many minutes.")] = None,
) -> None:
    """Execute notebooks. A run counts only when it ends and seals; the one before stays current until then.

    A run with parameters of your own is sealed and kept for `zfu diff`, but the book goes on showing the profile's.
    """
    from zfu_lib.report import execute

    given = _parameters(parameter or []) | ({"seeds": seeds} if seeds is not None else {})
    jobs = []
    for slug in slugs:
        known = _profiles(slug)
        resolved = _resolved(slug, profile, given)
        typed = {name: getattr(resolved, name) for name in given}
        seconds = execute.time_limit(resolved.cost, resolved.seeds / known[profile].seeds)
        jobs.append((slug, typed, 60 * limit if limit else seconds, resolved != known[profile]))
    plans = [_plan(slug, profile, given) for slug in slugs]
    _refuse(plans)
    for p in plans:
        for words in p["remarks"]:
            _say(f"{p['slug']}: {words}")
    failed = [slug for slug, *job in jobs if not _run_one(slug, profile, *job, publish)]
    if failed:
        raise Stop(Exit.FAILED, f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}")


def _run_one(slug: str, profile: Name, parameters: dict[str, Any], seconds: float, own: bool, publish: bool) -> bool:
    from zfu_lib.report import execute, paths, record

    started = time.monotonic()

    def waiting() -> None:
        _say(f"{slug} {profile}: another run of it is under way; waiting for it to end")

    if not err.is_interactive:
        _say(f"{slug} {profile}: started")
    try:
        with _progress(f"{slug} {profile}") as progress:
            sealed = execute.run(
                slug, profile, parameters, seconds=seconds, keep_current=own, progress=progress, waiting=waiting
            )
    except execute.RunFailed as failure:
        err.print(f"{slug} {profile}: {failure.kind}: {failure.reason}", markup=False, soft_wrap=True)
        err.print(f"  log: {_relative(failure.folder)}/log.txt", markup=False, soft_wrap=True)
        return False
    if publish:
        target = paths.results(slug) / f"{profile}.json"
        record.write_atomically(target, (sealed.folder / "result.json").read_text(encoding="utf-8"))
        if sealed.record.provenance["changed_files"]:
            _say(f"{slug} {profile}: published from a checkout with uncommitted changes")
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in _count(sealed.record).items()) or "no claims"
    took = time.monotonic() - started
    _say(f"{slug} {profile}: sealed in {took:.0f} s ({verdicts}): {_relative(sealed.folder)}")
    if own:
        _say(f"{slug} {profile}: with your own parameters, so the book keeps showing the profile's run")
    return True


@app.command()
def claims(
    slug: Annotated[str | None, typer.Argument(help="One paper; all with claims if none.")] = None,
    as_json: Json = False,
) -> None:
    """What the papers claim, and the verdict of each profile's newest run."""
    from zfu_lib.report import claims as library
    from zfu_lib.report import papers, paths

    slugs = [_paper(slug)] if slug else [s for s in papers.PAPERS if paths.claims(s).is_file()]
    rows = []
    for name in slugs:
        try:
            listed = library.load(name).claims
        except library.ClaimsError as error:
            raise Stop(Exit.FAILED, str(error)) from None
        runs = {profile: _newest(name, profile) for profile in Name}
        for claim in listed:
            verdicts = {profile.value: _verdict(claim, profile, runs[profile]) for profile in Name}
            rows.append({"id": claim.id, "statement": claim.statement, "source": claim.source, "verdicts": verdicts})
    if as_json:
        return _print_json(rows)
    table = _table("claim", "statement", "source", *Name)
    for row in rows:
        table.add_row(row["id"], row["statement"], row["source"], *row["verdicts"].values())
    out.print(table)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="Run folder, result.json, or profile/slug for the newest run.")],
    run_b: Annotated[str, typer.Argument(help="The other one.")],
    as_json: Json = False,
) -> None:
    """What differs between two runs: parameters, versions, values, measurements with intervals, verdicts."""
    from zfu_lib.report import compare

    found = compare.compare(_record(run_a), _record(run_b))
    if as_json:
        return _print_json([dataclasses.asdict(change) for change in found])
    if not found:
        return _say("no difference")
    table = _table("what", "name", run_a, run_b, "")
    for change in found:
        table.add_row(change.what, change.name, change.show(change.a), change.show(change.b), change.remark)
    out.print(table)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """Data sets with size, licence, and whether they are on this machine."""
    with _data_errors() as catalogue:
        rows = []
        for name in catalogue.names():
            entry = catalogue.entry(name)
            size = sum(file.bytes for file in entry.files)
            row = {"name": name, "bytes": size, "licence": entry.licence, "state": _data_state(name)}
            rows.append(row | {"description": entry.description})
    if as_json:
        return _print_json(rows)
    table = _table("name", "size", "licence", "here", "description")
    for row in rows:
        table.add_row(row["name"], f"{row['bytes'] / 1e6:.1f} MB", row["licence"], row["state"], row["description"])
    out.print(table)


@data_app.command("get")
def data_get(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets to fetch.")]) -> None:
    """Fetch data sets into the cache and check them."""
    with _data_errors() as catalogue:
        for name in names:
            catalogue.entry(name)
        for name in names:
            with _progress(name):
                files = catalogue.get(name)
            _say(f"{name}: {len(files)} files, checksums right")


@data_app.command("verify")
def data_verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; all if none.")] = None,
    as_json: Json = False,
) -> None:
    """Compare files on this machine with the catalogue's checksums; exit code 4 if one is missing or damaged."""
    with _data_errors() as catalogue:
        states = {name: catalogue.verify(name) for name in names} if names else catalogue.verify_all()
    plain = {name: {path: state.value for path, state in files.items()} for name, files in states.items()}
    if as_json:
        _print_json(plain)
    else:
        for name, files in plain.items():
            wrong = {path: state for path, state in files.items() if state != "ok"}
            fine = "ok" if files else "no file on record"
            _say(f"{name}: {', '.join(f'{path} {state}' for path, state in wrong.items()) or fine}")
    # Without names the question is whether what is here is right; not everybody has every data set.
    bad = {state for files in plain.values() for state in files.values()} - {"ok"} - (set() if names else {"missing"})
    if bad:
        raise Stop(Exit.DATA, "some files are not what the catalogue says")


@lm_app.command("list")
def lm_list(as_json: Json = False) -> None:
    """Recipes, what they cost to train, and whether the weights are here."""
    from zfu_lib.lm import recipes, tiny

    here = tiny.names()
    rows = [
        {"name": name, "weights": "here" if name in here else "not here", "minutes": r.minutes, "purpose": r.purpose}
        for name, r in recipes.recipes().items()
    ]
    if as_json:
        return _print_json(rows)
    table = _table("name", "weights", "training, minutes on one core", "purpose")
    for row in rows:
        table.add_row(row["name"], row["weights"], f"{row['minutes']:g}", row["purpose"])
    out.print(table)


@lm_app.command("card")
def lm_card(name: Annotated[str, typer.Argument(help="Name of a model.")], as_json: Json = False) -> None:
    """How a model was made and what it can do."""
    from zfu_lib.lm import tiny
    from zfu_lib.lm.protocol import ModelError

    try:
        folder, card = tiny.path(name), tiny.card(name)
    except ModelError as error:
        raise Stop(Exit.USAGE, str(error)) from None
    return _print_json(card) if as_json else _say((folder / "README.md").read_text(encoding="utf-8"))


@lm_app.command("train")
def lm_train(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write; models/NAME if none.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    items: Annotated[int, typer.Option(min=1, help="Held-out items per score.")] = 500,
) -> None:
    """Train a model from its recipe. Interrupted, it goes on where it was when started again."""
    from zfu_lib.lm import recipes
    from zfu_lib.lm.recipes.make import make
    from zfu_lib.lm.train import CheckpointError

    try:
        recipe = recipes.recipe(name)
    except KeyError as error:
        raise Stop(Exit.USAGE, error.args[0]) from None
    folder = to or Path("models") / name
    if folder.exists() and not (folder / "card.json").is_file():
        raise Stop(Exit.USAGE, f"{folder} exists and is not a model made here; give another --out")

    def told(step: int, log: Any) -> None:
        if (step + 1) % max(1, recipe.train.steps // 100) == 0:
            _say(f"{name}: step {step + 1} of {recipe.train.steps}, loss {log.loss[-1]:.3f}, {sum(log.seconds):.0f} s")

    try:
        card = make(recipe, folder, device=device, items=items, on_step=told)
    except (CheckpointError, ValueError) as error:
        raise Stop(Exit.FAILED, str(error)) from None
    for score in card["scores"]:
        _say(f"{score['name']}: {100 * score['right'] / score['n']:.1f}% [{score['low']:.3f}, {score['high']:.3f}]")
    _say(f"{name}: written to {folder}")


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(metavar="RECIPE.yml", help="What to merge, in mergekit's form.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Folder to write.")] = None,
    planned: Annotated[bool, typer.Option("--plan", help="Check it, say what it costs, write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished merge.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT even if it is no earlier merge.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; at most 4 of the cores if none.")] = None,
    shard_size: Annotated[float, typer.Option(min=1e-6, help="Largest output file, GB.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the methods that draw random numbers.")] = 0,
    as_json: Json = False,
) -> None:
    """Merge checkpoints piece by piece in constant memory. OUT is replaced in one step, or not at all.

    Exit codes here: 2 a recipe or a folder that cannot be used; 3 no room on the disk; 4 a model that is missing,
    damaged, or does not go with the others; 1 the disk failed. Nothing is written before all models were checked.
    """
    from zfu_lib.merging.engine import errors, plan, recipe, run

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or min(4, cores)
    try:
        made = plan.make(recipe.read(file), seed=seed, shard_bytes=int(shard_size * 1e9))
        if folder is not None:
            run.check_output(made, folder, force)
        elif not planned:
            raise Stop(Exit.USAGE, "give the folder to write, or --plan")
        if planned:
            rows = run.describe(made, folder or Path(), threads)
            _print_json(rows) if as_json else [_say(f"{what:20} {value}") for what, value in rows.items()]
            return run.check_space(made, folder or Path())
        started = time.monotonic()
        with _merging(file.name) as progress:
            written = run.run(made, folder, threads=threads, resume=resume, force=force, progress=progress)
        for remark in made.remarks:
            _say(remark)
        took = time.monotonic() - started
        _say(f"{len(made.jobs)} tensors, {made.bytes_written / 1e9:.2f} GB in {took:.0f} s: {written}")
    except (errors.RecipeError, errors.OutputError, errors.ResumeError) as error:
        raise Stop(Exit.USAGE, str(error)) from None
    except errors.SpaceError as error:
        raise Stop(Exit.CANNOT_RUN, str(error)) from None
    except errors.InputError as error:
        raise Stop(Exit.DATA, str(error)) from None
    except errors.WriteError as error:
        raise Stop(Exit.FAILED, str(error)) from None


@contextlib.contextmanager
def _merging(what: str) -> Iterator[Any]:
    """A live line on a terminal; elsewhere a line every tenth."""
    started, tenths = time.monotonic(), 0

    def told(done: int, total: int, name: str) -> None:
        nonlocal tenths
        left = (time.monotonic() - started) * (total - done) / max(done, 1)
        words = f"{what}: {100 * done // max(total, 1)}%, about {left:.0f} s left, {name}"
        if status:
            status.update(words)
        elif 10 * done // max(total, 1) > tenths:
            tenths = 10 * done // total
            err.print(words, markup=False, soft_wrap=True)

    with err.status(what) if err.is_interactive else contextlib.nullcontext() as status:
        yield told


@app.command()
def doctor(as_json: Json = False) -> None:
    """Whether this machine and environment can run the book."""
    from zfu_lib.report import machine

    found = machine.checks()
    if as_json:
        _print_json([{"subject": subject, "fine": fine, "words": words} for subject, fine, words in found])
    else:
        for subject, fine, words in found:
            _say(f"{'not ok' if fine is False else 'ok' if fine else '-':6}  {subject}: {words}")
    if any(fine is False for _, fine, _ in found):
        raise Stop(Exit.FAILED, "see the lines marked 'not ok'")


@app.command()
def annotate(
    folder: Annotated[Path, typer.Option(help="Where your work is kept; go on later with the same folder.")] = Path(
        "annotations"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Which synthetic sentences.")] = 0,
    sentences: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 20,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Mark synthetic Chinese job ads in a page on this machine, and see your own agreement. Ctrl-C ends it."""
    import webbrowser

    from zfu_lib.experiments import annotate as pages

    try:
        session = pages.Session(folder, seed=seed, n=sentences)
    except (pages.AnnotateError, OSError) as error:
        raise Stop(Exit.USAGE, str(error)) from None
    try:
        with pages.served(session, port) as address:
            _say(f"annotating in {folder}: {address} (Ctrl-C ends; what you marked is saved)")
            if browser:
                webbrowser.open(address)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    except OSError as error:
        raise Stop(Exit.USAGE, f"port {port}: {error.strerror}; --port 0 takes a free one") from None


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="Short name of the paper: lower case, digits, underscores.")],
    title: Annotated[str | None, typer.Option(help="Title of the paper.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Part of the book: attention, merging, reasoning, skills, prediction.")
    ] = None,
    arxiv: Annotated[str | None, typer.Option(help="arXiv number, such as 2502.18845.")] = None,
) -> None:
    """Start a chapter: every file it needs, ready to be filled in, and a run that already seals."""
    from zfu_lib.report import scaffold

    try:
        steps = scaffold.create(slug, title, family, arxiv)
    except scaffold.ScaffoldError as error:
        raise Stop(Exit.USAGE, str(error)) from None
    for number, step in enumerate(steps, 1):
        _say(f"{number}. {step}")


def main() -> None:
    """Entry point: runs a command and turns every expected error into a line and an exit code."""
    try:
        app(standalone_mode=True)
    except Stop as stop:
        err.print(f"zfu: {stop}", markup=False, soft_wrap=True)
        raise SystemExit(int(stop.code)) from None
    except FileNotFoundError as error:
        err.print(f"zfu: {error}", markup=False, soft_wrap=True)
        raise SystemExit(int(Exit.USAGE)) from None
    except KeyboardInterrupt:
        err.print("zfu: interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        if os.environ.get("ZFU_DEBUG"):
            raise
        err.print(f"zfu: {type(error).__name__}: {error} (ZFU_DEBUG=1 shows where)", markup=False, soft_wrap=True)
        raise SystemExit(int(Exit.FAILED)) from None


def _paper(slug: str) -> str:
    import difflib

    from zfu_lib.report import papers

    known = (*papers.PAPERS, *papers.APPENDICES)
    if slug not in known:
        close = difflib.get_close_matches(slug, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise Stop(Exit.USAGE, f"no paper {slug!r}; {hint}")
    return slug


def _profiles(slug: str) -> dict[str, Profile]:
    from zfu_lib.report import papers

    if _paper(slug) not in papers.notebooks():
        raise Stop(Exit.USAGE, f"the chapter of {slug} is in progress: there is nothing to run yet")
    return importlib.import_module(f"zfu_lib.experiments.{slug}").PROFILES


def _resolved(slug: str, profile: Name, given: dict[str, Any]) -> Profile:
    from zfu_lib.report import profiles

    try:
        return profiles.resolve(_profiles(slug), given | {"profile": profile.value})
    except profiles.ParameterError as error:
        raise Stop(Exit.USAGE, f"{slug}: {error}") from None


def _plan(slug: str, profile: Name, given: dict[str, Any]) -> dict[str, Any]:
    from zfu_lib.report import machine

    resolved = _resolved(slug, profile, given)
    own = _profiles(slug)[profile]
    minutes = round(own.cost.minutes * resolved.seeds / own.seeds, 2)
    cost = dataclasses.replace(own.cost, minutes=minutes)
    here = machine.look()
    downloads = [{"id": d.id, "gb": d.gigabytes, "here": machine.in_cache(d)} for d in cost.downloads]
    hub = machine.hub_answers() if profile is Name.PAPER and not all(d["here"] for d in downloads) else None
    data, obstacles = {}, machine.obstacles(cost, profile, here, hub=hub)
    with _data_errors():
        data = {name: _data_state(name) for name in cost.data}
    fields = [name for name in given if getattr(resolved, name) != getattr(own, name) and name != "seeds"]
    unknown = [f"the estimate is the profile's; it does not know {', '.join(fields)}"] if fields else []
    for name, state in data.items():
        if state not in ("here", "can be fetched"):
            obstacles.append(f"data set {name}: {state}")
    return {
        "slug": slug,
        "profile": profile.value,
        **{k: v for k, v in dataclasses.asdict(cost).items() if k not in ("downloads", "data")},
        "downloads": downloads,
        "data": data,
        "obstacles": obstacles,
        "remarks": machine.remarks(cost, profile, here) + unknown,
    }


def _refuse(plans: list[dict[str, Any]]) -> None:
    refused = [f"{p['slug']} {p['profile']}: {reason}" for p in plans for reason in p["obstacles"]]
    if refused:
        raise Stop(Exit.CANNOT_RUN, "cannot run here:\n  " + "\n  ".join(refused))


def _data_state(name: str) -> str:
    from zfu_lib.data import catalogue

    states = catalogue.verify(name)
    if not states:
        return "not here and cannot be fetched"
    missing = [path for path, state in states.items() if state == "missing"]
    if damaged := [f"{path} has the {state}" for path, state in states.items() if state not in ("ok", "missing")]:
        return "; ".join(damaged)
    if not missing:
        return "here"
    urls = {file.path: file.url for file in catalogue.entry(name).files}
    return "can be fetched" if all(urls[path] for path in missing) else "not here and cannot be fetched"


@contextlib.contextmanager
def _data_errors() -> Iterator[Any]:
    from zfu_lib.data import catalogue

    try:
        yield catalogue
    except catalogue.DataError as error:
        raise Stop(Exit.DATA, str(error)) from None


def _parameters(given: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise Stop(Exit.USAGE, f"-p {text!r}: expected name=value")
        if name in found:
            raise Stop(Exit.USAGE, f"-p {name} is given twice")
        try:
            # JSON first: YAML 1.1 reads 1e-3 as a word.
            found[name] = json.loads(value)
        except ValueError:
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise Stop(Exit.USAGE, f"-p {text!r}: {value!r} is not a YAML value") from None
        if found[name] is None:
            raise Stop(Exit.USAGE, f"-p {text!r}: no value; leave it out to keep the profile's")
    if "profile" in found or "cost" in found:
        raise Stop(Exit.USAGE, "the profile is chosen with --profile, and its cost is not a parameter")
    return found


def _newest(slug: str, profile: Name) -> Any:
    """The record of the run on this machine, else the committed one, else None."""
    from zfu_lib.report import execute, paths, record

    try:
        if found := execute.current(slug, profile):
            return found.record
        committed = paths.results(slug) / f"{profile}.json"
        return record.read(committed) if committed.is_file() else None
    except record.RecordError as error:
        raise Stop(Exit.FAILED, str(error)) from None


def _verdict(claim: Any, profile: Name, found: Any) -> str:
    """The verdict a run recorded, marked where the claim's rule has changed since."""
    from zfu_lib.report import verdicts

    if found is None:
        return "cannot run here" if (test := claim.test.get(profile.value)) and test.cannot_run else "not run"
    before = next((judged for judged in found.claims if judged.claim == claim.id), None)
    if before is None:
        return "not judged (its rule changed since)"
    measured = {name: measurement.interval for name, measurement in found.measurements.items()}
    try:
        same = verdicts.rejudge(claim, profile.value, measured, before).verdict == before.verdict
    except KeyError:
        same = False
    return before.verdict.value + ("" if same else " (its rule changed since)")


def _record(text: str) -> Any:
    from zfu_lib.report import execute, papers, record

    place = Path(text)
    profile, _, slug = text.partition("/")
    try:
        if place.is_dir() and (place / "result.json").is_file():
            return record.read(place / "result.json")
        if place.is_file():
            return record.read(place)
        if profile in list(Name) and slug in (*papers.PAPERS, *papers.APPENDICES):
            found = execute.current(slug, profile)
            if found is None:
                raise Stop(Exit.USAGE, f"there is no {profile} run of {slug} yet: zfu run {slug} --profile {profile}")
            return found.record
    except record.RecordError as error:
        raise Stop(Exit.FAILED, str(error)) from None
    raise Stop(Exit.USAGE, f"{text!r} is neither a run folder, a result.json, nor profile/slug")


def _count(found: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for judged in found.claims:
        counts[judged.verdict.value] = counts.get(judged.verdict.value, 0) + 1
    return counts


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A live line on a terminal; elsewhere nothing, so that a log stays readable."""
    if not err.is_interactive:
        yield None
        return
    with err.status(what) as status:
        yield lambda cell, cells: status.update(f"{what}: cell {cell} of {cells}")


def _relative(place: Path) -> Path:
    from zfu_lib.report import paths

    return place.relative_to(paths.root()) if place.is_relative_to(paths.root()) else place


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(str(column), overflow="fold")
    return table


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
    out.file.flush()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
