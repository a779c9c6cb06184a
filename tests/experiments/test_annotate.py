"""The annotation page: twenty sentences from the keyboard to a report, resumed, and bad input refused."""

import http.client
import json

import pytest

from zfu_lib.experiments import annotate
from zfu_lib.experiments.annotate import AnnotateError, Session
from zfu_lib.report import browser
from zfu_lib.skills import annotation


def ask(address, path, body=None, *, raw=None, **headers):
    host = address.removeprefix("http://").rstrip("/")
    link = http.client.HTTPConnection(host, timeout=10)
    sent = raw if raw is not None else json.dumps(body).encode() if body is not None else None
    link.request("POST" if sent is not None else "GET", path, sent, {"Content-Type": "application/json"} | headers)
    reply = link.getresponse()
    return reply.status, reply.read()


def test_sentences_are_the_same_for_a_seed_and_some_ask_for_nothing():
    made = annotate.sentences(0, 20)
    assert made == annotate.sentences(0, 20)
    assert made != annotate.sentences(1, 20)
    assert len(made) == len({s.text for s in made}) == 20
    assert 1 <= sum(not s.spans for s in made) <= 5
    assert all(s.meta["synthetic"] for s in made)
    with pytest.raises(ValueError, match="1 to 200"):
        annotate.sentences(0, 0)


def test_a_draft_is_kept_at_every_change_and_resumed(tmp_path):
    session = Session(tmp_path, n=3)
    name = next(iter(session.gold))
    session.answer(name, [[0, 2, "S"]], True)
    again = Session(tmp_path, n=3)
    assert again.answers == {name: {"spans": [[0, 2, "S"]], "done": True}}
    assert name not in again.open()
    with pytest.raises(AnnotateError, match="seed 0 and 3"):
        Session(tmp_path, seed=1, n=3)
    (tmp_path / "draft.json").write_text("{")
    with pytest.raises(AnnotateError, match="damaged"):
        Session(tmp_path, n=3)


@pytest.mark.parametrize(
    ("spans", "done", "words"),
    [
        ([[0, 2, "S"], [1, 3, "K"]], True, "overlap"),
        ([[0, 999, "S"]], True, "leaves"),
        ([[2, 2, "S"]], True, "empty"),
        ([[0, 2, "Q"]], True, "labels"),
        ([[0, True, "S"]], True, "no span"),
        ([[0.0, 2, "S"]], True, "no span"),
        ("x", True, "list of spans"),
        ([], "yes", "true or false"),
    ],
)
def test_bad_spans_are_refused_and_nothing_is_saved(tmp_path, spans, done, words):
    session = Session(tmp_path, n=2)
    with pytest.raises(AnnotateError, match=words):
        session.answer(next(iter(session.gold)), spans, done)
    assert not session.answers
    with pytest.raises(AnnotateError, match="no sentence"):
        session.answer("?", [], True)


def test_gold_codings_agree_with_themselves_and_nothing_is_empty_by_default(tmp_path):
    session = Session(tmp_path, n=4)
    with pytest.raises(AnnotateError, match="4 sentences have no decision"):
        session.finish()
    for name, sentence in session.gold.items():
        session.answer(name, [list(span) for span in sentence.spans], True)
    made = session.finish()
    assert made["figures"]["exact F1"][0] == made["figures"]["kappa"][0] == made["identical"] == 1.0
    with annotation.Project(tmp_path / "log.jsonl") as project:
        assert project.states() == {"agreed": 4}
    with pytest.raises(AnnotateError, match="finished"):
        session.answer(name, [], True)
    assert Session(tmp_path, n=4).finish() == made


def test_the_server_answers_only_its_own_page(tmp_path):
    session = Session(tmp_path, n=2)
    name = next(iter(session.gold))
    with annotate.served(session) as address:
        assert address.startswith("http://127.0.0.1:")
        assert ask(address, "/")[0] == 200
        assert ask(address, "/api/state", Host="evil.example")[0] == 403
        assert ask(address, "/api/answer", {"id": name, "spans": [], "done": True}, Origin="http://evil")[0] == 403
        assert ask(address, "/../../etc/passwd")[0] == 404
        assert ask(address, "/api/answer", raw=b"{}", **{"Content-Type": "text/plain"})[0] == 400
        assert ask(address, "/api/answer", raw=b"\xff\xfe")[0] == 400
        assert ask(address, "/api/answer", raw=b"[1]")[0] == 400
        status, said = ask(address, "/api/answer", raw=b"x" * (annotate.LIMIT + 1))
        assert status == 400
        assert b"bytes" in said
        assert ask(address, "/api/answer", {"id": name, "spans": [], "done": True})[0] == 200
        assert b"1 sentences have no decision" in ask(address, "/api/finish", {})[1]


@pytest.mark.skipif(browser.chromium() is None, reason="no Chromium")
def test_twenty_sentences_from_the_keyboard_to_the_report(tmp_path):
    """Gold is typed in for every sentence but two; the page is closed half way and opened again."""
    session = Session(tmp_path)
    errors = []
    with annotate.served(session) as address, browser.opened(browser.chromium()) as opened:

        def fresh():
            page = opened.new_page(viewport=browser.PHONE)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda r: None if r.url.startswith((address, "data:")) else errors.append(r.url))
            page.goto(address)
            page.wait_for_selector("body[data-ready]")
            return page

        page = fresh()
        for i, sentence in enumerate(session.gold.values()):
            if i == 10:
                page.wait_for_selector("body[data-open='10']")
                page.close()
                page = fresh()
            assert page.evaluate("+document.body.dataset.at") == i
            spans = sentence.spans[:-1] if i in (3, 15) else sentence.spans
            for start, end, kind in spans:
                page.keyboard.press("Home")
                for _ in range(start):
                    page.keyboard.press("ArrowRight")
                for _ in range(end - start - 1):
                    page.keyboard.press("Shift+ArrowRight")
                page.keyboard.press(kind)
            if i == 0:  # an overlapping span is refused in the page
                page.keyboard.press("Home")
                page.keyboard.press("Shift+End")
                page.keyboard.press("1")
                assert "overlap" in page.inner_text("#said")
                assert page.evaluate(browser.OVERFLOW) == ""
            page.keyboard.press("Enter")
        page.wait_for_selector("body[data-open='0']")
        page.keyboard.press("r")
        page.wait_for_selector("body[data-finished]")
        said = page.inner_text("#report")
    assert errors == []
    assert "exact F1" in said
    assert "Identical on" in said
    expected = [s.spans[:-1] if i in (3, 15) else s.spans for i, s in enumerate(session.gold.values())]
    assert [tuple(map(tuple, a["spans"])) for a in session.answers.values()] == [tuple(map(tuple, s)) for s in expected]
    made = json.loads((tmp_path / "report.json").read_text())
    missed = sum(len(s.spans) > 0 for i, s in enumerate(session.gold.values()) if i in (3, 15))
    assert made["differences"]["scope"] == missed
    assert made["identical"] == pytest.approx(1 - missed / 20)
