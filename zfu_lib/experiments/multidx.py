"""Experiments of the MultiDx chapter (arXiv 2604.24186).

A :class:`Lab` draws, for each seed, test cases, a case database and a web corpus of the invented clinic
(:mod:`zfu_lib.data.worlds.clinic`), lets the model write every step, and scores every system on the same cases. Every
reasoning call reads at most ``budget`` statements. Seeds differ in all that is drawn; the model's weights are one.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import yaml

from zfu_lib.data import catalogue
from zfu_lib.data import diagnosis as tables
from zfu_lib.data.worlds import clinic
from zfu_lib.data.worlds.clinic import ClinicCase
from zfu_lib.lm import models
from zfu_lib.lm.protocol import GenRequest, GenResult, LanguageModel, ModelError
from zfu_lib.lm.recipes import diagnosis as language
from zfu_lib.reasoning import multidx as method
from zfu_lib.reasoning.dx_format import STEPS, Format, names
from zfu_lib.reasoning.multidx import SOURCES, Asker, Case, Config, Knowledge, Result, SourceOut
from zfu_lib.reasoning.sources import CaseIndex, Dictionary, LocalSearch, Record, Statement, TraceIndex, select
from zfu_lib.report.paths import root
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import DataUsed
from zfu_lib.retrieval import BM25

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEV = 5_000
"""Seeds of the cases that weights are chosen on begin here."""
READING = ("Web", "Cases", "Traces")
"""The sources that bring text."""


@dataclass(frozen=True)
class MultidxProfile(Profile):
    """``cases`` test cases a seed, ``dev`` to choose weights on, ``database`` cases to retrieve from; ``extra`` of the
    test cases for sweeps, ablations and the weaker model; ``budget`` statements a reasoning call reads; ``model`` and
    ``weak`` are language models; ``sweep`` numbers of neighbours. ``real``: also the catalogue's data."""

    model: str
    weak: str
    cases: int
    dev: int
    extra: int
    database: int
    budget: int
    sweep: tuple[int, ...] = (1, 2, 5, 10, 25)
    real: bool = False


QUICK = MultidxProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=5,
    model="tiny:resident",
    weak="tiny:student",
    cases=60,
    dev=20,
    extra=24,
    database=600,
    budget=12,
)
FULL = replace(
    QUICK,
    profile="full",
    seeds=5,
    cost=Cost(
        machine="2 CPU cores (a GPU makes models this small no faster)",
        minutes=25,
        memory_gb=2,
        data=("ddxplus_profiles", "ddxplus_graph", "medlineplus", "direct_graphs"),
    ),
    cases=300,
    dev=80,
    extra=100,
    database=1200,
    real=True,
)
# Sizes of the paper; of its settings, temperature, search provider and number of steps are not confirmed.
PAPER = replace(
    FULL,
    profile="paper",
    seeds=3,
    cost=Cost(
        machine="no GPU: some 30 calls a case of a model behind an OpenAI-compatible server ($ZFU_MODEL), and a search "
        "service ($ZFU_SEARCH, key in $ZFU_SEARCH_KEY); at the paper's 8.5 minutes a case",
        minutes=7_700,
        memory_gb=16,
        disk_gb=1,
        downloads=(Download("zou-lab/MedCaseReasoning", 0.1), Download("en_core_sci_sm 0.5.4 (SciSpaCy)", 0.02)),
    ),
    model="",
    weak="",
    cases=300,
    dev=50,
    extra=0,
    database=13_092,
    budget=0,
    real=False,
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}
FULL_ON_CPU = {"cases": 120, "dev": 30, "extra": 40}


# The small model's language


