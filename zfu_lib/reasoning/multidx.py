"""MultiDx (arXiv 2604.24186): a diagnosis from four sources, then a differential between what they suspect.

Symbols of the paper: C a case, H_src the suspected diagnoses of a source with their reasoning paths, R the final
reasoning, D the ranked diagnoses. Stage 1 (section 2.3) is :func:`gather`, stage 2 (section 2.4, Eq. 13) is
:func:`match`, :func:`vote`, :func:`differential` and :func:`conclude`; the released code's single prompt is
``Config(stage2="single_prompt")``. The paper prints no formula for the votes; those here are this book's.

Every call is made by a :class:`~zfu_lib.lm.protocol.LanguageModel` for all cases at once, read by one parser
(:mod:`zfu_lib.reasoning.dx_format`), and entered into the trace of its case. This is research and not medical advice.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from zfu_lib.lm.protocol import GenRequest, LanguageModel, Ledger, ModelError
from zfu_lib.reasoning.dx_format import Format, names, sections
from zfu_lib.reasoning.sources import (
    CaseIndex,
    Dictionary,
    SearchAdapter,
    SourceError,
    Statement,
    TraceIndex,
    select,
    statements,
)

SOURCES = ("SOAP", "Web", "Cases", "Traces")
Source = Literal["SOAP", "Web", "Cases", "Traces"]


class Case(NamedTuple):
    """C: free text and a name."""

    id: str
    text: str


class Evidence(NamedTuple):
    """A statement for (``+``) or against (``-``) a diagnosis, who says so, and where: ``ref`` names the passage, or is
    ``model`` where the model cited none."""

    text: str
    stance: str
    source: str
    ref: str


class Hypothesis(NamedTuple):
    """A suspected diagnosis, its rank (from 1) in its source, and its path."""

    name: str
    rank: int
    evidence: tuple[Evidence, ...] = ()


@dataclass
class SourceOut:
    """H_src. ``read`` is what the model was shown; ``problem`` says why a source has nothing to say."""

    source: str
    hypotheses: list[Hypothesis] = field(default_factory=list)
    read: list[Statement] = field(default_factory=list)
    problem: str = ""

    @property
    def names(self) -> list[str]:
        """The suspects, best first."""
        return [h.name for h in self.hypotheses]


class Event(NamedTuple):
    """A line of the audit: which step, what it was about, what came out."""

    step: str
    about: str
    outcome: str


@dataclass
class Result:
    """D, R and how they came about."""

    case: Case
    diagnoses: list[str] = field(default_factory=list)
    reasoning: list[tuple[str, Evidence]] = field(default_factory=list)
    sources: dict[str, SourceOut] = field(default_factory=dict)
    support: dict[str, float] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are the paper's form.

    ``k_cases``, ``k_steps`` of section 2.3; ``budget`` statements a reasoning call reads (0: no bound); ``searches``
    queries and ``pages`` opened for each. ``vote``: ``simple`` orders by the number of sources, then by the score;
    ``rank`` by the score sum of w / (kappa + rank). ``differential``: ``model`` asks for each pair, ``evidence`` counts
    cited statements, ``none`` stops after the vote. ``finalists`` enter it; ``alpha`` is the vote's share of the final
    score. ``longest`` bounds the final reasoning. ``stage2="single_prompt"`` is what the released code does.

    Raises:
        ValueError: an unknown word or a size below its least.
    """

    sources: tuple[str, ...] = SOURCES
    k_cases: int = 10
    k_steps: int = 10
    case_search: str = "bm25"
    budget: int = 12
    searches: int = 2
    pages: int = 2
    vote: str = "rank"
    kappa: float = 10.0
    weights: Mapping[str, float] = field(default_factory=dict)
    differential: str = "model"
    finalists: int = 5
    alpha: float = 0.5
    longest: int = 12
    stage2: str = "steps"
    parallel: bool = False

    def __post_init__(self) -> None:
        wrong = [s for s in self.sources if s not in SOURCES]
        words = {
            "vote": (self.vote, ("simple", "rank")),
            "differential": (self.differential, ("model", "evidence", "none")),
            "stage2": (self.stage2, ("steps", "single_prompt")),
        }
        wrong += [f"{name} = {value!r}" for name, (value, known) in words.items() if value not in known]
        wrong += [f"{n} = {getattr(self, n)}" for n in ("budget", "k_cases", "k_steps", "searches", "pages")
                  if getattr(self, n) < 0]  # fmt: skip
        if wrong or not self.sources or self.kappa < 0 or not 0 <= self.alpha <= 1 or self.finalists < 1:
            raise ValueError(f"configuration out of range: {', '.join(map(str, wrong)) or self}")


