"""Insights as models write them, and the three ways to hand them over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.lm.protocol import GenRequest
from zfu_lib.reasoning.insights import (
    CODE,
    MATHS,
    TITLE,
    TRANSPORTS,
    ChatFormat,
    Format,
    Question,
    leaks,
    mask,
    parse,
    retag,
    without_tags,
)

WRITTEN = f"""<think>{TITLE}
1. **Goal**: find x,
   an integer
2. Planning: isolate x
### Retrieval
not applicable
4) ACTION - subtract 3
"""
QUESTION = Question("q1", "What is 2 + 3?", "5")
PIECES = [
    "Goal:",
    "1. Planning",
    "**Retrieval**",
    "Action -",
    "\n",
    " ",
    "Goal",
    "actions",
    "x",
    ":",
    "#",
    "*",
    "é",
    "\0",
]


def test_sections_are_read_in_any_dress():
    found = parse(WRITTEN)
    assert found.found == "GPRA"
    assert found.sections["G"] == "find x,\n   an integer"
    assert found.sections["R"] == "not applicable"
    assert found.sections["A"] == "subtract 3"


def test_later_stages_continue_a_section():
    found = parse("Goal: a\nAction: b\nGoal: c\nPlan: d")
    assert found.sections == {"G": "a\nc", "A": "b", "P": "d"}
    assert found.found == "GPA"


def test_words_in_running_text_are_no_headings():
    assert parse("The goal is clear: add. Actions speak.\nPlanning a trip costs: 5").found == ""
    assert parse("Goal:\nPlanning: x").found == "P", "an empty section was not found"


def test_a_section_can_be_left_out():
    found = parse(WRITTEN)
    assert parse(found.without("R")).found == "GPA"
    assert parse(found.without("")).sections == found.sections
    assert found.without("GPRA") == ""


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
def test_the_parser_takes_anything(text):
    found = parse(text)
    assert found.text == text
    assert set(found.found) <= set(found.sections) <= set("GPRA")
    assert all(line in text for body in found.sections.values() for line in body.split("\n"))


def test_leaks_are_whole_words():
    assert leaks("so x = 5.", "5")
    assert not leaks("15, 5.2, 2.5 and x5", "5")
    assert not leaks("anything", "")
    assert leaks(r"it is \frac{1}{2}!", r"\frac{1}{2}")
    assert mask("5 is 5, not 15", "5") == "? is ?, not 15"
    assert not leaks(mask("5 is 5, not 15", "5"), "5")


def test_think_tags():
    assert without_tags(f"<think>\na{TITLE}b</think> c") == "ab c"
    assert retag("<think>a</think>", "deepseek", "harmony") == "<|channel|>analysis<|message|>a<|end|>"
    assert retag("a</think>", "none", "qwen") == "a</think>"


def content(prompt):
    return prompt.prompt if isinstance(prompt.prompt, str) else "\n".join(turn.content for turn in prompt.prompt)


@pytest.mark.parametrize("form", [Format(), ChatFormat(), ChatFormat(style="structured")])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_intern_gets_the_insight_once(form, transport):
    prompt = form.intern(QUESTION, "Goal: add.", transport)
    assert (content(prompt) + prompt.prefill).count("Goal: add.") == 1
    assert (prompt.prefill == "Goal: add.") == (transport == "continuation")
    bare = form.intern(QUESTION, "", transport)
    assert bare.prefill == ""
    assert content(bare) == content(form.intern(QUESTION, "", "prompt")), "stage 0 does not depend on the transport"
    GenRequest(prompt.prompt, prompt.prefill)


def test_transports_of_the_chat_format_differ_as_described():
    form = ChatFormat(mentor_tags="qwen", intern_tags="harmony")
    prompt = form.intern(QUESTION, "<think>Goal: add.</think>", "prompt")
    assert TITLE in content(prompt)
    assert "<think>" not in content(prompt)
    assert MATHS in content(prompt)
    assert "Hint: Goal: add." in content(form.intern(QUESTION, "<think>Goal: add.</think>", "hint"))
    assert form.intern(QUESTION, "<think>Goal", "continuation").prefill == "<|channel|>analysis<|message|>Goal"
    assert form.intern(QUESTION, "<think></think>", "prompt") == form.intern(QUESTION, "", "prompt")


def test_the_mentor_is_asked_for_four_sections_in_the_structured_style():
    structured = ChatFormat(style="structured", ask=CODE, mentor_thinking=False)
    system, user = structured.mentor(QUESTION).prompt
    assert all(
        f"{k}. {name}:" in system.content for k, name in enumerate(("Goal", "Planning", "Retrieval", "Action"), 1)
    )
    assert CODE in system.content
    assert user.content == QUESTION.text
    assert structured.mentor(QUESTION).thinking is False
    assert structured.alone(QUESTION) is not None
    assert ChatFormat().alone(QUESTION) is None


def test_forcing_closes_the_thinking_once():
    assert ChatFormat().force(QUESTION, "hm").prefill == "hm\n</think>\n\n"
    assert ChatFormat().force(QUESTION, "hm</think> so").prefill == "hm</think> so"
    assert Format().force(QUESTION, "hm").prefill == "hm"


def test_what_is_measured():
    request = ChatFormat().read(QUESTION, "<think>Goal")
    assert (QUESTION.text in request.context, request.continuation) == (True, "Goal")
    assert ChatFormat().read(QUESTION, "").continuation == QUESTION.text
    assert Format().read(QUESTION, "").continuation == QUESTION.text


def test_boxed_answers_are_graded():
    assert ChatFormat().correct(QUESTION, r"\boxed{5.0}")
    assert not ChatFormat().correct(QUESTION, "5")


@pytest.mark.parametrize("wrong", [{"style": "long"}, {"intern_tags": "gpt"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        ChatFormat(**wrong)
