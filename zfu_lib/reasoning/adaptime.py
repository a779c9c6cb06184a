"""AdapTime (arXiv 2604.24175): three prompt-only actions on a question about time, and a planner that gates each once.

::

    d1 = plan(reformulate | Q)             q1..qn = Reformulate(Q) if d1 else Q
    d2 = plan(rewrite | Q, C)              C' = Rewrite(C, q1..qn) if d2 else C
                                           Ai = Answer(qi | C', A1..Ai-1),  A = Aggregate(Q, {qi, Ai})
    d3 = plan(review | Q, C', A)           A^ = Review(C, Q, A) if d3 else A

C is the document, Q the question. The order is fixed, each action happens at most once, and Review reads the *original*
document. Three systems deserve the name, and the published numbers do not say which made them: :func:`adaptime` (a call
for every decision and action, the paper's Algorithm 1 as far as it is known), :func:`by_rule` (one call writes a rule,
one follows it; a variant in the released code) and :func:`in_one_prompt` (one call that may skip steps; what the
released runner does). Passing A1..Ai-1 on and keeping C beside C' are choices of this book; the prompts are its own.

A pipeline is a generator: it yields each :class:`Call` and is sent the text that a model wrote. :func:`answer_all`
drives many at once, in batches. Text that a model wrote, or that stands in a document, is only ever parsed for what its
step is for; it chooses no step.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np

from zfu_lib.lm.protocol import ContextOverflow, GenRequest, GenResult, LanguageModel, Message
from zfu_lib.reasoning.timeline import parse_timeline

Action = Literal["reformulate", "rewrite", "review"]
ACTIONS: tuple[Action, ...] = ("reformulate", "rewrite", "review")
Mask = tuple[bool, bool, bool]
MASKS: tuple[Mask, ...] = tuple((bool(i & 1), bool(i & 2), bool(i & 4)) for i in range(8))
"""The eight policies (d1, d2, d3), from none to all."""


class Call(NamedTuple):
    """One text to be generated: what for, from what, with at most how many tokens. ``prefill`` begins it."""

    step: str
    prompt: str | tuple[Message, ...]
    max_tokens: int
    prefill: str = ""


class Prompts(Protocol):
    """The texts that a model is asked with. ``parts``: document, question(s), options, timeline, known, answer, rule,
    examples, as far as a step needs them."""

    def __call__(self, step: str, **parts: object) -> tuple[str | tuple[Message, ...], str]:
        """Prompt of a step and the beginning of its answer (empty: none)."""


@dataclass(frozen=True)
class Config:
    """Switches of the pipeline.

    ``max_sub``: more sub-questions than that are a failed reformulation. ``replace``: the timeline takes the document's
    place (False: it stands beside it). ``words``: the document is cut there (None: not). Tokens of a decision and of an
    action. ``temperature``, ``top_k``, ``seed``: of every call; the paper decodes with 0.7 and 10.
    """

    max_sub: int = 4
    replace: bool = False
    words: int | None = None
    decision_tokens: int = 32
    action_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


PAPER_DECODING = Config(temperature=0.7, top_k=10)


class Decision(NamedTuple):
    """A planner's word on one action; ``score`` in [0, 1] where it has one."""

    yes: bool
    reason: str = ""
    score: float | None = None


class Written(NamedTuple):
    """A call and what came back."""

    call: Call
    result: GenResult


