"""`zfu lm`: list, card, train, on a miniature recipe."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zfu_lib import cli
from zfu_lib.data.worlds import chaincalc
from zfu_lib.data.worlds.problem import prompt, solution
from zfu_lib.lm import recipes, tiny
from zfu_lib.lm.recipes.base import Score
from zfu_lib.lm.train import TrainConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
INTERN = recipes.recipe("intern")
MINI = replace(
    INTERN,
    name="mini",
    purpose="A miniature.",
    architecture=dict(INTERN.architecture) | SMALL | {"intermediate_size": 64},
    train=TrainConfig(steps=6, batch_size=2, seq_len=256, lr=1e-3, warmup=2),
    examples=lambda n, seed, progress: [(prompt(p), solution(p)) for p in chaincalc.problems(n, seed, levels=(1, 2))],
    evaluate=lambda model, n: [Score("tokens counted", model.count("fig fig"), n, 0.5)],
    initialise=None,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, one recipe, and no weights yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiny, "FOLDER", tmp_path / "tiny")
    monkeypatch.setattr(recipes, "recipes", lambda: {"mini": MINI})
    return tmp_path


def zfu(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["lm", *arguments])


def refused(*arguments: str) -> cli.Stop:
    error = zfu(*arguments).exception
    assert isinstance(error, cli.Stop), error
    return error


def test_a_model_is_listed_trained_and_described(home: Path) -> None:
    (row,) = json.loads(zfu("list", "--json").stdout)
    assert row == {"name": "mini", "weights": "not here", "minutes": MINI.minutes, "purpose": "A miniature."}
    done = zfu("train", "mini", "--out", str(home / "tiny" / "mini"), "--items", "4")
    assert done.exit_code == 0, done.output
    assert re.search(r"mini: step 6 of 6, loss \d+\.\d+, \d+ s", done.output)
    assert "tokens counted: 50.0% [0.068, 0.932]" in done.output
    (row,) = json.loads(zfu("list", "--json").stdout)
    assert row["weights"] == "here"
    assert re.search(r"^mini +here +\S+ +A miniature\.", zfu("list").stdout, re.MULTILINE)
    card = json.loads(zfu("card", "mini", "--json").stdout)
    assert (card["name"], card["training"]["steps"], card["scores"][0]["n"]) == ("mini", 6, 4)
    shown = zfu("card", "mini").stdout
    assert "# mini" in shown
    assert card["sha256"] in shown.replace("\n", "")


def test_weights_go_to_models_by_default_and_can_be_made_again(home: Path) -> None:
    for _ in range(2):
        assert zfu("train", "mini", "--items", "2").exit_code == 0
    assert (home / "models" / "mini" / "model.safetensors").is_file()


def test_nobodys_folder_is_replaced(home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "diary").write_text("dear diary")
    error = refused("train", "mini", "--out", "mine")
    assert (error.code, "is not a model made here" in str(error)) == (cli.Exit.USAGE, True)
    assert (home / "mine" / "diary").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "mimi"], cli.Exit.USAGE, "did you mean 'mini'?"),
        (["card", "mini"], cli.Exit.USAGE, "no tiny model 'mini'; there are: none yet"),
    ],
)
def test_names_that_are_not_there(home: Path, arguments: list[str], code: cli.Exit, says: str) -> None:
    error = refused(*arguments)
    assert (error.code, says in str(error)) == (code, True), str(error)


def test_a_damaged_card_is_one_line(home: Path) -> None:
    assert zfu("train", "mini", "--out", "tiny/mini", "--items", "2").exit_code == 0
    (home / "tiny" / "mini" / "card.json").write_text("{")
    assert "no readable card.json" in str(refused("card", "mini"))


def test_a_training_that_diverges_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = replace(MINI, train=replace(MINI.train, lr=1e30, clip=None))
    monkeypatch.setattr(recipes, "recipes", lambda: {"mini": wild})
    error = refused("train", "mini")
    assert (error.code, "mini diverged at step" in str(error)) == (cli.Exit.FAILED, True)
    assert not (home / "models" / "mini").exists()


def test_another_recipes_unfinished_run_is_not_taken_up(home: Path) -> None:
    (home / "models").mkdir()
    (home / "models" / "mini.training.safetensors").write_bytes(b"something else")
    error = refused("train", "mini")
    assert (error.code, "is not a checkpoint" in str(error)) == (cli.Exit.FAILED, True)
