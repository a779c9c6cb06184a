"""Run a paper's notebook and publish the run only if it is whole.

A run works in ``runs/<profile>/<slug>/<run-id>.partial/``. It gets its final name when Papermill saw no failure *and*
the notebook sealed a record *and* every code cell was executed, because each of these alone has states that look like
success. Then the pointer ``current.json`` is replaced; readers follow the pointer only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from zfu_lib.report import dependencies, paths, record
from zfu_lib.report import notebook as notebooks
from zfu_lib.report.profiles import Cost

PARTIAL, FAILED = record.PARTIAL, ".failed"
START_SECONDS = 180
# A laptop under load or a CI machine is several times slower than the machine a cost was measured on.
SLACK, LEAST_MINUTES = 6, 15

Progress = Callable[[int, int], None]


class RunFailed(Exception):
    """A run that did not seal. ``kind`` is one of: exception, time limit, killed, no kernel, papermill, unsealed,
    unfinished, mismatch. ``folder`` keeps the log and what was executed."""

    def __init__(self, kind: str, reason: str, folder: Path) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.folder = kind, reason, folder


@dataclass(frozen=True)
class Sealed:
    """A whole run: where it is and what it recorded."""

    folder: Path
    record: record.Record


def time_limit(cost: Cost, factor: float = 1.0) -> float:
    """Seconds after which a run is taken to hang. ``factor``: how much more work than the profile's own was asked."""
    return 60 * max(LEAST_MINUTES, SLACK * cost.minutes * max(1.0, factor))


def run(
    slug: str,
    profile: str,
    parameters: Mapping[str, Any],
    *,
    seconds: float,
    keep_current: bool = False,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
) -> Sealed:
    """Execute the clean notebook of a paper in a process of its own.

    Args:
        parameters: typed values to inject beside ``profile``; validate them first (``profiles.resolve``).
        seconds: wall-clock limit of the whole notebook.
        keep_current: seal and keep the run, but leave ``current.json`` alone. For a run with somebody's own parameters:
            the book shows what the profiles say.
        progress: called with (code cell, code cells) as each starts.
        waiting: called once if another run of the same paper and profile has to end first.

    Raises:
        FileNotFoundError: the paper has no notebook.
        RunFailed: the run did not seal; the run before it stays current.
    """
    source = paths.notebook(slug)
    if not source.is_file():
        raise FileNotFoundError(f"{slug} has no notebook yet ({source.relative_to(paths.root())})")
    home = paths.runs(profile, slug)
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home, waiting):
        for stale in home.glob(f"*{PARTIAL}"):
            shutil.rmtree(stale)
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        work = home / (run_id + PARTIAL)
        work.mkdir()
        dependencies.fingerprint(slug)  # before the run, so that Snakemake finds it older than what the run makes
        try:
            _papermill(source, work, profile, dict(parameters) | {"profile": profile}, seconds, progress)
            sealed = _check(slug, profile, run_id, work)
        except RunFailed as failure:
            failure.folder = _keep_failed(work, home / (run_id + FAILED), failure)
            raise
        final = home / run_id
        work.rename(final)
        if keep_current:
            return Sealed(final, sealed)
        point = {"run_id": run_id, "seal": sealed.seal}
        record.write_atomically(home / "current.json", json.dumps(point, indent=1) + "\n")
        for old in home.glob(f"*{FAILED}"):
            shutil.rmtree(old)
        return Sealed(final, sealed)


