"""Experiments of the SRICL chapter (arXiv 2604.21525).

A :class:`Lab` draws a training sample per seed, trains every extractor on it once, and scores all of them on the same
test sentences. All scores are over *all* test sentences; an answer that failed counts as empty.
"""

from __future__ import annotations

import copy
import functools
import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from zfu_lib.data import catalogue
from zfu_lib.data import skills as corpora
from zfu_lib.data.worlds import jobads
from zfu_lib.experiments import corruption
from zfu_lib.experiments.span_models import (
    Adapter,
    Crf,
    Lexicon,
    Lora,
    Spans,
    Tagger,
    adapter,
    add_lora,
    use_adapter,
)
from zfu_lib.lm import encoder as encoders
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.protocol import LanguageModel, Ledger, Message
from zfu_lib.lm.recipes import make
from zfu_lib.lm.recipes.base import Example, Recipe
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import IGNORED, BatchFn, TrainConfig, train
from zfu_lib.report import paths
from zfu_lib.report.profiles import Cost, Download, Profile
from zfu_lib.report.record import DataUsed
from zfu_lib.report.statistics import Interval, over_seeds
from zfu_lib.retrieval import Dense
from zfu_lib.skills import metrics, prompts, shape, sricl
from zfu_lib.skills.markers import Markers, read
from zfu_lib.skills.prompts import Context
from zfu_lib.skills.spans import Sentence, Span, from_tags, to_tags
from zfu_lib.skills.sricl import Config, Definitions, Outcome, Store
from zfu_lib.skills.verifier import CODES, feedback, marked_strings, verify

NO_MODEL = "no language model that reads real job ads can be fine-tuned on this machine"


@dataclass(frozen=True)
class SriclProfile(Profile):
    """What the chapter trains.

    ``train`` sentences are drawn per seed and corpus, ``test`` once per corpus. ``base`` is the language model that is
    fine-tuned (``copyist``: made here in ``copy_steps``, :func:`copyist`; empty: none), ``style`` its prompts;
    ``sft_steps`` of ``sft_batch`` sentences train it, by LoRA if ``lora``. ``tagger_steps`` and ``frozen`` (lower
    layers left as they are) are the tagger's. The verifier is tried on ``simulated`` answers per corpus.
    """

    corpora: tuple[str, ...]
    train: int
    test: int
    base: str
    style: str
    sft_steps: int
    sft_batch: int
    sft_rate: float
    lora: bool
    tagger_steps: int
    frozen: int
    simulated: int
    copy_steps: int = 1100
    context: int = 400
    max_tokens: int = 64


QUICK = SriclProfile(
    profile="quick",
    cost=Cost(machine="2 CPU cores", minutes=3, memory_gb=2),
    seeds=3,
    corpora=("jobads",),
    train=160,
    test=200,
    base="copyist",
    style="plain",
    sft_steps=120,
    sft_batch=16,
    sft_rate=1e-3,
    lora=False,
    tagger_steps=40,
    frozen=3,
    simulated=150,
)
FULL = replace(
    QUICK,
    profile="full",
    cost=Cost(
        machine="4 CPU cores or one GPU",
        minutes=25,
        memory_gb=4,
        data=("skillspan", "sayfullina", "green", "esco"),
    ),
    corpora=("skillspan", "sayfullina", "green"),
    train=4800,
    test=1800,
    base="",
    tagger_steps=1500,
    frozen=0,
    simulated=600,
)
# Base model and recipe of the sister paper's adapter (rank 16, alpha 32, dropout 0.05, rate 1e-4, 16 sentences a step);
# SRICL's own are not confirmed.
PAPER = replace(
    FULL,
    profile="paper",
    cost=Cost(
        machine="one H200: 27 adapters of 1,500 steps, 12 decodings of three test sets, arithmetic at 40% use",
        minutes=900,
        memory_gb=64,
        gpu_memory_gb=80,
        disk_gb=35,
        downloads=(Download("Qwen/Qwen2.5-14B-Instruct", 29.5),),
        data=FULL.cost.data,
    ),
    train=8669,
    test=3569,
    base="hf:Qwen/Qwen2.5-14B-Instruct",
    style="chat",
    sft_steps=1500,
    sft_rate=1e-4,
    lora=True,
    simulated=1800,
    context=2048,
    max_tokens=512,
)
PROFILES = {"quick": QUICK, "full": FULL, "paper": PAPER}
# What a CPU changes; the run says so.
FULL_ON_CPU = {"train": 1000, "test": 900, "tagger_steps": 300, "frozen": 3, "simulated": 300}


