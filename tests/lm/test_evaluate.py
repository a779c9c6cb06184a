import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from zfu_lib.lm.evaluate import bits_per_byte, loss_by_length, loss_by_position


class Table(nn.Module):
    """Logits of a fixed table of bigrams, wrong in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(9, 9, generator=torch.Generator().manual_seed(0)))
        self.largest = 0

    def forward(self, tokens):
        self.largest = max(self.largest, len(tokens))
        return SimpleNamespace(logits=self.table[tokens] * (0 if self.training else 1))


STREAM = np.random.default_rng(0).integers(0, 9, 101).astype(np.uint8)


def by_hand(start, length):
    logp = np.log(np.exp(table := Table().table.numpy().astype(float)) / np.exp(table).sum(axis=1, keepdims=True))
    window = STREAM[start : start + length]
    return [-logp[a, b] for a, b in itertools.pairwise(window)]


def test_losses_are_those_of_evenly_spaced_windows():
    model = Table()
    losses = loss_by_position(model, STREAM, seq_len=21, sequences=5, batch_size=2)
    assert losses.shape == (5, 20)
    expected = [by_hand(start, 21) for start in (0, 20, 40, 60, 80)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert model.training
    assert model.largest == 2


def test_lengths_have_the_mean_of_all_and_of_the_last_positions():
    found = loss_by_length(Table(), STREAM, [11, 51], tokens_per_length=102, tail=4, batch_tokens=60)
    assert list(found) == [11, 51]
    windows = [by_hand(start, 51) for start in (0, 50)]
    assert found[51].mean == pytest.approx(np.mean(windows), rel=1e-5)
    assert found[51].last == pytest.approx(np.mean([w[-4:] for w in windows]), rel=1e-5)
    np.testing.assert_allclose(found[51].by_window, np.mean(windows, axis=1), rtol=1e-5)
    assert len(found[11].by_window) == 9
    assert found[11].last != pytest.approx(found[11].mean)


def test_a_stream_too_short_is_refused():
    with pytest.raises(ValueError, match="windows of 102"):
        loss_by_position(Table(), STREAM, seq_len=102, sequences=1, batch_size=1)


def test_bits():
    assert bits_per_byte(math.log(2)) == pytest.approx(1)
    assert bits_per_byte(math.log(256), bytes_per_token=4) == pytest.approx(2)