class PlainFormat:
    """The frames that the small models were trained on. Rules lay them out: of a statement the names in it, disease and
    finding by pairs, those that bear on the case; of a case the words that the model knows. Sorting into SOAP and
    planning the search are done by rules altogether; suspects, notes, comparisons and unions are the model's.

    A frame never exceeds the model's context: of the facts those that came last are left out, then the end of the
    case. ``asked`` counts frames, ``shortened`` those that lost something.
    """

    def __init__(self, findings: Dictionary, diseases: Dictionary) -> None:
        self.findings, self.diseases = findings, diseases
        self.asked = self.shortened = 0

    known = frozenset(language.WORDS)

    def heading(self, step: str) -> str:
        """As :class:`zfu_lib.reasoning.dx_format.ChatFormat`."""
        return STEPS.get(step, "suspects")

    def pairs(self, read: Sequence[Statement], *, usual: bool = False) -> list[language.Fact]:
        """(disease, finding) of the statements in their order; ``usual`` gives diseases their usual names."""
        found = []
        for s in read:
            tokens = re.findall(r"[^\W_]+(?:-[^\W_]+)*", s.text)
            about = [self.diseases.canonical(t) if usual else t for t in tokens if t in self.diseases]
            shows = [self.findings.canonical(t) for t in tokens if t in self.findings]
            found += [(d, f) for d in about for f in shows]
        return list(dict.fromkeys(found))

    def _mentions(self, case: str) -> list[clinic.Mention]:
        return [clinic.Mention(f, status, f) for f, status in self.findings.mentions(case)]

    def _ask(self, case: str, mode: str, tokens: int, facts: Sequence[language.Fact] = (), **parts: Any) -> GenRequest:
        status = dict(self.findings.mentions(case))
        kept = [fact for fact in facts if status.get(fact[1]) in ("present", "absent")]
        words = " ".join(w for w in case.split() if w in self.known or w in self.findings).removeprefix(". ").split()

        def framed() -> str:
            return language.frame(" ".join(words), mode, **language.bearing(kept, status), **parts)

        whole = text = framed()
        while language.tokens(text) + tokens > language.CONTEXT and (kept or words):
            (kept or words).pop()
            text = framed()
        self.asked += 1
        self.shortened += text != whole
        return GenRequest(text, max_tokens=tokens)

    def soap(self, case: str) -> str:
        return (
            language.soap(self._mentions(case))
            .replace(" O :", "\nO :")
            .replace(" A :", "\nA :")
            .replace(" P :", "\nP :")
        )

    def plan(self, case: str) -> str:
        present = [m.finding for m in self._mentions(case) if m.status == "present"][:6]
        return "".join(f"Query : {' '.join(present[i : i + 3])}\n" for i in range(0, len(present), 3))

    def suspects(self, case: str, read: Sequence[Statement]) -> GenRequest:
        return self._ask(case, "suspects", 56, self.pairs(read))

    def notes(self, case: str, memory: Sequence[Statement], page: Sequence[Statement]) -> GenRequest:
        return self._ask(case, "notes", 6, self.pairs(page))

    def noted(self, notes: str, page: Sequence[Statement]) -> list[str]:
        about = names(notes)
        return [s.text for s in page if any(name in s.text for name in about)]

    def compare(self, case: str, a: str, b: str, read: Sequence[Statement]) -> GenRequest:
        wanted = [fact for fact in self.pairs(read, usual=True) if fact[0] in (a, b)]
        return self._ask(case, "compare", 32, wanted, between=(a, b))

    def integrate(self, case: str, lists: Mapping[str, Sequence[str]]) -> GenRequest:
        return self._ask(case, "integrate", 40, lists=lists)


class Remembering:
    """A model that is asked the same thing once: sweeps and ablations share most of their requests."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._told = model, {}
        self.name, self.n_params = model.name, model.n_params

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """As the model; what it was asked before is replayed."""
        new = [r for r in dict.fromkeys(requests) if r not in self._told]
        self._told |= dict(zip(new, self._model.generate(new), strict=True))
        return [self._told[r] for r in requests]


class Spoken:
    """A small model for names that it has never heard: each is a spare word in its prompt, and itself again in the
    answer."""

    def __init__(self, model: LanguageModel, findings: Dictionary, diseases: Dictionary) -> None:
        self._model, self._findings, self._diseases = model, findings, diseases
        self.name, self.n_params = model.name, model.n_params

    def generate(self, requests: Sequence[GenRequest]) -> list[GenResult]:
        """As the model. Raises ModelError: more names in a prompt than spare words."""
        books = [self._book(str(request.prompt)) for request in requests]
        asked = [replace(r, prompt=_renamed(str(r.prompt), book)) for r, book in zip(requests, books, strict=True)]
        told = self._model.generate(asked)
        return [
            replace(t, text=_renamed(t.text, {spare: name for name, spare in book.items()}))
            for t, book in zip(told, books, strict=True)
        ]

    def _book(self, text: str) -> dict[str, str]:
        unknown = [w for w in dict.fromkeys(text.split()) if w not in PlainFormat.known]
        found: dict[str, str] = {}
        for names_, spare in ((self._findings, language.SPARE_FINDINGS), (self._diseases, language.SPARE_DISEASES)):
            new = [w for w in unknown if w in names_]
            if len(new) > len(spare):
                raise ModelError(
                    f"{len(new)} unknown names in one prompt; the small model has {len(spare)} spare words"
                )
            found |= dict(zip(new, spare))
        return found


def _renamed(text: str, book: Mapping[str, str]) -> str:
    return re.sub(r"\S+", lambda word: book.get(word[0], word[0]), text)


def latent(texts: Sequence[str], width: int = 64) -> Callable[[Sequence[str]], np.ndarray]:
    """An encoder with nothing to download: TF-IDF and its ``width`` main directions (SVD), fitted on ``texts``."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(token_pattern=r"[\w-]+", sublinear_tf=True)
    fitted = make_pipeline(words, TruncatedSVD(width, random_state=0)).fit(texts)
    return lambda new: fitted.transform(new).astype(np.float32)


# What a seed draws, what a system says, and how it is scored


@dataclass
class Setting:
    """The cases of a seed and what the sources know. ``seen`` [cases]: the database has met the disease."""

    gold: list[ClinicCase]
    records: list[Record]
    pages: list[clinic.Document]
    knowledge: Knowledge
    seen: np.ndarray

    @property
    def cases(self) -> list[Case]:
        """The cases without their answers."""
        return [Case(c.id, c.text) for c in self.gold]

    def first(self, n: int) -> Setting:
        """The first ``n`` cases."""
        return replace(self, gold=self.gold[:n], seen=self.seen[:n])


class Answer(NamedTuple):
    """What a system says of one case: ranked diagnoses, the path {(finding, disease, sign)}, and its confidence in the
    first diagnosis (NaN without one)."""

    diagnoses: list[str]
    path: set[tuple[str, str, str]]
    confidence: float = float("nan")


@dataclass
class Scores:
    """Per case: rank of the right diagnosis from 1 (99: not named), recall and precision of the path, confidence."""

    rank: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    confidence: np.ndarray

    def hit(self, k: int, among: np.ndarray | None = None) -> float:
        """H@k."""
        rank = self.rank if among is None else self.rank[among]
        return float((rank <= k).mean())