class Sample(NamedTuple):
    """What one seed sees of a corpus: training sentences, the test sentences of all seeds, and which of those also
    stand in the corpus's training split (case, digits and punctuation aside)."""

    train: list[Sentence]
    test: list[Sentence]
    repeated: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way to use the language model.

    ``sft``: ``none`` (the base), ``bare`` (fine-tuned without context), ``varied`` (with any number of demonstrations
    and definitions). ``demos``: how demonstrations are found. ``share``: of the training sentences.
    """

    sft: Literal["none", "bare", "varied"] = "none"
    demos: Literal["none", "random", "bm25", "dense"] = "none"
    definitions: bool = False
    retries: int = 0
    explain: bool = True
    share: float = 1.0


ZERO_SHOT = Arm()
WHOLE = Arm("varied", "dense", True, 2)


class Lab:
    """Trains and scores on demand, once per corpus and seed.

    Seeds differ in the training sample and in training; all are scored on the same test sentences. Intervals are over
    seeds, given those.
    """

    def __init__(self, profile: SriclProfile, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        scaled = profile.profile == "full" and self.device == "cpu"
        self.profile = replace(profile, **FULL_ON_CPU) if scaled else profile
        self.asked = profile
        real = set(self.profile.corpora) - {"jobads"}
        self.used: list[DataUsed] = [
            u for name in sorted(real | ({"esco"} if real else set())) for u in catalogue.used(name)
        ]
        self._kept: dict[tuple, object] = {}

    def description(self) -> str:
        """What is trained on what, and how far that is from what the profile asks for."""
        p, a = self.profile, self.asked
        text = (
            f"{p.train} training and up to {p.test} test sentences of {', '.join(p.corpora)}, {p.seeds} seeds, "
            f"on {self.device}; language model: {p.base or 'none'}."
        )
        if p != a:
            text += (
                f" Scaled down for a CPU: the profile asks for {a.train} training sentences ({a.train / p.train:.0f} "
                f"times as many), up to {a.test} test sentences ({a.test / p.test:.1f} times), and {a.tagger_steps:,} "
                f"steps for a tagger of which every layer learns; here {p.tagger_steps}, and the lower {p.frozen} stay."
            )
        return text

    def _once(self, key: tuple, made: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = made()
        return self._kept[key]

    # Data.

    def sample(self, corpus: str, seed: int) -> Sample:
        """Training sample of a seed and the common test set."""

        def made() -> Sample:
            train, test = self._split(corpus, "train"), self._split(corpus, "test")
            seen = {sricl.normal(sentence.text) for sentence in train}
            # Every second sentence and so on, so that all postings are there.
            step = max(1, len(test) // self.profile.test)
            test = test[::step][: self.profile.test]
            chosen = np.random.default_rng((seed, 31)).permutation(len(train))[: self.profile.train]
            repeated = np.array([sricl.normal(sentence.text) in seen for sentence in test])
            return Sample([train[i] for i in chosen], test, repeated)

        return self._once(("sample", corpus, seed), made)

    def _split(self, corpus: str, split: str) -> list[Sentence]:
        def made() -> list[Sentence]:
            if corpus == "jobads":
                n = 4 * self.profile.train if split == "train" else self.profile.test
                return generated(n, {"train": 101, "test": 102}[split])
            return [sentence_of(row) for row in corpora.spans(corpus, split)]

        return self._once(("split", corpus, split), made)

    def encoder(self) -> encoders.TextEncoder:
        """MiniLM."""
        return self._once(("encoder",), lambda: encoders.load("minilm", device=self.device, max_length=96))

    def vectors(self, corpus: str, seed: int, what: str) -> np.ndarray:
        """Vectors of the ``test`` texts, or of the training sample's ``anchors`` or ``phrases``."""
        sample = self.sample(corpus, seed)
        texts = {
            "test": lambda: [sentence.text for sentence in sample.test],
            "train": lambda: [sentence.text for sentence in sample.train],
            "anchors": lambda: [sricl.anchored(sentence) for sentence in sample.train],
            "phrases": lambda: [sricl.skill_phrases(sentence) for sentence in sample.train],
        }[what]()
        key = ("vectors", corpus, None if what == "test" else seed, what)
        return self._once(key, lambda: self.encoder().encode(texts))

    def store(self, corpus: str, seed: int) -> Store:
        """The training sample as demonstrations."""
        parts = [self.vectors(corpus, seed, what) for what in ("anchors", "phrases")]
        return self._once(("store", corpus, seed), lambda: Store(self.sample(corpus, seed).train, *parts))

    def definitions(self, corpus: str) -> Definitions:
        """ESCO, or the generated taxonomy (found by BM25 there)."""

        def made() -> Definitions:
            if corpus == "jobads":
                return Definitions(jobads.taxonomy())
            entries = corpora.descriptions()
            return Definitions(entries, self.encoder().encode([f"{label}: {text}" for label, text in entries]))

        return self._once(("definitions", corpus == "jobads"), made)

    def labels(self, corpus: str) -> frozenset[str]:
        """Lower-cased labels of the taxonomy."""
        found = (e.label for e in jobads.taxonomy()) if corpus == "jobads" else corpora.taxonomy()
        return self._once(("labels", corpus == "jobads"), lambda: frozenset(label.lower() for label in found))

    # Extractors that are no language model.

    def predictions(self, name: str, corpus: str, seed: int, *, on: str | None = None) -> list[Spans]:
        """Test predictions of ``lexicon``, ``crf``, ``crf+labels``, ``tagger``, ``tagger+knn``, ``tagger+random``.

        Args:
            on: the corpus whose test sentences are read, if another than the one trained on.
        """
        target = on or corpus
        test = self.sample(target, seed).test

        def made() -> list[Spans]:
            if name.startswith("tagger"):
                return self._tagged(name, corpus, target, seed)
            return self._fitted(name, corpus, seed).predict(test)

        return self._once(("predictions", name, corpus, target, seed), made)

    def _fitted(self, name: str, corpus: str, seed: int) -> Lexicon | Crf | Tagger:
        train = self.sample(corpus, seed).train
        p = self.profile

        def made() -> Lexicon | Crf | Tagger:
            match name:
                case "lexicon":
                    return Lexicon(train)
                case "crf":
                    return Crf(train)
                case "crf+labels":
                    return Crf(train, labels=self.labels(corpus))
            states = self._once(("states",), dict)
            return Tagger(self.encoder(), train, steps=p.tagger_steps, seed=seed, frozen=p.frozen, states=states)

        return self._once(("fitted", name, corpus, seed), made)

    def _tagged(self, name: str, corpus: str, target: str, seed: int) -> list[Spans]:
        tagger = self._fitted("tagger", corpus, seed)
        test = self.sample(target, seed).test
        states, chances = self._once(("read", corpus, target, seed), lambda: tagger.read(test))
        if name == "tagger":
            return tagger.decode(chances)
        kept = self._once(("read train", corpus, seed), lambda: tagger.read(self.sample(corpus, seed).train))
        wanted = [_tag_numbers(s, tagger, len(x)) for s, x in zip(self.sample(corpus, seed).train, kept[0])]
        draw = np.random.default_rng((seed, 37)) if name == "tagger+random" else None
        near = neighbours(np.concatenate(kept[0]), np.concatenate(wanted), np.concatenate(states), tagger, draw)
        mixed = KNN_SHARE * near + (1 - KNN_SHARE) * np.concatenate(chances)
        return tagger.decode(np.split(mixed, np.cumsum([len(x) for x in states])[:-1]))

    def release(self, corpus: str) -> None:
        """Forget trained taggers and their states of a corpus; predictions are kept."""
        for key in [k for k in self._kept if k[0] in ("fitted", "read", "read train") and k[1:2] != () and corpus in k]:
            del self._kept[key]
        gc.collect()

    # The language model.

    def model(self, corpus: str, seed: int, sft: str, share: float = 1.0) -> LanguageModel:
        """The base, or the base after fine-tuning.

        With LoRA there is one model whose adapter is exchanged: use it before asking for another.
        """
        if self.profile.lora:
            base, layers = self._once(("adapted",), self._with_layers)
            key = ("adapter", corpus, seed, sft, share)
            made = sft != "none" and self._once(key, lambda: self._adapter(base, layers, corpus, seed, sft, share))
            use_adapter(layers, made or None)
            return base
        base = self._once(("model",), self._base)
        if sft == "none":
            return base

        def tuned() -> LanguageModel:
            model = copy.deepcopy(base.model)
            self._tune(model, base, corpus, seed, sft, share)
            return TransformersLM(model, base.tokenizer, name=f"{self.profile.base} after SFT ({sft})")

        return self._once(("model", corpus, seed, sft, share), tuned)

    def _with_layers(self) -> tuple[TransformersLM, list[Lora]]:
        base = self._base()
        return base, add_lora(base.model)

    def _adapter(
        self, base: TransformersLM, layers: list[Lora], corpus: str, seed: int, sft: str, share: float
    ) -> Adapter:
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset()
        self._tune(base.model, base, corpus, seed, sft, share)
        return adapter(layers)

    def _base(self) -> LanguageModel:
        if self.profile.base == "copyist":
            return copyist(self.profile.copy_steps)
        return TransformersLM(self.profile.base.removeprefix("hf:"), device=self.device)

    def config(self, arm: Arm = ZERO_SHOT) -> Config:
        """The pipeline's switches for an arm."""
        plain = self.profile.style == "plain"
        return Config(
            k_demos=0 if arm.demos == "none" else 2 if plain else 3,
            k_definitions=3 if arm.definitions else 0,
            least=0.0 if plain else 0.6,
            retries=arm.retries,
            explain=arm.explain,
            markers=Markers(spaced=True) if plain else Markers(),
            style=self.profile.style,
            max_tokens=self.profile.max_tokens,
        )

    def contexts(self, corpus: str, seed: int, arm: Arm, *, of: str = "test") -> list[Context]:
        """What is retrieved for every ``test`` (or ``train``) sentence; a training sentence never finds itself."""
        sample = self.sample(corpus, seed)
        sentences = sample.test if of == "test" else sample.train
        if arm.demos == "none" and not arm.definitions:
            return [Context()] * len(sentences)
        generated_labels = corpus == "jobads"
        vectors = self.vectors(corpus, seed, of) if arm.demos == "dense" or not generated_labels else None
        shared = {"vectors_QD": vectors, "seed": seed}
        demos = sricl.retrieve(
            sentences, replace(self.config(arm), k_definitions=0), store=self.store(corpus, seed),
            by=arm.demos if arm.demos != "none" else "random", **shared,
        )  # fmt: skip
        known = sricl.retrieve(
            sentences, replace(self.config(arm), k_demos=0), definitions=self.definitions(corpus),
            vectors_QD=None if generated_labels else vectors,
        )  # fmt: skip
        return [Context(a.demonstrations, b.definitions) for a, b in zip(demos, known, strict=True)]

    def _tune(
        self, model: torch.nn.Module, base: TransformersLM, corpus: str, seed: int, sft: str, share: float
    ) -> None:
        """Supervised fine-tuning with span balancing, on the answers only."""
        p, task = self.profile, prompts.TASKS[corpus]
        train_set = self.sample(corpus, seed).train
        n = max(8, round(share * len(train_set)))
        contexts = self.contexts(corpus, seed, replace(WHOLE, demos="dense"), of="train") if sft == "varied" else None
        config = self.config(WHOLE)

        def examples(count: int, draw: int, progress: float) -> list[Example]:
            rng = np.random.default_rng((draw, 41))
            found = []
            for i in shape.balanced(train_set[:n], count, draw):
                context = sricl.varied(contexts[i], rng) if contexts else Context()
                turns, answer = sricl.training_pair(train_set[i], task, context, config)
                if contexts and rng.random() < MENDING:
                    turns = mending(train_set[i], turns, config, rng)
                found.append((_as_text(base, turns, p.style), answer))
            return found

        schedule = TrainConfig(
            p.sft_steps, p.sft_batch, p.context, p.sft_rate, warmup=max(1, p.sft_steps // 10),
            weight_decay=0.01, seed=seed, dtype="auto", micro_batch=1 if p.lora else 0,
        )  # fmt: skip
        recipe = Recipe(f"{corpus}-{sft}", "", {}, schedule, examples, lambda *_: [], 0, committed=False)
        made = chat_batches if p.style == "chat" else make.batches
        log = train(model, made(recipe, base.tokenizer), schedule, device=self.device)
        if log.diverged:
            raise ValueError(f"fine-tuning {corpus} {sft} diverged at step {len(log.loss)}")
        model.eval()

    def outcomes(self, corpus: str, seed: int, arm: Arm, **changes: object) -> list[Outcome]:
        """What the pipeline makes of every test sentence; ``changes`` are fields of its configuration."""
        key = ("outcomes", corpus, seed, arm, tuple(sorted(changes.items())))

        def made() -> list[Outcome]:
            ledger = Ledger()
            found = sricl.extract(
                self.model(corpus, seed, arm.sft, arm.share),
                self.sample(corpus, seed).test,
                prompts.TASKS[corpus],
                replace(self.config(arm), **changes),
                contexts=self.contexts(corpus, seed, arm),
                gate=functools.partial(self._gate, corpus, seed),
                ledger=ledger,
            )
            self._kept["ledger", *key[1:]] = ledger
            return found

        return self._once(key, made)

    def _gate(self, corpus: str, seed: int, sentences: Sequence[Sentence]) -> np.ndarray:
        """Probability that a sentence has a skill: logistic regression on MiniLM's vectors."""
        wanted = [bool(sentence.spans) for sentence in self.sample(corpus, seed).train]
        if len(set(wanted)) < 2:
            return np.full(len(sentences), float(wanted[0]))
        fitted = LogisticRegression(C=10, max_iter=1000).fit(self.vectors(corpus, seed, "train"), wanted)
        return fitted.predict_proba(self.encoder().encode([sentence.text for sentence in sentences]))[:, 1]

    # Scores.

    def counts(self, arm: Arm | str, corpus: str, seed: int, **changes: object) -> metrics.Counts:
        """STRICT counts of an arm or of a named extractor on the test set."""
        return metrics.strict(
            [s.spans for s in self.sample(corpus, seed).test], self.spans(arm, corpus, seed, **changes)
        )

    def spans(self, arm: Arm | str, corpus: str, seed: int, **changes: object) -> list[Spans | None]:
        """Predicted spans; None where every attempt failed."""
        if isinstance(arm, str):
            return self.predictions(arm, corpus, seed)
        return [outcome.spans for outcome in self.outcomes(corpus, seed, arm, **changes)]

    def f1(self, arm: Arm | str, corpus: str = "", **changes: object) -> np.ndarray:
        """STRICT-F1 over all test sentences, one per seed; the mean over corpora where none is named."""
        names = [corpus] if corpus else self.profile.corpora
        return np.array(
            [
                np.mean([self.counts(arm, name, seed, **changes).score().f1 for name in names])
                for seed in range(self.profile.seeds)
            ]
        )

    def each(self, what: Callable[[list[Sentence], list[Outcome]], float], arm: Arm, **changes: object) -> np.ndarray:
        """A score of the outcomes of an arm, one per seed, mean over corpora."""
        return np.array(
            [
                np.mean(
                    [
                        what(self.sample(c, seed).test, self.outcomes(c, seed, arm, **changes))
                        for c in self.profile.corpora
                    ]
                )
                for seed in range(self.profile.seeds)
            ]
        )

    def unseen_recall(self, arm: Arm | str, corpus: str, seed: int) -> float:
        """Recall on test spans whose words never occur as a span of the training sample."""
        sample = self.sample(corpus, seed)
        known = shape.lexicon(sample.train)
        right, total = metrics.recall_of(
            sample.test, self.spans(arm, corpus, seed), lambda s, span: shape.phrase(s, span) not in known
        )
        return right / max(1, total)

    def coordination_gain(self, arm: Arm | str, corpus: str, seed: int) -> float:
        """Share of coordinated gold pairs found whole, with connector normalisation minus without."""
        sample = self.sample(corpus, seed)
        known = shape.lexicon(sample.train)
        before = self.spans(arm, corpus, seed)
        after = [shape.normalise(s, x, known) if x else x for s, x in zip(sample.test, before, strict=True)]
        found = [metrics.coordination(sample.test, x) for x in (after, before)]
        return float(found[0].mean() - found[1].mean()) if len(found[0]) else 0.0


MENDING = 0.2
"""Share of training prompts of the varied model that show a spoilt answer and what is wrong with it."""


def mending(
    sentence: Sentence, turns: tuple[Message, ...], config: Config, rng: np.random.Generator
) -> tuple[Message, ...]:
    """The prompt after a failed answer (errors are simulated): feedback means nothing to a model that never saw any."""
    own = config.markers.avoiding(sentence.text)
    kind = ("missing close", "doubled open", "rewrite")[int(rng.integers(3))]
    said = corruption.spoil(sentence, kind, rng, own)
    checked = verify(sentence, said, own)
    told = " ".join(checked.codes) if config.style == "plain" else feedback(sentence, checked, own)
    return prompts.again(turns, said, told, config.style, keep=sentence.text)


COPYIST_WORDS = tuple(
    dict.fromkeys(
        ("Skills", "Example", "Sentence", "Marked", "Answer", "Error", ":", ";", "@@", "##", *CODES, *jobads.WORDS)
    )
)


def copyist(steps: int, seed: int = 0) -> TransformersLM:
    """A decoder of two layers that learns, from unlabelled job ads, to copy a sentence and to place markers.

    The spans it sees are random and many words are replaced by others: it learns the format and the words, and nothing
    of what a skill is. All seeds are fine-tuned from this one base, as all users of a language model are.
    """
    tokenizer = word_tokenizer(COPYIST_WORDS)
    width = 96
    settings = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        intermediate_size=2 * width,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings)
    config = Config(style="plain", markers=Markers(spaced=True))

    def examples(n: int, draw: int, progress: float) -> list[Example]:
        rng = np.random.default_rng((draw, 43))
        ads = [disguised(s, rng, 0.1 if progress < 0.5 else 0.3) for s in generated(3 * n, draw + 1000, skew=0.2)]
        found = []
        for i in range(n):
            above = (
                Context(tuple(ads[n + 2 * i : n + 2 * i + 2])) if rng.random() < 0.3 * (progress > 0.4) else Context()
            )
            turns, answer = sricl.training_pair(ads[i], prompts.TASKS["jobads"], above, config)
            found.append((turns[0].content, answer))
        return found

    schedule = TrainConfig(steps, 24, 400, 4e-3, warmup=min(30, steps), weight_decay=0.05, seed=seed)
    recipe = Recipe("copyist", "", {}, schedule, examples, lambda *_: [], 1, committed=False)
    log = train(model, make.batches(recipe, tokenizer), schedule)
    if log.diverged:
        raise ValueError(f"the copyist diverged at step {len(log.loss)}")
    return TransformersLM(model.eval(), tokenizer, name="copyist", count_embeddings=False)


