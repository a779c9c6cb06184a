"""Span extractors to compare with, and models that only answer: shared by the chapters on skills.

Every extractor turns sentences into spans: :class:`Lexicon` looks up training spans, :class:`Crf` is a linear-chain
conditional random field over word features, :class:`Tagger` a sentence encoder fine-tuned as a BIO classifier.
:class:`Answerer` makes any function a language model, so that simulated and non-generative systems run through the same
pipeline.

Shape letters: B sentences, T sub-words, D width, L tags.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pycrfsuite
import torch
from torch import Tensor, nn

from zfu_lib.lm.encoder import TextEncoder
from zfu_lib.lm.protocol import Caps, GenRequest, GenResult, ScoreRequest, ScoreResult, Unsupported
from zfu_lib.skills.shape import phrase
from zfu_lib.skills.spans import Sentence, Span, from_tags, to_tags

Spans = list[Span]


class Lexicon:
    """Greedy longest match, left to right, of the lower-cased spans of the training sentences: the trivial baseline."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.kinds = {phrase(s, span): span.type for s in sentences for span in s.spans}
        self.longest = max((len(words.split()) for words in self.kinds), default=0)

    def predict(self, sentences: Sequence[Sentence]) -> list[Spans]:
        """Spans of each sentence."""
        return [self._one([token.lower() for token in sentence.tokens]) for sentence in sentences]

    def _one(self, tokens: list[str]) -> Spans:
        found: Spans = []
        i = 0
        while i < len(tokens):
            for n in range(min(self.longest, len(tokens) - i), 0, -1):
                if (words := " ".join(tokens[i : i + n])) in self.kinds:
                    found.append(Span(i, i + n, self.kinds[words]))
                    i += n - 1
                    break
            i += 1
        return found


def gazetteer_marks(tokens: Sequence[str], labels: Collection[str], longest: int = 6) -> list[bool]:
    """Which tokens lie in a sequence of at least two tokens, or a capitalised one, that is a label (lower case)."""
    low = [token.lower() for token in tokens]
    marks = [False] * len(low)
    for i in range(len(low)):
        for n in range(min(longest, len(low) - i), 0, -1):
            if " ".join(low[i : i + n]) in labels and (n > 1 or tokens[i][:1].isupper()):
                marks[i : i + n] = [True] * n
                break
    return marks


class Crf:
    """A CRF floor: word, affix, shape and window features, L-BFGS with an L2 penalty (python-crfsuite).

    Args:
        labels: lower-cased labels of a taxonomy; a token inside one has a feature of its own.
        iterations: of L-BFGS.
    """

    def __init__(
        self, sentences: Sequence[Sentence], *, labels: Collection[str] = (), iterations: int = 60, l2: float = 0.1
    ) -> None:
        self.labels = labels
        trainer = pycrfsuite.Trainer(algorithm="lbfgs", verbose=False)
        trainer.set_params({"c1": 0.0, "c2": l2, "max_iterations": iterations})
        for sentence in sentences:
            trainer.append(self._features(sentence), to_tags(sentence))
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "crf")
            trainer.train(file)
            # The tagger reads these bytes where they are and does not hold them.
            self._model = Path(file).read_bytes()
        self._tagger = pycrfsuite.Tagger()
        self._tagger.open_inmemory(self._model)

    def predict(self, sentences: Sequence[Sentence]) -> list[Spans]:
        """Spans of each sentence."""
        return [from_tags(self._tagger.tag(self._features(sentence))) for sentence in sentences]

    def _features(self, sentence: Sentence) -> list[list[str]]:
        tokens = sentence.tokens
        known = gazetteer_marks(tokens, self.labels) if self.labels else [False] * len(tokens)
        low = ["<s>", "<s>", *(token.lower() for token in tokens), "</s>", "</s>"]
        rows = []
        for i, token in enumerate(tokens):
            j = i + 2
            row = ["bias", f"w={low[j]}", f"p3={low[j][:3]}", f"s3={low[j][-3:]}", f"s2={low[j][-2:]}"]
            row += [f"w{d:+d}={low[j + d]}" for d in (-2, -1, 1, 2)]
            row += [f"w-1,0={low[j - 1]}|{low[j]}", f"w0,1={low[j]}|{low[j + 1]}"]
            row += [f"shape={_shape(token)}"] + ["known"] * known[i]
            row += ["known before"] * (i > 0 and known[i - 1])
            rows.append(row)
        return rows


def _shape(token: str) -> str:
    letters = ["X" if c.isupper() else "x" if c.islower() else "9" if c.isdigit() else c for c in token]
    return "".join(c for i, c in enumerate(letters) if i == 0 or c != letters[i - 1])


