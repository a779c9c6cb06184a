"""Kills a merge at random instants, and at chosen calls to the system, and looks at what is left.

    python tests/merging/kills.py FOLDER --random 500 --calls 1

Two merges of different recipes replace each other in one output folder. After every SIGKILL the output has to be the
old merge or the new one, whole and with right checksums (or absent, where there was none); at most one shard of the
unfinished merge may be without an entry in its journal; and ``resume`` has to finish it, byte for byte as an
undisturbed merge, without writing a finished shard again. Prints the counts as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np

from zfu_lib.merging.engine import checkpoint, errors, plan, recipe, run

Bytes = dict[str, bytes]


def content(folder: Path) -> Bytes:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def killed(call: Callable[[], object], seconds: float | None = None, at: int | None = None) -> bool:
    """Make the call in a child that is killed after some time, or before its ``at``-th call to the system."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event.split(".")[0] in ("open", "os", "shutil", "fcntl", "ctypes"):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            if at is not None:
                sys.addaudithook(hook)
            call()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the merge itself failed"
    return os.WIFSIGNALED(status)


class Yard:
    """Two recipes for one output, and what each of them makes when nothing happens to it."""

    def __init__(self, folder: Path) -> None:
        bench = conftest.Bench(folder)
        self.out = bench.out
        self.work = self.out.with_name(f".{self.out.name}.merging")
        texts = [bench.text("ties", ({"weight": w, "density": 0.5}, {"weight": 1})) for w in (0.5, 2)]
        self.plans = [plan.make(recipe.parse(text), shard_bytes=9_000) for text in texts]
        self.merges = [content(run.run(made, folder / f"alone{i}")) for i, made in enumerate(self.plans)]
        assert self.merges[0] != self.merges[1]
        self.shards = [shard.file for shard in self.plans[0].shards]
        self.counts = dict.fromkeys(("kills", "old output", "new output", "no output", "resumed", "shards again"), 0)

    def seconds(self) -> float:
        """How long an undisturbed merge takes that replaces another."""
        took = []
        for i in (0, 1, 0, 1):
            start = time.perf_counter()
            run.run(self.plans[i], self.out)
            took.append(time.perf_counter() - start)
        return max(took[1:])

    def trial(self, new: int, existing: bool, seconds: float | None = None, at: int | None = None) -> bool:
        """One kill of merge ``new`` into the other's output, or into none; False if it ended before."""
        shutil.rmtree(self.out, ignore_errors=True)
        if existing:
            run.run(self.plans[1 - new], self.out)
        if not killed(lambda: run.run(self.plans[new], self.out), seconds, at):
            assert content(self.out) == self.merges[new]
            return False
        self.counts["kills"] += 1
        if self.out.exists():
            found = content(self.out)
            assert found in ((self.merges[1 - new], self.merges[new]) if existing else (self.merges[new],)), "a mixture"
            assert checkpoint.verify(self.out) == len(found) - 1
            self.counts["new output" if found == self.merges[new] else "old output"] += 1
        else:
            assert not existing, "the old output is gone"
            self.counts["no output"] += 1
        self._resume(new)
        return True

    def _resume(self, new: int) -> None:
        journal = [line["file"] for line in run._journal(self.work / run.JOURNAL) if "file" in line]
        there = [name for name in self.shards if (self.work / name).is_file()]
        if (self.work / run.JOURNAL).is_file():
            assert set(journal) <= set(there)
            assert len(there) <= len(journal) + 1, "more than one shard was lost"
            self.counts["shards again"] += len(there) - len(journal)
        again = set()
        made = self.plans[new]
        of = {job.name: shard.file for shard in made.shards for job in shard.jobs}
        try:
            run.run(made, self.out, resume=True, progress=lambda done, total, name: again.add(of[name]))
            self.counts["resumed"] += 1
            assert not again & set(journal), "a finished shard was written again"
        except errors.ResumeError:
            # Killed before the first byte was written.
            run.run(made, self.out)
        assert content(self.out) == self.merges[new]
        left = sorted(p.name for p in self.out.parent.glob(".out.*"))
        assert not left, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=int, default=100, help="kills at random instants")
    parser.add_argument("--calls", type=int, default=0, help="also kill before every N-th call to the system")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    yard, draw = Yard(arguments.folder), random.Random(arguments.seed)
    whole = yard.seconds()
    for i in range(arguments.random):
        while not yard.trial(i % 2, i % 4 < 3, seconds=draw.uniform(0, whole)):
            pass
    for existing in (True, False) if arguments.calls else ():
        at = 1
        while yard.trial(at % 2, existing, at=at):
            at += arguments.calls
    print(json.dumps(yard.counts | {"shards": len(yard.shards), "numpy": np.__version__}))


if __name__ == "__main__":
    main()
