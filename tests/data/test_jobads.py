"""Generated job ads: skills by construction, repeatable, ambiguous, with a long tail."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data.worlds import jobads

SKILLS = set(jobads.skills())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 2))
def test_spans_are_disjoint_skills_and_every_word_is_known(seed, skew):
    for ad in jobads.ads(20, seed, skew=skew):
        ends = [0, *(end for _, end in ad.spans)]
        assert all(before <= start < end <= len(ad.tokens) for before, (start, end) in zip(ends, ad.spans))
        assert {" ".join(ad.tokens[a:b]) for a, b in ad.spans} <= SKILLS
        assert set(ad.tokens) <= set(jobads.WORDS)


def test_the_seed_alone_decides():
    assert jobads.ads(30, 7) == jobads.ads(30, 7)
    assert jobads.ads(30, 7)[:10] == jobads.ads(10, 7)
    assert [ad.tokens for ad in jobads.ads(30, 7)] != [ad.tokens for ad in jobads.ads(30, 8)]
    assert jobads.ads(6, 7, per_posting=5)[5].posting == "7-p1"


def test_a_phrase_alone_does_not_say_whether_it_is_a_skill():
    ads = jobads.ads(2000, 1)
    marked = {" ".join(ad.tokens[a:b]) for ad in ads for a, b in ad.spans}
    bare = [
        re.sub(r"\s+", " ", " ".join(t for i, t in enumerate(ad.tokens) if not any(a <= i < b for a, b in ad.spans)))
        for ad in ads
    ]
    both = [phrase for phrase in marked if any(f" {phrase} " in f" {text} " for text in bare)]
    assert len(both) > 0.2 * len(marked)


def test_shared_heads_stay_whole_and_lists_are_split():
    ads = jobads.ads(2000, 2)
    texts = [(" ".join(ad.tokens[a:b]), ad) for ad in ads for a, b in ad.spans]
    joined = [text for text, _ in texts if " and " in text]
    assert joined
    assert all(re.fullmatch(r"\w+ and \w+ (communication|correspondence|documentation|planning)", t) for t in joined)
    assert any(len(ad.spans) >= 3 for ad in ads)


def test_some_test_skills_are_new_and_some_sentences_repeat():
    train, test = jobads.ads(200, 3), jobads.ads(200, 4)
    known = {ad.tokens[a:b] for ad in train for a, b in ad.spans}
    spans = [ad.tokens[a:b] for ad in test for a, b in ad.spans]
    unseen = sum(span not in known for span in spans) / len(spans)
    assert 0.1 < unseen < 0.6
    sentences = {ad.tokens for ad in train}
    assert 10 < sum(ad.tokens in sentences for ad in test) < 150


def test_the_share_of_sentences_that_ask():
    assert all(ad.spans for ad in jobads.ads(100, 5, asking=1.0))
    assert not any(ad.spans for ad in jobads.ads(100, 5, asking=0.0))


def test_taxonomy_covers_its_share():
    entries = jobads.taxonomy(0.5)
    assert len(entries) == round(0.5 * len(SKILLS))
    assert {entry.label for entry in entries} <= SKILLS
    assert len({entry.label for entry in entries}) == len(entries)
    for call in (
        lambda: jobads.taxonomy(2),
        lambda: jobads.ads(1, 0, asking=-1),
        lambda: jobads.ads(1, 0, per_posting=0),
    ):
        with pytest.raises(ValueError, match="share|at least 1"):
            call()