def score(gold: Sequence[ClinicCase], answers: Sequence[Answer]) -> Scores:
    """H@k by canonical names; recall and precision of the path against the case's own steps. A path without a statement
    has recall and precision 0; what could not be read counts as missed."""
    rank, recall, precision = [], [], []
    for case, said in zip(gold, answers, strict=True):
        rank.append(said.diagnoses.index(case.diagnosis) + 1 if case.diagnosis in said.diagnoses else 99)
        steps = {(s.finding, s.disease, s.sign) for s in case.steps}
        hits = len(steps & said.path)
        recall.append(hits / max(1, len(steps)))
        precision.append(hits / max(1, len(said.path)))
    return Scores(*map(np.array, (rank, recall, precision, [a.confidence for a in answers])))


def answer_of(result: Result, diseases: Dictionary) -> Answer:
    """A result as an answer; the confidence is the share of the sources that put the winner first."""
    path = {(e.text, disease, e.stance) for disease, e in result.reasoning}
    first = [diseases.canonical(out.names[0]) if out.names else "" for out in result.sources.values()]
    confidence = float(np.mean([x == result.diagnoses[0] for x in first])) if result.diagnoses and first else 0.0
    return Answer(result.diagnoses, path, confidence)


def ranked(labels: np.ndarray, chances: np.ndarray) -> list[Answer]:
    """Answers of a table of probabilities [cases, labels]."""
    order = np.argsort(-chances, axis=1)[:, :10]
    return [Answer(labels[o].tolist(), set(), float(c[o[0]])) for o, c in zip(order, chances, strict=True)]


def calibration_error(scores: Scores, bins: int = 5) -> float:
    """Expected calibration error of the confidence in the first diagnosis, over equal bins."""
    right, confidence = scores.rank == 1, scores.confidence
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[where == b].mean() - confidence[where == b].mean()) * (where == b).mean()
            for b in range(bins) if (where == b).any()]  # fmt: skip
    return float(sum(gaps))


