"""Simulated annotators of the synthetic Chinese job ads: errors at stated rates, so that agreement can be explained.

A coder errs in three ways that can be told apart: *whether* to mark (``recall``, ``spurious``), *where to cut*
(``edges``), and *which type* (``types``). A simulated model also breaks the format. Everything they produce is
labelled simulated; nothing here says how people or language models annotate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zfu_lib.data.zh_jobs import Advert
from zfu_lib.experiments.span_models import Answerer
from zfu_lib.lm.protocol import GenRequest
from zfu_lib.skills.chinese_skillspan import MARKERS
from zfu_lib.skills.markers import encode
from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import is_punctuation

Layer = list[tuple[Span, ...]]
CONFUSED: Mapping[str, str] = {"S": "K", "K": "S", "T": "S", "L": "K"}
"""What a type is mistaken for."""


@dataclass(frozen=True)
class Coder:
    """Error rates of one annotator.

    Args:
        recall: chance that a true span is marked at all.
        spurious: chance that a phrase that only looks like a competence is marked.
        edges: chance that an edge of a marked span is moved by one or two characters.
        types: chance that its type is mistaken (:data:`CONFUSED`).
    """

    recall: float = 1.0
    spurious: float = 0.0
    edges: float = 0.0
    types: float = 0.0


MODEL = Coder(recall=0.80, spurious=0.45, edges=0.22, types=0.12)
"""The simulated pre-annotating model."""
EXPERT = Coder(recall=0.93, spurious=0.08, edges=0.08, types=0.04)
"""A simulated trained annotator without suggestions."""
NOTICES = 0.6
"""Chance that an expert who sees suggestions notices an error in one."""


def sentence_of(ad: Advert, *, gold: bool = True) -> Sentence:
    """An ad's sentence, one token a code point, with its spans or without."""
    spans = tuple(Span(*mark[:3]) for mark in ad.spans) if gold else ()
    meta = {"posting": ad.posting, "source": ad.source, "year": ad.year, "synthetic": True}
    return Sentence.of_characters(ad.text, spans=spans, id=ad.id, meta=meta)


def moved(span: Span, text: str, taken: Sequence[Span], rng: np.random.Generator) -> Span:
    """The span with one edge in a wrong place: a character lost at either end, or one or two taken in.

    It stays in the text, keeps a character, and touches none of ``taken``.
    """
    ways = [
        span._replace(end=span.end + 1),
        span._replace(end=span.end + 2),
        span._replace(start=span.start - 1),
        span._replace(start=span.start - 2),
    ]
    if span.end - span.start > 2:
        ways += [span._replace(end=span.end - 1), span._replace(start=span.start + 1)]
    free = [
        w
        for w in ways
        if w.start >= 0
        and w.end <= len(text)
        and not (text[w.start] + text[w.end - 1]).count(" ")
        and all(w.end <= s.start or s.end <= w.start for s in taken if s != span)
    ]
    return free[int(rng.integers(len(free)))] if free else span


def code(ads: Sequence[Advert], coder: Coder, rng: np.random.Generator) -> Layer:
    """What a coder marks without seeing suggestions."""
    found: Layer = []
    for ad in ads:
        true = [Span(*mark[:3]) for mark in ad.spans]
        kept = [span for span in true if rng.random() < coder.recall]
        for mark in ad.near:
            near = Span(*mark[:3])
            if rng.random() < coder.spurious and all(near.end <= s.start or s.end <= near.start for s in kept):
                kept.append(near)
        for i, span in enumerate(kept):
            if rng.random() < coder.types:
                span = span._replace(type=CONFUSED[span.type])
            if rng.random() < coder.edges:
                others = [s for j, s in enumerate(kept) if j != i]
                span = moved(span, ad.text, others, rng)
            kept[i] = span
        found.append(tuple(sorted(kept)))
    return found


def assisted(
    ads: Sequence[Advert], silver: Sequence[Sequence[Span] | None], blind: Layer, rng: np.random.Generator,
    notices: float = NOTICES,
) -> Layer:  # fmt: skip
    """What the same coder hands in when suggestions are visible.

    Every place where suggestion and own view (``blind``) differ is noticed with chance ``notices``, and then the own
    view is taken; otherwise the suggestion stays. Without suggestions (None) the own view is all there is.
    """
    found: Layer = []
    for _, shown, own in zip(ads, silver, blind, strict=True):
        if shown is None:
            found.append(own)
            continue
        kept = [span for span in shown if span in own or rng.random() >= notices]
        for span in own:
            if span not in shown and all(span.end <= s.start or s.end <= span.start for s in kept):
                # Over a suggestion that was just rejected the own span goes in; elsewhere it must be noticed.
                over = any(span.start < s.end and s.start < span.end for s in shown)
                if over or rng.random() < notices:
                    kept.append(span)
        found.append(tuple(sorted(kept)))
    return found


def model(ads: Sequence[Advert], coder: Coder, seed: int, *, breaks: float = 0.15) -> Answerer:
    """The simulated model of the macro stage: marks like ``coder``, and breaks the format with chance ``breaks``.

    What it marks in a sentence is drawn once; a retry draws only anew whether the format breaks.
    """
    rng = np.random.default_rng((seed, 47))
    layer = code(ads, coder, np.random.default_rng((seed, 53)))
    known = {ad.text: sentence_of(ad, gold=False).with_spans(spans) for ad, spans in zip(ads, layer, strict=True)}

    def answer(request: GenRequest) -> str:
        asked = next(turn.content for turn in request.prompt if turn.role == "user")
        sentence = known[asked.rpartition("sentence:\n")[2]]
        return _broken(sentence, rng) if rng.random() < breaks else encode(sentence, MARKERS)

    return Answerer("simulated model", answer)


def _broken(sentence: Sentence, rng: np.random.Generator) -> str:
    text = encode(sentence, MARKERS)
    kind = int(rng.integers(3))
    if kind == 0 and "##" in text:  # a closing marker is missing
        return text.replace("##", "", 1)
    if kind == 1 and "##[" in text:  # a label that does not exist
        return text.replace("##[", "##[X", 1)
    words = [i for i, t in enumerate(sentence.tokens) if not is_punctuation(t)]  # a word of the text is changed
    at = words[int(rng.integers(len(words)))] if words else 0
    return text.replace(sentence.tokens[at], "某某", 1)
