"""Editors that write a fact into ``down_proj`` as a key and a value: ROME, MEMIT, AlphaEdit.

A feed-forward layer is read as a memory: the *key* k [f] is what enters ``down_proj`` at the last token of the subject,
the *value* is what leaves it. An edit looks for a value that makes the model say the target, and changes the matrix W
so that the key leads to it while other keys, known by their second moment C = E[k k^T] on ordinary texts, are disturbed
as little as possible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.merging.editing.facts import EditError, Fact, batch_of, block, losses, subject_end

Update = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer, keys [f, N] and residuals [d, N] to the change of its matrix [d, f]."""


@dataclass(frozen=True)
class Locate:
    """What the three editors share.

    ``layers`` are edited (ROME: the first only); the value is looked for at the last of them. ``steps`` of Adam with
    ``learning_rate`` look for it, its change held within ``clamp`` times the norm of what it changes. ``kl`` weighs
    KL(after || before) at the prompt ``essence``, which tells of the subject without asking for a fact; ``decay`` the
    size of the change, by the square of the norm of what it changes (the papers name a decay, the form is that of their
    code). Keys, and the loss of a value, are averaged over the prompt alone and after each of ``prefixes``.

    Values of at most ``together`` facts are looked for at once, which saves memory and changes nothing.

    ``covariance_weight`` (MEMIT) is lambda in C lambda; ``null_threshold`` (AlphaEdit) the largest eigenvalue of C that
    counts as zero, ``null_l2`` the ridge. Defaults are EasyEdit's for 7B models where they do not depend on size.
    """

    layers: tuple[int, ...]
    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 4.0
    decay: float = 1e-3
    kl: float = 0.0625
    essence: str = "{} is a"
    prefixes: tuple[str, ...] = ()
    together: int = 256
    covariance_weight: float = 15000.0
    null_threshold: float = 2e-2
    null_l2: float = 1.0


# Keys and what is known about ordinary ones.


@torch.no_grad()
def covariances(model: PreTrainedModel, ids: Tensor, layers: Sequence[int], *, rows: int = 64) -> dict[int, Tensor]:
    """C = E[k k^T] over all tokens of reference texts, fp64 [f, f], for each layer.

    Args:
        ids: token ids int64 [n, T], without padding.
    """
    found = dict.fromkeys(layers, 0.0)
    for part in ids.split(rows):
        with contextlib.ExitStack() as stack:
            seen = {layer: stack.enter_context(entering(block(model, layer).mlp.down_proj)) for layer in layers}
            model(part, use_cache=False)
        for layer in layers:
            k = seen[layer][0].flatten(0, 1).double()
            found[layer] = found[layer] + k.T @ k
    return {layer: total / ids.numel() for layer, total in found.items()}


@contextlib.contextmanager
def entering(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the inputs of a module."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def keys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    prefixes: Sequence[str] = (),
) -> Tensor:
    """Key of each fact, averaged over the prompt alone and after each of ``prefixes``: [N, f]."""
    total = 0.0
    for prefix in ("", *prefixes):
        begun = _after(prefix, facts)
        ends = [subject_end(tokenizer, fact) for fact in begun]
        ids = _padded(tokenizer, [fact.prompt for fact in begun]).to(model.device)
        with entering(block(model, layer).mlp.down_proj) as seen:
            model(ids, use_cache=False)
        total = total + seen[0][torch.arange(len(facts)), ends]
    return total / (1 + len(prefixes))


@dataclass(frozen=True)
class _Begun:
    subject: str
    prompt: str
    target: str


def _after(prefix: str, facts: Sequence[Fact]) -> list[_Begun]:
    return [_Begun(f.subject, f"{prefix} {f.prompt}" if prefix else f.prompt, f.target) for f in facts]


def _padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)


# Values.


def values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    module: nn.Module,
    how: Locate,
) -> tuple[Tensor, Tensor]:
    """What should leave ``module`` at the last token of each subject, and what leaves it now: two of [N, d].

    ``module`` is an MLP (ROME, equation 4) or a block (MEMIT, equation 16). All facts are looked for at once; none sees
    the others. EasyEdit also stops as soon as the loss of a fact is below 0.05; here all steps are made.
    """
    if len(facts) > how.together:
        parts = [facts[i : i + how.together] for i in range(0, len(facts), how.together)]
        found = [values(model, tokenizer, part, module, how) for part in parts]
        return torch.cat([v for v, _ in found]), torch.cat([now for _, now in found])
    N, begun = len(facts), [fact for prefix in ("", *how.prefixes) for fact in _after(prefix, facts)]
    batch = batch_of(model, tokenizer, begun)
    ends = torch.tensor([subject_end(tokenizer, fact) for fact in begun])
    about = [_Begun(f.subject, how.essence.format(f.subject), "") for f in facts]
    essence = _padded(tokenizer, [fact.prompt for fact in about]).to(model.device)
    essence_ends = torch.tensor([subject_end(tokenizer, fact) for fact in about])
    essence_last = torch.tensor([len(tokenizer(fact.prompt)["input_ids"]) - 1 for fact in about])
    before = []
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    delta = torch.zeros(N, model.config.hidden_size, device=model.device, requires_grad=True)
    at = ends

    def shifted(_module: nn.Module, _args: object, output: Tensor | tuple) -> Tensor | tuple:
        hidden = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(len(at))
        if not before:
            before.append(hidden[rows, at][:N].detach().clone())
        hidden = hidden.index_put((rows, at), hidden[rows, at] + delta.repeat(len(at) // N, 1))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def essence_now() -> Tensor:
        return model(essence, use_cache=False).logits[torch.arange(N), essence_last].log_softmax(-1)

    with torch.no_grad():
        told_before = essence_now()
    handle, optimizer = module.register_forward_hook(shifted), torch.optim.Adam([delta], how.learning_rate)
    try:
        for _ in range(how.steps):
            at = ends
            loss = losses(model, batch).view(-1, N).mean(0).sum()
            size = delta.norm(dim=1) / before[0].norm(dim=1).square()
            at = essence_ends
            kl = F.kl_div(told_before, essence_now(), reduction="sum", log_target=True)
            optimizer.zero_grad()
            (loss + how.kl * kl + how.decay * size.sum()).backward()
            optimizer.step()
            with torch.no_grad():
                longest = how.clamp * before[0].norm(dim=1, keepdim=True)
                delta *= (longest / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    finally:
        handle.remove()
        for name, p in model.named_parameters():
            p.requires_grad_(wanted[name])
    return before[0] + delta.detach(), before[0]


# ROME: one fact, one layer, the key's value exactly (arXiv 2202.05262, equation 2).


def rome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    how: Locate,
    covariance: Mapping[int, Tensor],
) -> None:
    """``W <- W + (v* - W k) (C^-1 k)^T / (k^T C^-1 k)``: afterwards W k = v*, exactly."""
    layer = how.layers[0]
    mlp = block(model, layer).mlp
    k = keys(model, tokenizer, [fact], layer, how.prefixes)[0].double()
    v, _ = values(model, tokenizer, [fact], mlp, how)
    direction = torch.linalg.solve(_ridged(_moment(covariance, layer)), k)
    W = mlp.down_proj.weight
    residual = v[0].double() - W.double() @ k
    with torch.no_grad():
        W += (residual[:, None] * direction / (k @ direction)).to(W.dtype)


def _moment(covariance: Mapping[int, Tensor], layer: int) -> Tensor:
    if layer not in covariance:
        raise EditError(f"no second moment of the keys of layer {layer}; covariances(model, ids, layers) makes it")
    return covariance[layer]


def _ridged(C: Tensor, share: float = 1e-6) -> Tensor:
    """C made safe to invert: a millionth of its mean eigenvalue is added."""
    return C + share * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)


# MEMIT: many facts, spread over several layers (arXiv 2210.07229, equations 14 and 20).


def memit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    how: Locate,
    covariance: Mapping[int, Tensor],
) -> None:
    """``W <- W + R K^T (lambda C + K K^T)^-1`` layer by layer; R is an equal share of what is still missing."""

    def update(layer: int, K: Tensor, R: Tensor) -> Tensor:
        C = how.covariance_weight * _moment(covariance, layer)
        return R @ torch.linalg.solve(_ridged(C + K @ K.T), K).T

    _spread(model, tokenizer, facts, how, update)


def _spread(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], how: Locate, update: Update
) -> None:
    """Find what should leave the last layer, then let each layer in turn take an equal share of the missing part."""
    layers = sorted(how.layers)
    last = block(model, layers[-1])
    wanted, _ = values(model, tokenizer, facts, last, how)
    for i, layer in enumerate(layers):
        K = keys(model, tokenizer, facts, layer, how.prefixes).double().T
        missing = (wanted - _leaving(model, tokenizer, facts, last)).double().T
        W = block(model, layer).mlp.down_proj.weight
        with torch.no_grad():
            W += update(layer, K, missing / (len(layers) - i)).to(W.dtype)


@torch.no_grad()
def _leaving(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], module: nn.Module
) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        model(_padded(tokenizer, [fact.prompt for fact in facts]).to(model.device), use_cache=False)
    finally:
        handle.remove()
    return seen[0][torch.arange(len(facts)), [subject_end(tokenizer, fact) for fact in facts]]


# AlphaEdit: as MEMIT, within the null space of ordinary keys (arXiv 2410.02355, equation 14).


@dataclass
class AlphaEdit:
    """A sequence of edits that ordinary keys, and earlier edits, do not notice.

    Raises:
        EditError: C has no eigenvalue at or below the threshold in some layer: there is no null space to write into.
    """

    how: Locate
    covariance: Mapping[int, Tensor]
    projections: dict[int, Tensor] = field(init=False)
    edited: dict[int, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.projections = {
            layer: null_space(_moment(self.covariance, layer), self.how.null_threshold) for layer in self.how.layers
        }
        self.edited = {layer: torch.zeros_like(P) for layer, P in self.projections.items()}
        if empty := [layer for layer, P in self.projections.items() if not P.any()]:
            raise EditError(f"no null space below {self.how.null_threshold} in layers {empty}; raise null_threshold")

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> None:
        """``W <- W + R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1``; K_p are the keys of all earlier calls."""
        found: dict[int, Tensor] = {}

        def update(layer: int, K: Tensor, R: Tensor) -> Tensor:
            P, found[layer] = self.projections[layer], K @ K.T
            eye = torch.eye(len(P), dtype=P.dtype, device=P.device)
            inner = (self.edited[layer] + found[layer]) @ P + self.how.null_l2 * eye
            return R @ K.T @ P @ torch.linalg.inv(inner)

        _spread(model, tokenizer, facts, self.how, update)
        for layer, outer in found.items():
            self.edited[layer] = self.edited[layer] + outer


def null_space(C: Tensor, threshold: float) -> Tensor:
    """Projection onto the eigenvectors of C whose eigenvalues are at most ``threshold``: [f, f]."""
    size, vectors = torch.linalg.eigh(C)
    kept = vectors[:, size <= threshold]
    return kept @ kept.T