class Lab:
    """Draws, asks and scores on demand, each thing once.

    Args:
        model: takes the place of the profile's models.
        world: another clinic.

    Raises:
        ModelError: the paper's profile, which is run by :mod:`zfu_lib.experiments.multidx_paper`.
    """

    def __init__(
        self, profile: MultidxProfile, model: LanguageModel | None = None, world: clinic.World | None = None
    ) -> None:
        if profile.profile == "paper":
            raise ModelError("the paper's cases are no clinic: run zfu_lib.experiments.multidx_paper")
        self.asked = profile
        self.profile = replace(profile, **FULL_ON_CPU) if profile.profile == "full" else profile
        self.config = Config(budget=self.profile.budget)
        self.world = w = world or clinic.world()
        self.used: list[DataUsed] = []
        self.shortened: dict[str, float] = {}
        self.findings = Dictionary({f: [o for o, usual in w.synonyms.items() if usual == f] for f in w.findings})
        self.diseases = Dictionary({d: [o for o, usual in w.aliases.items() if usual == d] for d in w.diseases})
        self.format: Format = PlainFormat(self.findings, self.diseases)
        self.plain = PlainFormat(self.findings, self.diseases)
        self._model = model
        self._kept: dict[Any, Any] = {}

    def description(self) -> str:
        """What is drawn, and how far that is from what the profile asks for."""
        p, a = self.profile, self.asked
        text = (
            f"{p.cases} test cases and a database of {p.database} cases for each of {p.seeds} seeds; at most "
            f"{p.budget} statements a reasoning call; model {p.model}, weaker model {p.weak}."
        )
        if p != a:
            text += (
                f" Scaled down for a CPU: the profile asks for {a.cases} test cases a seed, "
                f"{a.cases / p.cases:.0f} times as many."
            )
        return text

    def once(self, key: Any, made: Callable[[], Any]) -> Any:
        """What was made under that key before, or now."""
        if key not in self._kept:
            self._kept[key] = made()
        return self._kept[key]

    def asker(self, which: str = "model") -> Asker:
        """The model (``model`` or ``weak``) with its bill."""

        def made() -> Asker:
            name = getattr(self.profile, which)
            return Asker(Remembering(self._model or models.load(name, device="cpu", cache=False)), self.format)

        return self.once(("asker", which), made)

    def setting(self, seed: int, *, dev: bool = False, note: bool = False) -> Setting:
        """Cases and sources of a seed; ``note`` writes the cases as clinical notes."""
        p = self.profile

        def made() -> Setting:
            base = self.once(("base", seed), lambda: self._sources(seed))
            gold = clinic.cases(p.dev if dev else p.cases, (DEV if dev else 0) + 100 + seed, w=self.world)
            if note:
                gold = [clinic.as_note(case, i) for i, case in enumerate(gold)]
            common = set(clinic.seen_diseases(self.world))
            return Setting(gold, *base, np.array([case.diagnosis in common for case in gold]))

        return self.once(("setting", seed, dev, note), made)

    def _sources(self, seed: int) -> tuple[list[Record], list[clinic.Document], Knowledge]:
        seen = clinic.seen_diseases(self.world)
        drawn = clinic.cases(self.profile.database, 50_000 + seed, among=seen, w=self.world)
        records = [Record(c.id, c.text, c.reasoning(), c.diagnosis) for c in drawn]
        pages = clinic.articles(seed, self.world)
        return records, pages, self.knowledge(records, pages)

    def knowledge(self, records: Sequence[Record], pages: Sequence[clinic.Document]) -> Knowledge:
        """The indexes, built once."""
        return Knowledge(
            self.findings,
            self.diseases,
            LocalSearch(pages, blocklist=(clinic.ANSWER_SITE,)),
            CaseIndex(records, encode=latent([r.text for r in records])),
            TraceIndex(records, self.findings.entities),
        )

    # The method

    def gathered(
        self, seed: int, which: str = "model", *, dev: bool = False, note: bool = False
    ) -> tuple[Setting, list[Result]]:
        """A seed's cases and what stage 1 finds; the weaker model and notes get the first ``extra`` cases only."""
        setting = self.setting(seed, dev=dev, note=note)
        if not dev and (note or which == "weak"):
            setting = setting.first(self.profile.extra)
        return setting, self.once(
            ("gathered", seed, which, dev, note),
            lambda: method.gather(setting.cases, self.asker(which), setting.knowledge, self.config),
        )

    def tuned(self, seed: int, which: str = "model") -> tuple[dict[str, float], float, str]:
        """(source weights by accuracy, alpha, best source), chosen on the seed's dev cases by H@1."""

        def made() -> tuple[dict[str, float], float, str]:
            setting, found = self.gathered(seed, which, dev=True)
            single = {s: score(setting.gold, self.alone(found, s)).hit(1) for s in SOURCES}
            at = {a: score(setting.gold, self.concluded(setting, found, which, alpha=a)).hit(1) for a in ALPHAS}
            return single, max(ALPHAS, key=lambda a: (at[a], -abs(a - 0.5))), max(single, key=single.get)

        return self.once(("tuned", seed, which), made)

    def concluded(
        self, setting: Setting, found: Sequence[Result], which: str = "model", **changes: Any
    ) -> list[Answer]:
        """Stage 2 on what stage 1 found."""
        results = method.integrate(found, self.asker(which), setting.knowledge, replace(self.config, **changes))
        return [answer_of(r, self.diseases) for r in results]

    def alone(self, found: Sequence[Result], source: str) -> list[Answer]:
        """A single source's list."""
        return [self._listed(r.sources[source]) for r in found]

    def _listed(self, out: SourceOut) -> Answer:
        usual = method.match({"": out.names}, self.diseases)
        listed = list(dict.fromkeys(usual[name] for name in out.names))
        path = out.hypotheses[0].evidence if out.hypotheses else ()
        return Answer(listed, {(e.text, listed[0], e.stance) for e in path})

    # Systems on a seed's cases

    def answers(self, seed: int, which: str = "model") -> dict[str, list[Answer]]:
        """Every system's answers; the weaker model goes through the main systems only."""
        return self.once(("answers", seed, which), lambda: dict(self._systems(seed, which)))

    def scores(self, seed: int, which: str = "model") -> dict[str, Scores]:
        """Every system scored."""

        def made() -> dict[str, Scores]:
            setting, _ = self.gathered(seed, which)
            return {name: score(setting.gold, answers) for name, answers in self.answers(seed, which).items()}

        return self.once(("scores", seed, which), made)

    def _systems(self, seed: int, which: str) -> Iterator[tuple[str, list[Answer]]]:
        setting, found = self.gathered(seed, which)
        weights, alpha, _ = self.tuned(seed, which)
        yield "memory only", self.memory(setting, which)
        for source in SOURCES:
            yield source, self.alone(found, source)
        yield "simple vote", self.concluded(setting, found, which, vote="simple", differential="none")
        yield "MultiDx", self.concluded(setting, found, which, alpha=alpha)
        if which != "model":
            return
        yield "rank vote", self.concluded(setting, found, which, differential="none")
        yield "weighted vote", self.concluded(setting, found, which, differential="none", weights=weights)
        yield "reciprocal ranks", self.concluded(setting, found, which, differential="none", kappa=60.0)
        yield "Borda", self.borda(found)
        yield "single prompt", self.concluded(setting, found, which, stage2="single_prompt")
        yield "counted evidence", self.concluded(setting, found, which, differential="evidence", alpha=alpha)
        yield "pooled, one call's budget", self.pooled(setting, found, which, self.profile.budget)
        yield "pooled, same total budget", self.pooled(setting, found, which, len(READING) * self.profile.budget)
        yield "self-refined", self.refined(setting, which)
        yield "five samples", self.sampled(setting, which)
        yield "nearest cases", self.neighbours(setting)
        yield "naive Bayes", self.bayes(setting)
        yield "logistic regression", self.regression(setting)
        yield "rule reasoner", self.rules(setting, found)
        exact = np.array([clinic.posterior(case, self.world) for case in setting.gold])
        yield "exact posterior", ranked(np.array(self.world.diseases), exact)

    def one_call(self, setting: Setting, which: str, read: Sequence[list[Statement]]) -> list[Answer]:
        """The model beside some statements, in a single call."""
        outs = method.suspect("one call", setting.cases, read, self.asker(which), setting.knowledge)
        return [self._listed(out) for out in outs]

    def memory(self, setting: Setting, which: str = "model") -> list[Answer]:
        """The model alone, on the text as it stands."""
        return self.one_call(setting, which, [[] for _ in setting.gold])

    def pooled(self, setting: Setting, found: Sequence[Result], which: str, budget: int) -> list[Answer]:
        """One call that reads what all sources found, within ``budget`` statements."""
        return self.one_call(setting, which, [self._pool(r, setting, budget) for r in found])

    def _pool(self, r: Result, setting: Setting, budget: int) -> list[Statement]:
        return select([r.sources[s].read for s in READING], budget, method.worth(r.case, setting.knowledge))

    def borda(self, found: Sequence[Result]) -> list[Answer]:
        """Ten points for a first place, nine for a second."""
        answers = []
        for r in found:
            points: dict[str, float] = {}
            for source in SOURCES:
                for rank, name in enumerate(self._listed(r.sources[source]).diagnoses):
                    points[name] = points.get(name, 0) + 10 - rank
            answers.append(Answer(sorted(points, key=lambda d: -points[d])[:10], set()))
        return answers

    def refined(self, setting: Setting, which: str = "model", rounds: int = 3) -> list[Answer]:
        """Self-refinement from memory: the first suspect is compared with each of the next three, and gives way."""
        current = self.memory(setting, which)
        for i in range(1, rounds + 1):
            at = [j for j, a in enumerate(current) if len(a.diagnoses) > i]
            pairs = [(current[j].diagnoses[0], current[j].diagnoses[i]) for j in at]
            asked = [self.format.compare(setting.cases[j].text, a, b, []) for j, (a, b) in zip(at, pairs, strict=True)]
            for j, (_, b), told in zip(at, pairs, self.asker(which)("compare", asked), strict=True):
                if names(told.get("better", "")) == [b]:
                    listed = [b, *(d for d in current[j].diagnoses if d != b)]
                    current[j] = Answer(
                        listed, {(f, b, "+") for f in method.findings(told, setting.cases[j].text, setting.knowledge)}
                    )
        return current

    def sampled(self, setting: Setting, which: str = "model", samples: int = 5) -> list[Answer]:
        """Self-consistency: the ranks of five sampled lists from memory, added up."""
        lists: list[dict[str, list[str]]] = [{} for _ in setting.gold]
        for k in range(samples):
            hot = {"temperature": 0.7, "top_p": 0.95, "seed": k}
            asked = [replace(self.format.suspects(case.text, []), **hot) for case in setting.cases]
            for x, told in zip(lists, self.asker(which)("suspects", asked), strict=True):
                x[str(k)] = names(told.get("suspects", ""))[:10]
        return [Answer(list(method.vote(x, self.config))[:10], set()) for x in lists]

    # Controls without a language model

    def neighbours(self, setting: Setting, k: int = 10) -> list[Answer]:
        """BM25's nearest cases vote with their scores."""
        index = BM25([r.text for r in setting.records])
        answers = []
        for row in index.search([c.text for c in setting.cases], k).lists():
            points: dict[str, float] = {}
            for i, s in row:
                name = setting.records[i].diagnosis
                points[name] = points.get(name, 0) + s
            answers.append(Answer(sorted(points, key=lambda d: -points[d]), set()))
        return answers

    def _matrix(self, texts: Sequence[str]) -> np.ndarray:
        """[N, F] is the finding present, by the dictionary?"""
        at = {f: i for i, f in enumerate(self.world.findings)}
        x = np.zeros((len(texts), len(at)), bool)
        for row, text in zip(x, texts, strict=True):
            for finding, status in self.findings.mentions(text):
                row[at[finding]] |= status == "present"
        return x

    def bayes(self, setting: Setting) -> list[Answer]:
        """Naive Bayes on the findings of the database."""
        from sklearn.naive_bayes import BernoulliNB

        fitted = BernoulliNB(alpha=0.1).fit(
            self._matrix([r.text for r in setting.records]), [r.diagnosis for r in setting.records]
        )
        return ranked(fitted.classes_, fitted.predict_proba(self._matrix([c.text for c in setting.cases])))

    def regression(self, setting: Setting) -> list[Answer]:
        """Logistic regression on TF-IDF of the database's texts."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        tfidf = TfidfVectorizer(token_pattern=r"[\w-]+")
        x = tfidf.fit_transform([r.text for r in setting.records])
        fitted = LogisticRegression(C=30.0, max_iter=300).fit(x, [r.diagnosis for r in setting.records])
        return ranked(fitted.classes_, fitted.predict_proba(tfidf.transform([c.text for c in setting.cases])))

    def rules(self, setting: Setting, found: Sequence[Result]) -> list[Answer]:
        """The count that the model was taught, without its errors, on the pooled statements and its memory."""
        known = clinic.memory(*language.KNOWS["resident"]) if self.world is clinic.world() else frozenset()
        answers = []
        for case, r in zip(setting.gold, found, strict=True):
            facts = self.plain.pairs(self._pool(r, setting, len(READING) * self.profile.budget), usual=True)
            listed = [d for d, _ in language.ranking(case.mentions, facts, known)]
            told = language.supporting(listed[0], case.mentions, facts, known) if listed else []
            answers.append(Answer(listed, {(f, listed[0], "+") for f in told}))
        return answers


# What the claims are decided by


def hits(lab: Lab, system: str, k: int, which: str = "model") -> list[float]:
    """H@k of a system, by seed."""
    return [lab.scores(seed, which)[system].hit(k) for seed in range(lab.profile.seeds)]


def paths(lab: Lab, system: str, what: str = "recall") -> list[float]:
    """Mean recall (or ``precision``) of a system's paths, by seed."""
    return [float(getattr(lab.scores(seed)[system], what).mean()) for seed in range(lab.profile.seeds)]


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a - b, seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def gains(lab: Lab) -> dict[str, list[float]]:
    """The differences of claims M1 to M9 and P1, by measurement and seed."""
    seeds, found = range(lab.profile.seeds), {}
    best = [lab.tuned(seed)[2] for seed in seeds]

    def best_hit(k: int) -> list[float]:
        return [lab.scores(seed)[source].hit(k) for seed, source in zip(seeds, best, strict=True)]

    for k in (1, 5, 10):
        whole = hits(lab, "MultiDx", k)
        found[f"m1_h{k}"] = minus(whole, hits(lab, "memory only", k))
        found[f"m2_h{k}"] = minus(whole, best_hit(k))
        found[f"m6_h{k}"] = minus(whole, hits(lab, "simple vote", k))
        found[f"p1_h{k}"] = minus(whole, hits(lab, "pooled, same total budget", k))
    found["m1_recall"] = minus(paths(lab, "MultiDx"), paths(lab, "memory only"))
    found["m1_precision"] = minus(paths(lab, "MultiDx", "precision"), paths(lab, "memory only", "precision"))
    base = hits(lab, "memory only", 10)
    found |= {f"m3_{source.lower()}": minus(hits(lab, source, 10), base) for source in SOURCES}
    others = [s for s in SOURCES if s != "Web"]
    found["m4_h10"] = minus(hits(lab, "Web", 10), np.max([hits(lab, s, 10) for s in others], axis=0))
    found["m4_recall"] = minus(paths(lab, "Web"), np.min([paths(lab, s) for s in others], axis=0))
    found |= {f"m5_h{k}": minus(hits(lab, "Traces", k), hits(lab, "Cases", k)) for k in (1, 5, 10)}
    found["m7_h1"] = minus(hits(lab, "simple vote", 1), best_hit(1))
    for where, among in (("seen", True), ("unseen", False)):

        def part(system: str, k: int, among: bool = among) -> list[float]:
            return [lab.scores(s)[system].hit(k, lab.setting(s).seen == among) for s in seeds]

        found |= {f"m8_{where}_h{k}": minus(part("MultiDx", k), part("memory only", k)) for k in (1, 5)}
        found |= {f"m8_{where}_{s.lower()}": minus(part(s, 5), part("memory only", 5)) for s in ("Cases", "Web")}
    return found


