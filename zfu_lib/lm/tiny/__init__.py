"""The project's own small models, one folder each: a standard checkpoint (bf16 safetensors, tokenizer) and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zfu_lib.lm.protocol import ModelError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models that are there, in alphabetical order."""
    return sorted(file.parent.name for file in FOLDER.glob("*/config.json"))


def path(name: str) -> Path:
    """Folder of a model.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in names():
        raise ModelError(f"no tiny model {name!r}; there are: {', '.join(names()) or 'none yet'}")
    return FOLDER / name


def card(name: str) -> dict[str, Any]:
    """What a model was trained on and what it can do (``card.json``).

    Raises:
        ModelError: no such model, or its card is missing or damaged.
    """
    file = path(name) / "card.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"tiny model {name!r} has no readable card.json ({error})") from None
