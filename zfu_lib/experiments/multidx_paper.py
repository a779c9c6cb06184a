"""MultiDx at the paper's scale: a large model, MedCaseReasoning, a search service.

    ZFU_MODEL=https://...#deepseek-reasoner ZFU_SEARCH=https://... ZFU_SEARCH_KEY=... \
        python -m zfu_lib.experiments.multidx_paper > scores.json

300 test cases, 13,092 cases in the database, entities by SciSpaCy (its package and the model ``en_core_sci_sm``). Only
miniatures of it were run: nobody has paid for the paper's size here. This is research and not medical advice.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zfu_lib.lm import models
from zfu_lib.lm.protocol import LanguageModel, ModelError
from zfu_lib.reasoning import multidx as method
from zfu_lib.reasoning.dx_format import ChatFormat
from zfu_lib.reasoning.multidx import SOURCES, Asker, Case, Config, Evidence, Knowledge, SourceOut
from zfu_lib.reasoning.sources import CaseIndex, Dictionary, HttpSearch, Record, SearchAdapter, TraceIndex, steps

DATA = "zou-lab/MedCaseReasoning"
BLOCKED = ("pubmed.ncbi.nlm.nih.gov", "ncbi.nlm.nih.gov", "huggingface.co")
"""Hosts that hold the test cases or their answers (section 2.3 names PubMed and Hugging Face)."""
ALIKE = 0.8
"""Token F1 from which two names count as one diagnosis, beside equal canonical forms."""


def records(rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Rows in the hub's schema as cases.

    Raises:
        ModelError: a row without one of its three fields.
    """
    found = []
    for i, row in enumerate(rows):
        try:
            parts = [row[name] for name in ("case_prompt", "diagnostic_reasoning", "final_diagnosis")]
        except KeyError as error:
            raise ModelError(f"row {i} of {DATA} has no field {error}; its schema has changed") from None
        text, reasoning, diagnosis = ("\n".join(p) if isinstance(p, list) else str(p) for p in parts)
        found.append(Record(f"row-{i}", text, reasoning, diagnosis))
    return found


class Recogniser:
    """SciSpaCy's entities in place of a dictionary; polarity stays the dictionary's cue words.

    Args:
        recognise: text -> entities; None loads ``en_core_sci_sm``.

    Raises:
        ModelError: SciSpaCy or its model is not installed.
    """

    def __init__(self, recognise: Callable[[str], Iterable[str]] | None = None) -> None:
        if recognise is None:
            try:
                import spacy

                pipeline = spacy.load("en_core_sci_sm")
            except (ImportError, OSError) as error:
                raise ModelError(f"entities need SciSpaCy and en_core_sci_sm ({error}); install both") from None

            def recognise(text: str) -> Iterable[str]:
                return [entity.text for entity in pipeline(text).ents]

        self._recognise = recognise

    def entities(self, text: str) -> set[str]:
        """The entities of a text, in lower case."""
        return {entity.lower() for entity in self._recognise(text)}

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """Entities with what is said of them."""
        found = self.entities(text)
        return Dictionary(dict.fromkeys(found, ())).mentions(text) if found else []

    def canonical(self, name: str) -> str:
        """The name as it stands."""
        return name.lower().strip()


def same(a: str, b: str) -> bool:
    """Do two names say the same diagnosis? Equal canonical forms, or token F1 of at least 0.8. (The paper's judge is
    not confirmed.)"""
    x, y = Counter(method.key(a).split()), Counter(method.key(b).split())
    common = sum((x & y).values())
    return method.key(a) == method.key(b) or (common > 0 and 2 * common / (x.total() + y.total()) >= ALIKE)


def covered(asker: Asker, statements: Sequence[Sequence[str]], reasoning: Sequence[Sequence[str]]) -> list[float]:
    """Share of each case's statements that its reasoning makes, by the model as judge: recall, if the statements are
    the gold ones; precision, with the two exchanged. Nothing said, or an answer that cannot be read, covers nothing."""
    asked = [i for i, (a, b) in enumerate(zip(statements, reasoning, strict=True)) if a and b]
    told = asker("judge", [asker.format.judge(statements[i], reasoning[i]) for i in asked])
    shares = [0.0] * len(statements)
    for i, answer in zip(asked, told, strict=True):
        named = {int(n) for n in re.findall(r"\d+", answer.get("covered", ""))}
        shares[i] = len(named & set(range(1, len(statements[i]) + 1))) / len(statements[i])
    return shares


