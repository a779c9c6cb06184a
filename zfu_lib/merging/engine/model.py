"""One model of a merge: a checkpoint, with a LoRA adapter added while it is read if the recipe says so."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from zfu_lib.merging import methods
from zfu_lib.merging.engine import checkpoint
from zfu_lib.merging.engine.checkpoint import Buffers, Checkpoint
from zfu_lib.merging.engine.errors import AdapterError, InputError


class Model:
    """A folder, or ``folder+adapter``.

    Raises:
        InputError: either folder is not there or broken.
        AdapterError: the adapter is not LoRA (DoRA is not), or does not fit the model.
    """

    def __init__(self, reference: str) -> None:
        folder, plus, adapter = reference.rpartition("+") if "+" in reference else (reference, "", "")
        if plus and Path(reference).is_dir():
            folder, adapter = reference, ""
        self.reference = reference
        self.checkpoint = Checkpoint(folder)
        self.adapter = Adapter(adapter, self.checkpoint) if adapter else None

    @property
    def folder(self) -> Path:
        """Where configuration and tokenizer are."""
        return self.checkpoint.folder

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        return self.checkpoint.config

    @property
    def files(self) -> list[Path]:
        """Every file whose tensors are read."""
        return self.checkpoint.files + (self.adapter.checkpoint.files if self.adapter else [])

    def verify(self) -> int:
        """Compare the files with the manifests in their folders; how many files were compared."""
        held = [self.checkpoint] + ([self.adapter.checkpoint] if self.adapter else [])
        return sum(checkpoint.verify(one.folder, one.files) for one in held)

    def read(self, name: str, start: int, out: np.ndarray, buffers: Buffers) -> np.ndarray:
        """Fill ``out`` (fp32) with the tensor from element ``start``: ``W + scale * B A``."""
        self.checkpoint.read(name, start, out, buffers)
        if self.adapter and name in self.adapter.targets:
            width = self.checkpoint.entry(name).shape[1]
            first, last = start // width, -(-(start + out.size) // width)
            a, b, scale = self.adapter.factors(name)
            np.add(out, methods.lora_delta(a, b[first:last], scale).ravel()[start - first * width :][: out.size], out)
        return out


class Adapter:
    """A folder that PEFT saved: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        AdapterError: another kind than LoRA, DoRA, a tensor that is neither A nor B, or factors that do not fit.
    """

    def __init__(self, folder: str, model: Checkpoint) -> None:
        self.folder = Path(folder)
        if not (self.folder / "adapter_config.json").is_file():
            raise InputError(f"{folder}: no adapter_config.json in it")
        config = checkpoint.read_json(self.folder / "adapter_config.json")
        if config.get("peft_type") != "LORA":
            raise AdapterError(f"{folder}: an adapter of type {config.get('peft_type')}; only LORA can be added")
        if config.get("use_dora"):
            raise AdapterError(f"{folder}: DoRA rescales whole columns, which is not supported; merge it with PEFT")
        self.config = config
        self.checkpoint = Checkpoint(self.folder)
        self.targets: dict[str, dict[str, str]] = {}
        for name in self.checkpoint.entries:
            found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", name)
            if not found:
                raise AdapterError(f"{folder}: {name!r} is no factor of a low-rank update and cannot be added")
            target = f"{found.group(1)}.weight"
            self.targets.setdefault(target, {})[found.group(3)] = name
            self.targets[target]["module"] = found.group(1)
        for target, factors in self.targets.items():
            self._check(target, factors, model)
        self.factors = functools.lru_cache(maxsize=4)(self._factors)

    def _transposed(self, name: str) -> bool:
        return bool(self.config.get("fan_in_fan_out")) or "lora_embedding_" in name

    def _check(self, target: str, factors: dict[str, str], model: Checkpoint) -> None:
        if not {"A", "B"} <= set(factors):
            raise AdapterError(f"{self.folder}: {target!r} has only one of its factors")
        if target not in model.entries:
            raise AdapterError(f"{self.folder}: changes {target!r}, which {model.folder} does not have")
        a, b = (self.checkpoint.entry(factors[which]).shape for which in "AB")
        shape = model.entry(target).shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            raise AdapterError(f"{self.folder}: factors {a} and {b} of {target!r} do not match")
        if shape != ((a[1], b[0]) if self._transposed(factors["A"]) else (b[0], a[1])):
            raise AdapterError(f"{self.folder}: factors {a} and {b} do not give {target!r} of shape {shape}")

    def _factors(self, target: str) -> tuple[np.ndarray, np.ndarray, float]:
        """A, B and the scale with ``scale * B A`` in the layout of the tensor."""
        found = self.targets[target]
        a, b = self.checkpoint.array(found["A"]), self.checkpoint.array(found["B"])
        alpha, rank = self.config.get("lora_alpha", 8), a.shape[0]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", found["module"]):
                alpha = value
                break
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return (b.T, a.T, scale) if self._transposed(found["A"]) else (a, b, scale)
