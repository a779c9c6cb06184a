"""The process that executes one notebook with Papermill: ``python -m zfu_lib.report.worker``.

Started by :mod:`zfu_lib.report.execute`, which writes one line of JSON (the job) to its standard input and keeps that
pipe open; the pipe closing means that the runner is gone, and this process ends with its kernel. Standard output
carries one JSON event per line.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

ORPHANED = 75


def main() -> int:
    """Execute the job on standard input; the exit code is 0 only if Papermill saw no failure."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_runner, args=[Path(job["sockets"]).parent], daemon=True).start()
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints from here on goes to the log
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        _execute(job, events)
    except PapermillExecutionError as error:
        # The notebook names its cell and error; the log gets the kernel's traceback without terminal colours.
        sys.stderr.write(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)) + "\n")
        failure = {"kind": "exception", "ename": error.ename, "evalue": error.evalue}
    except Exception as error:
        traceback.print_exc()
        failure = {"kind": _kind(error), "ename": type(error).__name__, "evalue": str(error)}
    else:
        return 0
    _send(events, failure)
    return 1


def _kind(error: Exception) -> str:
    if isinstance(error, DeadKernelError):
        return "killed"
    if isinstance(error, CellTimeoutError):
        return "time limit"
    # nbclient has no class of its own for a kernel that dies or hangs while it starts.
    silent = "Kernel died before replying" in str(error) or "Kernel didn't respond" in str(error)
    return "no kernel" if silent or isinstance(error, NoSuchKernel) else "papermill"


def _execute(job: dict[str, Any], events: TextIO) -> None:
    source = nbformat.read(job["source"], as_version=4)
    cells = 1 + sum(cell.cell_type == "code" for cell in source.cells)  # Papermill injects one
    begun = itertools.count(1)

    def started(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "code":
            _send(events, {"kind": "cell", "cell": next(begun), "of": cells})

    # Unix sockets instead of ports: no race for a free port between notebooks that start together, and no network.
    # Where the sockets are has to be said: the default is one name in the working directory for every kernel.
    transport = {"transport": "ipc", "ip": job["sockets"]}
    papermill.execute_notebook(
        job["source"],
        job["output"],
        job["parameters"],
        kernel_name=job["kernel"],
        progress_bar=False,
        log_output=False,
        stdout_file=sys.stderr,
        stderr_file=sys.stderr,
        start_timeout=job["start_seconds"],
        cwd=job["cwd"],
        on_cell_start=started,
        config=Config({"KernelManager": transport}),
    )


def _send(events: TextIO, event: dict[str, Any]) -> None:
    try:
        print(json.dumps(event), file=events, flush=True)
    except BrokenPipeError:
        os._exit(ORPHANED)


def _end_with_the_runner(scratch: Path) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    for child in psutil.Process().children(recursive=True):
        child.kill()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
