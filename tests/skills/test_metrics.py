"""Scores against seqeval, nervaluate and arithmetic by hand; the ways of fooling them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervaluate import Evaluator

from zfu_lib.skills import metrics
from zfu_lib.skills.spans import Sentence, Span, from_tags
from zfu_lib.skills.verifier import verify

SEQEVAL = json.loads(Path(__file__).with_name("seqeval.json").read_text())
RECORDED = SEQEVAL["cases"]


@st.composite
def side(draw, n: int) -> list[Span]:
    cuts = sorted(draw(st.sets(st.integers(0, n), max_size=6)))
    return [
        Span(a, b, draw(st.sampled_from("SK"))) for a, b in zip(cuts, cuts[1:], strict=False) if draw(st.booleans())
    ]


CORPORA = st.lists(st.integers(1, 9).flatmap(lambda n: st.tuples(side(n), side(n))), min_size=1, max_size=6)


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_equal_to_seqeval(case):
    """Recorded from seqeval 1.2.2 in its default mode, illegal tags included (it has no wheel to install here)."""
    gold, predicted = ([from_tags(tags.split()) for tags in case[key]] for key in ("gold", "predicted"))
    found = metrics.by_type(gold, predicted)
    for average in ("micro", "macro", "weighted"):
        assert found[average][:3] == pytest.approx(case["scores"][average][:3])


def test_ends_and_single_tokens_are_read_as_seqeval_reads_them():
    """Recorded from seqeval 1.2.2, get_entities on random BIOES tags, most of them illegal."""
    for tags, entities in SEQEVAL["entities"]:
        assert from_tags(tags.split()) == [tuple(span) for span in entities], tags


@given(CORPORA)
def test_equal_to_nervaluate(corpus):
    gold, predicted = zip(*corpus, strict=True)
    plain = [
        [[{"label": s[2], "start": s[0], "end": s[1] - 1} for s in spans] for spans in x] for x in (gold, predicted)
    ]
    if not any(plain[0]) and not any(plain[1]):
        return
    found = Evaluator(*plain, tags=["S", "K"], loader="dict").evaluate()["overall"]
    pairs = {
        "strict": metrics.strict(gold, predicted),
        "exact": metrics.strict(gold, predicted, typed=False),
        "partial": metrics.partial(gold, predicted),
    }
    for name, counts in pairs.items():
        assert counts.score()[:2] == pytest.approx((found[name].precision, found[name].recall)), name


@given(CORPORA)
def test_scores_are_ordered_and_bounded(corpus):
    gold, predicted = zip(*corpus, strict=True)
    exact, loose = metrics.strict(gold, predicted).score(), metrics.overlap(gold, predicted).score()
    any_type = metrics.overlap(gold, predicted, typed=False, iou=1e-9).score()
    assert 0 <= exact.f1 <= loose.f1 <= any_type.f1 <= 1
    assert metrics.strict(gold, gold).score().f1 == (1.0 if any(gold) else 0.0)
    assert metrics.strict(gold, predicted).score()[:2] == metrics.strict(predicted, gold).score()[1::-1]


def test_spans_of_different_sentences_never_meet():
    """A scorer that pools (start, end, type) over the corpus finds every span here; none is right."""
    gold = [[Span(0, 1)], [], [Span(2, 3)]]
    predicted = [[Span(2, 3)], [Span(0, 1)], []]
    pooled = len({s for x in gold for s in x} & {s for x in predicted for s in x})
    assert pooled == 2
    assert metrics.strict(gold, predicted).score().f1 == 0


def test_failed_sentences_count():
    gold = [[Span(0, 1)], [Span(0, 1)], [Span(0, 1)], []]
    predicted = [[Span(0, 1)], None, None, None]
    found = metrics.denominators(gold, predicted)
    assert found["all"] == (1.0, pytest.approx(1 / 3), 0.5, 3)
    assert found["valid only"] == (1.0, 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="4 gold sentences and 3 predictions"):
        metrics.strict(gold, predicted[:3])


def test_partial_formula_by_hand():
    """(1 + 1/2) / 3 predicted and / 2 gold: the formula, not the sample table of nervaluate's README."""
    found = metrics.partial([[Span(0, 2), Span(4, 6)]], [[Span(0, 2), Span(4, 5), Span(8, 9)]]).score()
    assert found == (0.5, 0.75, pytest.approx(0.6), 2)
    assert metrics.partial([[Span(0, 2), Span(3, 5)]], [[Span(0, 5)]]).score()[:2] == (0.5, 0.25)
    assert metrics.overlap([[Span(0, 2), Span(3, 5)]], [[Span(0, 5)]]).score().recall == 0


