"""Token streams from data sets on the hub, for the `paper` profile.

Documents are read as a stream, tokenized, and written to one file of token ids, so that 15 billion tokens fit a
machine with little memory. The file is complete or absent: an interrupted download starts over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.data.text import Corpus
from zfu_lib.report.record import DataUsed, replacing


def hub_corpus(
    dataset: str,
    *,
    tokenizer: str,
    train_tokens: int,
    held_out_tokens: int,
    ood: str,
    ood_options: dict[str, Any] | None = None,
    text_field: str = "text",
    folder: Path | None = None,
    **options: Any,
) -> Corpus:
    """A corpus of token ids: the first documents are held out, the following ones are for training.

    Args:
        dataset: what :func:`datasets.load_dataset` takes, ``options`` and ``ood_options`` being its keywords.
        tokenizer: hub id or folder of a transformers tokenizer; its end-of-text token ends each document.
        train_tokens, held_out_tokens: lengths of the streams; ``ood`` gets ``held_out_tokens`` of its data set.
        folder: where token files are kept; None for the user cache.

    Returns:
        Streams as read-only memory maps of uint32, ``vocabulary`` that of the tokenizer.

    Raises:
        DataError: data set or tokenizer cannot be loaded, or the data set is shorter than asked for.
    """
    from transformers import AutoTokenizer

    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise DataError(
            f"tokenizer {tokenizer} cannot be loaded (hub out of reach, or licence not accepted): {error}"
        ) from None
    folder = folder or catalogue.cache() / "tokens"
    main = _tokens(dataset, options, encode, text_field, held_out_tokens + train_tokens, folder)
    other = _tokens(ood, ood_options or {}, encode, text_field, held_out_tokens, folder)
    used = tuple(
        DataUsed(name=f"{name} as tokens of {tokenizer}", sha256=_sha256(stream), bytes=stream.nbytes)
        for name, stream in ((dataset, main), (ood, other))
    )
    held_out, train = main[:held_out_tokens], main[held_out_tokens:]
    return Corpus(dataset, train, held_out, other, used, vocabulary=len(encode))


def _tokens(dataset: str, options: dict, encode: Any, field: str, count: int, folder: Path) -> np.ndarray:
    key = hashlib.sha256(repr((dataset, sorted(options.items()), encode.name_or_path, field, count)).encode())
    file = folder / f"{key.hexdigest()[:16]}.u32"
    if not file.exists():
        with replacing(file) as new:
            with open(new, "wb") as out:
                parts = _encoded(_documents(dataset, options, field), encode, count)
                written = sum(out.write(part.tobytes()) // 4 for part in parts)
            if written < count:
                raise DataError(f"{dataset} has only {written} tokens, {count} were asked for")
    return np.memmap(file, dtype=np.uint32, mode="r")


def _documents(dataset: str, options: dict, field: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        for row in load_dataset(dataset, streaming=True, **options):
            yield row[field]
    except KeyError:
        raise DataError(f"{dataset} has no field {field!r}") from None
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"{dataset} cannot be read (hub out of reach?): {error}") from None


def _encoded(documents: Iterable[str], encode: Any, count: int) -> Iterator[np.ndarray]:
    """Ids of one document after another, each ended by the end-of-text token, ``count`` in all at most."""
    left = count
    for text in documents:
        ids = [*encode(text, add_special_tokens=False)["input_ids"], encode.eos_token_id][:left]
        yield np.asarray(ids, dtype=np.uint32)
        left -= len(ids)
        if not left:
            return


def _sha256(stream: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(stream), 1 << 22):
        digest.update(stream[start : start + (1 << 22)].tobytes())
    return digest.hexdigest()
