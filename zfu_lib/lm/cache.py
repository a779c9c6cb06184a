"""Answers of a language model kept on disk: a run that is repeated, or was interrupted, does not ask again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zfu_lib.lm.protocol import Caps, GenRequest, GenResult, LanguageModel, ModelError, ScoreRequest, ScoreResult

FORMAT = 1
CHUNK = 512  # Answers are kept after so many, so an interruption loses no more.
PATIENCE_SECONDS = 60  # How long to wait for another process that is writing.
ARRAYS = ("logprob", "entropy_low", "entropy_high")


def default_folder() -> Path:
    """``$ZFU_CACHE``, or a folder beside the downloads in the user's cache."""
    if folder := os.environ.get("ZFU_CACHE"):
        return Path(folder).expanduser()
    from zfu_lib.data import catalogue

    return catalogue.cache() / "answers"


class Cached:
    """A language model that looks a request up before it computes, ``replayed`` where it found the answer.

    An answer belongs to the model's ``identity`` and every field of the request. Only what is not there goes to the
    model; a request that occurs twice goes once. A damaged entry is computed again, a damaged file begun
    anew; several processes may share a folder.

    Args:
        model: any :class:`~zfu_lib.lm.protocol.LanguageModel`.
        folder: where to keep the answers; None for :func:`default_folder`.

    Raises:
        ModelError: the folder cannot be written (at the first request).
    """

    def __init__(self, model: LanguageModel, folder: Path | None = None) -> None:
        self.model, self.file = model, Path(folder or default_folder()) / "answers.sqlite3"

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        return self.model.identity

    @property
    def n_params(self) -> int:
        return self.model.n_params

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def caps(self) -> Caps:
        return self.model.caps

    def count(self, text: str) -> int:
        """Tokens of ``text``, without special ones."""
        return self.model.count(text)

    def truncate(self, text: str, n_tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``n_tokens`` tokens."""
        return self.model.truncate(text, n_tokens)

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """``model.generate``, asked only for what is not on disk."""
        return self._answer("generate", requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """``model.score``, asked only for what is not on disk."""
        return self._answer("score", requests)

    def stream(self, request: GenRequest) -> Iterator[str]:
        """The text on disk in one piece, or the model's stream, which is not kept: its token counts are not known."""
        found = self._read("generate", [self._key("generate", request)])
        if not found:
            return self.model.stream(request)
        return iter([result.text for result in found.values() if result.text])

    def _answer(self, kind: str, requests: Sequence) -> list:
        keys = [self._key(kind, request) for request in requests]
        found = self._read(kind, keys)
        missing = {key: request for key, request in zip(keys, requests) if key not in found}
        for some in _chunks(list(missing)):
            answers = getattr(self.model, kind)([missing[key] for key in some])
            computed = dict(zip(some, answers, strict=True))
            self._write(computed)
            found |= computed
        # A request that occurs again in the list was answered by its first occurrence.
        return [dataclasses.replace(found[key], replayed=missing.pop(key, None) is None) for key in keys]

    def _key(self, kind: str, request: GenRequest | ScoreRequest) -> str:
        what = [FORMAT, kind, self.identity, dataclasses.asdict(request)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _read(self, kind: str, keys: Sequence[str]) -> dict:
        """What is on disk, by key."""
        question = "SELECT key, answer FROM answers WHERE key = ?"
        rows = self._transaction(lambda base: [row for key in set(keys) for row in base.execute(question, (key,))])
        return {key: result for key, blob in rows if (result := _unpacked(kind, blob)) is not None}

    def _write(self, results: dict) -> None:
        rows = [(key, _packed(result)) for key, result in results.items()]
        self._transaction(lambda base: base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows))

    def _transaction(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """``work`` done entirely or not at all; a damaged file is begun anew."""
        for attempt in (1, 2):
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(self.file, timeout=PATIENCE_SECONDS)) as base, base:
                    base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer BLOB) WITHOUT ROWID")
                    return work(base)
            except (OSError, sqlite3.OperationalError) as error:
                raise ModelError(
                    f"answers cannot be kept in {self.file.parent} ({error}); set ZFU_CACHE to a folder that can be "
                    "written, or load the model with cache=False"
                ) from None
            except sqlite3.DatabaseError:
                if attempt == 2:
                    raise
                for file in (self.file, self.file.with_name(f"{self.file.name}-journal")):
                    file.unlink(missing_ok=True)


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    return (keys[i : i + CHUNK] for i in range(0, len(keys), CHUNK))


def _packed(result: GenResult | ScoreResult) -> bytes:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    return zlib.compress(json.dumps(plain).encode())


def _unpacked(kind: str, blob: object) -> GenResult | ScoreResult | None:
    """None for a damaged entry (zlib checks its sum)."""
    try:
        fields = json.loads(zlib.decompress(blob))
        if kind == "generate":
            logprobs = fields["logprobs"]
            return GenResult(**fields | {"logprobs": None if logprobs is None else tuple(logprobs)})
        return ScoreResult(**fields | {name: np.array(fields[name], float) for name in ARRAYS})
    except (zlib.error, ValueError, KeyError, TypeError):
        return None
