"""Running a plan: shards into a hidden folder beside the output, then one rename. Killed at any instant, the output is
the old one, the new one, or absent; never a part.

The hidden folder ``.OUT.merging`` keeps a journal of finished shards. ``resume`` takes over those whose checksums are
right, if recipe, seed and every input file are still the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zfu_lib.merging.engine import card
from zfu_lib.merging.engine.checkpoint import INDEX, SUMS, digest, header_bytes
from zfu_lib.merging.engine.errors import InputError, OutputError, ResumeError, SpaceError, WriteError
from zfu_lib.merging.engine.plan import Plan, Shard
from zfu_lib.merging.engine.stream import Stream, sizes

MANIFEST = "zfu_merge.json"
JOURNAL = "journal.jsonl"
TAKEN_ALONG = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
FLOOR = 40  # MiB of the interpreter, its libraries and the counters, about
Progress = Callable[[int, int, str], None]


def run(
    plan: Plan,
    out: Path | str,
    *,
    threads: int = 1,
    piece: int | None = None,
    resume: bool = False,
    force: bool = False,
    checksums: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write the merged model to ``out``, replacing an earlier merge there.

    Args:
        threads: worker threads; the bytes written do not depend on them.
        piece: elements computed at a time; the bytes written do not depend on it.
        resume: go on with an unfinished merge of the same recipe and inputs instead of starting again.
        force: also replace a folder that is no earlier merge.
        checksums: of every output file; without them ``resume`` trusts the size of a finished file.
        progress: called with bytes written, bytes in all, and the tensor's name.

    Raises:
        OutputError: the folder must not be replaced, or is being written by another merge.
        SpaceError: the disk has less room than the output needs, or got full.
        WriteError: the disk failed in another way.
        ResumeError: nothing to resume.
        InputError: an input is not finite, or changed while it was read.
    """
    out = Path(out).absolute()
    check_output(plan, out, force)
    work = out.with_name(f".{out.name}.merging")
    before = plan.state()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out.with_name(f".{out.name}.lock")):
            _recover(out)
            if resume and _manifest(out).get("key") == plan.key and not (work / JOURNAL).is_file():
                shutil.rmtree(work, ignore_errors=True)
                return out
            finished = _start(plan, work, resume)
            if finished is not None:
                _write(plan, work, finished, threads, piece, checksums, progress)
                if plan.state() != before:
                    raise InputError("an input file changed while it was read; merge again")
                _finish(plan, work)
            _swap(work, out)
    except InputError:
        # What was written cannot become a merge.
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        hint = "; finished shards are kept, --resume goes on with them" if (work / JOURNAL).is_file() else ""
        kind = SpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else WriteError
        raise kind(f"{error.filename or out}: {error.strerror or error}{hint}") from error
    return out


def check_output(plan: Plan, out: Path, force: bool = False) -> None:
    """Refuse, before anything is written, to replace what is not an earlier merge.

    Raises:
        OutputError: ``out`` is a file, one of the inputs, or a folder with something else in it and not ``force``.
    """
    out = Path(out).absolute()
    folders = [file.parent.resolve() for model in plan.models for file in model.files]
    folders += [model.folder.resolve() for model in plan.models]
    if any(folder == out.resolve() or out.resolve() in folder.parents for folder in folders):
        raise OutputError(f"{out} holds a model of the recipe; write elsewhere")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file() and not force:
        raise OutputError(f"{out} is not empty and no earlier merge; --force replaces it")


def describe(plan: Plan, out: Path | str, threads: int = 1) -> dict[str, Any]:
    """What a run would read, write and need, as text by subject."""
    read, written = plan.bytes_read, plan.bytes_written
    slots, piece, each = sizes(plan, threads)
    passes = f", up to {plan.passes} times (the first from the disk)" if plan.passes > 1 else ""
    return {
        "method": plan.recipe.method,
        "models": ", ".join(model.reference for model in plan.models),
        "checked": f"headers, shapes, types, architecture, vocabularies; {plan.verified} files against {SUMS}",
        "reads": f"{read / 1e9:.3f} GB in {sum(len(model.files) for model in plan.models)} files{passes}",
        "writes": f"{written / 1e9:.3f} GB in {len(plan.shards)} files, {len(plan.jobs)} tensors",
        "free on the disk": f"{shutil.disk_usage(_existing(Path(out))).free / 1e9:.3f} GB",
        "memory": f"about {FLOOR + slots * piece * each / 2**20:.0f} MiB, whatever the size of the models",
        "time": f"about {plan.cpu_seconds:.1f} CPU seconds on {threads} thread{'s' * (threads > 1)}, disk not counted",
        "remarks": "; ".join(plan.remarks) or "none",
    }


def _start(plan: Plan, work: Path, resume: bool) -> dict[str, str] | None:
    """An empty folder with a journal, or the checksums of what it already holds; None: nothing is left to do."""
    key = plan.key
    if resume:
        if not work.is_dir():
            raise ResumeError(f"no unfinished merge in {work}; start it without --resume")
        if _manifest(work).get("key") == key and not (work / JOURNAL).is_file():
            return None
        lines = list(_journal(work / JOURNAL))
        if not lines or lines[0].get("key") != key:
            raise ResumeError(f"{work} is of another recipe, other inputs or other options; start without --resume")
        done = {line["file"]: line["sha256"] for line in lines[1:] if {"file", "sha256"} <= set(line)}
        right = {file: said for file, said in done.items() if _is_whole(work / file, said, plan)}
        check_space(plan, work, right)
        # A line that was cut off must not grow into the next one.
        _begin(work / JOURNAL, {"key": key}, *({"file": file, "sha256": said} for file, said in right.items()))
        return right
    shutil.rmtree(work, ignore_errors=True)
    check_space(plan, work)
    work.mkdir()
    _begin(work / JOURNAL, {"key": key})
    return {}