def backbones(lab: Lab) -> dict[str, list[float]]:
    """M9: gain at H@10 over memory of both models on the same cases, and the difference of the gains."""
    n, seeds = lab.profile.extra, range(lab.profile.seeds)
    strong = [
        np.mean([lab.scores(s)[name].rank[:n] <= 10 for name in ("MultiDx", "memory only")], axis=1) for s in seeds
    ]
    gain = [float(a - b) for a, b in strong]
    weak = minus(hits(lab, "MultiDx", 10, "weak"), hits(lab, "memory only", 10, "weak"))
    return {"m9_strong": gain, "m9_weak": weak, "m9_weak_minus_strong": minus(weak, gain)}


def neighbours(lab: Lab) -> dict[int, list[Scores]]:
    """M10: the case branch alone with k neighbours, by k and seed."""
    found: dict[int, list[Scores]] = {}
    for k in lab.profile.sweep:
        for seed in range(lab.profile.seeds):
            setting = lab.setting(seed)
            config = replace(lab.config, sources=("Cases",), k_cases=k)
            results = method.gather(setting.cases, lab.asker(), setting.knowledge, config)
            found.setdefault(k, []).append(score(setting.gold, lab.alone(results, "Cases")))
    return found


SEARCHES = {"bm25": "BM25", "dense": "vectors", "rrf": "both, by rank fusion"}


