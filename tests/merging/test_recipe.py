"""What recipes may say, how their values reach tensors, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.merging.engine import checkpoint, errors, plan, recipe

TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters:
      weight: 0.5
      density:
        - filter: self_attn
          value: [0.2, 0.4]
        - filter: mlp
          value: 0.3
        - value: 0.9
  - model: b
    parameters: {weight: [1, 0, 3], density: 1e-1}
parameters: {normalize: false, int8_mask: true}
dtype: bfloat16
out_dtype: float32
tokenizer_source: base
"""


def test_values_come_from_filters_gradients_and_the_nearest_scope() -> None:
    read = recipe.parse(TIES)
    part = read.slices[0]
    base, a, b = part.sources
    assert read.models == ["base", "a", "b"]
    assert read.dtype == "float32"
    at = {t: read.each(part, a, "model.layers.0.self_attn.q", t)["density"] for t in (0, 0.5, 1)}
    assert at == {0: 0.2, 0.5: pytest.approx(0.3), 1: 0.4}
    assert read.each(part, a, "model.layers.0.mlp.up", 0.5) == {"weight": 0.5, "density": 0.3}
    assert read.each(part, a, "lm_head", 0.5)["density"] == 0.9
    assert [read.each(part, b, "x", t)["weight"] for t in (0, 0.25, 0.5, 1)] == [1, 0.5, 0, 3]
    assert read.each(part, b, "x", 0)["density"] == 0.1
    shared = read.shared(part, "x", 0)
    assert shared == {"normalize": False, "lambda": 1.0, "rescale": False, "int8_mask": True}


def test_a_condition_that_does_not_apply_leaves_the_value_to_the_next_scope() -> None:
    model = {"model": "a", "parameters": {"weight": {"filter": "mlp", "value": 0.1}}}
    content = {"merge_method": "linear", "models": [model], "parameters": {"weight": 0.7}}
    read = recipe.parse(json.dumps(content))
    source = read.slices[0].sources[0]
    values = [read.each(read.slices[0], source, name, 0)["weight"] for name in ("mlp.up", "norm")]
    assert values == [0.1, 0.7]
    del content["parameters"]
    read = recipe.parse(json.dumps(content))
    with pytest.raises(errors.RecipeError, match="parameter weight of a is missing for tensor 'norm'"):
        read.each(read.slices[0], source, "norm", 0)


def edited(**changes: Any) -> str:
    content = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    return json.dumps({key: value for key, value in (content | changes).items() if value is not ...})


SOURCES = [{"model": "a", "layer_range": [0, 2]}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
        ("", "not a mapping"),
        (edited(merge_method="karcher"), "'karcher' is not supported; there are: linear, slerp"),
        (edited(modules={}), "key 'modules' in the recipe is not supported; there are: merge_method"),
        (edited(chat_template="auto"), "key 'chat_template'"),
        (edited(models=[{"model": "a", "weight": 1}]), "key 'weight' in a model"),
        (edited(models=[{"model": "a", "parameters": {"density": 1}}]), "key 'density' in the parameters of linear"),
        (edited(models=[{"model": {"path": "a"}}]), "is not a folder"),
        (edited(models=[]), "models is not a list of at least one"),
        (edited(models=...), "either models or slices"),
        (edited(slices=[{"sources": SOURCES}]), "either models or slices"),
        (edited(models=..., slices=[{"sources": SOURCES, "base_model": "a"}]), "key 'base_model' in a slice"),
        (edited(models=..., slices=[{"sources": [{"model": "a"}]}]), "layer_range None"),
        (edited(models=..., slices=[{"sources": [{"model": "a", "layer_range": [2, 2]}]}]), "is empty"),
        (
            edited(models=..., slices=[{"sources": [*SOURCES, {"model": "b", "layer_range": [0, 1]}]}]),
            "different lengths",
        ),
        (edited(models=[{"model": "a"}, {"model": "a"}]), "a is given twice"),
        (edited(dtype="int8"), "dtype 'int8' is not supported; there are: bfloat16"),
        (edited(merge_method="ties"), "ties needs base_model"),
        (edited(merge_method="ties", base_model="a"), "at least 1 models besides the base, not 0"),
        (edited(merge_method="model_stock", base_model="b", models=[{"model": "a"}]), "at least 2"),
        (
            edited(merge_method="ties", base_model="b", models=..., slices=[{"sources": SOURCES}]),
            "has to list its base_model b",
        ),
        (edited(parameters={"weight": "much"}), "parameter weight: 'much' is not a finite number"),
        (edited(parameters={"weight": True}), "not a finite number"),
        (edited(parameters={"weight": float("nan")}), "not a finite number"),
        (edited(parameters={"weight": []}), "a list holds either values or conditions"),
        (edited(parameters={"weight": [1, {"value": 2}]}), "a list holds either values or conditions"),
        (edited(parameters={"weight": [{"filter": "mlp"}]}), "a condition has a value"),
        (edited(parameters={"weight": [{"filter": 3, "value": 1}]}), "a condition has a value"),
        (edited(parameters={"weight": [{"if": "mlp", "value": 1}]}), "key 'if'"),
        (edited(parameters={"normalize": 1}), "not true or false"),
        (edited(parameters=[1]), "not a mapping"),
    ],
)
def test_what_is_not_supported_is_named(text: str, words: str) -> None:
    with pytest.raises(errors.RecipeError, match=words.replace("[", r"\[")):
        recipe.parse(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(st.sampled_from([*recipe.TOP, *recipe.SOURCE, *recipe.CONDITION, "weight"]), x), max_leaves=20))  # fmt: skip  # noqa: E501
