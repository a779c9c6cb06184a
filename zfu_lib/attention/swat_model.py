"""A causal language model around Eq. 5 that is also every baseline of the book's SWAT chapter.

- SWAT: ``activation="sigmoid"``, a window, slopes, RoPE.
- Full attention (Transformer++): ``activation="softmax"``, ``window=None``, ``slopes=None``, RoPE.
- What the released code runs: ``activation="softmax"``, a window, ``slopes="recency"``, RoPE.

The decoder around it is that of :mod:`zfu_lib.attention.decoder`. Registered with the Auto classes as ``zfu-swat``.
"""

from __future__ import annotations

import functools
import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zfu_lib.attention.decoder import DecoderAttention, DecoderConfig, DecoderForCausalLM, DecoderModel, Pass
from zfu_lib.attention.ops import sliding_window_decode
from zfu_lib.attention.swat import SLOPE_MODES, balanced_slopes, logit_bias, sliding_window_attention


class SwatConfig(DecoderConfig):
    """Shape and attention of a :class:`SwatForCausalLM`; other arguments as
    :class:`~zfu_lib.attention.decoder.DecoderConfig`.

    Args:
        window: keys a query sees, itself included; None for all earlier ones.
        activation: ``"sigmoid"`` (Eq. 5) or ``"softmax"``.
        slopes: a mode of :func:`~zfu_lib.attention.swat.balanced_slopes`, or None for no distance term.
        slopes_ratio: recency and history heads for ``"balanced"``.
        sigmoid_bias: constant added to every logit, 0 in the paper.

    Raises:
        ValueError: what the base refuses, an unknown activation, slopes that
            :func:`~zfu_lib.attention.swat.balanced_slopes` refuses.
    """

    model_type = "zfu-swat"

    def __init__(
        self,
        window: int | None = 32,
        activation: str = "sigmoid",
        slopes: str | None = "recency",
        slopes_ratio: tuple[int, int] | None = None,
        sigmoid_bias: float = 0.0,
        **kwargs,
    ):
        self.activation = activation
        self.slopes = slopes
        self.slopes_ratio = list(slopes_ratio) if slopes_ratio else None
        self.sigmoid_bias = sigmoid_bias
        super().__init__(window=window, **kwargs)

    def _check(self) -> None:
        super()._check()
        if self.activation not in ("sigmoid", "softmax"):
            raise ValueError(f"unknown activation {self.activation!r}; choose sigmoid or softmax")
        if self.slopes is not None:
            if self.slopes not in SLOPE_MODES:
                raise ValueError(f"unknown slopes {self.slopes!r}; choose one of {', '.join(SLOPE_MODES)} or None")
            balanced_slopes(self.num_attention_heads, self.slopes, self.slopes_ratio)
        elif self.slopes_ratio is not None:
            raise ValueError(f"slopes_ratio {self.slopes_ratio} needs slopes='balanced'")


@functools.lru_cache(maxsize=64)
def _slopes(heads: int, mode: str, ratio: tuple[int, int] | None, dtype: torch.dtype, device: torch.device):
    with torch.inference_mode(False):
        return balanced_slopes(heads, mode, ratio).to(device, dtype)


class SwatAttention(DecoderAttention):
    def __init__(self, config: SwatConfig, layer: int):
        super().__init__(config, layer)
        self.window, self.activation, self.sigmoid_bias = config.window, config.activation, config.sigmoid_bias

    def attend(self, q_BHTD, k_BKTD, v_BKTD, this: Pass) -> torch.Tensor:
        slopes, _ = this.shared
        return sliding_window_attention(
            q_BHTD,
            k_BKTD,
            v_BKTD,
            window=self.window,
            slopes=slopes,
            activation=self.activation,
            sigmoid_bias=self.sigmoid_bias,
            document=this.document,
        )

    def read(self, q_BHD, k_BKSD, v_BKSD, this: Pass) -> torch.Tensor:
        slopes, _ = this.shared
        return sliding_window_decode(
            q_BHD,
            k_BKSD,
            v_BKSD,
            this.slot_BS,
            window=self.window,
            slopes=slopes,
            sigmoid_bias=self.sigmoid_bias,
            backend="triton",
        )

    def weigh(self, q_BHTD, k_BHSD, this: Pass) -> torch.Tensor:
        """Eq. 5 for keys at any distance."""
        _, bias_BHTS = this.shared
        z_BHTS = q_BHTD @ k_BHSD.transpose(-2, -1) / math.sqrt(self.D) + bias_BHTS
        return torch.sigmoid(z_BHTS) if self.activation == "sigmoid" else torch.softmax(z_BHTS, dim=-1)


class SwatModel(DecoderModel):
    """The trunk: embedding, layers, final norm."""

    config_class = SwatConfig
    attention_class = SwatAttention

    @property
    def has_decode_kernel(self) -> bool:
        """The kernel knows the sigmoid; softmax, the control, forms its weights."""
        return self.config.activation == "sigmoid"

    def share(self, x_BTE, distance_TS, hidden_BHTS) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Slopes, and what Eq. 5 adds to q.k/sqrt(D) where weights are formed."""
        config, slopes = self.config, None
        if config.slopes is not None:
            ratio = tuple(config.slopes_ratio) if config.slopes_ratio else None
            dtype = torch.float64 if x_BTE.dtype == torch.float64 else torch.float32
            slopes = _slopes(config.num_attention_heads, config.slopes, ratio, dtype, x_BTE.device)
        if distance_TS is None:
            return slopes, None
        bias_BHTS = logit_bias(distance_TS, config.window, slopes, config.sigmoid_bias).to(x_BTE.dtype)
        return slopes, bias_BHTS if hidden_BHTS is None else bias_BHTS.masked_fill(hidden_BHTS, -math.inf)


class SwatForCausalLM(DecoderForCausalLM):
    """The language model, see :class:`~zfu_lib.attention.decoder.DecoderForCausalLM`."""

    config_class = SwatConfig
    trunk_class = SwatModel


AutoConfig.register(SwatConfig.model_type, SwatConfig, exist_ok=True)
AutoModelForCausalLM.register(SwatConfig, SwatForCausalLM, exist_ok=True)
