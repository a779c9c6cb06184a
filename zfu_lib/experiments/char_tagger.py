"""Character models, small and trained from scratch: embeddings, a two-way LSTM, and one of three heads.

``softmax`` decides a tag for every character, ``crf`` for the whole sentence (:class:`ChainCrf`), ``biaffine`` scores
every pair of a first and a last character (:class:`Biaffine`).

Shape letters: B sentences, T characters, D width, L tags, C types of spans and "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from zfu_lib.skills.spans import Sentence, Span, from_tags, to_tags

Spans = list[Span]
Head = Literal["softmax", "crf", "biaffine"]
RARE = 1


class CharTagger:
    """Learns spans of characters.

    Args:
        head: how spans are decided; see the module.
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
        head: Head = "softmax",
        width: int = 64,
        batch_size: int = 16,
        rate: float = 5e-3,
        bigrams: bool = True,
        device: str = "cpu",
    ) -> None:
        self.device, self.bigrams = device, bigrams
        kinds = sorted({span.type for s in sentences for span in s.spans})
        longest = max((span.end - span.start for s in sentences for span in s.spans), default=1)
        self.known = [self._vocabulary(sentences, n) for n in (1, 2)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {"softmax": Softmax, "crf": ChainCrf, "biaffine": Biaffine}[head]
            body = _Body([len(k) + 2 for k in self.known], width, bigrams)
            self.net = nn.ModuleDict({"body": body, "head": made(2 * width, kinds, longest)}).to(device)
            rng = np.random.default_rng((seed, 59))
            order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
            batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=0.01)
            scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, steps))
            self.net.train()
            for _ in range(steps):
                batch = [sentences[i] for i in batches[int(rng.integers(len(batches)))]]
                self.net["head"].loss(self.net["body"](*self._ids(batch)), batch).backward()
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
        """Spans of each sentence."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
        found: list[Spans] = [[] for _ in sentences]
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = [sentences[i] for i in part]
            said = self.net["head"].decode(self.net["body"](*self._ids(batch)), [len(s.tokens) for s in batch])
            for i, spans in zip(part, said, strict=True):
                found[i] = spans
        return found


def _grams(tokens: Sequence[str], n: int) -> list[str]:
    padded = [*tokens, *["</s>"] * (n - 1)]
    return ["".join(padded[i : i + n]) for i in range(len(tokens))]


class _Body(nn.Module):
    def __init__(self, sizes: Sequence[int], width: int, bigrams: bool) -> None:
        super().__init__()
        self.one = nn.Embedding(sizes[0], width, padding_idx=0)
        self.two = nn.Embedding(sizes[1], width, padding_idx=0) if bigrams else None
        self.drop = nn.Dropout(0.3)
        self.read = nn.LSTM(width * (2 if bigrams else 1), width, batch_first=True, bidirectional=True)

    def forward(self, one_BT: Tensor, two_BT: Tensor) -> Tensor:
        """[B, T], [B, T] -> [B, T, D]"""
        x_BTD = self.one(one_BT)
        if self.two is not None:
            x_BTD = torch.cat([x_BTD, self.two(two_BT)], -1)
        return self.drop(self.read(self.drop(x_BTD))[0])


class Softmax(nn.Module):
    """The most probable tag of each character by itself; a stray I opens a span."""

    def __init__(self, width: int, kinds: Sequence[str], longest: int) -> None:
        super().__init__()
        self.tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        self.score = nn.Linear(width, len(self.tags))

    def wanted(self, batch: Sequence[Sentence], fill: int) -> Tensor:
        """Numbers of the gold tags [B, T], ``fill`` after the end of a sentence."""
        number = {tag: i for i, tag in enumerate(self.tags)}
        rows = [torch.tensor([number[tag] for tag in to_tags(s)]) for s in batch]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        return padded.to(self.score.weight.device)

    def loss(self, x_BTD: Tensor, batch: Sequence[Sentence]) -> Tensor:
        """Mean -log p of the gold tags."""
        return nn.functional.cross_entropy(self.score(x_BTD).flatten(0, 1), self.wanted(batch, -100).flatten())

    def decode(self, x_BTD: Tensor, lengths: Sequence[int]) -> list[Spans]:
        """Spans of each sentence."""
        best = self.score(x_BTD).argmax(-1).tolist()
        return [from_tags([self.tags[t] for t in row[:n]]) for row, n in zip(best, lengths, strict=True)]


class ChainCrf(Softmax):
    """A linear-chain conditional random field (Lafferty et al. 2001) on the states of the LSTM (Huang et al.,
    arXiv 1508.01991): score(y) = sum_t e_t[y_t] + A[y_(t-1), y_t], p(y) = exp score(y) / sum_y' exp score(y').

    What BIO forbids (an I after no tag of its type) has the score ``NEVER``, in training and decoding alike.
    """

    NEVER = -1e4

    def __init__(self, width: int, kinds: Sequence[str], longest: int) -> None:
        super().__init__(width, kinds, longest)
        after = [[self.NEVER * (b[0] == "I" and a[1:] != b[1:]) for b in self.tags] for a in self.tags]
        self.register_buffer("legal_LL", torch.tensor(after))
        self.change_LL = nn.Parameter(torch.zeros(len(self.tags), len(self.tags)))

    def scores(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """e [B, T, L], the first of each sentence without I; A [L, L]."""
        e_BTL = self.score(x_BTD)
        first = e_BTL[:, :1] + self.legal_LL[0]  # as after an O
        return torch.cat([first, e_BTL[:, 1:]], 1), self.change_LL + self.legal_LL

    def loss(self, x_BTD: Tensor, batch: Sequence[Sentence]) -> Tensor:
        """Mean of -log p(y) per character."""
        e_BTL, change_LL = self.scores(x_BTD)
        y_BT = self.wanted(batch, -1)
        inside_BT, y_BT = y_BT >= 0, y_BT.clamp(min=0)
        own = e_BTL.gather(-1, y_BT[..., None])[..., 0] * inside_BT
        steps = change_LL[y_BT[:, :-1], y_BT[:, 1:]] * inside_BT[:, 1:]
        all_BL = e_BTL[:, 0]  # log of the summed exp scores of all beginnings that end in a tag
        for t in range(1, e_BTL.shape[1]):
            further = (all_BL[:, :, None] + change_LL).logsumexp(1) + e_BTL[:, t]
            all_BL = torch.where(inside_BT[:, t, None], further, all_BL)
        return (all_BL.logsumexp(-1).sum() - own.sum() - steps.sum()) / inside_BT.sum()

    def decode(self, x_BTD: Tensor, lengths: Sequence[int]) -> list[Spans]:
        """Spans of the sequence of tags with the highest score (Viterbi)."""
        e_BTL, change_LL = self.scores(x_BTD)
        best_BL, back = e_BTL[:, 0], []
        ends = [best_BL]
        for t in range(1, e_BTL.shape[1]):
            best_BL, where_BL = (best_BL[:, :, None] + change_LL).max(1)
            best_BL = best_BL + e_BTL[:, t]
            back.append(where_BL)
            ends.append(best_BL)
        found = []
        for b, n in enumerate(lengths):
            path = [int(ends[n - 1][b].argmax())]
            for where_BL in reversed(back[: n - 1]):
                path.append(int(where_BL[b, path[-1]]))
            found.append(from_tags([self.tags[t] for t in reversed(path)], stray="drop"))
        return found


class Biaffine(nn.Module):
    """A classifier of spans (Yu et al., arXiv 2005.07150): s(i, j) = [f(x_i); 1]^T U [g(x_j); 1] over the types and
    "none", for every first character i and last character j at most ``longest`` apart.

    Decoding takes spans that are likelier some type than none, the most probable first, without overlaps.
    """

    def __init__(self, width: int, kinds: Sequence[str], longest: int, inner: int = 48) -> None:
        super().__init__()
        self.kinds, self.longest = list(kinds), longest
        self.first, self.last = nn.Linear(width, inner), nn.Linear(width, inner)
        self.u_CDD = nn.Parameter(torch.zeros(len(kinds) + 1, inner + 1, inner + 1))

    def scores(self, x_BTD: Tensor) -> Tensor:
        """[B, T, T, C]; type 0 is none."""
        one = x_BTD.new_ones((*x_BTD.shape[:2], 1))
        i_BTD, j_BTD = (torch.cat([f(x_BTD).relu(), one], -1) for f in (self.first, self.last))
        return torch.einsum("bid,cde,bje->bijc", i_BTD, self.u_CDD, j_BTD)

    def candidates(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Which pairs are spans of their sentence: bool [B, T, T]."""
        at = torch.arange(max(lengths), device=device)
        apart = at[None, :] - at[:, None]
        inside = at[None, :] < torch.tensor(lengths, device=device)[:, None]
        return ((apart >= 0) & (apart < self.longest))[None] & inside[:, None, :]

    def loss(self, x_BTD: Tensor, batch: Sequence[Sentence]) -> Tensor:
        """-log p summed over candidates, divided by the number of characters."""
        y_BTT = torch.zeros((len(batch), x_BTD.shape[1], x_BTD.shape[1]), dtype=torch.long, device=x_BTD.device)
        for b, sentence in enumerate(batch):
            for start, end, kind in sentence.spans:
                y_BTT[b, start, end - 1] = 1 + self.kinds.index(kind)
        lengths = [len(s.tokens) for s in batch]
        some = self.candidates(lengths, x_BTD.device)
        return nn.functional.cross_entropy(self.scores(x_BTD)[some], y_BTT[some], reduction="sum") / sum(lengths)

    def decode(self, x_BTD: Tensor, lengths: Sequence[int]) -> list[Spans]:
        """Spans of each sentence."""
        chance, kind = self.scores(x_BTD).softmax(-1).max(-1)
        marked = self.candidates(lengths, x_BTD.device) & (kind > 0)
        found: list[list[tuple[float, Span]]] = [[] for _ in lengths]
        for b, i, j in marked.nonzero().tolist():
            found[b].append((-float(chance[b, i, j]), Span(i, j + 1, self.kinds[int(kind[b, i, j]) - 1])))
        return [without_overlap(spans) for spans in found]


def without_overlap(ranked: Sequence[tuple[float, Span]]) -> Spans:
    """Spans by rising rank, each kept if it overlaps none before it; sorted."""
    kept: Spans = []
    for _, span in sorted(ranked):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)
