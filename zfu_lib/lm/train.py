"""A causal language model trainer for any module whose output has ``.logits``.

AdamW with decay on matrices only, linear warm-up then cosine, gradient clipping, bf16 autocast. Batches are a function
of the step, so a run that was interrupted and resumed equals one that was not (bit for bit on a CPU). The same code
runs on several ranks: the global batch is split over them and one all-reduce per step sums the gradients.

    python -m torch.distributed.run --nproc-per-node 2 -m zfu_lib.lm.train CONFIG.json

Shape letters: B sequences of the global batch, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zfu_lib.report.record import replacing

IGNORED = -100
Batch = Tensor | tuple[Tensor, Tensor]
BatchFn = Callable[[int], Batch]


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another run; the message names the file."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``batch_size`` counts sequences over all ranks, ``seq_len`` tokens of a sequence (at most).

    ``warmup`` is in steps; ``min_lr_ratio`` is the last learning rate over ``lr``; ``clip`` bounds the global gradient
    norm (None: not clipped). ``seed`` drives dropout, step by step. ``dtype``: ``float32``, ``bfloat16`` (autocast,
    weights stay as they are) or ``auto`` (bfloat16 on a GPU that has it). ``checkpoint_every`` is in steps (0: only at
    the end). ``micro_batch`` is how many sequences go through the model at once (0: all that the rank has).

    Raises:
        ValueError: a value out of range.
    """

    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup: int
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    seed: int = 0
    dtype: str = "float32"
    checkpoint_every: int = 0
    micro_batch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        ranges = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "seq_len": self.seq_len >= 1,
            "lr": 0 < self.lr < math.inf,
            "warmup": 0 <= self.warmup <= self.steps,
            "min_lr_ratio": 0 <= self.min_lr_ratio <= 1,
            "weight_decay": self.weight_decay >= 0,
            "clip": self.clip is None or self.clip > 0,
            "dtype": self.dtype in ("float32", "bfloat16", "auto"),
            "checkpoint_every": self.checkpoint_every >= 0,
            "micro_batch": self.micro_batch >= 0,
        }
        if wrong := [f"{name} = {getattr(self, name)!r}" for name, fine in ranges.items() if not fine]:
            raise ValueError(f"training configuration out of range: {', '.join(wrong)}")


