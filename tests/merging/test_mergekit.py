"""Equality with mergekit 0.1.5 where the definitions coincide.

``mergekit.safetensors`` holds what mergekit made of the recipes below on the models below, fp32. Written, and compared
with a live mergekit by the last test, with the Python of an environment that has it:

    python tests/merging/test_mergekit.py PYTHON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zfu_lib.merging import methods
from zfu_lib.merging.engine import checkpoint, plan, recipe, run

FIXTURE = Path(__file__).with_name("mergekit.safetensors")
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = SHAPE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3}
CONFIG |= {"vocab_size": 20, "torch_dtype": "float32"}
# Runs in mergekit's environment: every recipe of a folder.
PEER = """
import pathlib, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=0)
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.yml")):
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(file.read_text())), str(file.with_suffix("")), options)
"""


def models() -> dict[str, dict[str, np.ndarray]]:
    """A base and three fine-tunes of it, from numpy's frozen generator."""
    block = {f"self_attn.{x}_proj.weight": (16 if x in "qo" else 8, 16) for x in "qkvo"}
    block |= {"mlp.up_proj.weight": (24, 16), "mlp.gate_proj.weight": (24, 16), "mlp.down_proj.weight": (16, 24)}
    block |= {"input_layernorm.weight": (16,), "post_attention_layernorm.weight": (16,)}
    shapes = {"model.embed_tokens.weight": (20, 16), "model.norm.weight": (16,), "lm_head.weight": (20, 16)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(3) for name, shape in block.items()}
    made: dict[str, dict[str, np.ndarray]] = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        draw, base = np.random.RandomState(seed), made.get("base")
        noise = {tensor: draw.standard_normal(shape).astype(np.float32) for tensor, shape in shapes.items()}
        made[name] = {n: base[n] + np.float32(0.1) * x for n, x in noise.items()} if base else noise
    return made


def of(method: str, *each: Mapping[str, Any], base: bool = True, **parameters: Any) -> dict[str, Any]:
    """A recipe over the first models, one per mapping."""
    listed = [{"model": name, "parameters": dict(given)} for name, given in zip("abc", each)]
    content = {"merge_method": method, "models": listed, "parameters": parameters, "dtype": "float32"}
    return content | ({"base_model": "base"} if base else {})


W = ({"weight": 0.3}, {"weight": 0.8}, {"weight": 1.1})
E = ({"weight": 0.3, "density": 0.35}, {"weight": 0.8, "density": 0.7}, {"weight": 1.1, "density": 0.5})
G = tuple(e | {"gamma": 0.05} for e in E)
ALL = ({"weight": 0.3, "density": 1}, {"weight": 0.8, "density": 1})
BY_NAME = {
    "weight": [{"filter": "self_attn", "value": [0.2, 1, 0.4]}, {"filter": "mlp", "value": 0.7}, {"value": 0.9}],
    "density": [0.2, 0.8],
}


def stack(method: str, *parts: tuple[tuple[str, int, int, Mapping[str, Any]], ...], **more: Any) -> dict[str, Any]:
    """A recipe by slices."""
    slices = [
        {"sources": [{"model": m, "layer_range": [i, j], "parameters": dict(p)} for m, i, j, p in part]}
        for part in parts
    ]
    return {"merge_method": method, "slices": slices, "dtype": "float32"} | more


