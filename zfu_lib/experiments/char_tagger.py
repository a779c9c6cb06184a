"""A character classifier: embeddings, a two-way LSTM, a tag for every character. Small, trained from scratch.

Shape letters: B sentences, T characters, D width, L tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from zfu_lib.skills.spans import Sentence, Span, from_tags, to_tags

Spans = list[Span]
RARE = 1


class CharTagger:
    """Learns BIO tags of characters.

    Args:
        steps: of AdamW, batches of ``batch_size`` sentences of like length.
        width: of embeddings and of each direction of the LSTM.
        bigrams: whether a character's embedding is joined by that of it and the next one.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        *,
        steps: int,
        seed: int,
        width: int = 64,
        batch_size: int = 16,
        rate: float = 5e-3,
        bigrams: bool = True,
        device: str = "cpu",
    ) -> None:
        self.device, self.bigrams = device, bigrams
        kinds = sorted({span.type for s in sentences for span in s.spans})
        self.tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        number = {tag: i for i, tag in enumerate(self.tags)}
        self.known = [self._vocabulary(sentences, n) for n in (1, 2)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = _Net([len(k) + 2 for k in self.known], width, len(self.tags), bigrams).to(device)
            rng = np.random.default_rng((seed, 59))
            order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
            batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=0.01)
            scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, steps))
            self.net.train()
            for _ in range(steps):
                batch = [sentences[i] for i in batches[int(rng.integers(len(batches)))]]
                ids = self._ids(batch)
                wanted = torch.full(ids[0].shape, -100, device=device)
                for b, sentence in enumerate(batch):
                    row = [number[tag] for tag in to_tags(sentence)]
                    wanted[b, : len(row)] = torch.tensor(row, device=device)
                logits = self.net(*ids)
                nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                scale.step()
            self.net.eval()

    @staticmethod
    def _vocabulary(sentences: Sequence[Sentence], n: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for sentence in sentences:
            for gram in _grams(sentence.tokens, n):
                counts[gram] = counts.get(gram, 0) + 1
        # What occurs once stands for what never does.
        return {gram: i + 2 for i, gram in enumerate(sorted(g for g, c in counts.items() if c > 1))}

    def _ids(self, batch: Sequence[Sentence]) -> list[Tensor]:
        longest = max(len(s.tokens) for s in batch)
        found = []
        for n, known in zip((1, 2), self.known, strict=True):
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            for b, sentence in enumerate(batch):
                ids[b, : len(sentence.tokens)] = torch.tensor([known.get(g, RARE) for g in _grams(sentence.tokens, n)])
            found.append(ids.to(self.device))
        return found

    @torch.inference_mode()
    def predict(self, sentences: Sequence[Sentence], batch_size: int = 64) -> list[Spans]:
        """Spans of each sentence; a stray I opens a span."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
        found: list[Spans] = [[] for _ in sentences]
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            tags = self.net(*self._ids([sentences[i] for i in part])).argmax(-1).tolist()
            for i, row in zip(part, tags, strict=True):
                found[i] = from_tags([self.tags[t] for t in row[: len(sentences[i].tokens)]])
        return found


def _grams(tokens: Sequence[str], n: int) -> list[str]:
    padded = [*tokens, *["</s>"] * (n - 1)]
    return ["".join(padded[i : i + n]) for i in range(len(tokens))]


class _Net(nn.Module):
    def __init__(self, sizes: Sequence[int], width: int, tags: int, bigrams: bool) -> None:
        super().__init__()
        self.one = nn.Embedding(sizes[0], width, padding_idx=0)
        self.two = nn.Embedding(sizes[1], width, padding_idx=0) if bigrams else None
        self.drop = nn.Dropout(0.3)
        self.read = nn.LSTM(width * (2 if bigrams else 1), width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, one_BT: Tensor, two_BT: Tensor) -> Tensor:
        """[B, T], [B, T] -> [B, T, L]"""
        x_BTD = self.one(one_BT)
        if self.two is not None:
            x_BTD = torch.cat([x_BTD, self.two(two_BT)], -1)
        return self.head(self.drop(self.read(self.drop(x_BTD))[0]))
