"""HumanEval and MBPP: from a completion to solved or not, by running its tests in the sandbox.

HumanEval is read from the catalogue (164 problems); MBPP from the hub, for the `paper` profile. The Tandem paper uses
HumanEval for transfer (``book/quoted/tandem.yml``, Table 5). What it does there where no stage reaches its threshold is
not confirmed; the public code answers from the last stage on code and from the best-scored one elsewhere. That choice
is made before an answer is written, so nothing here depends on it.
"""

from __future__ import annotations

import ast
import builtins
import math
import re
import symtable
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zfu_lib.data.catalogue import DataError
from zfu_lib.data.tables import table
from zfu_lib.experiments import sandbox
from zfu_lib.experiments.sandbox import Limits, Result

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ", "\n```")
"""Where the body of a completed function ends: the next thing at the margin (after Chen et al., arXiv 2107.03374)."""

# A fence without a language opens a block only if another closes it: alone, it closes one that a prompt opened.
_FENCE = re.compile(r"^```[ \t]*(?:(\w+)[^\n]*\n(.*?)(?:^```|\Z)|\n(.*?)^```)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CodeTask:
    """A programming problem. ``prompt`` is what the model reads; where ``stub``, it is the beginning of the program and
    a completion may be the rest of it. ``setup`` and ``tests`` judge, calling the functions ``calls``; ``solution``
    is a completion known to be right."""

    task_id: str
    prompt: str
    tests: str
    calls: tuple[str, ...]
    solution: str
    setup: str = ""
    stub: bool = True


def human_eval() -> list[CodeTask]:
    """The 164 problems of HumanEval.

    Raises:
        DataError: the file is not there, as :func:`zfu_lib.data.catalogue.get` says, or has other fields.
    """
    return [_human_eval(row) for row in _checked(table("humaneval", "HumanEval.jsonl.gz"), "HumanEval")]


def mbpp(split: str = "test") -> list[CodeTask]:
    """MBPP from the hub (500 problems in ``test``), for the `paper` profile.

    Raises:
        DataError: the hub is out of reach, or the data set has other fields.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset("google-research-datasets/mbpp", "full", split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"google-research-datasets/mbpp cannot be read (hub out of reach?): {error}") from None
    return [_mbpp(row) for row in _checked(rows, "MBPP")]


FIELDS = {
    "HumanEval": ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
    "MBPP": ("task_id", "text", "code", "test_list", "test_setup_code"),
}


def _checked(rows: Iterable[Mapping], name: str) -> list[Mapping]:
    rows = list(rows)
    if missing := {field for row in rows for field in FIELDS[name] if field not in row}:
        raise DataError(f"{name} has no field {', '.join(sorted(missing))}: another version of the data set?")
    return rows


def _human_eval(row: Mapping) -> CodeTask:
    """Some tests need the stub's helpers, so it is their setup; the tested function is always the program's."""
    entry = row["entry_point"]
    tests = f"{row['test']}\ncheck({entry})\n"
    return CodeTask(row["task_id"], row["prompt"], tests, (entry,), row["canonical_solution"], setup=row["prompt"])


def _mbpp(row: Mapping) -> CodeTask:
    """The tests are part of the prompt, as in the paper of MBPP: without them the function's name is not known."""
    tests = "\n".join(row["test_list"])
    prompt = f"{row['text']} Your code should pass these tests:\n\n{tests}\n"
    setup = row["test_setup_code"]
    return CodeTask(f"MBPP/{row['task_id']}", prompt, tests, free_names(tests, setup), row["code"], setup, stub=False)


def free_names(tests: str, setup: str = "") -> tuple[str, ...]:
    """Names that tests use without anybody but the program defining them, sorted."""
    module = symtable.symtable(f"{setup}\n{tests}", "tests", "exec")
    scopes, used, own = [module], set(), {s.get_name() for s in module.get_symbols() if s.is_assigned()}
    own |= {s.get_name() for s in module.get_symbols() if s.is_imported()}
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and s.is_global()}
        if scope is module:
            used |= {s.get_name() for s in scope.get_symbols() if s.is_referenced()}
    return tuple(sorted(used - own - set(dir(builtins))))


