"""Trigger streams: what follows a trigger, and that the stated best loss is the best."""

import numpy as np
import pytest

from zfu_lib.data import triggers


def test_streams_follow_their_rule():
    P = triggers.chain()
    assert P.sum(1) == pytest.approx(np.ones(triggers.SYMBOLS))
    s = triggers.trigger_batch(np.random.default_rng(0), 400, 40, P)
    assert (s.tokens[:, 0] == triggers.START).all()
    assert s.tokens[:, 1:].max() < triggers.SYMBOLS
    before, at, after = s.tokens[:, :-2], s.tokens[:, 1:-1], s.tokens[:, 2:]
    copied = s.looks_back[:, 1:-1]
    copied[:, 0] = False  # nothing stands before a text's first symbol, and it is no trigger
    assert copied.any()
    assert (after == before)[copied].all()
    # Elsewhere the successor's frequencies are the chain's.
    a, b = at[~copied & (at >= triggers.TRIGGERS)], after[~copied & (at >= triggers.TRIGGERS)]
    common = np.bincount(a).argmax()
    found = np.bincount(b[a == common], minlength=triggers.SYMBOLS) / (a == common).sum()
    assert np.abs(found - P[common]).max() < 0.05


def test_the_floor_is_the_loss_of_the_best_predictor():
    P = triggers.chain()
    s = triggers.trigger_batch(np.random.default_rng(1), 2000, 24, P)
    idle = ~s.looks_back[:, 1:-1]
    loss = -np.log(P[s.tokens[:, 1:-1][idle], s.tokens[:, 2:][idle]])
    assert loss.mean() == pytest.approx(s.floor[:, 1:-1][idle].mean(), abs=0.02)
    assert (s.floor[s.looks_back] == 0).all()


@pytest.mark.parametrize(("length", "shape"), [(2, (32, 32)), (9, (31, 31))])
def test_impossible_streams_are_refused(length, shape):
    with pytest.raises(ValueError, match="needs length"):
        triggers.trigger_batch(np.random.default_rng(0), 2, length, np.full(shape, 1 / shape[0]))
