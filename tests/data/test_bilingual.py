"""The people of two languages: splits that share nobody, questions whose answers are the facts."""

import numpy as np
import pytest

from zfu_lib.data import bilingual
from zfu_lib.lm.tokenizer import word_tokenizer

FACTS = bilingual.facts()
each_kind = pytest.mark.parametrize("task", ["choice", "recall"])
each_language = pytest.mark.parametrize("language", list(bilingual.LANGUAGES))


def person(language, text):
    words = bilingual.LANGUAGES[language]
    given, family = text.split(" ")[:2]
    return words.given.index(given) * bilingual.FAMILY + words.family.index(family)


def fact(language, who, relation):
    words = bilingual.LANGUAGES[language]
    r = words.relations.index(relation)
    return words.values[r][FACTS[who, r]]


def test_no_word_is_in_both_languages_or_twice_in_one():
    assert len(set(bilingual.WORDS)) == len(bilingual.WORDS)
    latin, greek = ("".join(language.words) for language in bilingual.LANGUAGES.values())
    assert not set(filter(str.isalpha, latin)) & set(filter(str.isalpha, greek))


def test_each_word_is_one_token():
    tokenizer = word_tokenizer(bilingual.WORDS)
    for language in bilingual.LANGUAGES:
        for text in (bilingual.statement(language, 3, FACTS, np.random.default_rng(0)),):
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(text.split(" "))


@pytest.mark.parametrize("world", [0, 1])
def test_splits_share_nobody_and_half_of_each_is_famous(world):
    splits = {name: set(bilingual.people(name, world).tolist()) for name in bilingual.SHARES}
    assert sorted(who for split in splits.values() for who in split) == list(range(bilingual.PEOPLE))
    famous, unknown = (set(bilingual.people(seed=world, famous=x).tolist()) for x in (True, False))
    assert len(famous) == len(unknown) == bilingual.PEOPLE // 2
    assert not famous & unknown
    for name, split in splits.items():
        found = set(bilingual.people(name, world, famous=True).tolist())
        assert found == split & famous
        assert abs(len(found) - len(split) / 2) <= 1


@each_kind
@each_language
@pytest.mark.parametrize("split", list(bilingual.SHARES))
def test_questions_are_about_the_split_and_answers_are_the_facts(task, language, split):
    who = set(bilingual.people(split).tolist())
    for item in bilingual.items(task, language, split, 60, 5):
        asked = person(language, item.read)
        assert asked in who
        if task == "choice":
            relation = item.read.rpartition(" ")[2]
            assert item.answer == (fact(language, asked, relation),)
            assert len(set(item.options)) == bilingual.OPTIONS
            assert item.answer[0] in item.options
        else:
            assert len(item.answer) == 2 * bilingual.ASKED
            for relation, value in zip(item.answer[::2], item.answer[1::2]):
                assert value == fact(language, asked, relation)
            assert list(item.answer[::2]) == item.read.split(" ")[3:-1], "in the order asked for"


@each_kind
def test_all_of_a_split_is_asked_evenly_and_the_seed_decides(task):
    items = bilingual.items(task, "latin", "test", None, 1)
    names = [" ".join(item.read.split(" ")[:2]) for item in items]
    assert {names.count(name) for name in set(names)} == {6 if task == "choice" else 2}
    assert len(set(names)) == len(bilingual.people("test"))
    assert items == bilingual.items(task, "latin", "test", None, 1)
    assert items != bilingual.items(task, "latin", "test", None, 2)


def test_the_right_option_is_anywhere():
    items = bilingual.items("choice", "greek", "train", 400, 0)
    places = np.bincount([item.options.index(item.answer[0]) for item in items], minlength=4)
    assert places.min() > 60


def test_a_statement_tells_all_attributes_in_any_order():
    rng, orders = np.random.default_rng(0), set()
    for _ in range(20):
        text = bilingual.statement("latin", 7, FACTS, rng)
        told = text.partition(" : ")[2].split(" ; ")
        assert {tuple(part.split(" ")) for part in told} == {
            (r, fact("latin", 7, r)) for r in bilingual.LANGUAGES["latin"].relations
        }
        orders.add(text)
    assert len(orders) > 15
