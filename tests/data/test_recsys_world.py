"""The generated worlds: the seed decides, the dial changes texts only, the truth is the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data import recsys_world as w

TOPIC = {word: t for t, words in enumerate(w.WORDS) for word in words}


def test_every_word_is_on_one_topic():
    assert len(TOPIC) == sum(len(words) for words in w.WORDS)
    assert len({len(words) for words in w.WORDS}) == 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_seed_alone_decides_and_the_shapes_hold(seed, scenarios):
    a, b = (w.world(seed, users=30, items=20, scenarios=scenarios) for _ in range(2))
    (log, p), (again, _) = a.log(200, 1), b.log(200, 1)
    assert np.array_equal(log.ids, again.ids)
    assert np.array_equal(log.label, again.label)
    assert not np.array_equal(log.ids, a.log(200, 2)[0].ids)
    assert np.allclose(p, a.probability(log.ids[:, 0], log.ids[:, 1], log.scenario))
    assert np.allclose([x.sum() for x in (a.user_U, a.scenario_S)], 1)
    assert np.allclose(a.g_ST.mean(1), 1)
    assert a.user_words(0.5) == b.user_words(0.5)
    assert len(a.scenario_words(0.5)) == scenarios == len(set(a.scenarios))


def test_clicks_follow_their_probabilities():
    log, p = w.world(0).log(50_000, 0)
    for part in np.array_split(np.argsort(p), 10):
        # Five standard errors of a mean of 5,000 clicks.
        assert abs(log.label[part].mean() - p[part].mean()) < 5 * np.sqrt(p[part].mean() / 5000)


def shares(world, strength):
    told = world.user_words(strength, words=40)
    count = np.zeros_like(world.z_UT)
    for u, places in enumerate(told):
        for words in places.values():
            np.add.at(count[u], [TOPIC[word] for word in words], 1)
    assert (count.sum(1) == 40).all()
    return count / 40


def test_the_dial_goes_from_nothing_to_everything():
    world = w.world(3, users=400)
    errors = {}
    for strength in (0.0, 0.5, 1.0):
        seen = shares(world, strength)
        expected = strength * world.z_UT + (1 - strength) / len(w.TOPICS)
        errors[strength] = np.abs(seen - expected).mean()
        slope = ((seen - 1 / 8) * (world.z_UT - 1 / 8)).sum() / ((world.z_UT - 1 / 8) ** 2).sum()
        assert slope == pytest.approx(strength, abs=0.03)  # 400 users x 40 words
    with pytest.raises(ValueError, match="dial"):
        world.user_words(1.5)


def test_without_contrast_all_scenarios_are_alike():
    assert np.allclose(w.world(0, contrast=0.0).g_ST, 1)


@pytest.mark.parametrize("wrong", [{"users": 0}, {"scenarios": 0}, {"focus": 0.0}, {"contrast": -1.0}])
def test_worlds_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="a world of"):
        w.world(0, **wrong)
