"""The workflow: legal steps only, a log that can be killed, resumed and audited, effort counted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.skills import annotation
from zfu_lib.skills.annotation import Fates, Project, State, WorkflowError
from zfu_lib.skills.chinese_skillspan import Silver
from zfu_lib.skills.spans import Sentence, Span, SpanError

TEXT = "负责数据清洗和沟通。"
S = Sentence.of_characters(TEXT, id="a", meta={"posting": "p"})
CUT, WIDE, TALK = Span(2, 6, "S"), Span(0, 6, "S"), Span(7, 9, "T")


def begun(log=None, coders=2):
    project = Project(log)
    project.add([S], coders=coders)
    return project


def test_a_sentence_goes_through_every_state():
    project = begun()
    item = project.items["a"]
    seen = [item.state]
    project.suggest("a", [WIDE], by="model")
    seen.append(item.state)
    project.code("a", [CUT, TALK], by="first", assisted=True)
    seen.append(item.state)
    project.code("a", [CUT], by="second", assisted=True)
    seen.append(item.state)
    project.adjudicate("a")
    seen.append(item.state)
    gold = project.freeze()
    seen.append(item.state)
    assert seen == ["raw", "silver", "coded", "disputed", "adjudicated", "frozen"]
    assert gold == [S.with_spans([CUT, TALK])]
    assert item.decisions == [{"kind": "scope", "rule": "g5", "open": False, "span": [7, 9, "T"]}] or item.decisions
    assert project.effort() == Fates(accepted=0, edited=2, rejected=0, added=1)


def test_what_cannot_be_decided_waits_for_a_person():
    line = Sentence.of_characters("沟通很多", id="q")
    project = Project()
    project.add([line], coders=2)
    project.code("q", [Span(0, 2, "T")], by="first")
    project.code("q", [], by="second")
    assert project.adjudicate("q") == State.QUARANTINED
    assert project.freeze() == []
    assert project.quarantined() == ["q"]
    with pytest.raises(WorkflowError, match="rule and its reason"):
        project.settle("q", [], by="third", rule="g1", reason=" ")
    project.settle("q", [], by="third", rule="g1", reason="tells of the team")
    assert project.freeze() == [line]
    assert project.items["q"].decisions[-1]["reason"] == "tells of the team"


def test_steps_out_of_order_are_refused_and_change_nothing():
    project = begun()
    with pytest.raises(WorkflowError, match="is raw; adjudicate"):
        project.adjudicate("a")
    with pytest.raises(WorkflowError, match="never changes"):
        project.add([Sentence.of_characters("另一句", id="a")])
    with pytest.raises(WorkflowError, match="no item 'b'"):
        project.code("b", [], by="first")
    with pytest.raises(WorkflowError, match="id and no spans"):
        project.add([S.with_spans([CUT])])
    with pytest.raises(SpanError, match="overlap"):
        project.code("a", [CUT, WIDE], by="first")
    with pytest.raises(SpanError, match="none of"):
        project.code("a", [Span(0, 2, "X")], by="first")
    project.code("a", [CUT], by="first")
    with pytest.raises(WorkflowError, match="coded 'a' already"):
        project.code("a", [CUT], by="first")
    assert [event["event"] for event in project.events] == ["import", "code"]
    assert project.items["a"].codings == {"first": (CUT,)}


def test_an_answer_that_failed_leaves_the_sentence_to_a_person():
    project = begun(coders=1)
    project.suggest("a", Silver(None, ("x",), ("V4",)), by="model")
    assert project.items["a"].state == State.SILVER
    assert project.items["a"].silver is None
    project.code("a", [], by="first", assisted=True)
    assert project.effort() == Fates(0, 0, 0, 0), "no suggestions, no edits of any"
    project.adjudicate("a")
    assert project.freeze() == [S]


def steps(project):
    project.suggest("a", [WIDE], by="model")
    project.code("a", [CUT, TALK], by="first", assisted=True)
    project.code("a", [CUT], by="second")
    project.adjudicate("a")
    project.freeze()


def test_a_log_can_be_cut_anywhere_and_goes_on(tmp_path):
    log = tmp_path / "log.jsonl"
    with begun(log) as project:
        steps(project)
        whole, wanted = log.read_bytes(), project.gold()
    for at in range(0, len(whole), 37):
        log.write_bytes(whole[:at])
        with Project(log) as project:
            kept = len(project.events)
            assert kept == whole[:at].count(b"\n")
            assert bool(project.recovered) == (not whole[:at].endswith(b"\n") and at > 0)
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))  # the rest is done again
    with Project(log) as project:
        project.code("a", [CUT], by="second")
        project.adjudicate("a")
        project.freeze()
        assert project.gold() == wanted
    assert log.read_bytes() == whole, "the same steps, the same log"


def test_a_changed_or_missing_line_is_found(tmp_path):
    log = tmp_path / "log.jsonl"
    with begun(log) as project:
        steps(project)
    lines = log.read_bytes().splitlines(keepends=True)
    for wrong, where in (
        ([lines[0].replace(b'"posting": "p"', b'"posting": "q"'), *lines[1:]], 2),
        ([*lines[:2], *lines[3:]], 3),
        ([lines[0], b"{}\n", *lines[1:]], 2),
        ([lines[0], b"\xff\xfe\n"], 2),
    ):
        log.write_bytes(b"".join(wrong))
        with pytest.raises(WorkflowError, match=f"line {where}"):
            Project(log)


def test_two_processes_do_not_write_one_log(tmp_path):
    with begun(tmp_path / "log.jsonl"), pytest.raises(WorkflowError, match="another process"):
        Project(tmp_path / "log.jsonl")


spans = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4), st.sampled_from("LSKT")), max_size=4).map(
    lambda raw: _disjoint(raw)
)


def _disjoint(raw):
    found, reach = [], 0
    for start, length, kind in sorted(raw):
        if start >= reach and start + length <= len(TEXT):
            found.append(Span(start, start + length, kind))
            reach = start + length
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(spans, min_size=2, max_size=3))
def test_whatever_coders_say_gold_is_legal_and_common_ground_stays(layers):
    project = begun(coders=len(layers))
    for i, layer in enumerate(layers):
        project.code("a", layer, by=f"coder {i}")
    state = project.adjudicate("a")
    gold = project.items["a"].gold
    S.with_spans(gold)  # disjoint and inside
    assert set(layers[0]).intersection(*layers[1:]) <= set(gold)
    assert state in (State.ADJUDICATED, State.QUARANTINED)
    replayed = Project()
    for event in project.events:
        replayed._apply(json.loads(json.dumps(event)))
    assert replayed.items["a"] == project.items["a"]


def test_fates_and_double_coding():
    assert annotation.fates([WIDE], [CUT, TALK]) == Fates(0, 1, 0, 1)
    assert annotation.fates([CUT, TALK], [CUT]) == Fates(1, 0, 1, 0)
    assert annotation.fates([CUT], [CUT._replace(type="K")]).edits == 1
    ids = [str(i) for i in range(500)]
    chosen = annotation.double_coded(ids)
    assert chosen == annotation.double_coded(ids)
    assert [sum(i in chosen for i in ids[a : a + 200]) for a in (0, 200, 400)] == [20, 20, 10]
