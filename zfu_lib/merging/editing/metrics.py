"""What is measured of an edited model: in the definitions of EasyEdit's ``evaluate.py``, which are teacher forced, and
decoded freely, which is what a user of the model sees ("The Mirage of Model Editing", arXiv 2502.11177).

*Reliability*. Forced: the share of the target's tokens that are the most probable ones, given the prompt and the right
tokens before. Free: whether the greedy continuation of the prompt, up to a stop, is the target (:func:`normalised`).
*Generalisation*. The same on rephrased prompts. *Portability*. The same on questions that follow from the edit.
*Locality*. Forced: the share of the tokens of the old answer at which the most probable token is that of the model
*before*. Free: whether the continuation is, to the letter, that of the model before.

Every metric is a number in [0, 1] for each edit, NaN for an edit without such a question. Locality is always taken
against the model before the first edit, and says nothing of whether that model was right. Teacher forcing never runs
into its own errors, so it is at least as kind as free decoding wherever an answer has several tokens.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.merging.editing.facts import IGNORED, encode

ROWS = 256
"""Questions that go through the model at once."""
STOPS = ("\n", ".", "<|eos|>")
METRICS = ("reliability", "generalisation", "locality", "portability")


class Asked(NamedTuple):
    """Every question of some cases: the case and the metric it belongs to, its prompt and answer."""

    case: int
    metric: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Scores:
    """Metrics of each edit by name, [N] in [0, 1] (NaN: no such question): teacher forced and decoded freely."""

    forced: dict[str, np.ndarray]
    free: dict[str, np.ndarray]

    def mean(self, metric: str, protocol: str = "free") -> float:
        """Percent, over the edits that have such questions; NaN if none has."""
        values = getattr(self, protocol)[metric]
        return 100 * _mean(values[~np.isnan(values)].tolist())


@dataclass(frozen=True)
class Before:
    """What the unedited model says to the locality questions: most probable tokens, and texts."""

    forced: list[np.ndarray]
    free: list[str]


def questions(cases: Sequence[Any]) -> list[Asked]:
    """All questions of cases (:class:`zfu_lib.data.edits.Case`, or anything with its fields)."""
    found = []
    for i, case in enumerate(cases):
        found.append(Asked(i, "reliability", case.prompt, case.target))
        found += [Asked(i, "generalisation", prompt, case.target) for prompt in case.rephrases]
        found += [Asked(i, "locality", q.prompt, q.answer) for q in case.locality]
        found += [Asked(i, "portability", q.prompt, q.answer) for q in case.portability]
    return found


def before(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Any], **decoding: Any) -> Before:
    """Answers to the locality questions; call it before the first edit, or locality means something else.

    Args:
        decoding: ``new_tokens`` and ``stops`` of :func:`evaluate`.
    """
    near = [q for q in questions(cases) if q.metric == "locality"]
    told = decode(model, tokenizer, [q.prompt for q in near], **_decoding(tokenizer, cases, decoding))
    return Before([said for said, _ in most_probable(model, tokenizer, near)], told)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Any],
    was: Before,
    prompted: Callable[[Any, str], str] | None = None,
    **decoding: Any,
) -> Scores:
    """Both protocols of all four metrics.

    Args:
        was: :func:`before` of the same cases.
        prompted: from a case and a question about it to what the model reads (in-context editing); None: the question.
        decoding: ``new_tokens`` (None: one more than the longest answer, enough to tell an exact match from a longer
            text) and ``stops``.
    """
    asked = questions(cases)
    read = [q._replace(prompt=prompted(cases[q.case], q.prompt)) for q in asked] if prompted else asked
    said = most_probable(model, tokenizer, read)
    told = decode(model, tokenizer, [q.prompt for q in read], **_decoding(tokenizer, cases, decoding))
    near = iter(zip(was.forced, was.free, strict=True))
    found: dict[str, dict[str, list]] = {p: {m: [[] for _ in cases] for m in METRICS} for p in ("forced", "free")}
    for q, (tokens, right), text in zip(asked, said, told, strict=True):
        if q.metric == "locality":
            tokens_before, text_before = next(near)
            forced, free = (tokens == tokens_before).mean(), text == text_before
        else:
            forced, free = (tokens == right).mean(), normalised(text) == normalised(q.answer)
        found["forced"][q.metric][q.case].append(float(forced))
        found["free"][q.metric][q.case].append(float(free))
    return Scores(*({m: np.array([_mean(x) for x in rows]) for m, rows in found[p].items()} for p in found))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _decoding(tokenizer: PreTrainedTokenizerBase, cases: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    longest = max(len(tokenizer(f" {q.answer}", add_special_tokens=False)["input_ids"]) for q in questions(cases))
    return {"new_tokens": longest + 1, "stops": STOPS} | {k: v for k, v in given.items() if v is not None}


# Teacher forcing.


@torch.no_grad()
def most_probable(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At each token of an answer, given the right ones before: the most probable token, and the right one."""
    found: list[Any] = [None] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        batch = encode(tokenizer, [(asked[i].prompt, asked[i].answer) for i in part])
        said = model(batch.inputs.to(model.device), use_cache=False).logits.argmax(-1).cpu()
        for row, i in enumerate(part):
            scored = batch.labels[row] != IGNORED
            found[i] = said[row][scored].numpy(), batch.labels[row][scored].numpy()
    return found


