"""The guideline as rules, the macro stage, and how disputes are settled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.lm.protocol import GenResult
from zfu_lib.skills import chinese_skillspan as method
from zfu_lib.skills.chinese_skillspan import Choices
from zfu_lib.skills.markers import encode
from zfu_lib.skills.spans import Sentence, Span


def marked(text, *phrases):
    """A sentence with phrases given as (words, type)."""
    return Sentence.of_characters(
        text, spans=[(text.index(words), text.index(words) + len(words), kind) for words, kind in phrases], id="x"
    )


def rules(sentence):
    return [found.rule for found in method.review(sentence)]


@pytest.mark.parametrize(
    ("text", "phrase", "kind", "rule", "better"),
    [
        ("负责高效地编制年度预算。", "高效地编制年度预算", "S", "g6", ("编制年度预算", "S")),
        ("负责编制年度预算等工作。", "编制年度预算等", "S", "g6", ("编制年度预算", "S")),
        ("负责编制年度预算、审核合同。", "编制年度预算、", "S", "g6", ("编制年度预算", "S")),
        ("协助跨部门跟进项目进度。", "跨部门跟进项目进度", "S", "g8", ("跟进项目进度", "S")),
        ("熟悉ISO9001。", "ISO", "K", "g9", ("ISO9001", "K")),
        ("熟悉Python3.8。", "Python3.8", "K", "g9", ("Python", "K")),
        ("熟悉劳动合同法。", "劳动合同法", "S", "g10", ("劳动合同法", "K")),
        ("负责编制年度预算。", "编制年度预算", "K", "g10", ("编制年度预算", "S")),
        ("使用Python分析数据。", "使用Python分析数据", "K", "g10", ("使用Python分析数据", "S")),
        ("英语六级以上。", "英语六级", "K", "g10", ("英语六级", "L")),
    ],
)
def test_a_rule_objects_and_proposes(text, phrase, kind, rule, better):
    sentence = marked(text, (phrase, kind))
    found = [f for f in method.review(sentence) if f.rule == rule]
    assert len(found) == 1
    assert (sentence.words(found[0].better), found[0].better.type) == better
    span, used = method.mend(sentence, sentence.spans[0])
    assert (sentence.words(span), span.type) == better
    assert rule in used


def test_rules_that_only_object():
    assert "g1" in rules(marked("我们为客户提供编制年度预算服务。", ("编制年度预算", "S")))
    assert "g3" in rules(marked("负责编制年度预算。", ("编制年度预算", "Skill")))
    assert "g5" in rules(marked("负责" + "编制年度预算" * 5, ("编制年度预算" * 5, "S")))
    assert "g7" in rules(marked("熟悉税法、公司法。", ("税法、公司法", "K")))


def test_rules_are_silent_where_all_is_right():
    right = marked(
        "负责编制年度预算和核对数据，熟悉税法、公司法，具备良好的沟通能力，英语口语流利，能够独立思考。",
        ("编制年度预算", "S"), ("核对数据", "S"), ("税法", "K"), ("公司法", "K"), ("沟通能力", "T"), ("英语口语", "L"),
        ("独立思考", "T"),
    )  # fmt: skip
    assert rules(right) == []


def test_choices_settle_the_contradictions():
    exam = marked("英语六级以上。", ("英语六级", "L"))
    assert rules(exam) == []
    assert [f.better.type for f in method.review(exam, choices=Choices(certificate="K"))] == ["K"]


TEXT = "负责数据清洗、沟通，熟悉ISO9001等😀"
some_spans = st.tuples(st.integers(0, len(TEXT) - 1), st.integers(1, 9), st.sampled_from("LSKT"))


@settings(max_examples=200)
@given(some_spans)
def test_mending_ends_and_stays_inside(raw):
    sentence = Sentence.of_characters(TEXT)
    span = Span(raw[0], min(len(TEXT), raw[0] + raw[1]), raw[2])
    mended, _ = method.mend(sentence, span)
    sentence.with_spans([mended])
    assert method.mend(sentence, mended)[0] == mended


class Scripted:
    """Answers in order, as a language model."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def generate(self, requests):
        self.asked += requests
        return [GenResult(self.answers.pop(0), 0, 0, "stop") for _ in requests]


