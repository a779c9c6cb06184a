"""Temporal knowledge graphs: ICEWS14 from the catalogue, folders in its format, and a generated one.

A folder holds ``train.txt``, ``valid.txt``, ``test.txt`` (subject, relation, object, day and anything after, separated
by tabs) and ``entity2id.txt``, ``relation2id.txt`` (name, id).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.report.record import DataUsed


class Events(NamedTuple):
    """Names by id, facts of three periods (int64 [F, 4]: subject, relation, object, day), and where they are from."""

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    used: tuple[DataUsed, ...]


def icews14s() -> Events:
    """ICEWS14 as RE-GCN and MESH use it: 74,845 / 8,514 / 7,371 facts on 365 days, 7,128 entities, 230 relations.

    Raises:
        DataError: as :func:`zfu_lib.data.catalogue.get` and :func:`read_events`.
    """
    return read_events(catalogue.get("icews14s"), catalogue.used("icews14s"))


def read_events(files: Path | Mapping[str, Path], used: tuple[DataUsed, ...] = ()) -> Events:
    """A graph from a folder, or from files by name.

    Raises:
        DataError: a file is missing, or a line is not what it should be (the message names file and line).
    """
    if isinstance(files, Path):
        files = {file.name: file for file in files.iterdir() if file.is_file()} if files.is_dir() else {}
    wanted = ("entity2id.txt", "relation2id.txt", "train.txt", "valid.txt", "test.txt")
    if missing := [name for name in wanted if name not in files]:
        raise DataError(f"no {', '.join(missing)}; a temporal knowledge graph needs {', '.join(wanted)}")
    names = (_names(files[name]) for name in wanted[:2])
    return Events(*names, *(_facts(files[name]) for name in wanted[2:]), used)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name} is not UTF-8 text: {error}") from None
    if text and not text.endswith("\n"):
        last = text.count("\n") + 1
        raise DataError(f"{file.name} ends in the middle of line {last}: truncated? fetch it again")
    return text.split("\n")[:-1]


def _facts(file: Path) -> np.ndarray:
    rows = []
    for number, line in enumerate(_lines(file), 1):
        try:
            s, r, o, t = (int(x) for x in line.split("\t")[:4])
        except ValueError:
            raise DataError(
                f"{file.name}, line {number}: {line[:60]!r} is not subject, relation, object, day (four integers "
                "separated by tabs)"
            ) from None
        rows.append((s, r, o, t))
    if not rows:
        raise DataError(f"{file.name} is empty")
    return np.array(rows, dtype=np.int64)


def _names(file: Path) -> tuple[str, ...]:
    found: dict[int, str] = {}
    for number, line in enumerate(_lines(file), 1):
        name, tab, key = line.rpartition("\t")
        if not tab or not key.strip().isdigit() or not name.strip():
            raise DataError(f"{file.name}, line {number}: {line[:60]!r} is not a name, a tab and an id")
        if int(key) in found:
            raise DataError(f"{file.name}, line {number}: id {int(key)} was given to {found[int(key)]!r} before")
        found[int(key)] = name
    if sorted(found) != list(range(len(found))):
        absent = next(i for i in range(len(found)) if i not in found)
        raise DataError(f"{file.name} names {len(found)} ids but not id {absent}: truncated?")
    return tuple(found[i] for i in range(len(found)))


COUNTRIES = ("Arcadia", "Atlantis", "Blefuscu", "Brobdingnag", "Erewhon", "Graustark", "Laputa", "Lilliput",
             "Ruritania", "Utopia")  # fmt: skip
ROLES = ("Army", "Bank", "Business", "Citizen", "Court", "Farmers", "Government", "Journalist", "Ministry of Trade",
         "Navy", "Opposition", "Police", "Students", "Union", "University")  # fmt: skip
EVENTS = ("Make statement", "Consult", "Host a visit", "Make a visit", "Provide aid", "Criticize or denounce",
          "Impose sanctions", "Threaten")  # fmt: skip


def generated_events(
    seed: int, *, days: int = 40, a_day: int = 120, recurring: int = 200, share: float = 0.6
) -> Events:
    """A graph of two kinds of events whose truth is known.

    ``share`` of a day's events are drawn from ``recurring`` fixed triples: to know them, count. The others are new:
    subject and event are drawn evenly, and the object evenly from one country, which is fixed by the subject's country
    and the event: to know *them*, one has to know who belongs to which country, and that stands in the names
    (*Police (Utopia)*) and, thinly, in the graph. Nobody can name the object of a new event better than one in fifteen.
    Idealised: countries alone carry meaning, nothing drifts, and the two kinds share no pattern. Days 1 to 80% are for
    training, 10% each for validation and test.

    Args:
        a_day: events drawn a day; those drawn twice count once.
    """
    rng = np.random.default_rng(seed)
    size, n = len(ROLES), len(COUNTRIES) * len(ROLES)
    fixed = np.stack([rng.integers(n, size=recurring), rng.integers(len(EVENTS), size=recurring),
                      rng.integers(n, size=recurring)], axis=1)  # fmt: skip
    leads_to = rng.integers(len(COUNTRIES), size=(len(COUNTRIES), len(EVENTS)))
    rows = []
    for day in range(1, days + 1):
        old = fixed[rng.integers(recurring, size=rng.binomial(a_day, share))]
        count = a_day - len(old)
        subject, event = rng.integers(n, size=count), rng.integers(len(EVENTS), size=count)
        obj = leads_to[subject // size, event] * size + rng.integers(size, size=count)
        todays = np.unique(np.concatenate([old, np.stack([subject, event, obj], axis=1)]), axis=0)
        rows.append(np.column_stack([todays, np.full(len(todays), day)]))
    facts = np.concatenate(rows)
    train, valid, test = np.split(facts, np.searchsorted(facts[:, 3], [0.8 * days + 1, 0.9 * days + 1]))
    names = tuple(f"{role} ({country})" for country in COUNTRIES for role in ROLES)
    digest = hashlib.sha256(facts.tobytes()).hexdigest()
    used = DataUsed(name=f"generated/{seed}", sha256=digest, bytes=facts.nbytes)
    return Events(names, EVENTS, train, valid, test, (used,))
