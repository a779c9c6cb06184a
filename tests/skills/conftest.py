"""Random annotated sentences: words of many alphabets, Chinese characters, spans that may touch."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from zfu_lib.skills.spans import Sentence, Span

# What breaks parsers: marker characters, brackets, accents, emoji with joiners, full-width forms, digits.
WORDS = st.text(
    alphabet=st.one_of(
        st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_categories=("Cc", "Cs", "Zs")),
        st.sampled_from("@#[]⟦⟧éß数据👩‍💻、，Ａ１"),
    ),
    min_size=1,
    max_size=6,
)
CHARACTERS = st.text(alphabet="负责数据清洗与沟通能力，。、ＡＢab1@#（）", min_size=1, max_size=16)


@st.composite
def spans_of(draw, n: int, types=("S", "K")) -> tuple[Span, ...]:
    """Disjoint spans within n tokens; neighbours may touch."""
    cuts = sorted(draw(st.sets(st.integers(0, n), max_size=6)))
    found = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        if draw(st.booleans()):
            found.append(Span(a, b, draw(st.sampled_from(types))))
    return tuple(found)


@st.composite
def worded(draw, types=("S", "K")) -> Sentence:
    tokens = draw(st.lists(WORDS, min_size=1, max_size=10))
    return Sentence(tuple(tokens), draw(spans_of(len(tokens), types)), id="w")


@st.composite
def characters(draw, types=("S", "K")) -> Sentence:
    text = draw(CHARACTERS)
    return Sentence.of_characters(text, spans=draw(spans_of(len(text), types)), id="c")


def sentences(types=("S", "K")):
    return st.one_of(worded(types), characters(types))


@pytest.fixture
def ad() -> Sentence:
    """Two coordinated skills and a lone one."""
    words = ["we", "want", "Python", ",", "SQL", "and", "clear", "writing", "in", "a", "calm", "team", "."]
    return Sentence(tuple(words), ((2, 3), (4, 5), (6, 8)), id="ad")