# Recipes for which mergekit's definitions and ours are the same.
EXACT = {
    "linear": of("linear", *W[:2], base=False),
    "linear_three": of("linear", *W, base=False),
    "linear_sum": of("linear", *W[:2], base=False, normalize=False),
    "task_arithmetic": of("task_arithmetic", *W, **{"lambda": 0.7}),
    "task_arithmetic_mean": of("task_arithmetic", *W[:2], normalize=True),
    "ties": of("ties", *E[:2]),
    "ties_three": of("ties", *E, int8_mask=True, **{"lambda": 1.3}),
    "ties_sum": of("ties", *E, normalize=False),
    "ties_by_name": of("ties", BY_NAME, E[1], int8_mask=True),
    "breadcrumbs": of("breadcrumbs", *G[:2]),
    "breadcrumbs_ties": of("breadcrumbs_ties", *G),
    "dare_ties_all": of("dare_ties", *ALL),
    "della_all": of("della", *ALL),
    "slices": stack(
        "task_arithmetic",
        (("base", 0, 2, {}), ("a", 1, 3, {"weight": [0.5, 1]})),
        (("base", 2, 3, {}), ("b", 0, 1, {"weight": 0.5})),
        base_model="base",
    ),
    "passthrough": stack(
        "passthrough",
        (("a", 0, 2, {}),),
        (("b", 1, 3, {"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1}]}),),
    ),
}
# Norms and angles are summed in another order there: equal but for the last bits.
CLOSE = {
    "slerp": of("slerp", {}, t=[{"filter": "self_attn", "value": [0, 0.5, 0.3]}, {"value": 0.4}]),
    "model_stock": of("model_stock", {}, {}, {}),
    "ties_l1": of("ties", *E[:2], rescale=True),
}
# Stage 1 of Hi-Merging with s = 1/2, and TIES as the released pipeline calls it: weights times s, not normalised.
HI = of("hi_merging", *(e | {"scale": 0.5} for e in E[:2]), consensus="sum")
RELEASED = of("ties", *({"weight": e["weight"] / 2, "density": e["density"]} for e in E[:2]), normalize=False)
BF16 = of("ties", E[0], normalize=False)


def place(content: Any, folder: Path) -> Any:
    """A recipe with the models' folders in place of their names."""
    if isinstance(content, dict):
        places = {k: str(folder / v) for k, v in content.items() if k in ("model", "base_model")}
        return {key: places.get(key, place(value, folder)) for key, value in content.items()}
    return [place(value, folder) for value in content] if isinstance(content, list) else content


def write(folder: Path, recipes: Mapping[str, Any], dtype: str = "float32") -> None:
    for name, tensors in models().items():
        checkpoint.save(folder / name, tensors, dtype)
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
    for name, content in recipes.items():
        (folder / f"{name}.yml").write_text(json.dumps(place(content, folder)))


def theirs(python: str, folder: Path, recipes: Mapping[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """What mergekit makes of recipes, as ``recipe/tensor``."""
    write(folder, recipes, dtype)
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-c", PEER, str(folder)], check=True, env=quiet, capture_output=True)
    return {f"{name}/{tensor}": x for name in recipes for tensor, x in checkpoint.load(folder / name).items()}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("mergekit")
    write(folder, EXACT | CLOSE | {"hi_merging": HI})

    def merged(name: str) -> dict[str, np.ndarray]:
        made = plan.make(recipe.read(folder / f"{name}.yml"))
        return checkpoint.load(run.run(made, folder / "out" / name, piece=1))

    return merged


@pytest.fixture(scope="module")
def peer() -> dict[str, dict[str, np.ndarray]]:
    import safetensors.numpy

    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in safetensors.numpy.load_file(FIXTURE).items():
        case, _, rest = name.partition("/")
        found.setdefault(case, {})[rest] = tensor
    return found


@pytest.mark.parametrize("case", EXACT)
def test_equal_in_every_number(mine: Any, peer: Any, case: str) -> None:
    found = mine(case)
    assert found.keys() == peer[case].keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, peer[case][name], err_msg=name)


@pytest.mark.parametrize("case", CLOSE)
def test_equal_but_for_the_order_of_sums(mine: Any, peer: Any, case: str) -> None:
    """Sums of at most 400 products in fp32 there and in fp64 here: their relative error stays under 400 * 2**-24."""
    found = mine(case)
    assert found.keys() == peer[case].keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, peer[case][name], rtol=3e-5, atol=3e-6, err_msg=name)


def test_hi_merging_with_election_is_the_released_pipelines_ties(mine: Any, peer: Any) -> None:
    """With s a power of two: any other s is rounded once here and once more in the product w * s there."""
    for name, tensor in mine("hi_merging").items():
        np.testing.assert_array_equal(tensor, peer["released"][name], err_msg=name)


def test_where_magnitudes_are_equal_only_the_choice_among_them_differs(tmp_path: Path, peer: Any) -> None:
    """bf16 deltas repeat magnitudes; mergekit keeps whichever its sort puts first, the engine the first in memory."""
    write(tmp_path, {"ties": BF16}, "bfloat16")
    merged = checkpoint.load(run.run(plan.make(recipe.read(tmp_path / "ties.yml")), tmp_path / "out"))
    base, model = (checkpoint.load(tmp_path / name) for name in ("base", "a"))
    different = 0
    for name, theirs in peer["bf16_ties"].items():
        magnitude = np.abs(model[name] - base[name])
        k = methods.kept(magnitude.size, E[0]["density"])
        at_threshold = magnitude == np.sort(magnitude, axis=None)[-k]
        np.testing.assert_array_equal(merged[name][~at_threshold], theirs[~at_threshold], err_msg=name)
        assert np.count_nonzero(merged[name] != base[name]) == np.count_nonzero(theirs != base[name]) == k
        different += np.count_nonzero(merged[name] != theirs)
    assert different > 0, "there were equal magnitudes to choose among"


def outputs(python: str, folder: Path) -> dict[str, np.ndarray]:
    made = theirs(python, folder / "fp32", EXACT | CLOSE | {"released": RELEASED})
    return made | theirs(python, folder / "bf16", {"bf16_ties": BF16}, "bfloat16")


def test_the_fixture_is_what_mergekit_makes(tmp_path: Path, peer: Any) -> None:
    python = os.environ.get("ZFU_MERGEKIT")
    if not python:
        pytest.skip("ZFU_MERGEKIT does not name a Python that has mergekit 0.1.5")
    for name, tensor in outputs(python, tmp_path).items():
        case, _, rest = name.partition("/")
        np.testing.assert_array_equal(peer[case][rest], tensor, err_msg=name)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.save(scratch, outputs(sys.argv[1], Path(scratch))).replace(FIXTURE)
