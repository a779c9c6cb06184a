"""Loss of a causal language model by position and by length of its context.

All losses are nats per token. Windows start at evenly spaced places, so the same call always reads the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zfu_lib.lm.train import mode


class LengthLoss(NamedTuple):
    """Losses over windows of one length L. ``mean``: over all L - 1 predicted tokens of all windows. ``last``: over
    the final ``tail`` predicted tokens only, those with the longest context. ``by_window``: [sequences], each window's
    mean over all its positions, for an interval."""

    mean: float
    last: float
    by_window: np.ndarray


def loss_by_position(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    seq_len: int,
    sequences: int,
    batch_size: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """Loss of each token given the tokens before it in its window.

    Args:
        tokens: [N] integers, N >= seq_len.
        seq_len: tokens of a window; the first has no prediction.
        sequences: windows, starting at evenly spaced places from the first to the last possible (overlapping when
            ``sequences * seq_len > N``).
        dtype: autocast type, None for the model's own.

    Returns:
        float64 [sequences, seq_len - 1]; column t is the loss of token t + 1, which sees t + 1 tokens.

    Raises:
        ValueError: a stream too short, or nothing to evaluate.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or seq_len < 2 or len(tokens) < seq_len or sequences < 1 or batch_size < 1:
        raise ValueError(f"cannot read {sequences} windows of {seq_len} tokens from a stream of shape {tokens.shape}")
    starts = np.linspace(0, len(tokens) - seq_len, sequences).astype(np.int64)
    losses = np.empty((sequences, seq_len - 1))
    device = torch.device(device)
    half = torch.autocast(device.type, dtype, enabled=dtype is not None)
    with mode(model.to(device), training=False), torch.inference_mode(), half:
        for first in range(0, sequences, batch_size):
            rows = starts[first : first + batch_size, None] + np.arange(seq_len)
            window = torch.from_numpy(tokens[rows].astype(np.int64)).to(device)
            logits = model(window).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none")
            losses[first : first + len(rows)] = loss.view(len(rows), -1).double().cpu().numpy()
    return losses


def loss_by_length(
    model: nn.Module,
    tokens: np.ndarray,
    lengths: Iterable[int],
    *,
    tokens_per_length: int,
    tail: int = 32,
    batch_tokens: int = 16_384,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[int, LengthLoss]:
    """Loss at several context lengths, each over about the same number of tokens.

    Each length L takes ``max(1, tokens_per_length // L)`` windows as :func:`loss_by_position` places them. The two
    numbers answer different questions: ``mean`` mixes short and long contexts, so it falls with L for any model that
    does not break; ``last`` has only contexts of at least L - ``tail`` tokens.

    Args:
        tail: predicted tokens at the end of each window that ``last`` averages over (all of them if L - 1 is less).
        batch_tokens: tokens that go through the model at once, at least one window.

    Raises:
        ValueError: as :func:`loss_by_position`.
    """
    found = {}
    for length in lengths:
        losses = loss_by_position(
            model,
            tokens,
            seq_len=length,
            sequences=max(1, tokens_per_length // length),
            batch_size=max(1, batch_tokens // length),
            device=device,
            dtype=dtype,
        )
        found[length] = LengthLoss(float(losses.mean()), float(losses[:, -tail:].mean()), losses.mean(axis=1))
    return found


def bits_per_byte(nats_per_token: float, bytes_per_token: float = 1.0) -> float:
    """Bits per byte of text; a byte-level model has one byte per token."""
    return nats_per_token / math.log(2) / bytes_per_token