@dataclass
class Knowledge:
    """What the sources are made of, indexed once. A source without its part has a ``problem`` and no hypotheses.

    ``findings`` and ``diseases`` are dictionaries over ontology terms; any object with their methods will do
    (SciSpaCy's recogniser in the paper).
    """

    findings: Dictionary
    diseases: Dictionary
    web: SearchAdapter | None = None
    cases: CaseIndex | None = None
    traces: TraceIndex | None = None


class Asker:
    """A model with its format and its bill. ``failed`` counts answers without the heading that was asked for."""

    def __init__(self, model: LanguageModel, format: Format, ledger: Ledger | None = None) -> None:
        self.model, self.format, self.ledger = model, format, ledger if ledger is not None else Ledger()
        self.asked: dict[str, int] = defaultdict(int)
        self.failed: dict[str, int] = defaultdict(int)

    def __call__(self, step: str, requests: Sequence[GenRequest | str]) -> list[dict[str, str]]:
        """The sections of each answer, by heading in lower case. A request that is a text is its own answer: the format
        does that step by rules."""
        asked = [request for request in requests if isinstance(request, GenRequest)]
        told = iter(self.ledger.generate(self.model, asked) if asked else ())
        answers = [sections(next(told).text if isinstance(r, GenRequest) else r) for r in requests]
        wanted = self.format.heading(step)
        self.asked[step] += len(asked)
        self.failed[step] += sum(
            wanted not in answer for answer, r in zip(answers, requests, strict=True) if isinstance(r, GenRequest)
        )
        return answers

    def failure_rate(self) -> float:
        """Share of all answers that could not be parsed."""
        return sum(self.failed.values()) / max(1, sum(self.asked.values()))


# Stage 1: suspected diagnoses and reasoning paths


def gather(cases: Sequence[Case], asker: Asker, knowledge: Knowledge, config: Config | None = None) -> list[Result]:
    """H_web, H_SOAP, H_case, H_trace of every case (section 2.3). The branches do not know each other; with
    ``parallel`` each runs in a thread of its own, which pays for a model behind a server. A branch that fails is
    empty and says why."""
    config = config or Config()
    results = [Result(case) for case in cases]
    full = [r for r in results if r.case.text.strip()]
    for r in results:
        if not r.case.text.strip():
            r.log.append(Event("case", r.case.id, "empty: nothing to diagnose"))
            r.sources = {s: SourceOut(s, problem="the case is empty") for s in config.sources}

    def run(source: str) -> list[SourceOut]:
        try:
            return _BRANCHES[source](full, asker, knowledge, config)
        except (SourceError, ModelError) as error:
            return [SourceOut(source, problem=str(error)) for _ in full]

    if config.parallel and len(config.sources) > 1:
        with ThreadPoolExecutor(len(config.sources)) as pool:
            outs = list(pool.map(run, config.sources))
    else:
        outs = [run(source) for source in config.sources]
    for source, found in zip(config.sources, outs, strict=True):
        for result, out in zip(full, found, strict=True):
            result.sources[source] = out
            result.log.append(Event(f"stage 1, {source}", f"{len(out.read)} statements", out.problem or
                                    "; ".join(out.names) or "no suspect could be read"))  # fmt: skip
    return results


def soap_branch(results: Sequence[Result], asker: Asker, knowledge: Knowledge, config: Config) -> list[SourceOut]:
    """C_S = LLM(p_soap, C), H_SOAP = LLM(p_dx, C_S) (Eq. 1-2)."""
    form = asker.format
    notes = asker("soap", [form.soap(r.case.text) for r in results])
    structured = []
    for r, note in zip(results, notes, strict=True):
        parts = [f"{head.upper()} : {note[head]}" for head in "soap" if head in note]
        structured.append(Case(r.case.id, "\n".join(parts) or r.case.text))
        r.log.append(Event("SOAP", r.case.id, " ".join(parts) or "not sorted: the text as it stands"))
    return suspect("SOAP", structured, [[] for _ in results], asker, knowledge)


