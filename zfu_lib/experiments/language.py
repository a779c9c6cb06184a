"""What the labs of the attention chapters share: corpora, budgets, how a CPU scales them down, a trivial baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from zfu_lib.data.hub import hub_corpus
from zfu_lib.data.text import Corpus, books_corpus, standard_corpus
from zfu_lib.lm.train import BatchFn, TrainConfig
from zfu_lib.report.profiles import Cost, Download, Profile

TOKENIZER = "meta-llama/Llama-2-7b-hf"


def fineweb_edu() -> Corpus:
    """FineWeb-Edu with PG-19 as the other domain, in tokens of Llama 2 (SWAT, sections 5.1 and 5.3)."""
    return hub_corpus(
        "HuggingFaceFW/fineweb-edu",
        name="sample-100BT",
        split="train",
        tokenizer=TOKENIZER,
        train_tokens=15_000_000_000,
        held_out_tokens=16_777_216,
        ood="emozilla/pg19",
        ood_options={"split": "test"},
    )


CORPORA: dict[str, Callable[[], Corpus]] = {
    "standard": standard_corpus,
    "books": books_corpus,
    "fineweb-edu": fineweb_edu,
}
FINEWEB_EDU = (
    Download("HuggingFaceFW/fineweb-edu (sample-100BT, the part streamed)", 60),
    Download("emozilla/pg19 (test)", 0.1),
    Download("meta-llama/Llama-2-7b-hf (tokenizer only)", 0.01),
)
QUICK_COST = Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5)
FULL_COST = Cost(
    machine="one GPU with 24 GB",
    minutes=25,
    memory_gb=8,
    gpu_memory_gb=20,
    data=("gutenberg_books", "wikitext2", "tinyshakespeare"),
)
# Width, depth and heads of the public 340M configurations, steps of half a million tokens; the rest is each paper's.
PAPER_SCALE = {
    "corpus": "fineweb-edu",
    "layers": 24,
    "width": 1024,
    "heads": 16,
    "tokens": 15_000_000_000,
    "batch_tokens": 524_288,
    "learning_rate": 4e-4,
    "evaluation_tokens": 4_194_304,
}
# Tokens that go through a model at once; more are accumulated.
MICRO_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class LanguageProfile(Profile):
    """A language model's shape and budget: ``tokens`` of each arm and seed, ``batch_tokens`` of one step,
    ``evaluation_tokens`` the length of held-out text that every loss is measured on."""

    corpus: str
    layers: int
    width: int
    heads: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    evaluation_tokens: int


class LanguageLab:
    """Where a chapter's arms are trained. ``profile`` is what is trained here, ``asked`` what the profile asks for.

    Args:
        profile: a ``full`` one is scaled down by ``on_cpu`` where there is no GPU, and :meth:`description` says so.
        device: None for the GPU if there is one.
    """

    on_cpu: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, profile: LanguageProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **self.on_cpu) if scaled else profile
        self.asked = profile
        self.corpus = CORPORA[profile.corpus]()
        self._trained: dict[tuple[str, int], tuple[Any, Any]] = {}

    def _length(self, profile: LanguageProfile) -> str:
        """The length that a profile counts in, as prose: ``T = 64``."""
        raise NotImplementedError

    def _describe(self, parameters: int) -> str:
        """What will be trained, on what, and how far that is from what the profile asks for on a GPU."""
        p, asked = self.profile, self.asked
        text = (
            f"Models here: {p.layers} layers of width {p.width}, {parameters / 1e6:.2f}M parameters, "
            f"{self._length(p)}, {p.tokens / 1e6:g}M bytes of the {self.corpus.name} corpus per arm and seed "
            f"({p.tokens / len(self.corpus.train):.2g} epochs), {p.seeds} seeds, on {self.device}."
        )
        if p != asked:
            text += (
                f" Scaled down for a CPU: the profile asks for {asked.layers} layers of width {asked.width}, "
                f"{self._length(asked)} and {asked.tokens / 1e6:g}M bytes, {asked.tokens / p.tokens:.0f} times as many."
            )
        return text

    def _shape(self, vocabulary: int) -> dict[str, Any]:
        """The part of a model's configuration that all arms share."""
        p = self.profile
        return {
            "vocab_size": vocabulary,
            "hidden_size": p.width,
            "num_hidden_layers": p.layers,
            "num_attention_heads": p.heads,
            "initializer_range": p.width**-0.5,
        }

    def _schedule(self, tokens: int, length: int, seed: int, rate: float | None = None) -> TrainConfig:
        batch = max(1, self.profile.batch_tokens // length)
        steps = max(2, tokens // (batch * length))
        micro = max(1, MICRO_BATCH_TOKENS // length)
        return TrainConfig(
            steps,
            batch,
            length,
            rate or self.profile.learning_rate,
            warmup=max(1, steps // 10),
            seed=seed,
            dtype="auto",
            micro_batch=micro if micro < batch else 0,
        )

    def _held_out(self, size: int, *, ood: bool = False) -> np.ndarray:
        """Held-out texts of ``size`` tokens, evenly spaced over the corpus: [texts, size]."""
        stream = self.corpus.ood if ood else self.corpus.validation
        count = max(1, self.profile.evaluation_tokens // size)
        starts = np.linspace(0, len(stream) - size, count).astype(int)
        return np.stack([stream[start : start + size] for start in starts])

    def _counting_loss(
        self, batches: Callable[[int, int], BatchFn], length: int, text: np.ndarray, vocabulary: int
    ) -> np.ndarray:
        """:func:`pair_loss` on ``text`` of pairs counted on the texts of training, ``batches(seed, batch size)`` of
        ``length`` tokens each: [seeds]. The least a language model must beat."""
        found = []
        for seed in range(self.profile.seeds):
            config = self._schedule(self.profile.tokens, length, seed)
            batch = batches(seed, config.batch_size)
            read = torch.cat([batch(step) for step in range(min(config.steps, 4096))]).numpy()
            found.append(pair_loss(read, text, vocabulary))
        return np.array(found)


def pair_loss(read: np.ndarray, text: np.ndarray, vocabulary: int) -> float:
    """Loss on ``text`` of a table of symbol pairs counted in ``read``, integers [texts, T] each, in nats.

    p(b|a) = (count(ab) + 2 p(b)) / (count(a) + 2).
    """
    pairs = np.bincount(
        (read[:, :-1].astype(np.int64) * vocabulary + read[:, 1:]).ravel(), minlength=vocabulary * vocabulary
    ).reshape(vocabulary, vocabulary)
    single = pairs.sum(axis=0) + 0.1
    chance = (pairs + 2 * single / single.sum()) / (pairs.sum(axis=1, keepdims=True) + 2)
    return float(-np.log(chance[text[:, :-1], text[:, 1:]]).mean())