def truncate(completion: str, stops: Sequence[str] = STOPS) -> str:
    """The completion up to the first of ``stops``."""
    ends = [at for stop in stops if (at := completion.find(stop)) >= 0]
    return completion[: min(ends, default=len(completion))]


def unfence(text: str, names: Sequence[str]) -> str | None:
    """Python in the last fenced block that defines one of ``names``, else in the last block; None without a block."""
    found = _FENCE.findall(text)
    blocks = [body or bare for language, body, bare in found if language.lower() in ("", "py", "python", "python3")]
    defining = [body for body in blocks if any(_defines(body, name) for name in names)]
    return (defining or blocks or [None])[-1]


def _defines(source: str, name: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", source, re.MULTILINE) is not None


def program(task: CodeTask, completion: str) -> str:
    """The program to run: a whole function (in a code fence, or written out) after the imports and helpers of the stub,
    or the stub with the body that the completion begins with."""
    code = unfence(completion, task.calls)
    written = completion if code is None else code
    if not task.stub:
        return written
    if any(_defines(written, name) for name in task.calls):
        return f"{_without(task.prompt, task.calls)}\n{written}"
    return task.prompt + truncate(written)


def _without(stub: str, names: Sequence[str]) -> str:
    """The stub less the functions ``names``, so that a completion which writes out another name fails."""
    tree = ast.parse(stub)
    tree.body = [node for node in tree.body if getattr(node, "name", None) not in names]
    return ast.unparse(tree)


def check(task: CodeTask, completion: str, limits: Limits | None = None) -> Result:
    """Run one completion.

    Raises:
        SandboxError: nothing can be run in isolation here.
    """
    result = sandbox.run(program(task, completion), task.tests, task.calls, setup=task.setup, limits=limits)
    if result.status == "refused":
        raise sandbox.SandboxError(f"{task.task_id} was not run: {result.reason}")
    return result


def evaluate(
    tasks: Sequence[CodeTask],
    completions: Mapping[str, Sequence[str]],
    *,
    limits: Limits | None = None,
    workers: int = 1,
) -> dict[str, list[Result]]:
    """Results by task id, one per completion in their order, ``workers`` at a time.

    Raises:
        SandboxError: as :func:`check`.
        ValueError: a task without completions, or completions for a task that is not there.
    """
    if (ids := [task.task_id for task in tasks]) != list(dict.fromkeys(ids)) or set(ids) != set(completions):
        raise ValueError(
            f"completions must be those of the tasks, each once; these differ: {set(ids) ^ set(completions)}"
        )
    if empty := [name for name, found in completions.items() if not found or isinstance(found, str)]:
        raise ValueError(f"each task needs a list of at least one completion: {empty}")
    sandbox.require()
    jobs = [(task, completion) for task in tasks for completion in completions[task.task_id]]
    with ThreadPoolExecutor(workers) as pool:
        results = iter(list(pool.map(lambda job: check(*job, limits), jobs)))
    return {task.task_id: [next(results) for _ in completions[task.task_id]] for task in tasks}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that ``k`` of ``n`` completions, drawn without replacement, hold one of the ``c`` right ones:
    1 - C(n - c, k) / C(n, k), unbiased for k fresh completions (arXiv 2107.03374, Eq. 1).

    Raises:
        ValueError: not 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} completions with {c} right: need 0 <= c <= n and 1 <= k <= n")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def scores(results: Mapping[str, Sequence[Result]], k: int = 1) -> list[float]:
    """pass@k per task (0 to 1), in the order of ``results``; their mean is the benchmark's number."""
    return [pass_at_k(len(found), sum(result.passed for result in found), k) for found in results.values()]
