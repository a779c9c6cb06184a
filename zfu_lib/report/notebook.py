"""Notebooks as plain dicts. nbformat validates more and takes a second and a half to import; a run is checked often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """A notebook of format 4, with every cell's source as one string.

    Raises:
        ValueError: not a notebook of format 4.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("nbformat") != 4 or not isinstance(found.get("cells"), list):
        raise ValueError(f"{file.name} is not a notebook of format 4")
    for cell in found["cells"]:
        cell["source"] = "".join(cell["source"])
    return found


def code(notebook: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Code cells with their place among all cells."""
    return [(i, cell) for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def tags(cell: dict[str, Any]) -> list[str]:
    """Tags of a cell."""
    return cell["metadata"].get("tags", [])
