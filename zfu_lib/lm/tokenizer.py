"""Tokenizers for transformers and lm-eval with nothing to download: plain bytes, and bytes with whole words.

Both are lossless: ``decode(encode(text)) == text`` for any text that can be written as UTF-8. The names of the three
special tokens, if they occur in a text, are read as those tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCABULARY = 259


def byte_tokenizer(model_max_length: int = 1_000_000) -> PreTrainedTokenizerFast:
    """Ids 0-255 are the UTF-8 bytes, 256 begins a text, 257 ends it, 258 pads (259 in all)."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _wrapped(core, model_max_length)


def word_tokenizer(words: Sequence[str], model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """The ids of :func:`byte_tokenizer`, then each word twice: as it stands, and with a space before it.

    A text is cut before every space and line break. A piece that is a word of the list, with or without its space,
    becomes one token, any other piece its bytes. Special tokens are added as models are trained: one that begins the
    text. Words added at the end of the list change no id.

    Raises:
        ValueError: a word twice, or one that is cut into pieces.
    """
    if len(set(words)) != len(words):
        raise ValueError(f"words that occur twice: {sorted({word for word in words if words.count(word) > 1})}")
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary |= {special: 256 + i for i, special in enumerate((BOS, EOS, PAD))}
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for word in words:
        if len(pieces := cut.pre_tokenize_str(word)) != 1:
            raise ValueError(f"{word!r} is not one word but {[piece for piece, _ in pieces]}")
        for form in (pieces[0][0], "Ġ" + pieces[0][0]):
            vocabulary.setdefault(form, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = cut
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return _wrapped(core, model_max_length)


def _wrapped(core: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
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