def case_branch(results: Sequence[Result], asker: Asker, knowledge: Knowledge, config: Config) -> list[SourceOut]:
    """H_case = LLM(p_case, C, topk(G)) (Eq. 3-4): the reasoning and diagnosis of the nearest cases."""
    if knowledge.cases is None:
        raise SourceError("there is no case database")
    texts, ids = [r.case.text for r in results], [r.case.id for r in results]
    near = knowledge.cases.near(texts, config.k_cases, ids=ids, by=config.case_search)
    groups = [
        [statements(re.sub(r"(?m)^\s*\d+[.)]\s+", "", n.reasoning), "cases", n.id) for n in found] for found in near
    ]
    read = _budgeted(groups, results, knowledge, config)
    return suspect("Cases", [r.case for r in results], read, asker, knowledge)


def trace_branch(results: Sequence[Result], asker: Asker, knowledge: Knowledge, config: Config) -> list[SourceOut]:
    """H_trace = LLM(p_trace, C, top-k steps by J) (Eq. 5-7)."""
    if knowledge.traces is None:
        raise SourceError("there is no database of reasoning")
    groups = [
        [[s for s, _ in knowledge.traces.near(r.case.text, config.k_steps, own=r.case.id)]] if config.k_steps else []
        for r in results
    ]
    read = _budgeted(groups, results, knowledge, config)
    return suspect("Traces", [r.case for r in results], read, asker, knowledge)


def web_branch(results: Sequence[Result], asker: Asker, knowledge: Knowledge, config: Config) -> list[SourceOut]:
    """Plan the queries (Eq. 8-9), open pages (Eq. 10), fold each into the memory m_i = LLM(m_{i-1}, s_i) (Eq. 11), then
    H_web from the memory (Eq. 12). What a page says chooses neither the next query nor the number of steps."""
    if knowledge.web is None:
        raise SourceError("there is no search")
    form = asker.format
    plans = asker("plan", [form.plan(r.case.text) for r in results])
    pages: list[list[str]] = []
    for r, plan in zip(results, plans, strict=True):
        queries = names(plan.get("query", ""))[: config.searches] or [r.case.text]
        refs: list[str] = []
        for query in queries:
            try:
                refs += [hit.ref for hit in knowledge.web.search(query, config.pages)]
                r.log.append(Event("search", query, "; ".join(refs[-config.pages :])))
            except SourceError as error:
                r.log.append(Event("search", query, f"failed: {error}"))
        pages.append(list(dict.fromkeys(refs)))
    memory: list[list[Statement]] = [[] for _ in results]
    for i in range(max(map(len, pages), default=0)):
        opened = []
        for r, refs, m in zip(results, pages, memory, strict=True):
            if i < len(refs):
                try:
                    said = statements(knowledge.web.open(refs[i]), "web", refs[i])
                    opened.append((r, m, refs[i], select([said], config.budget or len(said), worth(r.case, knowledge))))
                except SourceError as error:
                    r.log.append(Event("page", refs[i], f"failed: {error}"))
        opened = [row for row in opened if row[3]]
        notes = asker("notes", [form.notes(r.case.text, m, said) for r, m, _, said in opened])
        for (r, m, ref, said), note in zip(opened, notes, strict=True):
            kept = [Statement(text, "web", ref) for text in form.noted(note.get("notes", ""), said)]
            m += [s for s in kept if s.text not in {old.text for old in m}]
            r.log.append(Event("page", ref, "; ".join(s.text for s in kept) or "nothing noted"))
    read = _budgeted([[m] for m in memory], results, knowledge, config)
    outs = suspect("Web", [r.case for r in results], read, asker, knowledge)
    for r, out in zip(results, outs, strict=True):
        if not out.read and any(e.outcome.startswith("failed") for e in r.log):
            out.problem, out.hypotheses = "no page could be read", []
    return outs


_BRANCHES: dict[str, Callable[..., list[SourceOut]]] = {
    "SOAP": soap_branch,
    "Web": web_branch,
    "Cases": case_branch,
    "Traces": trace_branch,
}


def suspect(
    source: str, cases: Sequence[Case], read: Sequence[list[Statement]], asker: Asker, knowledge: Knowledge
) -> list[SourceOut]:
    """H = LLM(p, C, statements), each suspect with its path."""
    texts = [case.text for case in cases]
    answers = asker("suspects", [asker.format.suspects(t, s) for t, s in zip(texts, read, strict=True)])
    outs = []
    for text, shown, answer in zip(texts, read, answers, strict=True):
        out = SourceOut(source, read=shown)
        listed = list(dict.fromkeys(names(answer.get("suspects", ""))))[:10]
        said = findings(answer, text, knowledge)
        for rank, name in enumerate(listed, 1):
            path = cited(name, text, shown, knowledge)
            if rank == 1:
                there = {e.text for e in path}
                path += [Evidence(finding, "+", source, "model") for finding in said if finding not in there]
            out.hypotheses.append(Hypothesis(name, rank, tuple(path)))
        outs.append(out)
    return outs


