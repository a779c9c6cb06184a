"""A data set as others can use it: splits without leakage, three formats, a card, checksums, an audit of itself.

:func:`build` computes every file in memory and refuses what would be wrong; :func:`write` puts a folder in place in
one step. The same sentences and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zfu_lib.skills import formats
from zfu_lib.skills.chinese_skillspan import LABELS, PARTICLES
from zfu_lib.skills.spans import Sentence, SpanError
from zfu_lib.skills.verifier import is_punctuation

SPLITS = ("train", "dev", "test")


class ReleaseError(ValueError):
    """Sentences that cannot be released; the message says which and why."""


class Release(NamedTuple):
    """Files by name, the split of every sentence, and what the audit found."""

    files: Mapping[str, str]
    split: Mapping[str, str]
    audit: Mapping[str, Any]


def normal(text: str) -> str:
    """A text without what does not count when sentences are compared: width, case, digits, white space, punctuation."""
    wide = unicodedata.normalize("NFKC", text).lower()
    return "".join(letter for letter in wide if unicodedata.category(letter)[0] == "L")


def split_by_posting(
    sentences: Sequence[Sentence], *, shares: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, by: str = "source"
) -> dict[str, str]:
    """Posting -> split, whole postings only, within each value of ``meta[by]`` alike (to one posting).

    Raises:
        ReleaseError: a sentence without ``meta["posting"]``, or shares that are no three positive numbers.
    """
    if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
        raise ReleaseError(f"shares {shares}: three numbers, for {', '.join(SPLITS)}")
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        if not sentence.meta.get("posting"):
            raise ReleaseError(f"sentence {sentence.id!r} names no posting; without it a split leaks")
        groups.setdefault(str(sentence.meta.get(by, "")), []).append(str(sentence.meta["posting"]))
    share = np.array(shares) / sum(shares)
    found: dict[str, str] = {}
    count = np.zeros(3)
    for group in sorted(groups):
        postings = sorted(set(groups[group]))
        for i in np.random.default_rng((seed, 43)).permutation(len(postings)):
            # To the split that lacks most of its share so far, over all groups: small groups fill test and dev too.
            lack = np.round(share * (count.sum() + 1) - count, 9)
            part = 2 - int(lack[::-1].argmax())
            count[part] += 1
            found[postings[i]] = SPLITS[part]
    return found


def audit(sentences: Sequence[Sentence], split: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a careful user would check: sizes, labels, suspicious ends, repeated texts, repeats across splits.

    ``ends_suspect`` is the share of spans whose last character is punctuation or a particle: an off-by-one writer
    shows up as a large one. ``leaks`` lists sentences of train whose normal text also stands in dev or test, and
    sentences of dev whose normal text also stands in test.
    """
    spans = [(s, span) for s in sentences for span in s.spans]
    bad_end = sum(is_punctuation(s.tokens[span.end - 1]) or s.tokens[span.end - 1] in PARTICLES for s, span in spans)
    texts = Counter(normal(s.text) for s in sentences)
    found: dict[str, Any] = {
        "sentences": len(sentences),
        "postings": len({s.meta.get("posting") for s in sentences}),
        "spans": dict(Counter(span.type for _, span in spans).most_common()),
        "empty_sentences": sum(not s.spans for s in sentences),
        "mean_characters": round(float(np.mean([len(s.text) for s in sentences])), 3) if sentences else 0.0,
        "spans_per_sentence": round(len(spans) / max(1, len(sentences)), 3),
        "ends_suspect": round(bad_end / max(1, len(spans)), 4),
        "repeated_texts": sum(n - 1 for n in texts.values()),
    }
    if split:
        own = {part: {normal(s.text) for s in sentences if split[s.id] == part} for part in SPLITS}
        held = {"train": own["dev"] | own["test"], "dev": own["test"], "test": set()}
        found["leaks"] = [s.id for s in sentences if normal(s.text) in held[split[s.id]]]
    return found


