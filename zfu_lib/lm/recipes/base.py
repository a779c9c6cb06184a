"""What a small model is: its layout, what it reads, for how long, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zfu_lib.lm.protocol import LanguageModel
from zfu_lib.lm.recipes.words import WORDS
from zfu_lib.lm.train import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Example = tuple[str, ...]
"""What is read, what should be written after it, and so on by turns; only what is written is learnt."""


@dataclass(frozen=True)
class Score:
    """``right`` of ``n`` held-out items; ``chance`` is what the best constant answer gets, where there is one."""

    name: str
    right: int
    n: int
    chance: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One model of the tiny family.

    ``architecture`` is a transformers configuration with its ``model_type`` (vocabulary and special tokens are added).
    ``examples(n, seed, progress)`` draws ``n`` examples; ``progress`` runs from 0 to 1 over the training, so that a
    recipe can begin with easy ones. ``evaluate(model, n)`` judges on held-out items, ``n`` for each score.
    ``minutes`` of training on one CPU core; ``committed`` recipes have their weights in the repository. ``words`` are
    those of its tokenizer: the shared ones, unless a family has its own. ``initialise`` changes the random weights, in
    place and by torch's own random numbers, before training. ``base`` names the tiny model that the weights are grown
    out of, if they are. ``short``: texts of which at most so many tokens are learnt have batches of their own, for in
    one batch every learnt token counts the same and a long answer would outweigh them.
    """

    name: str
    purpose: str
    architecture: Mapping[str, Any]
    train: TrainConfig
    examples: Callable[[int, int, float], Sequence[Example]]
    evaluate: Callable[[LanguageModel, int], list[Score]]
    minutes: float
    committed: bool = True
    words: tuple[str, ...] = WORDS
    initialise: Callable[[PreTrainedModel], None] | None = None
    base: str | None = None
    short: int = 0


def llama(
    *, width: int, layers: int, heads: int, inner: int, context: int, spread: float, theta: float | None = None
) -> dict[str, Any]:
    """The Llama layout with tied embeddings: ``inner`` is the width of the feed-forward layers, ``spread`` the standard
    deviation of the random weights, ``theta`` the base of the rotary embedding (None: that of transformers)."""
    layout = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "initializer_range": spread,
    }
    return layout if theta is None else layout | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