def findings(answer: Mapping[str, str], text: str, knowledge: Knowledge) -> list[str]:
    """What an answer gives as reasons: findings by their usual names, or words that are no known finding. A finding
    that the case does not have is left out, whatever the model says."""
    has = {finding for finding, status in knowledge.findings.mentions(text) if status == "present"}
    found: list[str] = []
    for item in names(answer.get("because", "")):
        known = knowledge.findings.entities(item)
        found += sorted(known & has) if known else [item]
    return list(dict.fromkeys(found))


def cited(name: str, text: str, read: Sequence[Statement], knowledge: Knowledge) -> list[Evidence]:
    """What the statements say for or against a diagnosis: findings that a statement names with it and the case has
    (``+``) or denies (``-``)."""
    wanted, status = knowledge.diseases.canonical(name), dict(knowledge.findings.mentions(text))
    found: dict[str, Evidence] = {}
    for s in read:
        if wanted not in knowledge.diseases.entities(s.text):
            continue
        for finding in knowledge.findings.entities(s.text):
            stance = {"present": "+", "absent": "-"}.get(status.get(finding, ""))
            if stance:
                found.setdefault(finding, Evidence(finding, stance, s.source, s.ref))
    return list(found.values())


def worth(case: Case, knowledge: Knowledge) -> Callable[[str], float]:
    """How many findings of the case a statement names."""
    own = knowledge.findings.entities(case.text)
    return lambda text: len(own & knowledge.findings.entities(text))


def _budgeted(
    groups: Sequence[Sequence[Sequence[Statement]]], results: Sequence[Result], knowledge: Knowledge, config: Config
) -> list[list[Statement]]:
    return [
        select(g, config.budget or sum(map(len, g)), worth(r.case, knowledge))
        for g, r in zip(groups, results, strict=True)
    ]


# Stage 2: matching, voting, differential diagnosis

_NOISE = re.compile(r"\([^)]*\)|\b(?:stage|grade|type|acute|chronic|suspected|probable|possible)\s*(?:[ivx]+|\d+)?\b")


def key(name: str, diseases: Dictionary | None = None) -> str:
    """The canonical form of a diagnosis: usual name if the dictionary has it, lower case, no brackets, stage words or
    punctuation."""
    name = diseases.canonical(name) if diseases else name
    plain = " ".join(re.findall(r"[^\W_]+(?:-[^\W_]+)*", _NOISE.sub(" ", name.lower())))
    return (diseases.canonical(plain).lower() if diseases else plain) or name.lower().strip()


def match(
    lists: Mapping[str, Sequence[str]],
    diseases: Dictionary | None = None,
    *,
    same: Callable[[str, str], bool] | None = None,
    least: float = 0.85,
) -> dict[str, str]:
    """Matching: name -> the name it is merged into. Equal canonical forms, or words that agree by at least ``least``
    (Jaccard), are one diagnosis; pairs between 0.5 and ``least`` are left to ``same``."""
    distinct = list(dict.fromkeys(name for listed in lists.values() for name in listed))
    keys = {name: key(name, diseases) for name in distinct}
    parent = {name: name for name in distinct}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for a, b in combinations(distinct, 2):
        x, y = set(keys[a].split()), set(keys[b].split())
        alike = len(x & y) / len(x | y) if x | y else 0.0
        if keys[a] == keys[b] or alike >= least or (alike >= 0.5 and same is not None and same(a, b)):
            parent[root(b)] = root(a)

    def usual(name: str) -> str:
        first = root(name)
        return diseases.canonical(keys[first]) if diseases and keys[first] in diseases else first

    return {name: usual(name) for name in distinct}


class Vote(NamedTuple):
    """Support of a diagnosis: how many sources name it, and the sum of w / (kappa + rank)."""

    n: int
    score: float


