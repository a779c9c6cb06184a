"""A causal language model around Eq. 5 that is also every baseline of the book's SWAT chapter.

- SWAT: ``activation="sigmoid"``, a window, slopes, RoPE.
- Full attention (Transformer++): ``activation="softmax"``, ``window=None``, ``slopes=None``, RoPE.
- What the released code runs: ``activation="softmax"``, a window, ``slopes="recency"``, RoPE.

Pre-norm RMSNorm, projections without bias, SwiGLU. Registered with the Auto classes as ``zfu-swat``. Attention does not
go through transformers' ``AttentionInterface``: the causal band is part of the operator, no mask has to arrive.

Letters: B batch, H query heads, K key heads, T new positions, S keys, D head width, E hidden width.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from zfu_lib.attention.cache import RollingCache
from zfu_lib.attention.swat import (
    SLOPE_MODES,
    balanced_slopes,
    logit_bias,
    rotary_table,
    rotate,
    sliding_window_attention,
)


class SwatConfig(PreTrainedConfig):
    """Shape and attention of a :class:`SwatForCausalLM`.

    Args:
        intermediate_size: inner width of SwiGLU; None for 8/3 of the hidden size, rounded up to a multiple of 16.
        num_key_value_heads: None for as many as query heads.
        window: keys a query sees, itself included; None for all earlier ones.
        activation: ``"sigmoid"`` (Eq. 5) or ``"softmax"``.
        slopes: a mode of :func:`~zfu_lib.attention.swat.balanced_slopes`, or None for no distance term.
        slopes_ratio: recency and history heads for ``"balanced"``.
        sigmoid_bias: constant added to every logit, 0 in the paper.
        rope: rotate queries and keys.
        max_position_embeddings: nothing in the model depends on it; evaluation harnesses cut their inputs there.

    Raises:
        ValueError: heads that do not divide the hidden size or each other, odd head width with RoPE, unknown
            activation, window below 1, slopes that :func:`~zfu_lib.attention.swat.balanced_slopes` refuses.
    """

    model_type = "zfu-swat"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        window: int | None = 32,
        activation: str = "sigmoid",
        slopes: str | None = "recency",
        slopes_ratio: tuple[int, int] | None = None,
        sigmoid_bias: float = 0.0,
        rope: bool = True,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        max_position_embeddings: int = 2048,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size or -(-8 * hidden_size // 48) * 16
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.window = window
        self.activation = activation
        self.slopes = slopes
        self.slopes_ratio = list(slopes_ratio) if slopes_ratio else None
        self.sigmoid_bias = sigmoid_bias
        self.rope = rope
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.tie_word_embeddings = tie_word_embeddings
        self.use_cache = use_cache
        self._check()
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def _check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.rope and self.head_dim % 2:
            raise ValueError(f"RoPE needs an even head width, got {self.head_dim}; change the heads or set rope=False")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window counts the query itself, so it is at least 1 (or None); got {self.window}")
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
    # Constants are made here and not kept as buffers: from_pretrained leaves unsaved buffers uninitialised.
    with torch.inference_mode(False):
        return balanced_slopes(heads, mode, ratio).to(device, dtype)


@functools.lru_cache(maxsize=64)
def _rotary_table(start: int, stop: int, width: int, theta: float, fp64: bool, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        positions = torch.arange(start, stop, device=device, dtype=torch.float64 if fp64 else torch.int64)
        # A head axis after T: the model rotates [B, T, heads, D].
        return rotary_table(positions, width, theta)[:, None]


class _Pass(NamedTuple):
    """What one forward pass has in common for all layers."""

    table: torch.Tensor | None
    slopes: torch.Tensor | None
    # Given only where weights must be formed one by one: over a cache, beside padding, or when they are asked for.
    bias_BHTS: torch.Tensor | None
    cache: RollingCache | None
    append: int  # slots of the cache to attend to beside the new keys
    decode: bool  # the single new key is read from the cache too


class SwatAttention(nn.Module):
    def __init__(self, config: SwatConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.window, self.activation, self.sigmoid_bias = config.window, config.activation, config.sigmoid_bias
        self.H, self.K, self.D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, (self.H + 2 * self.K) * self.D, bias=False)
        self.o_proj = nn.Linear(self.H * self.D, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor, this: _Pass) -> tuple[torch.Tensor, torch.Tensor | None]:
        B, T, _ = x_BTE.shape
        qk, v = self.qkv_proj(x_BTE).view(B, T, -1, self.D).split([self.H + self.K, self.K], dim=2)
        if this.table is not None:
            qk = rotate(qk, this.table)
        q_BHTD, k_BKTD, v_BKTD = (x.transpose(1, 2) for x in (*qk.split([self.H, self.K], dim=2), v))

        if this.cache is not None:
            if this.append:
                old_k, old_v = this.cache.kept(self.layer, this.append)
                k_BKSD, v_BKSD = torch.cat([old_k, k_BKTD], 2), torch.cat([old_v, v_BKTD], 2)
            this.cache.update(self.layer, k_BKTD, v_BKTD)
            if this.append:
                k_BKTD, v_BKTD = k_BKSD, v_BKSD
            elif this.decode:
                k_BKTD, v_BKTD = this.cache.kept(self.layer, this.cache.held)

        if this.bias_BHTS is None:
            o_BHTD, weights = (
                sliding_window_attention(
                    q_BHTD,
                    k_BKTD,
                    v_BKTD,
                    window=self.window,
                    slopes=this.slopes,
                    activation=self.activation,
                    sigmoid_bias=self.sigmoid_bias,
                ),
                None,
            )
        else:
            o_BHTD, weights = self._weigh(q_BHTD, k_BKTD, v_BKTD, this.bias_BHTS)
        return self.o_proj(o_BHTD.transpose(1, 2).reshape(B, T, self.H * self.D)), weights

    def _weigh(self, q_BHTD, k_BKSD, v_BKSD, bias_BHTS) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 5 for keys at any distance, with its weights ``[B, H, T, S]``."""
        if self.K < self.H:
            k_BKSD, v_BKSD = (x.repeat_interleave(self.H // self.K, dim=1) for x in (k_BKSD, v_BKSD))
        z_BHTS = q_BHTD @ k_BKSD.transpose(-2, -1) / math.sqrt(self.D) + bias_BHTS
        A_BHTS = torch.sigmoid(z_BHTS) if self.activation == "sigmoid" else torch.softmax(z_BHTS, dim=-1)
        A_BHTS = A_BHTS.to(v_BKSD.dtype)
        return A_BHTS @ v_BKSD, A_BHTS


class SwatMLP(nn.Module):
    def __init__(self, config: SwatConfig):
        super().__init__()
        # Two matrices and not one: the backward of a split is a copy, which costs more than the second call.
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE))