class Tagger:
    """A sentence encoder fine-tuned to give each word (its first sub-word) a BIO tag.

    Args:
        encoder: its weights are copied, not changed.
        steps: of AdamW with linear warm-up and decay, batches of ``batch_size`` sentences of like length.
        frozen: how many of the lower layers (the embeddings always) keep their weights. Where all do, only a linear
            head is learnt, on states that are computed once for each sentence.
        states: where those states are kept, so that several taggers of one encoder share them.
        types: span types to learn; None takes those of the sentences.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        sentences: Sequence[Sentence],
        *,
        steps: int,
        seed: int,
        batch_size: int = 16,
        rate: float = 3e-4,
        frozen: int = 0,
        max_length: int = 96,
        types: Sequence[str] | None = None,
        states: dict[tuple[str, ...], np.ndarray] | None = None,
    ) -> None:
        kinds = sorted(types or {span.type for s in sentences for span in s.spans})
        self.tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        self.tokenizer, self.max_length = encoder.tokenizer, max_length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(encoder.width, len(self.tags)).to(encoder.model.device)
            if frozen >= len(encoder.model.encoder.layer):
                self.body, self._known = encoder.model, {} if states is None else states
                self._fit_head(sentences, steps, seed, 10 * rate)
            else:
                self.body, self._known = copy.deepcopy(encoder.model), None
                self._fit(sentences, steps, seed, batch_size, rate, frozen)

    def _fit_head(self, sentences: Sequence[Sentence], steps: int, seed: int, rate: float) -> None:
        states = self._look_up(sentences)
        x = torch.from_numpy(np.concatenate(states)).to(self.head.weight)
        tags = [tag for s, rows in zip(sentences, states, strict=True) for tag in to_tags(s)[: len(rows)]]
        y = torch.tensor([self.tags.index(tag) for tag in tags], device=x.device)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=rate, weight_decay=0.01)
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            batch = torch.from_numpy(rng.integers(0, len(x), min(512, len(x)))).to(x.device)
            nn.functional.cross_entropy(self.head(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.inference_mode()
    def _look_up(self, sentences: Sequence[Sentence], batch_size: int = 32) -> list[np.ndarray]:
        """States of the unchanged encoder, each sentence computed once."""
        new = sorted({s.tokens for s in sentences} - set(self._known), key=len)
        for start in range(0, len(new), batch_size):
            part = [Sentence(tokens) for tokens in new[start : start + batch_size]]
            found, rows, _ = self._states(part)
            found, rows = found.cpu().numpy(), np.array(rows)
            self._known |= {s.tokens: found[rows == b] for b, s in enumerate(part)}
        return [self._known[s.tokens] for s in sentences]

    def _fit(
        self, sentences: Sequence[Sentence], steps: int, seed: int, batch_size: int, rate: float, frozen: int
    ) -> None:
        layers = self.body.encoder.layer
        self.body.embeddings.requires_grad_(False)
        for layer in layers[:frozen]:
            layer.requires_grad_(False)
        learnt = [p for p in self.body.parameters() if p.requires_grad]
        groups = [{"params": learnt, "lr": rate}, {"params": self.head.parameters(), "lr": 10 * rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        scale = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / max(1, steps // 10), (steps - step) / max(1, steps))
        )
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        rng = np.random.default_rng(seed)
        self.body.train()
        for step in range(steps):
            if step % len(batches) == 0:
                shuffled = rng.permutation(len(batches))
            batch = [sentences[i] for i in batches[shuffled[step % len(batches)]]]
            logits, rows, words = self._logits(batch)
            wanted = [[self.tags.index(tag) for tag in to_tags(sentence)] for sentence in batch]
            targets = torch.tensor([wanted[b][w] for b, w in zip(rows, words, strict=True)], device=logits.device)
            loss = nn.functional.cross_entropy(logits, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scale.step()
        self.body.eval()

    def _states(self, batch: Sequence[Sentence]) -> tuple[Tensor, list[int], list[int]]:
        """States of the first sub-word of every word that fits: [words, D], with its sentence and position."""
        inputs = self.tokenizer(
            [list(sentence.tokens) for sentence in batch],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        rows, columns, words = [], [], []
        for b in range(len(batch)):
            before = None
            for t, word in enumerate(inputs.word_ids(b)):
                if word is not None and word != before:
                    rows.append(b)
                    columns.append(t)
                    words.append(word)
                before = word
        hidden_BTD = self.body(**inputs.to(self.body.device)).last_hidden_state
        return hidden_BTD[rows, columns], rows, words

    def _logits(self, batch: Sequence[Sentence]) -> tuple[Tensor, list[int], list[int]]:
        states, rows, words = self._states(batch)
        return self.head(states), rows, words

    @torch.inference_mode()
    def read(self, sentences: Sequence[Sentence], batch_size: int = 32) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each sentence: states [words, D] and probabilities [words, L] of its words (those that fit)."""
        if self._known is not None:
            kept = self._look_up(sentences)
            return kept, [self.head(torch.from_numpy(x).to(self.head.weight)).softmax(-1).cpu().numpy() for x in kept]
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].tokens))
        states: list = [None] * len(sentences)
        chances: list = [None] * len(sentences)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            found, rows, _ = self._states([sentences[i] for i in part])
            probabilities = self.head(found).softmax(-1).cpu().numpy()
            found, rows = found.cpu().numpy(), np.array(rows)
            for b, i in enumerate(part):
                states[i], chances[i] = found[rows == b], probabilities[rows == b]
        return states, chances

    def decode(self, chances: Sequence[np.ndarray]) -> list[Spans]:
        """Spans of the most probable tags; a stray I opens a span."""
        return [from_tags([self.tags[j] for j in rows.argmax(-1)]) for rows in chances]

    def predict(self, sentences: Sequence[Sentence]) -> list[Spans]:
        """Spans of each sentence; words beyond ``max_length`` sub-words get none."""
        return self.decode(self.read(sentences)[1])


