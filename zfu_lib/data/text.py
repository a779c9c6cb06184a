"""Byte-level text for language-model experiments: real text that is on every machine, and whole books.

A corpus is three streams of bytes (vocabulary 256, documents joined by one zero byte): train, validation from the same
source, and ``ood`` from another source. Whole documents are held out, never slices of one.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.report.record import DataUsed

SEPARATOR = b"\0"

# Not source to learn from: tests, tables, the manual itself (it is the other half), and what distributions leave out.
LEFT_OUT = {"test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "distutils", "ensurepip", "tkinter",
            "turtle", "turtledemo", "venv", "__pycache__"}  # fmt: skip
ENOUGH_BYTES = 500_000

HELD_OUT_BOOKS = ("14263_katrine.txt", "17474_how_to_listen.txt")


@dataclass(frozen=True)
class Corpus:
    """Three token streams ([N], read-only; bytes unless ``vocabulary`` says otherwise) and what they were made of."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    ood: np.ndarray
    used: tuple[DataUsed, ...]
    vocabulary: int = 256


@functools.lru_cache(maxsize=1)
def standard_corpus() -> Corpus:
    """Text of the installed Python: source to train on, the reference manual as the other domain.

    ``train`` and ``validation`` are the standard library's modules in Python (top-level modules and packages without
    tests and tables), one in ten held out whole, chosen by the SHA-256 of its name; ``ood`` is the manual's prose,
    every topic of ``pydoc_data.topics``. Python 3.11.7: 6,568,013 / 1,080,578 / 465,594 bytes. Another Python
    has other bytes: ``used`` records its version and the checksum of each stream.

    Raises:
        DataError: this Python comes without its source or manual.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python has no reference manual (pydoc_data.topics); install the full standard library"
        ) from None
    train, validation = [], []
    for module, documents in _standard_library(Path(sysconfig.get_path("stdlib"))).items():
        (validation if _tenth(module) else train).extend(documents)
    train = _distinct(train)
    streams = {
        "train": train,
        "validation": [document for document in _distinct(validation) if document not in set(train)],
        "ood": _distinct(topics[name].encode() for name in sorted(topics)),
    }
    corpus = _corpus("standard", streams, f"Python {platform.python_version()}")
    if len(corpus.train) < ENOUGH_BYTES:
        raise DataError(
            f"this Python has only {len(corpus.train)} bytes of library source; install the full standard library"
        )
    return corpus


def books_corpus() -> Corpus:
    """Project Gutenberg books of the catalogue without the project's header and licence.

    ``train`` is nine whole books, ``validation`` two others (a novel and a book on music), ``ood`` WikiText-2 (valid
    and test) and Tiny Shakespeare: 7,620,148 / 729,814 / 3,493,526 bytes.

    Raises:
        DataError: as :func:`zfu_lib.data.catalogue.get`, or a book without its start or end mark.
    """
    books = {name: strip_gutenberg(file.read_bytes(), name) for name, file in catalogue.get("gutenberg_books").items()}
    other = catalogue.get("wikitext2") | catalogue.get("tinyshakespeare")
    streams = {
        "train": [text for name, text in books.items() if name not in HELD_OUT_BOOKS],
        "validation": [books[name] for name in HELD_OUT_BOOKS],
        "ood": [_newlines(file.read_bytes()) for file in other.values()],
    }
    return _corpus("books", streams, "")


def strip_gutenberg(content: bytes, name: str) -> bytes:
    """The book between Project Gutenberg's start and end marks, with \\n line ends and no byte-order mark.

    Raises:
        DataError: a mark is missing; ``name`` is what the message calls the file.
    """
    text = _newlines(content)
    start = re.search(rb"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\n", text, re.MULTILINE)
    end = re.search(rb"^(?:End of (?:the )?Project Gutenberg|\*\*\* ?END OF TH(?:E|IS) PROJECT)", text, re.MULTILINE)
    if start is None or end is None or end.start() < start.end():
        raise DataError(f"{name} has no Project Gutenberg start and end marks: not the file the catalogue means")
    return text[start.end() : end.start()].strip() + b"\n"


def _standard_library(root: Path) -> Mapping[str, list[bytes]]:
    """Source files of each top-level module, both in the order of their names; unreadable files are skipped."""
    modules: dict[str, list[bytes]] = {}
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        package = root / name
        files = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
        for file in sorted(files, key=lambda f: f.relative_to(root).parts):
            if LEFT_OUT.intersection(file.relative_to(root).parts):
                continue
            try:
                content = file.read_bytes()
                content.decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            modules.setdefault(name, []).append(_newlines(content))
    return modules


def _tenth(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 26


def _distinct(documents: Iterable[bytes]) -> list[bytes]:
    """Non-empty documents in their order, each once."""
    return [document for document in dict.fromkeys(documents) if document.strip()]


def _newlines(content: bytes) -> bytes:
    return content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _corpus(name: str, streams: Mapping[str, list[bytes]], version: str) -> Corpus:
    joined = {part: SEPARATOR.join(documents) for part, documents in streams.items()}
    used = tuple(
        DataUsed(name=f"{name}/{part}", sha256=hashlib.sha256(text).hexdigest(), bytes=len(text), version=version)
        for part, text in joined.items()
    )
    return Corpus(name, **{part: np.frombuffer(text, dtype=np.uint8) for part, text in joined.items()}, used=used)
