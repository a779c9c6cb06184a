"""The sealed record of a run: what was measured, by which code, on what machine. Written once, at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from zfu_lib.report import paths
from zfu_lib.report.statistics import Interval
from zfu_lib.report.verdicts import Judgement

SCHEMA = 1
PARTIAL = ".partial"
PACKAGES = ("torch", "transformers", "datasets", "triton", "numpy", "papermill", "lm_eval")


class RecordError(ValueError):
    """A record that is missing, broken or not sealed."""


class Measurement(BaseModel):
    """A number with its interval. ``values`` holds one number per seed or item where it was sampled."""

    model_config = ConfigDict(extra="forbid")

    mean: float
    low: float
    high: float
    n: int
    method: str
    detectable: float | None = None
    unit: str = ""
    values: list[float] = []

    @property
    def interval(self) -> Interval:
        """The part that verdicts need."""
        return Interval(self.mean, self.low, self.high, self.n, self.method, self.detectable)


class Figure(BaseModel):
    """A figure of the run with the data it shows."""

    model_config = ConfigDict(extra="forbid")

    caption: str
    alt: str
    data: Any = None


class DataUsed(BaseModel):
    """One data set a run read: catalogue name or description, checksum of the bytes used, version where it has one."""

    model_config = ConfigDict(extra="forbid")

    name: str
    sha256: str
    bytes: int
    version: str = ""


class Record(BaseModel):
    """``result.json``. ``seal`` is the SHA-256 of everything else in it."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    slug: str
    profile: str
    run_id: str
    started: str
    wall_seconds: float
    peak_memory_bytes: int
    parameters: dict[str, Any]
    provenance: dict[str, Any]
    data: list[DataUsed]
    values: dict[str, Any]
    measurements: dict[str, Measurement]
    claims: list[Judgement]
    figures: dict[str, Figure]
    notes: list[str] = []
    seal: str = ""

    def digest(self) -> str:
        """What ``seal`` must be."""
        content = self.model_dump(mode="json", exclude={"seal"})
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def provenance() -> dict[str, Any]:
    """Commit, versions and machine kind, without user, host or path."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write(record: Record, file: Path) -> None:
    """Seal ``record`` and write it in one step: the file is either complete or not there.

    Raises:
        RecordError: the record holds a number that is not finite, an absolute path or a user's folder.
    """
    for place, number in _numbers(record.model_dump()):
        if not math.isfinite(number):
            raise RecordError(f"{place} is {number}: a record holds finite numbers (count what diverged)")
    sealed = record.model_copy(update={"seal": record.digest()})
    text = sealed.model_dump_json(indent=1) + "\n"
    if found := re.search(r'"(?:/(?:home|root|Users|work|tmp|mnt)/|[A-Za-z]:\\\\)[^"]*"', text):
        raise RecordError(f"a record holds no paths of this machine: {found.group(0)}")
    write_atomically(file, text)


def read(file: Path) -> Record:
    """A sealed record.

    Raises:
        RecordError: no such file, not a record, or changed since it was sealed.
    """
    try:
        record = Record.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"no record {file}: the run did not reach its last cell") from None
    except ValidationError as error:
        raise RecordError(f"{file} is not a run record: {error}") from None
    if record.seal != record.digest():
        raise RecordError(f"{file} was changed after it was sealed; run the notebook again")
    return record


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path to write; on leaving it replaces ``file`` in one step, on an error it is gone.

    A reader or a crash sees the old file or the new one, never a part.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as stream:
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(file: Path, text: str) -> None:
    """Replace ``file`` by ``text`` as :func:`replacing` does."""
    with replacing(file) as new:
        new.write_text(text, encoding="utf-8")


def _numbers(value: object, place: str = "record") -> Iterator[tuple[str, float]]:
    """Every float in nested dicts, lists and tuples, with where it is."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{place}[{i}]")


def _git(*arguments: str) -> str:
    try:
        call = ["git", "-C", str(paths.root()), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
