"""The model card and the manifest that a merge leaves beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zfu_lib import __version__
from zfu_lib.merging.engine.plan import Plan


def manifest(plan: Plan, checksums: Mapping[str, str]) -> dict[str, Any]:
    """What was merged from what; ``key`` tells this output apart from every other."""
    return {
        "key": plan.key,
        "engine": f"zfu {__version__}",
        "method": plan.recipe.method,
        "seed": plan.seed,
        "models": {m.reference: {f.name: f.stat().st_size for f in m.files} for m in plan.models},
        "shards": dict(checksums),
    }


def card(plan: Plan, checksums: Mapping[str, str]) -> str:
    """``README.md``: the recipe, the models by the names of their folders, and the checksums."""
    header = {"library_name": "transformers", "tags": ["merge", plan.recipe.method]}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [f"# Merge by `{plan.recipe.method}`", ""]
    lines += [f"Made by `zfu merge` {__version__}, seed {plan.seed}; fp32 arithmetic, one cast at the end.", ""]
    lines += ["| model | tensors | bytes |", "|---|---|---|"]
    for model in plan.models:
        name = Path(model.reference).name
        entries = model.checkpoint.entries.values()
        lines.append(f"| {name} | {len(entries)} | {sum(entry.bytes for entry in entries)} |")
    lines += ["", "## Recipe", "", "```yaml", plan.recipe.text.strip().replace("```", "'''"), "```", ""]
    lines += ["## Checksums (SHA-256)", "", "| file | checksum |", "|---|---|"]
    lines += [f"| {file} | `{checksum}` |" for file, checksum in checksums.items()]
    if plan.remarks:
        lines += ["", "## Remarks", "", *(f"- {remark}" for remark in plan.remarks)]
    return "\n".join(lines) + "\n"
