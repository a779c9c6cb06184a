import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data.needle import FIRST_FILLER, MARKER, QUERY, needle_batch, vocabulary


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_one_item_at_the_distance_asked_for(data):
    length = data.draw(st.integers(3, 60))
    batch = data.draw(st.integers(1, 8))
    distances = np.array(data.draw(st.lists(st.integers(1, length - 2), min_size=batch, max_size=batch)))
    n_values, n_filler = data.draw(st.integers(2, 20)), data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tokens, targets, found = needle_batch(rng, batch, length, distances, n_values=n_values, n_filler=n_filler)
    assert tokens.shape == (batch, length)
    assert (found == distances).all()
    values = tokens >= FIRST_FILLER + n_filler
    assert (values.sum(axis=1) == 1).all()
    place = values.argmax(axis=1)
    assert (length - 1 - place == distances).all()
    assert (tokens[np.arange(batch), place] == targets).all()
    assert (tokens[np.arange(batch), place - 1] == MARKER).all()
    assert ((tokens == MARKER).sum(axis=1) == 1).all()
    assert ((tokens == QUERY) == (np.arange(length) == length - 1)).all()
    assert tokens.max() < vocabulary(n_values, n_filler)


def test_values_are_uniform_so_chance_is_one_in_n_values():
    n = 20_000
    _, targets, _ = needle_batch(np.random.default_rng(0), n, 5, 2, n_values=5, n_filler=3)
    counts = np.bincount(targets - FIRST_FILLER - 3, minlength=5)
    # Five standard deviations of a binomial count: a biased draw of 1 part in 20 fails.
    assert np.abs(counts - n / 5).max() < 5 * np.sqrt(n / 5 * 4 / 5)


def test_the_generator_alone_decides():
    first, again, other = (needle_batch(np.random.default_rng(s), 4, 30, 9)[0] for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    "arguments", [{"distance": 0}, {"distance": 9}, {"distance": [1, 2]}, {"n_values": 1}, {"n_filler": 250}]
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match="needs"):
        needle_batch(np.random.default_rng(0), 3, 10, **{"distance": 4} | arguments)