def current(slug: str, profile: str) -> Sealed | None:
    """The run that ``current.json`` points to, None if there was none yet.

    Raises:
        RecordError: the pointer or the run behind it is broken.
    """
    home = paths.runs(profile, slug)
    try:
        point = json.loads((home / "current.json").read_text(encoding="utf-8"))
        folder = home / point["run_id"]
        seal = point["seal"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise record.RecordError(f"{home / 'current.json'} is not a pointer to a run; run {slug} again") from None
    found = record.read(folder / "result.json")
    if found.seal != seal:
        raise record.RecordError(f"{folder} is not the run that was sealed; run {slug} again")
    return Sealed(folder, found)


def environment(profile: str, folder: Path, scratch: Path) -> dict[str, str]:
    """Environment variables of a run: ours, quiet, offline unless the profile needs the hub."""
    fixed = {
        "ZFU_RUN_DIR": str(folder),
        "ZFU_ROOT": str(paths.root()),
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name in ("ZFU_DATA", "ZFU_CACHE"):
        if name in os.environ:
            fixed[name] = os.path.abspath(os.environ[name])
    if profile in ("quick", "full"):
        fixed |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if profile == "quick":
        # One thread and no GPU: the same numbers and about the same time on every machine.
        threads = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "RAYON")
        fixed |= {f"{library}_NUM_THREADS": "1" for library in threads} | {"CUDA_VISIBLE_DEVICES": ""}
    return dict(os.environ) | fixed


def unexecuted(notebook: dict[str, Any]) -> list[int]:
    """Places of code cells that should have run and did not."""
    return [
        i
        for i, cell in notebooks.code(notebook)
        if cell["source"].strip() and cell["execution_count"] is None and "skip-execution" not in notebooks.tags(cell)
    ]


@contextlib.contextmanager
def _lock(home: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """One run per paper and profile at a time. The kernel drops the lock when its holder dies, however it dies."""
    with open(home / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _papermill(
    source: Path, work: Path, profile: str, parameters: dict[str, Any], seconds: float, progress: Progress | None
) -> None:
    # A short path, because the name of a Unix socket may have about 100 characters; /tmp is shorter than macOS's own.
    short = Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="zfu-", dir=short if short.is_dir() else None) as scratch:
        job = {
            "source": str(source),
            "output": str(work / "notebook.ipynb"),
            "parameters": parameters,
            "kernel": "python3",
            "cwd": str(paths.root()),
            "sockets": f"{scratch}/kernel",
            "start_seconds": START_SECONDS,
        }
        with open(work / "log.txt", "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "zfu_lib.report.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(profile, work, Path(scratch)),
                start_new_session=True,
            )
            watch = _Watch(worker, progress)
            try:
                worker.stdin.write(json.dumps(job).encode() + b"\n")
                worker.stdin.flush()
                watch.until(time.monotonic() + seconds)
            except BrokenPipeError:
                worker.wait()
            finally:
                watch.end()
    where = f"in code cell {watch.cell} of {watch.cells}" if watch.cells else "before the first cell"
    if watch.late:
        raise RunFailed("time limit", f"stopped after {seconds / 60:.3g} minutes {where}", work)
    failure = watch.failure
    if failure is None:
        if worker.returncode:
            how = _died(worker.returncode)
            raise RunFailed("papermill", f"the process that runs Papermill {how} {where}", work)
        return
    kind, text = failure["kind"], _first_line(failure.get("evalue", ""))
    reasons = {
        "exception": f"{failure.get('ename')}: {text} ({where})",
        "killed": f"the kernel died {where}; too little memory is the usual cause",
        "no kernel": f"the notebook's kernel did not start: {text}",
        "time limit": f"a cell took too long {where}",
    }
    raise RunFailed(kind, reasons.get(kind, f"Papermill failed {where}: {failure.get('ename')}: {text}"), work)


class _Watch:
    """Follows a worker's events and all its descendants until it ends or is late."""

    def __init__(self, worker: subprocess.Popen[bytes], progress: Progress | None) -> None:
        self._worker, self._progress = worker, progress
        self._family: set[psutil.Process] = set()
        self.cell = self.cells = 0
        self.failure: dict[str, Any] | None = None
        self.late = False

    def until(self, deadline: float) -> None:
        os.set_blocking(self._worker.stdout.fileno(), False)
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(min(1.0, max(0.0, deadline - time.monotonic()))):
                    chunk = self._worker.stdout.read()
                    if chunk == b"":
                        break
                    *lines, rest = (rest + (chunk or b"")).split(b"\n")
                    for line in lines:
                        self._event(json.loads(line))
                # The kernel is a session of its own, so it is found as a descendant, not by process group.
                with contextlib.suppress(psutil.Error):
                    self._family.update(psutil.Process(self._worker.pid).children(recursive=True))
                if time.monotonic() >= deadline:
                    self.late = True
                    return
        self._worker.wait()

    def _event(self, event: dict[str, Any]) -> None:
        if event["kind"] != "cell":
            self.failure = event
            return
        self.cell, self.cells = event["cell"], event["of"]
        if self._progress:
            self._progress(self.cell, self.cells)

    def end(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(psutil.Error):
            self._family.update(psutil.Process(self._worker.pid).children(recursive=True))
        if self._worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)
        for process in self._family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._worker.wait()
        for stream in (self._worker.stdin, self._worker.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def _check(slug: str, profile: str, run_id: str, work: Path) -> record.Record:
    """The record of a run that Papermill calls a success, if it is one."""
    file = work / "notebook.ipynb"
    notebook = notebooks.read(file)
    for i, cell in notebooks.code(notebook):
        for output in cell["outputs"]:
            if output["output_type"] == "error" and "raises-exception" not in notebooks.tags(cell):
                # Papermill takes `SystemExit: 0` for a clean end and stops there.
                words = f"{output['ename']}: {_first_line(output['evalue'])} (cell {i})"
                if output["ename"] == "SystemExit":
                    raise RunFailed("unfinished", f"the notebook stopped itself: {words}", work)
                raise RunFailed("exception", words, work)
    if missed := unexecuted(notebook):
        raise RunFailed("unfinished", f"the run stopped early: cells {missed} were not executed", work)
    try:
        sealed = record.read(work / "result.json")
    except record.RecordError:
        if (work / "result.json").exists():
            raise RunFailed("unsealed", "the run's record is broken or was changed after its seal", work) from None
        raise RunFailed("unsealed", "the notebook ended without a seal (run.seal() is its last cell)", work) from None
    got, expected = (sealed.slug, sealed.profile, sealed.run_id), (slug, profile, run_id)
    if got != expected:
        raise RunFailed("mismatch", f"the record says {'/'.join(got)}, the run was {'/'.join(expected)}", work)
    _tidy(notebook, slug)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    for private in {f"{paths.root()}/", f"{Path.home()}/", f"{sys.prefix}/"} - {"//"}:
        if json.dumps(private, ensure_ascii=False)[1:-1] in text:
            raise RunFailed("mismatch", "a cell's output holds a path of this machine; print names, not paths", work)
    record.write_atomically(file, text + "\n")
    return sealed


def _tidy(notebook: dict[str, Any], slug: str) -> None:
    """Papermill records paths of this machine in the notebook; what a reader needs is which notebook it was."""
    about = notebook["metadata"]["papermill"]
    about["input_path"], about["output_path"] = f"notebooks/{slug}.ipynb", "notebook.ipynb"
    about.pop("environment_variables", None)


def _keep_failed(work: Path, failed: Path, failure: RunFailed) -> Path:
    """Keep the newest failure, with its reason, under a name nothing takes for a run."""
    with open(work / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"\n{failure.kind}: {failure.reason}\n")
    (work / "result.json").unlink(missing_ok=True)
    for older in failed.parent.glob(f"*{FAILED}"):
        shutil.rmtree(older)
    work.rename(failed)
    return failed


def _died(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""
