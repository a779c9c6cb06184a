import dataclasses
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from zfu_lib.lm import cache
from zfu_lib.lm.cache import Cached
from zfu_lib.lm.protocol import (
    Caps,
    ContextOverflow,
    GenRequest,
    GenResult,
    LanguageModel,
    Message,
    ModelError,
    ScoreRequest,
    ScoreResult,
)


class Echo:
    """A scripted stand-in that counts what it is asked."""

    name, n_params, context = "echo", 10, 100
    caps = Caps(entropy="exact", prefill=True, logprobs=True, chat=True)

    def __init__(self, identity="one"):
        self.identity, self.asked = identity, []

    def count(self, text):
        return len(text)

    def truncate(self, text, n_tokens):
        return text[:n_tokens]

    def generate(self, requests):
        self.asked.append(list(requests))
        if any(request.prompt == "too long" for request in requests):
            raise ContextOverflow("too long")
        return [
            GenResult(f"{r.prompt!r} é", 3, 4, "stop", 1, (-0.1, -np.inf) if r.logprobs else None, 0.25)
            for r in requests
        ]

    def score(self, requests):
        self.asked.append(list(requests))
        values = [np.arange(len(r.continuation)) / 3 for r in requests]
        return [ScoreResult(-v, v, v + 1, len(r.context), 2, 0.5) for r, v in zip(requests, values)]

    def stream(self, request):
        yield from ("piece", " by piece")


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def cached(echo, tmp_path):
    return Cached(echo, tmp_path / "answers")


def damage(cached, answer):
    with sqlite3.connect(cached.file) as database:
        assert database.execute("UPDATE answers SET answer = ?", (answer,)).rowcount == 1


def test_it_is_the_model_it_wraps(echo, cached):
    assert isinstance(cached, LanguageModel)
    for name in ("name", "identity", "n_params", "context", "caps"):
        assert getattr(cached, name) == getattr(echo, name)
    assert cached.count("abc") == 3
    assert cached.truncate("abc", 2) == "ab"


def test_a_second_run_is_answered_from_disk(echo, cached, tmp_path):
    requests = [GenRequest("a"), GenRequest((Message("user", "b"),), logprobs=True)]
    first = cached.generate(requests)
    assert first == echo.generate(requests)
    again = Cached(other := Echo(), tmp_path / "answers").generate(requests)
    assert again == [dataclasses.replace(result, replayed=True) for result in first]
    assert [result.seconds for result in again] == [0.25, 0.25]
    assert other.asked == []


