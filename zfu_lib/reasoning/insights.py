"""What the mentor writes and how the intern gets it: thinking insights, transports, and the format of both.

An insight has four sections, Goal, Planning, Retrieval and Action ("GPRA", arXiv 2604.23623); deeper stages add depth
to the same four, not new ones. The paper's prompts could not be confirmed; :class:`ChatFormat` has our own words.
Three ways to hand an insight over exist in the authors' public code (``transport``):

- ``prompt`` (the paper's design by that code, the default): the insight stands in the intern's question, the four
  headings are explained, the intern thinks and answers by itself;
- ``continuation`` (the default of the scripts): the intern's answer begins with the mentor's text and goes on;
- ``hint`` (an early version): one line in the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from zfu_lib.lm.protocol import Message, ScoreRequest
from zfu_lib.reasoning.answers import equivalent, extract

Transport = Literal["prompt", "continuation", "hint"]
TRANSPORTS: tuple[str, ...] = get_args(Transport)

SECTIONS = {"G": "Goal", "P": "Planning", "R": "Retrieval", "A": "Action"}
TITLE = "[Thinking Insights]"

# How models mark their thinking: opening and closing text.
THINK_TAGS = {
    "deepseek": ("<think>", "</think>"),
    "qwen": ("<think>", "</think>"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|>"),
    "none": ("", ""),
}

_HEADING = re.compile(
    r"^[ \t>#*_\d.()\[\]-]{0,20}(?:(goal)s?|(plan)(?:ning|s)?|(retrieval)s?|(action)s?)[ \t*_\])]{0,10}(?:[:：–—-]|$)",
    re.IGNORECASE | re.MULTILINE,
)


class Question(NamedTuple):
    """``text`` is what the models read, ``gold`` the right answer as a grader wants it. Rows with one ``qid`` are one
    question: a split never parts them."""

    qid: str
    text: str
    gold: str = ""


class Prompt(NamedTuple):
    """The beginning of a request: prompt, what begins the answer, thinking mode (None: the model's default)."""

    prompt: str | tuple[Message, ...]
    prefill: str = ""
    thinking: bool | None = None


@dataclass(frozen=True)
class Insights:
    """A mentor's text with its sections by letter. What stands before the first heading is in no section."""

    text: str
    sections: dict[str, str]

    @property
    def found(self) -> str:
        """The letters of the sections that have content, in the order G, P, R, A."""
        return "".join(letter for letter in SECTIONS if self.sections.get(letter))

    def without(self, letters: str) -> str:
        """The insight written anew without some sections ("R", or "GP"): an ablation. Text in no section goes too."""
        kept = (letter for letter in self.found if letter not in letters)
        return "\n".join(f"{SECTIONS[letter]}: {self.sections[letter]}" for letter in kept)


def parse(text: str) -> Insights:
    """Sections of any text, numbered, bold or marked as headings; never an error. A heading that comes again (one set
    of four per stage) continues its section."""
    headings = list(_HEADING.finditer(text))
    sections: dict[str, str] = {}
    for here, following in zip(headings, [*headings[1:], None]):
        letter = "GPRA"[here.lastindex - 1]
        body = text[here.end() : following.start() if following else len(text)].strip(" \t\n*_")
        sections[letter] = "\n".join(filter(None, (sections.get(letter), body)))
    return Insights(text, sections)


def without_tags(text: str) -> str:
    """The text with every known think tag, and the title of insights, taken out; what they enclose stays."""
    for mark in sorted({tag for pair in THINK_TAGS.values() for tag in pair if tag} | {TITLE}, key=len, reverse=True):
        text = text.replace(mark, "")
    return text.strip()


def retag(text: str, mentor: str, intern: str) -> str:
    """A mentor's think tags replaced by the intern's (names in ``THINK_TAGS``), for the continuation."""
    for theirs, ours in zip(THINK_TAGS[mentor], THINK_TAGS[intern]):
        text = text.replace(theirs, ours) if theirs else text
    return text


def leaks(insight: str, gold: str) -> bool:
    """Does the insight hold the answer, as a word or number of its own?"""
    return bool(gold) and _alone(gold).search(insight) is not None


def mask(insight: str, gold: str, by: str = "?") -> str:
    """The insight with the answer masked wherever :func:`leaks` sees it."""
    return _alone(gold).sub(by, insight) if gold else insight


def _alone(gold: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.]){re.escape(gold)}(?!\w|\.\d)")