@dataclass
class TrainLog:
    """What happened, one entry per finished step.

    ``loss`` nats per predicted token (before the step's update), ``grad_norm`` global norm before clipping, ``lr``,
    ``tokens`` predicted tokens of the global batch, ``seconds`` wall time without checkpoints. ``diverged``: the step
    after the last entry had a loss or gradient that is not finite; it was not applied, so every entry is finite.
    """

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged: bool = False


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step 0..steps-1: rises linearly to ``lr`` at step warmup-1, ends at ``lr * min_lr_ratio``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def random_slices(tokens: np.ndarray, seq_len: int, batch_size: int, seed: int) -> BatchFn:
    """Batches of random windows of a token stream.

    Args:
        tokens: [N] integers, N >= seq_len.

    Returns:
        ``batch_fn(step) -> int64 [batch_size, seq_len]``; the same step always gives the same batch.

    Raises:
        ValueError: the stream is shorter than one window or not one-dimensional.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) < seq_len:
        raise ValueError(f"cannot cut windows of {seq_len} tokens from a stream of shape {tokens.shape}")
    offsets = np.arange(seq_len)

    def batch_fn(step: int) -> Tensor:
        starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - seq_len + 1, batch_size)
        return torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))

    return batch_fn


def train(
    model: nn.Module,
    batch_fn: BatchFn,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    until: int | None = None,
    on_step: Callable[[int, TrainLog], None] | None = None,
    groups: list[dict[str, object]] | None = None,
) -> TrainLog:
    """Train ``model`` in place.

    Args:
        model: ``model(input_ids [B, T]) -> object with .logits [B, T, V]``; moved to ``device``.
        batch_fn: global batch of a step, the same on every rank: tokens int64 [B, T] (position t predicts token t+1)
            or ``(inputs, targets)``, both int64 [B, T], where targets[b, t] is what the logits at t should say and
            -100 means not scored.
        checkpoint: a safetensors file. If it exists the run goes on from there; it is replaced in one step.
        until: stop after this many steps of the same run, its schedule unchanged (None: all of them).
        on_step: called after each step with its index and the log so far. Must leave the model in training mode.
        groups: AdamW's parameter groups, where a model needs its own. Beside AdamW's keys, ``lr_scale`` multiplies the
            scheduled rate and ``freeze_after`` is the share of the steps after which the group stays as it is.

    Returns:
        The log, including the steps before a resume.

    Raises:
        ValueError: a batch of the wrong shape or with nothing to predict, or one that the ranks cannot share evenly.
        CheckpointError: ``checkpoint`` is damaged or was written by another configuration or model.
    """
    device = torch.device(device)
    model.to(device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.batch_size % world:
        raise ValueError(f"batch_size {config.batch_size} cannot be split over {world} ranks")
    rows = slice(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = groups or [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        betas=config.betas,
        fused=device.type in ("cpu", "cuda"),
    )
    log = TrainLog()
    if checkpoint is not None and checkpoint.exists():
        log = _load(checkpoint, model, optimizer, config)
    elif world > 1:
        for p in model.state_dict().values():
            dist.broadcast(p, src=0)

    def fetch(step: int) -> tuple[Tensor, Tensor, int]:
        inputs, targets = _inputs_and_targets(batch_fn(step), config)
        count = int((targets != IGNORED).sum())
        if not count:
            raise ValueError(f"batch of step {step} has nothing to predict")
        return _move(inputs[rows], device), _move(targets[rows], device), count

    half = config.dtype == "bfloat16" or (
        config.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    start, end = len(log.loss), config.steps if until is None else min(until, config.steps)
    written = start
    with mode(model, training=True), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = fetch(start) if start < end and not log.diverged else None
        for step in range(start, end if batch else start):
            began = time.perf_counter()
            # Seeded by step: dropout after a resume is what it would have been without one.
            torch.manual_seed((config.seed * 1_000_003 + step) * 1024 + rank)
            inputs, targets, count = batch
            micro = config.micro_batch or len(inputs)
            loss = torch.zeros((), device=device)
            for x_BT, y_BT in zip(inputs.split(micro), targets.split(micro), strict=True):
                with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
                    logits_BTV = model(x_BT).logits
                part = F.cross_entropy(
                    logits_BTV.float().flatten(0, 1), y_BT.flatten(), ignore_index=IGNORED, reduction="sum"
                )
                part = part / count
                part.backward()
                loss += part.detach()
            gradients = [p.grad for p in parameters if p.grad is not None]
            if world > 1:
                loss = _sum_over_ranks(gradients, loss)
            norm = nn.utils.get_total_norm(gradients)
            # Prepared here because the next line waits for the device.
            batch = fetch(step + 1) if step + 1 < end else None
            loss, norm_value = torch.stack([loss, norm.to(loss.dtype)]).tolist()
            if not (math.isfinite(loss) and math.isfinite(norm_value)):
                log.diverged = True
                optimizer.zero_grad()
                break
            if config.clip is not None and norm_value > config.clip:
                nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                frozen = step >= group.get("freeze_after", 1.0) * config.steps
                group["lr"] = 0.0 if frozen else rate * group.get("lr_scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
            log.loss.append(loss)
            log.grad_norm.append(norm_value)
            log.lr.append(rate)
            log.tokens.append(count)
            log.seconds.append(time.perf_counter() - began)
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0 and checkpoint and rank == 0:
                _save(checkpoint, model, optimizer, config, log)
                written = step + 1
            if on_step is not None:
                on_step(step, log)
    if checkpoint is not None and rank == 0 and (written < len(log.loss) or log.diverged):
        _save(checkpoint, model, optimizer, config, log)
    return log


def _inputs_and_targets(batch: Batch, config: TrainConfig) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Tensor):
        inputs, targets = batch, F.pad(batch[:, 1:], (0, 1), value=IGNORED)
    else:
        inputs, targets = batch
    B, T = config.batch_size, config.seq_len
    if inputs.ndim != 2 or inputs.shape != targets.shape or len(inputs) != B or inputs.shape[1] > T:
        raise ValueError(
            f"a batch must be [{B}, up to {T}] tokens, got inputs {list(inputs.shape)}, targets {list(targets.shape)}"
        )
    return inputs, targets


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _sum_over_ranks(gradients: list[Tensor], loss: Tensor) -> Tensor:
    """Sum gradients (in place) and loss over the ranks in one collective."""
    flat = torch.cat([g.flatten() for g in gradients] + [loss.to(gradients[0].dtype).view(1)])
    dist.all_reduce(flat)
    sums = flat.split([g.numel() for g in gradients] + [1])
    torch._foreach_copy_(gradients, [s.view_as(g) for s, g in zip(sums, gradients, strict=False)])
    return sums[-1][0].to(loss.dtype)


@contextlib.contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode without a key-value cache; both as before afterwards."""
    was_training, settings = model.training, getattr(model, "config", None)
    used_cache = getattr(settings, "use_cache", None)
    model.train(training)
    if used_cache is not None:
        settings.use_cache = False
    try:
        yield
    finally:
        model.train(was_training)
        if used_cache is not None:
            settings.use_cache = used_cache


