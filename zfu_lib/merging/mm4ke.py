"""MM4KE: robust supervised fine-tuning (R-SFT), then merging back into the original model (arXiv 2506.12384).

Confirmed is the outline: only feed-forward weights are trained, in three nested loops with an early stop per sample at
a threshold of the loss; then the change is pruned, scaled and added to the original. Neither the paper's text nor its
code could be read; what they may have settled is a field of :class:`RSFT` or an argument here, with its reading named.

    theta_R = R-SFT(theta_F, D)                              stage 1
    theta*  = theta_F + s TopAbs(theta_R - theta_F, p)       stage 2; p = 1 is (1 - s) theta_F + s theta_R
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.merging import methods
from zfu_lib.merging.editing.facts import FFN, Batch, EditError, Fact, batch_of, losses, only, parameters

Anchor = Literal["original", "previous"]


@dataclass(frozen=True)
class RSFT:
    """What R-SFT trains and for how long. None of the values is confirmed; those here suit a tiny model.

    ``epochs`` E, ``steps`` K and ``threshold`` tau are the three parameters that the authors study. ``layers`` None and
    ``matrices`` all three: all feed-forward weights. ``batch_size`` 1: the unit of the middle loop is a sample; larger:
    a mini-batch, from which samples below the threshold drop out one by one. ``reset``: when the optimiser forgets.

    Raises:
        ValueError: a value out of range.
    """

    epochs: int = 10
    steps: int = 5
    threshold: float = 0.05
    learning_rate: float = 1e-3
    layers: tuple[int, ...] | None = None
    matrices: tuple[str, ...] | None = FFN
    batch_size: int = 1
    reset: Literal["never", "sample"] = "never"

    def __post_init__(self) -> None:
        ranges = {
            "epochs": self.epochs >= 1,
            "steps": self.steps >= 1,
            "threshold": self.threshold >= 0,
            "learning_rate": 0 < self.learning_rate < np.inf,
            "batch_size": self.batch_size >= 1,
            "reset": self.reset in ("never", "sample"),
        }
        if wrong := [f"{name} = {getattr(self, name)!r}" for name, fine in ranges.items() if not fine]:
            raise ValueError(f"R-SFT out of range: {', '.join(wrong)}")


class Tuned(NamedTuple):
    """``updates`` that each epoch took (an epoch without one is the last), and the largest loss of a sample after it,
    as it was when the sample was left."""

    updates: list[int]
    worst: list[float]


# Stage 1.


def r_sft(
    model: PreTrainedModel,
    batch: Batch,
    how: RSFT,
    seed: int = 0,
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = losses,
    penalty: Callable[[], Tensor] | None = None,
    constrain: Callable[[], None] | None = None,
) -> Tuned:
    """Train ``model`` in place until every sample is below the threshold, or the epochs are over.

    Plain SFT is ``steps=1, threshold=0``; FT-M is one epoch of many steps on one ``down_proj``. Which parameters are
    trained afterwards is as before.

    Args:
        loss: of each sample, [N].
        penalty: added to the loss; ``constrain`` is called after each update (both for the baselines).

    Raises:
        EditError: the loss is not finite; an unknown layer or matrix.
    """
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = only(model, parameters(model, how.layers, how.matrices))
    optimizer, rng, log = torch.optim.Adam(weights, how.learning_rate), np.random.default_rng((seed, 61)), Tuned([], [])
    for _ in range(how.epochs):
        updates, worst = 0, 0.0
        for chosen in np.array_split(rng.permutation(len(batch.inputs)), -(-len(batch.inputs) // how.batch_size)):
            samples = batch.rows(chosen)
            if how.reset == "sample":
                optimizer = torch.optim.Adam(weights, how.learning_rate)
            for _ in range(how.steps):
                each = loss(model, samples)
                if not torch.isfinite(each).all():
                    raise EditError(f"the loss became {each.max().item()}; a lower learning rate may help")
                left = each >= how.threshold  # the early stop, before the update
                if not left.any():
                    break
                objective = each[left].mean() + (penalty() if penalty else 0.0)
                optimizer.zero_grad()
                objective.backward()
                optimizer.step()
                if constrain:
                    constrain()
                updates += 1
            worst = max(worst, each.max().item())
        log.updates.append(updates)
        log.worst.append(worst)
        if not updates:
            break
    optimizer.zero_grad()
    for name, p in model.named_parameters():
        p.requires_grad_(wanted[name])
    return log


# Stage 2.


def weights_of(model: PreTrainedModel, layers: Sequence[int] | None = None, matrices: Sequence[str] | None = None):
    """fp32 copies of parameters by name, shared ones once: what :func:`merge_back` merges; by default of all."""
    return {n: p.detach().float().cpu().numpy().copy() for n, p in parameters(model, layers, matrices).items()}


def merge_back(
    original: methods.Tensors, tuned: methods.Tensors, p: float, s: float, scope: methods.Scope = "tensor"
) -> dict[str, np.ndarray]:
    """``theta_F + s TopAbs(theta_R - theta_F, p)``, in fp32 (16 bits would lose small changes).

    Args:
        p: fraction of each change that is kept, the largest magnitudes; s: what it is multiplied by.
        scope: over what the fraction is taken. Which one the authors use is not confirmed.

    Raises:
        ValueError: p or s out of [0, 1], names or shapes do not match.
    """
    if not (0 <= p <= 1 and 0 <= s <= 1):
        raise ValueError(f"p = {p} and s = {s} must lie in [0, 1]")
    merged = methods.hi_merging(original, [tuned], [1.0], [p], [s], scope)
    # The end of the line exactly: a sum with a difference would miss it by a bit.
    return merged if (p, s) != (1, 1) else {name: np.array(tuned[name], np.float32) for name in merged}


def load(model: PreTrainedModel, weights: Mapping[str, np.ndarray]) -> None:
    """Put weights into a model, in place; those that are not named stay."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in weights.items():
            own[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))


# Both.


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    how: RSFT,
    p: float = 1.0,
    s: float = 0.5,
    *,
    scope: methods.Scope = "tensor",
    anchor: methods.Tensors | None = None,
    seed: int = 0,
) -> Tuned:
    """R-SFT on all facts, then merge into ``anchor`` (None: the model as it comes); ``model`` is changed in place.

    Raises:
        EditError: facts that cannot be encoded or contradict each other, unknown layers or matrices.
    """
    original = anchor or weights_of(model, how.layers, how.matrices)
    log = r_sft(model, batch_of(model, tokenizer, facts), how, seed)
    tuned = weights_of(model, how.layers, how.matrices)
    load(model, merge_back({name: original[name] for name in tuned}, tuned, p, s, scope))
    return log


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Sequence[Fact]],
    how: RSFT,
    p: float = 1.0,
    s: float = 0.5,
    *,
    anchor: Anchor = "original",
    scope: methods.Scope = "tensor",
    seed: int = 0,
) -> list[Tuned]:
    """:func:`edit` for one batch of facts after another, of size 1 for strictly sequential edits.

    Args:
        anchor: what a tuned model is merged into: the ``original`` of before the first batch, as the abstract has it
            (what earlier batches changed is then scaled again each time), or the ``previous`` merged model.
    """
    if anchor not in ("original", "previous"):
        raise ValueError(f"anchor {anchor!r} is neither 'original' nor 'previous'")
    first = weights_of(model, how.layers, how.matrices) if anchor == "original" else None
    return [
        edit(model, tokenizer, facts, how, p, s, scope=scope, anchor=first, seed=seed + i)
        for i, facts in enumerate(batches)
    ]
