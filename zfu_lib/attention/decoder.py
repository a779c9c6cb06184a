"""A small causal decoder that leaves one thing open: how a query weighs its keys.

Pre-norm RMSNorm, projections without bias, RoPE, SwiGLU, a key-value cache. A paper's model subclasses
:class:`DecoderAttention` and :class:`DecoderModel`. Attention does not go through transformers'
``AttentionInterface``: the causal mask is part of the operators, no mask has to arrive.

Letters: B batch, H query heads, K key heads, T new positions, S keys, D head width, E hidden width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from zfu_lib.attention.cache import RollingCache
from zfu_lib.attention.ops import document_starts, runs_on_gpu
from zfu_lib.attention.swat import rotary_table, rotate


class DecoderConfig(PreTrainedConfig):
    """What all decoders of the book have in common.

    Args:
        intermediate_size: inner width of SwiGLU; None for 8/3 of the hidden size, rounded up to a multiple of 16.
        num_key_value_heads: None for as many as query heads.
        window: keys a query sees, itself included; None for all earlier ones.
        rope: rotate queries and keys.
        max_position_embeddings: nothing in the model depends on it; evaluation harnesses cut their inputs there.

    Raises:
        ValueError: heads that do not divide the hidden size or each other, odd head width with RoPE, window below 1.
    """

    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        window: int | None = None,
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


@functools.lru_cache(maxsize=64)
def _rotary_table(start: int, stop: int, width: int, theta: float, fp64: bool, device: torch.device) -> torch.Tensor:
    # Constants are made here and not kept as buffers: from_pretrained leaves unsaved buffers uninitialised.
    with torch.inference_mode(False):
        positions = torch.arange(start, stop, device=device, dtype=torch.float64 if fp64 else torch.int64)
        # A head axis after T: the model rotates [B, T, heads, D].
        return rotary_table(positions, width, theta)[:, None]


class Pass(NamedTuple):
    """What one forward pass has in common for all layers."""

    table: torch.Tensor | None
    cache: RollingCache | None
    append: int  # slots of the cache to attend to beside the new keys
    decode: bool  # the single new key is read from the cache too
    # Given only where weights must be formed one by one: over a cache, beside padding, or when they are asked for.
    distance_TS: torch.Tensor | None
    hidden_BHTS: torch.Tensor | None  # padded keys and those of other documents, of those at these distances
    # Given instead where a kernel reads the cache: distances of its slots, negative where one is hidden.
    slot_BS: torch.Tensor | None
    document: torch.Tensor | None
    shared: Any  # what DecoderModel.share returns


class DecoderAttention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.H, self.K, self.D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, (self.H + 2 * self.K) * self.D, bias=False)
        self.o_proj = nn.Linear(self.H * self.D, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor, this: Pass) -> tuple[torch.Tensor, torch.Tensor | None]:
        B, T, _ = x_BTE.shape
        q_BHTD, k_BKTD, v_BKTD = self.project(x_BTE, this.table)

        if this.cache is not None:
            if this.append:
                old_k, old_v = this.cache.kept(self.layer, this.append)
                k_BKSD, v_BKSD = torch.cat([old_k, k_BKTD], 2), torch.cat([old_v, v_BKTD], 2)
            this.cache.update(self.layer, k_BKTD, v_BKTD)
            if this.append:
                k_BKTD, v_BKTD = k_BKSD, v_BKSD
            elif this.decode:
                k_BKTD, v_BKTD = this.cache.kept(self.layer, this.cache.held)

        weights = None
        if this.slot_BS is not None:
            o_BHTD = self.read(q_BHTD[:, :, 0], k_BKTD, v_BKTD, this)[:, :, None]
        elif this.distance_TS is None:
            o_BHTD = self.attend(q_BHTD, k_BKTD, v_BKTD, this)
        else:
            if self.K < self.H:
                k_BKTD, v_BKTD = (x.repeat_interleave(self.H // self.K, dim=1) for x in (k_BKTD, v_BKTD))
            weights = self.weigh(q_BHTD, k_BKTD, this).to(v_BKTD.dtype)
            o_BHTD = weights @ v_BKTD
        return self.o_proj(o_BHTD.transpose(1, 2).reshape(B, T, self.H * self.D)), weights

    def project(self, x_BTE: torch.Tensor, table: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Queries ``[B, H, T, D]``, keys and values ``[B, K, T, D]``, the first two rotated."""
        B, T, _ = x_BTE.shape
        qk, v = self.qkv_proj(x_BTE).view(B, T, -1, self.D).split([self.H + self.K, self.K], dim=2)
        if table is not None:
            qk = rotate(qk, table)
        q, k, v = (x.transpose(1, 2) for x in (*qk.split([self.H, self.K], dim=2), v))
        return q, k, v

    def attend(self, q_BHTD, k_BKTD, v_BKTD, this: Pass) -> torch.Tensor:
        """The output ``[B, H, T, D]`` for as many keys as queries and no padding."""
        raise NotImplementedError

    def read(self, q_BHD, k_BKSD, v_BKSD, this: Pass) -> torch.Tensor:
        """The output ``[B, H, D]`` of one query against the slots of a cache, by a kernel."""
        raise NotImplementedError

    def weigh(self, q_BHTD, k_BHSD, this: Pass) -> torch.Tensor:
        """The weights ``[B, H, T, S]`` for keys at ``this.distance_TS``, 0 for ``this.hidden_BHTS``."""
        raise NotImplementedError


