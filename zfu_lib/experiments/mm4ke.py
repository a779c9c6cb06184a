"""Experiments of the chapter on "Model Merging for Knowledge Editing" (arXiv 2506.12384).

A :class:`Bench` has a model that knows facts, edits of them, and questions on what the model should keep. An *editor*
takes a bench, edits and a seed and gives a model back (:data:`EDITORS`); :class:`Study` measures each once per sequence
length and seed. Scores are percentages. ``edit score`` is the mean of reliability and generalisation, ``kept`` the mean
of locality and ability, all decoded freely unless a name says otherwise.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zfu_lib.data import edits, gazetteer
from zfu_lib.data.edits import Case
from zfu_lib.lm import harness
from zfu_lib.lm.recipes.editing import SENTENCES
from zfu_lib.merging import mm4ke
from zfu_lib.merging.editing import facts, locate, memory, metrics, tuning
from zfu_lib.merging.mm4ke import RSFT
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.statistics import Interval, over_seeds


@dataclass(frozen=True)
class Mm4keProfile(Profile):
    """What the chapter edits and measures.

    ``source`` names the bench, ``model`` what is edited and, if it is a published one, ``edits`` by what. Sequences of
    ``lengths`` edits are made by every one of ``editors``, those of ``long`` edits by ``enduring`` ones with
    ``few_seeds`` seeds; the closer look is at ``closer`` edits, and further ``studies`` are made there with
    ``few_seeds``. ``ps`` and ``ss`` are what stage 2 tries on calibration edits. ``ability`` questions of each skill
    and ``texts`` held-out texts say what is kept; ``tasks`` are tasks that lm-eval knows, as ``task:metric``, asked of
    a published model. ``rows`` texts give the second moments of keys. ``held`` edited models are kept in memory; what
    is asked of an older one makes it again.
    """

    source: str
    model: str
    lengths: tuple[int, ...]
    editors: tuple[str, ...]
    closer: int
    ps: tuple[float, ...]
    ss: tuple[float, ...]
    ability: int
    texts: int
    rows: int
    studies: tuple[str, ...] = ()
    long: tuple[int, ...] = ()
    enduring: tuple[str, ...] = ()
    few_seeds: int = 3
    tasks: tuple[str, ...] = ()
    edits: str = ""
    held: int = 10_000


MAIN = ("MM4KE", "R-SFT", "FT-M", "ROME")
QUICK = Mm4keProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=1.5),
    seeds=3,
    source="gazetteer",
    model="gazetteer",
    lengths=(1, 10, 20),
    editors=MAIN,
    closer=20,
    ps=(1.0, 0.5, 0.2),
    ss=(1.0, 0.9, 0.8, 0.6, 0.4, 0.2),
    ability=60,
    texts=60,
    rows=400,
)
FULL = replace(
    QUICK,
    profile="full",
    cost=Cost(machine="one GPU with 24 GB", minutes=25, memory_gb=8, gpu_memory_gb=8),
    seeds=5,
    model="gazetteer-large",
    lengths=(1, 10, 100),
    editors=(),
    closer=100,
    ability=200,
    texts=200,
    rows=2000,
    studies=("thresholds", "parts", "kinds", "anchors", "regularised"),
    long=(1000,),
    enduring=("MM4KE", "R-SFT", "SFT", "MEMIT", "AlphaEdit", "FT-M", "ROME"),
)
# Base model of the list [Awesome-Model-Merging]; data sets of the first author's code. No source says how long it took.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 3 seeds x 9 editors x 1,000 edits of a 7B model (arithmetic)",
        minutes=12_000,
        memory_gb=200,
        gpu_memory_gb=140,
        disk_gb=40,
        downloads=(
            Download("Qwen/Qwen2.5-7B-Instruct", 15.2),
            Download("zjunlp/KnowEdit", 0.2),
            Download("MMLU-Pro and SuperGLUE", 0.1),
        ),
    ),
    seeds=3,
    source="published",
    model="Qwen/Qwen2.5-7B-Instruct",
    edits="WikiRecent",
    held=2,
    lengths=(1, 10, 100, 1000),
    long=(),
    enduring=(),
    studies=("regularised",),
    tasks=(
        "leaderboard_mmlu_pro:acc",
        *(f"{task}:acc" for task in ("boolq", "cb", "copa", "multirc", "sglue_rte", "wic", "wsc")),
    ),
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}

# A CPU cannot pay for the full profile: this is what changes there, and the run says so.
FULL_ON_CPU = {
    "model": "gazetteer",
    "ability": 100,
    "texts": 100,
    "rows": QUICK.rows,
    "long": (300,),
    "enduring": ("MM4KE", "R-SFT", "SFT", "MEMIT", "AlphaEdit"),
}


# How editors are set.


@dataclass(frozen=True)
class Settings:
    """How each editor is set for a model; found by :func:`totals` on calibration edits, or from EasyEdit's files."""

    rsft: RSFT
    sft: RSFT
    ft_all: RSFT
    ft_last: RSFT
    ft: RSFT
    ft_l: RSFT
    ft_l_norm: float
    rome: locate.Locate
    memit: locate.Locate
    alphaedit: locate.Locate
    batch: int
    grace: memory.GraceSettings
    lora: Mapping[str, Any]
    l2: float
    kl: float


