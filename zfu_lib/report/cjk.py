"""The book's Chinese font: a subset with the characters that the book uses, made from Droid Sans Fallback.

    python -m zfu_lib.report.cjk DroidSansFallbackFull.ttf

writes ``book/_static/fonts/zfu-cjk.ttf``. The source font is Apache-2.0 (Debian: ``fonts-droid-fallback``), which names
no reserved font name; the subset is renamed all the same, since it is another font. Figures and pages use one file.
Run it again when a test says that a character has no glyph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from zfu_lib.report import paths

FAMILY = "zfu CJK"
RANGES = ((0x2E80, 0x303F), (0x3100, 0x312F), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF))
"""What the font is for: CJK characters and punctuation, full-width forms."""


def font() -> Path:
    """The committed subset."""
    return paths.root() / "book" / "_static" / "fonts" / "zfu-cjk.ttf"


def is_cjk(letter: str) -> bool:
    """Whether the font must have a glyph for it."""
    return any(low <= ord(letter) <= high for low, high in RANGES)


def sources() -> Iterator[Path]:
    """Files whose Chinese can reach a reader: prose, claims, notebooks, and the modules that hold the world's words."""
    root = paths.root()
    for pattern in (
        "book/**/*.md",
        "book/**/*.yml",
        "book/**/*.bib",
        "notebooks/*.ipynb",
        "zfu_lib/**/*.py",
        "zfu_lib/**/*.html",
        "README.md",
    ):
        yield from sorted(root.glob(pattern))


def needed() -> set[str]:
    """Every CJK character of :func:`sources`, and the full-width forms of ASCII."""
    found = {chr(code) for code in range(0xFF01, 0xFF5F)}
    for file in sources():
        found.update(letter for letter in file.read_text(encoding="utf-8") if is_cjk(letter))
    # Bounds of ranges in patterns and unassigned code points are no text.
    return {letter for letter in found if letter.isprintable() or letter == "\u3000"} - set("鿿⺀")


def build(source: Path) -> Path:
    """Make the subset from the whole font.

    Raises:
        ValueError: the source lacks a character.
    """
    from fontTools import subset
    from fontTools.ttLib import TTFont

    whole = TTFont(source)
    if missing := sorted(needed() - {chr(code) for code in whole.getBestCmap()}):
        raise ValueError(f"{source.name} has no glyph for {''.join(missing)}")
    options = subset.Options(
        hinting=False, layout_features=[], name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14], notdef_outline=True
    )
    made = subset.Subsetter(options)
    made.populate(text="".join(sorted(needed())))
    made.subset(whole)
    names = {1: FAMILY, 3: "zfu-cjk", 4: FAMILY, 6: "zfu-cjk", 16: FAMILY}
    for record in list(whole["name"].names):
        if record.nameID in names:
            record.string = names[record.nameID]
    font().parent.mkdir(parents=True, exist_ok=True)
    whole["head"].modified = whole["head"].created  # the same characters, the same bytes
    whole.recalcTimestamp = False
    whole.save(font())
    return font()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    place = build(Path(sys.argv[1]))
    print(f"{place.name}: {place.stat().st_size} bytes, {len(needed())} characters")
