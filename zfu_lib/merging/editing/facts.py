"""Facts to be edited, as tensors, and the parts of a model that are edited.

Shape letters: N facts, T tokens of the longest one, d width of the model, f width of its feed-forward layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
FFN = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Fact(Protocol):
    """An edit: after it, ``prompt`` is continued by ``target``; ``subject`` is who or what it is about."""

    @property
    def subject(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def target(self) -> str: ...


_Some = TypeVar("_Some", bound=Fact)


class EditError(ValueError):
    """Edits that cannot be made as asked; the message says which one and what to do."""


class Batch(NamedTuple):
    """``inputs`` and ``labels`` int64 [N, T]: the logits at a position should say its label; -100 is not scored.

    Prompts and targets stand one behind the other, padded on the right, which a causal model never looks at.
    ``prompts`` [N] is the number of tokens of each prompt.
    """

    inputs: Tensor
    labels: Tensor
    prompts: Tensor

    def rows(self, chosen: Sequence[int] | Tensor) -> Batch:
        """Some of the facts, without columns that only others need."""
        inputs, labels, prompts = (part[torch.as_tensor(chosen)] for part in self)
        last = (labels != IGNORED).any(0).nonzero().max() + 1
        return Batch(inputs[:, :last], labels[:, :last], prompts)


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], *, context: int | None = None
) -> Batch:
    """Prompts and their targets, which get a space before them.

    Special tokens are those that the tokenizer puts before a prompt. Both parts are tokenised on their own.

    Args:
        context: most tokens that fit, None for any number.

    Raises:
        EditError: nothing to encode, an empty target, or one that does not fit into the context.
    """
    rows = []
    for i, (prompt, target) in enumerate(pairs):
        read = tokenizer(prompt)["input_ids"]
        written = tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
        if not target.strip() or not read:
            raise EditError(f"edit {i}: prompt {prompt!r} and target {target!r} must both have a token")
        if context is not None and len(read) + len(written) > context:
            raise EditError(
                f"edit {i}: prompt and target {target[:40]!r} have {len(read)} + {len(written)} tokens, the model's "
                f"context holds {context}; shorten them or use a model with a longer context"
            )
        rows.append((read, written))
    if not rows:
        raise EditError("no edits were given")
    longest = max(len(a) + len(b) for a, b in rows) - 1
    inputs = torch.full((len(rows), longest), tokenizer.pad_token_id or 0)
    labels = torch.full_like(inputs, IGNORED)
    for i, (read, written) in enumerate(rows):
        inputs[i, : len(read) + len(written) - 1] = torch.tensor([*read, *written[:-1]])
        labels[i, len(read) - 1 : len(read) + len(written) - 1] = torch.tensor(written)
    return Batch(inputs, labels, torch.tensor([len(read) for read, _ in rows]))


def batch_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Batch:
    """The facts of one call of an editor on the model's device.

    Raises:
        EditError: as :func:`encode`, or two facts contradict each other.
    """
    refuse_contradictions(facts)
    context = getattr(model.config, "max_position_embeddings", None)
    batch = encode(tokenizer, [(fact.prompt, fact.target) for fact in facts], context=context)
    return Batch(*(part.to(model.device) for part in batch))


def refuse_contradictions(facts: Sequence[Fact]) -> None:
    """Raises EditError where two facts have one prompt and different targets."""
    seen: dict[str, int] = {}
    for i, fact in enumerate(facts):
        j = seen.setdefault(fact.prompt, i)
        if facts[j].target != fact.target:
            raise EditError(
                f"edits {j} and {i} contradict each other: {fact.prompt!r} is to be {facts[j].target!r} and "
                f"{fact.target!r}; drop one, or keep the later ones with last_wins()"
            )


def last_wins(facts: Sequence[_Some]) -> list[_Some]:
    """For every prompt the last fact only, in the order of the last ones."""
    latest = {fact.prompt: i for i, fact in enumerate(facts)}
    return [facts[i] for i in sorted(latest.values())]


def subject_end(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> int:
    """Position of the last token of the subject (its last mention) in the tokenised prompt.

    Raises:
        EditError: the subject is not in the prompt.
    """
    at = fact.prompt.rfind(fact.subject) if fact.subject else -1
    if at < 0:
        raise EditError(
            f"subject {fact.subject!r} is not in the prompt {fact.prompt!r}; methods that edit at it need it"
        )
    return tokenizer(fact.prompt).char_to_token(at + len(fact.subject) - 1)


# Parts of a model.


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The Transformer blocks.

    Raises:
        EditError: not the Llama or Qwen2 layout.
    """
    found = getattr(getattr(model, "model", None), "layers", None)
    if found is None or not all(hasattr(block.mlp, name) for block in found for name in FFN):
        raise EditError(f"{type(model).__name__} has not the layout model.layers[i].mlp.{{{','.join(FFN)}}}")
    return found


def block(model: PreTrainedModel, layer: int) -> nn.Module:
    """One block; negative numbers count from the end.

    Raises:
        EditError: there is no such block.
    """
    found = blocks(model)
    if not -len(found) <= layer < len(found):
        raise EditError(f"no layer {layer}; the model has layers 0 to {len(found) - 1}")
    return found[layer]


def parameters(
    model: PreTrainedModel, layers: Sequence[int] | None = None, matrices: Sequence[str] | None = FFN
) -> dict[str, nn.Parameter]:
    """Named parameters of some matrices of some blocks.

    Args:
        layers: numbers of blocks; None is all of them.
        matrices: such as those in :data:`FFN` and :data:`ATTENTION`; None, with all layers, is the whole model.

    Raises:
        EditError: a layer or a matrix that the model does not have; the message lists what there is.
    """
    if matrices is None and layers is None:
        return dict(model.named_parameters())
    count = len(blocks(model))
    chosen = {id(block(model, layer)) for layer in (range(count) if layers is None else layers)}
    wanted, names = set(matrices or (*FFN, *ATTENTION)), set()
    found = {}
    for i, part in enumerate(blocks(model)):
        for name, parameter in part.named_parameters():
            matrix = name.split(".")[-2]
            names.add(matrix)
            if id(part) in chosen and matrix in wanted:
                found[f"model.layers.{i}.{name}"] = parameter
    if unknown := sorted(wanted - names):
        raise EditError(f"no weights named {', '.join(unknown)}; a block has {', '.join(sorted(names))}")
    return found


def only(model: PreTrainedModel, trained: dict[str, nn.Parameter]) -> list[nn.Parameter]:
    """Freeze everything else; returns what is trained."""
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return list(trained.values())


# Losses.


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the target tokens of each fact, teacher forced; nats, [N]."""
    logits = model(batch.inputs, use_cache=False).logits
    return _means(logits, batch.labels)


def last_token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """FT-L: every target token is asked of the *last token of the prompt*, without the ones before it; nats, [N]."""
    logits = model(batch.inputs, use_cache=False).logits
    rows = torch.arange(len(logits), device=logits.device)
    return _means(logits[rows, batch.prompts - 1][:, None].expand_as(logits), batch.labels)


def _means(logits: Tensor, labels: Tensor) -> Tensor:
    each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    scored = labels != IGNORED
    return each.view_as(labels).sum(1) / scored.sum(1)


def chunks(n: int, size: int) -> Iterator[range]:
    """0..n-1 in pieces."""
    for start in range(0, n, size):
        yield range(start, min(n, start + size))