def disguised(sentence: Sentence, rng: np.random.Generator, most: float) -> Sentence:
    """A sentence with up to a share ``most`` of its words replaced by others, and random spans (or none)."""
    share = rng.random() * most
    words = [jobads.WORDS[int(rng.integers(len(jobads.WORDS)))] if rng.random() < share else t for t in sentence.tokens]
    spans, at = [], int(rng.integers(0, 4)) if rng.random() < 0.5 else len(words)
    while at < len(words):
        end = min(len(words), at + int(min(6, rng.geometric(0.5))))
        spans.append(Span(at, end))
        at = end + int(rng.integers(1, 5))
    return Sentence(tuple(words), tuple(spans), id=sentence.id, meta=sentence.meta)


KNN_NEIGHBOURS, KNN_SHARE, KNN_TEMPERATURE = 16, 0.25, 0.1
"""Of NNOSE's form p = share * p_kNN + (1 - share) * p_model; k and share lie in its sweep and were fixed before any
test score was seen, the temperature is for cosines."""


def neighbours(
    store_ND: np.ndarray, tags_N: np.ndarray, states_QD: np.ndarray, tagger: Tagger, draw: np.random.Generator | None
) -> np.ndarray:
    """p_kNN over tags [Q, L]: tags of the nearest training words, weighted by exp(cosine / T); the control ``draw``
    takes as many at random."""
    if draw is not None:
        index = draw.integers(0, len(tags_N), (len(states_QD), KNN_NEIGHBOURS))
        score = np.zeros(index.shape)
    else:
        index, score = Dense(store_ND).search(states_QD, min(KNN_NEIGHBOURS, len(tags_N)))
    weights = np.exp((score - score.max(axis=1, keepdims=True)) / KNN_TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros((len(states_QD), len(tagger.tags)))
    np.add.at(found, (np.arange(len(found))[:, None], tags_N[index]), weights)
    return found


def _tag_numbers(sentence: Sentence, tagger: Tagger, words: int) -> np.ndarray:
    return np.array([tagger.tags.index(tag) for tag in to_tags(sentence)[:words]], dtype=int)


def _as_text(base: TransformersLM, turns: Sequence, style: str) -> str:
    """The prompt as the model reads it."""
    if style == "plain":
        return turns[0].content
    plain = [{"role": turn.role, "content": turn.content} for turn in turns]
    return base.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)


