"""A causal language model around Eq. 4 and 5 that is also every arm of the book's Lazy Attention chapter.

- Lazy: a bias table and ``normaliser="elastic"``. Each half alone: ``bias_length=0``, or ``normaliser="softmax"``.
- Transformer++: both off.

The decoder around it is that of :mod:`zfu_lib.attention.decoder`. Registered with the Auto classes as ``zfu-lazy``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from zfu_lib.attention.decoder import DecoderAttention, DecoderConfig, DecoderForCausalLM, DecoderModel, Pass
from zfu_lib.attention.lazy_attention import NORMALISERS, distance_bias, elastic_softmax_attention, normalise
from zfu_lib.attention.ops import elastic_softmax_decode


class LazyConfig(DecoderConfig):
    """Shape and attention of a :class:`LazyForCausalLM`; other arguments as
    :class:`~zfu_lib.attention.decoder.DecoderConfig`.

    Args:
        normaliser: ``"elastic"`` (Eq. 5) or a key of ``NORMALISERS`` of :mod:`zfu_lib.attention.lazy_attention`.
        bias_length: distances of the learned bias (Eq. 4), 0 beyond; 0 for no bias. 512 in the public configuration.
        tau_init: offset at the start, of every head.
        tau_form: ``"free"`` learns tau itself; ``"magnitude"`` learns theta with tau = -|theta|, which can never add
            mass (an early public layer).
        tau_scaled: tau / i; False adds tau to every weight (an ablation of the paper).
        renormalise: divide each row by its sum (off in the paper).
        window: an extension: i is then min(i, window).

    Raises:
        ValueError: what the base refuses, an unknown normaliser or form, a negative bias length, an initial offset
            above 0 for ``"magnitude"``.
    """

    model_type = "zfu-lazy"

    def __init__(
        self,
        normaliser: str = "elastic",
        bias_length: int = 512,
        tau_init: float = -1.0,
        tau_form: str = "free",
        tau_scaled: bool = True,
        renormalise: bool = False,
        **kwargs,
    ):
        self.normaliser = normaliser
        self.bias_length = bias_length
        self.tau_init = tau_init
        self.tau_form = tau_form
        self.tau_scaled = tau_scaled
        self.renormalise = renormalise
        super().__init__(**kwargs)

    def _check(self) -> None:
        super()._check()
        if self.normaliser != "elastic" and self.normaliser not in NORMALISERS:
            raise ValueError(f"unknown normaliser {self.normaliser!r}; choose elastic or one of {list(NORMALISERS)}")
        if self.bias_length < 0:
            raise ValueError(f"bias_length counts distances, 0 for no bias; got {self.bias_length}")
        if self.tau_form not in ("free", "magnitude"):
            raise ValueError(f"unknown tau_form {self.tau_form!r}; choose free or magnitude")
        if self.tau_form == "magnitude" and self.tau_init > 0:
            raise ValueError(f"tau = -|theta| cannot start at {self.tau_init}; use tau_form='free'")


class LazyAttention(DecoderAttention):
    def __init__(self, config: LazyConfig, layer: int):
        super().__init__(config, layer)
        self.config = config
        self.distance_bias = self.theta = None
        if config.bias_length:
            self.distance_bias = nn.Parameter(torch.zeros(self.H, config.bias_length))
        if config.normaliser == "elastic":
            self.theta = nn.Parameter(torch.full((self.H,), float(config.tau_init)))

    @property
    def tau(self) -> torch.Tensor | None:
        """Offsets ``[H]``."""
        return -self.theta.abs() if self.theta is not None and self.config.tau_form == "magnitude" else self.theta

    def attend(self, q_BHTD, k_BKTD, v_BKTD, this: Pass) -> torch.Tensor:
        return elastic_softmax_attention(
            q_BHTD,
            k_BKTD,
            v_BKTD,
            bias=self.distance_bias,
            tau=self.tau,
            window=self.config.window,
            document=this.document,
        )

    def read(self, q_BHD, k_BKSD, v_BKSD, this: Pass) -> torch.Tensor:
        return elastic_softmax_decode(
            q_BHD,
            k_BKSD,
            v_BKSD,
            this.slot_BS,
            bias=self.distance_bias,
            tau=self.tau,
            window=self.config.window,
            backend="triton",
        )

    def logits(self, q_BHTD: torch.Tensor, k_BHSD: torch.Tensor, distance_TS: torch.Tensor) -> torch.Tensor:
        """Eq. 4 for keys at any distance, ``[B, H, T, S]``, at least fp32."""
        dtype = torch.promote_types(q_BHTD.dtype, torch.float32)
        z_BHTS = q_BHTD.to(dtype) @ k_BHSD.to(dtype).transpose(-2, -1) / math.sqrt(self.D)
        if self.distance_bias is None:
            return z_BHTS
        return z_BHTS + distance_bias(self.distance_bias.to(dtype), distance_TS)

    def weigh(self, q_BHTD, k_BHSD, this: Pass) -> torch.Tensor:
        """Eq. 5 for keys at any distance; i counts the keys that are seen."""
        return normalise(
            self.logits(q_BHTD, k_BHSD, this.distance_TS),
            this.shared,
            normaliser=self.config.normaliser,
            tau=self.tau,
            scaled=self.config.tau_scaled,
            renormalise=self.config.renormalise,
        )


class LazyModel(DecoderModel):
    """The trunk: embedding, layers, final norm."""

    config_class = LazyConfig
    attention_class = LazyAttention

    @property
    def forms_weights(self) -> bool:
        """The kernels know the paper's form and plain softmax; every other switch is computed densely."""
        config = self.config
        return config.normaliser not in ("elastic", "softmax") or config.renormalise or not config.tau_scaled

    @property
    def has_decode_kernel(self) -> bool:
        return not self.forms_weights

    def share(self, x_BTE, distance_TS, hidden_BHTS) -> torch.Tensor | None:
        """Which keys are seen, where weights are formed."""
        if distance_TS is None:
            return None
        seen = distance_TS >= 0
        if self.config.window is not None:
            seen = seen & (distance_TS < self.config.window)
        if hidden_BHTS is not None:
            seen = seen & ~hidden_BHTS
        return seen


class LazyForCausalLM(DecoderForCausalLM):
    """The language model, see :class:`~zfu_lib.attention.decoder.DecoderForCausalLM`."""

    config_class = LazyConfig
    trunk_class = LazyModel

    def parameter_groups(
        self, weight_decay: float, *, lr_scale: float = 10.0, freeze_after: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for :func:`zfu_lib.lm.train.train`: offsets and biases apart, undecayed, at ten times the rate.

        So the public training stack has it, which in some versions also freezes them after a tenth of the steps
        (``freeze_after=0.1``); whether the paper's models were trained so is not confirmed.
        """
        special = {id(p) for layer in self.model.layers for p in (layer.attention.theta, layer.attention.distance_bias)}
        trained = [p for p in self.parameters() if p.requires_grad]
        rest = [p for p in trained if id(p) not in special]
        apart = {"weight_decay": 0.0, "lr_scale": lr_scale, "freeze_after": freeze_after}
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            {"params": [p for p in trained if id(p) in special], **apart},
        ]
        return [group for group in groups if group["params"]]


AutoConfig.register(LazyConfig.model_type, LazyConfig, exist_ok=True)
AutoModelForCausalLM.register(LazyConfig, LazyForCausalLM, exist_ok=True)