def test_scores_come_back_bit_for_bit(cached):
    requests = [ScoreRequest("ab", "cdefg"), ScoreRequest("", "")]
    for first, again in zip(cached.score(requests), cached.score(requests)):
        assert (first.replayed, again.replayed) == (False, True)
        for name in ("logprob", "entropy_low", "entropy_high"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
            assert getattr(again, name).dtype == float
        assert (first.n_context, first.n_cached, first.seconds) == (again.n_context, again.n_cached, again.seconds)


def test_only_what_is_missing_is_asked_and_the_order_is_kept(echo, cached):
    a, b, c = (GenRequest(prompt) for prompt in "abc")
    cached.generate([b])
    results = cached.generate([c, b, a, c])
    assert echo.asked == [[b], [c, a]]
    assert [result.text for result in results] == ["'c' é", "'b' é", "'a' é", "'c' é"]
    assert [result.replayed for result in results] == [False, True, False, True]
    assert cached.generate([]) == []


CHANGES = {"prompt": "b", "prefill": "x", "max_tokens": 3, "stop": ("s",), "temperature": 1.0, "top_p": 0.5, "top_k": 2}
CHANGES |= {"seed": 1, "logprobs": True, "thinking": False}


def test_every_field_the_kind_and_the_model_enter_the_key(cached, tmp_path):
    assert set(CHANGES) == {field.name for field in dataclasses.fields(GenRequest)}
    request = GenRequest("a")
    keys = {cached._key("generate", dataclasses.replace(request, **{name: value})) for name, value in CHANGES.items()}
    keys |= {cached._key("generate", request), cached._key("score", request)}
    keys |= {Cached(Echo("two"), tmp_path)._key("generate", request)}
    keys |= {cached._key("generate", GenRequest((Message(role, "a"),))) for role in ("user", "system")}
    assert len(keys) == len(CHANGES) + 5


@pytest.mark.parametrize("answer", [b"", b"not compressed", "text", None, b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_entry_is_computed_again(echo, cached, answer):
    for kind, request in (("generate", GenRequest("a")), ("score", ScoreRequest("a", "b"))):
        ask = getattr(cached, kind)
        ask([request])
        damage(cached, answer)
        assert [ask([request])[0].replayed for _ in range(2)] == [False, True]
        cached.file.unlink()


def test_every_single_damaged_byte_is_noticed(cached):
    cached.generate([GenRequest("a", logprobs=True)])
    with sqlite3.connect(cached.file) as database:
        ((blob,),) = database.execute("SELECT answer FROM answers").fetchall()
    expected = cache._unpacked("generate", blob)
    for i in range(len(blob)):
        other = cache._unpacked("generate", blob[:i] + bytes([blob[i] ^ 0x10]) + blob[i + 1 :])
        assert other is None or other == expected


@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_damaged_file_is_begun_anew(cached, keep):
    cached.generate([GenRequest(str(i)) for i in range(100)])
    content = cached.file.read_bytes()
    cached.file.write_bytes(content[:keep] + b"\xff" * (len(content) - keep))
    cached.file.with_name("answers.sqlite3-journal").write_bytes(b"stale")
    requests = [GenRequest("7"), GenRequest("new")]
    assert [result.text for result in cached.generate(requests)] == ["'7' é", "'new' é"]
    assert [result.replayed for result in cached.generate(requests)] == [True, True]


def test_an_interruption_keeps_what_was_answered(echo, cached, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 2)
    requests = [GenRequest(prompt) for prompt in ("a", "b", "c", "too long", "d")]
    with pytest.raises(ContextOverflow):
        cached.generate(requests)
    results = cached.generate(requests[:3])
    assert [result.replayed for result in results] == [True, True, False]


def test_a_folder_that_cannot_be_written_is_explained(echo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="set ZFU_CACHE to a folder"):
        Cached(echo, tmp_path / "file").generate([GenRequest("a")])
    assert echo.asked == []


def test_a_stream_is_replayed_if_the_text_is_there(cached):
    assert list(cached.stream(GenRequest("a"))) == ["piece", " by piece"]
    cached.generate([GenRequest("a")])
    assert list(cached.stream(GenRequest("a"))) == ["'a' é"]


def test_the_folder_can_be_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZFU_CACHE", str(tmp_path / "mine"))
    Cached(Echo()).generate([GenRequest("a")])
    assert (tmp_path / "mine/answers.sqlite3").is_file()
    monkeypatch.delenv("ZFU_CACHE")
    assert cache.default_folder().name == "answers"


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_cache import Echo
from zfu_lib.lm import cache
from zfu_lib.lm.protocol import GenRequest
cache.CHUNK = 1
start = int(sys.argv[2])
cache.Cached(Echo(), Path(sys.argv[1])).generate([GenRequest(str(i)) for i in range(start, start + 60)])
"""


def test_two_processes_share_a_folder(tmp_path):
    here = os.path.dirname(__file__)
    runs = [subprocess.Popen([sys.executable, "-c", TWO, tmp_path, start, here]) for start in ("0", "30")]
    assert [run.wait(60) for run in runs] == [0, 0]
    results = Cached(echo := Echo(), tmp_path).generate([GenRequest(str(i)) for i in range(90)])
    assert echo.asked == []
    assert [result.text for result in results] == [f"'{i}' é" for i in range(90)]
