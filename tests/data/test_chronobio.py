"""ChronoBio: what its items say is true, worked out here by other code than the generator's and the solver's."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data.worlds import chronobio
from zfu_lib.data.worlds.chronobio import KINDS, RELATIONS, Contradiction, Spec, solve

SPECS = {
    "dossier": Spec(),
    "explicit": Spec(implicit=0.0),
    "implicit": Spec(implicit=1.0),
    "months": Spec(months=True),
    "terse": Spec(terse=True, implicit=0.8),
    "terse months": Spec(terse=True, months=True),
    "small": Spec(facts=3, relations=1, distractors=1, objects=8, years=(1950, 1999), shuffled=False),
}
of_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))


@of_spec
def test_the_solver_finds_every_answer_from_the_text_alone(spec):
    for kind in KINDS:
        rng = np.random.default_rng(3)
        for _ in range(8):
            item = chronobio.item(rng, kind, spec)
            assert solve(item.document, item.question) == item.answer, item


@of_spec
def test_further_questions_are_others_with_right_answers_that_the_timeline_gives(spec):
    rng, found = np.random.default_rng(4), 0
    for item in chronobio.items(20, 6, spec):
        asked = chronobio.further(rng, item, 5)
        found += len(asked)
        assert len({item.question, *(q for q, _, _ in asked)}) == 1 + len(asked) <= 6
        for question, answer, path in asked:
            assert solve(item.document, question) == answer
            assert all(set(item.told[i].needs) <= set(path) for i in path)
            if item.timeline and not spec.shuffled:
                kept = {*path, *item.timeline}
                told = " ".join(item.told[i].text for i in sorted({*kept, *_leant(item, kept)}))
                assert solve(told, question) == answer, "the chains of the timeline suffice"
    assert found > 50


def _leant(item, kept):
    """The facts that ``kept`` lean on, directly or not."""
    more = {j for i in kept for j in item.told[i].needs} - kept
    return more | _leant(item, kept | more) if more else set()


@of_spec
def test_the_text_gives_back_the_facts(spec):
    for item in chronobio.items(10, 5, spec):
        assert sorted(map(repr, chronobio.read(item.document))) == sorted(map(repr, item.facts))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(SPECS)), st.integers(0, 10**6))
def test_nobody_has_two_objects_of_a_relation_at_once(name, seed):
    (item,) = chronobio.items(1, seed, SPECS[name])
    chains = Counter()
    for f in item.facts:
        assert f.start < f.end
        for time in range(f.start, f.end):
            chains[f.subject, f.relation, time] += 1
    assert max(chains.values()) == 1
    assert len({f.object for f in item.facts}) == len(item.facts)
    assert {RELATIONS[f.relation][1] for f in item.facts} <= {"joined", "reached", "entered", "took"}


def test_closed_intervals_would_give_some_questions_two_answers_and_half_open_ones_give_none():
    twice = unknown = 0
    made = chronobio.items(1500, 1, Spec(kinds=("in", "unknown")))
    for item in made:
        year = int(item.question.split()[-2])
        chain = [item.facts[i] for i in item.timeline]
        twice += sum(f.start <= year <= f.end for f in chain) > 1
        assert sum(f.at(year) for f in chain) == (item.answer != "unknown")
        unknown += item.answer == "unknown"
    assert 0.03 < twice / len(made) < 0.25
    assert 0.4 < unknown / len(made) < 0.6


def test_the_dial_turns_the_share_of_implicit_facts():
    def share(implicit):
        made = chronobio.items(150, 2, replace(Spec(), implicit=implicit, kinds=("in",)))
        return np.mean([told.implicit for item in made for told in item.told])

    assert share(0.0) == 0.0
    assert share(0.5) == pytest.approx(0.375, abs=0.03)  # three facts of four may lean
    assert share(1.0) == pytest.approx(0.75, abs=0.01)


def test_a_solver_that_reads_dates_only_is_perfect_without_implicit_facts_and_fails_with_them():
    def right(implicit):
        made = chronobio.items(200, 4, replace(Spec(), implicit=implicit, kinds=("in", "duration", "longer", "when")))
        return np.mean([solve(i.document, i.question, dated_only=True) == i.answer for i in made])

    assert right(0.0) == 1.0
    assert right(1.0) < 0.4


@of_spec
def test_the_answer_rests_on_its_path(spec):
    for item in chronobio.items(25, 6, spec):
        if item.kind in ("shift", "distance"):
            assert item.path == ()
            continue
        kept = replace(item, order=tuple(i for i in item.order if i in item.path))
        facts = chronobio.read(kept.document)  # no sentence leans on one that is not there
        assert {f.object for f in facts} == {item.facts[i].object for i in item.path}
        assert set(item.support) == {item.told[i].text for i in item.path}
        if item.kind not in ("ordinal", "count", "unknown", "previous", "next"):
            assert solve(kept.document, item.question) == item.answer


def test_steps_lead_to_the_answer():
    for item in chronobio.items(150, 7, Spec(kinds=("when", "later", "longer", "overlap"))):
        assert item.compound
        assert len(item.sub) == 2
        for question, answer in item.sub:
            if " then ?" in question:
                # "then" is the year of the step before; years later are added here.
                n = re.search(r"have (\d+) years? after then", question)
                year = int(item.sub[0][1]) + (int(n[1]) if n else 0)
                question = re.sub(r"have .*", f"have in {year} ?", question)
                assert answer == item.answer
            assert solve(item.document, question) == answer
        if item.kind == "longer":
            lengths = [int(answer) for _, answer in item.sub]
            assert item.answer == re.findall(r"with (\w+)", item.sub[int(np.argmax(lengths))][0])[0]


def test_timelines_are_by_time_and_whole_chains():
    for item in chronobio.items(60, 8):
        chain = [item.facts[i] for i in item.timeline]
        assert [f.start for f in chain] == sorted(f.start for f in chain)
        groups = {(f.subject, f.relation) for f in chain}
        assert len(chain) == item.spec.facts * len(groups)


def test_options_hold_the_answer():
    for item in chronobio.items(120, 9):
        if item.options:
            assert item.answer in item.options
            assert len(item.options) == item.spec.facts + 1


def test_items_are_a_function_of_their_seed():
    one, again, other = (chronobio.items(5, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_words_are_all_there_is():
    known = {*chronobio.WORDS, *[".", ",", "?", ":", "or"], *map(str, range(2100))}
    for spec in SPECS.values():
        for item in chronobio.items(30, 10, spec):
            assert set(f"{item.document} {item.question} {item.answer}".split()) <= known


SHORT = "ada joined alcorp in 1951 and left in 1954 . "
SHORT += "ada joined borbank 2 years after ada left alcorp and left 3 years later . "
SHORT += "from 1950 to 1957 the city of zoe was galton ."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("which employer did ada have in 1953 ?", "alcorp"),
        ("which employer did ada have in 1954 ?", "unknown"),  # half open: she has left
        ("which employer did ada have in 1956 ?", "borbank"),
        ("which employer did ada have before 1953 ?", "alcorp"),
        ("which employer did ada have after 1953 ?", "unknown"),  # two fit
        ("which employer did ada have between 1952 and 1956 ?", "alcorp"),
        ("which employer did ada have right after alcorp ?", "borbank"),
        ("which employer did ada have right before alcorp ?", "unknown"),
        ("how many years was ada with borbank ?", "3"),
        ("which was the last employer of ada ?", "borbank"),
        ("which was the third employer of ada ?", "unknown"),
        ("how many employers did ada have between 1950 and 1960 ?", "2"),
        ("which employer did ada have longer , alcorp or borbank ?", "unknown"),  # both three years
        ("for how many years were ada with borbank and zoe with galton at the same time ?", "1"),
        ("which employer did ada have when zoe left galton ?", "borbank"),
        ("which employer did ada have 3 years after zoe reached galton ?", "alcorp"),
        ("which employer did nobody have in 1953 ?", "unknown"),
        ("which year is 3 years after 1954 ?", "1957"),
        ("how many years is it from 1954 to 1961 ?", "7"),
    ],
)
def test_the_solver_reads_questions(question, answer):
    assert solve(SHORT, question) == answer


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("ada joined alcorp in 1954 and left in 1951 .", "not after"),
        ("ada joined alcorp in 1954 and left in 1954 .", "not after"),
        ("ada joined alcorp when ada left borbank and left 1 year later .", "rests on nothing"),
        ("ada joined alcorp when ada left borbank and left 1 year later . "
         "ada joined borbank in 1950 and left when ada joined alcorp .", "rests on itself"),
        ("ada joined alcorp in 1951 and left in 1954 . from 1960 to 1961 the city of ada was alcorp .", "twice"),
    ],
)  # fmt: skip
def test_contradictions_are_named(document, why):
    with pytest.raises(Contradiction, match=why):
        solve(document, "which employer did ada have in 1953 ?")


@pytest.mark.parametrize("text", ["Ada works.", "ada joined alcorp soon and left late ."])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not a"):
        chronobio.read(text)
    with pytest.raises(ValueError, match="not a ChronoBio question"):
        solve("", "who is ada ?")


def test_an_empty_document_answers_unknown():
    assert solve("", "which employer did ada have in 1953 ?") == "unknown"


def test_a_spoilt_document_contradicts_itself():
    rng = np.random.default_rng(0)
    for item in chronobio.items(20, 11):
        with pytest.raises(Contradiction):
            chronobio.read(chronobio.spoilt(item, rng).document)


@pytest.mark.parametrize(
    "wrong",
    [
        {"facts": 1},
        {"relations": 5},
        {"implicit": 1.1},
        {"kinds": ("whence",)},
        {"years": (1950, 1960)},
        {"objects": 3},
    ],
)
def test_worlds_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} = "):
        Spec(**wrong)