def searches(lab: Lab) -> dict[str, dict[str, list[float]]]:
    """Ways to find similar cases: way -> by seed, the share of the ``k_cases`` neighbours that have the case's disease
    (``same``, over cases whose disease the database knows), and H@1 and H@10 of the case branch that reads them."""
    found: dict[str, dict[str, list[float]]] = {way: {"same": [], "h1": [], "h10": []} for way in SEARCHES}
    for way, rows in found.items():
        config = replace(lab.config, sources=("Cases",), case_search=way)
        for seed in range(lab.profile.seeds):
            setting = lab.setting(seed)
            near = setting.knowledge.cases.near([c.text for c in setting.gold], config.k_cases, by=way)
            shares = [np.mean([r.diagnosis == c.diagnosis for r in rs]) for c, rs in zip(setting.gold, near)]
            rows["same"].append(float(np.mean(np.array(shares)[setting.seen])))
            results = method.gather(setting.cases, lab.asker(), setting.knowledge, config)
            scores = score(setting.gold, lab.alone(results, "Cases"))
            rows["h1"].append(scores.hit(1))
            rows["h10"].append(scores.hit(10))
    return found


def notes(lab: Lab) -> dict[str, list[float]]:
    """M11: what SOAP adds to the whole at H@1 and H@10, for cases in prose and the same cases as notes."""
    found: dict[str, list[float]] = {}
    for seed in range(lab.profile.seeds):
        for kind in ("prose", "note"):
            setting, results = lab.gathered(seed, note=kind == "note")
            setting, results = setting.first(lab.profile.extra), results[: lab.profile.extra]
            whole = score(setting.gold, lab.concluded(setting, results))
            without = score(setting.gold, lab.concluded(setting, results, sources=READING))
            for k in (1, 10):
                found.setdefault(f"m11_{kind}_h{k}", []).append(whole.hit(k) - without.hit(k))
    for k in (1, 10):
        found[f"m11_shrinks_h{k}"] = minus(found[f"m11_prose_h{k}"], found[f"m11_note_h{k}"])
    return found


