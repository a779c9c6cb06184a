"""The streaming engine equals the methods on whole tensors bit by bit, however tensors are cut and stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zfu_lib.merging import methods
from zfu_lib.merging.engine import checkpoint, plan, recipe, stream

W, P = [0.3, 0.8], [0.35, 0.7]
EACH = tuple({"weight": w, "density": p} for w, p in zip(W, P))
PLAIN = tuple({"weight": w} for w in W)
SCALED = tuple(e | {"scale": s} for e, s in zip(EACH, (0.9, 0.5)))
SPREAD = tuple(e | {"epsilon": 0.1} for e in EACH)
OUTER = tuple(e | {"gamma": 0.05} for e in EACH)


def cases() -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Method, parameters of the models, parameters of the merge; what it must equal."""
    m = methods
    found = {
        "linear": (("linear", PLAIN, {}), lambda b, x: m.linear(x, W)),
        "linear halves": (("linear", ({"weight": 0.5},) * 2, {}), lambda b, x: m.linear(x, [0.5, 0.5])),
        "linear sum": (("linear", PLAIN, {"normalize": False}), lambda b, x: m.linear(x, W, False)),
        "task_arithmetic": (("task_arithmetic", PLAIN, {"lambda": 0.7}), lambda b, x: m.task_arithmetic(b, x, W, 0.7)),
        "model_stock": (("model_stock", ({}, {}), {}), lambda b, x: m.model_stock(b, x)),
        "ties": (("ties", EACH, {}), lambda b, x: m.ties(b, x, W, P)),
        "ties l1": (
            ("ties", EACH, {"rescale": True, "normalize": False}),
            lambda b, x: m.ties(b, x, W, P, 1, False, "l1"),
        ),
        "dare_linear": (("dare_linear", EACH, {}), lambda b, x: m.dare(b, x, W, P, seed=7)),
        "dare_ties l1": (("dare_ties", EACH, {"rescale": "l1"}), lambda b, x: m.dare(b, x, W, P, "sum", 7, "l1")),
        "dare_ties none": (("dare_ties", EACH, {"rescale": False}), lambda b, x: m.dare(b, x, W, P, "sum", 7, "none")),
        "della": (("della", SPREAD, {}), lambda b, x: m.della(b, x, W, P, 0.1, seed=7)),
        "della_linear l1": (
            ("della_linear", SPREAD, {"rescale": "l1"}),
            lambda b, x: m.della(b, x, W, P, 0.1, "none", 7, "l1", normalize=False),
        ),
        "breadcrumbs": (("breadcrumbs", OUTER, {}), lambda b, x: m.breadcrumbs(b, x, W, P, 0.05)),
        "breadcrumbs_ties": (("breadcrumbs_ties", OUTER, {}), lambda b, x: m.breadcrumbs(b, x, W, P, 0.05, "sum")),
    }
    for scope in methods.SCOPES:
        for consensus in ("none", "sum"):
            found[f"hi_merging {scope} {consensus}"] = (
                ("hi_merging", SCALED, {"scope": scope, "consensus": consensus}),
                lambda b, x, s=scope, c=consensus: m.hi_merging(b, x, W, P, [0.9, 0.5], s, c),
            )
    return found


CASES = cases()


