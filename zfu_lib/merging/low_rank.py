"""Low-rank fine-tuning as a parametrisation of the weights: nothing else about a model changes."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zfu_lib.merging import methods


class LowRank(nn.Module):
    """``W + alpha/r B A`` with A [r, in] random and B [out, r] zero at first (LoRA, arXiv 2106.09685, section 4.1)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(rank, columns, device=weight.device, dtype=weight.dtype) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.b @ self.a


def add_low_rank(model: nn.Module, rank: int, alpha: float, matrices: Container[str] | None = None) -> list[nn.Module]:
    """Freeze a model, give linear layers inside its blocks a trainable low-rank part; returns those layers.

    Args:
        matrices: names of the layers, such as ``q_proj``; None is all.
    """
    model.requires_grad_(False)
    layers = [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
        and methods.layer(f"{name}.weight")
        and (matrices is None or name.rsplit(".", 1)[-1] in matrices)
    ]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
    return layers


def fold(layers: list[nn.Module]) -> None:
    """Turn the parts into plain weights again."""
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
