"""Cases of knowledge editing, and the files that the field keeps them in: ZsRE, CounterFact (as EasyEdit has it, and as
ROME does), KnowEdit (WikiRecent).

A :class:`Case` is one fact to be changed with the questions that judge the change. The readers take rows as published
(lists of dicts) or files of them, the writers give rows back; what a format cannot hold is named by an error, never
dropped. Answers are texts without a leading space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Form = Literal["zsre", "counterfact", "counterfact-rome", "knowedit"]


class Question(NamedTuple):
    """A prompt, the answer it should get, and what kind of question it is in its data set."""

    prompt: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Case:
    """One edit: after it, ``prompt`` should be continued by ``target``.

    ``old`` is the answer before (empty: not known). ``rephrases`` ask the same in other words, with the same answer.
    ``locality`` questions must be answered as before the edit; ``portability`` questions follow from it.
    """

    subject: str
    prompt: str
    target: str
    old: str = ""
    rephrases: tuple[str, ...] = ()
    locality: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()


def read(file: Path, form: Form) -> list[Case]:
    """The cases of a JSON file.

    Raises:
        ValueError: not a JSON list of rows of this form; the message names the file, the row and the field.
    """
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    try:
        return parse(rows, form)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def write(cases: Sequence[Case], file: Path, form: Form) -> None:
    """A JSON file that :func:`read` reads back.

    Raises:
        ValueError: a case holds what the form has no place for.
    """
    rows = render(cases, form)
    Path(file).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def parse(rows: Any, form: Form) -> list[Case]:
    """Cases from rows as published.

    Raises:
        ValueError: no list, an unknown form, or a row without a field that it must have.
    """
    parse_one, _ = _known(form)
    if not isinstance(rows, list):
        raise ValueError(f"a {form} file is a list of rows, not a {type(rows).__name__}")
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(parse_one(row))
        except KeyError as error:
            raise ValueError(f"row {i} of {form} has no field {error}; it has {', '.join(row)}") from None
        except (TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"row {i} of {form} has a field of an unexpected kind: {error}") from None
    return found


def render(cases: Sequence[Case], form: Form) -> list[dict[str, Any]]:
    """Rows as published, one for each case.

    Raises:
        ValueError: a case holds what the form has no place for.
    """
    parse_one, render_one = _known(form)
    rows = []
    for i, case in enumerate(cases):
        row = render_one(i, case)
        if parse_one(row) != case:
            raise ValueError(f"case {i} ({case.prompt!r}) holds more, or less, than a row of {form} can")
        rows.append(row)
    return rows


def _first(answer: Any) -> str:
    """Answers are texts or nested lists of equally good ones: the first."""
    while isinstance(answer, list):
        answer = answer[0]
    if not isinstance(answer, str):
        raise TypeError(f"an answer is a text, not {answer!r}")
    return answer


# ZsRE with portability: subject, src, alt (the new answer), answers, rephrase, loc and loc_ans, portability.


def _parse_zsre(row: dict[str, Any]) -> Case:
    asked = row["loc"].removeprefix("nq question: ")
    port = row.get("portability") or {}
    return Case(
        subject=row["subject"],
        prompt=row["src"],
        target=row["alt"],
        old=_first(row["answers"]) if row["answers"] else "",
        rephrases=(row["rephrase"],) if row.get("rephrase") else (),
        locality=(Question(asked, row["loc_ans"]),) if asked else (),
        portability=(Question(port["New Question"], port["New Answer"]),) if port else (),
    )


def _render_zsre(number: int, case: Case) -> dict[str, Any]:
    near = (*case.locality, Question("", ""))[0]
    row = {
        "subject": case.subject,
        "src": case.prompt,
        "pred": "",
        "rephrase": (*case.rephrases, "")[0],
        "alt": case.target,
        "answers": [case.old] if case.old else [],
        "loc": f"nq question: {near.prompt}" if near.prompt else "",
        "loc_ans": near.answer,
        "cond": f"{case.old} >> {case.target} || {case.prompt}",
    }
    if case.portability:
        far = case.portability[0]
        row["portability"] = {"New Question": far.prompt, "New Answer": far.answer}
    return row


# CounterFact as EasyEdit has it: one rephrased prompt, one neighbour.


def _parse_counterfact(row: dict[str, Any]) -> Case:
    near = row.get("locality_prompt")
    return Case(
        subject=row["subject"],
        prompt=row["prompt"],
        target=row["target_new"],
        old=row["ground_truth"],
        rephrases=(row["rephrase_prompt"],) if row.get("rephrase_prompt") else (),
        locality=(Question(near, row["locality_ground_truth"]),) if near else (),
    )


def _render_counterfact(number: int, case: Case) -> dict[str, Any]:
    near = (*case.locality, Question("", ""))[0]
    return {
        "case_id": number,
        "prompt": case.prompt,
        "target_new": case.target,
        "subject": case.subject,
        "ground_truth": case.old,
        "rephrase_prompt": (*case.rephrases, "")[0],
        "locality_prompt": near.prompt,
        "locality_ground_truth": near.answer,
    }


# CounterFact as ROME published it: the prompt with a place for the subject, any number of paraphrases and neighbours.


def _parse_counterfact_rome(row: dict[str, Any]) -> Case:
    asked = row["requested_rewrite"]
    old = asked["target_true"]["str"]
    return Case(
        subject=asked["subject"],
        prompt=asked["prompt"].replace("{}", asked["subject"]),
        target=asked["target_new"]["str"],
        old=old,
        rephrases=tuple(row["paraphrase_prompts"]),
        locality=tuple(Question(prompt, old) for prompt in row["neighborhood_prompts"]),
    )


def _render_counterfact_rome(number: int, case: Case) -> dict[str, Any]:
    before, subject, after = case.prompt.rpartition(case.subject or "\0")
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": f"{before}{{}}{after}" if subject else case.prompt,
            "target_new": {"str": case.target},
            "target_true": {"str": case.old},
            "subject": case.subject,
        },
        "paraphrase_prompts": list(case.rephrases),
        "neighborhood_prompts": [q.prompt for q in case.locality],
    }


# KnowEdit (WikiRecent, WikiCounterfact: any number of questions, by kind; answers in nested lists.


def _parse_knowedit(row: dict[str, Any]) -> Case:
    def questions(group: dict[str, Any] | None) -> tuple[Question, ...]:
        listed = [(kind, q) for kind, asked in (group or {}).items() for q in asked or ()]
        return tuple(Question(_first(q["prompt"]), _first(q["ground_truth"]), kind) for kind, q in listed)

    rephrase = row.get("rephrase") or row.get("rephrase_prompt") or ()
    return Case(
        subject=row["subject"],
        prompt=row["prompt"],
        target=_first(row["target_new"]),
        old=_first(row["ground_truth"]) if row.get("ground_truth") else "",
        rephrases=(rephrase,) if isinstance(rephrase, str) else tuple(rephrase),
        locality=questions(row.get("locality")),
        portability=questions(row.get("portability")),
    )


def _render_knowedit(number: int, case: Case) -> dict[str, Any]:
    def group(questions: Sequence[Question]) -> dict[str, Any]:
        kinds = dict.fromkeys(q.kind for q in questions)
        return {
            kind: [{"prompt": q.prompt, "ground_truth": [[q.answer]]} for q in questions if q.kind == kind]
            for kind in kinds
        }

    row = {"subject": case.subject, "prompt": case.prompt, "target_new": case.target, "ground_truth": case.old}
    parts = {"locality": group(case.locality), "portability": group(case.portability)}
    return row | parts | ({"rephrase": list(case.rephrases)} if case.rephrases else {})


_FORMS: dict[str, tuple[Callable[[dict[str, Any]], Case], Callable[[int, Case], dict[str, Any]]]] = {
    "zsre": (_parse_zsre, _render_zsre),
    "counterfact": (_parse_counterfact, _render_counterfact),
    "counterfact-rome": (_parse_counterfact_rome, _render_counterfact_rome),
    "knowedit": (_parse_knowedit, _render_knowedit),
}


def _known(form: str) -> tuple[Callable[[dict[str, Any]], Case], Callable[[int, Case], dict[str, Any]]]:
    if form not in _FORMS:
        raise ValueError(f"no form {form!r}; there are: {', '.join(_FORMS)}")
    return _FORMS[form]
