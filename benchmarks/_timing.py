"""Ratios of CPU time on a machine that does other things too: alternate A and B, take the median of paired ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def paired_seconds(a: Callable, b: Callable, pairs: int) -> tuple[list[float], list[float]]:
    """CPU seconds of both calls in alternation, after one unmeasured call each."""
    a(), b()
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            seconds[which].append(cpu_seconds((a, b)[which]))
    return seconds


@dataclass
class Ratio:
    """``a / b`` pair by pair. ``target`` is a floor, or with ``at_most`` a ceiling, for the median."""

    name: str
    a: str
    b: str
    seconds_a: list[float]
    seconds_b: list[float]
    target: float | None = None
    at_most: bool = False
    unit: str = "CPU s"
    ratios: list[float] = field(init=False)

    def __post_init__(self):
        self.ratios = [x / y for x, y in zip(self.seconds_a, self.seconds_b, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median <= self.target if self.at_most else self.median >= self.target

    def __str__(self) -> str:
        goal = "" if self.target is None else f"  target {'<=' if self.at_most else '>='} {self.target:g}"
        verdict = {None: "", True: "  met", False: "  MISSED"}[self.met]
        return (
            f"{self.name:34} {self.median:8.2f}x  [{min(self.ratios):.2f}, {max(self.ratios):.2f}] n={len(self.ratios)}"
            f"{goal}{verdict}\n{'':34} {self.a} {statistics.median(self.seconds_a):.4g} / "
            f"{self.b} {statistics.median(self.seconds_b):.4g} {self.unit}"
        )


class Report:
    """Prints ratios as they come, then writes and judges them all."""

    def __init__(self, title: str):
        self.title, self.ratios, self.notes = title, [], []
        self.versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": platform.processor() or platform.machine(),
        }
        self.load_before = os.getloadavg()
        print(title)
        print(", ".join(f"{k} {v}" for k, v in self.versions.items()), f"; load {self.load_before[0]:.1f}", flush=True)

    def add(self, *args, **kwargs) -> Ratio:
        ratio = Ratio(*args, **kwargs)
        self.ratios.append(ratio)
        print(ratio, flush=True)
        return ratio

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def finish(self, options: argparse.Namespace) -> int:
        """Writes ``--json`` if asked for; the exit code: 1 under ``--check`` if a target was missed."""
        missed = [ratio.name for ratio in self.ratios if ratio.met is False]
        judged = sum(ratio.met is not None for ratio in self.ratios)
        print(f"load at the end {os.getloadavg()[0]:.1f}; {judged - len(missed)} of {judged} targets met")
        if options.json:
            record = {
                "title": self.title,
                "versions": self.versions,
                "load": [self.load_before[0], os.getloadavg()[0]],
                "notes": self.notes,
                "ratios": [asdict(r) | {"median": r.median, "met": r.met} for r in self.ratios],
            }
            Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
        return int(bool(missed) and options.check)


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes; the targets, set for the full ones, are off")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--json", metavar="FILE", help="also write every measurement here")
    parser.add_argument("--pairs", type=int, default=5, help="A/B pairs per ratio (default 5)")
    return parser
