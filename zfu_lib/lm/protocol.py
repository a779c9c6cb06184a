"""The one way in which methods talk to language models: generate, score, count tokens, and what it cost.

Back ends are found in :mod:`zfu_lib.lm.models`: transformers (``hf:PATH-OR-ID``), any OpenAI-compatible server
(``http://host:port#model``), and the project's own small models (``tiny:NAME``). A method imports this module and no
back end, so it runs unchanged on each of them.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np


class ModelError(RuntimeError):
    """A language model that cannot be reached, loaded or used as asked; the message says what to do."""


class ContextOverflow(ModelError):
    """A request with more tokens than the model's context holds."""


class Unsupported(ModelError):
    """A request for something this back end cannot do (its :class:`Caps` say what it can)."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Caps:
    """What a back end can do.

    ``entropy``: ``exact`` (full distribution), ``bounds`` (top-k only) or None (no teacher forcing at all: ``score``
    raises :class:`Unsupported`). ``prefill``: the answer can be begun for the model. ``logprobs``: of generated tokens.
    ``chat``: has a chat template, so messages can be given.
    """

    entropy: Literal["exact", "bounds"] | None
    prefill: bool
    logprobs: bool
    chat: bool
    streaming: bool = True


@dataclass(frozen=True)
class GenRequest:
    """One text to be generated.

    ``prompt`` is plain text or the turns of a conversation (put into the model's chat template). ``prefill`` begins the
    answer; it is read, not generated, and is not part of the result's text. ``max_tokens`` bounds the generated tokens.
    Generation ends before the first of ``stop``. ``temperature`` 0 takes the most probable token; otherwise ``top_p``
    and ``top_k`` (0: all) restrict the sampling, which ``seed`` determines. ``logprobs`` asks for the log-probability
    of each generated token. ``thinking`` switches the thinking mode of a model that has one (None: its default).

    Raises:
        ValueError: a value out of range.
    """

    prompt: str | tuple[Message, ...]
    prefill: str = ""
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: bool = False
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", tuple(Message(*turn) for turn in self.prompt))
        object.__setattr__(self, "stop", tuple(self.stop))
        ranges = {
            "prompt": bool(self.prompt),
            "max_tokens": self.max_tokens >= 1,
            "stop": all(self.stop),
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
        }
        if wrong := [f"{name} = {getattr(self, name)!r}" for name, fine in ranges.items() if not fine]:
            raise ValueError(f"request out of range: {', '.join(wrong)}")


@dataclass(frozen=True)
class GenResult:
    """A generated text and what it took.

    ``n_prompt`` tokens were read (prompt and prefill), ``n_cached`` of them taken from a key-value cache, ``n_out``
    generated (an end token counts: it was computed). ``finish``: the model ended or met a stop string (``stop``), or
    ran out of tokens (``length``). ``logprobs``: natural logarithms, one per token of ``text``. ``seconds``: this
    request's share of the wall time of its batch. ``replayed``: taken from the disk cache; ``seconds`` is then what it
    took when it was computed.
    """

    text: str
    n_prompt: int
    n_out: int
    finish: Literal["stop", "length"]
    n_cached: int = 0
    logprobs: tuple[float, ...] | None = None
    seconds: float = 0.0
    replayed: bool = False


@dataclass(frozen=True)
class ScoreRequest:
    """Teacher forcing: how likely is ``continuation`` after ``context``? An empty context begins a text."""

    context: str
    continuation: str


@dataclass(frozen=True)
class ScoreResult:
    """For each of the n tokens of the continuation, given everything before it.

    ``logprob`` [n] natural logarithm of its probability; ``entropy_low``, ``entropy_high`` [n] bounds on the entropy
    (bits) of the distribution it was drawn from, equal where the back end sees the whole distribution. ``n_context``
    tokens were read before it, ``n_cached`` of all of them taken from a key-value cache.
    """

    logprob: np.ndarray
    entropy_low: np.ndarray
    entropy_high: np.ndarray
    n_context: int
    n_cached: int = 0
    seconds: float = 0.0
    replayed: bool = False

    @property
    def entropy(self) -> np.ndarray:
        """[n] bits; the middle of the bounds."""
        return (self.entropy_low + self.entropy_high) / 2


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model. Requests go in lists: a back end batches them and answers in their order.

    ``n_params`` enters the cost law (active parameters of a mixture of experts; without embeddings for the tiny
    models). ``identity`` tells two models apart that share a name: a hash of the weights, or server and model id.
    """

    name: str
    identity: str
    n_params: int
    context: int
    caps: Caps

    def count(self, text: str) -> int:
        """Tokens of ``text``, without special ones."""

    def truncate(self, text: str, n_tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``n_tokens`` tokens."""

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """Raises ContextOverflow, Unsupported, ModelError."""

    def stream(self, request: GenRequest) -> Iterator[str]:
        """The pieces of one generated text as they come; together they are ``generate([request])[0].text``."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Raises ContextOverflow, Unsupported, ModelError."""


@dataclass(frozen=True)
class Call:
    """What one request cost in tokens: ``n_read`` read and not cached, ``n_cached`` from a cache, ``n_out`` written."""

    model: str
    n_params: int
    kind: Literal["generate", "score"]
    n_read: int
    n_cached: int
    n_out: int
    seconds: float

    @property
    def flops(self) -> float:
        """2 N per token computed: every token read and not cached, and every token written."""
        return 2.0 * self.n_params * (self.n_read + self.n_out)


@dataclass
class Ledger:
    """What a series of requests cost, counted call by call.

    >>> ledger = Ledger()
    >>> results = ledger.generate(model, requests)      # doctest: +SKIP
    >>> ledger.flops(), ledger.tokens("written")        # doctest: +SKIP
    """

    calls: list[Call] = field(default_factory=list)

    def generate(self, model: LanguageModel, requests: Sequence[GenRequest]) -> list[GenResult]:
        """``model.generate`` with its cost entered."""
        results = model.generate(requests)
        self.calls += [
            Call(model.name, model.n_params, "generate", r.n_prompt - r.n_cached, r.n_cached, r.n_out, r.seconds)
            for r in results
        ]
        return results

    def score(self, model: LanguageModel, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """``model.score`` with its cost entered."""
        results = model.score(requests)
        self.calls += [
            Call(
                model.name,
                model.n_params,
                "score",
                r.n_context + len(r.logprob) - r.n_cached,
                r.n_cached,
                0,
                r.seconds,
            )
            for r in results
        ]
        return results

    def flops(self, model: str | None = None) -> float:
        """Floating-point operations of all calls, or of one model's."""
        return sum(call.flops for call in self._of(model))

    def seconds(self, model: str | None = None) -> float:
        """Wall time of all calls, or of one model's."""
        return sum(call.seconds for call in self._of(model))

    def tokens(self, which: Literal["read", "cached", "written"], model: str | None = None) -> int:
        """Tokens read (not cached), read from a cache, or written."""
        name = {"read": "n_read", "cached": "n_cached", "written": "n_out"}[which]
        return sum(getattr(call, name) for call in self._of(model))

    def by_model(self) -> dict[str, Ledger]:
        """One ledger per model, in the order of their first call."""
        parts: dict[str, Ledger] = defaultdict(Ledger)
        for call in self.calls:
            parts[call.model].calls.append(call)
        return dict(parts)

    def _of(self, model: str | None) -> Iterable[Call]:
        return (call for call in self.calls if model in (None, call.model))