def robustness(lab: Lab) -> dict[str, list[Scores]]:
    """The whole method with each source missing, and with a web whose every page names the wrong disease."""
    found: dict[str, list[Scores]] = {}
    n = lab.profile.extra
    for seed in range(lab.profile.seeds):
        setting, results = lab.gathered(seed)
        setting, results = setting.first(n), results[:n]
        arms = {"all four": lab.concluded(setting, results)}
        for source in SOURCES:
            rest = tuple(s for s in SOURCES if s != source)
            arms[f"without {source}"] = lab.concluded(setting, results, sources=rest)
        liar = replace(
            setting.knowledge, web=LocalSearch(clinic.lies(setting.pages, seed), blocklist=(clinic.ANSWER_SITE,))
        )
        told = method.gather(setting.cases, lab.asker(), liar, replace(lab.config, sources=("Web",)))
        spoilt = [replace(r, sources=r.sources | t.sources) for r, t in zip(results, told, strict=True)]
        arms["a web that lies"] = lab.concluded(setting, spoilt)
        for name, answers in arms.items():
            found.setdefault(name, []).append(score(setting.gold, answers))
    return found


def reuse(lab: Lab) -> list[float]:
    """M12: log10 of (processor time to build the trace index and ask it once) over (time to ask the one that is there),
    by seed."""
    found = []
    for seed in range(lab.profile.seeds):
        setting = lab.setting(seed)
        traces, records, k = setting.knowledge.traces, setting.records, lab.config.k_steps
        began = time.process_time()
        for case in setting.cases:
            traces.near(case.text, k)
        asked = (time.process_time() - began) / len(setting.cases)
        fresh = Lab(lab.profile, lab.asker().model, lab.world).findings  # nothing read before
        began = time.process_time()
        TraceIndex(records, fresh.entities).near(setting.cases[0].text, k)
        found.append(float(np.log10((time.process_time() - began) / max(asked, 1e-6))))
    return found


def skill(lab: Lab) -> list[float]:
    """What every comparison needs: H@1 of the model from memory minus that of always naming the most common disease of
    the database, by seed."""
    found = []
    for seed in range(lab.profile.seeds):
        setting = lab.setting(seed)
        usual = Counter(r.diagnosis for r in setting.records).most_common(1)[0][0]
        constant = np.mean([case.diagnosis == usual for case in setting.gold])
        found.append(float(lab.scores(seed)["memory only"].hit(1) - constant))
    return found


def bill(lab: Lab) -> dict[str, tuple[int, float]]:
    """Answers asked for and the share that could not be parsed, by step."""
    asker = lab.asker()
    return {step: (n, asker.failed[step] / n) for step, n in sorted(asker.asked.items()) if n}


# Real tables


