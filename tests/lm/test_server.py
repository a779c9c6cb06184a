"""A real ``transformers serve`` process, and a scripted server for everything that should not happen."""

import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.lm.protocol import (
    Caps,
    ContextOverflow,
    GenRequest,
    LanguageModel,
    Message,
    ModelError,
    ScoreRequest,
    Unsupported,
)
from zfu_lib.lm.server import ServerLM, _until, entropy_bounds, serving
from zfu_lib.lm.tokenizer import VOCABULARY, byte_tokenizer
from zfu_lib.reasoning import adaptime

TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}[no thinking]{% endif %}"
)
CHAT = (Message("system", "Be brief."), Message("user", "How are you?"))
SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def proxied(monkeypatch):
    """A proxy that reaches nothing: what is on this machine must not go through it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


# The real server.


def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no fastapi\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with (
        pytest.raises(ModelError, match=r"it said last: no fastapi. It needs transformers\[serving\]"),
        serving(tmp_path),
    ):
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # Letters and signs are likely, so that what it writes is text.
        model.lm_head.weight.mul_(20)
        model.lm_head.weight[:32] = 0
        model.lm_head.weight[127:257] = 0
        model.lm_head.weight[257] *= 0.4
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    # A second end token, the second one that it writes after "Stop".
    second = model.generate(tokenizer("Stop", return_tensors="pt")["input_ids"], max_new_tokens=2, do_sample=False)
    model.generation_config.eos_token_id = [257, int(second[0, -1])]
    # What the checkpoint says about sampling must not enter.
    model.generation_config.repetition_penalty = 3.0
    folder = tmp_path_factory.mktemp("served") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def url(checkpoint):
    with serving(checkpoint[0]) as url:
        yield url.partition("#")[0]


@pytest.fixture(scope="module")
def served(url, checkpoint):
    return ServerLM.from_url(f"{url}#tiny", tokenizer=checkpoint[0], n_params=1000, context=256)


def generated(checkpoint, prompt, *, seed=None, **options):
    """Text and number of tokens of the local model's own ``generate``."""
    _, model, tokenizer = checkpoint
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    if seed is not None:
        torch.manual_seed(seed)
    options |= {"max_new_tokens": 24, "do_sample": seed is not None, "repetition_penalty": 1.0}
    new = model.generate(ids, **options)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd"), ids.shape[1], len(new)


def rendered(checkpoint, **switch):
    turns = [turn._asdict() for turn in CHAT]
    return checkpoint[2].apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch)


def test_greedy_text_is_what_the_model_generates_locally_in_order_and_counted(served, checkpoint):
    prompts = [f"Item {i}: {'x' * i}é" for i in range(6)]
    results = served.generate([GenRequest(prompt, max_tokens=24) for prompt in prompts])
    assert [(r.text, r.n_prompt, r.n_out) for r in results] == [generated(checkpoint, prompt) for prompt in prompts]
    assert len({r.text for r in results}) > 1
    assert all(r.finish == ("length" if r.n_out == 24 else "stop") for r in results)
    assert all(r.seconds > 0 and r.n_cached == 0 for r in results)
    (ended,) = served.generate([GenRequest("Stop", max_tokens=24)])
    assert (ended.text, ended.n_prompt, ended.n_out) == generated(checkpoint, "Stop")
    assert (ended.n_out, ended.finish) == (2, "stop")
    (answer,) = served.generate([GenRequest(CHAT, max_tokens=24)])
    assert (answer.text, answer.n_prompt, answer.n_out) == generated(checkpoint, rendered(checkpoint))


def test_streams_and_stop_strings(served, checkpoint):
    for prompt in ("Once", CHAT):
        whole = served.generate([GenRequest(prompt, max_tokens=24)])[0]
        pieces = list(served.stream(GenRequest(prompt, max_tokens=24)))
        assert len(pieces) > 3
        assert "".join(pieces) == whole.text
        assert whole.finish == ("length" if whole.n_out == 24 else "stop")
        stop = whole.text[8:10]
        cut = GenRequest(prompt, max_tokens=24, stop=("never", stop))
        (short,) = served.generate([cut])
        assert short.text == whole.text[: whole.text.index(stop)]
        assert short.finish == "stop"
        assert short.n_out < whole.n_out
        assert "".join(served.stream(cut)) == short.text


