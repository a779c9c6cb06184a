"""Reading safetensors: what is refused, that nothing is unpickled, and that a broken header never gets through."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zfu_lib.merging.engine import checkpoint, errors

FIXTURE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TENSORS = {"model.w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def written(folder: Path, dtype: str = "float32") -> Path:
    return checkpoint.save(folder, TENSORS, dtype)


def with_header(folder: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_formats_own_reader_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    import safetensors.torch

    found = safetensors.torch.load_file(written(tmp_path, dtype))
    for name, tensor in TENSORS.items():
        assert str(found[name].dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(found[name].float().numpy(), tensor)


def test_what_the_formats_own_writer_wrote_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(TENSORS | {"empty": np.ones((0, 3), np.float32)}, tmp_path / "model.safetensors")
    found = checkpoint.load(tmp_path)
    assert found["empty"].shape == (0, 3)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_flipped_bit_in_the_header_is_refused_or_harmless(tmp_path: Path, dtype: str) -> None:
    file = written(tmp_path, dtype)
    whole = file.read_bytes()
    flips, refused = 8 * (8 + struct.unpack("<Q", whole[:8])[0]), 0
    for bit in range(flips):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            found = checkpoint.load(tmp_path)
        except errors.InputError:
            refused += 1
            continue
        # Only a name can differ: a merge then misses the tensor. Values and shapes are what they were.
        assert sorted(x.tobytes() for x in found.values()) == sorted(x.tobytes() for x in TENSORS.values())
        assert len(set(found) & set(TENSORS)) >= len(TENSORS) - 1
    assert refused > 0.8 * flips


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F4", "", 3]),
        "shape": st.lists(st.integers(-2, 2**40) | st.booleans(), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-8, 80), max_size=3) | json_values,
    }
)
headers = (
    st.binary(max_size=200) | json_values | st.dictionaries(st.text(max_size=8), entries | json_values, max_size=3)
)


@FIXTURE
@given(header=headers, payload=st.binary(max_size=64), length=st.none() | st.integers(0, 2**64 - 1))
def test_whatever_the_header_the_answer_is_tensors_or_a_format_error(
    tmp_path: Path, header: Any, payload: bytes, length: int | None
) -> None:
    file = with_header(tmp_path, header, payload)
    if length is not None:
        file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    try:
        found = checkpoint.read_header(file)
    except errors.FormatError:
        return
    assert sum(entry.bytes for entry in found.values()) <= file.stat().st_size - 8
    assert all(entry.offset + entry.bytes <= file.stat().st_size for entry in found.values())


@FIXTURE
@given(content=st.binary(max_size=300))
def test_random_bytes_are_no_tensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(errors.FormatError):
        checkpoint.read_header(tmp_path / "model.safetensors")


def tensor(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": tensor(), "b": tensor()}, "overlaps"),
        ({"a": tensor(), "b": tensor(12, 20)}, "hole"),
        ({"a": tensor(0, 4)}, "not those of its shape"),
        ({"a": tensor(dtype="F5")}, "unknown type 'F5'"),
        ({"a": tensor(shape=[2, -1])}, "shape"),
        ({"a": tensor(shape=[2.0])}, "shape"),
        ({"a": tensor(shape=[True, 2])}, "shape"),
        ({"a": {"dtype": "F32"}}, "not described"),
        ({"a": tensor(), "__metadata__": {"format": 1}}, "__metadata__"),
        (b'{"a":{},"a":{}}', "twice"),
        (b'{"a": NaN', "not JSON"),
        (b"{" + b'"a":[' * 100_000, "not JSON"),
        (b"[1]", "not a safetensors file"),
    ],
)
def test_headers_that_lie_are_refused_by_name(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(errors.FormatError, match=words):
        checkpoint.read_header(with_header(tmp_path, header, b"\0" * 20))


def test_a_truncated_file_and_one_with_more_are_refused(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    for content in (whole[:-1], whole[:-20], whole[:40], whole[:5], b"", whole + b"\0"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(errors.FormatError, match="truncated|not a safetensors"):
            checkpoint.load(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    contents = [pickle.dumps(Bomb(), protocol) for protocol in (2, 3, 4, 5)] + [archive.getvalue()]
    for content in contents:
        for name in ("model.safetensors", "other.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(errors.FormatError, match="pickle, which is never read"):
                checkpoint.load(tmp_path)
            (tmp_path / name).unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(contents[0])
    with pytest.raises(errors.InputError, match=r"pytorch_model.bin is a pickle"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(contents[0])
    assert (tmp_path / "exploded").exists(), "the bomb works"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, "bfloat16"])
def test_nan_and_infinity_are_refused_with_name_and_place(tmp_path: Path, bad: float, kind: Any) -> None:
    import safetensors.torch
    import torch

    values = torch.ones(3000)
    values[2500] = bad
    dtype = {np.float32: torch.float32, np.float16: torch.float16}.get(kind, torch.bfloat16)
    safetensors.torch.save_file({"model.w": values.to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(errors.NotFiniteError, match=rf"'model.w' holds {bad} at 2500"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_largest_numbers_pass_and_larger_ones_do_not(tmp_path: Path, dtype: str) -> None:
    import torch

    largest = torch.finfo(getattr(torch, dtype)).max
    checkpoint.save(tmp_path, {"w": np.array([largest, -largest])}, dtype)
    assert checkpoint.load(tmp_path)["w"].tolist() == [largest, -largest]
    above = {"float32": np.inf, "float16": 66_000, "bfloat16": 3.4e38}[dtype]
    with pytest.raises(errors.NotFiniteError, match="'w': the merge is not finite"):
        checkpoint.save(tmp_path, {"w": np.array([1, above])}, dtype)
    assert checkpoint.load(tmp_path)["w"].tolist() == [largest, -largest], "the file there is untouched"


def test_types_without_arithmetic_are_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(errors.DtypeError, match="'w' is stored as F64"):
        checkpoint.load(tmp_path)


def test_an_index_has_to_be_right(tmp_path: Path) -> None:
    written(tmp_path)

    def index(where: Any) -> None:
        (tmp_path / checkpoint.INDEX).write_text(json.dumps({"weight_map": where}))

    index(dict.fromkeys(TENSORS, "model.safetensors"))
    assert len(checkpoint.load(tmp_path)) == 2
    index(dict.fromkeys([*TENSORS, "more"], "model.safetensors"))
    with pytest.raises(errors.MissingTensorError, match="'more' is in model.safetensors, but it is not"):
        checkpoint.load(tmp_path)
    for outside in ("../model.safetensors", "/model.safetensors", "model.bin", ""):
        index({"b": outside})
        with pytest.raises(errors.FormatError, match="not the name of a safetensors file"):
            checkpoint.load(tmp_path)
    index([])
    with pytest.raises(errors.FormatError, match="weight_map"):
        checkpoint.load(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        written(tmp_path).rename(tmp_path / f"{name}.safetensors")
    with pytest.raises(errors.FormatError, match=r"is in x.safetensors and in y.safetensors"):
        checkpoint.load(tmp_path)


def test_the_manifest_finds_every_flipped_bit(tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / checkpoint.SUMS).write_text(f"{checkpoint.digest(file)}  {file.name}\n")
    assert checkpoint.verify(tmp_path) == 1
    whole = file.read_bytes()
    for bit in range(8 * (len(whole) - 40), 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(errors.ChecksumError, match="changed since"):
            checkpoint.verify(tmp_path)
    file.unlink()
    with pytest.raises(errors.ChecksumError, match="not there"):
        checkpoint.verify(tmp_path)
    with pytest.raises(errors.ChecksumError, match="not in SHA256SUMS"):
        checkpoint.verify(tmp_path, [tmp_path / "other.safetensors"])
