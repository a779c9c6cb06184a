"""A language model behind a server that speaks OpenAI's protocol: vLLM, SGLang, ``transformers serve``, hosted ones.

The ``openai`` client does the transport: it repeats a request after 408, 409, 429, 5xx, a lost connection or a
time-out. It waits as long as ``Retry-After`` says (two minutes at most), else 0.5 s, 1 s, 2 s ... 8 s less a random
part of up to a quarter.

Servers differ in what they add to the protocol. Four dialects are told apart, by what a request of one token returns:

``vllm``, ``sglang``
    take ``top_k``, ``chat_template_kwargs`` and ``continue_final_message``. Their default sampling comes from the
    checkpoint, so every request overrides it. Scoring: ``prompt_logprobs`` (vLLM), ``echo`` with ``logprobs`` (SGLang).
``transformers``
    ignores ``temperature`` unless the checkpoint samples by default, hence a ``generation_config`` with every request.
    It has one random generator for all requests, so those that sample go one by one. No log-probabilities at all.
``openai``
    anything else, with the fields of the protocol only.

Keys are read from the environment when the first request is made, and appear in no message, name or representation.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urldefrag, urlsplit

import numpy as np

from zfu_lib.lm.protocol import (
    Caps,
    ContextOverflow,
    GenRequest,
    GenResult,
    ModelError,
    ScoreRequest,
    ScoreResult,
    Unsupported,
)

Dialect = Literal["vllm", "sglang", "transformers", "openai"]
_R = TypeVar("_R", GenResult, ScoreResult)

# Larger than any vocabulary in use, so that the upper bound of the entropy stays one.
_VOCABULARY = 2**19
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
_TOO_LONG = re.compile(r"context[ _](length|window|size)|maximum (model|input) length|max_model_len", re.I)
_UNKNOWN_FIELD = re.compile(
    r"un(expected|known|recogni[sz]ed|supported)|extra (field|input)|not (permitted|supported)", re.I
)


class ServerLM:
    """One model of a server.

    Nothing is sent before the first request. What the server can do is then found out once, by at most five requests
    of one token, unless ``caps`` and ``dialect`` say it.

    Args:
        base_url: such as ``http://127.0.0.1:8000``; ``/v1`` is added where no path is given.
        model: the id under which the server has it.
        tokenizer: path, hub id or loaded tokenizer of the model. Without it tokens are counted by the server (vLLM),
            or not at all. One with a chat template lets an answer be begun on servers that cannot do it themselves.
        n_params: active parameters, for the cost law; 0: unknown, its calls then cost 0 FLOPs.
        context: tokens; None: what the server says (vLLM).
        vocabulary: tokens the model chooses from, for the upper bound of the entropy; None: the tokenizer's, else 2^19.
        top_logprobs: alternatives asked for at each scored token (vLLM allows 20 unless started with more).
        caps, dialect: what the server can do and how it is spoken to; None: found out.
        api_key_env: environment variable with the key; not set: no key.
        timeout: seconds without a byte from the server until a try is given up.
        retries: tries after the first.
        workers: requests under way at the same time.
        price_in, price_out: money per token read and written.

    Raises:
        ModelError: not a URL, or one that holds credentials.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        tokenizer: Any = None,
        n_params: int = 0,
        context: int | None = None,
        vocabulary: int | None = None,
        top_logprobs: int = 20,
        caps: Caps | None = None,
        dialect: Dialect | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
        retries: int = 3,
        workers: int = 8,
        price_in: float = 0.0,
        price_out: float = 0.0,
    ) -> None:
        self.base_url = _base(base_url)
        self.model = self.name = model
        self.n_params, self.price_in, self.price_out = n_params, price_in, price_out
        self.timeout, self.retries, self.workers = timeout, retries, workers
        self._tokenizer_or_path, self._top, self._key_name = tokenizer, top_logprobs, api_key_env
        # What is given takes the place of the property that would find it out.
        given = {"context": context, "vocabulary": vocabulary, "caps": caps, "dialect": dialect}
        self.__dict__ |= {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_url(cls, url: str, **options: Any) -> ServerLM:
        """``http://host:port#model``; without ``#model`` the only model of the server.

        Raises:
            ModelError: as the class, and: no model named where the server has not exactly one.
        """
        base, model = urldefrag(url)
        found = cls(base, model, **options)
        if model:
            return found
        if len(names := found.models()) != 1:
            listed = f"it lists {', '.join(names)}" if names else "it lists none"
            raise ModelError(f"which model of {found.base_url}? Write {base}#MODEL; {listed}")
        return cls(base, names[0], **options)

    def __repr__(self) -> str:
        return f"ServerLM({self.base_url!r}, {self.model!r})"

    def models(self) -> list[str]:
        """Ids of the server's models; empty where it does not list them."""
        return [str(model["id"]) for model in self._listed]

    def facts(self) -> dict[str, Any]:
        """What a run should record of the server: URL, model, dialect, capabilities, version (vLLM)."""
        version = self._try(f"{self._root}/version", None).get("version")
        return {
            "url": self.base_url,
            "model": self.model,
            "dialect": self.dialect,
            "caps": self.caps,
            "version": version,
        }

    @cached_property
    def identity(self) -> str:
        """Server and model, and what the bounds on the entropy depend on."""
        return f"{self.base_url}#{self.model}; entropy from {self._top} of {self.vocabulary} tokens"

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that the model chooses from, as far as is known."""
        return len(self._tokenizer) if self._tokenizer is not None else _VOCABULARY

    @cached_property
    def context(self) -> int:
        """Tokens that the model reads and writes in one request."""
        for model in self._listed:
            if model["id"] == self.model and model.get("max_model_len"):
                return int(model["max_model_len"])
        raise ModelError(f"{self.base_url} does not say how long the context of {self.model} is: give context=")

    @cached_property
    def dialect(self) -> Dialect:
        """Which server this is, by what it answers."""
        answer = self._try("/completions", _PROBE | {"prompt_logprobs": 1})
        if "Unexpected fields in the request" in answer.get("refused", ""):
            return "transformers"
        if any(choice.get("prompt_logprobs") for choice in answer.get("choices", ())):
            return "vllm"
        owners = {model.get("owned_by") for model in self._listed if model["id"] == self.model}
        return next((known for known in ("vllm", "sglang") if known in owners), "openai")

    @cached_property
    def caps(self) -> Caps:
        """What the server was seen to do."""
        plain = self._try("/completions", _PROBE | {"echo": True, "logprobs": 1})
        chat = self._try("/chat/completions", _PROBE_CHAT | {"logprobs": True})
        echoed = any(len((c.get("logprobs") or {}).get("tokens", ())) > 1 for c in plain.get("choices", ()))
        can_chat, can_complete = "choices" in chat, "choices" in plain
        begun = self._continues or (can_complete and (self._has_template or not can_chat))
        return Caps(
            entropy="bounds" if echoed or self.dialect == "vllm" else None,
            prefill=begun,
            logprobs=any(choice.get("logprobs") for choice in (chat if can_chat else plain).get("choices", ())),
            chat=can_chat,
        )

    def count(self, text: str) -> int:
        """Tokens of ``text``, without special ones.

        Raises:
            Unsupported: no tokenizer was given and the server does not count.
        """
        if self._tokenizer is not None:
            return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        answer = self._try(f"{self._root}/tokenize", asked)
        if "count" not in answer:
            raise Unsupported(f"{self.base_url} does not count tokens: give tokenizer=, a path or hub id")
        return int(answer["count"])

    def truncate(self, text: str, n_tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``n_tokens`` tokens, by halving: log2(length) counts.

        Raises:
            Unsupported: as :meth:`count`.
        """
        lengths = range(len(text) + 1)
        return text[: bisect_right(lengths, n_tokens, key=lambda length: self.count(text[:length])) - 1]

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """Texts in the order of the requests, with the server's own counts of tokens.

        Thinking that the server returns apart is put back in front of the answer, between ``<think>`` and ``</think>``.
        Half a character at the end of a text is dropped.

        Raises:
            ContextOverflow: the server says so, or its count of the prompt and ``max_tokens`` exceed the ``context``
                that was given (``transformers serve`` does not check).
            Unsupported: a setting that this server does not take, or ``thinking`` with plain text.
            ModelError: no server, no answer in time, a refusal, or an answer that is not OpenAI's format.
        """
        alone = self.dialect == "transformers" and any(request.temperature > 0 for request in requests)
        return self._each(self._generate, requests, 1 if alone else self.workers)

    def stream(self, request: GenRequest) -> Iterator[str]:
        """The pieces of the text of :meth:`generate`.

        Raises:
            ModelError: as :meth:`generate`, and: the server ended the stream without saying that the text has ended.
        """
        from openai import Stream

        path, body = self._body(request)
        with self._explained():
            events = self._client.post(
                path, cast_to=object, body=body | {"stream": True}, stream=True, stream_cls=Stream[object]
            )
            with events:
                for piece in _until(_tagged(self._deltas(events)), request.stop):
                    if piece:
                        yield piece

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Teacher forcing from the log-probabilities of a prompt, with bounds on the entropy from the top ones.

        A token that lies across the border of context and continuation belongs to the continuation.

        Raises:
            Unsupported: a server without log-probabilities of prompts; no probability for the first token of a text;
                or tokens whose place in the text cannot be found without ``tokenizer``.
            ContextOverflow, ModelError: as :meth:`generate`.
        """
        if self.caps.entropy is None:
            raise Unsupported(
                f"{self.base_url} gives no log-probabilities of a prompt, so it cannot score: "
                "serve the model with vLLM, or load it here (hf:PATH)"
            )
        return self._each(self._score, requests, self.workers)

    # The connection.

    @property
    def _root(self) -> str:
        return self.base_url.removesuffix("/v1")

    @cached_property
    def _client(self) -> Any:
        import openai

        host = urlsplit(self.base_url).hostname or ""
        # A proxy set for the outside world cannot reach a server on this machine.
        direct = host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self._key_name) or "none",
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 5.0)),
            max_retries=self.retries,
            http_client=openai.DefaultHttpxClient(trust_env=False) if direct else None,
        )

    @cached_property
    def _listed(self) -> list[dict[str, Any]]:
        import openai

        with self._explained():
            try:
                return [model | {"id": model["id"]} for model in self._client.get("/models", cast_to=object)["data"]]
            except openai.APIStatusError as error:
                if error.status_code in (401, 403, 429):
                    raise
                return []

    @cached_property
    def _tokenizer(self) -> Any:
        if not isinstance(self._tokenizer_or_path, str | os.PathLike):
            return self._tokenizer_or_path
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._tokenizer_or_path)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer {self._tokenizer_or_path}: {error}") from None

    @property
    def _has_template(self) -> bool:
        return getattr(self._tokenizer, "chat_template", None) is not None

    @cached_property
    def _continues(self) -> bool:
        """Whether the chat route goes on with a begun answer: it then reads fewer tokens than of an ended one."""
        if "caps" in self.__dict__:
            return self.caps.prefill
        begun = _PROBE_CHAT | {"messages": [*_PROBE_CHAT["messages"], {"role": "assistant", "content": "b"}]}
        read = []
        for extras in (_CONTINUE, {}):
            answer = self._try("/chat/completions", begun | extras)
            read.append((answer.get("usage") or {}).get("prompt_tokens"))
            if read[-1] is None:
                return False
        return read[0] < read[1]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._explained():
            answer = self._client.post(path, cast_to=object, body=body)
            if not isinstance(answer, dict):
                raise TypeError(f"{str(answer)[:100]!r}")
            return answer

    def _try(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The answer (GET where there is no body), or ``{"refused": what it said}`` where the server cannot do it."""
        import openai

        with self._explained():
            try:
                if body is None:
                    answer = self._client.get(path, cast_to=object)
                else:
                    answer = self._client.post(path, cast_to=object, body={"model": self.model} | body)
            except openai.APIStatusError as error:
                if error.status_code not in (400, 404, 405, 422, 500, 501) or self._other_models(error):
                    raise
                return {"refused": self._said(error)}
        return answer if isinstance(answer, dict) else {"refused": "not JSON"}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the transport and of the format as ModelErrors that say what to do."""
        import openai

        tries = f"at most {self.retries + 1} tries"
        try:
            yield
        except openai.APITimeoutError:
            message = f"{self.base_url} sent nothing for {self.timeout:g} s ({tries}): raise timeout= or lower workers="
            raise ModelError(message) from None
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ != "ConnectError":
                raise ModelError(f"{self.base_url} broke off: {self._safe(error.__cause__ or error)}") from None
            raise ModelError(
                f"no answer from {self.base_url} ({tries}; {self._safe(error.__cause__)}). "
                f"Start a server there, such as `vllm serve {self.model or 'MODEL'}` or "
                f"`transformers serve {self.model or 'MODEL'}`, or correct the URL"
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal(error, tries) from None
        except openai.APIError as error:
            raise ModelError(f"{self.base_url} broke off: {self._said(error)}") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = self._safe(f"{type(error).__name__}: {error}")
            raise ModelError(f"{self.base_url} sent something that is not OpenAI's format ({what})") from None

    def _refusal(self, error: Any, tries: str) -> ModelError:
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            state = "holds one that is not accepted" if os.environ.get(self._key_name) else "is not set"
            return ModelError(f"{self.base_url} asks for a key ({status}); the variable {self._key_name} {state}")
        if status == 413 or error.code == "context_length_exceeded" or (status == 400 and _TOO_LONG.search(said)):
            return ContextOverflow(f"too long for {self.model}: {said}")
        if names := self._other_models(error):
            return ModelError(f"{self.base_url} has no model {self.model!r}; it has {', '.join(names)}")
        if status in (404, 405, 501):
            return Unsupported(f"{self.base_url} cannot do this ({status}): {said}")
        if status in (400, 422) and _UNKNOWN_FIELD.search(said):
            return Unsupported(f"{self.base_url} does not take this request ({status}): {said}")
        after = f" after {tries}" if status == 429 or status >= 500 else ""
        return ModelError(f"{self.base_url} refused{after} ({status}): {said}")

    def _other_models(self, error: Any) -> list[str]:
        """The server's models, if it refused because this model is not one of them."""
        if error.status_code != 404 or self.model not in self._said(error):
            return []
        try:
            names = self.models()
        except ModelError:
            return []
        return [] if self.model in names else names

    def _said(self, error: Any) -> str:
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        return self._safe(body or error.message)

    def _safe(self, text: Any) -> str:
        """At most 300 characters, without the key if the server repeated it."""
        key = os.environ.get(self._key_name)
        return (str(text).replace(key, "***") if key else str(text))[:300]

    def _each(self, do: Callable[[Any], _R], requests: Sequence[Any], workers: int) -> list[_R]:
        """Results in order; the wall time is shared in proportion to how long each request took by itself."""
        if not requests:
            return []
        begin = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(do, requests))
        share = (time.perf_counter() - begin) / sum(result.seconds for result in results)
        return [replace(result, seconds=result.seconds * share) for result in results]

    # Generation.

    def _body(self, request: GenRequest) -> tuple[str, dict[str, Any]]:
        """Route and body of a request, in the server's dialect."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if self.dialect in ("vllm", "sglang"):
            body |= {"top_k": request.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        elif self.dialect == "transformers":
            settings = {"do_sample": request.temperature > 0, "top_k": request.top_k, "repetition_penalty": 1.0}
            body["generation_config"] = json.dumps(settings)
        elif request.top_k:
            raise Unsupported(f"{self.base_url} has no top_k")
        template = {} if request.thinking is None else {"enable_thinking": request.thinking}
        prompt: Any = request.prompt
        if template and isinstance(prompt, str):
            raise Unsupported("thinking is a switch of the chat template: give the prompt as messages")
        if not isinstance(prompt, str):
            messages = [turn._asdict() for turn in prompt]
            if not request.prefill or self._continues:
                if request.prefill:
                    body |= _CONTINUE
                    messages.append({"role": "assistant", "content": request.prefill})
                if template:
                    body["chat_template_kwargs"] = template
                if request.logprobs:
                    body["logprobs"] = True
                return "/chat/completions", body | {"messages": messages}
            if not self._has_template:
                raise Unsupported(
                    f"{self.base_url} cannot go on with a begun answer (prefill): serve the model with vLLM, or give "
                    "tokenizer=, whose chat template then writes the prompt"
                )
            template["add_generation_prompt"] = True
            prompt = self._tokenizer.apply_chat_template(messages, tokenize=False, **template)
            if self._tokenizer("")["input_ids"]:
                # The server's tokenizer begins every text with this token; the template has written it already.
                prompt = prompt.removeprefix(self._tokenizer.bos_token or "")
        if request.logprobs:
            body["logprobs"] = 1
        return "/completions", body | {"prompt": prompt + request.prefill}

    def _generate(self, request: GenRequest) -> GenResult:
        begin = time.perf_counter()
        path, body = self._body(request)
        answer = self._post(path, body)
        with self._explained():
            choice = answer["choices"][0]
            finish = choice.get("finish_reason")
            delta = choice["message"] if "messages" in body else {"text": choice["text"]}
            pieces = list(_until(_tagged([(delta, finish)]), request.stop))
            text, cut = "".join(piece for piece in pieces if piece is not None), None in pieces
            usage = answer.get("usage") or {}
            read = body["prompt"] if "prompt" in body else "".join(turn["content"] for turn in body["messages"])
            result = GenResult(
                text=text,
                n_prompt=_first_int(usage.get("prompt_tokens"), lambda: self.count(read)),
                n_out=_first_int(usage.get("completion_tokens"), lambda: self.count(text)),
                finish="length" if finish == "length" and not cut else "stop",
                n_cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
                logprobs=self._token_logprobs(choice, text) if request.logprobs else None,
                seconds=time.perf_counter() - begin,
            )
        if (needed := result.n_prompt + request.max_tokens) > self.__dict__.get("context", needed):
            raise ContextOverflow(
                f"{result.n_prompt} tokens to read and {request.max_tokens} to write, but the context of {self.name} "
                f"holds {self.context}; shorten the text (truncate) or lower max_tokens"
            )
        return result

    def _token_logprobs(self, choice: dict[str, Any], text: str) -> tuple[float, ...]:
        """Of the tokens that begin within ``text``: neither an end token nor what was cut off with a stop string."""
        found = choice.get("logprobs")
        if not found:
            raise Unsupported(f"{self.base_url} gives no log-probabilities of generated tokens")
        if "content" in found:
            pairs = [(t.get("bytes") or t["token"].encode(), t["logprob"]) for t in found["content"]]
        else:
            pairs = [(token.encode(), value) for token, value in zip(found["tokens"], found["token_logprobs"])]
        starts = [0, *accumulate(len(token) for token, _ in pairs)]
        return tuple(float(value) for start, (_, value) in zip(starts, pairs) if start < len(text.encode()))

    def _deltas(self, events: Iterable[Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
        """What each event of a stream adds."""
        finish = None
        for event in events:
            for choice in event["choices"][:1]:
                finish = choice.get("finish_reason") or finish
                yield choice.get("delta") or choice, finish
        if finish is None:
            raise ModelError(f"{self.base_url} ended the stream in the middle of a text")

    # Scoring.

    def _score(self, request: ScoreRequest) -> ScoreResult:
        begin = time.perf_counter()
        text, border = request.context + request.continuation, len(request.context)
        in_vllm = self.dialect == "vllm"
        asked = {"prompt_logprobs": self._top} if in_vllm else {"echo": True, "logprobs": self._top}
        body = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0.0}
        answer = self._post("/completions", body | asked)
        with self._explained():
            usage = answer.get("usage") or {}
            if in_vllm:
                tokens = [_vllm_token(row) for row in answer["choices"][0]["prompt_logprobs"]]
            else:
                found = answer["choices"][0]["logprobs"]
                rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"])
                tokens = [_echo_token(*row) for row in rows][: -(usage.get("completion_tokens") or 1)]
            ends = self._ends(text, tokens)
            # A token without length is the first bytes of a character whose last token shows it.
            inside = [end > border or (end == border and i > 0 and end == ends[i - 1]) for i, end in enumerate(ends)]
            first = inside.index(True) if True in inside else len(tokens)
            values = [token[2] for token in tokens[first:]]
            if any(not value for value in values):
                raise Unsupported(
                    f"{self.base_url} gives no probability of the first token of a text: "
                    "begin the context with the model's token for that"
                )
            bounds = np.array([entropy_bounds(value, self.vocabulary) for value in values]).reshape(-1, 2)
            return ScoreResult(
                logprob=np.array([value[0] for value in values], dtype=float),
                entropy_low=bounds[:, 0],
                entropy_high=bounds[:, 1],
                n_context=first,
                n_cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
                seconds=time.perf_counter() - begin,
            )

    def _ends(self, text: str, tokens: list[tuple[int | None, str | None, list[float]]]) -> list[int]:
        """Where in ``text`` each token ends, by the tokens' own texts, or by the tokenizer where these do not add up.

        The first token is the begin-of-text token, which has no length, or what the others leave of the text.
        """
        rest = [piece or "" for _, piece, _ in tokens[1:]]
        begin = len(text) - sum(map(len, rest))
        if begin >= 0 and text[begin:] == "".join(rest):
            return list(accumulate(map(len, rest), initial=begin))
        if self._tokenizer is None:
            raise Unsupported(
                f"the tokens of {self.base_url} do not spell the text, so the continuation cannot be found among them: "
                "give tokenizer=, a path or hub id"
            )
        local = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = [token for token, _, _ in tokens]
        if len(ids) != len(local["input_ids"]) or any(a not in (b, None) for a, b in zip(ids, local["input_ids"])):
            raise ModelError(f"the tokenizer given for {self.model} is not that of the server")
        return [end for _, end in local["offset_mapping"]]


@contextmanager
def serving(folder: Path, *, patience: float = 180.0) -> Iterator[str]:
    """The checkpoint of a folder behind a ``transformers serve`` process on a free port of this machine, in float32.

    Yields ``http://127.0.0.1:PORT#NAME``; the process ends with the context.

    Args:
        patience: seconds to wait for the server.

    Raises:
        ModelError: it ended or did not answer in time; the message has the last line that it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder.name]
    command = [*serve, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with tempfile.TemporaryDirectory() as home, open(Path(home) / "log", "w+") as log:
        quiet = os.environ | {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        (Path(home) / "hub").mkdir()
        options = {"cwd": folder.parent, "env": quiet, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen(command, **options)
        try:
            end = time.monotonic() + patience
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    said = (log.read().strip().splitlines() or ["nothing"])[-1]
                    raise ModelError(
                        f"transformers serve does not answer; it said last: {said[:300]}. "
                        "It needs transformers[serving] (fastapi, uvicorn)"
                    )
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}#{folder.name}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def entropy_bounds(logprobs: Sequence[float], vocabulary: int) -> tuple[float, float]:
    """Bounds (bits) on the entropy of a distribution of which only some probabilities are known.

    With p_1..p_k known and the rest r = 1 - sum p: the entropy is lowest when one token has all of r, highest when the
    V - k others share it evenly: -sum p log2 p - r log2 r, and r log2(V - k) more.

    Args:
        logprobs: natural logarithms of the k known probabilities.
        vocabulary: V, the number of tokens.
    """
    p = np.exp(np.asarray(logprobs, dtype=float))
    r = max(0.0, 1.0 - float(p.sum()))
    known = np.append(p, r)
    known = known[known > 0]
    low = max(0.0, float(-(known * np.log2(known)).sum()))
    return low, low + r * float(np.log2(max(vocabulary - len(p), 1)))


_PROBE = {"prompt": "a b", "max_tokens": 1, "temperature": 0.0}
_PROBE_CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "temperature": 0.0}


def _base(url: str) -> str:
    url = urldefrag(url).url
    if "@" in url or "?" in url:
        raise ModelError("the URL of a server may hold no credentials and no query: keys come from the environment")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ModelError(f"{url!r} is not the URL of a server: write it like http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _first_int(value: Any, otherwise: Callable[[], int]) -> int:
    return otherwise() if value is None else int(value)


def _tagged(deltas: Iterable[tuple[dict[str, Any], str | None]]) -> Iterator[str]:
    """The text of the deltas, with thinking that came apart put between tags again."""
    thinking = False
    for delta, finish in deltas:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        said = delta.get("content") or delta.get("text")
        if thought:
            yield thought if thinking else f"<think>{thought}"
            thinking = True
        if thinking and (said or finish == "stop"):
            yield "</think>"
            thinking = False
        if said:
            yield said


def _until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str | None]:
    """The text before the stop string that is complete first, then None if there was one.

    What could be the beginning of a stop string is held back, and so is half a character, which the end then drops.
    """
    held = ""
    for piece in pieces:
        held += piece
        if ends := [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]:
            yield held[: min(ends)[1]].rstrip("\ufffd")
            yield None
            return
        keep = max((n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])), default=0)
        sure = held[: len(held) - keep].rstrip("\ufffd")
        if sure:
            yield sure
        held = held[len(sure) :]
    if rest := held.rstrip("\ufffd"):
        yield rest


# A token of a prompt: id where known, text, and natural logarithms of probabilities at its place, its own first.


def _vllm_token(row: dict[str, dict[str, Any]] | None) -> tuple[int | None, str | None, list[float]]:
    if row is None:
        return None, None, []
    # The token of the prompt comes first, then the most probable ones (without it, if it is one of them).
    token = next(iter(row))
    return int(token), row[token].get("decoded_token"), [float(entry["logprob"]) for entry in row.values()]


def _echo_token(
    text: str, logprob: float | None, top: dict[str, float] | None
) -> tuple[int | None, str | None, list[float]]:
    if logprob is None:
        return None, text, []
    return None, text, [float(logprob), *(float(value) for other, value in (top or {}).items() if other != text)]