def test_macro_takes_only_legal_markings_and_asks_again_with_feedback():
    right = marked("负责数据清洗。", ("数据清洗", "S"))
    bare = right.with_spans([])
    good, reworded = encode(right, method.MARKERS), "负责清洗@@数据##[S]。"
    model = Scripted(good, "@@负责", good, reworded, reworded, reworded)
    one, two, three = method.macro(model, [bare, bare, bare])
    assert (one.spans, len(one.answers)) == (right.spans, 1)
    assert (two.spans, len(two.answers)) == (right.spans, 2)
    assert three.spans is None
    assert three.codes == ("V4",)
    assert "Copy the sentence unchanged" in model.asked[-1].prompt[-1].content
    assert "before: 负责数据清洗" in model.asked[-1].prompt[1].content


def test_unknown_labels_are_refused_and_never_become_s():
    bare = Sentence.of_characters("负责数据清洗。", id="x")
    silver = method.macro(Scripted("负责@@数据清洗##[Q]。"), [bare], retries=0)[0]
    assert silver.spans is None
    assert silver.codes == ("V6",)


def test_the_prompts_own_examples_are_legal():
    system = method.prompt(Sentence.of_characters("数据"))[0].content
    lines = system.partition("Examples:\n")[2].split("\n")
    for text, answer in zip(lines[::2], lines[1::2], strict=True):
        sentence = Sentence.of_characters(text)
        checked = method.verify(sentence, answer, method.MARKERS, types=method.LABELS)
        assert checked.ok
        assert method.review(sentence, checked.spans) == []


def settled(sentence, *layers):
    common, groups = method.disputes(layers)
    return common, [d for group in groups for d in method.resolve(sentence, group)]


def test_scope_is_decided_by_the_clause_before_the_majority():
    inside = marked("负责编制年度预算。", ("编制年度预算", "S"))
    _, (kept,) = settled(inside, inside.spans, (), ())
    assert kept.span == inside.spans[0]
    outside = marked("我们为客户提供编制年度预算服务。", ("编制年度预算", "S"))
    _, (dropped,) = settled(outside, outside.spans, outside.spans, ())
    assert dropped.span is None
    assert dropped.rule == "g1"


def test_boundaries_go_to_the_span_no_rule_objects_to():
    right = marked("负责编制年度预算等工作。", ("编制年度预算", "S"))
    wide = right.spans[0]._replace(start=0)
    assert settled(right, right.spans, (wide,))[1][0].span == right.spans[0]
    listed = marked("熟悉税法、公司法。", ("税法", "K"), ("公司法", "K"))
    whole = Span(2, 8, "K")
    _, decided = settled(listed, (whole,), listed.spans)
    assert [d.span for d in decided] == list(listed.spans)


def test_types_go_by_predicate_and_what_is_open_is_provisional():
    known = marked("熟悉劳动合同法。", ("劳动合同法", "K"))
    as_skill = known.spans[0]._replace(type="S")
    assert settled(known, known.spans, (as_skill,))[1][0].span.type == "K"
    bare = marked("沟通协调", ("沟通协调", "T"))
    _, (open_one,) = settled(bare, bare.spans, (bare.spans[0]._replace(type="K"),))
    assert open_one.open
    assert open_one.span.type == "S"


def test_disputes_hold_every_span_once():
    a, b = (Span(0, 4, "S"), Span(6, 8, "K")), (Span(0, 2, "S"), Span(2, 4, "S"), Span(6, 8, "K"))
    common, groups = method.disputes([a, b])
    assert common == (Span(6, 8, "K"),)
    assert groups == [[[Span(0, 4, "S")], [Span(0, 2, "S"), Span(2, 4, "S")]]]