class DecoderMLP(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        # Two matrices and not one: the backward of a split is a copy, which costs more than the second call.
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, attention: DecoderAttention):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DecoderMLP(config)

    def forward(self, x_BTE: torch.Tensor, this: Pass) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(self.attention_norm(x_BTE), this)
        x_BTE = x_BTE + attended
        return x_BTE + self.mlp(self.mlp_norm(x_BTE)), weights


class DecoderPreTrainedModel(PreTrainedModel):
    config_class = DecoderConfig
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer"]


class DecoderModel(DecoderPreTrainedModel):
    """The trunk: embedding, layers, final norm."""

    attention_class: type[DecoderAttention]
    forms_weights = False  # True: always form the weights, also where no cache and no padding asks for it
    has_decode_kernel = False  # True: DecoderAttention.read works

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, self.attention_class(config, layer)) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def _prepare(self, x_BTE, attention_mask, cache: RollingCache | None, want_weights: bool, document) -> Pass:
        config, device = self.config, x_BTE.device
        T = x_BTE.shape[1]
        past = cache.length if cache is not None else 0
        fp64 = x_BTE.dtype == torch.float64
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
        distance_TS = hidden_BHTS = None
        if decode or append or real_BS is not None or want_weights or self.forms_weights:
            distance_TS = position_T[:, None] - (position_T if position_S is None else position_S)
            if real_BS is not None:
                # A padded query keeps itself, so that no softmax row is empty; nobody else sees a padded key.
                hidden_BHTS = ~real_BS[:, None, None, :] & (distance_TS != 0)
            if document is not None:
                start_BT = document_starts(document)
                apart_BHTS = start_BT[:, None, :, None] != start_BT[:, None, None, :]
                hidden_BHTS = apart_BHTS if hidden_BHTS is None else hidden_BHTS | apart_BHTS
        slot_BS = None
        if decode and not want_weights and self._reads_by_kernel(x_BTE):
            slot_BS = distance_TS.expand(x_BTE.shape[0], -1)
            if hidden_BHTS is not None:
                slot_BS = slot_BS.masked_fill(hidden_BHTS[:, 0, 0], -1)
            distance_TS = hidden_BHTS = None
        shared = self.share(x_BTE, distance_TS, hidden_BHTS)
        return Pass(table, cache, append, decode, distance_TS, hidden_BHTS, slot_BS, document, shared)

    def _reads_by_kernel(self, x_BTE: torch.Tensor) -> bool:
        """The decoding kernels have no gradient."""
        q_like = x_BTE[:, :, : self.config.head_dim]
        return self.has_decode_kernel and not torch.is_grad_enabled() and runs_on_gpu(q_like)

    def share(self, x_BTE, distance_TS, hidden_BHTS) -> Any:
        """What the attention of every layer needs to know of this pass, as ``Pass.shared``."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        document: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple | None, tuple | None]:
        """Final hidden states ``[B, T, E]``, then all hidden states and all weights where asked for."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x_BTE = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if 0 in x_BTE.shape:
            raise ValueError(f"no tokens: the input has shape {tuple(x_BTE.shape[:2])}")
        if document is not None and document.shape != x_BTE.shape[:2]:
            B, T = x_BTE.shape[:2]
            raise ValueError(f"document must be one integer per token, ({B}, {T}); got {tuple(document.shape)}")
        this = self._prepare(x_BTE, attention_mask, past_key_values, output_attentions, document)
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


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """The language model. ``generate`` decodes with a :class:`~zfu_lib.attention.cache.RollingCache`.

    Padding goes to the left for generation, as usual. Distances count positions of the padded row; as query and key
    move together by the same number of pads, m - n is what it would be without padding, in the bias and in RoPE, and a
    padded row gives the logits of the bare row. Zeros in the middle of ``attention_mask`` hide those keys but still
    count as distance.
    """

    trunk_class: type[DecoderModel]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.model = self.trunk_class(config)
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
        document: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocab]`` and, with ``labels`` (shifted here, -100 ignored), the mean cross-entropy.

        Args:
            attention_mask: ``[B, past + T]``, 0 for padding. Weights are formed densely where something is padded.
            past_key_values: from an earlier call; made here if ``use_cache``. In training the default is no cache.
            output_attentions: also the weights of every layer ``[B, H, T, S]`` (S > T over a cache, in slot order).
            logits_to_keep: only the last so many positions; 0 for all.
            document: integers ``[B, T]`` for packed documents; a new one begins wherever the number changes, and
                nothing is seen across. Not together with a cache.

        Raises:
            ValueError: both or neither of ids and embeddings, no tokens, a mask or cache of another kind,
                ``position_ids`` (position is the place in the row), documents together with a cache.
        """
        config = self.config
        if kwargs.get("position_ids") is not None:
            raise ValueError("this model takes a token's place in the row as its position; do not pass position_ids")
        if past_key_values is not None and not isinstance(past_key_values, RollingCache):
            raise ValueError(f"past_key_values must come from this model, got {type(past_key_values).__name__}")
        if use_cache is None:
            use_cache = config.use_cache and not self.training and labels is None and document is None
        if document is not None and (use_cache or past_key_values is not None):
            raise ValueError("packed documents are read at once: give document or a cache, not both")
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        hidden_BTE, hidden_states, attentions = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            document,
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