def chat_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> BatchFn:
    """The batch of each step, int64 [batch_size, T] twice; a chat template brings its own beginning of the text.

    Raises:
        ValueError: an example longer than the recipe's ``seq_len``.
    """
    t = recipe.train

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for read_part, written in recipe.examples(t.batch_size, t.seed * 1_000_003 + step, step / t.steps):
            a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (read_part, written))
            if len(a) + len(b) > t.seq_len:
                raise ValueError(f"an example has {len(a) + len(b) + 1} tokens, more than context = {t.seq_len}")
            rows.append(([*a, *b, tokenizer.eos_token_id], len(a)))
        ids = torch.full((len(rows), max(len(row) for row, _ in rows)), tokenizer.pad_token_id)
        targets = torch.full_like(ids, IGNORED)
        for i, (row, begin) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            targets[i, begin - 1 : len(row) - 1] = ids[i, begin : len(row)]
        return ids[:, :-1], targets[:, :-1]

    return batch


def generated(n: int, seed: int, **options: float) -> list[Sentence]:
    """Job ads of :mod:`zfu_lib.data.worlds.jobads` as sentences; ``options`` are its own."""
    return [
        Sentence(ad.tokens, tuple(Span(*s) for s in ad.spans), id=ad.id, meta={"posting": ad.posting})
        for ad in jobads.ads(n, seed, **options)
    ]