def build(
    sentences: Sequence[Sentence],
    *,
    name: str,
    description: str,
    licence: str,
    synthetic: bool,
    guideline: str,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Release:
    """A release of annotated sentences.

    Sentences of train whose text (case, width, digits and punctuation aside) stands in dev or test, and sentences of
    dev whose text stands in test, are left out; the card says how many and ``removed.json`` names each.

    Args:
        name: folder and file stem; a synthetic release's begins with ``synth_``.
        description, licence, guideline: for the card; none may be empty.
        synthetic: whether the texts were generated.

    Raises:
        ReleaseError: nothing to release, ids that repeat, a missing word for the card, a name that hides that the
            texts are synthetic, or a sentence that does not survive a round trip through every format.
    """
    if not sentences:
        raise ReleaseError("there are no sentences to release")
    if not all(words.strip() for words in (name, description, licence, guideline)):
        raise ReleaseError("a release has a name, a description, a licence and a version of its guideline")
    if synthetic and not name.startswith("synth_"):
        raise ReleaseError(f"{name!r}: the name of synthetic data begins with synth_")
    twice = [i for i, n in Counter(s.id for s in sentences).items() if n > 1 or not i]
    if twice:
        raise ReleaseError(f"ids must be there and unique; {twice[0]!r} is not")
    for sentence in sentences:
        _survives(sentence)
    where = split_by_posting(sentences, shares=shares, seed=seed)
    split = {s.id: where[str(s.meta["posting"])] for s in sentences}
    removed = set(audit(sentences, split)["leaks"])
    kept = [s for s in sentences if s.id not in removed]
    files: dict[str, str] = {"removed.json": json.dumps(sorted(removed), indent=1, ensure_ascii=False) + "\n"}
    parts = {}
    for part in SPLITS:
        own = [_labelled(s, part, synthetic) for s in kept if split[s.id] == part]
        parts[part] = audit(own)
        files[f"{name}.{part}.jsonl"] = formats.to_jsonl(own)
        files[f"{name}.{part}.bio"] = formats.to_conll(own)
        tasks = [formats.to_label_studio(s) for s in own]
        files[f"{name}.{part}.label_studio.json"] = json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    found = audit(kept, split) | {"parts": parts, "removed": len(removed)}
    files["README.md"] = _card(name, description, licence, synthetic, guideline, shares, seed, found)
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(text.encode()).hexdigest()}  {file}\n" for file, text in sorted(files.items())
    )
    return Release(files, {i: s for i, s in split.items() if i not in removed}, found)


def _labelled(sentence: Sentence, part: str, synthetic: bool) -> Sentence:
    meta = dict(sentence.meta) | {"split": part, "layer": "gold", "synthetic": synthetic}
    return Sentence(sentence.tokens, sentence.spans, sentence.text, sentence.id, meta)


def _survives(sentence: Sentence) -> None:
    if wrong := sorted({span.type for span in sentence.spans} - set(LABELS)):
        raise ReleaseError(f"sentence {sentence.id!r}: label {wrong[0]!r} is none of {', '.join(LABELS)}")
    try:
        bio = formats.from_conll(formats.to_conll([sentence]), joiner="")[0]
        studio = formats.from_label_studio(formats.to_label_studio(sentence), unit="character")
        record = formats.from_record(formats.to_record(sentence))
    except SpanError as error:
        raise ReleaseError(f"sentence {sentence.id!r} cannot be written: {error}") from None
    spans = [sentence.characters(span) for span in sentence.spans]
    same = record == sentence and bio.spans == sentence.spans
    if not same or spans != [studio.characters(span) for span in studio.spans]:
        raise ReleaseError(f"sentence {sentence.id!r} comes back changed from one of the formats")


def _card(
    name: str, description: str, licence: str, synthetic: bool, guideline: str, shares: Sequence[float], seed: int,
    found: Mapping[str, Any],
) -> str:  # fmt: skip
    rows = "\n".join(
        f"| {part} | {a['sentences']} | {a['postings']} | {a['mean_characters']} | {a['spans_per_sentence']} | "
        + " | ".join(str(a["spans"].get(label, 0)) for label in LABELS) + " |"
        for part, a in found["parts"].items()
    )  # fmt: skip
    origin = (
        "The texts are SYNTHETIC: generated from templates. They say nothing about real job ads." if synthetic else ""
    )
    return f"""# {name}

{description}

{origin}

- Labels: L language, S skill, K knowledge, T transversal; flat, verbatim, offsets from 0, ends exclusive.
- Guideline: {guideline}
- Licence: {licence}
- Split: by posting, stratified by source, {"/".join(f"{share:g}" for share in shares)}, seed {seed}. \
{found["removed"]} sentences of train that also stand in dev or test, or of dev that also stand in test, were left out \
(`removed.json`).
- Spans whose last character is punctuation or a particle: {found["ends_suspect"]:.2%}.

| split | sentences | postings | mean characters | spans per sentence | {" | ".join(LABELS)} |
|---|---|---|---|---|{"---|" * len(LABELS)}
{rows}

Files: JSON lines (tokens, text, spans), BIO (one character a line, a tab, a tag), Label Studio tasks. \
`sha256sum -c SHA256SUMS` checks them.
"""


def write(release: Release, folder: Path | str) -> Path:
    """Put a release in place: written beside, then renamed; a folder that is there is never touched.

    Raises:
        ReleaseError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ReleaseError(f"{folder.name} is already there; a release is never overwritten, choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, text in release.files.items():
            with (work / name).open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        work.chmod(0o755)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder


def check(folder: Path | str) -> list[str]:
    """Files of a release that are missing or are not what SHA256SUMS says."""
    folder, wrong = Path(folder), []
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    return wrong
