"""The inside of :mod:`zfu_lib.experiments.sandbox`. Started there as ``python -I -S`` on this file; never imported.

Four processes: the *launcher* leaves the machine's namespaces; *init*, process 1 of the new ones, shuts the file system
and starts the other two; the *worker* runs the program and answers calls; the *judge* runs the tests and calls it.
Standard library only, and everything is imported before the file system goes away.
"""

import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import sys

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x80000
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, READ_ONLY_NOSUID_NODEV = 2, -100, 0x8000, 0x1 | 0x2 | 0x4
SYS_CLOSE_RANGE, SYS_MOUNT_SETATTR = 436, 442  # the same numbers on every architecture; Linux 5.12
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
NOBODY = 65534
CALLS = 3, 4
"""The worker's descriptors: where calls come from and where answers go."""

libc = ctypes.CDLL(None, use_errno=True)


def do(name, *arguments):
    """One C function that returns 0.

    Raises:
        OSError: it did not; the message names it.
    """
    values = (a.encode() if isinstance(a, str) else ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)
    if getattr(libc, name)(*values):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def write(path, text):
    """Replace the content of a kernel file."""
    with open(path, "w") as file:
        file.write(text)


# What crosses between the program and its tests: plain values as JSON, never objects.


def encode(value):
    """A value as JSON lists and scalars; subclasses become their base (a named tuple a tuple).

    Raises:
        TypeError: a value of another type, which cannot cross.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *([encode(k), encode(v)] for k, v in value.items())]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    raise TypeError(f"a value of type {type(value).__name__} cannot cross between the program and its tests")


def decode(found):
    """The value that :func:`encode` wrote; builds nothing but plain values, whatever it is given."""
    if not isinstance(found, list):
        return found
    kind, *parts = found
    if kind == "dict":
        return {decode(k): decode(v) for k, v in parts}
    if kind == "complex":
        return complex(*parts)
    if kind == "bytes":
        return bytes.fromhex(*parts)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, parts))


# The four processes.


def launch(job):
    """New namespaces, then init; ends when every process in them has ended."""
    do("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    uid, gid = os.geteuid(), os.getegid()
    own_user = uid != 0
    spaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    do("unshare", spaces | (CLONE_NEWUSER if own_user else 0))
    if own_user:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    outer = os.getpid()
    init = os.fork()
    if not init:
        begin(job, own_user, outer)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    os.waitpid(init, 0)


def begin(job, own_user, outer):
    """Process 1: when it ends, for whatever reason, the kernel ends all others."""
    try:
        do("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        do("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody reads another's memory, not even with the same user id
        do("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        close_file_system(job)
        tell(job, "started", "")
        to_worker, to_judge = os.pipe(), os.pipe()
        # Ids that own nothing on this machine and count no process but their own; `nobody` where they cannot be had.
        ids = (NOBODY, NOBODY) if own_user else (2_000_000_000 + 2 * outer, 2_000_000_001 + 2 * outer)
        shared = 3 if own_user else 0  # launcher, init and judge count as the same user
        if not os.fork():
            drop(job, None if own_user else ids[0], job["processes"] + shared)
            spare = [os.dup(to_worker[0]), os.dup(to_judge[1])]  # neither is one of CALLS
            for descriptor, call in zip(spare, CALLS):
                os.dup2(descriptor, call)
            do("syscall", SYS_CLOSE_RANGE, max(CALLS) + 1, 0xFFFFFFFF, 0)
            work(job)
        judge = os.fork()
        if not judge:
            os.close(to_worker[0])
            os.close(to_judge[1])
            drop(job, None if own_user else ids[1], 1 + shared)
            weigh(job, to_worker[1], to_judge[0])
        os.close(to_worker[0]), os.close(to_worker[1]), os.close(to_judge[0]), os.close(to_judge[1])
        while os.wait()[0] != judge:
            pass
    except BaseException as error:
        tell(job, "refused", str(error))
    finally:
        os._exit(0)


def close_file_system(job):
    """A new root that holds the interpreter's and the system's libraries, read-only, and an empty /tmp in memory."""
    for limit in ("shmmni", "msgmni"):  # memory that no other limit counts
        with contextlib.suppress(OSError):  # older kernels allow it to root alone
            write(f"/proc/sys/kernel/{limit}", "0")
    do("mount", None, "/", None, MS_REC | MS_SLAVE, None)
    do("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    if os.uname().machine not in SYS_PIVOT_ROOT:
        raise OSError(f"no isolation is written for {os.uname().machine}")
    do("syscall", SYS_PIVOT_ROOT[os.uname().machine], "/tmp", "/tmp/old")
    os.chdir("/")
    for path in job["visible"]:
        os.makedirs(path, exist_ok=True)
        do("mount", f"/old{path}", path, None, MS_BIND | MS_REC, None)
        protect(path, AT_RECURSIVE)
    do("umount2", "/old", MNT_DETACH)
    os.rmdir("/old")
    os.makedirs("/tmp")
    memory = f"size={job['file_bytes'] * 4},nr_inodes=256,mode=777"
    do("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, memory)
    protect("/", 0)


def protect(path, flags):
    """Read-only, no set-user-id, no devices; with everything mounted below it where ``flags`` say so."""
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY_NOSUID_NODEV, 0, 0, 0)
    do("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def drop(job, user, processes):
    """Give up every privilege and take the limits. ``user``: None stays nobody of an own user namespace.

    Raises:
        OSError: one of them is not to be had.
    """
    if user is not None:
        os.setgroups([])
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:  # a container that knows no such id
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            processes += 3
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    do("capset", ctypes.byref(version_3), ctypes.byref((ctypes.c_uint32 * 6)()))
    do("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.chdir("/tmp")
    os.umask(0o077)
    for name, value in (
        ("CPU", int(job["seconds"]) + 2),
        ("AS", job["memory_bytes"]),
        ("FSIZE", job["file_bytes"]),
        ("NOFILE", job["open_files"]),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    # The kernel excuses some users from the number of processes, so it is tried: with a limit of one, no fork.
    resource.setrlimit(resource.RLIMIT_NPROC, (1, processes))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
        return
    if child:
        raise OSError("the number of processes cannot be limited here")
    os._exit(0)


def work(job):
    """Run the program, then answer calls of its functions. Everything in this process is in the program's hands."""
    with os.fdopen(CALLS[0]) as calls, os.fdopen(CALLS[1], "w") as answers:

        def answer(act):
            try:
                found = ["value", encode(act())]
            except BaseException as error:  # sys.exit too: the program must not end before its tests
                found = ["raised", type(error).__name__, str(error)[:500]]
            answers.write(json.dumps(found) + "\n")
            answers.flush()

        space = {"__name__": "program"}
        answer(lambda: exec(compile(json.loads(calls.readline()), "program", "exec"), space))
        for line in calls:
            name, arguments, named = decode(json.loads(line))
            answer(lambda: space[name](*arguments, **named))  # noqa: B023
    os._exit(0)