def sentence_of(row: dict) -> Sentence:
    """A row of :func:`zfu_lib.data.skills.spans` as a sentence; a stray I opens a span, as in conlleval."""
    meta = {"posting": row["posting"]} if row["posting"] else {}
    return Sentence(tuple(row["tokens"]), tuple(from_tags(row["tags"])), id=row["id"], meta=meta)


# Scores of outcomes.


def raw_invalid(_: list[Sentence], outcomes: list[Outcome]) -> float:
    """Share of first answers that fail V1 to V4."""
    return float(metrics.invalid_rate([o.first for o in outcomes if o.first]).mean())


def final_invalid(_: list[Sentence], outcomes: list[Outcome]) -> float:
    """Share of sentences for which every attempt failed."""
    return float(np.mean([outcome.status == "failed" for outcome in outcomes]))


def raw_hallucinated(sentences: list[Sentence], outcomes: list[Outcome]) -> float:
    """Share of the strings marked by first answers that do not stand in their sentence."""
    said = []
    for outcome in outcomes:
        markers = Markers().avoiding(outcome.sentence.text)
        raw = outcome.attempts[0].raw if outcome.attempts else ""
        said.append([words for words, _ in marked_strings(read(raw, markers, outcome.sentence))])
    wrong, total = metrics.hallucinated(sentences, said)
    return wrong / max(1, total)


