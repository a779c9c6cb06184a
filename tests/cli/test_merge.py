"""`zfu merge`: what it says, writes and refuses, with its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from zfu_lib import cli
from zfu_lib.merging import methods
from zfu_lib.merging.engine import checkpoint, run

CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
RECIPE = {
    "merge_method": "hi_merging",
    "base_model": "base",
    "models": [
        {"model": name, "parameters": {"weight": 0.5, "density": 0.5, "scale": 0.9}} for name in ("english", "chinese")
    ],
}
Zfu = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with three models and a recipe for them."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "english", "chinese")):
        draw = np.random.default_rng(seed)
        shapes = {"embed_tokens.weight": (10, 16), "layers.0.w": (16, 16), "layers.1.w": (16, 16)}
        tensors = {f"model.{tensor}": draw.standard_normal(shape) for tensor, shape in shapes.items()}
        checkpoint.save(name, tensors)
        Path(name, "config.json").write_text(json.dumps(CONFIG))
    Path("recipe.yml").write_text(json.dumps(RECIPE))
    return tmp_path


def zfu(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["merge", *arguments])


def refused(code: cli.Exit, words: str, *arguments: str) -> None:
    before = sorted(Path().rglob("*"))
    error = zfu(*arguments).exception
    assert isinstance(error, cli.Stop), error
    assert error.code == code
    assert words in str(error)
    assert sorted(Path().rglob("*")) == before, "something was written"


def test_a_recipe_is_merged(place: Path) -> None:
    done = zfu("recipe.yml", "out", "--shard-size", "1e-6", "--threads", "2")
    assert done.exit_code == 0, done.output
    assert "3 tensors, 0.00 GB" in done.output
    assert "base has no tokenizer.json" in done.output
    assert "recipe.yml: 100%" in done.output
    assert len(list(Path("out").glob("model-*.safetensors"))) == 3
    base, *models = (checkpoint.load(name) for name in ("base", "english", "chinese"))
    expected = methods.hi_merging(base, models, [0.5, 0.5], [0.5, 0.5], [0.9, 0.9])
    for name, tensor in checkpoint.load("out").items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_the_plan_says_what_it_costs_and_writes_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    said = zfu("recipe.yml", "--plan").output
    assert "reads                0.000 GB in 3 files" in said
    rows = json.loads(zfu("recipe.yml", "out", "--plan", "--json").stdout)
    assert rows.keys() >= {"method", "models", "checked", "reads", "writes", "free on the disk", "memory", "time"}
    assert sorted(place.rglob("*")) == before


def test_what_cannot_be_used_is_wrong_usage(place: Path) -> None:
    usage = cli.Exit.USAGE
    refused(usage, "give the folder to write, or --plan", "recipe.yml")
    refused(usage, "other.yml: No such file", "other.yml", "out")
    refused(usage, "english holds a model of the recipe", "recipe.yml", "english")
    refused(usage, "no unfinished merge", "recipe.yml", "out", "--resume")
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("mine")
    refused(usage, "--force replaces it", "recipe.yml", "mine")
    Path("recipe.yml").write_text(json.dumps(RECIPE | {"modules": {}}))
    refused(usage, "key 'modules' in the recipe is not supported", "recipe.yml", "out")


def test_a_full_disk_cannot_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: usage._replace(free=10))
    refused(cli.Exit.CANNOT_RUN, "free, the merge needs", "recipe.yml", "out", "--plan")


def test_bad_models_are_bad_data(place: Path) -> None:
    data, weights = cli.Exit.DATA, Path("english", "model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(data, "truncated", "recipe.yml", "out")
    weights.write_bytes(b"\x80\x04" + whole)
    refused(data, "a pickle, which is never read", "recipe.yml", "--plan")
    weights.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    refused(data, "'model.layers.1.w' holds nan at 255", "recipe.yml", "out")
    shutil.rmtree("english")
    refused(data, "no such folder", "recipe.yml", "out")


def test_an_interrupted_merge_goes_on_with_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    options = ("recipe.yml", "out", "--shard-size", "1e-6")
    with monkeypatch.context() as now:
        now.setattr(run, "_finish", interrupt)
        assert zfu(*options).exit_code == 130
    kept = {file.name: os.stat(file).st_ino for file in Path(".out.merging").glob("*.safetensors")}
    assert len(kept) == 3
    assert zfu(*options, "--resume").exit_code == 0
    assert {file.name: os.stat(file).st_ino for file in Path("out").glob("*.safetensors")} == kept
