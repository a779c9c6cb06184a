"""Sentences, tags and markers: what goes in comes out, and what cannot be meant is refused."""

import contextlib
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.skills.markers import Markers, decode, encode
from zfu_lib.skills.spans import Sentence, Span, SpanError, from_tags, stray_tags, to_tags, tokenize, untyped


def load(name: str):
    """A module beside this file (tests are no package)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawn = load("conftest")
TAGS = st.lists(st.sampled_from(["O", "B", "I", "B-S", "I-S", "B-K", "I-K", ""]), max_size=12)


@given(drawn.sentences())
def test_tags_give_the_spans_back(sentence):
    assert tuple(from_tags(to_tags(sentence))) == sentence.spans
    assert tuple(from_tags(to_tags(sentence), stray="drop")) == sentence.spans
    assert tuple(from_tags(to_tags(sentence, typed=False))) == untyped(sentence.spans)
    assert not stray_tags(to_tags(sentence))


@given(TAGS)
def test_any_tags_give_disjoint_spans_and_strays_say_where_readings_differ(tags):
    opened, dropped = from_tags(tags), from_tags(tags, stray="drop")
    Sentence(("x",) * max(1, len(tags)), tuple(opened))
    assert set(dropped) <= set(opened)
    assert (opened == dropped) == (not stray_tags(tags))


@pytest.mark.parametrize("letters", ["BIES", "BMES", "BILU"])
@given(sentence=drawn.sentences())
def test_tags_that_mark_ends_give_the_spans_back(letters, sentence):
    begin, inside, last, single = letters
    tags = ["O"] * len(sentence.tokens)
    for start, end, kind in sentence.spans:
        n = end - start
        own = single if n == 1 else begin + inside * (n - 2) + last
        tags[start:end] = [f"{letter}-{kind}" for letter in own]
    for stray in ("open", "drop"):
        assert tuple(from_tags(tags, stray=stray)) == sentence.spans
    assert from_tags([f"{inside}-S", f"{last}-S", f"{last}-S"]) == [Span(0, 2, "S"), Span(2, 3, "S")]
    assert from_tags([f"{inside}-S", f"{last}-S"], stray="drop") == []


@given(drawn.sentences(), st.booleans(), st.booleans())
def test_markers_give_the_spans_back(sentence, typed, spaced):
    """par(enc(x, S)) = S, touching spans and marker characters in the text included, with markers that avoid it."""
    markers = Markers(typed=typed, spaced=spaced).avoiding(sentence.text)
    wanted = sentence.spans if typed else untyped(sentence.spans)
    assert decode(sentence, encode(sentence, markers), markers) == wanted


@given(drawn.sentences())
def test_markers_that_could_be_misread_are_refused(sentence):
    """Whatever the text holds: either the default markers read back exactly, or encode refuses."""
    with contextlib.suppress(SpanError):
        assert decode(sentence, encode(sentence)) == untyped(sentence.spans)
    if not any(letter in sentence.text for letter in "@#"):
        encode(sentence)


def test_markers_by_hand():
    sentence = Sentence(("use", "C#", "and", "team", "work", "."), ((1, 2), (3, 5)))
    assert encode(sentence) == "use @@C### and @@team work## ."
    assert decode(sentence, encode(sentence)) == sentence.spans
    chinese = Sentence.of_characters("负责数据清洗和沟通", spans=((2, 6, "S"), (7, 9, "T")))
    assert encode(chinese, Markers(typed=True)) == "负责@@数据清洗##[S]和@@沟通##[T]"
    assert [chinese.words(span) for span in chinese.spans] == ["数据清洗", "沟通"]
    touching = Sentence(("a", "b"), ((0, 1), (1, 2)))
    assert encode(touching) == "@@a## @@b##"
    assert encode(touching, Markers(spaced=True)) == "@@ a ## @@ b ##"
    with pytest.raises(SpanError, match="avoiding"):
        encode(Sentence.of_characters("C#", spans=((0, 1),)))


@pytest.mark.parametrize(
    ("tokens", "spans", "says"),
    [
        ((), (), "at least one token"),
        (("a", ""), (), "token 1 is empty"),
        (("a", "b"), ((0, 2), (1, 2)), "overlap"),
        (("a",), ((0, 0),), "empty or leaves"),
        (("a",), ((0, 2),), "leaves its 1 tokens"),
        (("a\ud83d",), (), "surrogate"),
    ],
)
def test_what_cannot_be_a_sentence_is_refused(tokens, spans, says):
    with pytest.raises(SpanError, match=says):
        Sentence(tokens, spans)


def test_a_text_that_is_not_its_tokens_is_refused():
    with pytest.raises(SpanError, match="token 1 'c' is not at"):
        Sentence(("a", "c"), (), "a b")
    with pytest.raises(SpanError, match="after the last token"):
        Sentence(("a",), (), "a b")
    with pytest.raises(SpanError, match="'B-S-x'|expected O"):
        from_tags(["X-S"])


def test_offsets_are_code_points():
    sentence = Sentence(("👩‍💻", "naïve"), ((1, 2),), "👩‍💻  naïve")
    assert sentence.characters(sentence.spans[0]) == (5, 10)
    assert sentence.token_span(5, 10, "S") == Span(1, 2, "S")
    with pytest.raises(SpanError, match="do not begin and end with a token"):
        sentence.token_span(5, 9)


def test_tokenize():
    assert tokenize("熟悉Python 3、SQL", "mixed") == ("熟", "悉", "Python", "3", "、", "SQL")
    assert tokenize("熟悉 C", "character") == ("熟", "悉", "C")
    assert tokenize(" a  b ") == ("a", "b")
