"""What a recipe means for the models it names: one job per output tensor, checked before any byte is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfu_lib.merging import methods
from zfu_lib.merging.engine.checkpoint import SIZES, STORED, TORCH_NAMES, WHOLE_NUMBERS, read_json
from zfu_lib.merging.engine.errors import (
    ArchitectureError,
    DtypeError,
    MissingTensorError,
    RecipeError,
    ShapeError,
    TokenizerError,
)
from zfu_lib.merging.engine.model import Model
from zfu_lib.merging.engine.recipe import METHODS, MergeRecipe, Slice, Source

SHARD = 2_000_000_000  # bytes
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# What has to agree for weights to mean the same thing; other shapes show in the tensors themselves.
SAME = (
    "model_type",
    "hidden_size",
    "n_embd",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "activation_function",
)
NOTED = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "tie_word_embeddings")
# In the names of tensors that come before the blocks.
INPUT = ("embed_tokens", "embed_in", "embeddings", "wte", "wpe")
# ns of CPU per element, of the merge and for each model: measured on one core with the models of benchmarks/merging.py.
_COST = {
    "linear": (2.0, 0.8),
    "passthrough": (2.2, 0.5),
    "slerp": (2.5, 5.4),
    "model_stock": (2.5, 3.3),
    "task_arithmetic": (2.5, 1.2),
    "hi_merging": (3.0, 7.3),
    "ties": (3.5, 8.5),
    "dare_linear": (2.5, 3.7),
    "dare_ties": (3.5, 4.2),
    "breadcrumbs": (3.0, 8.2),
    "breadcrumbs_ties": (3.5, 8.7),
    "della_linear": (2.5, 29.0),
    "della": (3.5, 29.5),
}
_SELECTS = ("ties", "breadcrumbs", "breadcrumbs_ties", "hi_merging")


@dataclass(frozen=True)
class Input:
    """A tensor that a job reads: of which model, its name there, the model's parameters for it."""

    model: int
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """An output tensor: ``inputs`` merged around ``base`` (None: the method has none); ``copy``: no arithmetic."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    base: Input | None
    inputs: tuple[Input, ...]
    shared: Mapping[str, Any]
    copy: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def bytes(self) -> int:
        """Bytes of the output tensor."""
        return self.size * SIZES[self.dtype]

    @property
    def sources(self) -> tuple[Input, ...]:
        """Everything it reads, the base first."""
        return (*([self.base] if self.base else []), *self.inputs)


@dataclass(frozen=True)
class Shard:
    """An output file and its tensors in order."""

    file: str
    jobs: tuple[Job, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(job.bytes for job in self.jobs)


@dataclass
class Plan:
    """A merge that can be run. ``key`` names recipe, seed, output files and the state of every input file."""

    recipe: MergeRecipe
    seed: int
    models: list[Model]
    jobs: list[Job]
    shards: list[Shard]
    config: dict[str, Any]
    donor: Model
    verified: int
    remarks: list[str]

    @property
    def key(self) -> str:
        """Hexadecimal digits that differ when anything differs that the output depends on."""
        content = {
            "recipe": self.recipe.text,
            "seed": self.seed,
            "shards": [[shard.file, [[job.name, job.dtype, job.shape] for job in shard.jobs]] for shard in self.shards],
            "inputs": self.state(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def state(self) -> list[tuple[str, int, int]]:
        """Size and time of change of every input file, to see whether one changed."""
        files = [file.resolve() for model in self.models for file in model.files]
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def bytes_read(self) -> int:
        """Bytes of all input tensors, once."""
        entries = [self.models[i.model].checkpoint.entry(i.name) for job in self.jobs for i in job.sources]
        return sum(entry.bytes for entry in entries)

    @property
    def passes(self) -> int:
        """How often the inputs are read, at most; all but the first time mostly from the page cache."""
        if self.recipe.method in _SELECTS:
            return 4 + any(job.shared.get("rescale") for job in self.jobs)
        statistics = self.recipe.method in ("slerp", "model_stock")
        return 1 + (statistics or any(job.shared.get("rescale") == "l1" for job in self.jobs))

    @property
    def cpu_seconds(self) -> float:
        """About what it takes on one core of the machine of benchmarks/merging.py."""
        fixed, each = _COST[self.recipe.method]
        return 0.4 + 1e-9 * sum(job.size * (fixed + each * len(job.inputs)) for job in self.jobs)


def make(recipe: MergeRecipe, *, seed: int = 0, shard_bytes: int = SHARD, verify: bool = True) -> Plan:
    """Open the models of a recipe, check that they go together, and lay out the output.

    Args:
        seed: of the methods that draw random numbers.
        shard_bytes: largest output file, unless a single tensor is larger.
        verify: compare input files with the ``SHA256SUMS`` in their folders, where there is one.

    Raises:
        InputError: with a type of its own for each way in which models are damaged or do not go together.
        RecipeError: the recipe asks for something these models do not have.
    """
    models = [Model(reference) for reference in recipe.models]
    verified = sum(model.verify() for model in models) if verify else 0
    place = {reference: i for i, reference in enumerate(recipe.models)}
    remarks = _check_configs(models, recipe)
    jobs = [_job(recipe, models, place, *parts) for parts in _tensors(recipe, models, place)]
    jobs = [job for _, job in sorted(zip(_order(job.name for job in jobs), jobs), key=lambda pair: pair[0])]
    if recipe.method == "hi_merging":
        _check_scope(jobs)
    donor = models[place[_donor(recipe)]]
    remarks += _check_tokenizers(models, recipe)
    plan = Plan(recipe, seed, models, jobs, _shards(jobs, shard_bytes), {}, donor, verified, remarks)
    plan.config = _config(recipe, models[0], place)
    return plan


def _order(names: Iterator[str]) -> list[int]:
    listed = list(names)
    rank = {name: i for i, name in enumerate(methods.names(listed))}
    return [rank[name] for name in listed]


def _tensors(
    recipe: MergeRecipe, models: Sequence[Model], place: Mapping[str, int]
) -> Iterator[tuple[str, Slice, list[tuple[Source, str]], float]]:
    """Every output tensor: name, slice, the sources with the tensor's name there, relative depth t for gradients.

    t runs from 0 in the first block of a slice to 1 in its last; it is 1 in a slice of one block and 0 outside blocks.
    """
    base = METHODS[recipe.method].base or recipe.method == "linear"
    if recipe.slices[0].sources[0].layers is None:
        part = recipe.slices[0]
        sources = list(part.sources)
        if base and recipe.base and recipe.base not in [source.model for source in sources]:
            sources.append(Source(recipe.base, None, {}))
        first = models[place[sources[0].model]].checkpoint
        for source in sources[1:]:
            other = models[place[source.model]].checkpoint
            for one, two in ((first, other), (other, first)):
                if lacking := methods.names(set(one.entries) - set(two.entries)):
                    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
                    raise MissingTensorError(f"{two.folder}: no tensor {lacking[0]!r}{more}, which {one.folder} has")
        depth = _depths(first.entries)
        for name in first.entries:
            yield name, part, [(source, name) for source in sources], depth.get(name, 0.0)
        return
    stacks = [_stack(models[place[reference]]) for reference in recipe.models]
    if len(set(stacks)) != 1:
        raise ArchitectureError(f"blocks are named differently: {', '.join(sorted(set(stacks)))}")
    stack, out = stacks[0], 0
    for part in recipe.slices:
        length = part.sources[0].layers[1] - part.sources[0].layers[0]
        for i in range(length):
            block = [_block(models[place[s.model]], stack, s.layers[0] + i) for s in part.sources]
            for source, tensors in zip(part.sources, block):
                if lacking := set(block[0]) ^ set(tensors):
                    where = f"block {source.layers[0] + i} of {source.model}"
                    raise MissingTensorError(f"{where}: tensor {min(lacking)!r} is not in all sources of the slice")
            for suffix in block[0]:
                named = [(s, f"{stack}.{s.layers[0] + i}.{suffix}") for s in part.sources]
                yield f"{stack}.{out + i}.{suffix}", part, named, i / (length - 1) if length > 1 else 1.0
        out += length
    ends = recipe.slices[0], recipe.slices[-1]
    outside = [
        {name for name in models[place[part.sources[0].model]].checkpoint.entries if not methods.layer(name)}
        for part in ends
    ]
    for name in methods.names(outside[0] | outside[1]):
        part = ends[0] if any(word in name for word in INPUT) else ends[1]
        yield name, part, [(source, name) for source in part.sources], 0.0


def _job(
    recipe: MergeRecipe,
    models: Sequence[Model],
    place: Mapping[str, int],
    name: str,
    part: Slice,
    sources: list[tuple[Source, str]],
    t: float,
) -> Job:
    method = METHODS[recipe.method]
    base, inputs = None, []
    for source, there in sources:
        model = place[source.model]
        if method.base and source.model == recipe.base:
            base = Input(model, there, {})
        else:
            inputs.append(Input(model, there, recipe.each(part, source, there, t)))
    read = [*([base] if base else []), *inputs]
    entries = [models[i.model].checkpoint.entry(i.name) for i in read]
    for one, entry in zip(read[1:], entries[1:]):
        if entry.shape != entries[0].shape:
            a, b = models[read[0].model].folder, models[one.model].folder
            said = f"{name!r} has shape {list(entries[0].shape)} in {a} and {list(entry.shape)} in {b}"
            if _is_vocabulary(name):
                raise TokenizerError(f"{said}: vocabularies of different size")
            raise ShapeError(said)
    dtypes = {entry.dtype for entry in entries}
    copy = not dtypes & set(STORED)
    if copy and (len(dtypes) > 1 or not dtypes <= set(WHOLE_NUMBERS)) or not copy and not dtypes <= set(STORED):
        where = ", ".join(f"{entry.dtype} in {models[i.model].folder}" for i, entry in zip(read, entries))
        raise DtypeError(f"{name!r} cannot be merged: {where}; merged are {', '.join(STORED)}")
    dtype = min(dtypes) if len(dtypes) == 1 else "F32"
    if recipe.dtype and not copy:
        dtype = TORCH_NAMES[recipe.dtype]
    shared = recipe.shared(part, name, t)
    for i in inputs:
        if "epsilon" in i.parameters and i.parameters["density"] < 1 and not copy:
            try:
                methods.check_chances(i.parameters["density"], i.parameters["epsilon"])
            except ValueError as error:
                raise RecipeError(f"{name!r}: {error}") from None
    averaged = recipe.method == "linear" and shared["normalize"]
    if averaged and not methods.sum_of_weights(i.parameters["weight"] for i in inputs):
        raise RecipeError(f"{name!r}: the weights of a normalised average sum to zero")
    return Job(name, entries[0].shape, dtype, base, tuple(inputs), shared, copy)


def _is_vocabulary(name: str) -> bool:
    return any(word in name for word in ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings"))


def _check_scope(jobs: Sequence[Job]) -> None:
    """One threshold for each model needs the same models and densities throughout."""
    by_name = {job.name: job for job in jobs if not job.copy}
    for group in methods.groups(by_name, jobs[0].shared["scope"]):
        first = by_name[group[0]].inputs
        for name in group[1:]:
            here = by_name[name].inputs
            for what, said in (
                ("models", [[i.model for i in inputs] for inputs in (first, here)]),
                ("densities", [[i.parameters["density"] for i in inputs] for inputs in (first, here)]),
            ):
                if said[0] != said[1]:
                    raise RecipeError(f"{group[0]!r} and {name!r} share a threshold but have different {what}")


def _depths(names: Mapping[str, Any]) -> dict[str, float]:
    found = {name: layer for name in names if (layer := methods.layer(name))}
    last: dict[str, int] = {}
    for stack, number in found.values():
        last[stack] = max(last.get(stack, 0), number)
    return {name: number / last[stack] if last[stack] else 1.0 for name, (stack, number) in found.items()}


def _stack(model: Model) -> str:
    stacks = {layer[0] for name in model.checkpoint.entries if (layer := methods.layer(name))}
    if len(stacks) != 1:
        raise RecipeError(f"slices need one stack of blocks; {model.folder} has {len(stacks)}")
    return stacks.pop()


def _block(model: Model, stack: str, number: int) -> list[str]:
    """What the tensors of a block are called after its number."""
    prefix = f"{stack}.{number}."
    found = methods.names(name.removeprefix(prefix) for name in model.checkpoint.entries if name.startswith(prefix))
    if not found:
        raise RecipeError(f"{model.folder} has no block {number}")
    return found


def _shards(jobs: Sequence[Job], limit: int) -> list[Shard]:
    parts: list[list[Job]] = [[]]
    for job in jobs:
        if parts[-1] and sum(j.bytes for j in parts[-1]) + job.bytes > limit:
            parts.append([])
        parts[-1].append(job)
    if len(parts) == 1:
        return [Shard("model.safetensors", tuple(jobs))]
    return [Shard(f"model-{i:05}-of-{len(parts):05}.safetensors", tuple(part)) for i, part in enumerate(parts, 1)]


# Configurations and tokenizers.


def _check_configs(models: Sequence[Model], recipe: MergeRecipe) -> list[str]:
    remarks, first = [], models[0]
    if not first.config:
        raise ArchitectureError(f"{first.folder}: no config.json in it")
    same = SAME if recipe.slices[0].sources[0].layers else (*SAME, *LAYER_COUNTS)
    for model in models[1:]:
        if not model.config:
            remarks.append(f"{model.folder.name} has no config.json: its architecture was not compared")
            continue
        for key in same:
            if model.config.get(key) != first.config.get(key):
                a, b = first.config.get(key), model.config.get(key)
                raise ArchitectureError(f"{key} is {a} in {first.folder} and {b} in {model.folder}")
        a, b = first.config.get("vocab_size"), model.config.get("vocab_size")
        if a != b:
            raise TokenizerError(f"vocab_size is {a} in {first.folder} and {b} in {model.folder}: align them first")
        remarks += [
            f"{key} differs between {first.folder.name} and {model.folder.name}; the output gets the first's"
            for key in NOTED
            if model.config.get(key) != first.config.get(key)
        ]
    return remarks


def _donor(recipe: MergeRecipe) -> str:
    """The model whose tokenizer and generation settings the output gets."""
    source = recipe.tokenizer
    if source == "base" and recipe.base is None:
        raise RecipeError("tokenizer_source base, but there is no base_model")
    if source in (None, "base", "union"):
        return recipe.models[0]
    if source not in recipe.models:
        raise RecipeError(f"tokenizer_source {source!r} is neither base, union nor a model of the recipe")
    return source


def _check_tokenizers(models: Sequence[Model], recipe: MergeRecipe) -> list[str]:
    """Embeddings are merged row by row, so a row has to be the same token everywhere."""
    first, *others = models
    if not (first.folder / "tokenizer.json").is_file():
        return [f"{first.folder.name} has no tokenizer.json: tokenizers were not compared"] if others else []
    remarks, vocabulary = [], None
    for model in others:
        file = model.folder / "tokenizer.json"
        if not file.is_file():
            remarks.append(f"{model.folder.name} has no tokenizer.json: its tokenizer was not compared")
        elif file.read_bytes() != (first.folder / "tokenizer.json").read_bytes():
            vocabulary = vocabulary or _vocabulary(first.folder / "tokenizer.json")
            other = _vocabulary(file)
            moved = [token for token in vocabulary.keys() & other.keys() if vocabulary[token] != other[token]]
            if moved:
                token = min(moved, key=vocabulary.__getitem__)
                where = f"{vocabulary[token]} in {first.folder} and {other[token]} in {model.folder}"
                raise TokenizerError(f"{len(moved)} tokens have another row: {token!r} is {where}; align them first")
            alone = len(vocabulary.keys() ^ other.keys())
            if alone and (recipe.tokenizer in (None, "union")):
                raise TokenizerError(
                    f"{alone} tokens are in only one of the tokenizers of {first.folder} and {model.folder}; "
                    "name the tokenizer to keep: tokenizer_source: base, or a model"
                )
            if alone:
                remarks.append(f"{alone} tokens of {model.folder.name} differ; kept are those of tokenizer_source")
    return remarks


def _vocabulary(file: Path) -> dict[str, int]:
    content = read_json(file)
    found = content.get("model", {}).get("vocab", {}) if isinstance(content.get("model"), dict) else {}
    # Unigram models list [token, score] pairs.
    pairs = found.items() if isinstance(found, dict) else [(item[0], i) for i, item in enumerate(found)]
    return dict(pairs) | {added["content"]: added["id"] for added in content.get("added_tokens") or []}


def _config(recipe: MergeRecipe, first: Model, place: Mapping[str, int]) -> dict[str, Any]:
    """The first model's configuration with the output's type and number of blocks."""
    config = dict(first.config)
    if recipe.dtype:
        config["dtype" if "dtype" in config else "torch_dtype"] = recipe.dtype
    if recipe.slices[0].sources[0].layers is not None:
        key = next((key for key in LAYER_COUNTS if key in config), None)
        if key is None:
            raise ArchitectureError(f"{first.folder}: config.json does not say how many blocks there are")
        picked = [n for part in recipe.slices for n in range(*part.sources[0].layers)]
        for name, value in config.items():
            # Settings that list one value per block, such as layer_types.
            if isinstance(value, list) and len(value) == config[key] and max(picked) < len(value):
                config[name] = [value[n] for n in picked]
        config[key] = len(picked)
    return config
