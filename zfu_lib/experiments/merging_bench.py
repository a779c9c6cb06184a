"""Questions, models that answer them, and fine-tuning: what experiments on merging stand on.

A *source* has a base model, its tasks, and pairs of tasks whose experts are merged: :class:`Generated` (tiny, made
here) and :class:`Published` (the paper's, from the hub).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zfu_lib.data import bilingual
from zfu_lib.data.bilingual import Item, Split
from zfu_lib.lm.protocol import GenRequest, ScoreRequest
from zfu_lib.lm.train import IGNORED, train
from zfu_lib.merging.methods import Tensors

Kind = Literal["full", "lora"]
STATEMENTS = 0.5
"""Share of statements among the texts that an expert is tuned on; the others are questions."""


# Questions as tensors, and models that answer them.


class Batch(NamedTuple):
    """Questions with prompts of one length: ``prompts`` [n, T], and either ``options`` [n, o] with the position of the
    ``right`` one [n], or the words to be written, ``answers`` [n, w]; one token to a word."""

    prompts: Tensor
    options: Tensor | None
    right: Tensor | None
    answers: Tensor


def encoded(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Questions whose prompts have equally many tokens and whose words have one token each.

    Raises:
        ValueError: they do not.
    """

    def ids(texts: Iterable[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def words(rows: Sequence[Sequence[str]]) -> Tensor:
        return torch.tensor([[i for (i,) in ids(f" {word}" for word in row)] for row in rows])

    prompts = torch.tensor([[tokenizer.bos_token_id, *row] for row in ids(item.read for item in items)])
    options = words([item.options for item in items]) if items[0].options else None
    right = torch.tensor([item.options.index(item.answer[0]) for item in items]) if items[0].options else None
    return Batch(prompts, options, right, words([item.answer for item in items]))


def lessons(texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Inputs and targets [n, T] of texts in two parts: the first is read, the second is learnt."""
    parts = (tokenizer(list(part), add_special_tokens=False)["input_ids"] for part in zip(*texts))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [
        ([*start, *read, *written, tokenizer.eos_token_id], len(start) + len(read)) for read, written in zip(*parts)
    ]
    inputs = torch.full((len(rows), max(len(ids) for ids, _ in rows)), tokenizer.eos_token_id)
    targets = torch.full_like(inputs, IGNORED)
    for i, (ids, begin) in enumerate(rows):
        inputs[i, : len(ids)] = torch.tensor(ids)
        targets[i, max(begin - 1, 0) : len(ids) - 1] = inputs[i, max(begin, 1) : len(ids)]
    return inputs[:, :-1], targets[:, :-1]


class Reader:
    """A model whose weights can be exchanged, tensor by tensor, and that answers questions."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).eval()
        self._parameters = dict(self.model.named_parameters())
        self._loaded: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Take over weights; arrays that are the same objects as before are not copied again."""
        for name, array in tensors.items():
            if self._loaded.get(name) is not array:
                self._parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
                self._loaded[name] = array

    @torch.no_grad()
    def answers(self, batch: Batch) -> np.ndarray:
        """Share of each answer that is right, [n]: the most probable option, or the words written one after another."""
        out = self.model(batch.prompts, use_cache=batch.options is None, logits_to_keep=1)
        last = out.logits[:, -1]
        if batch.options is not None:
            return (last.gather(1, batch.options).argmax(1) == batch.right).double().cpu().numpy()
        written = [last.argmax(-1)]
        while len(written) < batch.answers.shape[1]:
            out = self.model(written[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
            written.append(out.logits[:, -1].argmax(-1))
        return (torch.stack(written, 1) == batch.answers)[:, 1::2].double().mean(1).cpu().numpy()


class Generated:
    """Questions about the people of :mod:`zfu_lib.data.bilingual`, and a base that has read about half of them.

    Tasks are a kind of question in a language.
    """

    tasks = {
        f"{kind}-{language}": (kind, language) for kind in ("choice", "recall") for language in bilingual.LANGUAGES
    }
    pairs = {
        "two languages": ("choice-latin", "choice-greek"),
        "two kinds": ("choice-latin", "recall-latin"),
        "both": ("choice-latin", "recall-greek"),
    }
    kind: Kind = "full"

    def __init__(self, model: str, device: str, held_out: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from zfu_lib.lm import recipes, tiny
        from zfu_lib.lm.recipes import make

        logging.disable_progress_bar()
        if model in tiny.names():
            folder = tiny.path(model)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        else:
            recipe = recipes.recipe(model)
            self.model, self.tokenizer = make.build(recipe)
            train(self.model, make.batches(recipe, self.tokenizer), recipe.train, device=device)
        self.model = self.model.to(device)
        self.reader, self.device = Reader(self.model), device

    def questions(self, task: str, split: Split, n: int | None, seed: int) -> list[Item]:
        """Questions of a task; None is all of a split."""
        return bilingual.items(*self.tasks[task], split, n, seed)

    def lessons(self, task: str, n: int, seed: int) -> list[tuple[str, str]]:
        """What an expert is tuned on: statements in its language about the people that the base has not read about, and
        questions of its kind about people of the training split."""
        kind, language = self.tasks[task]
        rng, known = np.random.default_rng((seed, 37, list(self.tasks).index(task))), bilingual.facts()
        asked = iter(bilingual.items(kind, language, "train", n, seed))
        told = bilingual.people(famous=False)
        return [
            ("", bilingual.statement(language, int(rng.choice(told)), known, rng))
            if rng.random() < STATEMENTS
            else ((item := next(asked)).read, item.written)
            for _ in range(n)
        ]

    def about(self, item: Item) -> str:
        """Who a question is about."""
        return " ".join(item.read.split(" ")[:2])

    def prepared(self, items: Sequence[Item]) -> Batch:
        """What :meth:`answers` takes."""
        batch = encoded(items, self.tokenizer)
        return Batch(*(part if part is None else part.to(self.device) for part in batch))

    def answers(self, tensors: Tensors, batch: Batch) -> np.ndarray:
        """Share of each answer that is right, [n]."""
        self.reader.load(tensors)
        return self.reader.answers(batch)


class Published:
    """The paper's data sets and base: options are scored by their likelihood, free answers by ROUGE-L.

    :data:`MEDICAL` says for each task where its rows are and how they are read. The ids on the hub and their fields
    could not be checked where this was written.
    """

    pairs = {
        "two languages": ("medqa", "cmexam"),
        "two kinds": ("medqa", "healthcaremagic"),
        "both": ("medqa", "cmedqa2"),
    }
    kind: Kind = "lora"
    answer_tokens = 256

    def __init__(self, model: str, device: str, held_out: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from zfu_lib.lm.hf import TransformersLM

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device)
        self.reader = Reader(self.model)
        self.lm = TransformersLM(self.reader.model, self.tokenizer, name=model)
        self.held = held_out

    def questions(self, task: str, split: Split, n: int | None, seed: int) -> list[Item]:
        """Rows of the test set, or of the training set: the last ``calibration`` of a fixed shuffle are kept apart."""
        from datasets import load_dataset

        arguments, read = MEDICAL[task]
        where = "test" if split == "test" else "train"
        rows = load_dataset(**(arguments["all"] | arguments[where]))
        items = [item for row in rows if (item := read(row)) is not None]
        if split == "test":
            return items[:n]
        order = np.random.default_rng(41).permutation(len(items))
        kept = order[-self.held :] if split == "calibration" else order[: -self.held]
        chosen = kept if split == "calibration" else np.random.default_rng((seed, 43)).choice(kept, n or len(kept))
        return [items[i] for i in chosen[:n]]

    def lessons(self, task: str, n: int, seed: int) -> list[tuple[str, str]]:
        """Training questions with their answers."""
        return [(item.read, item.written) for item in self.questions(task, "train", n, seed)]

    def about(self, item: Item) -> str:
        """A question stands for itself."""
        return item.read

    def prepared(self, items: Sequence[Item]) -> Sequence[Item]:
        """What :meth:`answers` takes."""
        return items

    def answers(self, tensors: Tensors, items: Sequence[Item]) -> np.ndarray:
        """1 where the right option is the most likely one; for free answers F1 of ROUGE-L on characters: [n]."""
        from rouge_score.rouge_scorer import RougeScorer

        self.reader.load(tensors)
        if items[0].options:
            asked = [ScoreRequest(item.read, f" {option}") for item in items for option in item.options]
            scored = iter(r.logprob.sum() for r in self.lm.score(asked))
            picked = [max(item.options, key=lambda _: next(scored)) for item in items]
            return np.array([float(option == item.answer[0]) for option, item in zip(picked, items)])
        told = self.lm.generate([GenRequest(item.read, max_tokens=self.answer_tokens) for item in items])
        rouge = RougeScorer(["rougeL"], tokenizer=_Characters())
        found = [rouge.score(item.answer[0], r.text)["rougeL"].fmeasure for r, item in zip(told, items)]
        return np.array(found)


class _Characters:
    """What ROUGE counts: characters without spaces, so that no language needs a segmenter."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return [character for character in text if not character.isspace()]


def _medqa(row: dict[str, Any]) -> Item:
    return Item(f"Question: {row['question']}\nAnswer:", (row["answer"],), tuple(row["options"].values()))


def _cmexam(row: dict[str, Any]) -> Item | None:
    """None for questions with several right options, which the paper leaves out."""
    options = {option["key"]: option["value"] for option in row["Options"]}
    if row["Answer"] not in options:
        return None
    return Item(f"问题：{row['Question']}\n答案：", (options[row["Answer"]],), tuple(options.values()))


def _dialogue(row: dict[str, Any]) -> Item:
    return Item(f"{row['input']}\n", (row["output"],))


MEDICAL: dict[str, tuple[dict[str, dict[str, Any]], Callable[[dict[str, Any]], Item | None]]] = {
    "medqa": (
        {"all": {"path": "GBaker/MedQA-USMLE-4-options"}, "train": {"split": "train"}, "test": {"split": "test"}},
        _medqa,
    ),
    "cmexam": ({"all": {"path": "fzkuji/CMExam"}, "train": {"split": "train"}, "test": {"split": "test"}}, _cmexam),
    "healthcaremagic": (
        {
            "all": {"path": "lavita/ChatDoctor-HealthCareMagic-100k"},
            "train": {"split": "train[:100000]"},
            "test": {"split": "train[-4000:]"},
        },
        _dialogue,
    ),
    "cmedqa2": (
        {
            "all": {"path": "wangrongsheng/cMedQA-V2.0"},
            "train": {"split": "train[:100000]"},
            "test": {"split": "train[-4000:]"},
        },
        _dialogue,
    ),
}
SOURCES: dict[str, Callable[[str, str, int], Any]] = {"bilingual": Generated, "medical": Published}


# Fine-tuning.


def tensors_of(model: nn.Module) -> Tensors:
    """Parameters as fp32 arrays, shared ones once."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in model.named_parameters()}
