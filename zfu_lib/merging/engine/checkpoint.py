"""Checkpoints as folders of safetensors files: checked headers, pieces of tensors as fp32, written back in one cast.

Nothing here unpickles. A file is read with ``pread`` into buffers of the caller, so a tensor never has to fit into
memory. Format: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the tensors without gaps).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zfu_lib.merging import methods
from zfu_lib.merging.engine.errors import (
    ChecksumError,
    DtypeError,
    FormatError,
    InputError,
    MissingTensorError,
    NotFiniteError,
)

INDEX = "model.safetensors.index.json"
SUMS = "SHA256SUMS"
HEADER_LIMIT = 100_000_000  # bytes, as in the format's own reader
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
WHOLE_NUMBERS = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")
# Tables that old checkpoints hold and every model computes for itself; fine-tunes of these checkpoints lack them.
DERIVED = ("rotary_emb.inv_freq",)
TORCH_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# Largest bits without the sign that are finite; for BF16 as output, those of fp32 that round to a finite number.
_FINITE = {"BF16": 0x7F7F, "F16": 0x7BFF, "F32": 0x7F7FFFFF}
_ROUNDS_TO_BF16 = 0x7F7F7FFF
_UNSIGNED_16, _UNSIGNED_32 = np.uint16(0x7FFF), np.uint32(0x7FFFFFFF)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: type, shape, file, first byte, bytes."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, after checking everything the header says against the size of the file.

    Raises:
        FormatError: a pickle or any other format, truncated, not JSON, or tensors that overlap, leave holes or have
            another size than their shape.
    """
    try:
        with open(file, "rb") as stream:
            start = stream.read(8)
            size = os.fstat(stream.fileno()).st_size
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise FormatError(f"{file}: {_kind(start, length, size)}")
            text = stream.read(length)
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror}") from None
    if not text.startswith(b"{"):
        raise FormatError(f"{file}: {_kind(start, length, size)}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: the header is not JSON of its kind: {error}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{file}: __metadata__ is not a mapping of texts")
    entries = {name: _entry(file, name, value, 8 + length) for name, value in header.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if entry.offset != end:
            raise FormatError(f"{file}: tensor {name!r} overlaps another or leaves a hole before it")
        end += entry.bytes
    if end != size:
        raise FormatError(f"{file}: {size} bytes, but the header describes {end}: truncated or not its own header")
    return entries


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """The header of a file that holds ``(name, dtype, shape)`` in this order, padded to 8 bytes."""
    described, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * SIZES[dtype]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class Buffers:
    """Arrays by name, made once: fresh megabytes cost more in page faults than the arithmetic in them."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, dtype: Any, size: int) -> np.ndarray:
        """The array of that name with ``size`` elements; its contents are whatever was left there."""
        array = self._arrays.get(name)
        if array is None or array.size < size or array.dtype != dtype:
            array = self._arrays[name] = np.empty(size, dtype)
        return array[:size]


class Checkpoint:
    """The tensors (but those in ``DERIVED``) and the configuration in a folder; a file is opened when it is read.

    Raises:
        InputError: no such folder or no safetensors in it.
        FormatError: a broken file or index.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder (models are read from folders; download them first)")
        self.entries = {n: entry for n, entry in _entries(self.folder).items() if not n.endswith(DERIVED)}
        self.config = read_json(self.folder / "config.json") if (self.folder / "config.json").is_file() else {}
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({entry.file for entry in self.entries.values()})

    def entry(self, name: str) -> Entry:
        """What the header says about a tensor."""
        if name not in self.entries:
            raise MissingTensorError(f"{self.folder}: no tensor {name!r}")
        return self.entries[name]

    def raw(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill ``out`` (any type) with the stored bytes of the tensor from element ``start``."""
        entry = self.entry(name)
        if not out.size:
            return
        with self._lock:
            if entry.file not in self._open:
                self._open[entry.file] = os.open(entry.file, os.O_RDONLY)
        todo, place = memoryview(out).cast("B"), entry.offset + start * SIZES[entry.dtype]
        while todo:
            try:
                got = os.preadv(self._open[entry.file], [todo], place)
            except OSError as error:
                raise FormatError(f"{entry.file}: {error.strerror} in tensor {name!r}") from None
            if not got:
                raise FormatError(f"{entry.file}: ended inside tensor {name!r} while it was read")
            todo, place = todo[got:], place + got

    def read(self, name: str, start: int, out: np.ndarray, buffers: Buffers) -> None:
        """Fill ``out`` (fp32) with the tensor's elements from ``start``.

        Raises:
            DtypeError: not stored as bf16, fp16 or fp32.
            NotFiniteError: NaN or infinity among them.
        """
        dtype = self.entry(name).dtype
        if dtype not in STORED:
            raise DtypeError(f"{self.folder}: {name!r} is stored as {dtype}; merged are {', '.join(STORED)}")
        stored = out if dtype == "F32" else buffers("stored", STORED[dtype], out.size)
        self.raw(name, start, stored)
        kind, unsigned = (np.uint32, _UNSIGNED_32) if dtype == "F32" else (np.uint16, _UNSIGNED_16)
        magnitude = np.bitwise_and(stored.view(kind), unsigned, out=buffers(f"magnitude {dtype}", kind, out.size))
        if out.size and magnitude.max() > _FINITE[dtype]:
            place = start + int(np.argmax(magnitude > _FINITE[dtype]))
            raise NotFiniteError(f"{self.folder}: {name!r} holds {float(_decoded(stored)[place - start])} at {place}")
        if dtype == "BF16":
            wide = out.view(np.uint32)
            wide[...] = stored
            np.left_shift(wide, 16, out=wide)
        elif dtype == "F16":
            out[...] = stored

    def array(self, name: str) -> np.ndarray:
        """A whole tensor as fp32 in its shape."""
        out = np.empty(self.entry(name).size, np.float32)
        self.read(name, 0, out, Buffers())
        return out.reshape(self.entry(name).shape)

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])


def load(folder: Path | str) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint as fp32, in the order of :func:`zfu_lib.merging.methods.names`."""
    checkpoint = Checkpoint(folder)
    try:
        return {name: checkpoint.array(name) for name in methods.names(checkpoint.entries)}
    finally:
        checkpoint.close()


def encode(values: np.ndarray, dtype: str, buffers: Buffers) -> np.ndarray:
    """fp32 ``values`` as they are stored in ``dtype``, rounded to nearest even; the only cast of a merge.

    Raises:
        NotFiniteError: NaN, infinity, or a number too large for the type.
    """
    bits = values.view(np.uint32)
    work = np.bitwise_and(bits, _UNSIGNED_32, out=buffers("cast", np.uint32, values.size))
    if values.size and work.max() > (_ROUNDS_TO_BF16 if dtype == "BF16" else _FINITE["F32"]):
        raise NotFiniteError(f"the merge is not finite in {dtype}: {values[np.argmax(work)]}")
    if dtype == "F32":
        return values
    stored = buffers("encoded", STORED[dtype], values.size)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            stored[...] = values
        if values.size and np.isinf(stored).any():
            raise NotFiniteError(f"the merge is not finite in F16: {values[np.argmax(np.isinf(stored))]}")
        return stored
    np.right_shift(bits, 16, out=work)
    np.bitwise_and(work, 1, out=work)
    np.add(work, 0x7FFF, out=work)
    np.add(work, bits, out=work)
    np.right_shift(work, 16, out=work)
    stored[...] = work
    return stored


def save(folder: Path | str, tensors: Mapping[str, np.ndarray], dtype: str = "float32") -> Path:
    """Write named arrays as ``model.safetensors`` into ``folder`` in one step; for models that fit into memory.

    Args:
        dtype: bfloat16, float16 or float32.

    Raises:
        NotFiniteError: NaN, infinity or a number too large for the type.
    """
    stored, buffers = TORCH_NAMES[dtype], Buffers()
    target = Path(folder) / "model.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(".model.safetensors.partial")
    with open(partial, "wb") as stream:
        stream.write(header_bytes((name, stored, tensor.shape) for name, tensor in tensors.items()))
        for name, tensor in tensors.items():
            try:
                stream.write(encode(np.ascontiguousarray(tensor, np.float32).ravel(), stored, buffers))
            except NotFiniteError as error:
                raise NotFiniteError(f"{name!r}: {error}") from None
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(target)
    return target


def verify(folder: Path | str, only: Iterable[Path] | None = None) -> int:
    """Compare files with the folder's ``SHA256SUMS`` (as ``sha256sum`` writes it); how many were compared, 0 without.

    Raises:
        ChecksumError: a file is missing from the folder or from the list, or differs from it.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        return 0
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2]
    said = {name.lstrip("*").strip(): checksum for checksum, name in pairs}
    names = list(said) if only is None else [file.name for file in only]
    for name in names:
        if name not in said:
            raise ChecksumError(f"{folder / name}: not in {SUMS}")
        if not (folder / name).is_file():
            raise ChecksumError(f"{folder / name}: in {SUMS} but not there")
        if digest(folder / name) != said[name]:
            raise ChecksumError(f"{folder / name}: changed since {SUMS} was written")
    return len(names)


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: not readable, not JSON, or not an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}: not a JSON object")
    return value


def _entries(folder: Path) -> dict[str, Entry]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise FormatError(f"{folder / INDEX}: no weight_map of tensor names to files")
        files = sorted(set(index.values()))
        for file in files:
            if not re.fullmatch(r"\w[\w.\-]*\.safetensors", file):
                raise FormatError(f"{folder / INDEX}: {file!r} is not the name of a safetensors file in this folder")
    else:
        single = folder / "model.safetensors"
        found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        index, files = None, [file.name for file in found]
        if not files:
            pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            hint = f"; {pickles[0]} is a pickle, which is never read: convert it to safetensors" if pickles else ""
            raise InputError(f"{folder}: no safetensors in it{hint}")
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(folder / file).items():
            if name in entries:
                raise FormatError(f"{folder}: {name!r} is in {entries[name].file.name} and in {file}")
            entries[name] = entry
    for name, file in (index or {}).items():
        if name not in entries or entries[name].file.name != file:
            raise MissingTensorError(f"{folder}: the index says that {name!r} is in {file}, but it is not")
    return entries


def _entry(file: Path, name: str, value: Any, data: int) -> Entry:
    def is_count(x: Any) -> bool:
        return type(x) is int and 0 <= x < 2**63

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{file}: tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise FormatError(f"{file}: tensor {name!r} has the unknown type {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(is_count, shape)):
        raise FormatError(f"{file}: tensor {name!r} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise FormatError(f"{file}: tensor {name!r} has the offsets {offsets!r}")
    if offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        raise FormatError(f"{file}: tensor {name!r} has {offsets[1] - offsets[0]} bytes, not those of its shape")
    return Entry(dtype, tuple(shape), file, data + offsets[0], offsets[1] - offsets[0])


def _kind(start: bytes, length: int, size: int) -> str:
    """Why a file is no safetensors file."""
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return "a pickle, which is never read: convert it to safetensors"
    if start[:4] == b"GGUF":
        return "a GGUF file, not safetensors"
    if size < 8 or 8 + length > size:
        return "truncated, or not a safetensors file (its header would be longer than the file)"
    return "not a safetensors file"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _decoded(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored
