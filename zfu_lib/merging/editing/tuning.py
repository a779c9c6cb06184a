"""Editors that fine-tune: plain and regularised SFT, FT-M and FT-L, LoRA. All but LoRA are settings of R-SFT's loops.

Settings named after EasyEdit are those of its configuration files, with layers and rates left to the caller.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.merging.editing.facts import EditError, Fact, batch_of, last_token_losses, losses, parameters
from zfu_lib.merging.mm4ke import RSFT, Tuned, r_sft


def sft(epochs: int, learning_rate: float, batch_size: int = 1, **part: tuple | None) -> RSFT:
    """Plain SFT: one update per batch, no early stop. ``part``: ``layers`` and ``matrices``, feed-forward if not named;
    both None is the whole model, one layer is FT on that layer."""
    return RSFT(epochs, 1, 0.0, learning_rate, batch_size=batch_size, **part)


def ft(layer: int, learning_rate: float = 5e-4, steps: int = 25, threshold: float = 1e-2) -> RSFT:
    """FT-M as EasyEdit has it: each fact until it fits, one after another, on one ``down_proj``, Adam made anew."""
    return RSFT(1, steps, threshold, learning_rate, (layer,), ("down_proj",), reset="sample")


def ft_l(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    how: RSFT,
    norm: float | None = None,
) -> Tuned:
    """FT-L: as FT-M, with the loss of all target tokens taken at the last token of the prompt.

    Args:
        norm: largest change of any weight, kept after each update (FT with a norm constraint); None is no bound.
    """
    trained = parameters(model, how.layers, how.matrices)
    first = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def constrain() -> None:
        for name, p in trained.items():
            p.clamp_(first[name] - norm, first[name] + norm)

    batch = batch_of(model, tokenizer, facts)
    return r_sft(model, batch, how, loss=last_token_losses, constrain=None if norm is None else constrain)


def l2_to_start(model: PreTrainedModel, how: RSFT, weight: float) -> Callable[[], Tensor]:
    """The penalty ``weight * ||theta - theta_F||^2`` over what is trained, theta_F being the model as it is now."""
    trained = parameters(model, how.layers, how.matrices)
    first = {name: p.detach().clone() for name, p in trained.items()}
    return lambda: weight * sum((p - first[name]).square().sum() for name, p in trained.items())


def kl_to(
    start: PreTrainedModel, model: PreTrainedModel, ids: Tensor, weight: float, rows: int = 8, seed: int = 0
) -> Callable[[], Tensor]:
    """The penalty ``weight * KL(p_start || p_theta)``, nats per token, on texts on which the model should stay what it
    was.

    Args:
        start: another model than the one that is trained, which does not change.
        ids: token ids of reference texts, int64 [n, T]; ``rows`` of them are drawn for each update.
    """
    generator = torch.Generator().manual_seed(seed)

    def penalty() -> Tensor:
        chosen = ids[torch.randint(len(ids), (rows,), generator=generator)]
        with torch.no_grad():
            before = start(chosen, use_cache=False).logits.log_softmax(-1)
        now = model(chosen, use_cache=False).logits.log_softmax(-1)
        return weight * F.kl_div(now.flatten(0, 1), before.flatten(0, 1), reduction="batchmean", log_target=True)

    return penalty


def lora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    rank: int = 8,
    alpha: float = 32,
    matrices: Sequence[str] = ("q_proj", "v_proj"),
    epochs: int = 30,
    learning_rate: float = 5e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> int:
    """LoRA as peft makes it (EasyEdit's defaults), folded into the weights at the end; returns the number of updates.

    Raises:
        EditError: no matrix of these names; the loss is not finite.
    """
    from peft import LoraConfig, get_peft_model

    parameters(model, None, matrices)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    batch = batch_of(model, tokenizer, facts)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is to go
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(matrices)))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    generator, updates = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(batch.inputs), generator=generator).split(batch_size):
            loss = losses(model, batch.rows(chosen)).mean()
            if not torch.isfinite(loss):
                raise EditError(f"the loss became {loss.item()}; a lower learning rate may help")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
    adapted.merge_and_unload()
    for name, p in model.named_parameters():
        p.requires_grad_(wanted[name])
    return updates
