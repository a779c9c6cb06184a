"""The verifier: whatever text comes in, what comes out is legal or a refusal."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zfu_lib.skills import verifier
from zfu_lib.skills.markers import Markers, encode
from zfu_lib.skills.spans import Sentence, Span, SpanError, from_tags, stray_tags, to_tags, untyped
from zfu_lib.skills.verifier import repair, salvage, verify, verify_list

spec = importlib.util.spec_from_file_location("drawn", Path(__file__).with_name("conftest.py"))
drawn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawn)

X = Sentence(["we", "want", "team", "work", ",", "SQL", "and", "care", "."], ((2, 4), (5, 6)), id="x")
RIGHT = "we want @@team work## , @@SQL## and care ."


def legal(sentence, spans, types=("Skill",)):
    """Spans that a sentence can carry, with legal tags."""
    tags = to_tags(sentence.with_spans(spans))
    assert not stray_tags(tags)
    assert tuple(from_tags(tags)) == tuple(sorted(spans))
    assert {span.type for span in spans} <= set(types)


@st.composite
def answers(draw):
    """A sentence and an answer to it: anything at all, or its marked text after some damage."""
    sentence = draw(drawn.sentences(types=("Skill",)))
    if draw(st.booleans()):
        return sentence, draw(st.text(alphabet="@# ab数，[]Skl\n", max_size=40))
    try:
        text = encode(sentence)
    except SpanError:
        text = sentence.text
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.sampled_from(["@@", "##", "@", "#", " ", "x", "数", "@@##"]))
        cut = draw(st.integers(0, 3))
        text = text[:at] + piece + text[at + cut :]
    return sentence, text


@settings(max_examples=200)
@given(answers(), st.booleans())
@example((X, "@@##"), False)
@example((X, RIGHT.replace("##", "")), False)
@example((X, ""), True)
def test_what_comes_out_is_legal_or_a_refusal(case, typed):
    sentence, text = case
    markers = Markers(typed=typed)
    for checked in (verify(sentence, text, markers), repair(sentence, text, markers)):
        legal(sentence, checked.spans)
        legal(sentence, checked.good)
        assert not (checked.errors and checked.spans)
        assert set(checked.codes) <= set(verifier.CODES)
        if checked.errors:
            assert verifier.feedback(sentence, checked, markers)
    legal(sentence, salvage(sentence, text, markers))
    if not verify(sentence, text, markers).errors:
        assert repair(sentence, text, markers).repairs == ()


@given(st.text(max_size=60))
def test_a_list_answer_is_legal_or_a_refusal(text):
    for answer in (text, json.dumps([text, "team work", 3, {"text": text}])):
        checked = verify_list(X, answer)
        legal(X, checked.spans)
        assert bool(checked.errors) or not checked.good


@given(drawn.sentences(types=("Skill",)))
def test_a_right_answer_passes_with_any_white_space(sentence):
    markers = Markers().avoiding(sentence.text)
    text = encode(sentence, markers)
    for answer in (text, f"  {text}\n", text.replace(markers.open, f" {markers.open} ")):
        checked = verify(sentence, answer, markers, strict_edges=False)
        assert checked == verifier.Checked(sentence.spans)


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (RIGHT, ()),
        (RIGHT.replace("@@SQL##", "@@SQL"), ("V1",)),
        (RIGHT.replace("@@SQL##", "SQL##"), ("V1",)),
        ("##we@@ want team work , SQL and care .", ("V1",)),
        (RIGHT.replace("@@SQL", "@@@@SQL"), ("V1", "V2")),
        (RIGHT.replace("@@SQL##", "@@@@SQL####"), ("V1", "V2")),
        (RIGHT.replace("@@SQL##", "@@##SQL"), ("V2",)),
        (RIGHT.replace("want", "need"), ("V4",)),
        (RIGHT.replace(" .", ""), ("V4",)),
        (RIGHT + " Thanks!", ("V4",)),
        (RIGHT.replace("@@team", "te@@am"), ("V5",)),
        ("we want team work @@,## SQL @@and## care .", ("V5",)),
        ("", ("V4",)),
        ("@@" + RIGHT.replace("SQL", "sql"), ("V1", "V2", "V4")),
    ],
)
def test_codes(answer, codes):
    checked = verify(X, answer)
    assert checked.codes == codes
    assert checked.spans == (X.spans if not codes else ())


def test_types():
    markers = Markers(typed=True)
    typed = X.with_spans([Span(2, 4, "S"), Span(5, 6, "K")])
    assert verify(typed, encode(typed, markers), markers, types={"S", "K"}).spans == typed.spans
    wrong = verify(typed, encode(typed, markers), markers, types={"S"})
    assert wrong.codes == ("V6",)
    assert wrong.good == (Span(2, 4, "S"),)
    assert verify(typed, RIGHT, markers, types={"S"}).codes == ("V6",)


def test_lists():
    assert verify_list(X, '["team work", "SQL"]').spans == X.spans
    assert verify_list(X, ["teamwork"]).spans == (Span(2, 4),), "white space is ignored"
    assert verify_list(X, '["team work", "Java"]').codes == ("V7",)
    assert verify_list(X, '["team work", "Java"]').good == (Span(2, 4),)
    assert verify_list(X, '["SQL", "SQL"]').codes == ("V7",)
    assert verify_list(X, '["team work", "work"]').codes == ("V2",)
    assert verify_list(X, '{"text": "SQL"}').codes == ("V1",)
    assert verify_list(X, "SQL").codes == ("V1",)
    twice = Sentence(["SQL", "or", "SQL"])
    assert verify_list(twice, [{"text": "SQL", "occurrence": 2}]).spans == (Span(2, 3),)
    assert verify_list(twice, ["SQL", "SQL"]).spans == (Span(0, 1), Span(2, 3))


@pytest.mark.parametrize(
    ("answer", "made", "spans"),
    [
        (RIGHT.replace("@@SQL##", "SQL##"), ("r3",), ((2, 4),)),
        (RIGHT.replace("@@SQL##", "@@SQL"), ("r4",), ((2, 4), (5, 6))),
        (RIGHT.replace("@@team", "@@@@team").replace("work##", "work####"), ("r5",), ((2, 4), (5, 6))),
        ("we want @@team work ,## @@SQL## and care .", None, None),
        (RIGHT.replace("care", "patience"), ("r6",), ((2, 4), (5, 6))),
        (RIGHT.replace("SQL", "Java"), ("r6",), ((2, 4),)),
    ],
)
def test_repairs(answer, made, spans):
    found = repair(X, answer)
    if made is None:  # legal already: a comma at the end of a span is not only punctuation
        assert found == verify(X, answer)
        return
    assert found.repairs == made
    assert found.spans == tuple(Span(*span) for span in spans)
    assert repair(X, answer, allowed=()).errors == verify(X, answer).errors


@pytest.mark.parametrize(
    "answer", ["", "we want", "no skills here", "@@patience## and nothing of the sentence", "@@##"]
)
def test_an_answer_without_anything_to_keep_is_not_repaired_into_there_is_no_skill(answer):
    assert not repair(X, answer).ok
    assert repair(X, answer).repairs == ()


def test_trailing_punctuation_is_moved_out_when_something_else_fails():
    found = repair(X, "we want @@team work ,## @@SQL and care .")
    assert found.repairs == ("r4", "r2")
    assert found.spans == X.spans


def test_feedback_names_the_failure_and_keeps_what_is_right():
    checked = verify(X, RIGHT.replace("@@SQL##", "@@SQL"))
    said = verifier.feedback(X, checked)
    assert said.startswith("Every @@ needs one ## after it (")
    assert said.endswith("These spans are right, keep them: team work.")


def test_salvage_takes_each_occurrence_once():
    twice = Sentence(["SQL", "or", "SQL"])
    assert salvage(twice, "@@SQL## @@SQL## @@SQL## @@or## nonsense") == (Span(0, 1), Span(2, 3))
    assert untyped(salvage(X, "@@team work @@ work##")) == (Span(3, 4),)
