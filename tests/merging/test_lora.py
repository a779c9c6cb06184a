"""LoRA adapters on the fly: the formula, PEFT's own merge where it is installed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zfu_lib.merging.engine import checkpoint, errors, model

Q = "model.layers.1.self_attn.k_proj"
UP = "model.layers.0.mlp.up_proj"


def adapter(folder: Path, factors: dict[str, np.ndarray], **config: Any) -> Path:
    checkpoint.save(folder, {f"base_model.model.{name}": x for name, x in factors.items()})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 6, "r": 3}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def factors(module: str, out: int, into: int, rank: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rank)
    made = {"A": generator.standard_normal((rank, into)), "B": generator.standard_normal((out, rank))}
    return {f"{module}.lora_{which}.weight": x.astype(np.float32) for which, x in made.items()}


def merged(bench: Any, place: Path, tools: Any, **options: Any) -> dict[str, np.ndarray]:
    """The base with the adapter, through a merge of one."""
    text = tools.recipe_text("linear", None, {f"{bench.places[0]}+{place}": {"weight": 1}})
    return checkpoint.load(tools.merge(text, bench.out, **options))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / np.sqrt(3)),
        ({"alpha_pattern": {"k_proj": 9}}, 3.0),
        ({"alpha_pattern": {"layers.1.self_attn.k_proj": 12}}, 4.0),
        ({"alpha_pattern": {"v_proj": 9}}, 2.0),
    ],
)
def test_the_update_is_scale_times_b_a(bench: Any, tools: Any, tmp_path: Path, config: dict, scale: float) -> None:
    parts = factors(Q, 16, 32)
    found = merged(bench, adapter(tmp_path / "lora", parts, **config), tools)
    update = scale * parts[f"{Q}.lora_B.weight"].astype(float) @ parts[f"{Q}.lora_A.weight"]
    np.testing.assert_allclose(found[f"{Q}.weight"], bench.base[f"{Q}.weight"] + update, rtol=1e-5, atol=1e-5)
    for name, tensor in bench.base.items():
        assert name == f"{Q}.weight" or np.array_equal(found[name], tensor)


def test_the_cut_does_not_matter(bench: Any, tools: Any, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", factors(UP, 48, 32))
    whole = merged(bench, place, tools)[f"{UP}.weight"]
    for options in ({"piece": 1}, {"piece": 1, "threads": 3}):
        np.testing.assert_array_equal(merged(bench, place, tools, **options)[f"{UP}.weight"], whole)


def test_transposed_layers_and_embeddings(bench: Any, tools: Any, tmp_path: Path) -> None:
    """A layer stored as (in, out) is told by fan_in_fan_out; an embedding always has A over its rows."""
    parts = factors(UP, 32, 48)
    found = merged(bench, adapter(tmp_path / "fan", parts, fan_in_fan_out=True), tools)
    update = 2 * (parts[f"{UP}.lora_B.weight"] @ parts[f"{UP}.lora_A.weight"]).T
    np.testing.assert_allclose(found[f"{UP}.weight"], bench.base[f"{UP}.weight"] + update, rtol=1e-5, atol=1e-5)
    table = "model.embed_tokens"
    a, b = (x for x in factors(table, 32, 40).values())
    place = adapter(tmp_path / "table", {f"{table}.lora_embedding_A": a, f"{table}.lora_embedding_B": b})
    found = merged(bench, place, tools)
    np.testing.assert_allclose(
        found[f"{table}.weight"], bench.base[f"{table}.weight"] + 2 * (b @ a).T, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("parts", "config", "words"),
    [
        (factors(Q, 16, 32), {"use_dora": True}, "DoRA"),
        (factors(Q, 16, 32), {"peft_type": "IA3"}, "of type IA3"),
        (factors(Q, 16, 31), {}, "do not give"),
        (factors(Q, 16, 32), {"fan_in_fan_out": True}, "do not give"),
        (factors("model.other", 16, 32), {}, r"changes 'model.other.weight', which"),
        ({f"{Q}.lora_A.weight": np.ones((3, 32))}, {}, "only one of its factors"),
        (factors(Q, 16, 32) | {"lm_head.weight": np.ones((40, 32))}, {}, "'base_model.model.lm_head.weight' is no"),
        (factors(Q, 16, 32) | {f"{Q}.lora_B.bias": np.ones(16)}, {}, "lora_B.bias' is no factor"),
    ],
)
def test_what_cannot_be_added_is_refused(bench: Any, tmp_path: Path, parts: dict, config: dict, words: str) -> None:
    place = adapter(tmp_path / "lora", parts, **config)
    with pytest.raises(errors.AdapterError, match=words):
        model.Model(f"{bench.places[0]}+{place}")


def test_a_folder_with_a_plus_in_its_name_is_a_folder(bench: Any, tmp_path: Path) -> None:
    place = bench.places[0].rename(tmp_path / "a+b")
    assert model.Model(str(place)).adapter is None
    with pytest.raises(errors.InputError, match="no adapter_config.json"):
        model.Model(f"{place}+{tmp_path}")


def test_peft_merges_to_the_same(bench: Any, tools: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import torch
    from transformers import AutoModelForCausalLM

    for name, options in {
        "plain": {"target_modules": ["q_proj", "down_proj"]},
        "rslora": {"target_modules": ["k_proj"], "use_rslora": True},
        "patterns": {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"q_proj": 3},
        },
        "embedding": {"target_modules": ["embed_tokens", "lm_head"]},
    }.items():
        loaded = AutoModelForCausalLM.from_pretrained(bench.places[0], dtype=torch.float32)
        wrapped = peft.get_peft_model(loaded, peft.LoraConfig(r=4, lora_alpha=10, init_lora_weights=False, **options))
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
        ours = merged(bench, tmp_path / name, tools)
        theirs = wrapped.merge_and_unload().state_dict()
        changed = 0
        for tensor, values in ours.items():
            np.testing.assert_allclose(values, theirs[tensor].numpy(), rtol=1e-5, atol=1e-6, err_msg=tensor)
            changed += not np.array_equal(values, bench.base[tensor])
        assert changed >= 2