def final_hallucinated(sentences: list[Sentence], outcomes: list[Outcome]) -> float:
    """The same for the spans that were accepted: 0 if the verifier does its work."""
    said = [[o.sentence.words(span) for span in o.spans or ()] for o in outcomes]
    wrong, total = metrics.hallucinated(sentences, said)
    return wrong / max(1, total)


def calls(_: list[Sentence], outcomes: list[Outcome]) -> float:
    """Answers per sentence."""
    return float(np.mean([len(outcome.attempts) for outcome in outcomes]))


def drift(sentences: list[Sentence], outcomes: list[Outcome]) -> float:
    """Share of predictions that overlap exactly one gold span with wrong edges."""
    return metrics.drift([s.spans for s in sentences], [o.spans for o in outcomes]).share


def valid_only(sentences: list[Sentence], outcomes: list[Outcome]) -> float:
    """STRICT-F1 without the failed sentences: what the baseline's public code prints."""
    return metrics.denominators([s.spans for s in sentences], [o.spans for o in outcomes])["valid only"].f1


# The verifier under known error rates (simulated).


class Simulation(NamedTuple):
    """Verifier on answers spoilt at a known rate, per seed: [seeds] each, and ``by_retries`` [seeds, R+1].

    ``raw``: share of invalid first answers; ``by_retries``: share still invalid after 0, 1, … retries;
    ``hallucinated_raw``, ``hallucinated_final``: strings that do not stand in the sentence; ``recall_off``,
    ``recall_on``: recall when any answer is taken as far as it can be read, and with the verifier.
    """

    raw: np.ndarray
    by_retries: np.ndarray
    hallucinated_raw: np.ndarray
    hallucinated_final: np.ndarray
    recall_off: np.ndarray
    recall_on: np.ndarray


def simulate(lab: Lab, rate: float, *, retries: int = 3, explain: bool = True) -> Simulation:
    """Run the pipeline on simulated answers of one error rate, on sentences of every corpus."""
    columns = []
    for seed in range(lab.profile.seeds):
        sentences = [
            s for name in lab.profile.corpora for s in _spread(lab.sample(name, 0).test, lab.profile.simulated)
        ]
        model = corruption.corruptor(sentences, rate, seed)
        task, gold = prompts.TASKS["skillspan"], [s.spans for s in sentences]
        config = Config(k_demos=0, k_definitions=0, retries=retries, explain=explain)
        on = sricl.extract(model, sentences, task, config)
        off = sricl.extract(model, sentences, task, replace(config, verify=False))
        left = [np.mean([len(o.attempts) > r + 1 or o.status == "failed" for o in on]) for r in range(retries)]
        two = [o.spans if len(o.attempts) <= 3 else None for o in on]
        recalls = [metrics.strict(gold, x).score().recall for x in ([o.spans for o in off], two)]
        columns.append(
            (
                np.mean([not o.first.ok for o in on]),
                [*left, final_invalid(sentences, on)],
                raw_hallucinated(sentences, on),
                final_hallucinated(sentences, on),
                *recalls,
            )
        )
    return Simulation(*(np.array(column) for column in zip(*columns, strict=True)))


