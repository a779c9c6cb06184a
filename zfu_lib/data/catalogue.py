"""The real data sets of this book: where they come from, what they may be used for, and the checksum of every file.

A file is looked for in ``$ZFU_DATA``, then in the user cache, and is downloaded into the cache otherwise. A file is
only ever handed out with the checksum the catalogue says.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import os
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated

import pooch
import requests
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zfu_lib.report.record import DataUsed

CATALOGUE = Path(__file__).with_name("catalogue.yml")
TIMEOUT_SECONDS = 30


class DataError(ValueError):
    """Data that cannot be used; the message names the file and what to do."""


class State(StrEnum):
    """What :func:`verify` says of a file."""

    OK = "ok"
    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    WRONG_CHECKSUM = "wrong checksum"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Strict):
    """One file: ``path`` below ``$ZFU_DATA``, where it is published (null: it cannot be fetched), what it must be.
    ``columns`` names the fields of a tab-separated file that has no header."""

    path: Annotated[str, Field(pattern=r"^[^/\\.][^\\]*$")]
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None
    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _stays_inside(self) -> File:
        if ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"path {self.path!r} leaves the data folder")
        return self


class Entry(_Strict):
    """One data set. ``hub`` is its id on the Hugging Face hub; ``note`` says what to know before using it, and why a
    file has no URL or no file is listed (its owners give it out, and this book never had it to take a checksum of)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    description: str
    licence: str
    citation: str
    hub: str | None = None
    note: str = ""
    files: tuple[File, ...] = ()

    @model_validator(mode="after")
    def _explains_what_it_lacks(self) -> Entry:
        if (not self.files or any(file.url is None for file in self.files)) and not self.note:
            raise ValueError(f"{self.name}: a file without URL, or no file at all, needs a note")
        return self

    @property
    def folder(self) -> str:
        """Folder below ``$ZFU_DATA`` that holds all files."""
        return os.path.commonpath([str(PurePosixPath(file.path).parent) for file in self.files]) if self.files else ""

    def key(self, file: File) -> str:
        """How :func:`get` calls a file: its path below :attr:`folder`."""
        return str(PurePosixPath(file.path).relative_to(self.folder))


class _Catalogue(_Strict):
    datasets: tuple[Entry, ...]

    @model_validator(mode="after")
    def _is_unique(self) -> _Catalogue:
        for kind, found in (
            ("name", [entry.name for entry in self.datasets]),
            ("path", [file.path for entry in self.datasets for file in entry.files]),
        ):
            if twice := sorted({x for x in found if found.count(x) > 1}):
                raise ValueError(f"{kind} used twice: {twice}")
        return self


@functools.lru_cache(maxsize=4)
def _read(file: Path) -> dict[str, Entry]:
    try:
        found = _Catalogue.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{file.name}: {error}") from None
    return {entry.name: entry for entry in found.datasets}


def names() -> list[str]:
    """Names of all data sets."""
    return list(_read(CATALOGUE))


def entry(name: str) -> Entry:
    """One data set's record.

    Raises:
        DataError: unknown name, or a catalogue that breaks its schema.
    """
    known = _read(CATALOGUE)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise DataError(f"no data set {name!r} in the catalogue; {hint}")
    return known[name]


def cache() -> Path:
    """Where downloads are kept on this machine."""
    return Path(pooch.os_cache("zfu-book"))


def get(name: str) -> dict[str, Path]:
    """Files of one data set by their path below its folder, every one checked against its checksum.

    Raises:
        DataError: unknown name; a file in ``$ZFU_DATA`` with the wrong size or checksum; a file that is nowhere and
            cannot be fetched (no URL, no connection, refused, truncated, not what the catalogue says); a data set
            of which no file is on record.
    """
    found = entry(name)
    if not found.files:
        raise DataError(f"{name}: {found.note}")
    return {found.key(file): _find(found, file) for file in found.files}


def used(name: str) -> tuple[DataUsed, ...]:
    """What a run record says of a data set it read, one item per file."""
    found = entry(name)
    return tuple(DataUsed(name=f"{name}/{found.key(f)}", sha256=f.sha256, bytes=f.bytes) for f in found.files)


def verify(name: str) -> dict[str, State]:
    """State of each file of one data set on this machine, by its path below ``$ZFU_DATA``. Downloads nothing.

    Raises:
        DataError: unknown name.
    """
    return {file.path: _state(_place(file), file) for file in entry(name).files}


def verify_all() -> dict[str, dict[str, State]]:
    """:func:`verify` of every data set."""
    return {name: verify(name) for name in names()}


def _local() -> Path | None:
    folder = os.environ.get("ZFU_DATA")
    return Path(folder).expanduser() if folder else None


def _place(file: File) -> Path:
    """Where the file is used from if it is there: ``$ZFU_DATA`` before the cache."""
    local = _local()
    if local is not None and (local / file.path).exists():
        return local / file.path
    return cache() / file.path


def _state(place: Path, file: File) -> State:
    if not place.is_file():
        return State.MISSING
    if place.stat().st_size != file.bytes:
        return State.WRONG_SIZE
    with place.open("rb") as stream:
        same = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    return State.OK if same else State.WRONG_CHECKSUM


def _find(found: Entry, file: File) -> Path:
    place = _place(file)
    state = _state(place, file)
    if state is State.OK:
        return place
    if state is not State.MISSING and place != cache() / file.path:
        raise DataError(
            f"{found.name}: {file.path} in $ZFU_DATA has the {state.value} ({place.stat().st_size} bytes, expected "
            f"{file.bytes}); replace it, or remove it to have it downloaded"
        )
    if file.url is None:
        raise DataError(
            f"{found.name}: {file.path} cannot be downloaded ({found.note}); put a copy at $ZFU_DATA/{file.path}"
        )
    return _download(found, file)


def _download(found: Entry, file: File) -> Path:
    """Into the cache by way of a temporary file that is checked before it takes its name (pooch does both)."""

    def fetch(url: str, output: str, manager: object) -> None:
        pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)(url, output, manager)
        if (size := os.path.getsize(output)) != file.bytes:
            raise DataError(f"{what} has {size} bytes, expected {file.bytes}: truncated or changed; try again later")

    what = f"{found.name}: {file.url}"
    remedy = f"put a copy at $ZFU_DATA/{file.path}"
    pooch.get_logger().setLevel(logging.WARNING)
    target = cache() / file.path
    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=target.name, path=target.parent, downloader=fetch)
    except DataError:
        raise
    except requests.exceptions.HTTPError as error:
        raise DataError(f"{what} was refused ({error.response.status_code}); {remedy}") from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise DataError(f"{what}: the transfer was truncated; try again, or {remedy}") from None
    except (requests.exceptions.RequestException, OSError) as error:
        raise DataError(f"{what} cannot be reached ({type(error).__name__}): offline? {remedy}") from None
    except ValueError:
        raise DataError(f"{what} has the wrong checksum: it changed at its origin; {remedy}") from None
    return target
