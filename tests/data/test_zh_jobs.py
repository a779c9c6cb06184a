"""The synthetic Chinese job ads: byte for byte the same, gold by construction, proportions, phenomena."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data import zh_jobs
from zfu_lib.skills.spans import Sentence, Span

MIX = zh_jobs.STRATIFIED["test"]
ADS = zh_jobs.postings(60, 5, mix=MIX, name="t_")


def test_the_same_seed_gives_the_same_ads_and_another_others():
    assert zh_jobs.postings(5, 5, mix=MIX) == zh_jobs.postings(5, 5, mix=MIX)
    assert zh_jobs.postings(5, 5, mix=MIX) != zh_jobs.postings(5, 6, mix=MIX)
    assert all(ad.synthetic and ad.id.startswith("synth_") for ad in ADS)
    assert len({ad.id for ad in ADS}) == len(ADS)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(zh_jobs.SOURCES)))
def test_gold_is_a_set_of_disjoint_slices_that_name_their_entries(seed, source):
    heads = {entry.id: entry for entry in zh_jobs.lexicon()}
    for ad in zh_jobs.postings(2, seed, mix={source: 1.0}):
        Sentence.of_characters(ad.text, spans=tuple(Span(*mark[:3]) for mark in ad.spans))  # refuses overlaps
        assert len(ad.text) > 0
        assert "\n" not in ad.text
        for mark in ad.spans:
            words = ad.text[mark.start : mark.end]
            assert words == words.strip()
            if mark.entry and "typo" not in ad.tags:
                entry = heads[mark.entry]
                assert words == entry.head or "tool in use" in ad.tags and words.endswith(entry.head)
                assert mark.type == entry.type
        for mark in ad.near:
            inside = [s for s in ad.spans if s.start <= mark.start and mark.end <= s.end]
            apart = all(mark.end <= s.start or s.end <= mark.start for s in ad.spans)
            assert apart or inside and inside[0][:3] != mark[:3]
        for start, end, family, core in ad.clauses:
            assert 0 <= start <= core <= end <= len(ad.text)
            if family in ("nothing", "notice"):
                assert not any(start <= s.start and s.end <= end for s in ad.spans)


def test_types_follow_the_context():
    """The same tool is K after a knowing word, part of an S in use, and nothing in the company's courses."""
    tools = {entry.head for entry in zh_jobs.lexicon() if entry.kind == "tool"}
    seen = Counter()
    for ad in ADS:
        if "typo" in ad.tags:
            continue
        for mark in ad.spans:
            words = ad.text[mark.start : mark.end]
            if words in tools:
                assert mark.type == "K"
                assert re.search("(熟悉|掌握|了解|精通)([^，；。]*、)?$", ad.text[: mark.start])
                seen["known"] += 1
            if words.startswith(zh_jobs.USING) and any(tool in words for tool in tools):
                assert mark.type == "S"
                seen["used"] += 1
        for mark in ad.near:
            if ad.text[mark.start : mark.end] in tools and ad.text[mark.end :].startswith("培训"):
                seen["offered"] += 1
    assert min(seen[kind] for kind in ("known", "used", "offered")) > 3


def test_every_phenomenon_and_four_byte_characters_occur():
    tags = Counter(tag for ad in zh_jobs.postings(150, 1, mix=MIX) for tag in ad.tags)
    assert set(tags) >= {
        "list", "shared verb", "nested", "tool in use", "tool known", "version", "scene", "degree word", "company",
        "result", "nothing", "notice", "run-on", "cut off", "typo", "symbol",
    }  # fmt: skip
    assert any(ord(letter) > 0xFFFF for ad in ADS for letter in ad.text)


def test_public_notices_repeat_sentences_back_to_back():
    ads = zh_jobs.postings(30, 3, mix={"public": 1.0})
    again = [a for a, b in zip(ads, ads[1:], strict=False) if a.posting == b.posting and a.text == b.text]
    assert len(again) > 5
    assert {ad.source for ad in ads} == {"public"}


def test_wording_changes_with_the_year():
    heads = {entry.id: entry.head for entry in zh_jobs.lexicon()}

    def tools(year):
        ads = zh_jobs.postings(60, 9, mix={"tech": 1.0}, years=(year,))
        return {heads[m.entry] for ad in ads for m in (*ad.spans, *ad.near) if m.entry}

    assert "LangChain" in tools(2025)
    assert "LangChain" not in tools(2016)
    entry = next(e for e in zh_jobs.lexicon() if e.head == "Flash")
    assert entry.weight(2014) > 4 * entry.weight(2020)


def test_shares_of_sources_are_met_and_bad_ones_refused():
    count = Counter(ad.posting for ad in ADS)
    by_source = Counter({ad.posting: ad.source for ad in ADS}.values())
    assert len(count) == 60
    assert all(abs(by_source[s] - 60 * MIX[s]) <= 1 for s in MIX)
    with pytest.raises(ValueError, match="shares of"):
        zh_jobs.postings(1, 0, mix={"moon": 1.0})
    with pytest.raises(ValueError, match="shares of"):
        zh_jobs.postings(1, 0, mix={})


def test_the_lexicon_is_unique_and_no_clause_holds_unmarked_gold():
    found = zh_jobs.lexicon()
    assert len({entry.id for entry in found}) == len(found)
    assert {entry.type for entry in found} == set(zh_jobs.TYPES)
    assert len({(entry.type, entry.head) for entry in found}) == len(found)
