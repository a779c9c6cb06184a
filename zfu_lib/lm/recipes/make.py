"""From a recipe to a checkpoint folder that transformers, lm-eval and mergekit read, with a card that says how it came.

A folder holds ``config.json``, ``generation_config.json``, ``model.safetensors`` (bfloat16), the tokenizer,
``card.json`` and ``README.md``. Examples are a function of the training step, so an interrupted run goes on as if
nothing had happened, and a second one follows the curve of the first.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from zfu_lib.lm.recipes.base import Example, Recipe
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import IGNORED, BatchFn, TrainLog, train
from zfu_lib.report.record import write_atomically
from zfu_lib.report.statistics import proportion

POOL = 50
"""Batches drawn together and sorted by length, so that a batch holds texts of like length."""
CURVE = 200
"""Points of the loss curve on a card."""


def build(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The untrained model, its weights drawn with the recipe's seed, and its tokenizer."""
    tokenizer = word_tokenizer(recipe.words)
    options = dict(recipe.architecture)
    config = AutoConfig.for_model(
        options.pop("model_type"),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = AutoModelForCausalLM.from_config(config)
        if recipe.initialise is not None:
            recipe.initialise(model)
        return model, tokenizer


def non_embedding(model: PreTrainedModel) -> int:
    """Parameters without the embedding and the output matrix: those that the cost law counts."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(p) for end in ends for p in end.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> BatchFn:
    """The batch of each step: (inputs, targets), int64 [batch_size, T], padded to the longest text of the batch.

    Raises:
        ValueError: an example longer than the recipe's ``seq_len``.
    """
    rows, steps, longest = recipe.train.batch_size, recipe.train.steps, recipe.train.seq_len

    def encoded(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each example, and what each should have been told beforehand (``IGNORED`` where it is read)."""
        parts = iter(tokenizer([part for example in examples for part in example], add_special_tokens=False).input_ids)
        made = []
        for example in examples:
            ids, targets = [tokenizer.bos_token_id], [IGNORED]
            for turn, part in enumerate(itertools.islice(parts, len(example))):
                ids += part
                targets += part if turn % 2 else [IGNORED] * len(part)
            made.append(([*ids, tokenizer.eos_token_id], [*targets, tokenizer.eos_token_id]))
        return made

    @functools.lru_cache(maxsize=2)
    def pool(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seed = recipe.train.seed * 1_000_003 + number
        texts = encoded(recipe.examples(POOL * rows, seed, number * POOL / steps))
        texts.sort(key=lambda text: (len(text[1]) - text[1].count(IGNORED) > recipe.short, len(text[0])))
        if (most := max(len(ids) for ids, _ in texts)) > longest + 1:
            raise ValueError(f"{recipe.name}: an example has {most} tokens, more than seq_len {longest}")
        made = []
        for k in np.random.default_rng(seed).permutation(POOL):
            part = texts[k * rows : (k + 1) * rows]
            ids = torch.full((rows, max(len(ids) for ids, _ in part)), tokenizer.pad_token_id)
            targets = torch.full_like(ids, IGNORED)
            for i, (text, wanted) in enumerate(part):
                ids[i, : len(text)] = torch.tensor(text)
                targets[i, : len(text)] = torch.tensor(wanted)
            made.append((ids[:, :-1], targets[:, 1:]))
        return made

    return lambda step: pool(step // POOL)[step % POOL]


def make(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    items: int = 500,
    on_step: Callable[[int, TrainLog], None] | None = None,
) -> dict[str, Any]:
    """Train a recipe and write its checkpoint folder; returns the card.

    An interrupted call leaves ``<folder>.training.safetensors`` beside the folder and goes on from there when made
    again. The folder is replaced in one step, at the end.

    Args:
        items: held-out items per score.

    Raises:
        CheckpointError: the interrupted run beside the folder is of another recipe or damaged.
        ValueError: the training diverged.
    """
    model, tokenizer = build(recipe)
    unfinished = folder.with_name(folder.name + ".training.safetensors")
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = train(model, batches(recipe, tokenizer), recipe.train, device=device, checkpoint=unfinished, on_step=on_step)
    if log.diverged:
        raise ValueError(f"{recipe.name} diverged at step {len(log.loss)}; a lower learning rate may help")
    written = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(written, ignore_errors=True)
    try:
        model.to("cpu", torch.bfloat16).save_pretrained(written)
        tokenizer.save_pretrained(written)
        card = _card(recipe, model, tokenizer, log, written, device, items)
        write_atomically(written / "card.json", json.dumps(card, indent=1) + "\n")
        write_atomically(written / "README.md", _page(card))
        shutil.rmtree(folder, ignore_errors=True)
        written.rename(folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    unfinished.unlink(missing_ok=True)
    return card


def curve(log: TrainLog) -> list[list[float]]:
    """[step, loss] with the loss (nats per token) averaged since the point before."""
    every = max(1, len(log.loss) // CURVE)
    ends = range(every, len(log.loss) + 1, every)
    return [[end, round(float(np.mean(log.loss[end - every : end])), 4)] for end in ends]


def _card(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    log: TrainLog,
    folder: Path,
    device: str,
    items: int,
) -> dict[str, Any]:
    from zfu_lib.lm.hf import TransformersLM

    began = time.perf_counter()
    reader = TransformersLM(model.float(), tokenizer, name=f"tiny:{recipe.name}", count_embeddings=False)
    scores = []
    for score in recipe.evaluate(reader, items):
        interval = proportion(score.right, score.n)
        scores.append(dataclasses.asdict(score) | {"low": interval.low, "high": interval.high})
    weights = folder / "model.safetensors"
    return {
        "name": recipe.name,
        "purpose": recipe.purpose,
        **({"base": recipe.base} if recipe.base else {}),
        "architecture": dict(recipe.architecture),
        "parameters": model.num_parameters(),
        "non_embedding_parameters": non_embedding(model),
        "vocabulary": len(tokenizer),
        "training": dataclasses.asdict(recipe.train),
        "learnt_tokens": sum(log.tokens),
        "training_seconds": round(sum(log.seconds)),
        "device": device if device != "cpu" else f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "transformers")},
        "curve": curve(log),
        "scores": scores,
        "evaluation_seconds": round(time.perf_counter() - began),
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _page(card: dict[str, Any]) -> str:
    rows = []
    for score in card["scores"]:
        chance = "" if score["chance"] is None else f"{100 * score['chance']:.1f}"
        share, low, high = (100 * x for x in (score["right"] / score["n"], score["low"], score["high"]))
        rows.append(f"| {score['name']} | {share:.1f} | {low:.1f} to {high:.1f} | {score['n']} | {chance} |")
    begun = f"Grown out of {card['base']} and trained further" if "base" in card else "Trained from scratch"
    return f"""# {card["name"]}

{card["purpose"]}

{card["architecture"]["model_type"]} layout, {card["non_embedding_parameters"]:,} parameters without embeddings
({card["parameters"]:,} with). {begun} on generated texts: {card["training"]["steps"]:,} steps,
{card["learnt_tokens"]:,} learnt tokens, {card["training_seconds"] / 60:.0f} minutes on {card["device"]},
{card["date"]}.

| held-out items | right, % | 95% interval | n | best constant answer, % |
|---|---|---|---|---|
{chr(10).join(rows)}

Made by `zfu lm train {card["name"]}`. Checksum of the weights: `{card["sha256"]}`. It knows nothing but these worlds.
"""