def slug(name: str) -> str:
    """A name as one word."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def ddxplus_world() -> clinic.World:
    """DDXPlus as a clinic: 49 diseases with the published rates of 208 binary evidences and patient counts."""
    rows = tables.ddxplus_profiles()
    findings = sorted({slug(code) for row in rows for code in row.rates})
    rate = np.zeros((len(rows), len(findings)))
    for d, row in enumerate(rows):
        for code, value in row.rates.items():
            rate[d, findings.index(slug(code))] = min(value, 0.999)
    prior = np.array([row.patients for row in rows], float)
    diseases = tuple(f"cui-{row.concept.lower()}" for row in rows)
    return clinic.World(
        diseases, tuple(findings), {}, {}, np.arange(len(rows)), rate, np.tile(prior / prior.sum(), (3, 1))
    )


def graph_world() -> clinic.World:
    """The knowledge graph of DDXPlus as a clinic: the symptoms of each disease, one in two of them there in a case (the
    graph has no rates), every disease as frequent as another. Diseases with fewer than five symptoms are left out."""
    links: dict[str, set[str]] = {}
    for triple in tables.ddxplus_graph():
        if triple.relation == "has_symptomatology":
            links.setdefault(slug(triple.subject), set()).add(slug(triple.object))
    links = {d: found for d, found in sorted(links.items()) if len(found) >= 5}
    findings = sorted(set().union(*links.values()))
    rate = np.array([[0.5 * (f in found) for f in findings] for found in links.values()])
    n = len(links)
    return clinic.World(tuple(links), tuple(findings), {}, {}, np.arange(n), rate, np.full((3, n), 1 / n))


def real(lab: Lab) -> dict[str, list[float]]:
    """H@1, H@5, H@10 on the catalogue's tables, by data and system; nothing where the profile has none. The two clinics
    go through the whole pipeline; MedlinePlus and DiReCT only through the search, whose queries are the graph's
    symptoms of each disease and the signs of each suspicion."""
    if not lab.profile.real:
        return {}
    for name in ("ddxplus_profiles", "ddxplus_graph", "medlineplus", "direct_graphs"):
        lab.used += catalogue.used(name)
    found: dict[str, list[float]] = {}
    small = replace(lab.profile, profile="real", seeds=1, cases=2 * lab.profile.extra, extra=lab.profile.extra)
    for name, world in (("DDXPlus rates", ddxplus_world()), ("DDXPlus graph", graph_world())):
        other = Lab(small, None, world)
        inner = models.load(small.model, device="cpu", cache=False)
        other._kept["asker", "model"] = Asker(Remembering(Spoken(inner, other.findings, other.diseases)), other.format)
        for system, scores in other.scores(0).items():
            if system in REAL_SYSTEMS:
                found[f"{name}: {system}"] = [scores.hit(k) for k in (1, 5, 10)]
        lab.shortened[name] = other.format.shortened / other.format.asked
    passages = tables.medlineplus()
    links: dict[str, list[str]] = {}
    for triple in tables.ddxplus_graph():
        if triple.relation == "has_symptomatology":
            links.setdefault(slug(triple.subject), []).append(triple.object)
    about = {slug(row["title"]) for row in passages}
    pages = [(f"{slug(row['title'])}#{i}", "", row["text"]) for i, row in enumerate(passages)]
    queries = {d: " ".join(told[:8]) for d, told in links.items() if d in about}
    found["MedlinePlus: search for a disease by its symptoms"] = _searched(pages, queries)
    nodes = tables.direct_graphs()
    pages = [(f"{slug(group)}#{i}", "", text) for group, told in nodes.items() for i, (node, text) in
             enumerate(told.items()) if not node.startswith("Suspected")]  # fmt: skip
    first = {
        slug(group): next((t for n, t in told.items() if n.startswith("Suspected")), "")
        for group, told in nodes.items()
    }
    found["DiReCT: search for a group by its first signs"] = _searched(pages, {g: t for g, t in first.items() if t})
    return found


REAL_SYSTEMS = (*SOURCES, "simple vote", "MultiDx", "pooled, same total budget", "nearest cases", "naive Bayes",
                "rule reasoner", "exact posterior")  # fmt: skip


def _searched(pages: Sequence[tuple[str, str, str]], queries: Mapping[str, str]) -> list[float]:
    """Share of the queries whose page (its address up to ``#``) is among the first 1, 5, 10."""
    index = LocalSearch(pages)
    ranks = []
    for wanted, query in queries.items():
        listed = list(dict.fromkeys(hit.ref.partition("#")[0] for hit in index.search(query, 40)))
        ranks.append(listed.index(wanted) + 1 if wanted in listed else 99)
    return [float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)]


# The paper's own tables


def quoted() -> dict[str, Any]:
    """Numbers as others print them (``book/quoted/multidx.yml``)."""
    return yaml.safe_load((root() / "book" / "quoted" / "multidx.yml").read_text(encoding="utf-8"))


def audit() -> dict[str, float]:
    """Arithmetic on the quoted tables.

    ``a1_equal_cells``: cells in which "+ web search" and OpenAI-DR print the same H@k. ``a2_vote_minus_web_h1``,
    ``_h5``: the simple vote minus web search alone. ``a3_margin_in_errors``: the whole over web search at H@1, in
    standard errors of one proportion of 300 cases. ``a4_mixing_gap_h1``, ``_h5``: the share of seen cases that the
    overall numbers imply for DeepSeek-R1 and for MultiDx, apart by this much at least after rounding. ``a5_odd_cells``:
    H@k of the DiReCT table that are no count over 50 cases and three runs, rounded or cut to three digits.
    """
    found_in = quoted()
    main = {(row[0], row[1]): row[2:] for row in found_in["main"]["rows"]}
    one, two = found_in["sources"]["rows"], found_in["stage2"]["rows"]
    web, whole = one["Web"], one["MultiDx"]
    n = found_in["main"]["cases"]["MedCaseReasoning"]
    found: dict[str, float] = {
        "a1_equal_cells": sum(a == b for a, b in zip(web[:3], main["MedCaseReasoning", "OpenAI-DR"][1:], strict=True)),
        "a2_vote_minus_web_h1": two["simple vote"][0] - web[0],
        "a2_vote_minus_web_h5": two["simple vote"][1] - web[1],
        "a3_margin_in_errors": (whole[0] - web[0]) / (web[0] * (1 - web[0]) / n) ** 0.5,
    }
    for at, k in ((0, 1), (1, 5)):
        ends = []
        for name in ("DeepSeek-R1", "MultiDx"):
            seen, unseen = found_in["seen"]["rows"][name][at], found_in["seen"]["rows"][name][at + 2]
            ends.append([(one[name][at] + a - unseen - b) / (seen + c - unseen - b)
                         for a in (-5e-4, 5e-4) for b in (-5e-4, 5e-4) for c in (-5e-4, 5e-4)])  # fmt: skip
        found[f"a4_mixing_gap_h{k}"] = max(0.0, min(ends[1]) - max(ends[0]), min(ends[0]) - max(ends[1]))
    total = found_in["main"]["cases"]["DiReCT"] * found_in["main"]["runs"]
    cells = [value for (data, _), row in main.items() if data == "DiReCT" for value in row[1:]]
    counts = np.arange(total + 1) / total
    found["a5_odd_cells"] = sum(not ((counts > v - 5.1e-4) & (counts < v + 1e-3 - 1e-9)).any() for v in cells)
    return {name: float(value) for name, value in found.items()}
