"""The appendix on the tiny models: a second training follows the curve of the card, whatever words came later."""

from dataclasses import replace

import pytest

from zfu_lib.experiments import tiny_models
from zfu_lib.lm import recipes, tiny
from zfu_lib.lm.recipes import make
from zfu_lib.lm.train import TrainLog

HERE = sorted(set(tiny.names()) & {"apprentice", "mentor", "intern"})
every_model = pytest.mark.parametrize("name", HERE)


@every_model
def test_a_second_training_follows_the_curve_of_the_card(name, monkeypatch):
    """Also when later chapters have added words. Rounding differs between processors, hence the tolerance; another
    batch would be apart by more than a nat."""
    recipe = recipes.recipe(name)
    later = replace(recipe, words=(*recipe.words, "zzlater", "zzwords"))
    monkeypatch.setattr(recipes, "recipe", lambda _: later)
    card, new = tiny_models.followed(name, tiny_models.again(name, 30))
    assert card["x"] == new["x"]
    assert card["x"][-1] == 30
    assert max(abs(a - b) for a, b in zip(card["y"], new["y"], strict=True)) < 0.02


@every_model
def test_the_words_are_those_of_the_card(name):
    _, tokenizer = make.build(tiny_models.as_trained(recipes.recipe(name)))
    assert len(tokenizer) == tiny.card(name)["vocabulary"]


def test_a_grown_model_begins_as_its_base():
    assert tiny_models.at_birth("mentor", "apprentice") < 0.02
    assert tiny_models.at_birth("intern", "apprentice") > 1


def test_a_vocabulary_that_never_was_is_refused(monkeypatch):
    recipe = replace(recipes.recipe("intern"), words=("one", "two"))
    monkeypatch.setattr(tiny, "card", lambda _: {"vocabulary": 5})
    with pytest.raises(ValueError, match="no beginning of its words gives a vocabulary of 5"):
        tiny_models.as_trained(recipe)


def test_curves_are_compared_at_the_steps_of_the_card(monkeypatch):
    monkeypatch.setattr(tiny, "card", lambda _: {"curve": [[2, 5.0], [4, 3.0], [6, 1.0]]})
    log = TrainLog(loss=[6.0, 4.0, 3.0, 2.0, 9.0])
    assert tiny_models.followed("x", log) == ({"x": [2, 4], "y": [5.0, 3.0]}, {"x": [2, 4], "y": [5.0, 2.5]})


def test_every_committed_model_has_a_row():
    found = tiny_models.cards()
    assert set(tiny_models.rows(found)) == set(tiny.names())
    for name, row in tiny_models.rows(found).items():
        assert row[0] == f"{found[name]['non_embedding_parameters']:,}"
        assert "%" not in row[-1]
        assert " to " in row[-1]
