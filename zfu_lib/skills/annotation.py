"""Annotation as a state machine: every step is an event of a log that can be replayed, resumed and audited.

    raw -> silver -> coded -> agreed | disputed -> adjudicated -> frozen        (quarantined while a span is open)

The state is nothing but the fold of the log, so a project that was killed at any moment continues from its last whole
line, and who decided what by which rule can always be read back. Each event carries the checksum of the one before it:
a line that was changed or removed is found. Four things never happen: a text changes, a span is no slice of its text,
two frozen spans overlap, a sentence counts as empty because nobody looked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zfu_lib.skills import chinese_skillspan as guideline
from zfu_lib.skills.chinese_skillspan import Choices, Silver
from zfu_lib.skills.spans import Sentence, Span, SpanError


class WorkflowError(ValueError):
    """A step that the workflow does not allow, or a log that cannot be trusted; the message says what to do."""


class State(StrEnum):
    """Where a sentence is."""

    RAW = "raw"
    SILVER = "silver"
    CODED = "coded"
    AGREED = "agreed"
    DISPUTED = "disputed"
    ADJUDICATED = "adjudicated"
    QUARANTINED = "quarantined"
    FROZEN = "frozen"


class Fates(NamedTuple):
    """What a coder did with suggestions: spans ``accepted``, ``edited`` (moved or retyped), ``rejected``, ``added``."""

    accepted: int
    edited: int
    rejected: int
    added: int

    @property
    def edits(self) -> int:
        """Spans that had to be touched."""
        return self.edited + self.rejected + self.added


def fates(suggested: Iterable[Span], coded: Iterable[Span]) -> Fates:
    """Compare suggestions with a coding; a coded span edits at most one suggestion, the first that it overlaps."""
    before, after = set(suggested), set(coded)
    same = before & after
    left, edited = sorted(before - same), 0
    for span in sorted(after - same):
        near = next((s for s in left if s.start < span.end and span.start < s.end), None)
        if near:
            left.remove(near)
            edited += 1
    return Fates(len(same), edited, len(left), len(after - same) - edited)


@dataclass
class Item:
    """A sentence and what happened to it: ``silver`` spans (None: none yet), ``codings`` by coder, ``gold``."""

    sentence: Sentence
    needed: int
    silver: tuple[Span, ...] | None = None
    silver_done: bool = False
    codings: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    gold: tuple[Span, ...] | None = None
    decisions: list[dict[str, Any]] = field(default_factory=list)
    frozen: bool = False

    @property
    def state(self) -> State:
        """Derived, never stored."""
        if self.frozen:
            return State.FROZEN
        if self.gold is not None:
            return State.QUARANTINED if any(d["open"] for d in self.decisions) else State.ADJUDICATED
        if len(self.codings) >= self.needed:
            return State.AGREED if len(set(self.codings.values())) == 1 else State.DISPUTED
        if self.codings:
            return State.CODED
        return State.SILVER if self.silver_done else State.RAW


class Project:
    """An annotation project: items and the log that made them.

    Args:
        log: file with one event a line; None keeps the log in memory. An existing log is replayed. A last line that
            was cut off by a crash is removed, and ``recovered`` says so; anything else that is wrong is an error.

    Raises:
        WorkflowError: a log that another process holds, or one with a broken chain (the message names the line).
    """

    def __init__(self, log: Path | str | None = None) -> None:
        self.items: dict[str, Item] = {}
        self.events: list[dict[str, Any]] = []
        self.recovered = ""
        self._last = ""
        self._file = None
        if log is not None:
            self._open(Path(log))

    # The log.

    def _open(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise WorkflowError(f"{log.name} is open in another process; close it there first") from None
        self._file.seek(0)
        raw = self._file.read()
        whole, _, torn = raw.rpartition(b"\n")
        if torn:
            self._file.truncate(len(raw) - len(torn))
            self.recovered = f"{log.name}: an unfinished last event ({len(torn)} bytes) was removed"
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                event = json.loads(line)
                if event["prev"] != self._last or event["n"] != len(self.events):
                    raise WorkflowError("it does not follow the line before it; lines were changed or removed")
                self._apply(event)
            except (ValueError, KeyError, TypeError) as error:
                self.close()
                raise WorkflowError(f"{log.name}, line {number}: {error}; restore the file from a copy") from None
            self._last = hashlib.sha256(line).hexdigest()
            self.events.append(event)

    def _write(self, kind: str, item: str, by: str, **more: Any) -> None:
        event = {"n": len(self.events), "prev": self._last, "event": kind, "item": item, "by": by, **more}
        line = json.dumps(event, ensure_ascii=False, sort_keys=True).encode()
        event = json.loads(line)
        self._apply(event)  # raises before anything is written
        if self._file is not None:
            self._file.write(line + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._last = hashlib.sha256(line).hexdigest()
        self.events.append(event)

    def close(self) -> None:
        """Let go of the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Events and what they may do.

    def _apply(self, event: Mapping[str, Any]) -> None:
        name = event["item"]
        if event["event"] == "import":
            if name in self.items:
                raise WorkflowError(f"item {name!r} is already here; a text never changes")
            sentence = Sentence(tuple(event["tokens"]), (), event["text"], name, event["meta"])
            self.items[name] = Item(sentence, event["coders"])
            return
        if name not in self.items:
            raise WorkflowError(f"there is no item {name!r}")
        item = self.items[name]
        allowed = {
            "silver": (State.RAW,),
            "code": (State.RAW, State.SILVER, State.CODED),
            "adjudicate": (State.AGREED, State.DISPUTED),
            "settle": (State.AGREED, State.DISPUTED, State.ADJUDICATED, State.QUARANTINED),
            "freeze": (State.ADJUDICATED,),
        }
        if event["event"] not in allowed:
            raise WorkflowError(f"there is no event {event['event']!r}")
        if item.state not in allowed[event["event"]]:
            raise WorkflowError(f"item {name!r} is {item.state}; {event['event']} is not possible there")
        spans = None
        if event.get("spans") is not None:
            spans = item.sentence.with_spans(Span(*span) for span in event["spans"]).spans
            if wrong := sorted({s.type for s in spans} - set(guideline.LABELS)):
                raise SpanError(f"item {name!r}: {', '.join(wrong)} is none of {', '.join(guideline.LABELS)}")
        match event["event"]:
            case "silver":
                item.silver, item.silver_done = spans, True
            case "code":
                if event["by"] in item.codings:
                    raise WorkflowError(f"{event['by']} has coded {name!r} already")
                if spans is None:
                    raise WorkflowError(f"item {name!r}: an empty set is a decision; write it as []")
                item.codings[event["by"]] = spans
            case "adjudicate" | "settle":
                if spans is None:
                    raise WorkflowError(f"item {name!r}: an empty set is a decision; write it as []")
                item.gold = spans
                item.decisions = [*item.decisions, *event["decisions"]] if event["event"] == "adjudicate" else [
                    *({**d, "open": False} for d in item.decisions), *event["decisions"]
                ]  # fmt: skip
            case "freeze":
                item.frozen = True

    def add(self, sentences: Iterable[Sentence], *, coders: int | Mapping[str, int] = 2, by: str = "import") -> None:
        """P0: take texts in. ``coders``: how many each needs (by id where it differs; others need one).

        Raises:
            WorkflowError: an id that is empty or taken, or a text with spans (gold is never imported).
        """
        for sentence in sentences:
            if not sentence.id or sentence.spans:
                raise WorkflowError(f"{sentence.text[:20]!r}: a text to annotate has an id and no spans yet")
            needed = coders if isinstance(coders, int) else coders.get(sentence.id, 1)
            more = {"tokens": list(sentence.tokens), "text": sentence.text, "meta": dict(sentence.meta)}
            self._write("import", sentence.id, by, coders=needed, **more)

    def suggest(self, item: str, silver: Silver | Sequence[Span], *, by: str) -> None:
        """P1 to P3: what the macro stage says of a sentence; spans of None leave it to a person."""
        codes, spans = (silver.codes, silver.spans) if isinstance(silver, Silver) else ((), tuple(silver))
        self._write("silver", item, by, spans=_plain(spans), codes=list(codes))

    def code(self, item: str, spans: Sequence[Span], *, by: str, assisted: bool = False) -> None:
        """P4: a coder's spans; ``assisted`` says whether suggestions were visible."""
        self._write("code", item, by, spans=_plain(spans), assisted=assisted)

    def adjudicate(self, item: str, *, by: str = "guideline", choices: Choices = guideline.DEFAULT) -> State:
        """P5: settle the disputes of a sentence by the guideline; returns its new state."""
        if item not in self.items:
            raise WorkflowError(f"there is no item {item!r}")
        held = self.items[item]
        common, groups = guideline.disputes(list(held.codings.values()) or [()])
        kept, log = list(common), []
        for group in groups:
            for decision in guideline.resolve(held.sentence, group, choices=choices):
                span, rule = decision.span, decision.rule
                if span and any(span.start < s.end and s.start < span.end for s in kept):
                    span, rule = None, "overlap"  # what all coders agree on stays; the log says what gave way
                kept += [span] if span else []
                said = {"kind": decision.kind, "rule": rule, "open": decision.open}
                log.append({**said, "span": list(span) if span else None})
        self._write("adjudicate", item, by, spans=_plain(sorted(kept)), decisions=log)
        return held.state

    def settle(self, item: str, spans: Sequence[Span], *, by: str, rule: str, reason: str) -> None:
        """A person decides what no rule could; the reason is kept.

        Raises:
            WorkflowError: no rule or no reason.
        """
        if not rule or not reason.strip():
            raise WorkflowError(f"item {item!r}: a decision names its rule and its reason")
        said = {"kind": "person", "rule": rule, "open": False, "span": None, "reason": reason}
        self._write("settle", item, by, spans=_plain(spans), decisions=[said])

    def freeze(self, *, by: str = "freeze") -> list[Sentence]:
        """P7: freeze what is adjudicated; returns all frozen sentences in order of import."""
        for name, item in self.items.items():
            if item.state == State.ADJUDICATED:
                self._write("freeze", name, by)
        return self.gold()

    def gold(self) -> list[Sentence]:
        """Frozen sentences with their spans."""
        return [item.sentence.with_spans(item.gold or ()) for item in self.items.values() if item.frozen]

    def states(self) -> dict[str, int]:
        """How many items are in each state that occurs."""
        found = Counter(item.state.value for item in self.items.values())
        return {state.value: found[state.value] for state in State if found[state.value]}

    def quarantined(self) -> list[str]:
        """Items that wait for a person."""
        return [name for name, item in self.items.items() if item.state == State.QUARANTINED]

    def effort(self) -> Fates:
        """Spans accepted, edited, rejected and added by coders who saw suggestions."""
        total = np.zeros(4, dtype=int)
        for event in self.events:
            item = self.items[event["item"]]
            if event["event"] == "code" and event["assisted"] and item.silver is not None:
                total += fates(item.silver, [Span(*span) for span in event["spans"]])
        return Fates(*total.tolist())


def _plain(spans: Iterable[Span] | None) -> list[list[Any]] | None:
    return None if spans is None else [list(span) for span in spans]


def double_coded(ids: Sequence[str], *, share: float = 0.1, block: int = 200, seed: int = 0) -> dict[str, int]:
    """Rule 30: of every ``block`` items, which ``share`` gets a second coder; id -> 2."""
    rng = np.random.default_rng(seed)
    chosen = []
    for start in range(0, len(ids), block):
        part = ids[start : start + block]
        chosen += [part[i] for i in rng.permutation(len(part))[: max(1, round(share * len(part)))]]
    return dict.fromkeys(chosen, 2)