def test_any_other_content_is_a_recipe_error(content: Any) -> None:
    with pytest.raises(errors.RecipeError):
        recipe.parse(json.dumps(content))


# Models that do not go together. Nothing may be written.


@pytest.fixture
def refused(bench: Any, tmp_path: Path) -> Any:
    def refuse(kind: type[Exception], words: str, text: str | None = None, **more: Any) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(kind, match=words):
            plan.make(recipe.parse(text or bench.text("ties", ({"weight": 1}, {"weight": 1}), **more)))
        assert sorted(tmp_path.rglob("*")) == before

    return refuse


def change(place: Path, **tensors: np.ndarray | None) -> None:
    held = checkpoint.load(place) | {name.replace("__", "."): x for name, x in tensors.items()}
    checkpoint.save(place, {name: x for name, x in held.items() if x is not None})


def test_a_missing_tensor_is_named_with_both_models(bench: Any, refused: Any) -> None:
    change(bench.places[1], model__norm__weight=None)
    refused(errors.MissingTensorError, r"a: no tensor 'model.norm.weight', which")
    change(bench.places[1], model__norm__weight=np.ones(32), more=np.ones(1))
    refused(errors.MissingTensorError, r"no tensor 'more'")


def test_tables_that_models_compute_for_themselves_may_be_missing(bench: Any, tools: Any) -> None:
    change(bench.places[0], model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(4))
    merged = checkpoint.load(tools.merge(bench.text("ties", ({"weight": 1}, {"weight": 1})), bench.out))
    assert merged.keys() == bench.a.keys()


def test_another_shape_is_named(bench: Any, refused: Any) -> None:
    change(bench.places[2], model__norm__weight=np.ones(31))
    refused(errors.ShapeError, r"'model.norm.weight' has shape \[32\] in .*base and \[31\] in .*b")
    change(bench.places[2], model__norm__weight=np.ones(32), lm_head__weight=np.ones((41, 32)))
    refused(errors.TokenizerError, r"'lm_head.weight' has shape .* vocabularies of different size")


def test_other_types_are_named(bench: Any, refused: Any) -> None:
    import safetensors.numpy

    held = checkpoint.load(bench.places[1])
    for wrong in (np.int64, np.float64):
        changed = held | {"model.norm.weight": np.ones(32, wrong)}
        safetensors.numpy.save_file(changed, bench.places[1] / "model.safetensors")
        refused(errors.DtypeError, r"'model.norm.weight' cannot be merged: F32 in .*base, [IF]64 in .*a")


def test_another_architecture_is_explained(bench: Any, refused: Any, tools: Any) -> None:
    config = bench.places[1] / "config.json"
    config.write_text(json.dumps(tools.CONFIG | {"num_attention_heads": 8}))
    refused(errors.ArchitectureError, "num_attention_heads is 4 in .*base and 8 in .*a")
    config.write_text(json.dumps(tools.CONFIG | {"vocab_size": 48}))
    refused(errors.TokenizerError, "vocab_size is 40 in .* and 48 in")
    config.write_text("{")
    refused(errors.FormatError, "config.json")
    config.write_text(json.dumps(tools.CONFIG | {"rope_theta": 5.0}))
    made = plan.make(recipe.parse(bench.text("ties", ({"weight": 1}, {"weight": 1}))))
    assert any("rope_theta differs between base and a" in remark for remark in made.remarks)


def tokenizer(place: Path, vocabulary: dict[str, int], added: dict[str, int] | None = None) -> None:
    listed = [{"content": token, "id": i} for token, i in (added or {}).items()]
    content = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": listed}
    (place / "tokenizer.json").write_text(json.dumps(content))


