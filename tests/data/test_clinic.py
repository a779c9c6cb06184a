"""The invented clinic: what its generator promises."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data.worlds import clinic

W = clinic.world()


def test_the_world_is_as_described():
    assert W.rate.shape == (40, 120)
    assert ((W.rate > 0).sum(axis=1) == 10).all()
    assert np.allclose(W.prior.sum(axis=1), 1)
    for group in range(8):
        links = W.rate[W.group == group] > 0
        assert len(links) == 5
        assert links.all(axis=0).sum() >= 5, "look-alikes share the findings of their group"


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_case_is_a_function_of_its_seed_and_says_what_its_mentions_say(seed):
    (case,) = clinic.cases(1, seed)
    assert [case] == clinic.cases(1, seed)
    assert sum(m.status == "present" for m in case.mentions) >= clinic.LEAST
    head = {"present": ("Reports", "Shows"), "absent": ("Denies",), "past": ("Had",), "family": ("Family",)}
    for mention, sentence in zip(case.mentions, case.text.split(" . ")[1:], strict=True):
        assert sentence.startswith(head[mention.status])
        assert mention.words in sentence
    linked = {s.finding for s in case.steps if s.sign == "+"}
    d = W.diseases.index(case.diagnosis)
    assert linked == {
        m.finding for m in case.mentions if m.status == "present" and W.rate[d, W.findings.index(m.finding)]
    }


def test_the_posterior_is_bayes_rule_over_all_cases_of_a_small_world():
    """Counted: among cases with the same mentions the diagnosis is distributed as the posterior says."""
    small = clinic.World(
        ("a", "b"), ("x-pain", "y-rash", "z-ache", "u-itch"), {}, {}, np.array([0, 1]),
        np.array([[0.9, 0.8, 0.5, 0.0], [0.9, 0.3, 0.5, 0.6]]), np.tile([0.6, 0.4], (3, 1)),
    )  # fmt: skip
    drawn = clinic.cases(2000, 1, w=small)
    groups: dict = {}
    for case in drawn:
        groups.setdefault(frozenset((m.finding, m.status) for m in case.mentions), []).append(case)
    checked = 0
    for members in groups.values():
        if len(members) >= 60:
            expected = clinic.posterior(members[0], small)[0]
            share = np.mean([case.diagnosis == "a" for case in members])
            assert abs(share - expected) < 4 * (0.25 / len(members)) ** 0.5
            checked += 1
    assert checked >= 3


def test_memory_grows_and_prefers_common_diseases():
    little, much = clinic.memory(0.25, 0.15), clinic.memory(0.55, 0.30)
    assert little < much < W.links()
    common = Counter(W.diseases.index(d) < 20 for d, _ in much)
    assert common[True] > common[False]


def test_articles_are_true_and_lies_are_not():
    links, pages = W.links(), clinic.articles(3)

    def pairs(documents):
        for page in documents:
            for line in page.text.split("."):
                words = line.split()
                if "show" in words:
                    yield W.aliases.get(words[0], words[0]), words[-1]

    true = list(pairs(pages))
    assert set(true) <= links
    assert len({d for d, _ in true}) == 30
    wrong = list(pairs(clinic.lies(pages, 3)))
    assert len(wrong) == len(true)
    assert np.mean([pair in links for pair in wrong]) < 0.2
    assert any(page.id.startswith(clinic.ANSWER_SITE) for page in pages)


def test_a_note_holds_the_same_findings():
    (case,) = clinic.cases(1, 9)
    note = clinic.as_note(case)
    assert [line.partition(" :")[0] for line in note.text.splitlines()[1:]] == list("SOAP")
    assert sorted(w for w in note.text.split() if "-" in w) == sorted(m.words for m in case.mentions)


def test_the_database_knows_common_diseases_only():
    seen = clinic.seen_diseases()
    assert len(seen) == 28
    assert {case.diagnosis for case in clinic.cases(50, 2, among=seen)} <= set(seen)
    with pytest.raises(ValueError, match="no disease"):
        clinic.cases(1, 2, among=())


def test_words_cover_every_case():
    known = set(clinic.WORDS)
    text = itertools.chain.from_iterable(case.text.split() for case in clinic.cases(20, 4))
    odd = {word for word in text if word not in known and not word.isdigit()}
    assert odd <= {"Age", "for", "days"}