def test_sampling_is_of_the_whole_distribution_by_seed_and_one_at_a_time(served, checkpoint):
    requests = [GenRequest("Once", max_tokens=24, temperature=1.5, seed=seed) for seed in (1, 2, 3, 1)]
    texts = [result.text for result in served.generate(requests)]
    assert texts == [generated(checkpoint, "Once", seed=seed, temperature=1.5, top_k=0)[0] for seed in (1, 2, 3, 1)]
    assert len(set(texts)) == 3
    greedy, narrow = served.generate(
        [GenRequest("Once", max_tokens=24), GenRequest("Once", max_tokens=24, temperature=1.5, top_k=1)]
    )
    assert narrow.text == greedy.text


def test_an_answer_is_begun_through_the_local_template(served, url, checkpoint):
    (result,) = served.generate([GenRequest(CHAT, prefill="Well, ", max_tokens=24)])
    assert (result.text, result.n_prompt, result.n_out) == generated(checkpoint, rendered(checkpoint) + "Well, ")
    (plain,) = served.generate([GenRequest("One, two", prefill=", three", max_tokens=24)])
    assert plain.text == generated(checkpoint, "One, two, three")[0]
    with pytest.raises(Unsupported, match="give tokenizer="):
        ServerLM(url, "tiny").generate([GenRequest(CHAT, prefill="Well, ")])


def test_thinking_is_switched_in_the_template(served, checkpoint):
    on, off = served.generate([GenRequest(CHAT, max_tokens=1, thinking=switch) for switch in (None, False)])
    assert off.n_prompt == on.n_prompt + len("[no thinking]")
    (begun,) = served.generate([GenRequest(CHAT, max_tokens=1, thinking=False, prefill="!")])
    assert begun.n_prompt == off.n_prompt + 1
    with pytest.raises(Unsupported, match="as messages"):
        served.generate([GenRequest("text", thinking=False)])


def test_what_transformers_serve_can_do_is_seen_and_recorded(served, url):
    assert served.dialect == "transformers"
    assert served.caps == Caps(entropy=None, prefill=True, logprobs=False, chat=True)
    assert ServerLM(url, "tiny").caps == Caps(entropy=None, prefill=False, logprobs=False, chat=True)
    assert served.facts() == {
        "url": f"{url}/v1",
        "model": "tiny",
        "dialect": "transformers",
        "caps": served.caps,
        "version": None,
    }
    assert isinstance(served, LanguageModel)
    assert (served.name, served.n_params, served.context) == ("tiny", 1000, 256)
    assert served.identity.startswith(f"{url}/v1#tiny")


def test_what_transformers_serve_cannot_do_is_refused(served, url):
    with pytest.raises(Unsupported, match=r"serve the model with vLLM, or load it here \(hf:PATH\)"):
        served.score([ScoreRequest("a", "b")])
    with pytest.raises(Unsupported, match="no log-probabilities of generated tokens"):
        served.generate([GenRequest("a", max_tokens=1, logprobs=True)])
    with pytest.raises(Unsupported, match="does not count tokens: give tokenizer="):
        ServerLM(url, "tiny").count("a")
    with pytest.raises(ModelError, match="give context="):
        ServerLM(url, "tiny").context  # noqa: B018
    with pytest.raises(ModelError, match="Server is pinned to 'tiny'; requested 'other'"):
        ServerLM(url, "other").generate([GenRequest("a")])
    with pytest.raises(ModelError, match="Write .*#MODEL; it lists none"):
        ServerLM.from_url(url)
    with pytest.raises(ContextOverflow, match="254 tokens to read and 4 to write, but the context of tiny holds 256"):
        served.generate([GenRequest("a" * 254, max_tokens=4, stop=("never",))])