def test_tokenizers_that_differ_are_explained(bench: Any, refused: Any) -> None:
    for place in bench.places:
        tokenizer(place, {"x": 0, "y": 1}, {"<s>": 2})
    weights = ({"weight": 1}, {"weight": 1})
    assert not plan.make(recipe.parse(bench.text("ties", weights))).remarks
    tokenizer(bench.places[2], {"x": 1, "y": 0}, {"<s>": 2})
    refused(errors.TokenizerError, "2 tokens have another row: 'x' is 0 in .*base and 1 in .*b")
    refused(errors.TokenizerError, "2 tokens have another row", tokenizer_source="base")
    tokenizer(bench.places[2], {"x": 0, "y": 1}, {"<s>": 2, "<pad>": 3})
    refused(errors.TokenizerError, "1 tokens are in only one .* name the tokenizer to keep")
    made = plan.make(recipe.parse(bench.text("ties", weights, tokenizer_source=str(bench.places[2]))))
    assert made.donor.folder == bench.places[2]
    assert "1 tokens of b differ" in made.remarks[0]
    refused(errors.RecipeError, "tokenizer_source 'other' is neither", tokenizer_source="other")
    (bench.places[2] / "tokenizer.json").unlink()
    assert "b has no tokenizer.json" in plan.make(recipe.parse(bench.text("ties", weights))).remarks[0]


def test_no_such_model_and_a_hub_name_say_what_to_do(bench: Any, refused: Any) -> None:
    content = json.loads(bench.text("ties", ({"weight": 1}, {"weight": 1})))
    content["models"][0]["model"] = "someone/some-model"
    refused(errors.InputError, "no such folder .*download", json.dumps(content))


def test_a_damaged_file_is_found_by_its_manifest(bench: Any, refused: Any) -> None:
    file = bench.places[1] / "model.safetensors"
    (bench.places[1] / checkpoint.SUMS).write_text(f"{checkpoint.digest(file)} *{file.name}\n")
    assert plan.make(recipe.parse(bench.text("ties", ({"weight": 1}, {"weight": 1})))).verified == 1
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(errors.ChecksumError, "model.safetensors: changed since SHA256SUMS")


def test_one_threshold_needs_one_density(bench: Any, refused: Any) -> None:
    each = tuple({"weight": 1, "density": [{"filter": "mlp", "value": 0.5}, {"value": 0.6}]} for _ in "ab")
    refused(errors.RecipeError, "different densities", bench.text("hi_merging", each, parameters={"scope": "layer"}))
    plan.make(recipe.parse(bench.text("hi_merging", each)))
    parts = [[(bench.places[0], i, i + 1), (bench.places[1 + i], i, i + 1)] for i in (0, 1)]
    mixed = {"merge_method": "hi_merging", "base_model": str(bench.places[0])}
    refused(errors.RecipeError, "different models", slices(*parts, **mixed, parameters={"scope": "model", "weight": 1}))
    plan.make(recipe.parse(slices(*parts, **mixed, parameters={"scope": "tensor", "weight": 1})))


def test_chances_outside_their_range_are_refused(bench: Any, refused: Any) -> None:
    each = tuple({"weight": 1, "density": 0.9, "epsilon": 0.2} for _ in "ab")
    refused(errors.RecipeError, r"density 0.9 \+- epsilon 0.2", bench.text("della", each))


# Slices.


def slices(*parts: list[tuple[Path, int, int]], **more: Any) -> str:
    listed = [{"sources": [{"model": str(p), "layer_range": [i, j]} for p, i, j in part]} for part in parts]
    return json.dumps({"merge_method": "passthrough", "slices": listed} | more)


def test_slices_take_blocks_in_order_and_the_ends_from_the_ends(bench: Any, tools: Any, tmp_path: Path) -> None:
    (bench.places[1] / "config.json").write_text(json.dumps(tools.CONFIG | {"layer_types": ["x", "y", "z"]}))
    text = slices([(bench.places[1], 1, 3)], [(bench.places[2], 0, 2)])
    out = tools.merge(text, tmp_path / "out")
    merged = checkpoint.load(out)
    for i, (model, j) in enumerate([(bench.a, 1), (bench.a, 2), (bench.b, 0), (bench.b, 1)]):
        name = "mlp.up_proj.weight"
        np.testing.assert_array_equal(merged[f"model.layers.{i}.{name}"], model[f"model.layers.{j}.{name}"])
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], bench.a["model.embed_tokens.weight"])
    np.testing.assert_array_equal(merged["lm_head.weight"], bench.b["lm_head.weight"])
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["y", "z", "x", "y"]


def test_a_block_that_is_not_there_is_named(bench: Any, refused: Any) -> None:
    refused(errors.RecipeError, "a has no block 3", slices([(bench.places[1], 2, 4)]))
