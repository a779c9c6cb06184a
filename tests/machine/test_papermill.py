"""Papermill without `zfu`, as anybody may call it: what must not seal does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CALLS = {
    "good": ["-p", "profile", "quick"],
    "unknown": ["-p", "sead", "9"],
    "string for a boolean": ["-p", "flag", "false"],
    "stops half-way": ["-p", "act", "exit"],
    "cell time-out": ["-p", "act", "sleep", "--execution-timeout", "2"],
}


@pytest.fixture(scope="module")
def sealed(shared_project: Any) -> dict[str, tuple[bool, int]]:
    """For each call: whether it sealed, and Papermill's exit code.

    One after the other, because bare Papermill picks ports for its kernel that another start may take meanwhile.
    """
    codes = {}
    folders = {name: shared_project.folder / "runs" / name.replace(" ", "-") for name in CALLS}
    for name, arguments in CALLS.items():
        there = {"ZFU_RUN_DIR": str(folders[name])}
        codes[name] = shared_project.start("papermill", "notebooks/mini.ipynb", "o.ipynb", *arguments, env=there).wait(
            180
        )
    return {name: (Path(folders[name] / "result.json").is_file(), codes[name]) for name in CALLS}


def test_the_good_one_seals(sealed: dict[str, tuple[bool, int]]) -> None:
    assert sealed["good"] == (True, 0)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "good"])
def test_the_others_do_not(sealed: dict[str, tuple[bool, int]], name: str) -> None:
    assert not sealed[name][0]


def test_papermill_calls_half_a_run_a_success(sealed: dict[str, tuple[bool, int]]) -> None:
    # Why the exit code alone decides nothing. Should this change, the check for a seal is merely redundant.
    assert sealed["stops half-way"][1] == 0


def test_nothing_became_current(sealed: dict[str, tuple[bool, int]], shared_project: Any) -> None:
    assert not list(shared_project.folder.rglob("current.json"))
