"""Runs programs that a model wrote against tests, away from everything else. Linux only; where it cannot isolate, it
refuses.

**Who is kept from what.** The program is taken to be hostile: it knows this file and wants to read, change or outlive
something outside, or to be graded as right without being right. The tests are trusted to be honest, not to be harmless:
they run under the same restrictions. What protects, all of it set up before the program is read:

- *Files.* An own mount namespace with a new root in memory. It holds the library folders of the interpreter and of the
  system, read-only, and an empty ``/tmp``, which is the working folder, lives in memory and ends with the run. Nothing
  else of the machine has a name there: no home, no project, no ``/proc``, ``/sys``, ``/dev``, no sockets. What lies
  *inside those library folders* can be read, site-packages of the base interpreter included.
- *Network.* An own network namespace without any interface that is up; the loopback of the machine is not in it.
- *Processes.* An own process namespace: the program sees no process outside to signal or inspect. When the tests end or
  the time is up, the kernel ends everything in the namespace, whatever it forked, ignored or detached.
- *Privileges.* None: as root it takes a user id that owns nothing (``nobody`` where that id does not exist); as another
  user it is ``nobody`` of an own user namespace. No capabilities, no new privileges by executing files.
- *Resources*, per process: CPU time, address space, file size, open files; for all: number of processes (some users are
  exempt from it, so it is tried first and the run refused where it has no effect), wall time.
- *Environment.* ``python -I -S``, no variables, standard input empty, output kept up to the file size.

**Why a verdict cannot be forged.** The tests run in another process than the program. Calls and results cross as plain
values (numbers, text, lists, tuples, sets, dictionaries; see ``encode`` in ``sandbox_child``), and the report's
descriptor is never the program's. So printing what a success would print, exiting with 0 before the tests, replacing
``assert``, ``__eq__`` or the test's own functions, or searching the memory for the expected values reaches nothing: a
program passes by returning right values to calls whose expected values it cannot see. There is no secret to guess.

**What it is not.** No protection from a bug of the kernel (there is no filter of system calls), from timing, or from
using a processor for the wall time. Memory is bounded per process, so a job may use ``processes`` + 1 times
``memory_mb``, and small kernel buffers are not counted; outside of root, kernels that do not let a user namespace lower
them leave System V shared memory and message queues uncounted until the wall time ends it. A program can use up its own
chances (stop or kill its judge where both are ``nobody``): that is a failure, never a pass.

Tests that need more than plain values (an object of a class that the program defines, a generator, changes made to an
argument) fail here although they might pass in one process.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHILD = Path(__file__).with_name("sandbox_child.py")
TAIL_BYTES = 4000
GRACE_SECONDS = 10
Status = Literal["passed", "failed", "timeout", "memory", "refused"]


class SandboxError(RuntimeError):
    """This machine cannot isolate a program, so none is run; the message says what is missing."""


@dataclass(frozen=True)
class Limits:
    """``seconds`` of wall time for the whole job, starting Python included; the rest bounds each process.
    ``processes`` counts threads; 1 means that the program cannot fork. ``file_mb`` bounds a file and the output;
    all files together may be four times that."""

    seconds: float = 10.0
    memory_mb: int = 512
    file_mb: int = 4
    processes: int = 1
    open_files: int = 32

    def __post_init__(self) -> None:
        if min(self.seconds, self.memory_mb - 63, self.file_mb, self.processes, self.open_files - 15) <= 0:
            raise ValueError(f"limits must be positive, memory_mb >= 64 and open_files >= 16: {self}")


@dataclass(frozen=True)
class Result:
    """``passed`` only if the tests ran to their end. ``memory``: the program ran out of its own. ``refused``: it was
    not run. ``reason`` is empty for a pass, ``stdout`` the end of what the program printed (standard error too)."""

    status: Status
    reason: str
    stdout: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run(
    program: str,
    tests: str,
    calls: Sequence[str],
    *,
    setup: str = "",
    limits: Limits | None = None,
) -> Result:
    """Run ``program``, then ``tests`` against it.

    Args:
        program: Python source, executed once; untrusted.
        tests: Python source in another process; the verdict is whether it ends without an exception.
        calls: names of the program's functions that the tests call.
        setup: source that the tests need before them, such as the stub and the helpers of a prompt; ``calls`` win over
            the names it defines.

    Raises:
        ValueError: no ``calls``: nothing would be tested.
    """
    if not calls or isinstance(calls, str):
        raise ValueError(f"calls must name the program's functions that the tests call, got {calls!r}")
    limits = limits or Limits()
    begun = time.monotonic()
    if sys.platform != "linux":
        return Result("refused", f"isolation needs Linux namespaces; this is {sys.platform}", "", 0.0)
    with ExitStack() as stack:
        program_fd = _memory_file(stack, json.dumps(program))
        tests_fd = _memory_file(stack, json.dumps({"tests": tests, "setup": setup, "calls": list(calls)}))
        report_fd, output_fd = _memory_file(stack), _memory_file(stack)
        job = {
            "program_fd": program_fd,
            "tests_fd": tests_fd,
            "report_fd": report_fd,
            "visible": _visible(),
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_mb << 20,
            "file_bytes": limits.file_mb << 20,
            "processes": limits.processes,
            "open_files": limits.open_files,
        }
        timed_out = _wait(job, (program_fd, tests_fd, report_fd), output_fd, limits.seconds)
        report = [json.loads(line) for line in _content(report_fd).decode().splitlines()]
        output = _content(output_fd)[-TAIL_BYTES:].decode(errors="replace")
    seconds = time.monotonic() - begun
    refused = [entry for entry in report if entry[0] == "refused"]
    status, reason = (refused or report or [("refused", f"Python did not start: {output[-500:]}")])[-1]
    if status == "started":
        status, reason = "failed", "the tests were ended before a verdict"
        if timed_out:
            status, reason = "timeout", f"no verdict after {limits.seconds:g} s"
    elif timed_out and not report:
        reason = f"the isolation was not set up within {limits.seconds:g} s"
    return Result(status, reason, output, seconds)


@functools.cache
def unavailable() -> str:
    """Why this machine cannot run a program in isolation, found out by running one; empty if it can."""
    result = run("def f(x):\n    return x", "assert f(1) == 1", ["f"])
    return "" if result.passed else result.reason


def require() -> None:
    """Go on only where programs can be isolated.

    Raises:
        SandboxError: they cannot.
    """
    if why := unavailable():
        raise SandboxError(
            f"model-written programs are not run on this machine: {why}. It takes Linux 5.12 or newer on x86-64 or "
            "arm64, and either root with the right to create namespaces or unprivileged user namespaces (containers "
            "often forbid both)"
        )


def _visible() -> list[str]:
    """Folders that Python and its shared libraries need."""
    prefix = sys.base_prefix
    folders = (f"{prefix}/lib", f"{prefix}/lib64", "/lib", "/lib64", "/usr/lib", "/usr/lib64")
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _memory_file(stack: ExitStack, text: str = "") -> int:
    """Descriptor of an anonymous file at its beginning, closed with ``stack``."""
    descriptor = os.memfd_create("sandbox")
    stack.callback(os.close, descriptor)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _wait(job: dict, descriptors: tuple[int, ...], output: int, seconds: float) -> bool:
    """Start the launcher and wait until every process of the job is gone; True if it had to be ended."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-u", str(CHILD), json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        env={},
        cwd="/",
        start_new_session=True,
    )
    handle = os.pidfd_open(process.pid)
    try:
        ended = select.poll()  # waits without the growing pauses of Popen.wait
        ended.register(handle, select.POLLIN)
        return not ended.poll(1000 * seconds)
    finally:
        os.close(handle)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # ends process 1 of the namespace and, with it, all of them
            try:
                process.wait(GRACE_SECONDS)
            finally:
                process.kill()
                process.wait()
