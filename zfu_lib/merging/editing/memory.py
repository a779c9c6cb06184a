"""Editors that leave the weights alone: a codebook beside one layer (GRACE), and the fact in the prompt (ICE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.merging.editing.facts import IGNORED, Fact, batch_of, block, losses


@dataclass(frozen=True)
class GraceSettings:
    """``layer`` whose ``down_proj`` is watched, first radius ``epsilon``, and how a value is looked for (Adam)."""

    layer: int
    epsilon: float = 1.0
    steps: int = 50
    learning_rate: float = 0.5


class Grace:
    """A codebook of keys, radii and values (arXiv 2211.11031, algorithm 1).

    A key [f] is what enters ``down_proj`` of one layer at a position that writes a token of a target. Where a later
    input falls into the ball around a key, the layer's output there is the key's value. A new input outside all balls
    gets an entry; inside the ball of one that says the same token the ball grows; of one that says another, both balls
    shrink to half the distance and an entry is added.

    The paper has one entry for each edit and replaces the output at every token from there on; here each position of a
    target of several tokens has its own entry, so that the codebook needs to know nothing but the layer's input.

    Attaches itself to ``model``; :meth:`remove` takes it off again.
    """

    def __init__(self, model: PreTrainedModel, how: GraceSettings) -> None:
        self.model, self.how = model, how
        self.layer = block(model, how.layer).mlp.down_proj
        width, out = self.layer.in_features, self.layer.out_features
        self.keys, self.values = torch.empty(0, width), torch.empty(0, out)
        self.radii, self.labels = torch.empty(0), torch.empty(0, dtype=torch.long)
        self._trial: tuple[tuple[Tensor, Tensor], Tensor] | None = None
        self._seen: Tensor | None = None
        self._handle = self.layer.register_forward_hook(self._replace)

    def remove(self) -> None:
        """Give the model back as it was."""
        self._handle.remove()

    def _replace(self, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        self._seen = args[0].detach()
        if len(self.keys):
            flat = self._seen.flatten(0, 1)
            distances = torch.cdist(flat, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
            distances = distances.view(*self._seen.shape[:2], -1)
            nearest, which = distances.min(-1)
            output = torch.where((nearest <= self.radii[which])[..., None], self.values[which].to(output), output)
        if self._trial is not None:
            output = output.index_put(self._trial[0], self._trial[1])
        return output

    def edit(self, tokenizer: PreTrainedTokenizerBase, fact: Fact) -> None:
        """Write one fact into the codebook."""
        batch = batch_of(self.model, tokenizer, [fact])
        at = (batch.labels != IGNORED).nonzero(as_tuple=True)
        with torch.no_grad():
            self.model(batch.inputs, use_cache=False)
            keys, labels = self._seen[at], batch.labels[at]
            now = self.layer.weight @ keys.T
        value = now.T.detach().clone().requires_grad_(True)
        wanted = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.model.requires_grad_(False)
        optimizer = torch.optim.Adam([value], self.how.learning_rate)
        try:
            for _ in range(self.how.steps):
                self._trial = (at, value)
                loss = losses(self.model, batch).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            self._trial = None
            for name, p in self.model.named_parameters():
                p.requires_grad_(wanted[name])
        for key, label, found in zip(keys, labels, value.detach()):
            self._add(key, label, found)

    def _add(self, key: Tensor, label: Tensor, value: Tensor) -> None:
        radius = torch.tensor(self.how.epsilon)
        if len(self.keys):
            distances = (self.keys - key).norm(dim=1)
            nearest = int(distances.argmin())
            distance = distances[nearest]
            if distance <= self.radii[nearest] + radius:
                if self.labels[nearest] == label:
                    self.radii[nearest] = torch.maximum(self.radii[nearest], distance)
                    if distance > 0:
                        return
                elif distance > 0:
                    self.radii[nearest] = torch.minimum(self.radii[nearest], distance / 2)
                    radius = torch.minimum(radius, distance / 2)
                if distance == 0:  # the same question again: the later answer holds
                    self.values[nearest], self.labels[nearest] = value, label
                    return
        self.keys = torch.cat([self.keys, key[None]])
        self.values = torch.cat([self.values, value[None]])
        self.radii = torch.cat([self.radii, radius[None]])
        self.labels = torch.cat([self.labels, label[None]])


def in_context(note: Callable[[str, str], str]) -> Callable[[Fact, str], str]:
    """ICE with oracle retrieval: the fact of the edit that is asked about stands before every question about it.

    Args:
        note: from a prompt and its target to the text that tells it.
    """
    return lambda fact, question: f"{note(fact.prompt, fact.target)} {question}"


def size(entries: Sequence[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(entry.numel() * entry.element_size() for entry in entries)
