"""A byte-level tokenizer for transformers and lm-eval: a token's id is its byte, no merges, nothing to download."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCABULARY = 259


def byte_tokenizer(model_max_length: int = 1_000_000) -> PreTrainedTokenizerFast:
    """Ids 0-255 are the UTF-8 bytes, 256 begins a text, 257 ends it, 258 pads (259 in all).

    Nothing is added, stripped or normalised: ``decode(encode(text)) == text`` for any text that can be written as
    UTF-8. The names of the three special tokens, if they occur in a text, are read as those tokens.
    """
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table), in the order of the bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