@dataclass
class Trace:
    """All that happened to one question.

    ``decisions`` by action; ``calls`` in order; ``failures`` name the step whose text could not be used (``overflow``:
    its prompt did not fit); ``questions`` asked; ``timeline`` as it was written, empty if there was none that parses;
    ``known`` sub-questions with their answers; ``first`` is the answer before review; ``evidence`` are the quotes of
    the review, each with whether it stands in the document.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    calls: list[Written] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    timeline: str = ""
    known: list[tuple[str, str]] = field(default_factory=list)
    first: str | None = None
    evidence: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def mask(self) -> Mask:
        """Which actions were taken."""
        return tuple(action in self.decisions and self.decisions[action].yes for action in ACTIONS)

    def tokens(self, *steps: str) -> int:
        """Tokens read and written by all calls, or by those whose step begins with one of ``steps``."""
        return sum(w.result.n_prompt + w.result.n_out for w in self.calls if not steps or w.call.step.startswith(steps))

    def cached(self, count: Callable[[str], int]) -> int:
        """How many of the tokens read stand at the beginning of an earlier prompt of this question, so that a server
        with a prefix cache reads them once; ``count`` counts tokens."""
        saved, before = 0, []
        for written in self.calls:
            text = _plain(written.call.prompt) + written.call.prefill
            shared = max((os.path.commonprefix([text, other]) for other in before), key=len, default="")
            saved += count(shared) if shared else 0
            before.append(text)
        return saved


class Outcome(NamedTuple):
    """The answer to a question (None: no text could be read as one) and how it came about."""

    answer: str | None
    trace: Trace


Pipeline = Generator[Call, GenResult, Outcome]


class State(NamedTuple):
    """What a planner may look at: question, document, timeline (if written) and first answer (if given)."""

    question: str
    document: str
    options: tuple[str, ...] = ()
    timeline: str = ""
    answer: str | None = None


class Planner(Protocol):
    """Decides on each action once, in their order."""

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        """A generator, because a planner may ask a model."""


class Writer:
    """Makes calls with the prompts and limits of a run and keeps them in its trace."""

    def __init__(self, prompts: Prompts, config: Config, trace: Trace) -> None:
        self.prompts, self.config, self.trace = prompts, config, trace

    def __call__(self, step: str, **parts: object) -> Generator[Call, GenResult, str]:
        """The text a model wrote for a step, its beginning included."""
        prompt, prefill = self.prompts(step, **parts)
        small = step.startswith("plan")
        tokens = self.config.decision_tokens if small else self.config.action_tokens
        call = Call(step, prompt, tokens, prefill)
        result = yield call
        self.trace.calls.append(Written(call, result))
        if result.finish == "length" and not result.n_out:
            self.trace.failures.append("overflow")
        return prefill + result.text


def adaptime(
    document: str,
    question: str,
    planner: Planner,
    prompts: Prompts,
    config: Config | None = None,
    *,
    options: Sequence[str] = (),
) -> Pipeline:
    """System A1: a call for every decision and every action taken.

    Args:
        document: C. An empty one is no error: the answer then comes from the question alone.
        question: Q.
        options: answers to choose from; none for an open answer.

    Raises:
        ValueError: an empty question.
    """
    document, options, config = _checked(document, question, options, config)
    trace = Trace()
    write = Writer(prompts, config, trace)

    def planned(action: Action, **seen: object) -> Generator[Call, GenResult, bool]:
        state = State(question, document, options, **seen)
        trace.decisions[action] = yield from planner.decide(action, state, write)
        return trace.decisions[action].yes

    questions = [question]
    if (yield from planned("reformulate")):
        found = parse_list((yield from write("reformulate", question=question)))
        if 1 <= len(found) <= config.max_sub:
            questions = found
        else:
            trace.failures.append("reformulate")
    trace.questions = questions

    context = {"document": document}
    if (yield from planned("rewrite")):
        written = yield from write("rewrite", document=document, questions=questions)
        if parse_timeline(written):
            trace.timeline = written.strip()
            context = {"document": "" if config.replace else document, "timeline": trace.timeline}
        else:
            trace.failures.append("rewrite")

    for q in questions:
        last = len(questions) == 1
        text = yield from write(
            "answer", **context, question=q, known=tuple(trace.known), options=options if last else ()
        )
        found = parse_answer(text)
        if found is None:
            trace.failures.append("answer")
        trace.known.append((q, found or UNKNOWN))
    answer = found
    if len(questions) > 1:
        text = yield from write("aggregate", question=question, known=tuple(trace.known), options=options)
        answer = parse_answer(text)
        if answer is None:
            trace.failures.append("aggregate")
    trace.first = answer

    if (yield from planned("review", timeline=trace.timeline, answer=answer)):
        answer = yield from _review(write, document, question, answer, options)
    return Outcome(answer, trace)


def _review(
    write: Writer, document: str, question: str, answer: str | None, options: tuple[str, ...]
) -> Generator[Call, GenResult, str | None]:
    text = yield from write("review", document=document, question=question, answer=answer or UNKNOWN, options=options)
    quotes, corrected = parse_review(text)
    write.trace.evidence = locate(quotes, document)
    if corrected is None:
        write.trace.failures.append("review")
    return corrected or answer


RULES = ("AB", "BA", "A", "B", "O")
"""A2's alphabet: A timeline, B check, O neither."""


