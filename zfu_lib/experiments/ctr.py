"""Training and evaluation of click models: the whole log is resident, batches are slices, all tables are one tensor."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfu_lib.data.ctr import Log
from zfu_lib.prediction import ctr_metrics


@dataclass(frozen=True)
class FitConfig:
    """``epochs`` at most; training stops after ``patience`` epochs without a better mean AUC over the scenarios of the
    validation rows, and the best epoch is kept. ``decay`` is Adam's L2 penalty."""

    rate: float = 3e-3
    batch: int = 512
    epochs: int = 10
    patience: int = 3
    decay: float = 0.0
    seed: int = 0


class Fit(NamedTuple):
    """What training did: validation score of each epoch, the best one's number, seconds of CPU."""

    validation: list[float]
    best: int
    seconds: float


class Resident(NamedTuple):
    """A log as tensors on a device: ids int64 [N, F], scenarios int64 [N], labels float32 [N]."""

    ids_NF: Tensor
    s_N: Tensor
    y_N: Tensor


def resident(log: Log, device: str = "cpu") -> Resident:
    """The columns a model reads, as tensors."""
    columns = (log.ids, log.scenario, log.label.astype(np.float32))
    return Resident(*(torch.from_numpy(np.ascontiguousarray(column)).to(device) for column in columns))


def optimiser(model: nn.Module, config: FitConfig) -> torch.optim.Adam:
    """Adam in one fused pass over the parameters."""
    return torch.optim.Adam(model.parameters(), lr=config.rate, weight_decay=config.decay, fused=True)


def epoch(model: nn.Module, data: Resident, optimizer: torch.optim.Optimizer, batch: int, order_N: Tensor) -> float:
    """One pass over the rows in the order given; returns the mean loss in nats.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    model.train()
    shuffled = [column[order_N] for column in data]
    total = torch.zeros((), device=order_N.device)
    for ids_BF, s_B, y_B in zip(*(column.split(batch) for column in shuffled)):
        loss = F.binary_cross_entropy_with_logits(model(ids_BF, s_B), y_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(y_B)
    mean = float(total) / len(order_N)
    if not np.isfinite(mean):
        raise FloatingPointError("training diverged: the loss is not finite; lower the learning rate")
    return mean


@torch.inference_mode()
def predict(model: nn.Module, data: Resident, batch: int = 16_384) -> np.ndarray:
    """Click probabilities, float64 [N]."""
    model.eval()
    parts = [model(ids, s) for ids, s in zip(data.ids_NF.split(batch), data.s_N.split(batch))]
    return torch.cat(parts).double().sigmoid().cpu().numpy()


def fit(model: nn.Module, train: Log, validation: Log, config: FitConfig) -> Fit:
    """Train ``model`` in place and leave it at its best epoch.

    Raises:
        FloatingPointError: the loss is not finite.
        UndefinedMetric: no scenario of the validation rows has both labels.
    """
    device = next(model.parameters()).device
    data, held = resident(train, str(device)), resident(validation, str(device))
    optimizer, best, found = optimiser(model, config), (-np.inf, 0, {}), []
    generator = torch.Generator().manual_seed(config.seed)
    began = time.process_time()
    for number in range(config.epochs):
        epoch(model, data, optimizer, config.batch, torch.randperm(len(train), generator=generator).to(device))
        chance = predict(model, held)
        score = ctr_metrics.evaluate(
            validation.label, chance, validation.ids[:, 0], validation.scenario, len(validation.scenarios)
        ).mean_auc
        found.append(score)
        if score > best[0]:
            best = (score, number, copy.deepcopy(model.state_dict()))
        elif number - best[1] >= config.patience:
            break
    model.load_state_dict(best[2])
    return Fit(found, best[1], time.process_time() - began)