def _is_whole(file: Path, checksum: str, plan: Plan) -> bool:
    """Whether a shard that the journal calls finished is on the disk."""
    if not file.is_file():
        return False
    jobs = next(shard.jobs for shard in plan.shards if shard.file == file.name)
    size = len(header_bytes((job.name, job.dtype, job.shape) for job in jobs)) + sum(job.bytes for job in jobs)
    return file.stat().st_size == size and checksum in ("", digest(file))


def _write(
    plan: Plan,
    work: Path,
    finished: dict[str, str],
    threads: int,
    piece: int | None,
    checksums: bool,
    progress: Progress | None,
) -> None:
    done, total = 0, plan.bytes_written
    stream = Stream(plan, threads, piece)
    try:
        for shard in plan.shards:
            if shard.file in finished:
                done += shard.bytes
                continue

            def told(name: str, size: int) -> None:
                nonlocal done
                done += size
                if progress:
                    progress(done, total, name)

            checksum = _write_shard(stream, shard, work / shard.file, checksums, told)
            _append(work / JOURNAL, {"file": shard.file, "sha256": checksum})
    finally:
        stream.close()
        for model in plan.models:
            model.checkpoint.close()


def _write_shard(stream: Stream, shard: Shard, file: Path, checksums: bool, told: Callable[[str, int], None]) -> str:
    """Write a shard to the disk; its checksum, if wanted."""
    checksum = hashlib.sha256()
    with open(file, "wb", buffering=0) as target:

        def write(part: Any) -> None:
            if checksums:
                checksum.update(part)
            todo = memoryview(part).cast("B")
            while todo:
                todo = todo[target.write(todo) :]

        write(header_bytes((job.name, job.dtype, job.shape) for job in shard.jobs))
        for job in shard.jobs:
            for part in stream.tensor(job):
                if part.size:
                    write(part)
                told(job.name, part.nbytes)
        os.fsync(target.fileno())
    return checksum.hexdigest() if checksums else ""


def _finish(plan: Plan, work: Path) -> None:
    """Everything beside the weights, and all of it on the disk."""
    lines = list(_journal(work / JOURNAL))[1:]
    found = {line["file"]: line["sha256"] for line in lines}
    shards = {shard.file: found[shard.file] for shard in plan.shards}
    for name in TAKEN_ALONG:
        if (plan.donor.folder / name).is_file():
            shutil.copyfile(plan.donor.folder / name, work / name)
    if len(plan.shards) > 1:
        where = {job.name: shard.file for shard in plan.shards for job in shard.jobs}
        _write_json(work / INDEX, {"metadata": {"total_size": plan.bytes_written}, "weight_map": where})
    _write_json(work / "config.json", plan.config)
    _write_json(work / MANIFEST, card.manifest(plan, shards))
    (work / "recipe.yml").write_text(plan.recipe.text, encoding="utf-8")
    (work / "README.md").write_text(card.card(plan, shards), encoding="utf-8")
    if all(shards.values()):
        names = sorted(file.name for file in work.iterdir() if file.name not in (JOURNAL, SUMS))
        sums = "".join(f"{shards.get(name) or digest(work / name)}  {name}\n" for name in names)
        (work / SUMS).write_text(sums, encoding="utf-8")
    for file in work.iterdir():
        _sync(file)
    _sync(work)
    (work / JOURNAL).unlink()
    _sync(work)


def _swap(work: Path, out: Path) -> None:
    """Put the finished folder in place of ``out``; what was there gets another name before it is deleted."""
    old = _old(out)
    if out.exists() and _exchange(work, out):
        work.rename(old)
    else:
        if out.exists():
            out.rename(old)
        work.rename(out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _recover(out: Path) -> None:
    """After a kill between the two renames that stand in for an exchange: the old output comes back."""
    if _old(out).is_dir():
        if out.exists():
            shutil.rmtree(_old(out))
        else:
            _old(out).rename(out)


def _existing(place: Path) -> Path:
    """The folder that a new one would be made in."""
    return next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.is_dir())


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def check_space(plan: Plan, out: Path, finished: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse what the disk of ``out`` cannot hold; ``finished`` shards are there already.

    Raises:
        SpaceError: less room than the output needs.
    """
    need = sum(shard.bytes for shard in plan.shards if shard.file not in finished)
    free = shutil.disk_usage(_existing(out)).free
    if free < need:
        raise SpaceError(f"{out.parent} has {free / 1e9:.2f} GB free, the merge needs {need / 1e9:.2f} GB")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that dies with the process; only one merge writes an output at a time."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have deleted the file between the two calls.
            if file.exists() and os.fstat(handle).st_ino == file.stat().st_ino:
                break
        except BlockingIOError:
            os.close(handle)
            raise OutputError(f"another merge is writing {file.name[1:-5]}") from None
        os.close(handle)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _journal(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal up to the first that is not whole."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        yield value


def _begin(journal: Path, *lines: dict[str, Any]) -> None:
    """A journal of these lines in place of the one there is."""
    new = journal.with_suffix(".new")
    new.unlink(missing_ok=True)
    _append(new, *lines)
    new.replace(journal)


def _append(file: Path, *lines: dict[str, Any]) -> None:
    with open(file, "a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in lines))
        stream.flush()
        os.fsync(stream.fileno())


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