def by_rule(
    document: str, question: str, prompts: Prompts, config: Config | None = None, *, options: Sequence[str] = ()
) -> Pipeline:
    """System A2: one call writes a rule (a word of :data:`RULES`), a second follows it. Without a readable rule: O.

    Raises:
        ValueError: an empty question.
    """
    document, options, config = _checked(document, question, options, config)
    trace = Trace(questions=[question])
    write = Writer(prompts, config, trace)
    rule = parse_rule((yield from write("plan rule", document=document, question=question)))
    if rule is None:
        trace.failures.append("rule")
    text = yield from write("follow", document=document, question=question, rule=rule or "O", options=options)
    return _sections(text, trace, document)


def in_one_prompt(
    document: str, question: str, prompts: Prompts, config: Config | None = None, *, options: Sequence[str] = ()
) -> Pipeline:
    """System A3: one call with leave to skip what is not needed. Its decisions are the sections it wrote.

    Raises:
        ValueError: an empty question.
    """
    document, options, config = _checked(document, question, options, config)
    trace = Trace(questions=[question])
    text = yield from Writer(prompts, config, trace)(
        "one prompt", document=document, question=question, options=options
    )
    return _sections(text, trace, document)


def _sections(text: str, trace: Trace, document: str) -> Outcome:
    """What a text with sections did and says."""
    body, review = _cut(text, "review")
    timeline = _cut(body, "timeline")[1]
    wrote = {
        "reformulate": bool(_cut(body, "sub-questions")[1] or _cut(body, "split")[1]),
        "rewrite": bool(parse_timeline(timeline)),
        "review": bool(review),
    }
    trace.decisions = {action: Decision(yes, "section") for action, yes in wrote.items()}
    trace.timeline = timeline.strip() if wrote["rewrite"] else ""
    trace.first = parse_answer(body)
    answer = trace.first
    if review:
        quotes, corrected = parse_review(review)
        trace.evidence = locate(quotes, document)
        answer = corrected or answer
    if answer is None:
        trace.failures.append("answer")
    return Outcome(answer, trace)


def _cut(text: str, heading: str) -> tuple[str, str]:
    """The text before a heading and what follows it (empty: no such heading)."""
    found = re.search(rf"^[\W\d]*{heading}\W*?:\W*", text, flags=re.IGNORECASE | re.MULTILINE)
    return (text[: found.start()], text[found.end() :]) if found else (text, "")


# The arms that the paper compares with.


def direct(
    document: str,
    question: str,
    prompts: Prompts,
    config: Config | None = None,
    *,
    options: Sequence[str] = (),
    examples: Sequence[tuple[str, str]] = (),
    think: bool = False,
) -> Pipeline:
    """One call: the answer at once, after ``examples`` (ICL), or after thinking (CoT)."""
    document, options, config = _checked(document, question, options, config)
    trace = Trace(questions=[question])
    step = "think" if think else "answer"
    text = yield from Writer(prompts, config, trace)(
        step, document=document, question=question, options=options, examples=tuple(examples)
    )
    trace.first = answer = parse_answer(text)
    if answer is None:
        trace.failures.append(step)
    return Outcome(answer, trace)


def step_back(
    document: str, question: str, prompts: Prompts, config: Config | None = None, *, options: Sequence[str] = ()
) -> Pipeline:
    """Step-back prompting: write a more general question, answer it, then the question beside that answer."""
    document, options, config = _checked(document, question, options, config)
    trace = Trace(questions=[question])
    write = Writer(prompts, config, trace)
    wide = parse_list((yield from write("step back", question=question)))
    if wide:
        found = parse_answer((yield from write("answer", document=document, question=wide[0])))
        trace.known = [(wide[0], found or UNKNOWN)]
    else:
        trace.failures.append("step back")
    text = yield from write("answer", document=document, question=question, known=tuple(trace.known), options=options)
    trace.first = answer = parse_answer(text)
    if answer is None:
        trace.failures.append("answer")
    return Outcome(answer, trace)


def self_refine(
    document: str,
    question: str,
    prompts: Prompts,
    config: Config | None = None,
    *,
    options: Sequence[str] = (),
    rounds: int = 2,
) -> Pipeline:
    """Self-refine: answer, then review again and again, at most ``rounds`` times, until the answer stays."""
    document, options, config = _checked(document, question, options, config)
    trace = Trace(questions=[question])
    write = Writer(prompts, config, trace)
    answer = parse_answer((yield from write("answer", document=document, question=question, options=options)))
    if answer is None:
        trace.failures.append("answer")
    trace.first = answer
    for _ in range(rounds):
        before = answer
        answer = yield from _review(write, document, question, answer, options)
        if answer == before:
            break
    return Outcome(answer, trace)


# Planners.


