"""Recipes of the tiny models: layout, texts, budget, evaluation (``zfu lm list``, ``zfu lm train NAME``).

A family of models is a module here with a tuple ``RECIPES``; add it to :data:`FAMILIES`.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfu_lib.lm.recipes.base import Recipe

FAMILIES = ("reasoning", "transfer", "merging", "editing", "temporal", "diagnosis")


def recipes() -> dict[str, Recipe]:
    """All recipes by name, family by family."""
    found = [r for family in FAMILIES for r in importlib.import_module(f"zfu_lib.lm.recipes.{family}").RECIPES]
    return {recipe.name: recipe for recipe in found}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise KeyError(f"no recipe {name!r}; {hint}")
    return known[name]
