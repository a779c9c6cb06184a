"""The words of the shared tokenizer. New ones go at the end, so that no token of an older model changes its number."""

from __future__ import annotations

from zfu_lib.data.worlds import chaincalc, chronofacts, stackprog
from zfu_lib.data.worlds.problem import HEADINGS

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *HEADINGS,
            *("Problem", "Hint", "Mode", "Insights", "Answer"),
            *("think", "brief", "direct", "insights", "solution", "recall"),
            *"=;:+-*?<>,[]()/.%|&!",
            *("->", "<=", ">="),
            *map(str, range(100)),
            *chaincalc.WORDS,
            *stackprog.WORDS,
            *chronofacts.WORDS,
            *map(str, chronofacts.YEARS),
        )
    )
)
