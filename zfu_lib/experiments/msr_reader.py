"""A small decoder that reads a user's prompt and says which topics they prefer, trained from scratch in seconds.

It reads the prompt of :func:`zfu_lib.prediction.llm4msr.user_prompt` about users of generated worlds, and answers with
the two topics most of the words are on. That can be checked from the prompt alone, so its skill on held-out prompts is
a number, with the best constant answer beside it. It stands where the paper has ChatGLM2-6B: a language model that
reasons in words and whose hidden state is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from zfu_lib.data.recsys_world import PLACES, TOPICS, WORDS, world
from zfu_lib.lm.hidden import HiddenStates
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import IGNORED, TrainConfig, TrainLog, train
from zfu_lib.prediction.llm4msr import user_prompt
from zfu_lib.report.statistics import Interval, proportion

TOPIC_OF = {word: topic for topic, words in zip(TOPICS, WORDS) for word in words}
FIRST_WORLD = 10_000  # Worlds to learn from begin here; the chapter's have small numbers.
HELD_OUT_WORLD = 20_000


class Reader(NamedTuple):
    """The trained model with its tokenizer, its log, and its skill: held-out prompts whose first topic it names, and
    how often the best constant answer is right. ``examples``: a held-out prompt, and what the model said."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    log: TrainLog
    right: Interval
    constant: float
    examples: tuple[str, str]


def spaced(prompt: str) -> str:
    """A prompt with punctuation and line breaks as words of their own, as the tokenizer has them."""
    return " ".join(re.findall(r"[^\s.;:,?]+|[.;:,?]", prompt))


def prompts(seed: int, users: int, strength: float) -> list[str]:
    """User prompts of a generated world."""
    made = world(seed, users=users, items=1)
    return [spaced(user_prompt(told)) for told in made.user_words(strength)]


def preferred(prompt: str) -> list[str]:
    """The two topics most words of a prompt are on; ties go to the earlier topic in :data:`TOPICS`."""
    count = Counter(TOPIC_OF[word] for word in prompt.split() if word in TOPIC_OF)
    return sorted(TOPICS, key=lambda topic: (-count[topic], TOPICS.index(topic)))[:2]


def tokenizer() -> PreTrainedTokenizerBase:
    """Words of the prompts; anything else is read byte by byte."""
    used = dict.fromkeys(" ".join(prompts(FIRST_WORLD, 20, 1.0)).split())
    words = [*(word for group in WORDS for word in group), *TOPICS, *" ".join(PLACES).split(), *used]
    return word_tokenizer(list(dict.fromkeys(words)))


def batches(encode: PreTrainedTokenizerBase, batch: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Training batches: prompts at all strengths, and the answer as what is to be said."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((5, step))
        told = prompts(FIRST_WORLD + step, batch, float(rng.uniform(0.3, 1.0)))
        rows = [(encode(p)["input_ids"], encode(" " + " ".join(preferred(p)))["input_ids"][1:]) for p in told]
        longest = max(len(a) + len(b) for a, b in rows)
        inputs = torch.full((batch, longest), encode.pad_token_id)
        targets = torch.full((batch, longest), IGNORED)
        for i, (asked, said) in enumerate(rows):
            said = [*said, encode.eos_token_id]
            whole = [*asked, *said]
            inputs[i, : len(whole) - 1] = torch.tensor(whole[:-1])
            targets[i, len(asked) - 1 : len(whole) - 1] = torch.tensor(said)
        return inputs, targets

    return make


def train_reader(steps: int, *, batch: int = 32, width: int = 64, rate: float = 4e-3, device: str = "cpu") -> Reader:
    """Train the reader and ask it about 300 users of a world it never saw."""
    encode = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(encode), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=width**-0.5,
        bos_token_id=encode.bos_token_id, eos_token_id=encode.eos_token_id, pad_token_id=encode.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    schedule = TrainConfig(steps, batch, 160, rate, warmup=max(1, steps // 20))
    log = train(model, batches(encode, batch), schedule, device=device)
    asked = prompts(HELD_OUT_WORLD, 300, 1.0)
    said, _ = HiddenStates(model, encode, new_tokens=3).answer(asked)
    first = [preferred(prompt)[0] for prompt in asked]
    right = [text.split()[:1] == [topic] for text, topic in zip(said, first)]
    constant = Counter(first).most_common(1)[0][1] / len(first)
    return Reader(model, encode, log, proportion(sum(right), len(right)), constant, (asked[0], said[0]))