class Answerer:
    """A function from prompts to texts as a language model: simulated, or a tagger that writes its spans as markers.

    It counts a token per word, and cannot score.
    """

    def __init__(self, name: str, answer: Callable[[GenRequest], str]) -> None:
        self.name, self.identity, self.n_params, self.context = name, name, 0, 1_000_000
        self.caps = Caps(entropy=None, prefill=False, logprobs=False, chat=True, streaming=False)
        self._answer = answer

    def count(self, text: str) -> int:
        """Words of a text."""
        return len(text.split())

    def truncate(self, text: str, n_tokens: int) -> str:
        """The first ``n_tokens`` words."""
        return " ".join(text.split()[:n_tokens])

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """One answer per request."""
        found = []
        for request in requests:
            prompt = request.prompt if isinstance(request.prompt, str) else "\n".join(t.content for t in request.prompt)
            text = self._answer(request)
            found.append(GenResult(text, self.count(prompt), self.count(text), "stop"))
        return found

    def stream(self, request: GenRequest) -> Iterator[str]:
        """The whole answer in one piece."""
        yield self.generate([request])[0].text

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Raises Unsupported."""
        raise Unsupported(f"{self.name} only answers; it has no probabilities")


class Lora(nn.Module):
    """A linear layer with a low-rank addition: W x + (alpha / rank) B A x, W frozen, B zero at the start.

    Args:
        rank, alpha, dropout: of the addition (Hu et al., arXiv 2106.09685). A and B are float32 whatever W is.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.b = nn.Parameter(torch.empty(base.out_features, rank, device=base.weight.device))
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)
        self.reset()

    def reset(self) -> None:
        """A drawn anew, B zero: the layer computes what it did without the addition."""
        nn.init.normal_(self.a, std=1 / math.sqrt(self.base.in_features))
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        added = (self.dropout(x).to(self.a.dtype) @ self.a.T) @ self.b.T
        return self.base(x) + (self.scale * added).to(x.dtype)


def add_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.05,
    names: Collection[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> list[Lora]:
    """Freeze a model and put a :class:`Lora` into every linear layer of those names; returns them.

    Raises:
        ValueError: the model has no such layer.
    """
    model.requires_grad_(False)
    added = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(parent, name, Lora(child, rank, alpha, dropout))
                added.append(getattr(parent, name))
    if not added:
        raise ValueError(f"the model has no linear layer named {', '.join(names)}")
    return added


Adapter = list[tuple[Tensor, Tensor]]


def adapter(layers: Sequence[Lora]) -> Adapter:
    """What has been learnt: A and B of every layer, on the CPU."""
    return [(layer.a.detach().cpu().clone(), layer.b.detach().cpu().clone()) for layer in layers]


def use_adapter(layers: Sequence[Lora], learnt: Adapter | None) -> None:
    """Put A and B into the layers; None: the model as it was without any."""
    with torch.no_grad():
        for layer, (a, b) in zip(layers, learnt or [(None, None)] * len(layers), strict=True):
            if a is None:
                layer.b.zero_()
            else:
                layer.a.copy_(a)
                layer.b.copy_(b)
