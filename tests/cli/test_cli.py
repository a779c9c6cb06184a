"""Commands of `zfu` on a miniature project, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from zfu_lib import cli


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "numpy", "matplotlib", "pydantic", "pandas", "IPython"]
    code = f"import sys, zfu_lib, zfu_lib.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_import_takes_no_time() -> None:
    # The best of five: a busy machine must not decide this.
    code = "import time; t = time.perf_counter(); import zfu_lib; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)
    ]
    assert min(times) <= 0.15


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=1e-3", 0.001),
        ("a=true", True),
        ("a=True", True),
        ("a=word", "word"),
        ("a='1'", "1"),
        ('a="1"', "1"),
        ("a=[1, 2]", [1, 2]),
        ("a=01", 1),
        ("a=x=y", "x=y"),
    ],
)
def test_values_are_typed(given: str, becomes: object) -> None:
    found = cli._parameters([given])["a"]
    assert found == becomes
    assert type(found) is type(becomes)


@pytest.mark.parametrize(
    "given", [["a"], ["=1"], ["a b=1"], ["a="], ["a=null"], ["a=1", "a=2"], ["profile=full"], ["cost=1"], ["a=[1"]]
)
def test_parameters_that_are_refused(given: list[str]) -> None:
    with pytest.raises(cli.Stop) as caught:
        cli._parameters(given)
    assert caught.value.code == cli.Exit.USAGE


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "mimi"], 2, "no paper 'mimi'; did you mean 'mini'?"),
        (["run"], 2, "Missing argument"),
        (["fly"], 2, "No such command"),
        (["run", "mini", "--profile", "slow"], 2, "slow"),
        (["run", "mini", "--profile", "paper"], 3, "needs 100000 GB of memory"),
        (["plan", "mini", "--profile", "paper"], 3, "needs a GPU with 10000 GB"),
        (["claims", "nope"], 2, "no paper"),
        (["diff", "quick/mini", "quick/other"], 2, "there is no quick run of mini yet"),
        (["diff", "here", "there"], 2, "neither a run folder"),
        (["data", "get", "no_such_data"], 4, "no data set"),
        (["new", "mini"], 2, "has a chapter"),
        (["new", "Bad-Name"], 2, "cannot name a paper"),
        (["new", "fresh"], 2, "give --title --family --arxiv"),
        (["new", "fresh", "--title", "t", "--family", "cooking", "--arxiv", "2501.00001"], 2, "no family 'cooking'"),
        (["new", "fresh", "--title", "t", "--family", "merging", "--arxiv", "1"], 2, "not an arXiv number"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_errors_have_words_and_codes(shared_project: Any, arguments: list[str], code: int, says: str) -> None:
    done = shared_project.zfu(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (shared_project.folder / "runs").exists()


def test_a_broken_claims_file_is_one_line(project: Any) -> None:
    project.write("book/claims/mini.yml", "claims: [")
    done = project.zfu("claims", "mini")
    assert done.returncode == 1
    assert "book/claims/mini.yml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["list"], ["plan"], ["claims"], ["doctor"], ["data", "list"]], ids=" ".join)
def test_json_and_tables_say_the_same(shared_project: Any, command: list[str]) -> None:
    table, plain = shared_project.zfu(*command), shared_project.zfu(*command, "--json")
    assert table.returncode == plain.returncode == 0, table.stderr
    rows = json.loads(plain.stdout)
    assert rows
    for row in rows:
        key = next(row[name] for name in ("slug", "id", "subject", "name") if name in row)
        assert any(line.split("  ")[0].endswith(key) or key in line for line in table.stdout.splitlines())


def test_plan_prints_what_a_run_takes(shared_project: Any) -> None:
    (row,) = json.loads(shared_project.zfu("plan", "mini", "--json").stdout)
    assert (row["minutes"], row["memory_gb"], row["obstacles"]) == (0.1, 0.2, [])
    refused = shared_project.zfu("plan", "mini", "--profile", "paper", "--json")
    assert refused.returncode == 3
    assert len(json.loads(refused.stdout)[0]["obstacles"]) == 2


def test_plan_takes_the_parameters_of_a_run(shared_project: Any) -> None:
    (row,) = json.loads(shared_project.zfu("plan", "mini", "--json", "-p", "seeds=6", "-p", "scale=2.0").stdout)
    assert row["minutes"] == 0.2
    assert any("does not know scale" in words for words in row["remarks"])
    refused = shared_project.zfu("plan", "mini", "-p", "scail=2.0")
    assert refused.returncode == 2
    assert "did you mean 'scale'?" in refused.stderr


def test_help_documents_exit_codes(shared_project: Any) -> None:
    shown = " ".join(shared_project.zfu("--help").stdout.replace("│", " ").split())
    for code in cli.Exit:
        assert f"{int(code)} " in shown.partition("Exit codes:")[2]


def test_outside_a_checkout_it_says_so(tmp_path: Any, shared_project: Any) -> None:
    environment = shared_project.environment | {"ZFU_ROOT": str(tmp_path)}
    call = [sys.executable, "-m", "zfu_lib.cli", "list"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a checkout of the book" in done.stderr
