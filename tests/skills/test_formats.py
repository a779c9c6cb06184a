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


def test_conll_as_others_write_it():
    news = "-DOCSTART- -X- O O\r\n\r\nEU NNP I-NP I-ORG\r\nBrussels  NNP  I-NP  B-ORG\r\nsaid VBD I-VP O\r\n"
    for column in (3, -1):
        (found,) = formats.from_conll(news, column=column)
        assert core(found) == (("EU", "Brussels", "said"), (Span(0, 1, "ORG"), Span(1, 2, "ORG")), "EU Brussels said")
    (found,) = formats.from_conll("数 B-S\n据 E-S\n库 S-K\n", joiner="")
    assert core(found) == (tuple("数据库"), (Span(0, 2, "S"), Span(2, 3, "K")), "数据库")
    with pytest.raises(SpanError, match="line 1: 'EU' has no column -1"):
        formats.from_conll("EU\n", column=-1)


def test_white_space_and_marks_of_the_format_as_tokens():
    spaced = Sentence.of_characters("负责\u3000数据 分\xa0析", spans=[(0, 4)])
    (found,) = formats.from_conll(formats.to_conll([spaced]), joiner="")
    assert core(found) == core(spaced)
    for token in ("-DOCSTART-", "\u2028", "\t", "a b", formats.SPACE):
        with pytest.raises(SpanError, match="cannot be a line"):
            formats.to_conll([Sentence((token,))])
    with pytest.raises(SpanError, match="cannot be a line"):
        formats.to_conll([Sentence(("a",), ((0, 1, "x\ty"),))])


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


LABEL = {"id": "a", "type": "labels", "value": {"start": 2, "end": 6, "text": "数据清洗", "labels": ["S"]}}


def studio(*regions, **more):
    return {"id": 7, "data": {"text": "负责数据清洗"}, "annotations": [{"result": list(regions), **more}]}


def test_label_studio_with_choices_beside_and_inside():
    of_region = {"id": "a", "type": "choices", "value": {"start": 2, "end": 6, "choices": ["sure"]}}
    of_task = {"id": "b", "type": "choices", "value": {"choices": ["good"]}}
    kinds = {"id": "a", "type": "taxonomy", "value": {"start": 2, "end": 6, "taxonomy": [["S", "data"]]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "a"}
    found = formats.from_label_studio(studio(of_region, LABEL, of_task, kinds, relation))
    assert (found.spans, found.id) == ((Span(2, 6, "S"),), "7")
    small = {"id": 7, "text": "负责数据清洗", "label": [LABEL["value"]], "annotator": 1}
    assert formats.from_label_studio(small).spans == found.spans
    assert formats.from_label_studio(studio()).spans == ()  # submitted without a region: a decision


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (studio({"value": {"start": "/p", "end": "/p", "hypertextlabels": ["S"]}}), "region without a label"),
        (studio({"id": "a", "value": {"start": 2, "end": 6}}), "region without a label"),
        (studio({"id": "a", "value": {"labels": ["S"]}}), "no label"),
        (studio(LABEL, was_cancelled=True), "that was submitted"),
        ({"id": 7, "data": {"text": "负责"}, "annotations": []}, "task '7' has 0 annotations"),
        ({"id": 7, "text": "负责"}, "task '7' has 0 annotations"),
        (studio({"id": "a", "value": {"start": 2, "end": 6, "labels": ["S", "K"]}}), "overlap"),
    ],
)
def test_what_label_studio_leaves_open_is_refused(task, says):
    with pytest.raises(SpanError, match=says):
        formats.from_label_studio(task)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "负责数据"}, "neither 'label' nor 'entities'"),
        ({"text": "负责", "label": [[0, 2, "S"]], "entities": [{"label": "S"}]}, "labels in label and entities"),
        ({"text": "负责数据", "label": ["S"]}, "'S' is no label"),
        ({"text": "负责数据", "label": [["2", "4", "S"]]}, "is no label"),
        ({"text": "负责数据", "label": [[2, 4, None]]}, "a word for the type"),
        ({"text": "负责数据", "entities": [{"label": "S"}]}, "is no label"),
        ({"text": 5, "label": []}, "no text: 5"),
    ],
)
def test_doccano_without_a_decision_is_refused(record, says):
    with pytest.raises(SpanError, match=says):
        formats.from_doccano(record)
    assert formats.from_doccano({"text": "负责", "label": [], "entities": []}).spans == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": "abc"}, "'tokens' must be a list"),
        ({"tokens": ["a", 1]}, "1 is no token"),
        ({"spans": None}, "'spans' must be a list"),
        ({"spans": [[0, 1]]}, "no span with 'start' and 'end'"),
        ({"spans": [{"start": 0.0, "end": 1.0}]}, "whole numbers"),
        ({"spans": [{"start": 0, "end": 1, "type": ""}]}, "a word for the type"),
    ],
)
def test_bad_records_are_refused(change, says):
    with pytest.raises(SpanError, match=f"'3'.*{says}"):
        formats.from_record({"id": "3", "tokens": ["a"], "spans": []} | change)


def test_meta_that_would_overwrite_a_field_is_refused():
    with pytest.raises(SpanError, match="meta has id, text"):
        formats.to_record(Sentence(("a",), meta={"id": "z", "text": "q"}))


def test_spacy_of_a_document_nobody_annotated():
    doc = {"text": "we use SQL", "tokens": [{"start": 0, "end": 2}, {"start": 3, "end": 6}, {"start": 7, "end": 10}]}
    with pytest.raises(SpanError, match="no entities set"):
        formats.from_spacy(doc)
    doc["spans"] = {"sc": [{"start": 7, "end": 10, "label": "S"}]}
    assert formats.from_spacy(doc, group="sc").spans == (Span(2, 3, "S"),)
    with pytest.raises(SpanError, match="no spans in group 'other'"):
        formats.from_spacy(doc, group="other")


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