@dataclass(frozen=True)
class Fixed:
    """Takes the same actions for every question: a single one, all of them (the paper's "- Planner"), or none."""

    mask: Mask

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        yield from ()
        return Decision(self.mask[ACTIONS.index(action)], "fixed")


@dataclass(frozen=True)
class RandomMatched:
    """Takes each action as often as another planner does, on questions drawn by chance: the control for A3."""

    rates: tuple[float, float, float]
    seed: int

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        k = ACTIONS.index(action)
        draw = np.random.default_rng([self.seed, k, *f"{state.question}\n{state.document}".encode()]).random()
        yield from ()
        return Decision(bool(draw < self.rates[k]), "random")


_LEANING = re.compile(r"\b(?:later|earlier|after|before|until|when|while|during|following|previous|next)\b")


@dataclass(frozen=True)
class Rules:
    """Decides by counting, with no model: Reformulate where the question has a clause beside its own or two named
    events, Rewrite where at least ``leaning`` of the sentences tell time without a year, Review where the answer does
    not stand in the document."""

    leaning: float = 0.2

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        asked = state.question.lower()
        match action:
            case "reformulate":
                yes = bool(re.search(r"\b(?:when|while|during)\b.+\b(?:did|was|were|\w+ed|left|took)\b", asked[5:]))
                yes = yes or bool(re.search(r"\bafter \w+ \w+ed\b|\bsame time\b|\blonger\b", asked))
            case "rewrite":
                told = re.split(r"(?<=[.!?])\s+", state.document.lower())
                loose = [s for s in told if _LEANING.search(s) and not re.search(r"\b\d{4}\b", s)]
                yes = bool(told) and len(loose) >= self.leaning * len(told)
            case _:
                yes = not state.answer or state.answer.lower() not in f"{state.document} {state.timeline}".lower()
        yield from ()
        return Decision(yes, "rules")


@dataclass(frozen=True)
class Prompted:
    """The paper's planner: one short prompt per decision, yes or no and a brief reason; no readable word means no."""

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        text = yield from write(f"plan {action}", **state._asdict())
        yes = parse_decision(text)
        if yes is None:
            write.trace.failures.append(f"plan {action}")
        return Decision(bool(yes), text.strip())


@dataclass(frozen=True)
class Scored:
    """Decides by a function of action and state, such as a classifier trained on plans: yes from ``threshold`` on."""

    score: Callable[[Action, State], float]
    threshold: float = 0.5

    def decide(self, action: Action, state: State, write: Writer) -> Generator[Call, GenResult, Decision]:
        score = float(self.score(action, state))
        yield from ()
        return Decision(score >= self.threshold, "score", score)


def cheapest_right(right: Mapping[Mask, bool], tokens: Mapping[Mask, int]) -> Mask:
    """The oracle's plan: the cheapest mask that answers right, or the cheapest of all where none does.

    Args:
        right, tokens: of every mask, for one question.
    """
    return min(right, key=lambda mask: (not right[mask], tokens[mask], sum(mask)))


# Reading what a model wrote. Nothing here raises on any text.

UNKNOWN = "unknown"
_ANSWER = re.compile(r"(?:^|\b)answer\s*(?::|\bis\b:?)[ \t]*", re.IGNORECASE)
_LONGEST = 30  # Words; a longer line is no short answer.
_TICK = re.compile(r"^\s*(?:[-*•–]+\s+|\(?\d{1,2}[.):]\s*|q(?:uestion)?\s*\d*\s*[.:)]\s*)+", re.IGNORECASE)


def parse_decision(text: str) -> bool | None:
    """The first yes or no of a text; None where there is neither."""
    found = re.search(r"\b(yes|no)\b", text, flags=re.IGNORECASE)
    return None if found is None else found[1].lower() == "yes"


def parse_list(text: str) -> list[str]:
    """The questions of a text, one a line: bullets, numbers and quotes go, and so do lines that ask nothing."""
    lines = (_TICK.sub("", line).strip().strip("\"'“”`*").strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line.endswith("?")))


def parse_answer(text: str) -> str | None:
    """What follows the last "Answer:" or "answer is" on its line, or a text of a single short line; else None.

    Round brackets around the whole answer, quotes and a full stop at the end go.
    """
    found = list(_ANSWER.finditer(text))
    if found:
        rest = text[found[-1].end() :].strip()
        line = rest.splitlines()[0] if rest else ""
    else:
        lines = [line for line in text.splitlines() if line.strip()]
        line = lines[0] if len(lines) == 1 else ""
    line = line.strip().strip("*`\"'“”").strip()
    while len(line) > 1 and line[0] == "(" and line[-1] == ")" and _closes(line):
        line = line[1:-1].strip()
    line = re.sub(r"\s*\.$", "", line) if not re.search(r"\b\w\.\w?\.$", line) else line
    return line if line and len(line.split()) <= _LONGEST else None


