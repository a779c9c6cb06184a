"""Prompts: what each corpus calls a skill, the rules of the format, and two ways of writing them down.

``chat`` is the paper's: system role with definition and rules, demonstrations, definitions, the sentence. ``plain`` is
the same content in a few lines, for small models that were trained on exactly those lines. Definitions and rules are in
our words; the authors' are in their public repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zfu_lib.lm.protocol import Message
from zfu_lib.skills.markers import Markers, encode
from zfu_lib.skills.spans import UNTYPED, Sentence

Style = Literal["chat", "plain"]


@dataclass(frozen=True)
class Task:
    """What to mark. ``demonstrations`` are fixed examples that stand before the retrieved ones."""

    name: str
    what: str
    language: str = "English"
    types: tuple[str, ...] = (UNTYPED,)
    split_lists: bool = False
    demonstrations: tuple[Sentence, ...] = ()


def _sentence(text: str, *spans: tuple[int, int]) -> Sentence:
    return Sentence(tuple(text.split()), tuple(spans))


ESCO_SKILL = "a skill in the sense of ESCO: an ability to apply knowledge and complete tasks, hard or soft"
TASKS = {
    task.name: task
    for task in (
        Task("skillspan", ESCO_SKILL),
        Task("kompetencer", ESCO_SKILL, "Danish"),
        Task("sayfullina", "a soft skill: a personal quality or social ability that helps in any job"),
        Task(
            "fijo",
            "a competency of one of four groups: thinking, results, relations, the person",
            "French",
            split_lists=True,
            demonstrations=(_sentence("Vous travaillez en équipe et résolvez des problèmes .", (1, 4), (5, 8)),),
        ),
        Task(
            "green",
            "a hard or soft skill; not degrees, years of experience, job titles, sectors or surroundings",
            split_lists=True,
            demonstrations=(
                _sentence("You will plan budgets and supervise staff .", (2, 4), (5, 7)),
                _sentence("The role is based in Leeds ."),
            ),
        ),
        Task(
            "gnehm",
            "a technology, tool or method of information technology",
            "German",
            demonstrations=(
                _sentence("Kenntnisse in Java sind von Vorteil .", (2, 3)),
                _sentence("Wir bieten 30 Tage ."),
            ),
        ),
        Task("jobads", "a skill that is asked of the applicant", split_lists=True),
    )
}
"""The six corpora of the paper, and the generated job ads of this book."""


@dataclass(frozen=True)
class Context:
    """What was retrieved for a sentence: annotated sentences and ``(label, definition)`` pairs."""

    demonstrations: tuple[Sentence, ...] = ()
    definitions: tuple[tuple[str, str], ...] = ()


def rules(task: Task, markers: Markers) -> str:
    """The format in words."""
    label = f", then its type in brackets: one of {', '.join(task.types)}" if markers.typed else ""
    lists = (
        "Mark each skill of a list on its own." if task.split_lists else "Keep a list that shares one head together."
    )
    return (
        f"Copy the sentence unchanged. Put {markers.open} before and {markers.close} after every skill{label}. "
        f"Spans do not overlap and are as short as they can be. {lists} "
        "If there is no skill, copy the sentence without markers. Write nothing else."
    )


def ask(
    sentence: Sentence, task: Task, context: Context, markers: Markers, style: Style = "chat"
) -> tuple[Message, ...]:
    """The conversation that asks for one sentence to be marked (section 3.2, step 3).

    ``markers`` must be free in the sentence and the demonstrations (:meth:`~zfu_lib.skills.markers.Markers.avoiding`).
    """
    demonstrations = [*task.demonstrations, *context.demonstrations]
    if style == "plain":
        lines = [f"Skills : {' ; '.join(label for label, _ in context.definitions)}"] if context.definitions else []
        lines += [f"Example : {encode(demo, markers)}" for demo in demonstrations]
        return (Message("user", "\n".join([*lines, f"Sentence : {sentence.text}", "Marked :"])),)
    system = f"You annotate job advertisements in {task.language}. A skill is {task.what}.\n{rules(task, markers)}"
    turns = [Message("system", system)]
    for demo in demonstrations:
        turns += [Message("user", f"Sentence: {demo.text}"), Message("assistant", encode(demo, markers))]
    known = "".join(f"- {label}: {definition}\n" for label, definition in context.definitions)
    hints = f"Definitions that may help; use them only if they are relevant:\n{known}\n" if known else ""
    return (*turns, Message("user", f"{hints}Sentence: {sentence.text}"))


def answer(sentence: Sentence, markers: Markers, style: Style = "chat") -> str:
    """What a trained model should write: enc(x, S), in the plain style with the space before and the line's end."""
    marked = encode(sentence, markers)
    return f" {marked}\n" if style == "plain" else marked


def again(
    turns: Sequence[Message], said: str, message: str, style: Style = "chat", *, keep: str = ""
) -> tuple[Message, ...]:
    """The conversation with a failed answer and the feedback on it; the plain style keeps the newest failure only.

    Args:
        keep: the sentence, which the plain style repeats after the failure.
    """
    if style == "plain":
        first = turns[0].content.partition("\nAnswer :")[0].removesuffix("\nMarked :")
        said = " ".join(said.split())
        return (Message("user", f"{first}\nAnswer : {said}\nError : {message}\nSentence : {keep}\nMarked :"),)
    return (*turns, Message("assistant", said), Message("user", message))


def check(
    sentence: Sentence, said: str, task: Task, context: Context, markers: Markers, mode: Literal["balanced", "high"]
) -> tuple[Message, ...]:
    """The second pass: a reviewer proposes minimal changes to a legal answer (section 3.2, step 6)."""
    aim = {
        "balanced": "Correct wrong edges, add skills that were missed, remove spans that are no skill.",
        "high": "Remove every span that is not clearly a skill, and correct wrong edges; add nothing.",
    }[mode]
    system = (
        f"You review annotations of job advertisements in {task.language}. A skill is {task.what}.\n"
        f"{rules(task, markers)}\n{aim} Change as little as possible; if all is right, repeat the answer."
    )
    known = "".join(f"- {label}: {definition}\n" for label, definition in context.definitions)
    hints = f"Definitions near the marked spans:\n{known}\n" if known else ""
    return (Message("system", system), Message("user", f"{hints}Sentence: {sentence.text}\nAnswer: {said}"))
