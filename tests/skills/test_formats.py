"""Every format gives back what it was given, for words and for characters, and refuses what it would have to guess."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given

from zfu_lib.skills import formats
from zfu_lib.skills.spans import Sentence, Span, SpanError

spec = importlib.util.spec_from_file_location("drawn", Path(__file__).with_name("conftest.py"))
drawn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawn)


def core(sentence):
    return sentence.tokens, sentence.spans, sentence.text


@given(drawn.sentences())
def test_json_lines(sentence):
    (found,) = formats.from_jsonl(formats.to_jsonl([sentence]))
    assert found == sentence


@given(drawn.worded())
def test_conll_of_words(sentence):
    if any(letter.isspace() or letter == formats.SPACE for token in sentence.tokens for letter in token):
        return
    if sentence.tokens[0].startswith("### "):
        return
    (found,) = formats.from_conll(formats.to_conll([sentence]))
    assert core(found) == core(sentence)


@given(drawn.characters())
def test_conll_of_characters(sentence):
    (found,) = formats.from_conll(formats.to_conll([sentence]), joiner="")
    assert core(found) == core(sentence)


@given(drawn.sentences())
def test_tools_with_code_points(sentence):
    unit = "character" if len(sentence.text) == len(sentence.tokens) else "space"
    if any(letter.isspace() for token in sentence.tokens for letter in token):
        return
    doccano = json.loads(json.dumps(formats.to_doccano(sentence)))
    assert core(formats.from_doccano(doccano, unit=unit)) == core(sentence)
    task = json.loads(json.dumps(formats.to_label_studio(sentence)))
    assert core(formats.from_label_studio(task, unit=unit)) == core(sentence)
    assert core(formats.from_spacy(json.loads(json.dumps(formats.to_spacy(sentence))))) == core(sentence)


def test_conll_of_a_posting_with_two_layers():
    text = "### posting 7\nUse\tO\tO\nSQL\tO\tB\nwell\t\tO\n\nLead\tB\tO\nteams\tI\tO\n"
    first, second = formats.from_conll(text, column=2)
    assert (first.spans, second.spans) == ((Span(1, 2),), ())
    assert first.meta == {"posting": "posting 7"}
    assert formats.from_conll(text, column=1)[1].spans == (Span(0, 2),)
    with pytest.raises(SpanError, match="line 2: .* has no column 3"):
        formats.from_conll(text, column=3)
    with pytest.raises(SpanError, match="tag 1 is 'Q'"):
        formats.from_conll("a\tO\nb\tQ\n")


def test_doccano_forms():
    flat = {"text": "负责数据清洗", "label": [[2, 6, "S"]]}
    entities = {"text": "负责数据清洗", "entities": [{"start_offset": 2, "end_offset": 6, "label": "S"}]}
    assert formats.from_doccano(flat).spans == formats.from_doccano(entities).spans == (Span(2, 6, "S"),)
    with pytest.raises(SpanError, match="overlap"):
        formats.from_doccano({"text": "ab cd", "label": [[0, 5, "S"], [3, 5, "S"]]})
    with pytest.raises(SpanError, match="do not begin and end"):
        formats.from_doccano({"text": "ab cd", "label": [[0, 4, "S"]]})
    with pytest.raises(SpanError, match="there is no 'text'"):
        formats.from_doccano({"text": "", "label": []})


def test_stored_words_must_be_the_slice():
    record = formats.to_record(Sentence(("use", "SQL"), ((1, 2),), id="7"))
    record["spans"][0]["text"] = "SQL "
    with pytest.raises(SpanError, match="record '7'"):
        formats.from_record(record)
    task = formats.to_label_studio(Sentence(("use", "SQL"), ((1, 2),)))
    task["annotations"][0]["result"][0]["value"]["end"] = 6
    with pytest.raises(SpanError, match="is stored for"):
        formats.from_label_studio(task)
    with pytest.raises(SpanError, match="not one numbered 1"):
        formats.from_label_studio(task, annotation=1)


def test_mixed_encodings_are_named(tmp_path):
    place = tmp_path / "ads.conll"
    place.write_bytes(b"gut\tO\n" + "für\tO\n".encode("latin-1"))
    with pytest.raises(SpanError, match="ads.conll, line 2: byte 0xfc is not UTF-8"):
        formats.read_text(place)
    place.write_bytes(b"\xef\xbb\xbfa\tB\r\nb\tI\r\n")
    assert formats.from_conll(formats.read_text(place))[0].spans == (Span(0, 2),)
    with pytest.raises(SpanError, match="line 2 is no JSON"):
        formats.from_jsonl('{"id": "1", "tokens": ["a"], "spans": []}\n{"id"\n')