SERIES = ("loss", "grad_norm", "lr", "tokens", "seconds")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each tensor once: tied weights share storage, which safetensors refuses."""
    seen: set[int] = set()
    state = getattr(model, "_orig_mod", model).state_dict(keep_vars=True)
    return {name: t.detach() for name, t in state.items() if not (id(t) in seen or seen.add(id(t)))}


def _identity(config: TrainConfig) -> dict[str, object]:
    """What must agree for a resumed run to be the same run."""
    same = dataclasses.asdict(config)
    same.pop("checkpoint_every")
    return json.loads(json.dumps(same))


def _save(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, log: TrainLog) -> None:
    tensors = {f"model.{name}": t.contiguous() for name, t in _weights(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t.contiguous() for name, t in state.items()}
    tensors |= {f"log.{name}": torch.tensor(getattr(log, name), dtype=torch.float64) for name in SERIES}
    metadata = {"config": json.dumps(_identity(config)), "diverged": json.dumps(log.diverged)}
    with replacing(file) as new:
        save_file(tensors, new, metadata=metadata)


def _load(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig) -> TrainLog:
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        saved, diverged = json.loads(metadata["config"]), json.loads(metadata["diverged"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a checkpoint of this trainer ({error}); delete it to start anew"
        ) from None
    expected = _identity(config)
    if saved != expected:
        differs = [f"{k}: {saved.get(k)!r} -> {expected.get(k)!r}" for k in expected if saved.get(k) != expected[k]]
        raise CheckpointError(f"{file} is of another run ({'; '.join(differs)}); delete it or give another path")
    weights = _weights(model)
    stored = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in stored.items()}:
        raise CheckpointError(f"{file} holds the weights of another model; delete it or give another path")
    for name, tensor in weights.items():
        tensor.copy_(stored[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    series = {name: tensors[f"log.{name}"].tolist() for name in SERIES}
    series["tokens"] = [int(n) for n in series["tokens"]]
    return TrainLog(**series, diverged=diverged)


def causal_lm(train: TrainConfig, *, model: dict, text: str = "standard") -> tuple[nn.Module, BatchFn]:
    """The default job: a transformers model with random weights on bytes.

    Args:
        model: a transformers configuration with its ``model_type``.
        text: ``standard`` or ``books`` (see :mod:`zfu_lib.data.text`), or a file whose bytes are the tokens.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from zfu_lib.data import text as corpora

    if text in ("standard", "books"):
        stream = getattr(corpora, f"{text}_corpus")().train
    else:
        stream = np.frombuffer(Path(text).read_bytes(), dtype=np.uint8)
    torch.manual_seed(train.seed)
    return (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**model)),
        random_slices(stream, train.seq_len, train.batch_size, train.seed),
    )


def main(arguments: list[str] | None = None) -> int:
    """Train from a JSON file: ``train`` (fields of :class:`TrainConfig`), ``output`` (a folder), ``arguments`` of the
    job, and ``job``, ``module:function`` inside zfu_lib (default: :func:`causal_lm`) called as
    ``job(config, **arguments) -> (model, batch_fn)``.

    Writes ``checkpoint.safetensors``, ``log.json`` and, for a transformers model, ``model/``; rank 0 only. Exit code 0,
    2 for a configuration that cannot be used, 3 for a run that diverged.
    """
    from zfu_lib.report.record import write_atomically

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        (name,) = arguments
        wanted = json.loads(Path(name).read_text(encoding="utf-8"))
        config, output = TrainConfig(**wanted["train"]), Path(wanted["output"])
        module, _, function = wanted.get("job", "zfu_lib.lm.train:causal_lm").partition(":")
        if module.split(".")[0] != "zfu_lib":
            raise ValueError(f"job {module!r} is not a module of zfu_lib")
        job = getattr(importlib.import_module(module), function)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        print(f"usage: python -m zfu_lib.lm.train CONFIG.json ({type(error).__name__}: {error})", file=sys.stderr)
        return 2
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if gpu:
        torch.cuda.set_device(device)
    if distributed:
        dist.init_process_group("nccl" if gpu else "gloo")
    try:
        model, batch_fn = job(config, **wanted.get("arguments", {}))
        log = train(model, batch_fn, config, device=device, checkpoint=output / "checkpoint.safetensors")
        if not distributed or dist.get_rank() == 0:
            write_atomically(output / "log.json", json.dumps(dataclasses.asdict(log)) + "\n")
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(output / "model")
    finally:
        if distributed:
            dist.destroy_process_group()
    return 3 if log.diverged else 0


if __name__ == "__main__":
    sys.exit(main())
