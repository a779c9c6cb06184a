"""The protocol over any transformers causal language model: batched generation and scoring on this machine.

Shape letters: B rows of a batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from zfu_lib.lm.protocol import (
    Caps,
    ContextOverflow,
    GenRequest,
    GenResult,
    Message,
    ModelError,
    ScoreRequest,
    ScoreResult,
    Unsupported,
)
from zfu_lib.lm.train import mode

ANCHOR = 8  # Tokens decoded before a text: some tokenizers drop the space that a text begins with.
LOGITS = 1 << 27  # Numbers of the largest table of logits (half a gigabyte of float32).
LOGS = (transformers_logging, hub_logging)
SMALL = 1 << 19  # Multiplications of a matrix product below which the BLAS is called.
UNFINISHED = "\ufffd"  # What the bytes of a character decode to until the last of them is there.


@dataclass(eq=False)
class _Row:
    """A text in the making: its prompt [T] and what was generated so far. ``finish`` is empty while it goes on."""

    request: GenRequest
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    n_out: int = 0
    finish: str = ""
    seconds: float = 0.0

    @functools.cached_property
    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.request.seed)


@dataclass(eq=False)
class _Scored:
    """A text to score: its tokens [T], of which those from ``first`` on are the continuation."""

    tokens: list[int]
    first: int
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    n_cached: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class _Read:
    """What ``remember`` keeps of a text: keys and values of all its tokens, and the scores of tokens 1 .. T-1."""

    tokens: list[int]
    cache: object
    logprob: list[float]
    entropy: list[float]


class TransformersLM:
    """A transformers causal language model as a :class:`~zfu_lib.lm.protocol.LanguageModel`.

    Greedy results do not depend on the other requests of a batch, except that two tokens equal up to float rounding may
    change places. A sampled text is a function of its request: each draws from a generator of its own.

    Args:
        model: a folder that ``save_pretrained`` wrote, an id on the hub, or a loaded model.
        tokenizer: of a loaded model; None takes the one beside the weights.
        name: what records call it; None for the folder's name or the id.
        device: ``auto`` is the GPU if there is one.
        dtype: ``auto`` is float32 on a CPU, and on a GPU what the checkpoint has. A loaded model stays as it is.
        n_params: for the cost law; None counts all parameters.
        count_embeddings: False counts without embeddings (a head tied to them included); None is False only for
            checkpoints of this project (``zfu`` in their configuration).
        batch_tokens: bound on the rows times the tokens of a batch, padding included (one row may exceed it).
        remember: how many tokens :meth:`score` keeps keys and values of, so that a text which goes on from one
            scored before costs its new tokens only. Texts are then read one at a time. 0: nothing is kept.

    Raises:
        ModelError: the model cannot be found or loaded; the message says what to do.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        n_params: int | None = None,
        count_embeddings: bool | None = None,
        batch_tokens: int = 16384,
        remember: int = 0,
    ) -> None:
        self._source = str(model) if isinstance(model, str | Path) else None
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError("there is no GPU here that torch can use; leave device='auto'")
        if self._source is not None:
            device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            model, found = _load(self._source, torch.device(device), dtype)
            tokenizer = tokenizer or found
        elif tokenizer is None:
            raise ModelError("a loaded model needs its tokenizer: TransformersLM(model, tokenizer)")
        elif device != "auto":
            model = model.to(device)
        self.model, self.tokenizer, self.batch_tokens, self.remember = model, tokenizer, batch_tokens, remember
        self.name = name or (Path(self._source).name if self._is_folder else self._source) or type(model).__name__
        config = model.config.get_text_config()
        self._vocabulary = config.vocab_size
        self.context = int(
            min(getattr(config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length, 2**40)
        )
        if count_embeddings is None:
            count_embeddings = not getattr(model.config, "zfu", None)
        self.n_params = n_params or model.num_parameters(exclude_embeddings=not count_embeddings)
        self._template = _template(tokenizer)
        self.caps = Caps(entropy="exact", prefill=True, logprobs=True, chat=self._template is not None)
        self._takes = inspect.signature(model.forward).parameters
        ends = [model.generation_config.eos_token_id, config.eos_token_id, tokenizer.eos_token_id]
        self._ends = {i for end in ends for i in (end if isinstance(end, list) else [end]) if i is not None}
        begins = [tokenizer.bos_token_id, config.bos_token_id, tokenizer.eos_token_id, *self._ends, 0]
        self._begin = next(i for i in begins if i is not None)
        self._piece = functools.cache(lambda token: self._decode([token]))
        self._reads: list[_Read] = []

    @property
    def _is_folder(self) -> bool:
        return self._source is not None and Path(self._source).expanduser().is_dir()

    @functools.cached_property
    def identity(self) -> str:
        """Checksum of weights, configuration and tokenizer, or the hub's commit; and the number format. A loaded
        model's is of its weights when it is first asked for."""
        if self._is_folder:
            found = folder_identity(Path(self._source).expanduser())
        elif self._source is not None and getattr(self.model.config, "_commit_hash", None):
            found = f"{self._source}@{self.model.config._commit_hash}"
        else:
            digest = hashlib.sha256(
                repr((self.model.config.to_json_string(), sorted(self.tokenizer.get_vocab().items()))).encode()
            )
            for key, tensor in sorted(self.model.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            found = f"sha256:{digest.hexdigest()}"
        return f"{found}/{str(self.model.dtype).removeprefix('torch.')}"

    def count(self, text: str) -> int:
        """Tokens of ``text``, without special ones."""
        return len(self._encode(text, special=False))

    def truncate(self, text: str, n_tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``n_tokens`` tokens."""
        ends, n_tokens = [end for _, end in self._offsets(text, special=False)[1]], max(n_tokens, 0)
        if len(ends) <= n_tokens:
            return text
        # A beginning may have fewer tokens than the whole text has there, so the search begins behind the cut.
        furthest = ends[min(n_tokens + ANCHOR, len(ends) - 1)]
        return next(text[:end] for end in range(furthest, -1, -1) if self.count(text[:end]) <= n_tokens)

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """One text per request, in their order.

        Raises:
            ContextOverflow: prompt and ``max_tokens`` do not fit the context; nothing was computed.
            Unsupported: messages without a chat template, or ``thinking`` where the template has no such switch.
        """
        rows = [self._row(request) for request in requests]
        for batch in self._batches(rows, lambda row: len(row.prompt), lambda row: row.request.max_tokens):
            for _ in self._decoding(batch):
                pass
        return [self._result(row) for row in rows]

    def stream(self, request: GenRequest) -> Iterator[str]:
        """The pieces of one generated text as they come; together they are ``generate([request])[0].text``.

        Raises: what :meth:`generate` raises, before the first piece.
        """
        return self._streaming(self._row(request))

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Log-probability and exact entropy of each token of the continuations, in the order of the requests.

        Context and continuation are one text to the tokenizer; a token that has a part of both belongs to the
        continuation. With ``remember``, ``n_cached`` says how many tokens were not computed again.

        Raises:
            ContextOverflow: a text longer than the context; nothing was computed.
            Unsupported: the tokenizer does not say where its tokens are in the text.
        """
        rows = [self._scored(request) for request in requests]
        if self.remember:
            for row in rows:
                self._score_on(row)
        else:
            for batch in self._batches(rows, lambda row: len(row.tokens), lambda row: 0):
                began = time.perf_counter()
                logprob_BT, entropy_BT, start = self._forced(batch)
                seconds = (time.perf_counter() - began) / len(batch)
                for row, logprob_T, entropy_T in zip(batch, logprob_BT, entropy_BT):
                    span = slice(row.first - start, len(row.tokens) - start)
                    row.logprob, row.entropy, row.seconds = logprob_T[span], entropy_T[span], seconds
        return [
            ScoreResult(
                np.array(row.logprob, float),
                entropy := np.array(row.entropy, float),
                entropy.copy(),
                n_context=row.first,
                n_cached=row.n_cached,
                seconds=row.seconds,
            )
            for row in rows
        ]

    # Text and tokens

    def _encode(self, text: str, *, special: bool = True) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def _offsets(self, text: str, *, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and where each is in the text: (0, 0) for special tokens before it; those after it are dropped."""
        if not self.tokenizer.is_fast:
            raise Unsupported(f"{self.name}: its tokenizer does not say where tokens are in a text; use a fast one")
        found = self.tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        ids, offsets, marks = found["input_ids"], found["offset_mapping"], found["special_tokens_mask"]
        n = len(ids)
        while n and marks[n - 1] and offsets[n - 1][1] == 0:
            n -= 1
        return ids[:n], offsets[:n]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _text(self, before: list[int], ids: list[int]) -> str:
        """``ids`` as a text that goes on from the tokens ``before`` it."""
        anchor = before[-ANCHOR:]
        return self._decode(anchor + ids)[len(self._decode(anchor)) :]

    def _row(self, request: GenRequest) -> _Row:
        if request.thinking is not None and "enable_thinking" not in (self._template or ""):
            raise Unsupported(f"{self.name} has no thinking mode to switch; leave thinking=None")
        if isinstance(request.prompt, str):
            if request.thinking is not None:
                raise Unsupported("thinking is a switch of the chat template: give the prompt as messages")
            ids = self._encode(request.prompt + request.prefill)
        elif self._template is None:
            raise Unsupported(f"{self.name} has no chat template: give the prompt as one text")
        else:
            switch = {} if request.thinking is None else {"enable_thinking": request.thinking}
            turns = [Message._asdict(turn) for turn in request.prompt]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch)
            ids = self._encode(text + request.prefill, special=False)
        self._check_length(len(ids), request.max_tokens)
        return _Row(request, ids or [self._begin])

    def _scored(self, request: ScoreRequest) -> _Scored:
        ids, offsets = self._offsets(request.context + request.continuation)
        first = next((i for i, (_, end) in enumerate(offsets) if end > len(request.context)), len(ids))
        if first == 0:
            ids, first = [self._begin, *ids], 1
        self._check_length(len(ids), 0)
        return _Scored(ids, first)

    def _check_length(self, n_read: int, n_new: int) -> None:
        if n_read + n_new > self.context:
            raise ContextOverflow(
                f"{n_read} tokens to read and {n_new} to write, but the context of {self.name} holds {self.context}; "
                "shorten the text (truncate) or lower max_tokens"
            )

    def _batches(self, rows: list, length: Callable, more: Callable) -> Iterator[list]:
        """Rows of similar length, as many as ``batch_tokens`` allows."""
        batch, widest = [], 0
        for row in sorted(rows, key=lambda row: (length(row), more(row))):
            widest_now = max(widest, more(row))
            if batch and (length(row) + widest_now) * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch, widest_now = [], more(row)
            batch, widest = [*batch, row], widest_now
        if batch:
            yield batch

    # Generation

    @torch.inference_mode()
    def _decoding(self, rows: list[_Row]) -> Iterator[None]:
        """Generate the rows to their ends, one token of each per step."""
        began = time.perf_counter()
        device, length = self.model.device, max(len(row.prompt) for row in rows)
        missing = [length - len(row.prompt) for row in rows]
        ids_BT = torch.tensor([[self._begin] * n + row.prompt for n, row in zip(missing, rows)], device=device)
        padding = {}
        if any(missing):
            mask_BT = torch.ones(len(rows), length + max(row.request.max_tokens for row in rows), dtype=torch.long)
            for i, n in enumerate(missing):
                mask_BT[i, :n] = 0
            mask_BT = mask_BT.to(device)
            position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        cache, read = None, 0
        with mode(self.model, training=False):
            while rows:
                if any(missing):
                    padding = {"attention_mask": mask_BT[:, :length]}
                    if "position_ids" in self._takes:
                        padding["position_ids"] = position_BT[:, read:length]
                out = self._forward(ids_BT, cache, keep=1, use_cache=True, **padding)
                cache, logits_BV = out.past_key_values, out.logits[:, -1].float()
                chosen_B = _draw(logits_BV, rows)
                logprobs = [math.nan] * len(rows)
                if any(row.request.logprobs for row in rows):
                    logprobs = logits_BV.log_softmax(-1).gather(1, chosen_B[:, None])[:, 0].tolist()
                for row, token, logprob in zip(rows, chosen_B.tolist(), logprobs):
                    if not row.finish:
                        self._append(row, token, logprob)
                alive = [i for i, row in enumerate(rows) if not row.finish]
                now = time.perf_counter()
                for row in rows:
                    row.seconds += (now - began) / len(rows)
                yield
                began = time.perf_counter()
                # Dropping finished rows copies the keys and values once, which pays when enough have finished.
                if len(alive) < len(rows) and (not alive or (len(rows) - len(alive)) * 8 >= len(rows)):
                    rows = [rows[i] for i in alive]
                    kept = torch.tensor(alive, dtype=torch.long, device=device)
                    cache.reorder_cache(kept)
                    chosen_B = chosen_B[kept]
                    if any(missing):
                        mask_BT, position_BT = mask_BT[kept], position_BT[kept]
                ids_BT, read, length = chosen_B[:, None], length, length + 1

    def _forward(self, ids_BT: Tensor, cache: object, *, keep: int, use_cache: bool, **more: Tensor) -> object:
        """The model's output, logits of at least the last ``keep`` tokens."""
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = keep
        return self.model(input_ids=ids_BT, past_key_values=cache, use_cache=use_cache, **more)

    def _append(self, row: _Row, token: int, logprob: float) -> None:
        row.n_out += 1
        if token in self._ends:
            row.finish = "stop"
            return
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if row.request.stop and self._met_stop(row):
            row.finish = "stop"
        elif row.n_out == row.request.max_tokens:
            row.finish = "length"

    def _met_stop(self, row: _Row) -> bool:
        """Did the last token complete a stop string?"""
        stops, piece = row.request.stop, self._piece(row.tokens[-1])
        # Most tokens do not even have a last character of one; a lone token may lose a space or be part of a character.
        if not any(stop[-1] in piece or stop[-1] == " " for stop in stops) and UNFINISHED not in piece:
            return False
        window = max(len(stop.encode()) for stop in stops) + 4
        text = self._text(row.prompt + row.tokens[:-window], row.tokens[-window:])
        return any(stop in text for stop in stops)

    def _result(self, row: _Row) -> GenResult:
        whole = self._text(row.prompt, row.tokens)
        text = whole[: min((at for stop in row.request.stop if (at := whole.find(stop)) >= 0), default=len(whole))]
        kept = len(row.tokens)
        if len(text) < len(whole):
            while kept and self._text(row.prompt, row.tokens[: kept - 1]).startswith(text):
                kept -= 1
        return GenResult(
            text,
            n_prompt=len(row.prompt),
            n_out=row.n_out,
            finish=row.finish,
            logprobs=tuple(row.logprobs[:kept]) if row.request.logprobs else None,
            seconds=row.seconds,
        )

    def _streaming(self, row: _Row) -> Iterator[str]:
        sure, start, sent = "", 0, 0
        for _ in self._decoding([row]):
            if row.finish:
                break
            piece = self._text(row.prompt + row.tokens[:start], row.tokens[start:])
            if not piece or piece.endswith(UNFINISHED):
                continue
            sure, start = sure + piece, len(row.tokens)
            # What may be the beginning of a stop string is held back.
            held = max(
                (n for stop in row.request.stop for n in range(1, len(stop)) if sure.endswith(stop[:n])), default=0
            )
            if len(sure) - held > sent:
                yield sure[sent : len(sure) - held]
                sent = len(sure) - held
        if rest := self._result(row).text[sent:]:
            yield rest

    # Scoring

    @torch.inference_mode()
    def _forced(
        self, rows: Sequence[_Scored], cache: object = None, read: int = 0, *, keep_cache: bool = False
    ) -> tuple:
        """Teacher forcing, in pieces if the logits would be too large.

        Padding goes to the right, where no token sees it.

        Args:
            cache: keys and values of the first ``read`` tokens of every row.

        Returns:
            Log-probability (nats) and entropy (bits) of tokens ``start`` .. T-1 of each row, as lists, and ``start``
            (with ``keep_cache`` the first token that can be scored, and the cache as a fourth).
        """
        width = max(len(row.tokens) for row in rows)
        ids_BT = torch.tensor(
            [row.tokens + [self._begin] * (width - len(row.tokens)) for row in rows], device=self.model.device
        )
        start = read + 1 if keep_cache else min(row.first for row in rows)
        step = max(1, LOGITS // (len(rows) * self._vocabulary))
        ends = list(range(start - 1 + step, width, step)) + [width]
        logprobs, entropies = [], []
        with mode(self.model, training=False):
            for end in ends:
                keep = end - max(read, start - 1)
                use_cache = keep_cache or len(ends) > 1
                out = self._forward(ids_BT[:, read:end], cache, keep=keep, use_cache=use_cache)
                cache, read = out.past_key_values, end
                # The last position of all predicts nothing that is known.
                targets_BT = ids_BT[:, end - keep + 1 : end + 1]
                logprob_BT, entropy_BT = _scores(out.logits[:, -keep:][:, : targets_BT.shape[1]], targets_BT)
                logprobs.append(logprob_BT)
                entropies.append(entropy_BT)
        found = torch.cat(logprobs, 1).tolist(), torch.cat(entropies, 1).tolist(), start
        return (*found, cache) if keep_cache else found

    def _score_on(self, row: _Scored) -> None:
        """Score one text, going on from the remembered one that it shares most with."""
        began = time.perf_counter()
        shared = [_common(read.tokens, row.tokens) for read in self._reads]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        # The last token they share is read again: its logits were not kept. One that shares little is left alone.
        kept = shared[best] - 1 if best is not None else 0
        past = _Read([], None, [], [])
        if kept > 0 and 2 * kept >= len(self._reads[best].tokens):
            found = self._reads.pop(best)
            # Caches that cannot forget tokens (recurrent states, full windows) say so by failing.
            with contextlib.suppress(RuntimeError, ValueError, AttributeError):
                found.cache.crop(kept - len(found.tokens))
                past = _Read(found.tokens[:kept], found.cache, found.logprob[:kept], found.entropy[:kept])
        n = len(past.tokens)
        logprob_BT, entropy_BT, _, cache = self._forced([row], past.cache, n, keep_cache=True)
        read = _Read(row.tokens, cache, past.logprob + logprob_BT[0], past.entropy + entropy_BT[0])
        # Entry i of the scores is of token i + 1: nothing predicts the first.
        row.logprob, row.entropy = read.logprob[row.first - 1 :], read.entropy[row.first - 1 :]
        row.n_cached, row.seconds = n, time.perf_counter() - began
        self._reads.append(read)
        while self._reads and sum(len(read.tokens) for read in self._reads) > self.remember:
            self._reads.pop(0)


def _scores(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (nats) of the targets and entropy (bits) of the distributions, [B, T] each."""
    logprob_BTV = logits_BTV.float().log_softmax(-1)
    logprob_BT = logprob_BTV.gather(2, targets_BT[..., None])[..., 0]
    return logprob_BT, torch.special.entr(logprob_BTV.exp_()).sum(-1) / math.log(2)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the beginning that both share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _draw(logits_BV: Tensor, rows: Sequence[_Row]) -> Tensor:
    """[B] the next token of each row: the most probable one, or drawn by inverting the distribution function.

    One random number is taken per row and step, so a row's draws are its own. Temperature, then ``top_k``, then
    ``top_p`` of what is left.
    """
    best_B = logits_BV.argmax(-1)
    at = [i for i, row in enumerate(rows) if row.request.temperature > 0 and not row.finish]
    if not at:
        return best_B
    asked = [rows[i].request for i in at]

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=logits_BV.device)[:, None]

    z_BV = logits_BV[at].double()
    z_BV = (z_BV - z_BV.amax(-1, keepdim=True)) / column(r.temperature for r in asked)
    if any(r.top_k or r.top_p < 1 for r in asked):
        order_BV = z_BV.sort(dim=-1, descending=True, stable=True).indices
        V = z_BV.shape[1]
        keep_BV = torch.arange(V, device=z_BV.device) < column(r.top_k or V for r in asked)
        p_BV = z_BV.gather(1, order_BV).masked_fill(~keep_BV, -math.inf).softmax(-1)
        # A token stays if those before it do not reach top_p; 2 is out of reach of rounding.
        keep_BV &= p_BV.cumsum(-1) - p_BV < column(r.top_p if r.top_p < 1 else 2.0 for r in asked)
        z_BV = z_BV.masked_fill(~torch.zeros_like(keep_BV).scatter(1, order_BV, keep_BV), -math.inf)
    below_BV = z_BV.softmax(-1).cumsum(-1)
    u_B1 = column(torch.rand((), generator=rows[i].random, dtype=torch.float64).item() for i in at)
    drawn_B = torch.searchsorted(below_BV, u_B1 * below_BV[:, -1:], right=True)[:, 0]
    best_B[at] = drawn_B.clamp(max=logits_BV.shape[1] - 1)
    return best_B


class _Linear(nn.Linear):
    """``nn.Linear`` by oneDNN where that is the faster library: MKL leaves half of some CPUs unused (see
    ``benchmarks/generation.py``), and small products do not repay the longer call."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows * self.weight.numel() < SMALL or x.dtype is not torch.float32 or torch.is_grad_enabled():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        return None


@functools.lru_cache(maxsize=64)
def _digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_identity(folder: Path) -> str:
    """``sha256:`` of the names and contents of a checkpoint's weights, configuration, template and tokenizer."""
    files = sorted(
        file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
    )
    parts = [
        (file.name, _digest(file, file.stat().st_size, file.stat().st_mtime_ns))
        for file in files
        if file.name != "card.json"
    ]
    return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _load(source: str, device: torch.device, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or a hub id; safetensors only, no code of the checkpoint is run."""
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or source.startswith(("/", "./", "../", "~"))):
        raise ModelError(f"{source} is not a folder; give one that save_pretrained wrote, or an id on the hub")
    if local and not (folder / "config.json").is_file():
        raise ModelError(f"{source} has no config.json; give a folder that save_pretrained wrote")
    if local and not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for end in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{end}"))
        raise ModelError(
            f"{source} has no weights in safetensors"
            + (f", only pickled ones ({pickled[0]}), which are not read; convert them" if pickled else "; add them")
            + " with save_pretrained"
        )
    where = str(folder) if local else source
    options = {"local_files_only": local, "trust_remote_code": False}
    numbers = "auto" if dtype == "auto" and device.type != "cpu" else torch.float32 if dtype == "auto" else dtype
    failures = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
    with _quiet():
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                where, dtype=numbers, use_safetensors=True, output_loading_info=True, **options
            )
        except failures as error:
            raise ModelError(_explain(source, local, "model", error)) from None
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ModelError(f"{source}: the weights lack {len(missing)} tensors of the model, {missing[0]} first")
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
        except failures as error:
            raise ModelError(_explain(source, local, "tokenizer", error)) from None
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(f"{source}: the tokenizer has {len(tokenizer)} tokens, more than the model; give its own")
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _Linear
    return model.to(device), tokenizer


def _explain(source: str, local: bool, what: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    if local:
        return f"{source}: its {what} cannot be loaded ({reason}); save it there again with save_pretrained"
    return (
        f"{source} is no folder here, and the hub did not give its {what} ({reason}); check the id and the connection, "
        "or give the path of a folder with a copy"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice; what matters is raised."""
    bars, levels = transformers_logging.is_progress_bar_enabled(), [log.get_verbosity() for log in LOGS]
    transformers_logging.disable_progress_bar()
    for log in LOGS:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in zip(LOGS, levels):
            log.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