TINY = Settings(
    rsft=RSFT(epochs=10, steps=5, threshold=0.1, learning_rate=5e-4),
    sft=tuning.sft(10, 1e-3),
    ft_all=tuning.sft(10, 1e-3, matrices=None),
    ft_last=tuning.sft(10, 1e-3, layers=(-1,), matrices=None),
    ft=tuning.ft(2, 5e-3),
    ft_l=tuning.ft(2, 5e-3),
    ft_l_norm=0.05,
    rome=locate.Locate((0,), essence="records say that {}"),
    memit=locate.Locate((0,), essence="records say that {}", covariance_weight=100.0),
    alphaedit=locate.Locate((0,), essence="records say that {}", null_threshold=3.0, null_l2=100.0),
    batch=10,
    grace=memory.GraceSettings(2, epsilon=0.5, steps=30),
    lora={"epochs": 30, "learning_rate": 2e-3},
    l2=0.01,
    kl=1.0,
)


# What is edited, and what should stay.


class Generated:
    """The tiny model that knows :mod:`zfu_lib.data.gazetteer`."""

    settings = TINY
    note = staticmethod(gazetteer.note)

    def __init__(self, profile: Mm4keProfile, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from zfu_lib.lm import recipes, tiny
        from zfu_lib.lm.recipes import make
        from zfu_lib.lm.train import train

        logging.disable_progress_bar()
        if profile.model in tiny.names():
            folder = tiny.path(profile.model)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        else:
            recipe = recipes.recipe(profile.model)
            model, self.tokenizer = make.build(recipe)
            train(model, make.batches(recipe, self.tokenizer), recipe.train, device=device)
        self.model, self.profile = model.to(device).eval(), profile
        self.known = gazetteer.world(size=gazetteer.PEOPLE if profile.model.endswith("large") else gazetteer.SIZE)

    def cases(self, n: int, seed: int, kind: gazetteer.Kind = "modify") -> list[Case]:
        """Edits drawn by the seed; those of a shorter sequence begin a longer one's."""
        return gazetteer.cases(n, seed, self.known, kind=kind)

    def corpus(self, n: int, seed: int, *, unedited: bool = False) -> Tensor:
        """Token ids of texts, cut to one length: int64 [n, T]."""
        texts = gazetteer.texts(n, SENTENCES, seed, self.known, unedited=unedited)
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        length = sorted(map(len, rows))[n // 10]
        kept = [row[:length] for row in rows if len(row) >= length]
        return torch.tensor(kept, device=self.model.device)

    def abilities(self, n: int, seed: int) -> dict[str, list[gazetteer.Question]]:
        """Questions of each skill."""
        return {skill: gazetteer.questions(skill, n, seed, self.known) for skill in gazetteer.SKILLS}

    def tasks(self, n: int, seed: int, folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
        """The same questions as tasks of lm-eval, which scores every answer of a kind: (task, metric) by skill."""
        found, kinds = {}, (*gazetteer.RANGES.values(), *gazetteer.LAND_NAMES.values(), gazetteer.NUMBERS)
        for skill, asked in self.abilities(n, seed).items():
            rows = [(q, next(kind for kind in kinds if q.answer in kind)) for q in asked]
            lines = [json.dumps({"question": q.prompt, "choices": c, "answer": c.index(q.answer)}) for q, c in rows]
            file = folder / f"{skill}.jsonl"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            found[skill] = harness.multiple_choice(skill, file), "acc"
        return found


class Published:
    """A model and edits of the hub; ability is MMLU, held-out texts are from Wikipedia.

    The profile's ``edits`` names one of :attr:`sets`, all parts of KnowEdit, or is ``FORM:FILE``, a file in a form of
    :mod:`zfu_lib.data.edits`.
    """

    known = "zjunlp/KnowEdit"
    sets: ClassVar[dict[str, str]] = {
        "WikiRecent": "benchmark/wiki_recent/recent_test.json",
        "CounterFact": "benchmark/wiki_counterfact/test_cf.json",
        "ZsRE": "benchmark/ZsRE/ZsRE-test-all.json",
    }
    texts = "Salesforce/wikitext", "wikitext-103-raw-v1"
    choices = "cais/mmlu", "all"

    def __init__(self, profile: Mm4keProfile, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.named, name = profile.tasks, profile.model
        form, _, file = profile.edits.partition(":")
        if not file and form not in self.sets:
            raise ValueError(f"edits {form!r} are neither FORM:FILE nor one of {', '.join(self.sets)}")
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        # In 16 bits a weight would not notice most of R-SFT's steps.
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
        self.settings, self.length = published_settings(len(facts.blocks(self.model)), self.prefixes()), 256
        if file:
            self.pool = edits.read(Path(file), form)
        else:
            from huggingface_hub import hf_hub_download

            self.pool = edits.read(Path(hf_hub_download(self.known, self.sets[form], repo_type="dataset")), "knowedit")
        self.pool = facts.last_wins([case for case in self.pool if case.subject in case.prompt])

    def prefixes(self) -> tuple[str, ...]:
        """What the model writes after five words, to stand before prompts whose keys and values are looked for."""
        found = []
        for word in ("The", "Therefore", "Because", "I", "You"):
            ids = torch.tensor([self.tokenizer(word)["input_ids"]], device=self.model.device)
            written = self.tokenizer.decode(metrics.continued(self.model, ids, 10)[0], skip_special_tokens=True)
            found.append(f"{word}{written}.")
        return tuple(found)

    def cases(self, n: int, seed: int, kind: str = "modify") -> list[Case]:
        """Edits drawn by the seed, calibration ones from another half of the file than those reported."""
        if kind != "modify":
            raise ValueError(f"{kind!r} edits are not marked in these files")
        half = self.pool[1::2] if seed >= CALIBRATION else self.pool[::2]
        if n > len(half):
            raise ValueError(f"{n} edits of {len(half)} in half of the file")
        return [half[i] for i in np.random.default_rng((seed, 73)).permutation(len(half))[:n]]

    @staticmethod
    def note(told: str, answer: str) -> str:
        """How the prompt of in-context editing tells a fact."""
        return f"New fact: {told} {answer}.\nQuestion:"

    def corpus(self, n: int, seed: int, *, unedited: bool = False) -> Tensor:
        """Token ids of Wikipedia articles: int64 [n, T]; held-out ones from the test split."""
        from datasets import load_dataset

        rows = load_dataset(*self.texts, split="test" if unedited else "train", streaming=not unedited)
        stream = itertools.chain.from_iterable(self.tokenizer(row["text"])["input_ids"] for row in rows)
        ids = list(itertools.islice(stream, n * self.length))
        n = len(ids) // self.length
        return torch.tensor(ids[: n * self.length], device=self.model.device).view(n, self.length)

    def abilities(self, n: int, seed: int) -> dict[str, list[gazetteer.Question]]:
        """Questions of MMLU with numbered options."""
        from datasets import load_dataset

        rows = load_dataset(*self.choices, split="test")
        asked = []
        for i in np.random.default_rng((seed, 79)).permutation(len(rows))[:n]:
            row = rows[int(i)]
            options = "\n".join(f"{k}. {text}" for k, text in enumerate(row["choices"], 1))
            asked.append(
                gazetteer.Question(f"{row['question']}\n{options}\nNumber of the answer:", str(row["answer"] + 1))
            )
        return {"MMLU": asked}

    def tasks(self, n: int, seed: int, folder: Path) -> dict[str, tuple[str, str]]:
        """Those that the profile names: (task, metric) by name."""
        return {task: (task, metric) for task, metric in (named.split(":") for named in self.named)}


def published_settings(depth: int, prefixes: tuple[str, ...] = ()) -> Settings:
    """EasyEdit's values for Llama-2-7B, its layers moved to the same place of a model of another depth."""

    def at(layer: int) -> int:
        return min(depth - 1, round(layer * depth / 32))

    middle = tuple(dict.fromkeys(at(layer) for layer in (4, 5, 6, 7, 8)))
    rsft = RSFT(epochs=5, steps=5, threshold=0.1, learning_rate=2e-5)
    common = {"prefixes": prefixes, "together": 8}
    return Settings(
        rsft=rsft,
        sft=tuning.sft(5, 2e-5),
        ft_all=tuning.sft(5, 1e-5, matrices=None),
        ft_last=tuning.sft(5, 2e-5, layers=(-1,), matrices=None),
        ft=tuning.ft(at(21)),
        ft_l=tuning.ft(at(21)),
        ft_l_norm=5e-4,
        rome=locate.Locate((at(5),), **common),
        memit=locate.Locate(middle, covariance_weight=15000.0, **common),
        alphaedit=locate.Locate(middle, **common),
        batch=100,
        grace=memory.GraceSettings(at(27)),
        lora={"epochs": 60, "learning_rate": 5e-3},
        l2=0.01,
        kl=1.0,
    )


SOURCES: dict[str, Callable[[Mm4keProfile, str], Any]] = {"gazetteer": Generated, "published": Published}

CALIBRATION = 10_000
"""Seeds from here on draw what choices are made on; smaller ones draw what is reported."""


class Edited(NamedTuple):
    """A model after its edits. ``prompted`` changes what it reads (ICE). ``updates`` of weights were made; ``stored``
    bytes are kept beside the weights; ``immediate`` says for each edit whether it held right after it was made (freely
    decoded; None where all are made at once)."""

    model: PreTrainedModel
    prompted: Callable[[Case, str], str] | None = None
    updates: int = 0
    stored: int = 0
    immediate: list[bool] | None = None


class Kept(NamedTuple):
    """General ability: percent right by skill, and nats per token of held-out texts."""

    skills: dict[str, float]
    loss: float

    @property
    def ability(self) -> float:
        """Mean over the skills, percent."""
        return float(np.mean(list(self.skills.values())))


class Result(NamedTuple):
    """One editor after one sequence: metrics, what was kept, and what it took (CPU seconds, updates, weights that
    changed, bytes beside the weights)."""

    scores: metrics.Scores
    kept: Kept
    seconds: float
    updates: int
    changed: int
    stored: int
    immediate: float | None

    def of(self, name: str, protocol: str = "free") -> float:
        """A metric, ``ability``, ``loss``, ``edit`` (score) or ``kept`` (score); percent, the loss in nats."""
        if name == "edit":
            return (self.of("reliability", protocol) + self.of("generalisation", protocol)) / 2
        if name == "kept":
            return (self.of("locality", protocol) + self.kept.ability) / 2
        if name in ("ability", "loss"):
            return getattr(self.kept, name)
        return self.scores.mean(name, protocol)

    @property
    def total(self) -> float:
        """What choices maximise: the mean of the edit score and the kept score."""
        return (self.of("edit") + self.of("kept")) / 2


class Bench:
    """A model, its edits, and what is asked of it."""

    def __init__(self, profile: Mm4keProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.asked, self.profile = profile, replace(profile, **FULL_ON_CPU) if scaled else profile
        self.source = SOURCES[profile.source](self.profile, self.device)
        self.model, self.tokenizer = self.source.model, self.source.tokenizer
        self.settings: Settings = self.source.settings
        self.original = mm4ke.weights_of(self.model)
        self._cases: dict[tuple, list[Case]] = {}
        self._before: dict[tuple, metrics.Before] = {}

    def description(self) -> str:
        """What is edited, and what a CPU leaves out."""
        p, millions = self.profile, sum(x.size for x in self.original.values()) / 1e6
        text = (
            f"Edited here: {p.model} ({type(self.model).__name__}), {len(facts.blocks(self.model))} layers, "
            f"{millions:.2f}M parameters; sequences of {', '.join(map(str, p.lengths + p.long))} edits; "
            f"{p.seeds} seeds, on {self.device}."
        )
        if p != self.asked:
            text += (
                f" Scaled down for a CPU: the profile asks for {self.asked.model} and sequences of "
                f"{', '.join(map(str, self.asked.long))} edits of {', '.join(self.asked.enduring)}; here it is "
                f"{p.model}, and {', '.join(map(str, p.long))} edits of {', '.join(p.enduring)}."
            )
        return text

    def fresh(self) -> PreTrainedModel:
        """A copy that an editor may change."""
        return copy.deepcopy(self.model)

    def cases(self, n: int, seed: int, kind: gazetteer.Kind = "modify") -> list[Case]:
        """The first ``n`` edits of a seed's sequence."""
        longest = max(n, *self.profile.lengths, self.profile.closer)
        key = (longest, seed, kind)
        if key not in self._cases:
            self._cases[key] = self.source.cases(longest, seed, kind)
        return self._cases[key][:n]

    def before(self, n: int, seed: int, kind: gazetteer.Kind = "modify") -> metrics.Before:
        """What the unedited model says to the locality questions of a sequence."""
        if (n, seed, kind) not in self._before:
            self._before[n, seed, kind] = metrics.before(self.model, self.tokenizer, self.cases(n, seed, kind))
        return self._before[n, seed, kind]

    @functools.cached_property
    def reference(self) -> Tensor:
        """Texts of the model's own corpus, for second moments and the KL penalty."""
        return self.source.corpus(self.profile.rows, CALIBRATION + 1)

    @functools.cached_property
    def covariances(self) -> dict[int, Tensor]:
        """Second moment of the keys of every layer that an editor writes to."""
        s = self.settings
        layers = sorted({*s.rome.layers, *s.memit.layers, *s.alphaedit.layers})
        return locate.covariances(self.model, self.reference, layers)

    def kept(self, model: PreTrainedModel, seed: int) -> Kept:
        """Ability and held-out loss, on questions and texts of a seed."""
        n, skills = self.profile.ability, {}
        for skill, questions in self.source.abilities(n, seed).items():
            told = metrics.decode(model, self.tokenizer, [q.prompt for q in questions], new_tokens=3)
            right = [metrics.normalised(a) == metrics.normalised(q.answer) for a, q in zip(told, questions)]
            skills[skill] = 100 * float(np.mean(right))
        texts = self.source.corpus(self.profile.texts, seed, unedited=True)
        return Kept(skills, float(metrics.held_out_loss(model, texts).mean()))

    def general(self, model: PreTrainedModel) -> dict[str, float]:
        """Percent right in each task of lm-eval; the questions are not those of :meth:`kept`."""
        n = self.profile.ability
        with tempfile.TemporaryDirectory() as folder:
            tasks = self.source.tasks(n, QUESTIONS + 2, Path(folder))
            if not tasks:
                return {}
            asked, device = [task for task, _ in tasks.values()], self.device
            scores = harness.evaluate(model, self.tokenizer, asked, device=device, batch_size=64, limit=n)["scores"]
        return {name: 100 * scores[name][metric]["value"] for name, (_, metric) in tasks.items()}

    def judged(
        self, edited: Edited, n: int, seed: int, kind: gazetteer.Kind = "modify", seconds: float = 0.0
    ) -> Result:
        """All metrics of an edited model after its whole sequence."""
        cases, model = self.cases(n, seed, kind), edited.model
        scores = metrics.evaluate(model, self.tokenizer, cases, self.before(n, seed, kind), edited.prompted)
        changed = sum(int((w != self.original[name]).sum()) for name, w in mm4ke.weights_of(model).items())
        at_once = None if edited.immediate is None else 100 * float(np.mean(edited.immediate))
        kept = self.kept(model, QUESTIONS + (seed >= CALIBRATION))
        return Result(scores, kept, seconds, edited.updates, changed, edited.stored, at_once)

    def holds(self, model: PreTrainedModel, case: Case) -> bool:
        """Whether a model continues the prompt of an edit by its target, decoded freely."""
        new = len(self.tokenizer(f" {case.target}", add_special_tokens=False)["input_ids"]) + 1
        (told,) = metrics.decode(model, self.tokenizer, [case.prompt], new_tokens=new)
        return metrics.normalised(told) == metrics.normalised(case.target)


QUESTIONS = 20_000
"""The seed of ability questions and held-out texts; the next one draws those for calibration, the one after that those
that lm-eval asks."""


# Editors: from a bench, edits and a seed to an edited model.

Editor = Callable[[Bench, Sequence[Case], int], Edited]


def trained(how: Callable[[Settings], RSFT], penalty: Callable[..., Any] | None = None) -> Editor:
    """All edits at once, by the loops of R-SFT; ``penalty(bench, model, how)`` makes what is added to the loss."""

    def editor(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
        model, chosen = bench.fresh(), how(bench.settings)
        batch = facts.batch_of(model, bench.tokenizer, cases)
        added = penalty(bench, model, chosen) if penalty else None
        log = mm4ke.r_sft(model, batch, chosen, seed, penalty=added)
        return Edited(model, updates=sum(log.updates))

    return editor


def one_by_one(edit: Callable[[Bench, PreTrainedModel, Case, int], int]) -> Editor:
    """Edits one after another; ``edit`` changes the model and returns how often it updated weights."""

    def editor(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
        model, updates, immediate = bench.fresh(), 0, []
        for i, case in enumerate(cases):
            updates += edit(bench, model, case, 1000 * seed + i)
            immediate.append(bench.holds(model, case))
        return Edited(model, updates=updates, immediate=immediate)

    return editor


def _ft_m(bench: Bench, model: PreTrainedModel, case: Case, seed: int) -> int:
    batch = facts.batch_of(model, bench.tokenizer, [case])
    return sum(mm4ke.r_sft(model, batch, bench.settings.ft, seed).updates)


def _ft_l(bench: Bench, model: PreTrainedModel, case: Case, seed: int) -> int:
    s = bench.settings
    return sum(tuning.ft_l(model, bench.tokenizer, [case], s.ft_l, s.ft_l_norm).updates)


def _rome(bench: Bench, model: PreTrainedModel, case: Case, seed: int) -> int:
    locate.rome(model, bench.tokenizer, case, bench.settings.rome, bench.covariances)
    return 1


def in_batches(size: int, cases: Sequence[Case]) -> list[Sequence[Case]]:
    """The sequence in pieces."""
    return [cases[i : i + size] for i in range(0, len(cases), size)]


def _memit(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    model, batches = bench.fresh(), in_batches(bench.settings.batch, cases)
    for batch in batches:
        locate.memit(model, bench.tokenizer, batch, bench.settings.memit, bench.covariances)
    stored = memory.size([bench.covariances[layer] for layer in bench.settings.memit.layers])
    return Edited(model, updates=len(batches), stored=stored)


def _alphaedit(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    model, batches = bench.fresh(), in_batches(bench.settings.batch, cases)
    write = locate.AlphaEdit(bench.settings.alphaedit, bench.covariances)
    for batch in batches:
        write(model, bench.tokenizer, batch)
    stored = memory.size([*write.projections.values(), *write.edited.values()])
    return Edited(model, updates=len(batches), stored=stored)


def _lora(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    model = bench.fresh()
    return Edited(model, updates=tuning.lora(model, bench.tokenizer, cases, **bench.settings.lora, seed=seed))


def _grace(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    model, immediate = bench.fresh(), []
    book = memory.Grace(model, bench.settings.grace)
    for case in cases:
        book.edit(bench.tokenizer, case)
        immediate.append(bench.holds(model, case))
    stored = memory.size([book.keys, book.values, book.radii, book.labels])
    return Edited(model, stored=stored, immediate=immediate)


def _ice(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    told = memory.in_context(bench.source.note)
    stored = sum(len(told(case, "").encode()) for case in cases)
    return Edited(bench.model, told, stored=stored)


def _unedited(bench: Bench, cases: Sequence[Case], seed: int) -> Edited:
    return Edited(bench.model)


EDITORS: dict[str, Editor] = {
    "unedited": _unedited,
    "R-SFT": trained(lambda s: s.rsft),
    "SFT": trained(lambda s: s.sft),
    "FT, all weights": trained(lambda s: s.ft_all),
    "FT, last layer": trained(lambda s: s.ft_last),
    "SFT + L2": trained(lambda s: s.sft, lambda b, m, how: tuning.l2_to_start(m, how, b.settings.l2)),
    "SFT + KL": trained(lambda s: s.sft, lambda b, m, how: tuning.kl_to(b.model, m, b.reference, b.settings.kl, 4)),
    "FT-M": one_by_one(_ft_m),
    "FT-L": one_by_one(_ft_l),
    "LoRA": _lora,
    "ROME": one_by_one(_rome),
    "MEMIT": _memit,
    "AlphaEdit": _alphaedit,
    "GRACE": _grace,
    "ICE": _ice,
}
MERGED = ("MM4KE", "R-SFT, averaged", "SFT, merged")
"""Made from a tuned model by :meth:`Study.merged`: pruned and scaled, scaled only, and the same from plain SFT."""
RIVALS = ("ROME", "FT-M", "FT-L", "MEMIT", "AlphaEdit")
FAMILIES = {
    "main": ("MM4KE", "R-SFT", "SFT", "FT-M", "ROME"),
    "tuned": ("MM4KE", "FT, all weights", "FT, last layer", "LoRA", "FT-L"),
    "located": ("MM4KE", "MEMIT", "AlphaEdit", "GRACE", "ICE"),
    "held back": ("MM4KE", "R-SFT, averaged", "SFT, merged", "SFT + L2", "SFT + KL"),
}
"""Editors that share a figure, every one in some figure and MM4KE in all."""
VARIANTS: dict[str, Callable[[RSFT], RSFT]] = {
    "depth first": lambda how: replace(how, epochs=1, steps=how.epochs * how.steps),
    "all weights": lambda how: replace(how, matrices=None),
    "attention": lambda how: replace(how, matrices=facts.ATTENTION),
    "threshold 0": lambda how: replace(how, threshold=0.0),
    "threshold 0.1": lambda how: replace(how, threshold=0.1),
    "threshold 1": lambda how: replace(how, threshold=1.0),
}
FACTORS, PENALTIES = (0.8, 0.6, 0.4), {"l2": (0.001, 0.01, 0.1), "kl": (0.3, 1.0, 3.0)}
"""What claim K12 holds against each other: three factors of the merge, three weights of each penalty."""


class Choice(NamedTuple):
    """What stage 2 uses: the kept fraction, the factor, and the calibration score of every pair [p, s]."""

    p: float
    s: float
    scores: np.ndarray


class Study:
    """Everything that the chapter measures, each model made once."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.profile = bench, bench.profile
        self._tuned: dict[tuple, tuple[Edited, dict[str, np.ndarray], float]] = {}
        self._results: dict[tuple, Result] = {}
        self._choices: dict[tuple, Choice] = {}

    @property
    def editors(self) -> tuple[str, ...]:
        """Those of the profile; none named: all."""
        return self.profile.editors or (*MERGED, *(name for name in EDITORS if name != "unedited"))

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """:data:`FAMILIES`, as far as the profile runs them; MM4KE is compared with somebody in each."""
        run = {f: tuple(name for name in names if name in self.editors) for f, names in FAMILIES.items()}
        return {family: names for family, names in run.items() if len(names) > 1}

    # Making models.

    def tuned(self, name: str, n: int, seed: int) -> tuple[Edited, dict[str, np.ndarray], float]:
        """A model edited by one of :data:`EDITORS`, its weights, and the CPU seconds that it took."""
        key = (name, n, seed)
        if key not in self._tuned:
            while len(self._tuned) >= self.profile.held:
                del self._tuned[next(iter(self._tuned))]
            _ = self.bench.covariances  # made once for all edits; not part of an edit's time
            began = time.process_time()
            edited = EDITORS[name](self.bench, self.bench.cases(n, seed), seed)
            took = time.process_time() - began
            self._tuned[key] = edited, mm4ke.weights_of(edited.model), took
        return self._tuned[key]

    def merge(self, name: str, n: int, seed: int, p: float, s: float, scope: str = "tensor") -> Result:
        """A tuned model after stage 2."""
        key = (name, n, seed, p, s, scope)
        if key not in self._results:
            edited, weights, took = self.tuned(name, n, seed)
            began, model = time.process_time(), self.bench.fresh()
            mm4ke.load(model, mm4ke.merge_back(self.bench.original, weights, p, s, scope))
            took += time.process_time() - began
            self._results[key] = self.bench.judged(edited._replace(model=model), n, seed, seconds=took)
        return self._results[key]

    def choice(self, seed: int, name: str = "R-SFT", ps: Sequence[float] | None = None) -> Choice:
        """Stage 2 chosen on other edits than those reported: the pair with the best total at ``closer`` edits."""
        p, n = self.profile, self.profile.closer
        ps = tuple(ps or p.ps)
        if (seed, name, ps) not in self._choices:
            grid = np.array([[self.merge(name, n, CALIBRATION + seed, q, s).total for s in p.ss] for q in ps])
            i, j = np.unravel_index(grid.argmax(), grid.shape)
            self._choices[seed, name, ps] = Choice(ps[i], p.ss[j], grid)
        return self._choices[seed, name, ps]

    def result(self, name: str, n: int, seed: int) -> Result:
        """An editor, or one of :data:`MERGED`, after a whole sequence."""
        if name == "MM4KE":
            return self.merge("R-SFT", n, seed, *self.choice(seed)[:2])
        if name == "R-SFT, averaged":
            return self.merge("R-SFT", n, seed, *self.choice(seed, ps=(1.0,))[:2])
        if name == "SFT, merged":
            return self.merge("SFT", n, seed, *self.choice(seed, "SFT")[:2])
        if (name, n, seed) not in self._results:
            edited, _, took = self.tuned(name, n, seed)
            self._results[name, n, seed] = self.bench.judged(edited, n, seed, seconds=took)
        return self._results[name, n, seed]

    def variant(self, name: str, n: int) -> dict[str, np.ndarray]:
        """R-SFT with one thing changed (:data:`VARIANTS`): metrics for each of few seeds, before any merge."""
        found = []
        for seed in range(self.profile.few_seeds):
            key = (f"variant {name}", n, seed)
            if key not in self._results:
                edited = trained(lambda s: VARIANTS[name](s.rsft))(self.bench, self.bench.cases(n, seed), seed)
                self._results[key] = self.bench.judged(edited, n, seed)
            found.append(self._results[key])
        return {m: np.array([r.of(m) for r in found]) for m in ("reliability", "edit", "kept")} | {
            "total": np.array([r.total for r in found])
        }

    # Reading them off.

    def each(self, name: str, n: int, metric: str, protocol: str = "free", seeds: int | None = None) -> np.ndarray:
        """A metric of an editor for each seed."""
        return np.array([self.result(name, n, s).of(metric, protocol) for s in range(seeds or self.profile.seeds)])

    def curves(self, metric: str, names: Iterable[str], protocol: str = "free") -> dict[str, dict[str, list[float]]]:
        """A metric against the number of edits, with intervals, for :func:`zfu_lib.report.figures.lines`; without the
        lengths at which some seed has no question of the kind."""
        p = self.profile
        found = {}
        for name in names:
            at = [(n, p.seeds) for n in p.lengths]
            at += [(n, p.few_seeds) for n in p.long if name in p.enduring]
            by_length = {n: self.each(name, n, metric, protocol, seeds) for n, seeds in at}
            shown = over_seeds if metric == "loss" else percent
            cells = {n: shown(values) for n, values in by_length.items() if np.isfinite(values).all()}
            ends = {field: [getattr(cell, field) for cell in cells.values()] for field in ("low", "high")}
            found[name] = {"x": list(cells), "y": [cell.mean for cell in cells.values()], **ends}
        return found

    def model(self, name: str, n: int, seed: int) -> PreTrainedModel:
        """A model of its own with the weights of an editor (not with what GRACE and ICE keep beside them)."""
        model = self.bench.fresh()
        weights = self.tuned("R-SFT" if name == "MM4KE" else name, n, seed)[1]
        if name == "MM4KE":
            weights = mm4ke.merge_back(self.bench.original, weights, *self.choice(seed)[:2])
        mm4ke.load(model, weights)
        return model

    def general(self, name: str, n: int) -> dict[str, np.ndarray]:
        """Percent right in lm-eval's tasks, for each seed; nothing is drawn for the unedited model."""
        seeds = range(self.profile.seeds)
        if name == "unedited":
            found = [self.bench.general(self.bench.model)] * len(seeds)
        else:
            found = [self.bench.general(self.model(name, n, seed)) for seed in seeds]
        return {task: np.array([scores[task] for scores in found]) for task in found[0]}

    def fluency(self, name: str, n: int, prompts: int = 4, new_tokens: int = 60) -> np.ndarray:
        """n-gram entropy of what a model writes after the prompts of its first edits, bits, for each seed."""
        found = []
        for seed in range(self.profile.seeds):
            asked = [case.prompt for case in self.bench.cases(n, seed)[:prompts]]
            model = self.model(name, n, seed)
            found.append(float(metrics.fluency(model, self.bench.tokenizer, asked, new_tokens=new_tokens).mean()))
        return np.array(found)

    def sweep(self, metric: str, p: float = 1.0, name: str = "R-SFT") -> np.ndarray:
        """A metric against the factor s at ``closer`` edits: [seeds, s]."""
        n = self.profile.closer
        return np.array(
            [
                [self.merge(name, n, seed, p, s).of(metric) for s in self.profile.ss]
                for seed in range(self.profile.seeds)
            ]
        )

    def gap_closed(self) -> np.ndarray:
        """What merging gives back of the ability that R-SFT took, minus half of what it took; points, for each seed."""
        n = self.profile.closer
        base, tuned, merged = (self.each(name, n, "ability") for name in ("unedited", "R-SFT", "MM4KE"))
        return (merged - tuned) - (base - tuned) / 2

    def gate(self) -> dict[str, np.ndarray]:
        """What there must be for comparisons to mean anything: facts known before, and R-SFT that learns edits but
        takes something away."""
        n, seeds = self.profile.closer, range(self.profile.seeds)
        known = [
            100
            * np.mean([self.bench.holds(self.bench.model, replace(c, target=c.old)) for c in self.bench.cases(n, s)])
            for s in seeds
        ]
        return {
            "known_before": np.array(known),
            "rsft_learns": self.each("R-SFT", n, "reliability"),
            "rsft_harm": self.each("unedited", n, "kept") - self.each("R-SFT", n, "kept"),
        }

    # Closer studies, for larger profiles.

    def closer(self) -> dict[str, np.ndarray]:
        """The measurements of the studies that the profile names."""
        found: dict[str, np.ndarray] = {}
        for study in self.profile.studies:
            found |= getattr(self, f"_{study}")()
        return found

    def _thresholds(self) -> dict[str, np.ndarray]:
        n = self.profile.closer
        at = {t: self.variant(f"threshold {t}", n)["total"] for t in ("0", "0.1", "1")}
        return {"k6_zero": at["0.1"] - at["0"], "k6_large": at["0.1"] - at["1"]}

    def _parts(self) -> dict[str, np.ndarray]:
        n, whole = self.profile.closer, self.variant("all weights", self.profile.closer)
        few = self.profile.few_seeds
        return {f"k8_{m}": self.each("R-SFT", n, m, seeds=few) - whole[m] for m in ("reliability", "kept")}

    def _kinds(self) -> dict[str, np.ndarray]:
        found: dict[str, list[Result]] = {kind: [] for kind in ("insert", "modify", "erase")}
        n = self.profile.closer
        for seed in range(self.profile.few_seeds):
            p, s, _ = self.choice(seed)
            for kind, results in found.items():
                model = self.bench.fresh()
                mm4ke.edit(model, self.bench.tokenizer, self.bench.cases(n, seed, kind), self.bench.settings.rsft, p, s)
                results.append(self.bench.judged(Edited(model), n, seed, kind))
        holds = {kind: np.array([r.of("reliability") for r in results]) for kind, results in found.items()}
        local = {kind: np.array([r.of("locality") for r in results]) for kind, results in found.items()}
        return {f"k9_{kind}": values for kind, values in holds.items()} | {
            "k9_insert_minus_modify": holds["insert"] - holds["modify"],
            "k9_modify_minus_erase": local["modify"] - local["erase"],
        }

    def _anchors(self) -> dict[str, np.ndarray]:
        n, size = self.profile.closer, self.bench.settings.batch
        found: dict[str, list[float]] = {"previous": [], "original": []}
        for seed in range(self.profile.few_seeds):
            p, s, _ = self.choice(seed)
            cases = self.bench.cases(n, seed)
            for anchor, values in found.items():
                model, how = self.bench.fresh(), self.bench.settings.rsft
                mm4ke.stream(model, self.bench.tokenizer, in_batches(size, cases), how, p, s, anchor=anchor, seed=seed)
                values.append(100 * float(np.mean([self.bench.holds(model, case) for case in cases[: n // 2]])))
        return {"k13_gap": np.array(found["previous"]) - np.array(found["original"])}

    def _regularised(self) -> dict[str, np.ndarray]:
        n, found = self.profile.closer, {"k12_l2": [], "k12_kl": []}
        for seed in range(self.profile.few_seeds):
            needed = 0.9 * self.result("R-SFT", n, seed).of("reliability")
            merged = [self.merge("R-SFT", n, seed, 1.0, s) for s in FACTORS]
            for key, field in (("k12_l2", "l2"), ("k12_kl", "kl")):
                rivals = [self.regularised(field, weight, n, seed) for weight in PENALTIES[field]]
                found[key].append(_most_kept(merged, needed) - _most_kept(rivals, needed))
        return {key: np.array(values) for key, values in found.items()}

    def regularised(self, field: str, weight: float, n: int, seed: int) -> Result:
        """R-SFT's loops without early stop and with a penalty, ``l2`` or ``kl``, of some weight."""
        key = (f"{field} {weight}", n, seed)
        if key not in self._results:
            bench = copy.copy(self.bench)
            bench.settings = replace(bench.settings, **{field: weight})
            edited = EDITORS[f"SFT + {field.upper()}"](bench, bench.cases(n, seed), seed)
            self._results[key] = self.bench.judged(edited, n, seed)
        return self._results[key]

    def rivals(self, metric: str, n: int) -> dict[str, np.ndarray]:
        """MM4KE minus each other editor that changes weights one edit or batch after another, for each seed."""
        names = [name for name in RIVALS if name in self.editors]
        return {name: self.each("MM4KE", n, metric) - self.each(name, n, metric) for name in names}


def totals(bench: Bench, name: str, options: Iterable[Settings], n: int, seeds: Iterable[int]) -> list[float]:
    """Mean calibration total of an editor for each of some settings: how :data:`TINY` was found."""
    found = []
    for settings in options:
        trial = copy.copy(bench)
        trial.settings = settings
        study = Study(trial)
        found.append(float(np.mean([study.result(name, n, CALIBRATION + seed).total for seed in seeds])))
    return found


def key(name: str) -> str:
    """An editor's name as part of a measurement's name."""
    return name.lower().replace("-", "_").replace(" ", "_")


def _most_kept(results: Sequence[Result], needed: float) -> float:
    """Largest kept score among results with enough reliability; if none has it, that of the most reliable."""
    enough = [r for r in results if r.of("reliability") >= needed]
    return max((r.of("kept") for r in enough), default=max(results, key=lambda r: r.of("reliability")).of("kept"))


def percent(values: Sequence[float]) -> Interval:
    """Mean and 95% interval over seeds of a percentage, cut at 0 and 100: nothing lies beyond."""
    found = over_seeds(values)
    return found._replace(low=max(0.0, found.low), high=min(100.0, found.high))


def edit_checkpoint(
    source: Path, cases: Sequence[Case], out: Path, how: RSFT, p: float = 1.0, s: float = 0.5, seed: int = 0
) -> mm4ke.Tuned:
    """MM4KE on a checkpoint folder of the Llama or Qwen2 layout, written to another one with its tokenizer.

    Everything is computed in 32 bits; what is written has the precision of the source.

    Raises:
        EditError: edits that cannot be made, or a layer or matrix that the model does not have.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, dtype=torch.float32)
    log = mm4ke.edit(model, tokenizer, cases, how, p, s, seed=seed)
    precision = AutoConfig.from_pretrained(source, local_files_only=True).dtype
    model.to(precision or torch.float32).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return log
