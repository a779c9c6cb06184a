"""What a small model begins with, in place of random weights alone: a look-up head, numbers that lie on a line, or the
weights of a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from zfu_lib.lm import tiny
from zfu_lib.lm.tokenizer import word_tokenizer

PERIODS = (3, 7, 15, 31, 70, 160)
"""Numbers after which each of the waves of :func:`number_line` comes round; half the longest covers a century's
years."""


@torch.no_grad()
def look_up_head(model: PreTrainedModel) -> None:
    """Builds "what came after this word before?" into the first head of the first two layers of a Llama.

    The first layer's looks one token back: a constant in every embedding (entry 0) is turned into queries and keys on
    the quickly turning pairs of the rotary embedding, whose scores peak there. It writes what it finds on directions of
    its own. The second layer's compares the current word with those directions, on the slowly turning pairs, which
    hardly depend on distance, and copies the word that it finds to the output. The four sizes were chosen by trying on
    random pairs of words, three times.
    """
    sharp, constant, match, copy = 12.0, 0.4, 12.0, 3.0
    config, table = model.config, model.get_input_embeddings().weight
    width = config.hidden_size
    head = width // config.num_attention_heads
    turns = config.rope_parameters["rope_theta"] ** (-2 * torch.arange(head // 2) / head)
    fast, slow = int((turns > 0.2).sum()), torch.nonzero(turns < 0.02).flatten()
    slow = torch.cat([slow, slow + head // 2])
    norm = (table[:, 1:].std() ** 2 + constant**2 / width) ** 0.5
    table[:, 0] = constant
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for projection in (first.q_proj, first.k_proj, second.q_proj, second.k_proj):
        projection.weight[:head] = 0

    size = (sharp * head**0.5 / (1 - turns.cos()).sum()) ** 0.5 * norm / constant
    first.k_proj.weight[:fast, 0] = size
    first.q_proj.weight[:fast, 0] = size * turns[:fast].cos()
    first.q_proj.weight[head // 2 : head // 2 + fast, 0] = -size * turns[:fast].sin()
    read, written, copied = (torch.zeros(head, width) for _ in range(3))
    for rows in (read, written, copied):
        rows[:, 1:] = torch.linalg.qr(torch.randn(width - 1, head))[0].T
    first.v_proj.weight[:head] = read
    first.o_proj.weight[:, :head] = 0.8 * norm * written.T

    size = (match * head**0.5 / len(slow)) ** 0.5 * norm / table[:, 1:].std()
    second.q_proj.weight[slow] = size * read[: len(slow)]
    second.k_proj.weight[slow] = size * written[: len(slow)]
    second.v_proj.weight[:head] = copied
    second.o_proj.weight[:, :head] = copy * norm * copied.T


def grown(base: str) -> Callable[[PreTrainedModel], None]:
    """Makes a wider and deeper Llama out of a tiny model, which at first says exactly what that one says.

    The new coordinates of the residual stream begin at zero: nothing old or new writes into them, and new heads, hidden
    units and layers write nothing, while all that reads is random. A norm over more coordinates of which the new ones
    are zero is larger by the root of the ratio of widths, which its weights take back.
    """

    @torch.no_grad()
    def initialise(model: PreTrainedModel) -> None:
        old = load_file(tiny.path(base) / "model.safetensors")
        scale = (len(old["model.norm.weight"]) / model.config.hidden_size) ** 0.5
        for name, p in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                p.zero_()
            if p.ndim == 1:
                p.fill_(scale)
                p[: len(old.get(name, ()))] *= old.get(name, 1.0)
            elif name in old:
                rows, columns = old[name].shape
                p[:rows, :columns] = old[name]

    return initialise


@torch.no_grad()
def number_line(model: PreTrainedModel, words: Sequence[str], numbers: Sequence[int]) -> None:
    """Gives ``numbers``, as words of the tokenizer, embeddings of which half the variance is waves of their value
    (years count from 1975): neighbours are alike, an order can be read off, and adding is turning. The other half is
    drawn anew. Entry 0 stays: the look-up head has its constant there.

    Args:
        words: of the model's tokenizer.
    """
    table = model.get_input_embeddings().weight
    rows = word_tokenizer(words).convert_tokens_to_ids([str(n) for n in numbers])
    values = torch.tensor([n - 1975 if n > 1000 else n for n in numbers])
    angles = 2 * torch.pi * values[:, None] / torch.tensor(PERIODS)
    waves = torch.cat([angles.cos(), angles.sin()], 1) / len(PERIODS) ** 0.5
    drawn = torch.randn(len(rows) + waves.shape[1], table.shape[1] - 1)
    table[rows, 1:] = table.std() * (drawn[: len(rows)] + waves @ drawn[len(rows) :]) / 2**0.5