def assert_bits(merged: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert merged.keys() == expected.keys()
    for name in merged:
        np.testing.assert_array_equal(merged[name].view(np.uint32), expected[name].view(np.uint32), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_streaming_equals_the_method_bit_by_bit(make_bench: Any, tmp_path: Path, case: str, dtype: str) -> None:
    bench = make_bench(dtype)
    (method, each, parameters), whole = CASES[case]
    text = bench.text(method, each, parameters=parameters, dtype="float32")
    expected = whole(bench.base, [bench.a, bench.b])
    # Cuts at every 1024 elements, one piece, and more threads than pieces of most tensors.
    for threads, piece in ((1, 1), (1, None), (3, 1024)):
        made = plan.make(recipe.parse(text), seed=7)
        work = stream.Stream(made, threads, piece)
        merged = {}
        for job in made.jobs:
            parts = [part.copy() for part in work.tensor(job)]
            merged[job.name] = np.concatenate(parts).reshape(job.shape)
        work.close()
        assert_bits(merged, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_slerp_equals_the_method_bit_by_bit(make_bench: Any, tmp_path: Path, tools: Any, dtype: str) -> None:
    bench = make_bench(dtype)
    text = tools.recipe_text("slerp", bench.places[0], {bench.places[1]: {}}, parameters={"t": 0.3}, dtype="float32")
    for options in ({"piece": 1}, {"threads": 3}):
        merged = checkpoint.load(tools.merge(text, tmp_path / "out", **options))
        assert_bits(merged, methods.slerp(bench.base, bench.a, 0.3))


# The fixtures only build files of names that no two examples share.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    piece=st.integers(1, 5000),
    threads=st.integers(1, 4),
    shard_bytes=st.integers(1, 60_000),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    case=st.sampled_from(["ties", "dare_linear", "della", "hi_merging model sum", "hi_merging layer none"]),
)
def test_no_cut_no_thread_and_no_layout_changes_a_bit(
    make_bench: Any,
    tools: Any,
    tmp_path_factory: Any,
    piece: int,
    threads: int,
    shard_bytes: int,
    dtype: str,
    case: str,
) -> None:
    bench = make_bench(dtype)
    (method, each, parameters), whole = CASES[case]
    text = bench.text(method, each, parameters=parameters)
    out = tmp_path_factory.mktemp("cut") / "out"
    tools.merge(text, out, seed=7, shard_bytes=shard_bytes, piece=piece, threads=threads)
    stored = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    for name, values in whole(bench.base, [bench.a, bench.b]).items():
        entry = checkpoint.Checkpoint(out).entry(name)
        assert entry.dtype == stored
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            expected = checkpoint.encode(values.ravel(), stored, checkpoint.Buffers())
            assert file.read(entry.bytes) == expected.tobytes(), name


def test_the_layout_of_the_inputs_does_not_matter(bench: Any, tools: Any, tmp_path: Path) -> None:
    def split(place: Path, files: int) -> Path:
        tensors, target = checkpoint.load(place), tmp_path / f"{place.name}{files}"
        target.mkdir()
        (target / "config.json").write_text((place / "config.json").read_text())
        names, where = sorted(tensors)[::-1], {}
        for i in range(files):
            checkpoint.save(target / "part", {name: tensors[name] for name in names[i::files]})
            (target / "part" / "model.safetensors").rename(target / f"x{i}.safetensors")
            where |= dict.fromkeys(names[i::files], f"x{i}.safetensors")
        (target / checkpoint.INDEX).write_text(json.dumps({"weight_map": where}))
        return target

    each = dict(zip(("a", "b"), EACH))
    outputs = []
    for files in (1, 2, 5):
        base, *models = [split(place, files) for place in bench.places]
        text = tools.recipe_text("ties", base, {m: each[m.name[0]] for m in models})
        outputs.append((tools.merge(text, tmp_path / f"out{files}") / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


# Exact selection: many equal values, signed zeros, subnormals.

special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0078125, 0.5, -0.5, 1e-40, -1e-40, 1e-45, 3e-5, 6e-8, -6e-8])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(np.float32, st.integers(1, 60), elements=special),
    density=st.floats(0, 1),
    repeat=st.integers(1, 100),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    scope=st.sampled_from(methods.SCOPES),
)
@example(np.zeros(1, np.float32), 0.5, 100, "float32", "model")
def test_counting_keeps_exactly_the_first_k(
    tmp_path: Path, tools: Any, values: np.ndarray, density: float, repeat: int, dtype: str, scope: str
) -> None:
    tensors = {"model.layers.0.w": np.tile(values, repeat), "model.layers.1.w": np.tile(values[::-1], repeat)}
    tools.write_model(tmp_path / "base", {name: np.zeros_like(x) for name, x in tensors.items()}, dtype)
    tools.write_model(tmp_path / "a", tensors, dtype)
    text = tools.recipe_text(
        "hi_merging",
        tmp_path / "base",
        {tmp_path / "a": {"weight": 1, "density": density}},
        parameters={"scope": scope},
        dtype="float32",
    )
    stored, base = checkpoint.load(tmp_path / "a"), checkpoint.load(tmp_path / "base")
    expected = methods.hi_merging(base, [stored], [1.0], [density], [1.0], scope)
    merged = checkpoint.load(tools.merge(text, tmp_path / "out", piece=1024))
    assert_bits(merged, expected)
    groups = methods.groups(stored, scope)
    for group in groups:
        size = sum(stored[name].size for name in group)
        nonzero = sum(np.count_nonzero(stored[name]) for name in group)
        assert sum(np.count_nonzero(merged[name]) for name in group) == min(nonzero, methods.kept(size, density))


def test_many_equal_lower_bits_are_counted_in_portions(monkeypatch: pytest.MonkeyPatch, bench: Any) -> None:
    monkeypatch.setattr(stream, "_LOWS", 10)
    merged = bench.merge("ties", EACH, options={"piece": 1})
    assert_bits(merged, methods.ties(bench.base, [bench.a, bench.b], W, P))


def test_a_cast_rounds_to_nearest_even_as_torch_does() -> None:
    import torch

    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 100_000, dtype=np.uint32)
    halfway = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    for values in (bits.view(np.float32), halfway.view(np.float32)):
        for dtype, limit in (("BF16", 3.3e38), ("F16", 65000), ("F32", 3.4e38)):
            finite = values[np.isfinite(values) & (np.abs(values) < limit)]
            kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
            expected = torch.from_numpy(finite.copy()).to(kind).view(torch.int32 if dtype == "F32" else torch.int16)
            stored = checkpoint.encode(finite, dtype, checkpoint.Buffers())
            np.testing.assert_array_equal(stored.view(expected.numpy().dtype), expected.numpy())