class SwatLayer(nn.Module):
    def __init__(self, config: SwatConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = SwatAttention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwatMLP(config)

    def forward(self, x_BTE: torch.Tensor, this: _Pass) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(self.attention_norm(x_BTE), this)
        x_BTE = x_BTE + attended
        return x_BTE + self.mlp(self.mlp_norm(x_BTE)), weights


class SwatPreTrainedModel(PreTrainedModel):
    config_class = SwatConfig
    base_model_prefix = "model"
    _no_split_modules = ["SwatLayer"]


class SwatModel(SwatPreTrainedModel):
    """The trunk: embedding, layers, final norm."""

    def __init__(self, config: SwatConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SwatLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def _prepare(self, x_BTE, attention_mask, cache: RollingCache | None, want_weights: bool) -> _Pass:
        config, device = self.config, x_BTE.device
        T = x_BTE.shape[1]
        past = cache.length if cache is not None else 0
        fp64 = x_BTE.dtype == torch.float64
        slopes = None
        if config.slopes is not None:
            ratio = tuple(config.slopes_ratio) if config.slopes_ratio else None
            dtype = torch.float64 if fp64 else torch.float32
            slopes = _slopes(config.num_attention_heads, config.slopes, ratio, dtype, device)
        table = _rotary_table(past, past + T, config.head_dim, config.rope_theta, fp64, device) if config.rope else None

        real_BT = None
        if attention_mask is not None:
            if attention_mask.ndim != 2 or attention_mask.shape[1] < T:
                raise ValueError(
                    f"attention_mask must be [batch, past + new] with 0 for padding, got {tuple(attention_mask.shape)} "
                    f"for {T} new positions"
                )
            real_BT = attention_mask[:, -T:].bool()
            real_BT = None if bool(real_BT.all()) else real_BT

        append, decode = 0, False
        position_S, real_BS = None, real_BT
        if cache is None:
            position_T = torch.arange(T, device=device)
        else:
            held = cache.held
            decode, append = bool(past) and T == 1, held if past and T > 1 else 0
            if append:
                position_S = cache.position_S[:held].clone()
                real_BS = None if cache.real_BS is None else cache.real_BS[:, :held].clone()
            position_T = cache.advance(real_BT, T, device)
            if append:
                position_S = torch.cat([position_S, position_T])
                if real_BS is not None or real_BT is not None:
                    ones = torch.ones(x_BTE.shape[0], 1, dtype=torch.bool, device=device)
                    parts = (real_BS, held), (real_BT, T)
                    real_BS = torch.cat([ones.expand(-1, n) if part is None else part for part, n in parts], 1)
            elif decode:
                position_S = cache.position_S[: cache.held]
                real_BS = None if cache.real_BS is None else cache.real_BS[:, : cache.held]
        bias = None
        if decode or append or real_BS is not None or want_weights:
            distance_TS = position_T[:, None] - (position_T if position_S is None else position_S)
            bias = logit_bias(distance_TS, config.window, slopes, config.sigmoid_bias).to(x_BTE.dtype)
            if real_BS is not None:
                # A padded query keeps itself, so that no softmax row is empty; nobody else sees a padded key.
                hidden = ~real_BS[:, None, None, :] & (distance_TS != 0)
                bias = bias.masked_fill(hidden, -math.inf)
        return _Pass(table, slopes, bias, cache, append, decode)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, tuple | None, tuple | None]:
        """Final hidden states ``[B, T, E]``, then all hidden states and all weights where asked for."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x_BTE = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if 0 in x_BTE.shape:
            raise ValueError(f"no tokens: the input has shape {tuple(x_BTE.shape[:2])}")
        this = self._prepare(x_BTE, attention_mask, past_key_values, output_attentions)
        hidden_states, attentions = [], []
        for layer in self.layers:
            if output_hidden_states:
                hidden_states.append(x_BTE)
            x_BTE, weights = layer(x_BTE, this)
            if output_attentions:
                attentions.append(weights)
        x_BTE = self.norm(x_BTE)
        hidden_states.append(x_BTE)
        return (
            x_BTE,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


class SwatForCausalLM(SwatPreTrainedModel, GenerationMixin):
    """The language model. ``generate`` decodes with a :class:`~zfu_lib.attention.cache.RollingCache`.

    Padding goes to the left for generation, as usual. Distances count positions of the padded row; as query and key
    move together by the same number of pads, m - n is what it would be without padding, in the bias and in RoPE, and a
    padded row gives the logits of the bare row. Zeros in the middle of ``attention_mask`` hide those keys but still
    count as distance.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SwatConfig):
        super().__init__(config)
        self.model = SwatModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # generate() then leaves making the cache to forward().
        return False

    def new_cache(self) -> RollingCache:
        """An empty cache for this model."""
        return RollingCache(self.config.num_hidden_layers, self.config.window)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocab]`` and, with ``labels`` (shifted here, -100 ignored), the mean cross-entropy.

        Args:
            attention_mask: ``[B, past + T]``, 0 for padding. Weights are formed densely where something is padded.
            past_key_values: from an earlier call; made here if ``use_cache``. In training the default is no cache.
            output_attentions: also the weights of every layer ``[B, H, T, S]`` (S > T over a cache, in slot order).
            logits_to_keep: only the last so many positions; 0 for all.

        Raises:
            ValueError: both or neither of ids and embeddings, no tokens, a mask or cache of another kind,
                ``position_ids`` (position is the place in the row).
        """
        config = self.config
        if kwargs.get("position_ids") is not None:
            raise ValueError("this model takes a token's place in the row as its position; do not pass position_ids")
        if past_key_values is not None and not isinstance(past_key_values, RollingCache):
            raise ValueError(f"past_key_values must come from this model, got {type(past_key_values).__name__}")
        if use_cache is None:
            use_cache = config.use_cache and not self.training and labels is None
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        hidden_BTE, hidden_states, attentions = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        logits_BTV = self.lm_head(hidden_BTE[:, -logits_to_keep:] if logits_to_keep else hidden_BTE)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=past_key_values,
            hidden_states=hidden_states,
            attentions=attentions,
        )
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(SwatConfig.model_type, SwatConfig, exist_ok=True)
AutoModelForCausalLM.register(SwatConfig, SwatForCausalLM, exist_ok=True)