def test_a_pipeline_of_many_calls_runs_through_it(served, checkpoint):
    """AdapTime asks it for every decision and action, and reads what comes back as from a model that is here; a prompt
    that does not fit is traced and spoils no other."""

    def short(step, **parts):
        return f"{step}: {len(parts.get('document', ''))} {parts.get('question', '')}"[:100], ""

    def long(step, **parts):
        return parts.get("document", "") + step, ""

    config = adaptime.Config(decision_tokens=24, action_tokens=24)
    planners = adaptime.Fixed((False, True, True)), adaptime.Prompted()
    runs = [adaptime.adaptime("Ann left in 1954.", f"Who {i}?", p, short, config) for i, p in enumerate(planners)]
    runs.append(adaptime.direct("x" * 300, "Who?", long, config))
    *outcomes, too_long = adaptime.answer_all(runs, served, config)
    assert [w.call.step for w in outcomes[0].trace.calls] == ["rewrite", "answer", "review"]
    assert [w.call.step for w in outcomes[1].trace.calls if w.call.step.startswith("plan")] == [
        "plan reformulate", "plan rewrite", "plan review",
    ]  # fmt: skip
    for outcome in outcomes:
        for call, result in outcome.trace.calls:
            assert (result.text, result.n_prompt, result.n_out) == generated(checkpoint, call.prompt)
        assert outcome.trace.tokens() == sum(w.result.n_prompt + w.result.n_out for w in outcome.trace.calls) > 0
    assert (too_long.answer, too_long.trace.failures) == (None, ["overflow", "answer"])


def test_tokens_are_counted_and_texts_cut_by_the_given_tokenizer(served):
    assert served.count("naïve") == 6
    assert [served.truncate("naïve", n) for n in (0, 2, 3, 4, 99)] == ["", "na", "na", "naï", "naïve"]


# The scripted server.


class Script:
    """Answers what ``answer(path, body)`` returns: status, body (JSON unless bytes), headers; keeps what it saw."""

    def __init__(self):
        self.seen, self.times, self.keys = [], [], []
        self.answer = lambda path, body: (500, {"error": {"message": "no script"}}, {})
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                script.seen.append((self.path, body))
                script.times.append(time.monotonic())
                script.keys.append(self.headers["Authorization"])
                status, content, headers = (*script.answer(self.path, body), {}, {})[:3]
                kind = "application/json"
                if isinstance(content, list):
                    events = (event if isinstance(event, str) else json.dumps(event) for event in content)
                    content, kind = "".join(f"data: {event}\n\n" for event in events).encode(), "text/event-stream"
                elif not isinstance(content, bytes):
                    content = json.dumps(content, ensure_ascii=False).encode()
                headers = {"Connection": "close"} | headers
                self.send_response(status)
                for name, value in ({"Content-Type": kind, "Content-Length": len(content)} | headers).items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *arguments: None  # a client that has gone
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def model(self, **options):
        return ServerLM(self.url, "m", **{"dialect": "openai", "retries": 1} | options)


@pytest.fixture
def script():
    made = Script()
    yield made
    made.server.shutdown()
    made.server.server_close()


def chat(content="ok", *, finish="stop", usage=(5, 2), **more):
    return {
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | more}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
    }


ASK = [GenRequest(CHAT)]


def after_one(first, then=None):
    """A script whose first answer is ``first``."""
    answers = iter([first])
    return lambda path, body: next(answers, (200, then or chat()))


def test_too_many_requests_waits_as_long_as_the_server_says(script):
    script.answer = after_one((429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}))
    assert script.model().generate(ASK)[0].text == "ok"
    assert script.times[1] - script.times[0] >= 1


@pytest.mark.parametrize("first", [(500, {}), (503, b"<html>"), (200, b'{"choices', {"Content-Length": 99})])
def test_a_passing_failure_is_tried_again(script, first):
    script.answer = after_one(first)
    assert script.model().generate(ASK)[0].text == "ok"
    assert len(script.seen) == 2


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
            ModelError,
            "after at most 2 tries.*slow down",
        ),
        ((500, b"broken", {"Retry-After": "0.01"}), ModelError, r"after at most 2 tries \(500\): broken"),
        ((403, {"error": {"message": f"no {SECRET}"}}), ModelError, r"\(403\); the variable MY_KEY holds one that"),
        ((400, {"error": {"message": "too many", "code": "context_length_exceeded"}}), ContextOverflow, "too many"),
        ((400, {"message": "This model's maximum context length is 8 tokens"}), ContextOverflow, "is 8 tokens"),
        ((400, {"error": {"message": f"bad {SECRET}"}}), ModelError, r"bad \*\*\*$"),
        ((404, {"detail": "Not Found"}), Unsupported, r"cannot do this \(404\)"),
        ((422, {"detail": "Unexpected fields in the request: {'seed'}"}), Unsupported, "does not take this request"),
        ((200, b"<html>", {"Content-Type": "text/html"}), ModelError, "not OpenAI's format .*<html>"),
        ((200, b'{"choices": ['), ModelError, "not OpenAI's format .*JSONDecodeError"),
        ((200, b"\xff\xfe"), ModelError, "not OpenAI's format"),
        ((200, {"choices": []}), ModelError, "not OpenAI's format"),
        ((200, {"choices": [{"finish_reason": "stop"}]}), ModelError, "not OpenAI's format .*message"),
        ((200, []), ModelError, "not OpenAI's format"),
        ((200, {"choices": None}), ModelError, "not OpenAI's format"),
    ],
)
def test_refusals_and_garbage_are_explained_without_the_key(script, monkeypatch, answer, error, says):
    monkeypatch.setenv("MY_KEY", SECRET)
    script.answer = lambda path, body: answer if body else (200, {"data": [{"id": "m"}]})
    model = script.model(api_key_env="MY_KEY")
    with pytest.raises(error, match=says) as raised:
        model.generate(ASK)
    assert set(script.keys) == {f"Bearer {SECRET}"}
    assert type(raised.value) is error
    assert raised.value.__suppress_context__
    assert not any(SECRET in text for text in (str(raised.value), repr(model), model.identity, model.name))


