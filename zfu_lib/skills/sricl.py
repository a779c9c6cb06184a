"""SRICL: semantic retrieval, in-context learning, fine-tuning and a verifier around one language model.

*Job Skill Extraction via LLM-Centric Multi-Module Framework* (arXiv 2604.21525). For a sentence x:

1. an optional gate decides whether x has a skill at all;
2. annotated sentences near x become demonstrations, entries of a taxonomy near x definitions (:class:`Store`,
   :class:`Definitions`);
3. they are put into a prompt (:mod:`zfu_lib.skills.prompts`) and the model copies x with markers around each skill;
4. a deterministic verifier accepts the answer or says what is wrong (:mod:`zfu_lib.skills.verifier`), and the model is
   asked again with that, at most R times;
5. an optional second pass lets the model propose minimal corrections.

:func:`extract` is the whole loop. The defaults are the paper's where they are known (three demonstrations, three
definitions with cosine at least 0.6, two retries, temperature 0). Repairs and salvage are this book's and off.

Shape letters: N annotated sentences, D width of their vectors, Q sentences asked about.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from zfu_lib.lm.protocol import GenRequest, LanguageModel, Ledger, Message
from zfu_lib.retrieval import BM25, Dense, Found, fuse
from zfu_lib.skills import prompts, shape
from zfu_lib.skills.markers import MARKERS, Markers, encode
from zfu_lib.skills.prompts import Context, Style, Task
from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import Checked, feedback, repair, salvage, verify


@dataclass(frozen=True)
class Config:
    """Which modules are on.

    ``k_demos`` and ``k_definitions`` are how much is retrieved (0: nothing), ``least`` the score below which a
    definition is dropped. ``retries`` is R (the authors' ablation A1 sets it to 0). ``verify`` False takes any answer
    as far as it can be read. ``explain`` False asks again without saying what was wrong. ``gate``: ``soft`` lets a
    sentence that the gate calls empty go to the second pass, ``hard`` stops there. ``normalise`` applies connector
    normalisation to the result. ``temperature`` is that of retries too.

    Raises:
        ValueError: a number out of range.
    """

    k_demos: int = 3
    k_definitions: int = 3
    least: float = 0.6
    retries: int = 2
    verify: bool = True
    explain: bool = True
    repair: bool = False
    salvage: bool = False
    normalise: bool = False
    gate: Literal["none", "soft", "hard"] = "none"
    threshold: float = 0.5
    check: Literal["none", "balanced", "high"] = "none"
    markers: Markers = MARKERS
    style: Style = "chat"
    max_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        numbers = {
            "k_demos": self.k_demos >= 0,
            "k_definitions": self.k_definitions >= 0,
            "retries": self.retries >= 0,
            "threshold": 0 <= self.threshold <= 1,
            "max_tokens": self.max_tokens >= 1,
        }
        if wrong := [f"{name} = {getattr(self, name)!r}" for name, fine in numbers.items() if not fine]:
            raise ValueError(f"configuration out of range: {', '.join(wrong)}")


# Step 2: semantic retrieval.


def anchored(sentence: Sentence) -> str:
    """The text with each skill between ``[SKILL]`` and ``[/SKILL]``: what the demonstrations are indexed by."""
    words = list(sentence.tokens)
    for span in sentence.spans:
        words[span.start] = f"[SKILL] {words[span.start]}"
        words[span.end - 1] = f"{words[span.end - 1]} [/SKILL]"
    return " ".join(words)


def skill_phrases(sentence: Sentence) -> str:
    """The skills of a sentence alone, or its text where it has none."""
    return " ; ".join(sentence.words(span) for span in sentence.spans) or sentence.text


def normal(text: str) -> str:
    """A text without case, white space and digits: two ads with the same boilerplate have the same one."""
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()


class Store:
    """Annotated sentences to demonstrate with.

    The similarity of a query is α times its cosine to the anchored text plus (1-α) times that to the skill phrases;
    ``alpha`` 1 is the mode *anchor*, 0 *phrase*. Without vectors only ``bm25`` and ``random`` can be asked for.

    Args:
        sentences: N annotated sentences.
        anchors_ND: vectors of :func:`anchored` texts, length one.
        phrases_ND: vectors of :func:`skill_phrases`, length one; None leaves that part out.

    Raises:
        ValueError: numbers of sentences and vectors that differ, or alpha outside 0..1.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        anchors_ND: np.ndarray | None = None,
        phrases_ND: np.ndarray | None = None,
        *,
        alpha: float = 0.7,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha = {alpha} is not between 0 and 1")
        for vectors in (anchors_ND, phrases_ND):
            if vectors is not None and len(vectors) != len(sentences):
                raise ValueError(f"{len(sentences)} sentences and {len(vectors)} vectors")
        self.sentences = list(sentences)
        self._bm25 = BM25([sentence.text for sentence in sentences])
        mixed = anchors_ND
        if anchors_ND is not None and phrases_ND is not None:
            mixed = alpha * anchors_ND + (1 - alpha) * phrases_ND
        # The mixture is linear in the query, so one inner product gives it.
        self._dense = None if mixed is None else Dense(mixed, cosine=False)
        self._alike: dict[tuple[str, str], set[int]] = defaultdict(set)
        for i, sentence in enumerate(sentences):
            for key in _identity(sentence):
                self._alike[key].add(i)

    def excluded(self, sentence: Sentence) -> set[int]:
        """What must not be shown for a sentence: itself, its normalised text, its posting (leave-one-out)."""
        return set().union(*(self._alike.get(key, ()) for key in _identity(sentence)))

    def near(
        self,
        sentences: Sequence[Sentence],
        k: int,
        *,
        by: Literal["dense", "bm25", "fused", "random"] = "dense",
        vectors_QD: np.ndarray | None = None,
        seed: int = 0,
    ) -> list[list[tuple[Sentence, float]]]:
        """The ``k`` most similar annotated sentences of each, best first, with scores; leave-one-out always.

        Args:
            vectors_QD: of the sentences, length one; for ``dense`` and ``fused``.
            seed: for ``random``.

        Raises:
            ValueError: vectors are missing here or in the store.
        """
        exclude = [self.excluded(sentence) for sentence in sentences]
        if by == "random":
            found = self._random(exclude, k, seed)
        else:
            if by != "bm25" and (vectors_QD is None or self._dense is None):
                raise ValueError(f"retrieval by {by!r} needs vectors of the store and of the sentences")
            rankings = []
            if by in ("dense", "fused"):
                rankings.append(self._dense.search(vectors_QD, k, exclude=exclude))
            if by in ("bm25", "fused"):
                rankings.append(self._bm25.search([s.text for s in sentences], k, exclude=exclude))
            found = fuse(rankings, k) if by == "fused" else rankings[0]
        return [[(self.sentences[i], score) for i, score in row] for row in found.lists()]

    def _random(self, exclude: Sequence[Collection[int]], k: int, seed: int) -> Found:
        rng = np.random.default_rng(seed)
        index = np.full((len(exclude), k), -1, np.int64)
        for q, banned in enumerate(exclude):
            free = np.setdiff1d(np.arange(len(self.sentences)), list(banned))
            chosen = rng.permutation(free)[:k]
            index[q, : len(chosen)] = chosen
        return Found(index, np.where(index >= 0, 0.0, -np.inf).astype(np.float32))


def _identity(sentence: Sentence) -> list[tuple[str, str]]:
    posting = sentence.meta.get("posting")
    keys = [("text", normal(sentence.text)), ("id", sentence.id), ("posting", str(posting) if posting else "")]
    return [key for key in keys if key[1]]


class Definitions:
    """Entries of a taxonomy: labels with definitions, found by the cosine of ``label: definition``, or by BM25.

    Raises:
        ValueError: numbers of entries and vectors that differ.
    """

    def __init__(self, entries: Sequence[tuple[str, str]], vectors_ND: np.ndarray | None = None) -> None:
        if vectors_ND is not None and len(vectors_ND) != len(entries):
            raise ValueError(f"{len(entries)} entries and {len(vectors_ND)} vectors")
        self.entries = [tuple(entry) for entry in entries]
        self._bm25 = BM25([f"{label} {definition}" for label, definition in self.entries])
        self._dense = None if vectors_ND is None else Dense(vectors_ND)

    def near(
        self, sentences: Sequence[Sentence], k: int, *, least: float = 0.6, vectors_QD: np.ndarray | None = None
    ) -> list[list[tuple[tuple[str, str], float]]]:
        """The ``k`` nearest entries of each sentence whose cosine is at least ``least``; by BM25 without vectors
        (then ``least`` is a BM25 score)."""
        if vectors_QD is None or self._dense is None:
            found = self._bm25.search([sentence.text for sentence in sentences], k)
        else:
            found = self._dense.search(vectors_QD, k)
        return [[(self.entries[i], score) for i, score in row] for row in found.lists(least)]


# The whole loop.


class Attempt(NamedTuple):
    """One answer of the model and what the verifier says of it."""

    raw: str
    checked: Checked


@dataclass
class Outcome:
    """What became of one sentence.

    ``spans`` is None where every attempt failed: a failure is scored as an empty prediction, never left out.
    """

    sentence: Sentence
    spans: tuple[Span, ...] | None = None
    status: Literal["open", "ok", "repaired", "failed", "salvaged", "gated"] = "open"
    attempts: list[Attempt] = field(default_factory=list)
    context: Context = Context()
    reviewed: bool = False

    @property
    def first(self) -> Checked | None:
        """The verifier's finding on the first answer; None if the gate stopped the sentence."""
        return self.attempts[0].checked if self.attempts else None


def extract(
    model: LanguageModel,
    sentences: Sequence[Sentence],
    task: Task,
    config: Config = Config(),
    *,
    contexts: Sequence[Context] | None = None,
    gate: Callable[[Sequence[Sentence]], np.ndarray] | None = None,
    known: Collection[str] = (),
    ledger: Ledger | None = None,
) -> list[Outcome]:
    """Mark the skills of ``sentences`` (their own spans are not looked at): section 3.6, all sentences in one batch.

    Args:
        contexts: what was retrieved for each sentence (None: nothing); see :func:`retrieve`.
        gate: probability that each sentence has a skill; needed unless ``config.gate`` is ``none``.
        known: skills that stand alone (:func:`~zfu_lib.skills.shape.lexicon`), for connector normalisation.
        ledger: counts the cost of every call.

    Raises:
        ValueError: contexts that do not match, or a gate that is asked for and missing.
    """
    if contexts is not None and len(contexts) != len(sentences):
        raise ValueError(f"{len(sentences)} sentences and {len(contexts)} contexts")
    if config.gate != "none" and gate is None:
        raise ValueError(f"gate = {config.gate!r} needs a function that gives probabilities")
    ledger = ledger if ledger is not None else Ledger()
    outcomes = [
        Outcome(sentence.with_spans(()), context=context)
        for sentence, context in zip(sentences, contexts or [Context()] * len(sentences), strict=True)
    ]
    if config.gate != "none":
        for outcome, chance in zip(outcomes, gate([outcome.sentence for outcome in outcomes]), strict=True):
            if chance < config.threshold:
                outcome.spans, outcome.status = (), "gated"
    markers = [_markers(outcome, task, config) for outcome in outcomes]
    turns = {
        i: prompts.ask(outcome.sentence, task, outcome.context, markers[i], config.style)
        for i, outcome in enumerate(outcomes)
        if outcome.status == "open"
    }
    for attempt in range(1 + (config.retries if config.verify else 0)):
        if not turns:
            break
        answers = ledger.generate(model, [_request(t, config, attempt) for t in turns.values()])
        for i, found in zip(list(turns), answers, strict=True):
            outcome = outcomes[i]
            if _accepted(outcome, found.text, task, config, markers[i]):
                del turns[i]
            elif attempt < config.retries:
                said = feedback(outcome.sentence, outcome.attempts[-1].checked, markers[i])
                if config.style == "plain":
                    said = " ".join(outcome.attempts[-1].checked.codes)
                if config.explain:
                    turns[i] = prompts.again(turns[i], found.text, said, config.style, keep=outcome.sentence.text)
    for outcome, own in zip(outcomes, markers, strict=True):
        if outcome.status == "open":
            outcome.status = "failed"
            if config.salvage:
                outcome.spans = salvage(outcome.sentence, outcome.attempts[-1].raw, own, types=task.types)
                outcome.status = "salvaged"
    if config.check != "none":
        _second_pass(model, outcomes, markers, task, config, ledger)
    if config.normalise:
        for outcome in outcomes:
            if outcome.spans:
                outcome.spans = shape.normalise(outcome.sentence, outcome.spans, known)
    return outcomes


def retrieve(
    sentences: Sequence[Sentence],
    config: Config,
    *,
    store: Store | None = None,
    definitions: Definitions | None = None,
    vectors_QD: np.ndarray | None = None,
    by: Literal["dense", "bm25", "fused", "random"] = "dense",
    seed: int = 0,
) -> list[Context]:
    """Demonstrations and definitions of each sentence, as many as the configuration asks for."""
    demos: list[list] = [[] for _ in sentences]
    known: list[list] = [[] for _ in sentences]
    if store is not None and config.k_demos:
        demos = store.near(sentences, config.k_demos, by=by, vectors_QD=vectors_QD, seed=seed)
    if definitions is not None and config.k_definitions:
        known = definitions.near(sentences, config.k_definitions, least=config.least, vectors_QD=vectors_QD)
    return [
        Context(tuple(demo for demo, _ in reversed(a)), tuple(entry for entry, _ in b))  # the nearest stands last
        for a, b in zip(demos, known, strict=True)
    ]


def _markers(outcome: Outcome, task: Task, config: Config) -> Markers:
    demos = (*task.demonstrations, *outcome.context.demonstrations)
    return config.markers.avoiding(outcome.sentence.text, *(demo.text for demo in demos))


def _request(turns: tuple[Message, ...], config: Config, attempt: int) -> GenRequest:
    plain = config.style == "plain"
    return GenRequest(
        turns[0].content if plain else turns,
        max_tokens=config.max_tokens,
        stop=("\n",) if plain else (),
        temperature=config.temperature,
        seed=attempt,
    )


def _accepted(outcome: Outcome, text: str, task: Task, config: Config, markers: Markers) -> bool:
    """Check an answer and keep the result; False if the model must be asked again."""
    checked = verify(outcome.sentence, text, markers, types=task.types)
    outcome.attempts.append(Attempt(text, checked))
    if checked.ok:
        outcome.spans, outcome.status = checked.spans, "ok"
    elif not config.verify:
        outcome.spans, outcome.status = salvage(outcome.sentence, text, markers, types=task.types), "salvaged"
    elif config.repair and (mended := repair(outcome.sentence, text, markers, types=task.types)).ok:
        outcome.attempts[-1] = Attempt(text, replace(checked, repairs=mended.repairs))
        outcome.spans, outcome.status = mended.spans, "repaired"
    return outcome.status != "open"


def _second_pass(
    model: LanguageModel,
    outcomes: Sequence[Outcome],
    markers: Sequence[Markers],
    task: Task,
    config: Config,
    ledger: Ledger,
) -> None:
    """Let the model propose minimal corrections; a proposal that is not legal changes nothing."""
    asked = [
        i
        for i, outcome in enumerate(outcomes)
        if outcome.spans is not None and not (outcome.status == "gated" and config.gate == "hard")
    ]
    if not asked:
        return
    requests = []
    for i in asked:
        outcome = outcomes[i]
        said = encode(outcome.sentence.with_spans(outcome.spans), markers[i])
        turns = prompts.check(outcome.sentence, said, task, outcome.context, markers[i], config.check)
        requests.append(GenRequest(turns, max_tokens=config.max_tokens, temperature=config.temperature))
    for i, found in zip(asked, ledger.generate(model, requests), strict=True):
        outcome = outcomes[i]
        checked = verify(outcome.sentence, found.text, markers[i], types=task.types)
        kept = set(checked.spans) <= set(outcome.spans) or config.check == "balanced"
        if checked.ok and kept:
            outcome.spans, outcome.reviewed = checked.spans, True


# Fine-tuning: the pairs a model learns from. The loop is the trainer's.


def alpaca(sentence: Sentence, task: Task, context: Context, markers: Markers = MARKERS) -> dict[str, str]:
    """One record of the form that the released converter writes: instruction, input (the sentence), output (enc)."""
    own = markers.avoiding(sentence.text, *(demo.text for demo in context.demonstrations))
    turns = prompts.ask(sentence, task, context, own)
    shown = "\n".join(turn.content for turn in turns[:-1])
    return {"instruction": shown, "input": sentence.text, "output": encode(sentence, own)}


def training_pair(sentence: Sentence, task: Task, context: Context, config: Config) -> tuple[tuple[Message, ...], str]:
    """Prompt and answer of one training sentence, in the shape the model will be decoded with (section 3.4).

    The objective is -Σ log p(y_j | prompt, y_<j) over the tokens of the answer only.
    """
    own = config.markers.avoiding(sentence.text, *(demo.text for demo in context.demonstrations))
    blind = sentence.with_spans(())
    return prompts.ask(blind, task, context, own, config.style), prompts.answer(sentence, own, config.style)


def varied(context: Context, rng: np.random.Generator) -> Context:
    """A context with a random number of its demonstrations and definitions: an adapter that has seen every number can
    be decoded with any (an adapter trained without any is hurt by them, section 3.4)."""
    demos, known = context.demonstrations, context.definitions
    return Context(demos[len(demos) - int(rng.integers(len(demos) + 1)) :], known[: int(rng.integers(len(known) + 1))])