def _closes(line: str) -> bool:
    """Whether the first bracket closes with the last."""
    depth = 0
    for i, letter in enumerate(line):
        depth += (letter == "(") - (letter == ")")
        if depth <= 0:
            return i == len(line) - 1
    return False


def parse_review(text: str) -> tuple[list[str], str | None]:
    """Quotes and final answer of a review: every line before the last "Answer:" that says something is a quote."""
    marks = list(_ANSWER.finditer(text))
    body = text[: marks[-1].start()] if marks else text
    quotes = (
        re.sub(r"^\W*(?:evidence|support|quotes?)\W*:", "", line.strip(), flags=re.I) for line in body.splitlines()
    )
    quotes = [_TICK.sub("", quote).strip().strip('"“”`*').strip() for quote in quotes]
    return [quote for quote in quotes if len(quote.split()) > 1], parse_answer(text) if marks else None


def parse_rule(text: str) -> str | None:
    """The last word of :data:`RULES` that stands alone, after "rule is" if that occurs; None without one."""
    after = re.split(r"rule is", text, flags=re.IGNORECASE)[-1]
    found = re.findall(r"\b(AB|BA|A|B|O)\b", after)
    return found[-1] if found else None


def locate(quotes: Sequence[str], document: str) -> list[tuple[str, bool]]:
    """Each quote with whether it stands in the document, case and spacing aside: what does not was made up."""
    text = " ".join(document.lower().split())
    return [(quote, " ".join(quote.lower().split()) in text) for quote in quotes]


# Driving.


def answer_all(
    runs: Sequence[Pipeline],
    model: LanguageModel,
    config: Config | None = None,
    *,
    memory: dict[GenRequest, GenResult] | None = None,
) -> list[Outcome]:
    """Drive pipelines to their ends, their calls in batches.

    A prompt that does not fit the model's context is answered by an empty text and traced as ``overflow``.

    Args:
        memory: what was generated before, by request; used and extended, so that arms which ask the same share it.
            Tokens are counted in each arm as if it had asked alone.
    """
    config, memory = config or Config(), {} if memory is None else memory
    outcomes: list[Outcome | None] = [None] * len(runs)
    waiting: dict[int, Call] = {}

    def go_on(i: int, result: GenResult | None) -> None:
        try:
            waiting[i] = next(runs[i]) if result is None else runs[i].send(result)
        except StopIteration as stop:
            outcomes[i] = stop.value

    for i in range(len(runs)):
        go_on(i, None)
    while waiting:
        asked = {i: _request(call, config) for i, call in waiting.items()}
        new = [r for r in dict.fromkeys(asked.values()) if r not in memory]
        memory |= zip(new, _generate(model, new), strict=True)
        waiting = {}
        for i, request in asked.items():
            go_on(i, memory[request])
    return outcomes


def _request(call: Call, config: Config) -> GenRequest:
    return GenRequest(
        call.prompt, prefill=call.prefill, max_tokens=call.max_tokens, temperature=config.temperature,
        top_k=config.top_k if config.temperature else 0, seed=config.seed,
    )  # fmt: skip


def _generate(model: LanguageModel, requests: list[GenRequest]) -> list[GenResult]:
    if not requests:
        return []
    try:
        return model.generate(requests)
    except ContextOverflow:
        if len(requests) == 1:
            return [GenResult("", model.count(_plain(requests[0].prompt)), 0, "length")]
        return [result for request in requests for result in _generate(model, [request])]


def _plain(prompt: str | tuple[Message, ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


def _checked(
    document: str, question: str, options: Sequence[str], config: Config | None
) -> tuple[str, tuple[str, ...], Config]:
    if not question.strip():
        raise ValueError("an empty question cannot be answered: give the text of a question")
    config = config or Config()
    if config.words is not None:
        document = " ".join(document.split()[: config.words])
    return document, tuple(options), config


def at_temperature(config: Config, seed: int) -> Config:
    """The paper's decoding (temperature 0.7, top-k 10) with a seed of its own."""
    return replace(config, temperature=PAPER_DECODING.temperature, top_k=PAPER_DECODING.top_k, seed=seed)