def test_a_missing_key_names_its_variable(script, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    script.answer = lambda path, body: (401, {"error": {"message": "who are you?"}})
    with pytest.raises(ModelError, match="the variable OPENAI_API_KEY is not set"):
        script.model().generate(ASK)


def test_a_missing_model_lists_those_there_are(script):
    def answer(path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "big"}, {"id": "small"}]}
        return 404, {"error": {"message": "The model `m` does not exist."}}

    script.answer = answer
    with pytest.raises(ModelError, match="has no model 'm'; it has big, small"):
        script.model().generate(ASK)
    with pytest.raises(ModelError, match="which model of .*; it lists big, small"):
        ServerLM.from_url(script.url)
    script.answer = lambda path, body: (200, {"data": [{"id": "only", "max_model_len": 4096}]})
    found = ServerLM.from_url(script.url + "/v1/", n_params=7)
    assert (found.model, found.base_url, found.n_params, found.context) == ("only", f"{script.url}/v1", 7, 4096)


def test_no_server_says_where_and_how_to_start_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = ServerLM(f"http://127.0.0.1:{port}", "m", retries=0, dialect="openai")
    with pytest.raises(
        ModelError, match=rf"no answer from http://127.0.0.1:{port}/v1 \(at most 1 tries.*`vllm serve m`"
    ):
        model.generate(ASK)


def test_a_server_that_hangs_is_given_up(script):
    script.answer = lambda path, body: time.sleep(1) or (200, chat())
    with pytest.raises(ModelError, match=r"sent nothing for 0.2 s \(at most 1 tries\): raise timeout="):
        script.model(timeout=0.2, retries=0).generate(ASK)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://me:pw@h", "http://h?key=pw"]
)
def test_what_is_not_a_url_or_holds_a_secret_is_refused(url):
    with pytest.raises(ModelError) as raised:
        ServerLM(url, "m")
    assert "pw" not in str(raised.value)


def test_results_come_in_order_though_answers_do_not(script):
    def answer(path, body):
        text = body["messages"][0]["content"]
        time.sleep(0.2 if text == "0" else 0)
        return 200, chat(text)

    script.answer = answer
    requests = [GenRequest((Message("user", str(i)),)) for i in range(12)]
    began = time.perf_counter()
    results = script.model(workers=4).generate(requests)
    wall = time.perf_counter() - began
    assert [result.text for result in results] == [str(i) for i in range(12)]
    assert len(script.seen) == 12
    assert sum(result.seconds for result in results) == pytest.approx(wall, rel=0.2)
    assert script.model().generate([]) == []


