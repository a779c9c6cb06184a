"""Where the book's files are. Every path the project uses is derived here."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """Folder that holds ``_toc.yml``: ``$ZFU_ROOT`` if set, else the checkout this package was installed from.

    Raises:
        FileNotFoundError: neither place is a checkout of the book.
    """
    place = Path(os.environ.get("ZFU_ROOT") or Path(__file__).resolve().parents[2])
    if not (place / "_toc.yml").is_file():
        raise FileNotFoundError(
            f"{place} is not a checkout of the book (no _toc.yml). "
            "Install with `pip install -e .` from a clone, or set ZFU_ROOT to one."
        )
    return place


def notebook(slug: str) -> Path:
    """Clean source notebook of a paper."""
    return root() / "notebooks" / f"{slug}.ipynb"


def claims(slug: str) -> Path:
    """What the paper says."""
    return root() / "book" / "claims" / f"{slug}.yml"


def results(slug: str) -> Path:
    """Committed records of runs that not every machine can repeat."""
    return root() / "book" / "results" / slug


def runs(profile: str, slug: str) -> Path:
    """Runs made on this machine: ``runs/<profile>/<slug>/<run-id>/`` and the pointer ``current.json``."""
    return root() / "runs" / profile / slug
