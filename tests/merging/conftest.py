"""Tiny checkpoints in the layout of a Llama, and merges of them by recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zfu_lib.merging.engine import checkpoint, plan, recipe, run

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def shapes(layers: int = 3) -> dict[str, tuple[int, ...]]:
    """Tensors of a small Llama."""
    block = {f"self_attn.{x}_proj.weight": (32 if x in "qo" else 16, 32) for x in "qkvo"}
    block |= {f"mlp.{x}_proj.weight": (48, 32) for x in ("up", "gate")} | {"mlp.down_proj.weight": (32, 48)}
    block |= {f"{x}_layernorm.weight": (32,) for x in ("input", "post_attention")}
    found = {"model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,), "lm_head.weight": (40, 32)}
    return found | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


def random_model(seed: int, layers: int = 3, spread: float = 1.0) -> dict[str, np.ndarray]:
    """A model near the one of seed 0."""
    generator = np.random.default_rng([seed, layers])
    start = np.random.default_rng([0, layers])
    made = {}
    for name, shape in shapes(layers).items():
        made[name] = start.standard_normal(shape, np.float32)
        made[name] += np.float32(spread * 0.1 * (seed > 0)) * generator.standard_normal(shape, np.float32)
    return made


def write_model(folder: Path, tensors: Mapping[str, np.ndarray], dtype: str = "float32", **config: Any) -> Path:
    """A folder with config and weights."""
    checkpoint.save(folder, tensors, dtype)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def recipe_text(method: str, base: Path | None, models: Mapping[Path, Mapping[str, Any]], **more: Any) -> str:
    """A recipe in the form with models."""
    content: dict[str, Any] = {"merge_method": method, "models": []}
    if base is not None:
        content["base_model"] = str(base)
    for model, parameters in models.items():
        content["models"].append({"model": str(model)} | ({"parameters": dict(parameters)} if parameters else {}))
    return json.dumps(content | more)


def merge(text: str, out: Path, *, seed: int = 0, shard_bytes: int = plan.SHARD, **options: Any) -> Path:
    """Run a recipe."""
    return run.run(plan.make(recipe.parse(text), seed=seed, shard_bytes=shard_bytes), out, **options)


class Bench:
    """A base and two fine-tunes in a folder, and short names for what tests do with them."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.folder, self.out = folder, folder / "out"
        self.places = [write_model(folder / name, random_model(i), dtype) for i, name in enumerate(("base", "a", "b"))]
        self.base, self.a, self.b = (checkpoint.load(place) for place in self.places)

    def text(self, method: str, each: tuple[Mapping[str, Any], ...] = ({}, {}), **more: Any) -> str:
        base = None if method == "linear" else self.places[0]
        return recipe_text(method, base, dict(zip(self.places[1:], each)), **more)

    def merge(self, *arguments: Any, options: Mapping[str, Any] | None = None, **more: Any) -> dict[str, np.ndarray]:
        return checkpoint.load(merge(self.text(*arguments, **more), self.out, **(options or {})))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """Benches of a stored type, made once."""
    made: dict[str, Bench] = {}

    def make(dtype: str) -> Bench:
        if dtype not in made:
            made[dtype] = Bench(tmp_path_factory.mktemp(dtype), dtype)
        return made[dtype]

    return make


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions above, for tests that need more than a bench."""
    import sys

    return sys.modules[__name__]