@dataclass(frozen=True)
class Format:
    """How one pair of models writes questions, insights and answers. This base is plain text: the insight follows the
    question. Derive from it what a pair needs.

    ``insight_end``: strings before which the insights end (the mentor would begin its answer there). ``mentor_stop``
    and ``intern_stop`` end a whole answer.
    """

    insight_end: tuple[str, ...] = ()
    mentor_stop: tuple[str, ...] = ()
    intern_stop: tuple[str, ...] = ()

    def mentor(self, question: Question) -> Prompt:
        """What makes the mentor write insights; they begin where its prefill ends."""
        return Prompt(question.text)

    def alone(self, question: Question) -> Prompt | None:
        """What makes the mentor answer by itself; None where :meth:`mentor` does, so that one text is both."""
        return None

    def force(self, question: Question, thinking: str) -> Prompt:
        """Budget forcing: the mentor's thinking, cut, and then what makes it answer at once."""
        start = self.alone(question) or self.mentor(question)
        return start._replace(prefill=start.prefill + thinking)

    def intern(self, question: Question, insight: str, transport: Transport) -> Prompt:
        """What makes the intern answer; an empty insight leaves it alone with the question (stage 0)."""
        if transport == "continuation":
            return Prompt(question.text, prefill=insight)
        return Prompt(f"{question.text}\n{insight}\n" if insight else question.text)

    def read(self, question: Question, insight: str) -> ScoreRequest:
        """The tokens whose uncertainty is measured: the insight's, given the question; without one the question's."""
        return ScoreRequest(question.text, insight) if insight else ScoreRequest("", question.text)

    def extract(self, text: str) -> str | None:
        """The final answer of a prefill and what was generated after it, as one text; None without one."""
        return extract(text)

    def correct(self, question: Question, text: str) -> bool:
        """The default grader of a prefill and what was generated after it, as one text."""
        return equivalent(self.extract(text), question.gold)

    def leaks(self, question: Question, insight: str) -> bool:
        """Does the insight hold the answer?"""
        return leaks(insight, question.gold)


MATHS = "Reason step by step and put the final answer in \\boxed{}."
CODE = "Complete the function. Reason step by step, then give the whole function in one ```python block."

STRUCTURED = f"""You help a smaller model that will solve the problem itself. Under the title {TITLE} write four short \
numbered sections:
1. Goal: what is asked, the constraints, and the form the answer must have.
2. Planning: the strategy, its sub-problems in order, and the cases that need care.
3. Retrieval: the facts, formulas and definitions it takes; "not applicable" if none.
4. Action: the decisive steps and intermediate results.
Be concise and keep one notation throughout. {{ask}}"""

EXPLAINED = """The notes above come from a stronger model and may be cut short or wrong. Goal says what is asked, \
Planning how to go about it, Retrieval which facts to use, Action which steps decide. Check them, then solve the \
problem."""


@dataclass(frozen=True)
class ChatFormat(Format):
    """Chat models with boxed answers. ``style`` ``simple`` asks the mentor for a plain solution (the default of the
    public scripts), ``structured`` for the four sections; which one the paper's tables used is not confirmed, nor how
    the mentor is told to go deeper (here: it goes on writing). By default a mentor that reaches its final answer within
    a budget hands it over, as in the code: measure it (:meth:`leaks`), or end insights before it with
    ``insight_end=("\\\\boxed",)``. ``ask`` closes every question (``MATHS``, ``CODE``, or a text of your own).
    ``mentor_tags`` and ``intern_tags`` name entries of ``THINK_TAGS``.

    Raises:
        ValueError: an unknown style or tag name.
    """

    style: Literal["simple", "structured"] = "simple"
    ask: str = MATHS
    mentor_tags: str = "deepseek"
    intern_tags: str = "deepseek"
    mentor_thinking: bool | None = None
    intern_thinking: bool | None = None

    def __post_init__(self) -> None:
        if self.style not in ("simple", "structured"):
            raise ValueError(f"style {self.style!r} is neither 'simple' nor 'structured'")
        for tags in (self.mentor_tags, self.intern_tags):
            if tags not in THINK_TAGS:
                raise ValueError(f"unknown think tags {tags!r}; choose one of {', '.join(THINK_TAGS)}")

    def _ask(self, *parts: str) -> Message:
        return Message("user", "\n\n".join(filter(None, (*parts, self.ask))))

    def mentor(self, question: Question) -> Prompt:
        if self.style == "simple":
            return Prompt((self._ask(question.text),), thinking=self.mentor_thinking)
        system = Message("system", STRUCTURED.format(ask=self.ask))
        return Prompt((system, Message("user", question.text)), thinking=self.mentor_thinking)

    def alone(self, question: Question) -> Prompt | None:
        plain = Prompt((self._ask(question.text),), thinking=self.mentor_thinking)
        return plain if self.style == "structured" else None

    def force(self, question: Question, thinking: str) -> Prompt:
        close = THINK_TAGS[self.mentor_tags][1]
        prompt = super().force(question, thinking)
        return prompt if not close or close in thinking else prompt._replace(prefill=f"{prompt.prefill}\n{close}\n\n")

    def intern(self, question: Question, insight: str, transport: Transport) -> Prompt:
        if transport == "continuation":
            prefill = retag(insight, self.mentor_tags, self.intern_tags)
            return Prompt((self._ask(question.text),), prefill, self.intern_thinking)
        notes = without_tags(insight)
        if not notes:
            parts = ()
        elif transport == "hint":
            parts = (f"Hint: {notes}",)
        else:
            parts = (f"{TITLE}\n{notes}", EXPLAINED)
        return Prompt((self._ask(question.text, *parts),), thinking=self.intern_thinking)

    def read(self, question: Question, insight: str) -> ScoreRequest:
        """A plain frame without chat template, as in the co-author's code."""
        notes = without_tags(insight)
        if not notes:
            return ScoreRequest("Problem: ", question.text)
        return ScoreRequest(f"Problem: {question.text}\n\nSolution: ", notes)
