"""A causal language model's last hidden state while it answers a prompt: what it was going to say, as one vector.

LLM4MSR takes it from ChatGLM2-6B with a patched copy of transformers; here the public ``generate`` gives it. Which
token's state the paper takes is not confirmed, so ``pooling`` is a choice.

Shape letters: N prompts, T positions, D width of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.lm.protocol import ModelError

Pooling = Literal["last_generated", "mean_generated", "last_prompt"]


class HiddenStates:
    """Vectors of prompts from a causal language model that answers them greedily.

    Args:
        model, tokenizer: a loaded transformers model with its tokenizer (a chat template, where there is one, is used).
        new_tokens: how long an answer may be.
        pooling: the last layer at the last token of the answer (``last_generated``), averaged over the answer
            (``mean_generated``), or at the last token of the prompt, before anything is said (``last_prompt``).
        max_length: tokens after which a prompt loses its beginning.
        batch: prompts that go through the model at once.

    Raises:
        ModelError: an unknown pooling, or no token to say.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        new_tokens: int = 64,
        pooling: Pooling = "last_generated",
        name: str = "",
        max_length: int = 1024,
        batch: int = 64,
    ) -> None:
        if pooling not in ("last_generated", "mean_generated", "last_prompt") or new_tokens < 1:
            raise ModelError(f"pooling {pooling!r} over {new_tokens} new tokens: no such way to take a hidden state")
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name or type(model).__name__
        self.new_tokens, self.pooling, self.max_length, self.batch = new_tokens, pooling, max_length, batch
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Answers begin where prompts end, so the padding stands before them.
        tokenizer.padding_side, tokenizer.truncation_side = "left", "left"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", **options: object) -> HiddenStates:
        """A model by folder or hub id.

        Raises:
            ModelError: it cannot be loaded.
        """
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device)
            return cls(model, AutoTokenizer.from_pretrained(name), name=name, **options)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{name} cannot be loaded ({str(error).splitlines()[0]}): check name and network"
            ) from None

    @property
    def identity(self) -> str:
        """Checksum of the weights and of how states are taken."""
        digest = hashlib.sha256(repr((self.pooling, self.new_tokens, self.max_length)).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return f"sha256:{digest.hexdigest()}"

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """One vector per prompt: float32 [N, D].

        Raises:
            ModelError: a prompt that is empty, or a state that is not finite.
        """
        return self.answer(prompts)[1]

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """What the model says to each prompt, and its hidden state: N texts and float32 [N, D].

        Raises:
            ModelError: as :meth:`encode`.
        """
        if empty := [i for i, prompt in enumerate(prompts) if not prompt.strip()]:
            raise ModelError(f"prompt {empty[0]} is empty: a language model needs something to read")
        width = self.model.config.get_text_config().hidden_size
        said, found = [""] * len(prompts), np.empty((len(prompts), width), np.float32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            texts, states_ND = self._batch([prompts[i] for i in rows])
            found[rows] = states_ND.float().cpu().numpy()
            for i, text in zip(rows, texts, strict=True):
                said[i] = text
        if not np.isfinite(found).all():
            raise ModelError(f"{self.name} gave states that are not finite; load it in float32")
        return said, found

    def _batch(self, prompts: list[str]) -> tuple[list[str], Tensor]:
        if self.tokenizer.chat_template:
            turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt",
            add_special_tokens=not self.tokenizer.chat_template, return_token_type_ids=False,
        ).to(self.model.device)  # fmt: skip
        out = self.model.generate(
            **inputs,
            max_new_tokens=self.new_tokens,
            do_sample=False,
            num_beams=1,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        # Step t's last position is the state that chooses the answer's token t.
        states_NTD = torch.stack([step[-1][:, -1] for step in out.hidden_states], dim=1)
        answers_NT = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(answers_NT, skip_special_tokens=True)
        if self.pooling == "last_prompt":
            return texts, states_NTD[:, 0]
        ends = torch.tensor(np.atleast_1d(self.model.generation_config.eos_token_id or -1), device=answers_NT.device)
        ended_NT = torch.isin(answers_NT, ends)
        said_NT = (ended_NT.cumsum(1) - ended_NT.long()) == 0  # up to the end token, which was chosen too
        if self.pooling == "mean_generated":
            weight_NT1 = said_NT[..., None].to(states_NTD.dtype)
            return texts, (states_NTD * weight_NT1).sum(1) / weight_NT1.sum(1)
        return texts, states_NTD[torch.arange(len(states_NTD)), said_NT.sum(1) - 1]