# Free decoding.


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    stops: Sequence[str] = STOPS,
) -> list[str]:
    """Greedy continuations, cut before the first stop or the end of the text; prompts of one length go together.

    EasyEdit's free protocol generates up to 512 tokens; whether a text *is* an answer is known a token after it.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for i, row in enumerate(ids):
        by_length[len(row)].append(i)
    told = [""] * len(prompts)
    for same in by_length.values():
        for start in range(0, len(same), ROWS):
            part = same[start : start + ROWS]
            written = continued(model, torch.tensor([ids[i] for i in part], device=model.device), new_tokens)
            for i, row in zip(part, written.tolist()):
                told[i] = _cut(tokenizer, row, stops)
    return told


@torch.no_grad()
def continued(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Tensor:
    """Greedy: the ``new_tokens`` most probable next tokens of each row of ``ids`` [n, T]."""
    out = model(ids, use_cache=True, logits_to_keep=1)
    written = [out.logits[:, -1].argmax(-1)]
    while len(written) < new_tokens:
        out = model(written[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
        written.append(out.logits[:, -1].argmax(-1))
    return torch.stack(written, 1)


def _cut(tokenizer: PreTrainedTokenizerBase, row: list[int], stops: Sequence[str]) -> str:
    if tokenizer.eos_token_id in row:
        row = row[: row.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(row)
    return text[: min([at for stop in stops if (at := text.find(stop)) >= 0], default=len(text))].strip()


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (SQuAD's)."""
    plain = "".join(" " if c in string.punctuation else c for c in text.lower())
    return " ".join(_ARTICLES.sub(" ", plain).split())


# The model as a whole.


def entropy(tokens: Sequence[Any], n: int) -> float:
    """Entropy of the n-grams of a sequence, bits; 0 if there are fewer than n tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if not grams:
        return 0.0
    share = np.array(list(_counts(grams).values())) / len(grams)
    return float(-(share * np.log2(share)).sum())


def _counts(items: Sequence[Any]) -> dict[Any, int]:
    counted: dict[Any, int] = defaultdict(int)
    for item in items:
        counted[item] += 1
    return counted


def fluency(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, new_tokens: int = 100
) -> np.ndarray:
    """Mean of 2/3 H2 + 4/3 H3 over 2: n-gram entropy of greedy continuations, bits, [n]. Repetition makes it small.

    EasyEdit weighs the same entropies of words alike, but of texts sampled among the five likeliest tokens, with their
    prompts, and its tables print a hundred times that.
    """
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
        words = tokenizer.decode(continued(model, ids, new_tokens)[0].tolist(), skip_special_tokens=True).split()
        found.append((entropy(words, 2) * 2 / 3 + entropy(words, 3) * 4 / 3) / 2)
    return np.array(found)


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, ids: Tensor) -> np.ndarray:
    """Mean negative log-likelihood of the tokens of each text, nats, [n]; ``ids`` int64 [n, T], -100 pads."""
    found = []
    for part in ids.split(ROWS):
        labels = part[:, 1:].to(model.device)
        logits = model(part.clamp_min(0).to(model.device), use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        scored = labels != IGNORED
        found.append((each.view_as(labels).sum(1) / scored.sum(1)).cpu())
    return torch.cat(found).double().numpy()
