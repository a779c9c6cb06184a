"""``zfu annotate``: a page on this machine where you mark twenty synthetic sentences and see your own agreement.

The standard library's server on the loopback address, one page without a build step, no request to anywhere else. Every
change is saved in a draft beside the project's log; stop at any time and go on later. At the end the codings go into an
:class:`~zfu_lib.skills.annotation.Project` like anybody's, and the report holds them against the known gold.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from zfu_lib.data import zh_jobs
from zfu_lib.experiments.simulated_coders import sentence_of
from zfu_lib.report import cjk
from zfu_lib.report.record import write_atomically
from zfu_lib.skills import agreement, annotation
from zfu_lib.skills import chinese_skillspan as guideline
from zfu_lib.skills.spans import Sentence, Span, SpanError

PAGE = Path(__file__).with_name("page.html")
STUDENT = "student"
LIMIT = 64 * 1024
"""Most bytes of a request."""


class AnnotateError(ValueError):
    """A request or a draft that cannot be used; the message says what to do."""


def sentences(seed: int, n: int) -> list[Sentence]:
    """``n`` synthetic sentences with their gold: of moderate length, a fifth of them without a span, each once.

    Raises:
        ValueError: not between 1 and 200 sentences.
    """
    if not 1 <= n <= 200:
        raise ValueError(f"{n} sentences: choose 1 to 200")
    ads = zh_jobs.postings(max(30, 2 * n), 1000 + seed, mix=zh_jobs.STRATIFIED["test"], name="student_")
    fit = {ad.text: sentence_of(ad) for ad in ads if 12 <= len(ad.text) <= 40 and "typo" not in ad.tags}
    marked, empty = ([s for s in fit.values() if bool(s.spans) is some] for some in (True, False))
    nothing = min(n // 5, len(empty))
    chosen = [*marked[: n - nothing], *empty[:nothing]]
    return sorted(chosen, key=lambda s: s.id)


class Session:
    """A student's work in a folder: a draft that is saved at every change, and at the end a project log.

    Args:
        folder: where it is kept; made if missing.
        seed, n: which sentences; a folder that was begun keeps its own.

    Raises:
        AnnotateError: the folder holds the draft of other sentences, or one that is damaged.
    """

    def __init__(self, folder: Path | str, *, seed: int = 0, n: int = 20) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._file = self.folder / "draft.json"
        self.answers: dict[str, dict[str, Any]] = {}
        kept = self._draft()
        self.seed, self.n = (kept["seed"], kept["n"]) if kept else (seed, n)
        if (self.seed, self.n) != (seed, n):
            raise AnnotateError(
                f"{self.folder.name} was begun with seed {self.seed} and {self.n} sentences; "
                "use these, or another folder"
            )
        self.gold = {s.id: s for s in sentences(self.seed, self.n)}
        for name, answer in (kept["answers"] if kept else {}).items():
            self._take(name, answer["spans"], answer["done"])
        self._save()

    def _draft(self) -> dict[str, Any] | None:
        if not self._file.is_file():
            return None
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return {"seed": int(kept["seed"]), "n": int(kept["n"]), "answers": dict(kept["answers"])}
        except (ValueError, KeyError, TypeError) as error:
            raise AnnotateError(f"{self._file.name} is damaged ({error}); move it away to begin again") from None

    def _save(self) -> None:
        kept = {"synthetic": True, "seed": self.seed, "n": self.n, "answers": self.answers}
        write_atomically(self._file, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")

    def _take(self, name: str, spans: object, done: object) -> None:
        if name not in self.gold:
            raise AnnotateError(f"there is no sentence {name!r}")
        if not isinstance(done, bool) or not isinstance(spans, list):
            raise AnnotateError("an answer has a list of spans, and done: true or false")
        found = []
        for item in spans:
            ok = isinstance(item, list) and len(item) == 3 and all(type(x) is int for x in item[:2])
            if not ok or item[2] not in guideline.LABELS:
                raise AnnotateError(f"{item!r} is no span: [start, end, label], labels {', '.join(guideline.LABELS)}")
            found.append(Span(*item))
        try:
            made = self.gold[name].with_spans(found)
        except SpanError as error:
            raise AnnotateError(str(error)) from None
        self.answers[name] = {"spans": [list(span) for span in made.spans], "done": done}

    def answer(self, name: str, spans: object, done: object) -> None:
        """Save the spans of a sentence; ``done`` says that they are a decision (an empty list too).

        Raises:
            AnnotateError: an unknown sentence or label, spans that overlap or leave it, or a finished session.
        """
        with self._lock:
            if self.finished:
                raise AnnotateError("this session is finished; its report stands")
            self._take(name, spans, done)
            self._save()

    @property
    def finished(self) -> bool:
        """Whether the codings are in the log."""
        return (self.folder / "log.jsonl").is_file()

    def open(self) -> list[str]:
        """Sentences without a decision."""
        return [name for name in self.gold if not self.answers.get(name, {}).get("done")]

    def state(self) -> dict[str, Any]:
        """What the page needs."""
        texts = [{"id": s.id, "tokens": list(s.tokens)} for s in self.gold.values()]
        labels = {label: guideline.MEANING[label] for label in guideline.LABELS}
        glossary = dict(zh_jobs.GLOSSARY)
        return {
            "sentences": texts, "labels": labels, "glossary": glossary, "answers": self.answers,
            "finished": self.finished,
        }  # fmt: skip

    def finish(self) -> dict[str, Any]:
        """Write the codings into a project and report agreement with the gold.

        Raises:
            AnnotateError: sentences without a decision; nothing is ever counted as empty because nobody looked.
        """
        with self._lock:
            if left := self.open():
                raise AnnotateError(
                    f"{len(left)} sentences have no decision yet; Enter confirms one, with or without spans"
                )
            if not self.finished:
                part = self.folder / f".log-{secrets.token_hex(4)}"
                with annotation.Project(part) as project:
                    project.add([s.with_spans(()) for s in self.gold.values()], coders=1)
                    for name, answer in self.answers.items():
                        project.code(name, [Span(*span) for span in answer["spans"]], by=STUDENT)
                os.replace(part, self.folder / "log.jsonl")
            made = self.report()
            write_atomically(self.folder / "report.json", json.dumps(made, ensure_ascii=False, indent=1) + "\n")
            return made

    def report(self) -> dict[str, Any]:
        """Agreement of the student with the gold, where they differ, and what the guideline says."""
        gold = list(self.gold.values())
        with annotation.Project(self.folder / "log.jsonl") as project:
            mine = [project.items[s.id].codings[STUDENT] for s in gold]
        made = agreement.report(gold, [[s.spans for s in gold], mine])
        figures = {
            name: list(getattr(made, field))
            for name, field in (
                ("exact F1", "strict"), ("edges only", "boundary"), ("relaxed F1", "relaxed"), ("kappa", "kappa"),
                ("kappa, marked characters", "kappa_marked"), ("alpha", "alpha"),
            )
        }  # fmt: skip
        rows = []
        for sentence, spans in zip(gold, mine, strict=True):
            coded = sentence.with_spans(spans)
            rows.append(
                {
                    "id": sentence.id,
                    "text": sentence.text,
                    "gold": [[sentence.words(s), s.type] for s in sentence.spans],
                    "mine": [[sentence.words(s), s.type] for s in coded.spans],
                    "same": coded.spans == sentence.spans,
                    "rules": [f"{f.rule}: {f.why}" for f in guideline.review(coded)],
                }
            )
        return {
            "synthetic": True, "sentences": len(gold), "figures": figures, "identical": made.identical,
            "differences": agreement.split_of([s.spans for s in gold], mine), "rows": rows,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, session: Session, *args: Any) -> None:
        self.session = session
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        pass

    def _mine(self) -> bool:
        """Only a page of this server may ask: a name that somebody pointed here, or another site, may not."""
        port = self.server.server_address[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and origin in (None, *(f"http://{host}" for host in hosts)):
            return True
        self._say(HTTPStatus.FORBIDDEN, {"error": "open the address that zfu annotate printed"})
        return False

    def do_GET(self) -> None:
        if not self._mine():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/font.ttf" and cjk.font().is_file():
            self._send(HTTPStatus.OK, cjk.font().read_bytes(), "font/ttf")
        elif self.path == "/api/state":
            self._say(HTTPStatus.OK, self.session.state())
        else:
            self._say(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path}"})

    def do_POST(self) -> None:
        if not self._mine():
            return
        try:
            body = self._body()
            if self.path == "/api/answer":
                self.session.answer(body.get("id", ""), body.get("spans"), body.get("done"))
                self._say(HTTPStatus.OK, {"open": len(self.session.open())})
            elif self.path == "/api/finish":
                self._say(HTTPStatus.OK, self.session.finish())
            else:
                self._say(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path}"})
        except AnnotateError as error:
            self._say(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _body(self) -> Mapping[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise AnnotateError("send JSON")
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LIMIT:
            self.close_connection = True
            raise AnnotateError(f"send at most {LIMIT} bytes, and say how many")
        try:
            body = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            raise AnnotateError("that is no JSON") from None
        if not isinstance(body, dict):
            raise AnnotateError("send a JSON object")
        return body

    def _say(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        rules = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
        self.send_header("Content-Security-Policy", rules)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def served(session: Session, port: int = 0) -> Iterator[str]:
    """The page of a session on the loopback address; yields its address. Port 0 takes a free one."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, session))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