def test_the_public_codes_relaxed_precision_exceeds_one():
    assert metrics.touched([[Span(0, 1), Span(2, 3)]], [[Span(0, 3)]]).precision == 2.0


def test_no_spans_at_all():
    assert metrics.strict([[], []], [[], None]).score() == (0, 0, 0, 0)
    assert metrics.by_type([[]], [[]])["micro"].f1 == 0


def test_bootstrap_is_paired():
    rng = np.random.default_rng(0)
    gold = [[Span(0, 1)]] * 200
    a = [[Span(0, 1)] if x < 0.5 else [] for x in rng.random(200)]
    b = [[] if p and x < 0.1 else p for p, x in zip(a, rng.random(200), strict=True)]
    counts = metrics.strict(gold, a), metrics.strict(gold, b)
    apart, paired = counts[0].bootstrap(), counts[0].bootstrap(counts[1])
    assert np.mean(apart) == pytest.approx(counts[0].score().f1, abs=0.01)
    assert np.mean(paired) == pytest.approx(counts[0].score().f1 - counts[1].score().f1, abs=0.01)
    assert paired.std() < apart.std()
    assert np.array_equal(apart, counts[0].bootstrap())


def test_failures_and_hallucinations():
    x = Sentence(["use", "SQL", "daily"], ((1, 2),))
    checks = [
        verify(x, text) for text in ("use @@SQL## daily", "use @@SQL daily", "use @@Java## daily", "@@us##e SQL daily")
    ]
    assert metrics.invalid_rate(checks).tolist() == [0, 1, 1, 0], "an edge inside a word is no format error"
    assert metrics.error_counts(checks) == {"V1": 1, "V4": 1, "V5": 1}
    assert metrics.hallucinated([x, x], [["SQL"], ["Java", "us"]]) == (2, 3)


def test_drift():
    found = metrics.drift([[Span(2, 4), Span(6, 7)]], [[Span(1, 4), Span(6, 7), Span(9, 10)]])
    assert found == (pytest.approx(1 / 3), (-1,), (0,))
    assert metrics.drift([[Span(0, 1), Span(2, 3)]], [[Span(0, 3)]]).share == 0, "overlaps two"
    assert metrics.drift([[]], [None]).share == 0


def test_coordination():
    x = Sentence(["SQL", "and", "Python", ",", "clear", "writing", "daily", "tests"], ((0, 1), (2, 3), (4, 6), (7, 8)))
    assert metrics.coordinated(x) == [(Span(0, 1), Span(2, 3)), (Span(2, 3), Span(4, 6))]
    assert metrics.coordination([x], [[Span(0, 1), Span(2, 3), Span(4, 5)]]).tolist() == [1, 0]
    assert metrics.recall_of([x], [[Span(0, 1)]], lambda s, span: span.end - span.start == 1) == (1, 3)


def test_a_hundred_thousand_sentences_in_two_seconds():
    rng = np.random.default_rng(0)
    some = [[Span(5 * i + a, 5 * i + b) for i, (a, b) in enumerate(x)] for x in rng.integers(0, 5, (1000, 3, 2))]
    gold, predicted = some * 100, [*some[1:], some[0]] * 100
    began = time.process_time()
    metrics.strict(gold, predicted).score()
    assert time.process_time() - began < 2