def told(path: Iterable[tuple[str, Evidence]]) -> list[str]:
    """A path as sentences for the judge."""
    return [f"{e.text} speaks {'for' if e.stance == '+' else 'against'} {disease}" for disease, e in path]


def run(
    model: LanguageModel,
    test: list[Record],
    database: list[Record],
    search: SearchAdapter | None,
    recogniser: Recogniser,
    config: Config | None = None,
) -> dict[str, Any]:
    """H@1, H@5, H@10 and recall and precision of the reasoning, of the model alone, of each source, of the vote and of
    MultiDx; failures are misses. The judge of the reasoning is the model itself (the paper's is not confirmed).

    Returns:
        ``scores`` system -> three shares, ``reasoning`` system -> (recall, precision), ``unread`` share of answers that
        could not be parsed, ``tokens`` read and written a case (the judge's too), ``log`` of every case.
    """
    config = config or Config(budget=0)
    diseases = Dictionary({record.diagnosis.lower(): () for record in database})
    knowledge = Knowledge(recogniser, diseases, search, CaseIndex(database), TraceIndex(database, recogniser.entities))
    asker = Asker(model, ChatFormat())
    cases = [Case(record.id, record.text) for record in test]
    alone = method.suspect("model", cases, [[] for _ in cases], asker, knowledge)
    found = method.gather(cases, asker, knowledge, config)
    lists = {"model alone": [out.names for out in alone]}
    lists |= {source: [r.sources[source].names for r in found] for source in SOURCES}
    simple = Config(budget=config.budget, vote="simple", differential="none")
    voted = method.integrate(found, asker, knowledge, simple)
    whole = method.integrate(found, asker, knowledge, config)
    lists |= {"simple vote": [r.diagnoses for r in voted], "MultiDx": [r.diagnoses for r in whole]}

    def first(outs: Iterable[SourceOut]) -> list[list[str]]:
        return [told((h.name, e) for h in out.hypotheses[:1] for e in h.evidence) for out in outs]

    paths = {"model alone": first(alone)} | {s: first(r.sources[s] for r in found) for s in SOURCES}
    paths |= {name: [told(r.reasoning) for r in rs] for name, rs in (("simple vote", voted), ("MultiDx", whole))}
    gold = [steps(record.reasoning) for record in test]
    reasoning = {
        name: [float(np.mean(covered(asker, *pair))) for pair in ((gold, path), (path, gold))]
        for name, path in paths.items()
    }
    scores = {
        name: [
            sum(any(same(d, r.diagnosis) for d in x[:k]) for x, r in zip(listed, test)) / len(test) for k in (1, 5, 10)
        ]
        for name, listed in lists.items()
    }
    return {
        "scores": scores,
        "reasoning": reasoning,
        "unread": asker.failure_rate(),
        "tokens": (asker.ledger.tokens("read") + asker.ledger.tokens("written")) / len(test),
        "log": {r.case.id: [list(event) for event in r.log] for r in whole},
    }


def main() -> int:
    """The whole run, from the environment. Exit code 3 where something is missing."""
    try:
        from datasets import load_dataset

        model = models.load(os.environ["ZFU_MODEL"])
        search = HttpSearch(os.environ["ZFU_SEARCH"], blocklist=BLOCKED)
        rows = {split: load_dataset(DATA, split=split) for split in ("train", "test")}
        test = records(rows["test"])[:300]
        database = [r._replace(id=f"train-{r.id}") for r in records(rows["train"])]
        print(json.dumps(run(model, test, database, search, Recogniser(), Config(budget=0, parallel=True))))
    except KeyError as error:
        print(f"set {error} (see the head of this module)", file=sys.stderr)
        return 3
    except (ModelError, OSError, ValueError) as error:
        print(str(error), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