def test_unicode_emptiness_thinking_cached_tokens_and_usage(script):
    text = "naïve 🙂 \u2028 世界\u0000"
    script.answer = lambda path, body: (200, chat(text, usage=(7, 3)))
    (result,) = script.model(tokenizer=byte_tokenizer()).generate(ASK)
    # The server's count is believed, not the tokenizer's.
    assert (result.text, result.n_prompt, result.n_out) == (text, 7, 3)
    script.answer = lambda path, body: (200, chat(text) | {"usage": None})
    (result,) = script.model(tokenizer=byte_tokenizer()).generate(ASK)
    assert (result.n_prompt, result.n_out) == (len("Be brief.How are you?"), len(text.encode()))
    for empty in (chat(""), chat(None, finish="length")):
        script.answer = lambda path, body, empty=empty: (200, empty)
        assert script.model().generate(ASK)[0].text == ""
    cached = chat(finish="length")
    cached["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
    script.answer = lambda path, body: (200, cached)
    assert script.model().generate(ASK)[0].n_cached == 4
    for name in ("reasoning", "reasoning_content"):
        script.answer = lambda path, body, name=name: (200, chat("5", **{name: "2 + 3"}))
        assert script.model().generate(ASK)[0].text == "<think>2 + 3</think>5"
        script.answer = lambda path, body, name=name: (200, chat(None, finish="length", **{name: "2 +"}))
        assert script.model().generate(ASK)[0].text == "<think>2 +"


def event(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_streams_that_end_and_streams_that_break(script):
    parts = [
        event(role="assistant"),
        event(reasoning="2 +"),
        event(reasoning=" 3"),
        event(content="5 🙂"),
        event("stop"),
    ]
    script.answer = lambda path, body: (200, [*parts, {"choices": [], "usage": {}}, "[DONE]"])
    assert list(script.model().stream(GenRequest(CHAT))) == ["<think>2 +", " 3", "</think>", "5 🙂"]
    assert script.seen[-1][1]["stream"] is True
    broken = {
        "in the middle of a text": (200, parts[:-1]),
        "broke off: .*peer closed": (200, parts, {"Content-Length": 9999}),
        "JSONDecodeError": (200, [*parts[:-1], '{"choices": [{"del']),
        "broke off: out of memory": (200, [*parts[:-1], {"error": {"message": "out of memory"}}]),
        "broke off: no room": (200, [*parts[:-1], {"error": "no room"}]),
        r"refused \(400\): no": (400, {"error": {"message": "no"}}),
        "not OpenAI's format": (200, ["1"]),
    }
    for says, answer in broken.items():
        script.answer = lambda path, body, answer=answer: answer
        pieces = script.model(retries=0).stream(GenRequest(CHAT))
        with pytest.raises(ModelError, match=says):
            list(pieces)


@settings(deadline=None, max_examples=300)
@given(st.text("abc\ufffd", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3), st.randoms())
def test_a_text_is_cut_at_its_stop_string_however_it_comes(text, stops, random):
    cuts = sorted(random.sample(range(len(text) + 1), min(3, len(text) + 1)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    found = [piece for piece in _until(pieces, stops) if piece is not None]
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(found) == text[: min(ends)[1] if ends else len(text)].rstrip("\ufffd")


def test_log_probabilities_of_generated_tokens_end_with_the_text(script):
    values = [("Hi", -0.5), (" é", -1.0), ("<end>", -2.0)]
    entries = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in values]
    answer = chat("Hi é")
    answer["choices"][0]["logprobs"] = {"content": entries}
    script.answer = lambda path, body: (200, answer)
    assert script.model().generate([GenRequest(CHAT, logprobs=True)])[0].logprobs == (-0.5, -1.0)
    assert script.seen[-1][1]["logprobs"] is True
    assert script.model().generate([GenRequest(CHAT, logprobs=True, stop=(" é",))])[0].logprobs == (-0.5,)
    found = {"tokens": [token for token, _ in values], "token_logprobs": [value for _, value in values]}
    plain = {"choices": [{"text": "Hi é", "finish_reason": "stop", "logprobs": found}]} | {"usage": answer["usage"]}
    script.answer = lambda path, body: (200, plain)
    assert script.model().generate([GenRequest("x", logprobs=True)])[0].logprobs == (-0.5, -1.0)


def test_settings_in_the_dialect_of_the_server(script):
    script.answer = lambda path, body: (200, chat())
    request = GenRequest(CHAT, stop=("a",), temperature=0.5, top_p=0.9, top_k=7, seed=3, max_tokens=9)
    script.model(dialect="vllm").generate([request, GenRequest(CHAT)])
    one, other = sorted((body for _, body in script.seen), key=lambda body: -body["top_k"])
    wanted = {"stop": ["a"], "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "max_tokens": 9}
    # What the checkpoint says about sampling must not enter.
    assert {name: one[name] for name in wanted} == wanted
    assert (other["top_k"], other["min_p"], other["repetition_penalty"], "stop" in other) == (-1, 0, 1, False)
    with pytest.raises(Unsupported, match="has no top_k"):
        script.model().generate([request])
    begun = script.model(dialect="vllm", caps=Caps("bounds", prefill=True, logprobs=True, chat=True))
    begun.generate([GenRequest(CHAT, prefill="Well", thinking=True)])
    body = script.seen[-1][1]
    assert body["messages"][-1] == {"role": "assistant", "content": "Well"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


# A server that speaks like vLLM, or gives echoes, with known distributions.

SPELLING = re.compile(r" ?\w+|\W")
WORDS = 40


def distribution(before):
    return np.random.default_rng(zlib.crc32(before.encode())).dirichlet(np.full(WORDS, 0.3))


def place(token):
    return zlib.crc32(token.encode()) % WORDS


def entropy(p):
    return -sum(x * math.log2(x) for x in p if x > 0)


def scoring(style, begin=True, join=True):
    """Top-k log-probabilities of a prompt; ``begin``: the tokenizer begins a text; not ``join``: texts lose a space."""

    def answer(path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "owned_by": style}]}
        if path == "/tokenize":
            return 200, {"count": len(SPELLING.findall(body["prompt"]))}
        if path == "/version":
            return 200, {"version": "1.2"}
        if "messages" in body:
            read = 20 if body.get("continue_final_message") else 24
            reply = chat(usage=(read, 1))
            reply["choices"][0]["logprobs"] = {"content": [{"token": "ok", "logprob": -1.0}]}
            return 200, reply
        spelled, rows = SPELLING.findall(body["prompt"]), []
        top = body.get("prompt_logprobs") or body.get("logprobs")
        shown = {i: f"word{i}" for i in range(WORDS)} | {place(token): token for token in spelled}
        for i, token in enumerate(spelled):
            p = distribution("".join(spelled[:i]))
            ids = [place(token), *(-p).argsort()[:top].tolist()]
            rows.append({n: float(np.log(p[n])) for n in ids} if begin or i else None)
        shown |= {} if join else {n: token.strip() for n, token in shown.items()}
        if style == "vllm":
            entries = [
                row and {str(n): {"logprob": v, "decoded_token": shown[n]} for n, v in row.items()} for row in rows
            ]
            found = {"prompt_logprobs": ([None] if begin else []) + entries, "logprobs": {"tokens": ["!"]}}
        elif style == "sglang" and body.get("echo"):
            tokens = (["<s>"] if begin else []) + [shown[place(token)] for token in spelled] + ["!"]
            rows = ([None] if begin else []) + rows + [{0: -1.0}]
            own = [row and next(iter(row.values())) for row in rows]
            tops = [row and {shown[n]: v for n, v in row.items()} for row in rows]
            found = {"logprobs": {"tokens": tokens, "token_logprobs": own, "top_logprobs": tops}}
        else:
            found = {}
        usage = {"prompt_tokens": len(rows), "completion_tokens": 1}
        return 200, {"choices": [{"text": "!", "finish_reason": "length"} | found], "usage": usage}

    return answer


TEXT = ("The cat sat, it", " was warm and fed.")


@pytest.mark.parametrize("style", ["vllm", "sglang"])
def test_scores_are_the_known_ones_and_bounds_bracket_the_entropy(script, style):
    script.answer = scoring(style)
    model = ServerLM(script.url, "m", vocabulary=WORDS, top_logprobs=5)
    found, started = model.score([ScoreRequest(*TEXT), ScoreRequest("", TEXT[1])])
    assert model.dialect == style
    for result, (context, continuation) in ((found, TEXT), (started, ("", TEXT[1]))):
        spelled, n = SPELLING.findall(context + continuation), len(SPELLING.findall(context))
        assert result.n_context == n + 1
        exact = [distribution("".join(spelled[:i])) for i in range(n, len(spelled))]
        assert result.logprob == pytest.approx([np.log(p[place(t)]) for p, t in zip(exact, spelled[n:])])
        known = [p[sorted({place(t), *(-p).argsort()[:5]})] for p, t in zip(exact, spelled[n:])]
        bounds = np.array([entropy_bounds(np.log(p), WORDS) for p in known])
        assert np.column_stack([result.entropy_low, result.entropy_high]) == pytest.approx(bounds)
        truth = np.array([entropy(p) for p in exact])
        assert (result.entropy_low <= truth + 1e-9).all()
        assert (result.entropy_high >= truth - 1e-9).all()
        assert (result.entropy_high - result.entropy_low > 0.01).any()
    whole = ServerLM(script.url, "m", vocabulary=WORDS, top_logprobs=WORDS).score([ScoreRequest(*TEXT)])[0]
    if style == "vllm":
        assert whole.entropy_low == pytest.approx(whole.entropy_high)
    inside = model.score([ScoreRequest("The ca", "t sat")])[0]
    # " cat" lies across the border.
    assert (inside.n_context, len(inside.logprob)) == (2, 2)
    nothing = model.score([ScoreRequest("The cat", "")])[0]
    assert (nothing.n_context, nothing.logprob.shape, nothing.entropy.shape) == (3, (0,), (0,))


def test_what_a_server_like_vllm_can_do_is_seen_once(script):
    script.answer = scoring("vllm")
    model = ServerLM(script.url, "m")
    assert model.caps == Caps(entropy="bounds", prefill=True, logprobs=True, chat=True)
    asked = len(script.seen)
    assert asked <= 6
    assert model.caps.chat
    assert len(script.seen) == asked
    assert model.facts()["version"] == "1.2"
    assert model.count("The cat sat") == 3
    assert model.truncate("The cat sat", 2) == "The cat"
    assert model.vocabulary == 2**19


def test_a_server_without_log_probabilities_cannot_score(script):
    script.answer = scoring("openai")
    model = ServerLM(script.url, "m")
    assert (model.dialect, model.caps.entropy) == ("openai", None)
    with pytest.raises(Unsupported, match="it cannot score"):
        model.score([ScoreRequest(*TEXT)])


@pytest.mark.parametrize("style", ["vllm", "sglang"])
def test_tokens_that_cannot_be_placed_or_have_no_probability_are_refused(script, style):
    script.answer = scoring(style, join=False)
    with pytest.raises(Unsupported, match="do not spell the text.*give tokenizer="):
        ServerLM(script.url, "m").score([ScoreRequest(*TEXT)])
    with pytest.raises(ModelError, match="is not that of the server"):
        ServerLM(script.url, "m", tokenizer=byte_tokenizer()).score([ScoreRequest(*TEXT)])
    script.answer = scoring(style, begin=False)
    model = ServerLM(script.url, "m", vocabulary=WORDS)
    assert model.score([ScoreRequest("The", " cat")])[0].n_context == 1
    with pytest.raises(Unsupported, match="no probability of the first token"):
        model.score([ScoreRequest("", "The cat")])


def test_bytes_of_one_character_are_placed_by_texts_or_by_the_tokenizer(script):
    def answer(pieces):
        rows = [{str(byte): {"logprob": -1.0, "decoded_token": piece}} for byte, piece in zip("aé".encode(), pieces)]
        return lambda path, body: (200, {"choices": [{"text": "", "prompt_logprobs": [None, *rows[1:]]}]})

    caps = Caps("bounds", prefill=True, logprobs=True, chat=True)
    # Either the last byte shows the whole character, or none does.
    for pieces, tokenizer in ((["a", "", "é"], None), (["a", "\ufffd", "\ufffd"], byte_tokenizer())):
        script.answer = answer(pieces)
        result = script.model(dialect="vllm", caps=caps, tokenizer=tokenizer).score([ScoreRequest("a", "é")])[0]
        assert (result.n_context, result.logprob.tolist()) == (1, [-1.0, -1.0])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=60), st.data())
def test_the_bounds_are_the_formula_and_bracket_the_entropy_of_any_distribution(logits, data):
    z = np.array(logits)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    known = data.draw(st.lists(st.sampled_from(range(len(p))), unique=True, min_size=1))
    low, high = entropy_bounds(np.log(p[known]), len(p))
    assert low - 1e-9 <= entropy(p) <= high + 1e-9
    r = max(0.0, 1 - p[known].sum())
    assert low == pytest.approx(entropy(p[known]) + entropy([r]), abs=1e-9)
    assert high - low == pytest.approx(r * math.log2(max(len(p) - len(known), 1)), abs=1e-9)


def test_bounds_of_nothing_everything_and_impossible_tokens():
    assert entropy_bounds([0.0], 50) == (0.0, 0.0)
    assert entropy_bounds(np.log([0.5, 0.5]), 2) == (1.0, 1.0)
    assert entropy_bounds([math.log(0.5), -9999.0], 4) == pytest.approx((1.0, 1.5))
    assert entropy_bounds([-math.inf], 5) == pytest.approx((0.0, 2.0))


def test_importing_loads_neither_torch_nor_the_client():
    code = "import sys, zfu_lib.lm.server; print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
