"""Lazy Attention in the order of its argument. arXiv 2601.00919, Eq. 4 and 5; the text itself was not at hand.

1. *Overload*: softmax spreads similar weights over many keys. Positional discrimination counters it: RoPE across the
   channels, and a learned bias per head and distance across the heads (Eq. 4): :func:`distance_bias`.
2. *Underload*: weights that sum to 1 must go somewhere, also where nothing is relevant. Elastic-Softmax subtracts a
   learned share and cuts at zero, without renormalising (Eq. 5): :func:`elastic_weights`.
3. What an offset can take away is bounded, and much of the sparsity it makes needs no learning:
   :func:`removed_mass`, :func:`gaussian_sparsity`, :func:`gaussian_mass`.
4. The switches and rivals of the experiments: :func:`normalise`.

The offset carries the sign of the public code, + tau / i with tau = -1 at the start; Eq. 5 as the reviews quote it has
- tau and +1.

Letters: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from zfu_lib.attention.ops import (
    distance_bias,
    elastic_attention_weights,
    elastic_softmax_attention,
    elastic_weights,
)

__all__ = [
    "NORMALISERS",
    "distance_bias",
    "elastic_attention_weights",
    "elastic_softmax_attention",
    "elastic_weights",
    "entmax15",
    "gaussian_mass",
    "gaussian_sparsity",
    "normalise",
    "removed_mass",
    "softmax_one",
    "softpick",
    "sparsemax",
]


def removed_mass(p: torch.Tensor, tau: float | torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    """sum_j min(p_ij, |tau| / i): what an offset tau <= 0 takes from a row of softmax weights ``[..., S]``.

    Each of the i terms is at most |tau| / i, so no row loses more than |tau|: the sum of w lies in [1 - |tau|, 1].
    """
    return torch.minimum(p, torch.as_tensor(tau, dtype=p.dtype).abs() / count).sum(-1)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _gaussian_edge(sigma: float, tau: float) -> float:
    if sigma <= 0 or tau >= 0:
        raise ValueError(f"needs scores of a spread above 0 and an offset below 0, got {sigma} and {tau}")
    return (sigma**2 / 2 + math.log(-tau)) / sigma


def gaussian_sparsity(sigma: float, tau: float) -> float:
    """Phi((sigma^2 / 2 + ln|tau|) / sigma): share of exact zeros if a long row's scores are independent normal numbers
    of standard deviation ``sigma``, which know nothing of any text.

    Raises:
        ValueError: sigma <= 0 or tau >= 0.
    """
    return _normal_cdf(_gaussian_edge(sigma, tau))


def gaussian_mass(sigma: float, tau: float) -> float:
    """E ReLU(e^(sigma z - sigma^2 / 2) - |tau|), the sum of w for the same scores: a Black-Scholes call price.

    Raises:
        ValueError: sigma <= 0 or tau >= 0.
    """
    edge = _gaussian_edge(sigma, tau)
    return _normal_cdf(sigma - edge) + tau * _normal_cdf(-edge)


def softmax_one(z: torch.Tensor) -> torch.Tensor:
    """e^z / (1 + sum e^z): softmax beside one more key with score 0 and no value."""
    return torch.softmax(torch.cat([z, torch.zeros_like(z[..., :1])], -1), -1)[..., :-1]


def softpick(z: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """ReLU(e^z - 1) / (sum |e^z - 1| + eps), arXiv 2504.20966; the sum leaves out keys that are not seen (z = -inf)."""
    top = z.detach().amax(-1, keepdim=True).clamp_min(0.0)
    lifted = torch.exp(z - top) - torch.exp(-top)
    total = lifted.abs().masked_fill(z == -math.inf, 0.0).sum(-1, keepdim=True)
    return torch.relu(lifted) / (total + eps)


def _threshold(z: torch.Tensor, power: int) -> torch.Tensor:
    """The t of sum ReLU(z - t)^power = 1 in every row, exactly, from sorted scores. power is 1 or 2."""
    ranked = z.sort(-1, descending=True).values
    # The threshold is at most 1 below the top; what lies far below it, or is not seen, may as well lie 2 below.
    ranked = torch.maximum(ranked, ranked[..., :1] - 2)
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    mean = ranked.cumsum(-1) / k
    if power == 1:
        candidate = mean - 1 / k
    else:
        spread = (ranked.square().cumsum(-1) / k - mean.square()) * k
        candidate = mean - ((1 - spread).clamp_min(0) / k).sqrt()
    support = (candidate <= ranked).sum(-1, keepdim=True)
    return candidate.gather(-1, support - 1)


def _sparse(z: torch.Tensor, power: int) -> torch.Tensor:
    z = z - z.amax(-1, keepdim=True).detach()
    with torch.no_grad():
        root = torch.relu(z - _threshold(z, power))
        slope = (root > 0).to(z.dtype) if power == 1 else 2 * root
    # t moves with the scores so that the sum stays 1: dp = slope (dz - sum slope dz / sum slope). The line below has
    # that derivative and the value 0.
    line = slope * z.masked_fill(slope == 0, 0.0)
    line = line - slope * line.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
    return root**power + (line - line.detach())


def sparsemax(z: torch.Tensor) -> torch.Tensor:
    """ReLU(z - t) with t such that the row sums to 1, arXiv 1602.02068."""
    return _sparse(z, 1)


def entmax15(z: torch.Tensor) -> torch.Tensor:
    """ReLU(z / 2 - t)^2 with t such that the row sums to 1: alpha-entmax with alpha = 1.5, arXiv 1905.05702."""
    return _sparse(z / 2, 2)


# Each takes scores [..., S], -inf where a key is not seen, with at least one that is.
NORMALISERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda z: torch.softmax(z, -1),
    "softmax1": softmax_one,
    "softpick": softpick,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    # With -ln i, zero scores give a row of mass about 1, as in arXiv 2409.04431.
    "sigmoid": lambda z: torch.sigmoid(z - (z > -math.inf).sum(-1, keepdim=True).log()),
}


def normalise(
    z_BHTS: torch.Tensor,
    seen: torch.Tensor,
    *,
    normaliser: str = "elastic",
    tau: torch.Tensor | None = None,
    scaled: bool = True,
    renormalise: bool = False,
) -> torch.Tensor:
    """Weights ``[B, H, T, S]`` of the keys that are seen, by Eq. 5 or by what it is compared with; 0 elsewhere.

    Args:
        z_BHTS: logits.
        seen: bool, broadcasts to the logits; every row sees a key.
        normaliser: ``"elastic"``, or a key of :data:`NORMALISERS`.
        tau: ``[H]``, for ``"elastic"`` only.
        scaled: tau / i, the paper; False adds tau to every weight as it is.
        renormalise: divide each row by its sum; a row of zeros stays one.

    Raises:
        ValueError: an unknown normaliser, or an offset where none belongs or is missing.
    """
    if normaliser != "elastic" and normaliser not in NORMALISERS:
        raise ValueError(f"unknown normaliser {normaliser!r}; choose one of elastic, {', '.join(NORMALISERS)}")
    if (tau is not None) != (normaliser == "elastic"):
        raise ValueError(f"normaliser {normaliser!r} {'needs' if tau is None else 'takes no'} tau")
    if normaliser == "elastic":
        count = seen.sum(-1, keepdim=True) if scaled else 1
        w_BHTS = elastic_weights(z_BHTS, seen, count, tau)
    else:
        w_BHTS = NORMALISERS[normaliser](z_BHTS.masked_fill(~seen, -math.inf))
    if renormalise:
        total = w_BHTS.sum(-1, keepdim=True)
        w_BHTS = w_BHTS / torch.where(total > 0, total, 1.0)
    return w_BHTS
