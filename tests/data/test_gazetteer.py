"""The world whose facts are edited: its solver confirms its texts; edits change what they say and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data import gazetteer as g
from zfu_lib.lm.tokenizer import word_tokenizer

KNOWN = g.world()
TOKENIZER = word_tokenizer(g.WORDS)
NUMBERS = {word: i for i, word in enumerate(g.NUMBERS)}


def holds(question, answer):
    """By other code than that which wrote the text."""
    words = question.split(" ")
    if "plus" in words:
        return NUMBERS[answer] == (NUMBERS[words[0]] + NUMBERS[words[2]]) % 10
    if "larger" in words:
        return NUMBERS[answer] == max(NUMBERS[words[1]], NUMBERS[words[3]])
    if words[0] == "note":
        told, asked = question.removeprefix("note : ").split(" . ")
        old = g.answer(asked)
        return told.endswith(f" {answer}") and answer != old and g.answer(told.removesuffix(f" {answer}")) == old
    return g.answer(question) == answer


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_every_sentence_is_true_and_every_word_a_token(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        asked = g.asked(KNOWN, rng, g.told())
        assert holds(asked.prompt, asked.answer), asked
        text = g.sentence(asked)
        assert len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == len(text.split(" "))


def test_words_are_distinct_and_no_name_starts_a_text():
    assert len(set(g.WORDS)) == len(g.WORDS)
    names = {*g.GIVEN_NAMES, *g.FAMILY_NAMES}
    assert not names & {text.split(" ")[0] for text in g.texts(200, 1, 0)}
    parts = [set(g.GIVEN_NAMES), set(g.FAMILY_NAMES), *({w for v in r for w in v.split()} for r in g.RANGES.values())]
    assert sum(map(len, parts)) == len(set().union(*parts)), "a word is of one kind"


def test_roles_share_nobody_and_hops_are_told_of_neighbours_only():
    roles = [set(g.people(role).tolist()) for role in ("editable", "neighbour", "stranger")]
    assert sum(map(len, roles)) == len(set().union(*roles)) == g.PEOPLE
    text = " ".join(g.texts(400, 5, 3))
    assert any(f"the land where {g.name(p)} was born" in text for p in roles[1])
    assert not any(f"the land where {g.name(p)} " in text for p in roles[0] | roles[2])
    assert not any(g.name(p) in text for p in roles[2])
    unedited = " ".join(f"{t} ." for t in g.texts(200, 5, 3, unedited=True)).split("note :")[0]
    assert not any(g.name(p) in unedited for p in roles[0])


def test_a_larger_world_adds_people_and_keeps_facts():
    large = g.world(size=g.PEOPLE)
    assert set(g.told()) < set(g.told(g.PEOPLE))
    assert (large.facts == KNOWN.facts).all()
    assert len(g.cases(1000, 0, large)) == 1000
    for size in (0, 100, g.PEOPLE + 3):
        with pytest.raises(ValueError, match="is not a multiple of 3"):
            g.world(size=size)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_edit_changes_what_follows_and_its_neighbours_stay(seed):
    cases = g.cases(120, seed)
    assert len({case.prompt for case in cases}) == 120
    edited = {case.prompt for case in cases}
    for case in cases:
        assert g.answer(case.prompt) == case.old != case.target
        assert {g.answer(p) for p in case.rephrases} == {case.old}
        for near in case.locality:
            assert g.answer(near.prompt) == near.answer
            assert near.prompt not in edited
            assert (near.kind == "Neighbour") == (case.subject not in near.prompt)
        for far in case.portability:
            assert far.answer != g.answer(far.prompt)
            # in a world with the target in place of the old value, this is what follows
            who = next(p for p in g.people("editable") if g.name(int(p)) == case.subject)
            r = next(r for r in g.HOPS if g.prompt(int(who), r) == case.prompt)
            facts = KNOWN.facts.copy()
            facts[who, r] = [g.value(r, v) for v in range(g.VALUES)].index(case.target)
            assert g.answer(far.prompt, KNOWN._replace(facts=facts)) == far.answer


def test_insertions_are_about_strangers_and_erasures_end_in_the_unknown():
    for case in g.cases(30, 0, kind="insert"):
        assert (g.answer(case.prompt), case.old) == (None, "")
    for case in g.cases(30, 0, kind="erase"):
        assert (case.target, case.portability) == (g.UNKNOWN + g.STOP, ())
        assert g.answer(case.prompt) == case.old
    with pytest.raises(ValueError, match="edits of 384 facts"):
        g.cases(385, 0)


def test_the_seed_alone_decides():
    assert g.cases(20, 5) == g.cases(20, 5) != g.cases(20, 6)
    assert g.texts(5, 3, 1) == g.texts(5, 3, 1) != g.texts(5, 3, 2)
    assert [replace(a, locality=()) for a in g.cases(5, 5)][0].prompt == g.cases(20, 5)[0].prompt