def _spread(sentences: list[Sentence], n: int) -> list[Sentence]:
    return sentences[:: max(1, len(sentences) // n)][:n]


def quoted() -> dict:
    """Numbers others report (``book/quoted/sricl.yml``)."""
    return yaml.safe_load((paths.root() / "book" / "quoted" / "sricl.yml").read_text(encoding="utf-8"))


def over_sentences(lab: Lab, arm: Arm | str, corpus: str, against: Arm | str | None = None) -> Interval:
    """STRICT-F1 of the first seed with a bootstrap interval over test sentences, or its paired difference."""
    counts = lab.counts(arm, corpus, 0)
    other = lab.counts(against, corpus, 0) if against is not None else None
    draws = counts.bootstrap(other)
    value = counts.score().f1 - (other.score().f1 if other else 0.0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high), len(counts.gold), "bootstrap over sentences")


def without_repeats(lab: Lab, name: Arm | str, corpus: str) -> tuple[float, float, int]:
    """Mean STRICT-F1 on all test sentences, on those that do not stand in the training split, and how many do."""
    whole, fresh = [], []
    for seed in range(lab.profile.seeds):
        counts, repeated = lab.counts(name, corpus, seed), lab.sample(corpus, seed).repeated
        whole.append(counts.score().f1)
        fresh.append(counts.score((~repeated).astype(float)).f1)
    return float(np.mean(whole)), float(np.mean(fresh)), int(repeated.sum())


# What the claims are decided by: name -> (a, b), paired by seed; the notebook records a - b.

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
MODEL_MEASUREMENTS = (
    "skill_whole", "s1_gain", "s2_model_raw", "s2_model", "s4_calls", "s7_base_invalid", "s7_drop", "s7_lead",
    "skill_sft", "s10_sft_minus_verifier", "s10_trained_together",
)  # fmt: skip


def omitted(lab: Lab) -> dict[str, str]:
    """Measurements that need a language model where the profile has none, with the reason."""
    return {} if lab.profile.base else dict.fromkeys(MODEL_MEASUREMENTS, NO_MODEL)


def model_pairs(lab: Lab) -> Pairs:
    """Differences of S1, S2, S4, S7 and S10; none without a language model."""
    if not lab.profile.base:
        return {}
    zero, lexicon, nothing = lab.f1(ZERO_SHOT), lab.f1("lexicon"), np.zeros(lab.profile.seeds)
    bare, tenth = Arm("bare"), Arm("bare", share=0.1)
    twice = replace(bare, retries=2)
    invalid = {name: lab.each(raw_invalid, arm) for name, arm in (("zero", ZERO_SHOT), ("tenth", tenth), ("all", bare))}
    f1 = {"zero": zero, "tenth": lab.f1(tenth), "all": lab.f1(bare)}
    return {
        "skill_whole": (lab.f1(WHOLE), lexicon),
        "s1_gain": (lab.f1(WHOLE), zero),
        "whole_minus_sft": (lab.f1(WHOLE), lab.f1(twice)),
        "s2_model_raw": (lab.each(raw_invalid, WHOLE), nothing),
        "s2_model": (lab.each(raw_invalid, WHOLE) / 2, lab.each(final_invalid, WHOLE)),
        "s4_calls": (lab.each(calls, WHOLE), nothing),
        "s7_base_invalid": (invalid["zero"], nothing),
        "s7_drop": (invalid["zero"], invalid["all"]),
        "s7_lead": (progress(invalid), progress(f1)),
        "skill_sft": (lab.f1(bare), lexicon),
        "s10_sft_minus_verifier": (lab.f1(bare) - zero, lab.f1(twice) - lab.f1(bare)),
        "s10_trained_together": (lab.f1(Arm("varied", "dense")), lab.f1(Arm("bare", "dense"))),
    }


def progress(by_stage: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the whole change from ``zero`` to ``all`` that is made at ``tenth``, clipped to -1..2: [seeds]."""
    whole = by_stage["all"] - by_stage["zero"]
    part = by_stage["tenth"] - by_stage["zero"]
    return np.clip(np.divide(part, whole, out=np.zeros_like(part), where=np.abs(whole) > 1e-9), -1, 2)


def retrieval_pairs(lab: Lab) -> Pairs:
    """Differences of S5: near, random and no neighbours; of demonstrations if there is a language model, else of the
    tagger's training words, on the corpora where a lexicon is not nearly enough."""
    if lab.profile.base:
        near, random, none = (lab.f1(Arm("varied", demos)) for demos in ("dense", "random", "none"))
        lexicon = lab.f1("lexicon")
    else:
        hard = [name for name in lab.profile.corpora if name != "sayfullina"]
        near, random, none, lexicon = (
            np.mean([lab.f1(name, corpus) for corpus in hard], axis=0)
            for name in ("tagger+knn", "tagger+random", "tagger", "lexicon")
        )
    return {
        "skill_retrieval": (near, lexicon),
        "s5_near_minus_random": (near, random),
        "s5_near_minus_none": (near, none),
    }


def label_pairs(lab: Lab) -> Pairs:
    """Differences of S6 (recall on unseen spans with and without the taxonomy), S8 and the CRF's skill."""
    with_labels, without = (
        (Arm("varied", definitions=True), Arm("varied")) if lab.profile.base else ("crf+labels", "crf")
    )
    recalls = [
        [np.mean([lab.unseen_recall(arm, c, seed) for c in lab.profile.corpora]) for seed in range(lab.profile.seeds)]
        for arm in (with_labels, without)
    ]
    gains = [
        np.mean([lab.coordination_gain("crf", c, seed) for c in lab.profile.corpora])
        for seed in range(lab.profile.seeds)
    ]
    return {
        "skill_crf": (lab.f1("crf"), lab.f1("lexicon")),
        "s6_unseen_recall": (np.array(recalls[0]), np.array(recalls[1])),
        "s8_gain": (np.array(gains), np.zeros(lab.profile.seeds)),
    }


def domain_pairs(lab: Lab) -> Pairs:
    """Difference of S9: F1 lost from SkillSpan to the other corpora by a CRF, and by one with ESCO's labels; none where
    there is only one corpus."""
    others = [name for name in lab.profile.corpora if name != "skillspan"]
    if "skillspan" not in lab.profile.corpora or not others:
        return {}

    def loss(name: str, seed: int) -> float:
        def f1(target: str) -> float:
            gold = [s.spans for s in lab.sample(target, seed).test]
            return metrics.strict(gold, lab.predictions(name, "skillspan", seed, on=target)).score().f1

        return f1("skillspan") - float(np.mean([f1(target) for target in others]))

    return {
        "s9_loss_avoided": tuple(
            np.array([loss(name, seed) for seed in range(lab.profile.seeds)]) for name in ("crf", "crf+labels")
        )
    }


def simulated_pairs(found: dict[float, Simulation]) -> Pairs:
    """Differences of S2 and S3 from :func:`simulate` at rates 0.05, 0.15, 0.3 and 0.5."""
    pairs = {f"s2_simulated_{100 * rate:.0f}": (s.raw / 2, s.by_retries[:, 2]) for rate, s in found.items()}
    s = found[0.15]
    removed = s.hallucinated_raw - s.hallucinated_final
    return pairs | {
        "s3_final": (s.hallucinated_final, np.zeros_like(s.hallucinated_final)),
        "s3_loss_minus_removed": (s.recall_off - s.recall_on, removed),
    }


GRID = {
    "base, no context": ZERO_SHOT,
    "base + nearest demonstrations": Arm("none", "dense"),
    "SFT": Arm("bare"),
    "SFT + 2 retries": Arm("bare", retries=2),
    "SFT + nearest demonstrations": Arm("bare", "dense"),
    "SFT with varied context": Arm("varied"),
    "… + random demonstrations": Arm("varied", "random"),
    "… + nearest demonstrations": Arm("varied", "dense"),
    "… + definitions": Arm("varied", definitions=True),
    "… + both": Arm("varied", "dense", True),
    "whole: … + both + 2 retries": WHOLE,
}
"""Modules on and off."""


def grid(lab: Lab) -> dict[str, tuple[Interval, ...]]:
    """For each arm of :data:`GRID`: STRICT-F1, F1 of valid answers only, invalid first answers, failed sentences,
    hallucinated strings in first answers, boundary drift. Empty without a language model."""
    if not lab.profile.base:
        return {}
    scores = (valid_only, raw_invalid, final_invalid, raw_hallucinated, drift)
    return {
        name: (over_seeds(lab.f1(arm)), *(over_seeds(lab.each(score, arm)) for score in scores))
        for name, arm in GRID.items()
    }


def named(lab: Lab) -> dict[str, Arm | str]:
    """The extractors of the main figure, by label."""
    found: dict[str, Arm | str] = {"lexicon": "lexicon", "CRF": "crf", "CRF with taxonomy": "crf+labels"}
    found |= {"MiniLM tagger": "tagger", "MiniLM tagger + neighbours": "tagger+knn"}
    if lab.profile.base:
        found |= {"base, prompted": ZERO_SHOT, "SFT": Arm("bare"), "whole pipeline": WHOLE}
    return found


def f1_intervals(lab: Lab) -> dict[str, Interval]:
    """STRICT-F1 over seeds of every extractor on every corpus, by "extractor, corpus"."""
    single = len(lab.profile.corpora) == 1
    found = {}
    for corpus in lab.profile.corpora:
        for label, arm in named(lab).items():
            found[label if single else f"{corpus}: {label}"] = over_seeds(lab.f1(arm, corpus))
        lab.release(corpus)
    return found


def key(label: str) -> str:
    """A label as part of a measurement's name."""
    return re.sub(r"\W+", "_", label.lower()).strip("_")


def failures(lab: Lab, n: int = 5) -> dict[str, tuple[str, str]]:
    """Failed first answers: the model's after fine-tuning where there is one, else simulated: sentence -> (answer,
    codes)."""
    if lab.profile.base:
        outcomes = lab.outcomes(lab.profile.corpora[0], 0, Arm("bare"))
    else:
        sentences = _spread(lab.sample(lab.profile.corpora[0], 0).test, 200)
        model = corruption.corruptor(sentences, 0.5, 0)
        none = Config(k_demos=0, k_definitions=0, retries=0)
        outcomes = sricl.extract(model, sentences, prompts.TASKS["skillspan"], none)
    failed = [o for o in outcomes if not o.first.ok and len(o.sentence.tokens) < 16]
    return {
        o.sentence.text: (" ".join(o.attempts[0].raw.split()), ", ".join(o.first.codes))
        for o in failed[:: max(1, len(failed) // n)][:n]
    }


def conventions(lab: Lab, rates: Sequence[float]) -> dict[str, dict[str, list[float]]]:
    """STRICT-F1 of simulated answers without retries against their error rate, scored over all sentences and over valid
    answers only: curves over seeds."""
    found: dict[str, list[list[float]]] = {"all sentences": [], "valid answers only": []}
    for rate in rates:
        rows = {name: [] for name in found}
        for seed in range(lab.profile.seeds):
            sentences = _spread(lab.sample(lab.profile.corpora[0], 0).test, lab.profile.simulated)
            model = corruption.corruptor(sentences, rate, seed, content=0.2)
            config = Config(k_demos=0, k_definitions=0, retries=0)
            outcomes = sricl.extract(model, sentences, prompts.TASKS["skillspan"], config)
            scores = metrics.denominators([s.spans for s in sentences], [o.spans for o in outcomes])
            rows["all sentences"].append(scores["all"].f1)
            rows["valid answers only"].append(scores["valid only"].f1)
        for name, values in rows.items():
            found[name].append(values)
    return {name: curve(rates, np.array(values).T) for name, values in found.items()}


def curve(x: Sequence[float], by_seed: np.ndarray) -> dict[str, list[float]]:
    """Mean and 95% interval over seeds at each x, for figures; ``by_seed`` is [seeds, len(x)]."""
    found = [over_seeds(column) for column in np.asarray(by_seed, dtype=float).T]
    ends = {field: [getattr(interval, field) for interval in found] for field in ("low", "high")}
    return {"x": list(x), "y": [interval.mean for interval in found], **ends}


def lengths(sentences: Sequence[Sentence]) -> list[float]:
    """Share of sentences without a span, then of spans in each bin of lengths."""
    empty = np.mean([not sentence.spans for sentence in sentences])
    bins = [shape.length_bin(span) for sentence in sentences for span in sentence.spans]
    return [float(empty), *(float(np.mean([b == i for b in bins])) for i in range(len(shape.BINS)))]


def repeats(lab: Lab) -> dict[str, tuple[float, float, int]]:
    """:func:`without_repeats` of the lexicon, the CRF and the tagger on every corpus."""
    return {
        f"{corpus}: {name}": without_repeats(lab, name, corpus)
        for corpus in lab.profile.corpora
        for name in ("lexicon", "crf", "tagger")
    }


def gate_scores(lab: Lab, corpus: str) -> tuple[float, float]:
    """Recall of sentences with skills, and share of sentences passed on, of the gate at threshold 0.5 (first seed)."""
    test = lab.sample(corpus, 0).test
    passed = lab._gate(corpus, 0, test) >= 0.5
    has = np.array([bool(sentence.spans) for sentence in test])
    return float(passed[has].mean()), float(passed.mean())
