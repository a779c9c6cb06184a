"""From completions to solved tasks, on problems made here in the form of HumanEval and MBPP."""

import gzip
import hashlib
import itertools
import json

import datasets
import pytest
import yaml

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.experiments import code_tasks, sandbox
from zfu_lib.experiments.code_tasks import check, evaluate, pass_at_k, program, truncate, unfence

needs_isolation = pytest.mark.skipif(bool(sandbox.unavailable()), reason=f"no isolation: {sandbox.unavailable()}")

ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Their sum.\n'
        '    >>> total([1, 2])\n    3\n    """\n',
        "entry_point": "total",
        "canonical_solution": "    return sum(xs)\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n"
        "    assert candidate([]) == 0, 'empty'\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'def shift(s: str):\n    """Next letters."""\n    return "".join(chr(ord(c) + 1) for c in s)\n\n\n'
        'def back(s: str):\n    """Undo shift."""\n',
        "entry_point": "back",
        "canonical_solution": "    return ''.join(chr(ord(c) - 1) for c in s)\n",
        "test": "def check(candidate):\n    for s in ('abc', 'x'):\n        assert candidate(shift(s)) == s\n",
    },
]
MBPP = {
    "task_id": 11,
    "text": "Write a function to remove a letter.",
    "code": "import math\r\ndef drop(s, c):\r\n    return s.replace(c, '')",
    "test_list": ['assert drop("hello", "l") == "heo"', 'assert set(drop(x, "a") for x in ["ab"]) == {"b"}'],
    "test_setup_code": "",
    "challenge_test_list": [],
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """HumanEval in miniature, read as the real one is."""
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(data)
    file = {"path": "HumanEval.jsonl.gz", "url": None, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    entry = {"name": "humaneval", "description": "x", "licence": "x", "citation": "x", "note": "x", "files": [file]}
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump({"datasets": [entry]}))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.yml")
    monkeypatch.setenv("ZFU_DATA", str(tmp_path))
    return code_tasks.human_eval()


@needs_isolation
def test_solutions_pass_and_nothing_else_does(tasks):
    right = evaluate(tasks, {task.task_id: [task.solution] for task in tasks}, workers=2)
    assert code_tasks.scores(right) == [1, 1]
    for wrong in ("", "    pass\n", "    return 0\n"):
        assert not any(check(task, wrong).passed for task in tasks), wrong
    # A stub whose tested function is the program's own must not be answered by a helper of the judge's.
    assert not check(tasks[1], "    raise SystemExit\n").passed


@needs_isolation
@pytest.mark.parametrize(
    "completion",
    [
        "    return sum(xs)\n\n\ndef main():\n    1 / 0\nmain()\nif True:\n    1 / 0",
        "    return sum(xs)\n```\nThis adds them up: it's done.",
        "Here it is:\n```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```\nand a usage\n"
        "```python\nprint(total('x'))\n```",
        "def total(xs):\n    return helper(xs)\n\ndef helper(xs):\n    return sum(xs)\n",
        "```\n    return sum(xs)\n```",
        "```python\ndef total(xs):\n    return sum(xs)",
    ],
)
def test_a_completion_is_found_in_what_a_model_writes(tasks, completion):
    result = check(tasks[0], completion)
    assert result.passed, result


@needs_isolation
def test_another_functions_name_is_no_solution(tasks):
    assert not check(tasks[0], "```python\ndef summed(xs):\n    return sum(xs)\n```").passed


def test_truncation_takes_the_first_stop():
    assert truncate("    return 1\n\nprint(2)\ndef f(): pass") == "    return 1\n"
    assert truncate("    return 1") == "    return 1"
    assert truncate("a STOP b END", ("END", "STOP")) == "a "


def test_fences():
    assert unfence("no code", ["f"]) is None
    assert unfence("```js\nx\n```\n```python\ny\n```", ["f"]) == "y\n"
    assert unfence("```\ndef f(): 1\n```\ntext\n```py\nf()\n```", ["f"]) == "def f(): 1\n"


def test_a_body_continues_the_stub_and_a_function_replaces_it(tasks):
    assert program(tasks[0], "    return 1\n") == tasks[0].prompt + "    return 1\n"
    whole = program(tasks[1], "def back(s):\n    return s")
    assert whole.count("def back") == whole.count("def shift") == 1


def hub(rows):
    def load(path, name, split):
        assert (path, name, split) == ("google-research-datasets/mbpp", "full", "test")
        return datasets.Dataset.from_list(rows)

    return load


@needs_isolation
def test_mbpp_has_its_tests_in_the_prompt_and_finds_what_they_call(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", hub([MBPP]))
    (task,) = code_tasks.mbpp()
    assert task.task_id == "MBPP/11"
    assert task.calls == ("drop",)
    assert MBPP["test_list"][0] in task.prompt
    assert check(task, task.solution).passed
    assert check(task, f"Sure:\n```python\n{task.solution}\n```").passed
    assert not check(task, "def drop(s, c):\n    return s").passed
    assert not check(task, "").passed


def test_mbpp_says_when_it_cannot_be_read(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="hub out of reach"):
        code_tasks.mbpp()
    monkeypatch.setattr(datasets, "load_dataset", hub([{"task_id": 1, "text": "x"}]))
    with pytest.raises(DataError, match="no field code, test_list"):
        code_tasks.mbpp()


def test_free_names():
    tests = (
        "import math\nassert math.isclose(area(x), 1)\nassert [g(y) for y in (1, 2)] == sorted(map(lambda z: h(z), []))"
    )
    assert code_tasks.free_names(tests, "x = 1") == ("area", "g", "h")


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, c):
    right = [i < c for i in range(n)]
    for k in range(1, n + 1):
        draws = [any(draw) for draw in itertools.combinations(right, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match="need 0 <= c"):
        pass_at_k(n, c, k)


def test_evaluation_refuses_a_mix_up(tasks):
    with pytest.raises(ValueError, match="these differ"):
        evaluate(tasks, {"HumanEval/0": [""]})
    with pytest.raises(ValueError, match="at least one"):
        evaluate(tasks, {"HumanEval/0": [""], "HumanEval/1": []})


def test_what_is_refused_is_not_counted_as_wrong(tasks, monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(sandbox.SandboxError, match="was not run"):
        check(tasks[0], tasks[0].solution)