def vote(lists: Mapping[str, Sequence[str]], config: Config) -> dict[str, Vote]:
    """Voting: v(d) sources name d; s(d) = sum over sources of w_src / (kappa + rank_src(d)); best first."""
    points: dict[str, Vote] = {}
    for source, listed in lists.items():
        for rank, name in enumerate(dict.fromkeys(listed), 1):
            n, s = points.get(name, Vote(0, 0.0))
            points[name] = Vote(n + 1, s + config.weights.get(source, 1.0) / (config.kappa + rank))
    by = (lambda v: (-v.n, -v.score)) if config.vote == "simple" else (lambda v: (-v.score, -v.n))
    return dict(sorted(points.items(), key=lambda pair: by(pair[1])))


def finalists(lists: Mapping[str, Sequence[str]], support: Mapping[str, Vote], config: Config) -> list[str]:
    """M: the ``finalists`` with the most support, and whatever a source puts first."""
    top = list(support)[: config.finalists]
    return list(dict.fromkeys([*top, *(listed[0] for listed in lists.values() if listed)]))


def differential(
    results: Sequence[Result],
    members: Sequence[Sequence[str]],
    evidence: Sequence[Mapping[str, Sequence[Evidence]]],
    asker: Asker | None,
    knowledge: Knowledge,
    config: Config,
) -> list[dict[str, float]]:
    """Differential diagnosis: g(a) = mean over b of win(a, b), for the members of each case.

    ``model``: each pair is asked for, beside what all sources read about the two; an answer that names neither counts
    one half. ``evidence``: win = sigmoid of the difference in (statements for - statements against), each clipped to 3.
    """
    wins: list[dict[str, list[float]]] = [defaultdict(list) for _ in results]
    if config.differential == "evidence":
        for won, m, e in zip(wins, members, evidence, strict=True):
            net = {d: np.clip(sum(1 if x.stance == "+" else -1 for x in e.get(d, ())), -3, 3) for d in m}
            for a, b in combinations(m, 2):
                p = 1 / (1 + math.exp(net[b] - net[a]))
                won[a].append(p)
                won[b].append(1 - p)
    else:
        pairs = [(i, a, b) for i, m in enumerate(members) for a, b in combinations(m, 2)]
        shown = [about((a, b), results[i], knowledge, config) for i, a, b in pairs]
        answers = asker("compare", [asker.format.compare(results[i].case.text, a, b, s)
                                    for (i, a, b), s in zip(pairs, shown, strict=True)])  # fmt: skip
        for (i, a, b), answer in zip(pairs, answers, strict=True):
            said = key((names(answer.get("better", "")) or [""])[0], knowledge.diseases)
            first = {key(a, knowledge.diseases): 1.0, key(b, knowledge.diseases): 0.0}.get(said, 0.5)
            wins[i][a].append(first)
            wins[i][b].append(1 - first)
            because = "; ".join(names(answer.get("because", "")))
            results[i].log.append(Event("compare", f"{a} or {b}", f"{answer.get('better', '?')}: {because}"))
    return [{d: float(np.mean(won[d])) if won[d] else 0.5 for d in m} for won, m in zip(wins, members, strict=True)]


def about(pair: Sequence[str], result: Result, knowledge: Knowledge, config: Config) -> list[Statement]:
    """What any source read that names one of the two diseases, in turn, within the budget."""
    groups = []
    for name in pair:
        wanted = knowledge.diseases.canonical(name)
        read = [s for out in result.sources.values() for s in out.read]
        groups.append([s for s in read if wanted in knowledge.diseases.entities(s.text)])
    return select(groups, config.budget or sum(map(len, groups)), worth(result.case, knowledge))


def conclude(support: Mapping[str, Vote], g: Mapping[str, float], config: Config) -> dict[str, float]:
    """score(d) = alpha z(s(d)) + (1 - alpha) z(g(d)) over the members of the differential; the others keep their order
    below them. Best first, at most ten."""
    if not g:
        return dict.fromkeys(list(support)[:10], 0.0) | {
            d: (v.n + v.score if config.vote == "simple" else v.score) for d, v in list(support.items())[:10]
        }
    z_s, z_g = _z([support[d].score for d in g]), _z(list(g.values()))
    final = dict(zip(g, (config.alpha * z_s + (1 - config.alpha) * z_g).tolist(), strict=True))
    ranked = dict(sorted(final.items(), key=lambda pair: -pair[1]))
    least = min(final.values())
    rest = [d for d in support if d not in g]
    return dict(list((ranked | {d: least - 1 - i for i, d in enumerate(rest)}).items())[:10])


def _z(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, float)
    return (x - x.mean()) / (x.std() or 1.0)


