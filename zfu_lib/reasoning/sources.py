"""The four sources that MultiDx draws on, each behind a small adapter; their indexes are built once.

Whatever a source returns is a :class:`Statement`: one sentence of data with the place it came from. It is cleaned of
everything that could look like the frame of a prompt and never decides what the pipeline does next.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from zfu_lib.retrieval import BM25, Dense, fuse, words

LONGEST = 400
"""Characters of a statement; the rest is cut."""
NEAR_DUPLICATE = 0.9
"""Jaccard similarity of words from which a case of the database counts as the case itself: a case must never
find itself (a choice of this book)."""


class SourceError(RuntimeError):
    """A source that cannot be reached or answers garbage; the message says what to do. It costs the source, not the
    diagnosis."""


class Statement(NamedTuple):
    """A sentence of retrieved text: ``source`` and ``ref`` say where it stands."""

    text: str
    source: str
    ref: str


class Record(NamedTuple):
    """A case of the database: text, numbered reasoning, final diagnosis."""

    id: str
    text: str
    reasoning: str
    diagnosis: str


class Hit(NamedTuple):
    """A search result."""

    ref: str
    title: str
    snippet: str
    score: float


def clean(text: str) -> str:
    """One line of plain text: no control characters, no fence or special token of a prompt, at most ``LONGEST``
    characters."""
    text = re.sub(r"<[^<>]{0,40}>|[`{}\[\]|]|#{2,}", " ", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:LONGEST]


def statements(text: str, source: str, ref: str) -> list[Statement]:
    """The sentences of a text."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return [Statement(cleaned, source, ref) for part in parts if (cleaned := clean(part))]


def steps(reasoning: str, *, paper_regex: bool = False) -> list[str]:
    """The numbered statements of a reasoning text.

    Args:
        paper_regex: as the released code, whose pattern forbids digits inside a statement: one that holds an age, a
            duration or a value is cut there or lost.
    """
    if paper_regex:
        return [found.strip() for found in re.findall(r"\d+\.\s*([^\d]+?)(?=\d|\Z)", reasoning) if found.strip()]
    parts = re.split(r"^\s*\d+[.)]\s+", reasoning, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in parts[1:] if part.strip()] or [
        line.strip() for line in reasoning.splitlines() if line.strip()
    ]


class Dictionary:
    """Entities by look-up: names and synonyms of an ontology, longest first.

    Args:
        names: canonical name -> other names.

    Raises:
        ValueError: no names.
    """

    DENIED = ("denies", "no", "not", "without", "negative", "absent")
    OTHER = ("had", "family", "history", "brother", "mother", "resolved", "previous")

    def __init__(self, names: Mapping[str, Collection[str]]) -> None:
        if not names:
            raise ValueError("a dictionary of entities needs at least one name")
        self._canonical = {other.lower(): name for name, others in names.items() for other in (name, *others)}
        self._first: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._canonical, key=len, reverse=True):
            self._first[_WORD.findall(name)[0] if _WORD.findall(name) else name].append(name)
        self._read = functools.lru_cache(maxsize=100_000)(self._mentions)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._canonical

    def canonical(self, name: str) -> str:
        """The usual name of an entity; any other text as it stands."""
        return self._canonical.get(name.lower().strip(), name)

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """(entity, ``present``, ``absent`` or ``other``) in the order of the text, by the words before it in its
        sentence: a negation, or words for the past and for relatives."""
        return list(self._read(text))

    def _mentions(self, text: str) -> tuple[tuple[str, str], ...]:
        found = []
        for sentence in re.split(r"(?<=[.;])\s|\n", text.lower()):
            tokens = list(_WORD.finditer(sentence))
            end, status = 0, "present"
            for token in tokens:
                if token.start() < end:
                    continue
                if token[0] in self.DENIED:
                    status = "absent"
                elif token[0] in self.OTHER:
                    status = "other"
                for name in self._first.get(token[0], ()):
                    after = token.start() + len(name)
                    if sentence.startswith(name, token.start()) and not sentence[after : after + 1].isalnum():
                        found.append((self._canonical[name], status))
                        end = after
                        break
        return tuple(found)

    def entities(self, text: str) -> set[str]:
        """The entities of a text, whatever is said of them."""
        return {entity for entity, _ in self.mentions(text)}


_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


# Web search


class SearchAdapter(Protocol):
    """Something that can be searched and whose pages can be opened."""

    def search(self, query: str, k: int) -> list[Hit]:
        """The best ``k`` pages. Raises SourceError."""

    def open(self, ref: str) -> str:
        """The text of a page. Raises SourceError."""


def blocked(ref: str, patterns: Iterable[str]) -> bool:
    """Is the page's address on the list of sites that hold answers? Patterns are parts of the host."""
    host = urllib.parse.urlsplit(ref if "//" in ref else f"//{ref}").hostname or ref
    return any(host == p or host.endswith(f".{p}") or ref.startswith(p) for p in patterns)