class Ended(Exception):
    """The program's process ended or closed its channel instead of answering."""


class Raised(Exception):
    """The program raised."""


def weigh(job, calls, answers):
    """Run the tests against the worker and tell the verdict: passed only where a call was answered and no test
    failed."""
    status, reason, count, raised = "failed", "", 0, ""
    out, sys.stdout = sys.stdout, io.StringIO()  # what tests print is not for the program, which can read its output
    try:
        with os.fdopen(job["program_fd"]) as file:
            program = json.load(file)
        with os.fdopen(job["tests_fd"]) as file:
            tests = json.load(file)
        with os.fdopen(calls, "w") as to, os.fdopen(answers) as back:

            def ask(message):
                nonlocal raised
                try:
                    to.write(json.dumps(message) + "\n")
                    to.flush()
                    line = back.readline()
                except BrokenPipeError:
                    line = ""
                if not line.endswith("\n"):
                    raise Ended("the program ended without answering")
                kind, *found = json.loads(line)
                if kind == "raised":
                    raised = str(found[0])
                    raise Raised(f"the program raised {raised}: {found[1]}")
                return decode(found[0])

            def remote(name):
                def call(*arguments, **named):
                    nonlocal count
                    found = ask(encode((name, arguments, named)))
                    count += 1
                    return found

                return call

            ask(program)
            space = {"__name__": "tests"}
            exec(compile(tests["setup"], "setup", "exec"), space)
            space.update((name, remote(name)) for name in tests["calls"])
            exec(compile(tests["tests"], "tests", "exec"), space)
        status, reason = ("passed", "") if count else ("failed", "the tests called none of the program's functions")
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, (Ended, Raised)) else str(error)
        status = "memory" if raised == "MemoryError" else "failed"
    sys.stdout = out
    tell(job, status, reason[:1000])
    os._exit(0)


def tell(job, status, reason):
    """Into the report, which the worker does not have."""
    os.write(job["report_fd"], (json.dumps([status, reason]) + "\n").encode())


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    try:
        launch(task)
    except OSError as error:
        tell(task, "refused", str(error))