def integrate(
    results: Sequence[Result], asker: Asker, knowledge: Knowledge, config: Config | None = None
) -> list[Result]:
    """Stage 2 (Eq. 13) on the same stage-1 output, which is left as it is; returns new results."""
    config = config or Config()
    fresh = [Result(r.case, sources={s: r.sources[s] for s in config.sources if s in r.sources},
                    log=[e for e in r.log if e.step != "stage 2"]) for r in results]  # fmt: skip
    raw = [{s: out.names for s, out in r.sources.items()} for r in fresh]
    merged = [match(lists, knowledge.diseases) for lists in raw]
    lists = [
        {s: list(dict.fromkeys(m[name] for name in listed)) for s, listed in r.items()}
        for r, m in zip(raw, merged, strict=True)
    ]
    evidence = [_evidence(r, m) for r, m in zip(fresh, merged, strict=True)]
    supports = [vote(x, config) for x in lists]
    members: list[list[str]] = [[] for _ in fresh]
    if config.stage2 == "single_prompt":
        _single_prompt(fresh, lists, asker, knowledge, config)
    else:
        if config.differential != "none":
            members = [finalists(x, s, config) for x, s in zip(lists, supports, strict=True)]
        gs = differential(fresh, members, evidence, asker, knowledge, config) if any(members) else [{} for _ in fresh]
        for r, support, g in zip(fresh, supports, gs, strict=True):
            r.support = conclude(support, g, config)
            r.diagnoses = list(r.support)
    for r, listed, m, e in zip(fresh, lists, members, evidence, strict=True):
        votes = "; ".join(f"{d} by {', '.join(s for s, x in listed.items() if d in x)}" for d in r.diagnoses[:5])
        r.log.append(Event("stage 2", r.case.id, votes or "no source suspects anything"))
        r.reasoning = explain(r.diagnoses, m, e, config)
    return fresh


def _single_prompt(
    results: Sequence[Result], lists: Sequence[dict[str, list[str]]], asker: Asker, knowledge: Knowledge, config: Config
) -> None:
    asked = [i for i, x in enumerate(lists) if any(x.values())]
    answers = asker("integrate", [asker.format.integrate(results[i].case.text, lists[i]) for i in asked])
    for i, answer in zip(asked, answers, strict=True):
        listed = names(answer.get("suspects", ""))
        usual = match({"answer": listed}, knowledge.diseases)
        results[i].diagnoses = list(dict.fromkeys(usual[name] for name in listed))[:10]
        results[i].support = {d: -float(n) for n, d in enumerate(results[i].diagnoses)}


def _evidence(result: Result, usual: Mapping[str, str]) -> dict[str, list[Evidence]]:
    """All that the sources say of each diagnosis, every finding once."""
    found: dict[str, dict[str, Evidence]] = defaultdict(dict)
    for out in result.sources.values():
        for h in out.hypotheses:
            for e in h.evidence:
                old = found[usual[h.name]].get(e.text)
                if old is None or (old.ref == "model" and e.ref != "model"):
                    found[usual[h.name]][e.text] = e
    return {name: list(by.values()) for name, by in found.items()}


def explain(
    diagnoses: Sequence[str], members: Sequence[str], evidence: Mapping[str, Sequence[Evidence]], config: Config
) -> list[tuple[str, Evidence]]:
    """R: what speaks for the first diagnosis, those findings first that the rejected members cannot explain, then one
    statement against each of those; (diagnosis, evidence), at most ``longest``."""
    if not diagnoses:
        return []
    rivals = [d for d in members if d != diagnoses[0]]
    explained = [{e.text for e in evidence.get(d, ()) if e.stance == "+"} for d in rivals]
    helps = [e for e in evidence.get(diagnoses[0], ()) if e.stance == "+"]
    helps.sort(key=lambda e: sum(e.text in x for x in explained))
    against = [(d, next((e for e in evidence.get(d, ()) if e.stance == "-"), None)) for d in rivals]
    excluded = [(d, e) for d, e in against if e is not None]
    room = max(config.longest - len(excluded), 1)
    return ([(diagnoses[0], e) for e in helps[:room]] + excluded)[: config.longest]


def diagnose(
    cases: Sequence[Case], model: LanguageModel, format: Format, knowledge: Knowledge, config: Config | None = None
) -> list[Result]:
    """Both stages.

    Raises:
        ValueError: a configuration out of range. A source or a page that fails, an answer that cannot be read and an
            empty case are entered in the result's log instead.
    """
    asker = Asker(model, format)
    return integrate(gather(cases, asker, knowledge, config), asker, knowledge, config)
