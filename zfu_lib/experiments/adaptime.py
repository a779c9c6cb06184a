"""Experiments of the AdapTime chapter (Findings of ACL 2026, arXiv 2604.24175).

A :class:`Lab` draws questions per seed, runs every arm on the same ones and keeps what was generated, so that arms
which ask the same share it. An answer that is missing or cannot be read is wrong. Where the model is the small one
(``tiny:temporal``) its decisions were taught from what a question needs; a planner taught from the model's own
outcomes (:meth:`Lab.learned`) is kept apart from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from zfu_lib.data import catalogue
from zfu_lib.data.worlds import chronobio
from zfu_lib.data.worlds.chronobio import Item, Spec
from zfu_lib.lm import models, tiny
from zfu_lib.lm.protocol import GenRequest, GenResult, LanguageModel
from zfu_lib.lm.recipes import temporal
from zfu_lib.reasoning import adaptime as method
from zfu_lib.reasoning import adaptime_prompts, short_answers, timeline
from zfu_lib.reasoning.adaptime import ACTIONS, MASKS, Action, Config, Mask, Outcome, Pipeline, State
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import DataUsed
from zfu_lib.report.statistics import Interval, exact, over_items, proportion
from zfu_lib.retrieval import BM25

REAL = ("timeqa_easy", "timeqa_hard", "tempreason_l2", "tempreason_l3")


@dataclass(frozen=True)
class AdaptimeProfile(Profile):
    """What the chapter runs.

    ``model`` by name (:func:`zfu_lib.lm.models.load`), asked in a ``style``: ``steps`` (the small model's texts),
    ``chat`` or ``plain``. ``items`` questions per seed; ``plans`` more on which a planner is taught; ``dials``, shares
    of facts told implicitly, each with ``dial_items`` questions; ``samples`` draws of the decisions at temperature
    0.7. ``small`` documents are those the small model knows. ``real``: read the public data sets; ``real_items`` of
    each are answered by the model.
    """

    model: str
    style: str
    items: int
    plans: int
    dials: tuple[float, ...]
    dial_items: int
    samples: int
    small: bool = True
    real: bool = False
    real_items: int = 0
    action_tokens: int = 260
    decision_tokens: int = 4


QUICK = AdaptimeProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=2, memory_gb=2),
    seeds=3,
    model="tiny:temporal",
    style="steps",
    items=80,
    plans=150,
    dials=(0.0, 1.0),
    dial_items=80,
    samples=3,
)
FULL = replace(
    QUICK,
    profile="full",
    cost=Cost(machine="2 CPU cores or one GPU", minutes=25, memory_gb=4, data=("timebench",)),
    seeds=5,
    items=600,
    plans=600,
    dials=(0.0, 0.25, 0.5, 0.75, 1.0),
    dial_items=400,
    samples=5,
    real=True,
)
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: about 68,000 calls of 600 tokens, arithmetic at 30% use",
        minutes=680,
        memory_gb=32,
        gpu_memory_gb=40,
        disk_gb=20,
        downloads=(Download("Qwen/Qwen3-8B", 16.4),),
        data=("timebench",),
    ),
    seeds=3,
    model="hf:Qwen/Qwen3-8B",
    style="chat",
    items=1000,
    plans=500,
    dial_items=300,
    small=False,
    real_items=500,
    action_tokens=512,
    decision_tokens=32,
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}
# What a CPU changes; the run says so.
FULL_ON_CPU = {"items": 240, "plans": 120, "dial_items": 240, "samples": 3}


class Asked(NamedTuple):
    """A question with its gold answers; ``item`` where it is of the generated world."""

    document: str
    question: str
    gold: tuple[str, ...]
    kind: str
    item: Item | None = None


def asked(item: Item) -> Asked:
    """An item of the generated world as a question."""
    return Asked(item.document, item.question, (item.answer,), item.kind, item)


def steps(step: str, **parts: Any) -> tuple[str, str]:
    """The prompts of the small model, step by step (:func:`zfu_lib.lm.recipes.temporal.ask`); options are not shown."""
    name = {
        "plan reformulate": "need split", "plan rewrite": "need timeline", "plan review": "need review",
        "reformulate": "split", "rewrite": "timeline", "step back": "wide", "plan rule": "rule", "follow": "steps",
        "one prompt": "steps",
    }.get(step, step)  # fmt: skip
    questions = parts.get("questions") or parts["question"]
    told = {key: parts[key] for key in ("timeline", "known", "rule", "examples") if parts.get(key)}
    if name in ("review", "need review"):
        told["answer"] = parts.get("answer") or chronobio.UNKNOWN
    if name == "need review":
        told.pop("timeline", None)
    return temporal.ask(name, parts.get("document", ""), questions, **told), ""


STYLES = {"steps": steps, "chat": adaptime_prompts.chat, "plain": adaptime_prompts.plain}
MASK_NAMES = {mask: "+".join(name for name, on in zip(ACTIONS, mask) if on) or "none" for mask in MASKS}
ALL: Mask = (True, True, True)
NONE: Mask = (False, False, False)


class Lab:
    """Runs arms on questions on demand, once each.

    Args:
        model: another model than the profile's (for tests and servers).
    """

    def __init__(self, profile: AdaptimeProfile, model: LanguageModel | None = None) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        scaled = profile.profile == "full" and self.device == "cpu"
        self.asked_for = profile
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.model = model or models.load(self.profile.model, cache=self.profile.model.startswith("tiny:") is False)
        style = self.profile.style
        if style == "chat" and not self.model.caps.chat:
            style = "plain"
        self.prompts = STYLES[style]
        self.config = Config(
            action_tokens=self.profile.action_tokens, decision_tokens=self.profile.decision_tokens
        )  # fmt: skip
        self.used: list[DataUsed] = list(catalogue.used("timebench")) if self.profile.real else []
        self.memory: dict[GenRequest, GenResult] = {}
        self._kept: dict[tuple, Any] = {}

    def description(self) -> str:
        """What is run on what, and how far that is from what the profile asks for."""
        p, a = self.profile, self.asked_for
        text = f"{p.items} questions for each of {p.seeds} seeds, answered by {p.model} on {self.device}."
        if p != a:
            text += (
                f" Scaled down for a CPU: the profile asks for {a.items} questions per seed ({a.items / p.items:.0f} "
                f"times as many), {a.plans} plans ({a.plans / p.plans:.1f} times), {a.dial_items} questions per dial "
                f"({a.dial_items / p.dial_items:.1f} times) and {a.samples} samples of each decision."
            )
        return text

    def once(self, key: tuple, made: Callable[[], Any]) -> Any:
        """What ``made`` gives, computed once."""
        if key not in self._kept:
            self._kept[key] = made()
        return self._kept[key]

    # Questions.

    @property
    def spec(self) -> Spec:
        """The world that is asked about."""
        return temporal.WORLD if self.profile.small else Spec()

    def questions(self, seed: int, part: str = "test") -> list[Asked]:
        """``test`` and ``plans`` questions of a seed, and ``shift``: kinds that nothing was trained on."""
        spec = self.spec
        if part == "shift":
            spec = replace(spec, kinds=("before", "after", "between", "count", "overlap"))
        n = self.profile.plans if part == "plans" else self.profile.items
        number = temporal.HELD_OUT + 1000 + 10 * seed + ("test", "plans", "shift").index(part)
        return self.once(("questions", part, seed), lambda: [asked(i) for i in chronobio.items(n, number, spec)])

    def dialled(self, dial: float) -> list[Asked]:
        """Questions of documents in which a share ``dial`` of the facts (first ones aside) is told implicitly."""
        spec = replace(self.spec, implicit=dial)
        n = self.profile.dial_items
        return self.once(("dial", dial), lambda: [asked(i) for i in chronobio.items(n, temporal.HELD_OUT + 5000, spec)])

    # Arms.

    def arm(self, name: str, seed: int, part: str = "test") -> list[Outcome]:
        """Outcomes of an arm on a seed's questions, in their order; names are those of :func:`arms`."""
        return self.once(("arm", name, seed, part), lambda: self._arm(name, seed, part))

    def _arm(self, name: str, seed: int, part: str) -> list[Outcome]:
        questions = self.questions(seed, part)
        if name == "oracle":
            runs = {mask: self.arm(MASK_NAMES[mask], seed, part) for mask in MASKS}
            return [
                runs[_oracle({m: r[i] for m, r in runs.items()}, q)][i] for i, q in enumerate(questions)
            ]  # fmt: skip
        return self.run(name, questions, seed)

    def run(self, name: str, questions: Sequence[Asked], seed: int = 0, config: Config | None = None) -> list[Outcome]:
        """Outcomes of an arm on any questions."""
        config = config or self.config
        return method.answer_all(
            [self._pipeline(name, q, seed, config) for q in questions], self.model, config, memory=self.memory
        )

    def _pipeline(self, name: str, q: Asked, seed: int, config: Config) -> Pipeline:
        given = (q.document, q.question, self.prompts, config)
        match name:
            case "direct":
                return method.direct(*given)
            case "ICL":
                return method.direct(*given, examples=self.examples(seed))
            case "CoT":
                return method.direct(*given, think=True)
            case "step-back":
                return method.step_back(*given)
            case "self-refine":
                return method.self_refine(*given)
            case "A2 rule":
                return method.by_rule(*given)
            case "A3 one prompt":
                return method.in_one_prompt(*given)
        return method.adaptime(q.document, q.question, self.planner(name, seed), self.prompts, config)

    def examples(self, seed: int) -> tuple[tuple[str, str], ...]:
        """Two solved questions, shown before the document."""
        made = chronobio.items(2, temporal.HELD_OUT + 9000 + seed, self.spec)
        return tuple((item.question, item.answer) for item in made)

    def planner(self, name: str, seed: int) -> method.Planner:
        """The planner of an arm: a mask's name, ``planner``, ``random``, ``rules`` or ``learned``."""
        masks = {MASK_NAMES[mask]: mask for mask in MASKS}
        if name in masks:
            return method.Fixed(masks[name])
        match name:
            case "planner":
                return method.Prompted()
            case "random":
                taken = [o.trace.mask for o in self.arm("planner", seed)]
                return method.RandomMatched(tuple(float(x) for x in np.mean(taken, axis=0)), seed)
            case "rules":
                return method.Rules()
            case "learned":
                return method.Scored(self.learned(seed))
        raise ValueError(f"no arm {name!r}; there are: {', '.join(arms())}")

    # A planner taught by outcomes.

    def learned(self, seed: int) -> Callable[[Action, State], float]:
        """Logistic regression on counts of words, one for each action: yes where the cheapest mask that answered a
        question of the ``plans`` part right contains the action."""

        def made() -> Callable[[Action, State], float]:
            questions = self.questions(seed, "plans")
            runs = {mask: self.arm(MASK_NAMES[mask], seed, "plans") for mask in MASKS}
            plans = [_oracle({m: r[i] for m, r in runs.items()}, q) for i, q in enumerate(questions)]
            seen = np.array([features(State(q.question, q.document)) for q in questions])
            fitted = {}
            for k, action in enumerate(ACTIONS):
                wanted = np.array([plan[k] for plan in plans])
                both = 0 < wanted.sum() < len(wanted)
                fitted[action] = LogisticRegression(max_iter=1000).fit(seen, wanted) if both else float(wanted.mean())

            def score(action: Action, state: State) -> float:
                model = fitted[action]
                return model if isinstance(model, float) else model.predict_proba([features(state)])[0, 1]

            return score

        return self.once(("learned", seed), made)

    # Scores.

    def right(self, name: str, part: str = "test") -> np.ndarray:
        """[seeds, items] 1 where an arm is right."""

        def made() -> np.ndarray:
            return np.array(
                [
                    [is_right(o, q) for o, q in zip(self.arm(name, s, part), self.questions(s, part), strict=True)]
                    for s in range(self.profile.seeds)
                ]
            )

        return self.once(("right", name, part), made)

    def f1(self, name: str) -> np.ndarray:
        """[seeds, items] token F1."""
        return np.array(
            [
                [short_answers.f1(o.answer, q.gold) for o, q in zip(self.arm(name, s), self.questions(s), strict=True)]
                for s in range(self.profile.seeds)
            ]
        )

    def tokens(self, name: str, *steps: str) -> np.ndarray:
        """[seeds, items] tokens read and written, of all calls or of some steps."""
        return np.array([[o.trace.tokens(*steps) for o in self.arm(name, s)] for s in range(self.profile.seeds)])

    def floor(self, which: str, part: str = "test") -> np.ndarray:
        """[seeds, items] of a floor: ``constant`` (the best constant answer of each seed) or ``solver`` (dated facts
        only, no model)."""
        rows = []
        for seed in range(self.profile.seeds):
            questions = self.questions(seed, part)
            if which == "constant":
                best = Counter(q.gold[0] for q in questions).most_common(1)[0][0]
                rows.append([float(q.gold[0] == best) for q in questions])
            else:
                rows.append(
                    [float(chronobio.solve(q.document, q.question, dated_only=True) == q.gold[0]) for q in questions]
                )
        return np.array(rows)


def arms() -> tuple[str, ...]:
    """Every arm, in the order of the tables."""
    masks = tuple(MASK_NAMES[mask] for mask in MASKS)
    others = ("ICL", "CoT", "step-back", "self-refine")
    return (*others, *masks, "planner", "random", "rules", "learned", "oracle", "A2 rule", "A3 one prompt")


def is_right(outcome: Outcome, q: Asked) -> float:
    """Exact match."""
    return short_answers.exact_match(outcome.answer, q.gold)


def _oracle(runs: Mapping[Mask, Outcome], q: Asked) -> Mask:
    return method.cheapest_right(
        {m: bool(is_right(o, q)) for m, o in runs.items()}, {m: o.trace.tokens() for m, o in runs.items()}
    )


SIGNALS = ("when", "after", "before", "between", "longer", "same time", "right", "in", "how many", "was the", "years")


def features(state: State) -> list[float]:
    """What a taught planner sees: signal words and length of the question, and how many sentences tell no year."""
    question = f" {state.question.lower()} "
    told = [s for s in state.document.split(" . ") if s]
    loose = sum(not timeline.date(s) for s in told) / max(1, len(told))
    return [float(f" {word} " in question) for word in SIGNALS] + [len(question.split()) / 10, loose]


# What is measured.


def over(values: np.ndarray) -> Interval:
    """Mean of per-question values, a bootstrap over the questions of all seeds."""
    return over_items(np.asarray(values, float).ravel())


def gap(lab: Lab, a: str, b: str, part: str = "test") -> Interval:
    """Exact match of arm ``a`` minus that of ``b`` on the same questions."""
    return over(lab.right(a, part) - lab.right(b, part))


def table(lab: Lab) -> dict[str, tuple[Any, ...]]:
    """Arm -> exact match, F1, tokens, share of questions with a text that could not be used."""
    rows: dict[str, tuple[Any, ...]] = {
        "floor: best constant answer": (over(lab.floor("constant")), "", "", ""),
        "floor: solver, dated facts only": (over(lab.floor("solver")), "", "", ""),
    }
    for name in arms():
        failed = [[bool(o.trace.failures) for o in lab.arm(name, s)] for s in range(lab.profile.seeds)]
        label = "direct (no action)" if name == "none" else name
        rows[label] = (
            over(lab.right(name)), f"{lab.f1(name).mean():.3f}", f"{lab.tokens(name).mean():.0f}",
            f"{np.mean(failed):.1%}",
        )  # fmt: skip
    return rows


def card(lab: Lab) -> dict[str, tuple[Any, ...]]:
    """The held-out scores on the model's card, where it is one of the book's own."""
    scheme, _, name = lab.profile.model.partition(":")
    if scheme != "tiny":
        return {f"{lab.model.name} has no card here": ("", "")}
    return {
        s["name"]: (proportion(s["right"], s["n"]), "" if s["chance"] is None else f"{s['chance']:.3f}")
        for s in tiny.card(name)["scores"]
    }


def by_kind(lab: Lab, *values: np.ndarray) -> dict[str, tuple[Interval, ...]]:
    """Means of ``[seeds, items]`` values of the test questions, kind by kind of question."""
    asked = np.array([[q.kind for q in lab.questions(s)] for s in range(lab.profile.seeds)])
    order = [kind for kind in chronobio.KINDS if kind in asked]
    return {kind: tuple(over(v[asked == kind]) for v in values) for kind in order}


def masks_front(lab: Lab) -> dict[str, dict[str, list[float]]]:
    """Mean tokens and exact match of the eight masks and of the planners, for a figure."""
    groups = {"fixed masks": [MASK_NAMES[m] for m in MASKS], "planner": ["planner"], "random, same rates": ["random"]}
    groups |= {"taught by outcomes": ["learned"], "oracle": ["oracle"], "CoT": ["CoT"]}
    return {
        label: {
            "x": [float(lab.tokens(n).mean()) for n in names], "y": [float(lab.right(n).mean()) for n in names],
        }
        for label, names in groups.items()
    }  # fmt: skip


def effects(lab: Lab) -> dict[str, Interval]:
    """Leave-one-out and add-one-in differences of the three actions."""
    found = {}
    for k, action in enumerate(ACTIONS):
        without = tuple(on and i != k for i, on in enumerate(ALL))
        alone = tuple(i == k for i in range(3))
        found[f"a4_without_{action}"] = gap(lab, MASK_NAMES[ALL], MASK_NAMES[without])
        found[f"a4_only_{action}"] = gap(lab, MASK_NAMES[alone], "none")
    found["a4_rewrite_only_minus_full"] = gap(lab, "rewrite", "planner")
    return found


def dial_gains(lab: Lab) -> dict[str, Any]:
    """Gain of Rewrite alone over the direct answer at each dial, and how the last gain differs from the first."""
    gains = {}
    for dial in lab.profile.dials:
        questions = lab.dialled(dial)
        a, b = (lab.run(name, questions) for name in ("rewrite", "none"))
        gains[dial] = np.array([is_right(x, q) - is_right(y, q) for x, y, q in zip(a, b, questions, strict=True)])
    first, last = gains[lab.profile.dials[0]], gains[lab.profile.dials[-1]]
    rng = np.random.default_rng(0)
    draws = [
        rng.choice(last, len(last)).mean() - rng.choice(first, len(first)).mean() for _ in range(2000)
    ]  # fmt: skip
    low, high = np.quantile(draws, [0.025, 0.975])
    growth = Interval(
        float(last.mean() - first.mean()), float(low), float(high), len(first) + len(last),
        "bootstrap over items of two samples",
    )  # fmt: skip
    return {"gains": {dial: over(values) for dial, values in gains.items()}, "growth": growth}


def decision_rates(lab: Lab, name: str) -> dict[str, list[float]]:
    """Share of questions of each kind for which an arm takes each action: kind -> three shares."""
    taken: dict[str, list[Mask]] = {}
    for seed in range(lab.profile.seeds):
        for o, q in zip(lab.arm(name, seed), lab.questions(seed), strict=True):
            taken.setdefault(q.kind, []).append(o.trace.mask)
    order = [kind for kind in chronobio.KINDS if kind in taken]
    return {kind: np.mean(taken[kind], axis=0).tolist() for kind in order}


def tracks_need(lab: Lab, name: str) -> dict[str, Interval]:
    """How much oftener an arm reformulates questions of several steps, and rewrites where a date on the way to the
    answer is implicit, than otherwise."""
    rows = [
        (o.trace.mask, q.item)
        for seed in range(lab.profile.seeds)
        for o, q in zip(lab.arm(name, seed), lab.questions(seed), strict=True)
    ]
    found = {}
    for k, (action, need) in enumerate((("reformulate", "compound"), ("rewrite", "leaning"))):
        needed = np.array([getattr(item, need) for _, item in rows])
        taken = np.array([mask[k] for mask, _ in rows], float)
        # E[taken (2 needed - 1) weighted] is the difference of the two rates; resampled question by question.
        rng, draws = np.random.default_rng(k), []
        for _ in range(2000):
            at = rng.integers(0, len(rows), len(rows))
            t, n = taken[at], needed[at]
            draws.append(t[n].mean() - t[~n].mean() if 0 < n.sum() < len(n) else 0.0)
        low, high = np.quantile(draws, [0.025, 0.975])
        mean = float(taken[needed].mean() - taken[~needed].mean())
        found[action] = Interval(mean, float(low), float(high), len(rows), "bootstrap over items")
    return found


def costs(lab: Lab) -> dict[str, Interval]:
    """Tokens per question relative to the direct answer, with and without a prefix cache, and the planner's share."""
    base = lab.tokens("direct")
    found = {}
    for label, name in (("a1", "planner"), ("a2", "A2 rule"), ("a3", "A3 one prompt"), ("refine", "self-refine")):
        found[f"a7_{label}_ratio"] = over(lab.tokens(name) / base)
    saved = np.array(
        [[o.trace.cached(lab.model.count) for o in lab.arm("planner", s)] for s in range(lab.profile.seeds)]
    )
    found["a7_a1_cached_ratio"] = over((lab.tokens("planner") - saved) / base)
    found["a7_planner_share"] = over(lab.tokens("planner", "plan") / lab.tokens("planner"))
    found["a7_refine_minus_twice_a1"] = over((lab.tokens("self-refine") - 2 * lab.tokens("planner")) / base)
    return found


def review_effect(lab: Lab, name: str) -> dict[str, Interval]:
    """Per question: wrong made right minus right made wrong by Review; and how often each happens."""
    fixed, harmed = [], []
    for seed in range(lab.profile.seeds):
        for o, q in zip(lab.arm(name, seed), lab.questions(seed), strict=True):
            before = short_answers.exact_match(o.trace.first, q.gold)
            after = is_right(o, q)
            fixed.append(after > before)
            harmed.append(after < before)
    fixed, harmed = np.array(fixed, float), np.array(harmed, float)
    return {"net": over(fixed - harmed), "fixed": over(fixed), "harmed": over(harmed)}


def contents(lab: Lab) -> dict[str, np.ndarray]:
    """[seeds, items] exact match of answers beside the true timeline, the model's own, another document's, filler of
    the same length, and none."""
    found: dict[str, list[list[float]]] = {name: [] for name in ("own", "true", "another's", "filler", "none")}
    for seed in range(lab.profile.seeds):
        questions = lab.questions(seed)
        true = [temporal.timeline(q.item) for q in questions]
        lines = {"true": true, "another's": [true[i - 1] for i in range(len(true))]}
        lines |= {"filler": [" ".join(["."] * len(text.split())) for text in true], "none": [""] * len(true)}
        found["own"].append([is_right(o, q) for o, q in zip(lab.arm("rewrite", seed), questions, strict=True)])
        for name, texts in lines.items():
            requests = []
            for q, text in zip(questions, texts, strict=True):
                prompt, prefill = lab.prompts("answer", document=q.document, question=q.question, timeline=text)
                requests.append(GenRequest(prompt, prefill=prefill, max_tokens=lab.config.action_tokens))
            wrote = lab.model.generate(requests)
            answers = [method.parse_answer(r.prefill + w.text) for r, w in zip(requests, wrote, strict=True)]
            found[name].append([short_answers.exact_match(a, q.gold) for a, q in zip(answers, questions, strict=True)])
    return {name: np.array(rows) for name, rows in found.items()}


def disagreement(lab: Lab) -> Interval:
    """Share of questions whose plan is not the same in all samples at the paper's temperature."""
    questions, config = lab.questions(0), method.at_temperature(lab.config, 0)
    plans = []
    for sample in range(lab.profile.samples):
        requests = []
        for i, q in enumerate(questions):
            for action in ACTIONS[:2]:
                prompt, prefill = lab.prompts(f"plan {action}", **State(q.question, q.document)._asdict())
                requests.append(
                    GenRequest(
                        prompt,
                        prefill=prefill,
                        max_tokens=config.decision_tokens,
                        temperature=config.temperature,
                        top_k=config.top_k,
                        seed=sample * len(questions) + i,
                    )
                )
        words = [method.parse_decision(r.text) for r in lab.model.generate(requests)]
        plans.append(np.array(words, object).reshape(len(questions), 2))
    varied = [len({tuple(plan[i]) for plan in plans}) > 1 for i in range(len(questions))]
    return proportion(sum(varied), len(varied))


def retrieval_gain(lab: Lab, corpus: int = 50) -> dict[str, Interval]:
    """Documents in a corpus of ``corpus``, found by BM25: recall at 1, and exact match of the pipeline minus the direct
    answer, both on the document found."""
    questions = lab.questions(0)
    recall, gains = [], []
    for start in range(0, len(questions) - corpus + 1, corpus):
        part = questions[start : start + corpus]
        found = BM25([q.document for q in part]).search([q.question for q in part], 1)
        top = [max(int(i[0]), 0) for i in found.index]
        recall += [float(part[i].document == q.document) for i, q in zip(top, part, strict=True)]
        given = [q._replace(document=part[i].document) for i, q in zip(top, part, strict=True)]
        a, b = lab.run("planner", given), lab.run("direct", given)
        gains += [is_right(x, q) - is_right(y, q) for x, y, q in zip(a, b, given, strict=True)]
    return {"recall": over(np.array(recall)), "gain": over(np.array(gains))}


def stages(lab: Lab, name: str = "planner") -> dict[str, int]:
    """Where wrong answers of an arm come from, by the first stage that is not as the truth says."""
    counts: Counter[str] = Counter()
    for seed in range(lab.profile.seeds):
        for o, q in zip(lab.arm(name, seed), lab.questions(seed), strict=True):
            counts[_stage(o, q)] += 1
    order = ("right", "text not usable", "sub-questions", "timeline", "first answer", "review made it wrong")
    return {stage: counts[stage] for stage in order}


def _stage(o: Outcome, q: Asked) -> str:
    t = o.trace
    if is_right(o, q):
        return "right"
    if t.failures:
        return "text not usable"
    if t.mask[0] and [question for question, _ in q.item.sub] != t.questions:
        return "sub-questions"
    if t.timeline:
        wanted = {(q.item.facts[i].start * 12, q.item.facts[i].end * 12) for i in q.item.path}
        if not q.item.spec.months and not wanted <= {tuple(e.when) for e in timeline.parse_timeline(t.timeline)}:
            return "timeline"
    return "review made it wrong" if short_answers.exact_match(t.first, q.gold) else "first answer"


# Real text.


def real_rows(name: str) -> list[dict[str, Any]]:
    """The items of a TimeBench file: ``timeqa_easy``, ``timeqa_hard``, ``tempreason_l1`` to ``tempreason_l3``.

    Raises:
        DataError: the catalogue's data set is not on this machine.
    """
    files = catalogue.get("timebench")
    file = files[f"{name}_timebench.jsonl"]
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def solved(name: str, *, closed: bool = False) -> dict[str, Any]:
    """The model-free solver on TempReason: shares parsed, right, and with more than one fact that fits; ``behind`` is
    the share whose facts name what is asked for behind the verb (not before "is the chair of")."""
    parsed, right, several, behind = [], [], [], []
    for row in real_rows(name):
        facts = timeline.read_facts(row.get("fact_context", ""))
        if closed:
            facts = [replace(f, when=timeline.Interval(f.when.start, f.when.end + 1)) for f in facts]
        found = timeline.solve(row["question"], facts)
        parsed.append(found.parsed)
        right.append(short_answers.exact_match(found.answers[0] if found.answers else None, row["answer"]))
        several.append(len(found.answers) > 1)
        behind.append(all(f.words.endswith(f.slot) for f in facts))
    return {
        "parsed": proportion(sum(parsed), len(parsed)), "right": proportion(int(sum(right)), len(right)),
        "several": proportion(sum(several), len(several)), "behind": proportion(sum(behind), len(behind)),
    }  # fmt: skip


def evidence(name: str) -> Interval:
    """Share of answerable items whose document holds a gold answer, word for word after normalisation."""
    there = []
    for row in real_rows(name):
        golds = [g for g in map(short_answers.normal, row["answer"]) if g != "unknown"]
        if golds:
            text = f" {short_answers.normal(row['context'])} "
            there.append(any(g and g in text for g in golds))
    return proportion(sum(there), len(there))


def sentence_recall(name: str, k: int = 5) -> Interval:
    """Share of answerable items with a gold answer in one of the ``k`` sentences of the document that BM25 ranks first
    for the question; of the items whose document holds the answer at all."""
    there = []
    for row in real_rows(name):
        golds = [g for g in map(short_answers.normal, row["answer"]) if g and g != "unknown"]
        sentences = [s for s in row["context"].replace(" . ", " .\n").replace(". ", ".\n").split("\n") if s.strip()]
        if not golds or not sentences or not any(g in short_answers.normal(row["context"]) for g in golds):
            continue
        found = BM25(sentences).search([row["question"]], min(k, len(sentences)))
        top = [short_answers.normal(sentences[int(i)]) for i in found.index[0] if i >= 0]
        there.append(any(g in text for g in golds for text in top))
    return proportion(sum(there), len(there))


def real_questions(name: str, context: str, n: int) -> list[Asked]:
    """``n`` items with their ``document`` or their ``facts`` as the text to read."""
    rows = real_rows(name)[:n]
    key = "context" if context == "document" else "fact_context"
    return [Asked(row.get(key, ""), row["question"], tuple(row["answer"]), name) for row in rows]


def real_arms(lab: Lab, names: Sequence[str] = ("direct", "CoT", "planner")) -> dict[str, tuple[Interval, ...]]:
    """Exact match of arms on real text, both contexts where there are two; empty where the profile has no model that
    reads it."""
    n = lab.profile.real_items
    rows = {}
    for name in REAL if n else ():
        for context in ("document", "facts") if name.startswith("temp") else ("document",):
            questions = real_questions(name, context, n)
            scores = {
                arm: [is_right(o, q) for o, q in zip(lab.run(arm, questions), questions, strict=True)] for arm in names
            }
            rows[f"{name}, {context}"] = tuple(over(np.array(s)) for s in scores.values())
    return rows


# The paper's own numbers.


def quoted() -> dict[str, Any]:
    """The tables of the paper (``book/quoted/adaptime.yml``), as public notes list them."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "adaptime.yml").read_text(encoding="utf-8"))


def printed(rows: Mapping[str, Sequence[float | None]]) -> dict[str, tuple[str, ...]]:
    """Rows of a quoted table as they are shown."""
    return {name: tuple("" if v is None else f"{v:.1f}" for v in values) for name, values in rows.items()}


def audit() -> dict[str, Interval]:
    """Arithmetic on the printed tables: averages, gains over CoT and over ICL, and what 1,000 questions can show."""
    tables = quoted()
    main = tables["main"]["rows"]
    found = {}
    off = [abs(np.mean(row[:4]) - row[4]) for row in main.values() if None not in row]
    found["audit_worst_average"] = exact(max(off))
    for name, key in (("LLaMA-3-8B", "llama"), ("Qwen-3-8B", "qwen"), ("DeepSeek-V3", "v3")):
        ours, cot = main[f"{name}, AdapTime"], main[f"{name}, CoT"]
        found[f"audit_cot_gain_{key}"] = exact(ours[4] - cot[4])
        found[f"audit_icl_gain_{key}"] = exact(ours[4] - tables["icl_averages"]["rows"][name][0])
    gains = [found[f"audit_icl_gain_{k}"].mean - found[f"audit_cot_gain_{k}"].mean for k in ("llama", "qwen", "v3")]
    found["audit_icl_minus_cot"] = exact(min(gains))
    full = tables["ablation"]["rows"]["full"]
    drops = [a - b for row, values in tables["ablation"]["rows"].items() if row.startswith("without")
             for a, b in zip(full, values, strict=True)]  # fmt: skip
    found["audit_detectable"] = exact(100 * detectable(1000, 0.05))
    found["audit_drops_beyond_noise"] = exact(np.mean([drop > 100 * detectable(1000, 0.05) for drop in drops]))
    found["audit_rewrite_only"] = exact(tables["ablation"]["rows"]["ICL with Rewrite only"][0] - full[0])
    tokens = tables["tokens"]["rows"]
    found["audit_token_ratio"] = exact(tokens["AdapTime"][0] / tokens["ICL"][0])
    return found


def detectable(n: int, discordant: float) -> float:
    """The smallest difference of two accuracies that ``n`` paired questions find with 80% power, if a share
    ``discordant`` of them is right in one arm only."""
    low, high = 1e-6, discordant
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if short_answers.questions_needed(middle, discordant) <= n else (middle, high)
    return high
