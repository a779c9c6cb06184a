"""The layouts of the authors' files, with sentences of our own: what agrees is read, what does not is refused."""

import json

import pytest

from zfu_lib.skills import released
from zfu_lib.skills.released import compare, from_released, label, read_released
from zfu_lib.skills.spans import Span, SpanError

TEXT = "负责SQL开发、沟通。"
TOKENS = ["负", "责", "SQL", "开", "发", "、", "沟", "通", "。"]
SPANS = (Span(2, 5, "S"), Span(6, 8, "T"))
RIGHT = ["O", "O", "B-S", "I-S", "I-S", "O", "B-T", "I-T", "O"]
LONG = ["O", "O", "B-S", "I-S", "I-S", "I-S", "B-T", "I-T", "I-T"]


def bare(tags):
    return [tag[:1] for tag in tags]


def record(tags=RIGHT, marked="负责@@SQL开发##[S]、@@沟通##[T]。", **more):
    """A record of the splits or, with tags that are right, of the corrected gold."""
    plain = marked.replace("[S]", "").replace("[T]", "")
    return {
        "id": "7-s0001", "global_id": "7", "sentence_order": 1, "sentence": TEXT, "tokens": TOKENS,
        "skill_spans": [[6, 8], [2, 5]], "tags_skill": bare(tags), "tags_skill_clean": tags,
        "sentence_with_tags": plain, "sentence_with_tags_4d": marked, "list_of_selection_bio4": tags,
        "list_of_selection": bare(tags), "title": "t", "source_domain": "d",
    } | more  # fmt: skip


SILVER = record(LONG, "负责@@SQL开发、##[S]@@沟通。##[T]")


def test_a_record_whose_fields_agree_is_read_in_every_way():
    for labels in ("agree", "offsets", "tags"):
        found = from_released(record(), labels=labels)
        assert (found.spans, found.text, found.tokens, found.id) == (SPANS, TEXT, tuple(TOKENS), "7-s0001")
    assert found.meta == {"posting": "7", "order": 1, "source": "d", "title": "t"}
    assert from_released(record(global_id=7)).meta["posting"] == "7"
    assert from_released(record(), labels="none").spans == ()
    assert compare(record()) == {"same": 2}


def test_tags_that_end_one_too_late_are_found_and_never_taken_by_default():
    with pytest.raises(SpanError, match=r"'7-s0001': skill_spans and list_of_selection_bio4 differ at \(2, 5"):
        from_released(SILVER)
    assert from_released(SILVER, labels="offsets").spans == SPANS
    assert from_released(SILVER, labels="tags").spans == (Span(2, 6, "S"), Span(6, 9, "T"))
    assert compare(SILVER) == {"end +1": 2}
    assert compare(record(["B-S", *RIGHT[1:]])) == {"other": 1, "same": 2}


def test_types_that_differ_are_refused():
    with pytest.raises(SpanError, match="differ"):
        from_released(record(tags_skill_clean=[t.replace("T", "K") for t in RIGHT]))
    with pytest.raises(SpanError, match="sentence_with_tags"):
        from_released(record(sentence_with_tags="负责@@SQL开发、沟通。"))
    with pytest.raises(SpanError, match="8 tags for 9 tokens"):
        from_released(record(list_of_selection=bare(RIGHT)[:-1]))
    no_types = {k: v for k, v in record().items() if k not in ("list_of_selection_bio4", "sentence_with_tags_4d")}
    no_types["tags_skill_clean"] = bare(RIGHT)
    with pytest.raises(SpanError, match="no field gives a type for 'SQL开发'"):
        from_released(no_types)


def test_the_other_layouts():
    style = {"id": "1", "sentence": TEXT, "tokens": TOKENS, "list_of_selection_bio4": RIGHT}
    assert from_released(style | {"goldstyle_spans": [[2, 5, "S"], [6, 8, "T"]]}).spans == SPANS
    people = [{"start": s.start, "end": s.end, "type": s.type, "text": "", "user": "a"} for s in SPANS]
    assert from_released(style | {"char_spans": people}).spans == SPANS
    line = {"example_id": 3, "text": " " + TEXT, "label": [[3, 8, "skills"], [9, 11, "Tranversial SKills"]]}
    found = from_released(line)
    assert [(found.words(s), s.type) for s in found.spans] == [("SQL开发", "S"), ("沟通", "T")]
    entities = [{"start_offset": a, "end_offset": b, "label": k} for a, b, k in line["label"]]
    assert from_released({"id": 3, "text": line["text"], "entities": entities}).spans == found.spans


def test_nobody_looked_is_not_nothing_is_there():
    empty = {
        "id": "1", "sentence": TEXT, "tokens": TOKENS, "skill_spans": [], "tags_skill": [], "tags_skill_clean": [],
        "sentence_with_tags": TEXT,
    }  # fmt: skip
    with pytest.raises(SpanError, match="labels='none'"):
        from_released(empty)
    assert from_released(empty, labels="none").tokens == tuple(TOKENS)
    nothing = empty | {"list_of_selection_bio4": ["O"] * 9}
    assert from_released(nothing).spans == from_released({"id": 1, "text": TEXT, "label": []}).spans == ()


def test_labels_by_name():
    names = ("Language_Skills&Knowledge", "knowledge", "SILVER_K", "SKILL", "skills", "T")
    assert [label(name) for name in names] == list("LKKSST")
    for name in ("tool", "", None):
        with pytest.raises(SpanError, match="no label of the released files"):
            label(name)
    with pytest.raises(SpanError, match="'Tool' is no label"):
        from_released({"id": 1, "text": TEXT, "label": [[0, 2, "Tool"]]})


def test_files(tmp_path):
    place = tmp_path / "split.json"
    other = record() | {"id": "7-s0002"}
    for text in (json.dumps([record(), other], indent=1), "\n".join(json.dumps(r) for r in (record(), other)) + "\n"):
        place.write_text(text, encoding="utf-8")
        assert [s.spans for s in read_released(place)] == [SPANS, SPANS]
    for text, says in (
        (json.dumps([record(), record()]), "split.json: 1 ids repeat, such as '7-s0001'"),
        ('{"id": 1', "neither a JSON array nor JSON lines"),
        ("[1]", "'1' is no record"),
        (json.dumps([record(sentence=" ")]), "has no text"),
        (json.dumps([record(sentence="别的")]), "is not at 0"),
    ):
        place.write_text(text, encoding="utf-8")
        with pytest.raises(SpanError, match=says):
            read_released(place)
    assert released.records('{"text": "a"}\n{"text": "b"}\n')[1] == {"text": "b"}