class LocalSearch:
    """A directory of articles under SQLite's full-text index, ranked by BM25; no network.

    Args:
        pages: (address, title, text).
        blocklist: hosts whose pages are left out.

    Raises:
        ValueError: no page is left.
    """

    def __init__(self, pages: Iterable[tuple[str, str, str]], *, blocklist: Sequence[str] = ()) -> None:
        kept = [page for page in pages if not blocked(page[0], blocklist)]
        if not kept:
            raise ValueError("no page to search: all are blocked, or there are none")
        self._pages = {ref: text for ref, _, text in kept}
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        self._index.execute("CREATE VIRTUAL TABLE pages USING fts5(ref UNINDEXED, title, body)")
        self._index.executemany("INSERT INTO pages VALUES (?, ?, ?)", [(r, t, self._joined(x)) for r, t, x in kept])

    @staticmethod
    def _joined(text: str) -> str:
        """``chest-pain`` as one word of the index."""
        return re.sub(r"(?<=\w)-(?=\w)", "_", text).replace("_", "0")

    def search(self, query: str, k: int) -> list[Hit]:
        """The best ``k`` pages that share a word with the query; the query is words, never an expression."""
        terms = [f'"{term}"' for term in dict.fromkeys(re.findall(r"\w+", self._joined(query)))]
        if not terms or k < 1:
            return []
        rows = self._index.execute(
            "SELECT ref, title, bm25(pages) FROM pages WHERE pages MATCH ? ORDER BY 3, ref LIMIT ?",
            (" OR ".join(terms), k),
        )
        return [Hit(ref, title, self._pages[ref][:200], -score) for ref, title, score in rows]

    def open(self, ref: str) -> str:
        """Raises SourceError: no such page."""
        try:
            return self._pages[ref]
        except KeyError:
            raise SourceError(f"no page {ref!r} in the local corpus") from None


