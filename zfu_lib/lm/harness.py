"""The bridge to lm-eval: local tasks that need no network, and its named tasks where the hub can be reached."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class HarnessError(ValueError):
    """A task that cannot be run; the message names it and says why."""


def multiple_choice(
    name: str, data: Path, *, text: str = "{{question}}", choices: str = "choices", answer: str = "answer"
) -> dict[str, Any]:
    """A multiple-choice task over a JSON-lines file.

    Args:
        data: one object a line with the fields that the templates name.
        text: Jinja template of the context; the model scores each choice after it and one space.
        choices: field with the list of choices.
        answer: field with the index of the right one.
    """
    return _with_absolute_files(
        {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": text,
            "doc_to_choice": choices,
            "doc_to_target": answer,
            "metric_list": [
                {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        },
        Path(),
    )


def local_task(file: Path) -> dict[str, Any]:
    """A task from lm-eval's YAML format with data in files (``dataset_path: json``, ``data_files`` by split).

    lm-eval resolves relative data files against the working folder; here they are resolved against the YAML's.

    Raises:
        HarnessError: no such file, not plain YAML (``!function`` tags run code and are refused), or missing data.
    """
    try:
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise HarnessError(f"{file.name} is not a task: {error}") from None
    if not isinstance(task, dict) or "task" not in task:
        raise HarnessError(f"{file.name} is not a task: it has no field 'task'")
    return _with_absolute_files(task, file.parent)


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    device: str = "cpu",
    batch_size: int = 16,
    num_fewshot: int | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    bootstrap_iters: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Run tasks on a transformers causal language model.

    Args:
        model: a ``PreTrainedModel``.
        tokenizer: its tokenizer, such as :func:`zfu_lib.lm.tokenizer.byte_tokenizer`.
        tasks: local tasks (dictionaries) and names that lm-eval knows; a name downloads its data from the hub.
        num_fewshot: examples before each item; None leaves what the task says.
        limit: first items of each task only.
        max_length: tokens the model may see; None takes it from the model's configuration.

    Returns:
        ``scores[task][metric] = {"value", "stderr", "n"}``, ``items[task][metric] =`` one number per item,
        ``versions`` of lm-eval and of each task.

    Raises:
        HarnessError: no task, an unknown name, or data that cannot be loaded (offline).
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise HarnessError("no task to run")
    named = [task for task in tasks if isinstance(task, str)]
    # Indexing the built-in tasks takes seconds, so only when a name asks for it.
    # lm_eval.evaluate and not simple_evaluate: that one also seeds this process and runs git and pip for its report.
    manager = TaskManager(include_defaults=bool(named))
    if unknown := sorted(set(named) - set(manager.all_tasks)):
        raise HarnessError(f"lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    with _quiet():
        wrapped = HFLM(
            pretrained=model, tokenizer=tokenizer, device=device, batch_size=batch_size, max_length=max_length
        )
        try:
            loaded = manager.load([task if isinstance(task, str) else dict(task) for task in tasks])
            for task in loaded["tasks"].values():
                # A task that fixes 0 examples keeps 0: more would change what it measures.
                default = task.get_config("num_fewshot")
                if default is None or (num_fewshot is not None and default != 0):
                    task.set_config(key="num_fewshot", value=num_fewshot or 0)
                task.set_fewshot_seed(seed=seed)
            found = lm_eval.evaluate(wrapped, task_dict=loaded, limit=limit, bootstrap_iters=bootstrap_iters)
        except (OSError, ConnectionError) as error:
            raise HarnessError(f"data of {', '.join(map(_name, tasks))} cannot be loaded (offline?): {error}") from None
    samples = found["samples"]
    scores, items = {}, {}
    for task, results in found["results"].items():
        rows = samples.get(task, [])
        scores[task], items[task] = {}, {}
        for key, value in results.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = metric if chosen == "none" else key
            stderr = results.get(f"{metric}_stderr,{chosen}")
            stderr = stderr if isinstance(stderr, int | float) else None
            own = [row[metric] for row in rows if row["filter"] == chosen and metric in row]
            scores[task][label] = {"value": float(value), "stderr": stderr, "n": len(own)}
            items[task][label] = own
    return {"scores": scores, "items": items, "versions": {"lm_eval": lm_eval.__version__, **found["versions"]}}


def _name(task: str | Mapping[str, Any]) -> str:
    return task if isinstance(task, str) else str(task.get("task"))


def _with_absolute_files(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = task.get("dataset_kwargs") or {}
    files = options.get("data_files")
    if not isinstance(files, Mapping):
        raise HarnessError(f"task {task['task']}: dataset_kwargs.data_files must name a file for each split")
    absolute = {split: (folder / file).resolve() for split, file in files.items()}
    if missing := [file.name for file in absolute.values() if not file.is_file()]:
        raise HarnessError(f"task {task['task']}: no file {', '.join(missing)}")
    return task | {"dataset_kwargs": options | {"data_files": {split: str(f) for split, f in absolute.items()}}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets write progress and advice to stderr and the log; a notebook shows neither."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