class HttpSearch:
    """A search service over HTTP that answers ``{"results": [{"url", "title", "snippet", "text"?}]}``.

    Args:
        endpoint: address; the query goes into ``q`` and the number of results into ``k``.
        key_variable: name of the environment variable with the key, sent as a bearer token; never stored.
        timeout: seconds for one request.
        recorded: what was answered before, by address. With ``live=False`` nothing else is asked; with ``live=True``
            new answers are added, so that a run can be repeated without a network.
        blocklist: hosts whose pages are neither listed nor opened.

    Raises:
        ValueError: an endpoint that is not http(s).
    """

    MOST = 2_000_000

    def __init__(
        self,
        endpoint: str,
        *,
        key_variable: str = "ZFU_SEARCH_KEY",
        timeout: float = 20.0,
        recorded: MutableMapping[str, str] | None = None,
        live: bool = True,
        blocklist: Sequence[str] = (),
    ) -> None:
        if urllib.parse.urlsplit(endpoint).scheme not in ("http", "https"):
            raise ValueError(f"endpoint {endpoint!r} must begin with http:// or https://")
        self.endpoint, self.key_variable, self.timeout = endpoint, key_variable, timeout
        self.recorded = {} if recorded is None else recorded
        self.live, self.blocklist = live, tuple(blocklist)
        self._texts: dict[str, str] = {}

    def search(self, query: str, k: int) -> list[Hit]:
        """Raises SourceError: not reachable, or an answer of another form."""
        answer = self._get(f"{self.endpoint}?{urllib.parse.urlencode({'q': query, 'k': k})}", key=True)
        try:
            rows = json.loads(answer)["results"]
            hits = [Hit(str(r["url"]), str(r.get("title", "")), str(r.get("snippet", "")), -float(i))
                    for i, r in enumerate(rows)]  # fmt: skip
            self._texts |= {str(r["url"]): str(r["text"]) for r in rows if isinstance(r.get("text"), str)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{self.endpoint} did not answer with a list of results ({error!r})") from None
        return [hit for hit in hits if not blocked(hit.ref, self.blocklist)][:k]

    def open(self, ref: str) -> str:
        """The page's words. Raises SourceError: blocked, not reachable, or not text."""
        if blocked(ref, self.blocklist):
            raise SourceError(f"{ref} is on the block list")
        if ref in self._texts:
            return self._texts[ref]
        if urllib.parse.urlsplit(ref).scheme not in ("http", "https"):
            raise SourceError(f"{ref!r} is not a web address")
        page = self._get(ref)
        page = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", page)
        return " ".join(re.sub(r"<[^>]*>", " ", page).split())

    def _get(self, address: str, *, key: bool = False) -> str:
        if address in self.recorded:
            return self.recorded[address]
        if not self.live:
            raise SourceError(f"{address} was not recorded, and this adapter only replays")
        headers = {"User-Agent": "zfu"}
        if key and (secret := os.environ.get(self.key_variable)):
            headers["Authorization"] = f"Bearer {secret}"
        try:
            request = urllib.request.Request(address, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                text = reply.read(self.MOST).decode("utf-8", errors="replace")
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise SourceError(
                f"{address.partition('?')[0]} cannot be reached ({error}); check the network, the address and "
                f"the key in ${self.key_variable}"
            ) from None
        self.recorded[address] = text
        return text


# Case database


class CaseIndex:
    """Similar cases: BM25 over whole texts as in the paper (Eq. 3), vectors, or both by rank fusion.

    Args:
        records: the database.
        encode: texts -> vectors [N, D], needed by ``dense`` and ``rrf``.

    Raises:
        ValueError: no records.
    """

    def __init__(self, records: Sequence[Record], *, encode: Callable[[list[str]], np.ndarray] | None = None) -> None:
        if not records:
            raise ValueError("a case database needs cases")
        self.records, self._encode = list(records), encode
        self._bm25 = BM25([record.text for record in records])
        self._dense = Dense(encode([r.text for r in records])) if encode else None
        self._at = {record.id: i for i, record in enumerate(records)}
        self._words = [frozenset(words(record.text)) for record in records]

    def near(
        self, texts: Sequence[str], k: int, *, ids: Sequence[str] | None = None, by: str = "bm25"
    ) -> list[list[Record]]:
        """The ``k`` nearest records of each text, never the case itself (by ``ids``) nor a near-duplicate.

        Raises:
            ValueError: an unknown way to search, or vectors where there is no encoder.
        """
        if by not in ("bm25", "dense", "rrf") or (by != "bm25" and self._dense is None):
            raise ValueError(f"by = {by!r}: bm25, or dense and rrf where an encoder was given")
        if k < 1:
            return [[] for _ in texts]
        wanted = min(k + 5, len(self.records))
        found = [self._bm25.search(texts, wanted)] if by != "dense" else []
        if by != "bm25":
            found.append(self._dense.search(self._encode(list(texts)), wanted))
        best = found[0] if len(found) == 1 else fuse(found, wanted)
        result = []
        for q, row in enumerate(best.index.tolist()):
            own = self._at.get(ids[q]) if ids else None
            mine = frozenset(words(texts[q]))
            kept = [i for i in row if i >= 0 and i != own and _jaccard(mine, self._words[i]) <= NEAR_DUPLICATE]
            result.append([self.records[i] for i in kept[:k]])
        return result


def _jaccard(a: Collection, b: Collection) -> float:
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a or b else 0.0


# Reasoning traces


class TraceIndex:
    """Single steps of the database's reasoning by the overlap of their entities with the case's (Eq. 5-7):
    J = |E_C ∩ E_ij| / |E_C ∪ E_ij|, over an inverted index built once.

    Args:
        entities: finds the entities of a text.
        paper_regex: cut the steps as the released code does.

    Raises:
        ValueError: no records.
    """

    def __init__(
        self, records: Sequence[Record], entities: Callable[[str], set[str]], *, paper_regex: bool = False
    ) -> None:
        if not records:
            raise ValueError("a database of reasoning needs cases")
        self._entities = entities
        known: dict[str, tuple[str, list[str]]] = {}
        for record in records:
            for i, step in enumerate(steps(record.reasoning, paper_regex=paper_regex), 1):
                known.setdefault(step, (step, []))[1].append(f"{record.id}#{i}")
        self._steps = list(known.values())
        self._size, self._holding = [], defaultdict(list)
        for i, (text, _) in enumerate(self._steps):
            found = entities(text)
            self._size.append(len(found))
            for entity in found:
                self._holding[entity].append(i)

    def near(self, text: str, k: int, *, own: str | None = None) -> list[tuple[Statement, float]]:
        """The ``k`` best steps and their J; a step that only the case itself (``own``) wrote is left out. The same
        words are one step, however many cases hold them; of equals the more frequent first."""
        found = self._entities(text)
        common: Counter[int] = Counter(i for entity in found for i in self._holding.get(entity, ()))
        scored = []
        for i, n in common.items():
            refs = [ref for ref in self._steps[i][1] if ref.partition("#")[0] != own]
            if refs:
                scored.append((n / (len(found) + self._size[i] - n), len(refs), i, refs[0]))
        scored.sort(key=lambda row: (-row[0], -row[1], row[2]))
        return [(Statement(clean(self._steps[i][0]), "traces", ref), j) for j, _, i, ref in scored[:k]]


def select(
    groups: Sequence[Sequence[Statement]], budget: int, relevant: Callable[[str], float] | None = None
) -> list[Statement]:
    """At most ``budget`` statements: from each group in turn its most relevant one (of equals the first), each wording
    once. The context budget of a reasoning call."""
    ordered = [
        [s for _, _, s in sorted((-(relevant(s.text) if relevant else 0), i, s) for i, s in enumerate(group))]
        for group in groups
    ]
    taken: dict[str, Statement] = {}
    for i in range(max(map(len, ordered), default=0)):
        for group in ordered:
            if i < len(group) and len(taken) < budget:
                taken.setdefault(group[i].text, group[i])
    return list(taken.values())
