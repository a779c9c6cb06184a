"""Recipes in mergekit's YAML form: what is supported is listed here, and anything else is an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zfu_lib.merging.engine.checkpoint import TORCH_NAMES
from zfu_lib.merging.engine.errors import RecipeError
from zfu_lib.merging.methods import SCOPES

TOP = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
)
MODEL = ("model", "parameters")
SLICE = ("sources", "parameters")
SOURCE = ("model", "layer_range", "parameters")
CONDITION = ("filter", "value")


@dataclass(frozen=True)
class Parameter:
    """A number (``float``), a switch (``bool``) or one of some words; ``...`` as default: it must be given."""

    kind: type | tuple[Any, ...]
    default: Any = ...

    def read(self, name: str, value: Any) -> Any:
        """``value`` as this parameter's kind."""
        try:
            if self.kind is bool and isinstance(value, bool):
                return value
            if isinstance(self.kind, tuple) and any(value is word or value == word for word in self.kind):
                return value
            # YAML 1.1 reads 1e-3 as a word.
            if self.kind is float and not isinstance(value, bool) and math.isfinite(number := float(value)):
                return number
        except (TypeError, ValueError):
            pass
        kinds = {bool: "true or false", float: "a finite number"}
        wanted = kinds.get(self.kind) or f"one of {', '.join(str(word).lower() for word in self.kind)}"
        raise RecipeError(f"parameter {name}: {value!r} is not {wanted}")


@dataclass(frozen=True)
class Method:
    """What a method takes: parameters of the whole merge, of each model, and how many models besides the base."""

    shared: Mapping[str, Parameter]
    each: Mapping[str, Parameter]
    base: bool = False
    models: tuple[int, float] = (1, math.inf)
    elect: bool = False


def _delta(normalize: bool, elect: bool, rescale: bool | None = None, **each: Parameter) -> Method:
    shared = {"normalize": Parameter(bool, normalize), "lambda": Parameter(float, 1.0)}
    if rescale is not None:
        shared["rescale"] = Parameter((True, False, "l1"), rescale)
    # Their masks have no type to choose here; recipes often carry it.
    shared["int8_mask"] = Parameter(bool, False)
    return Method(shared, {"weight": Parameter(float)} | each, base=True, elect=elect)


_DENSITY = Parameter(float, 1.0)
METHODS: dict[str, Method] = {
    "linear": Method({"normalize": Parameter(bool, True)}, {"weight": Parameter(float)}),
    "slerp": Method({"t": Parameter(float)}, {}, base=True, models=(1, 1)),
    "model_stock": Method({}, {}, base=True, models=(2, math.inf)),
    "passthrough": Method({}, {"scale": Parameter(float, 1.0)}, models=(1, 1)),
    "task_arithmetic": _delta(False, False),
    "ties": _delta(True, True, False, density=_DENSITY),
    "dare_linear": _delta(False, False, True, density=_DENSITY),
    "dare_ties": _delta(False, True, True, density=_DENSITY),
    "della_linear": _delta(False, False, True, density=_DENSITY, epsilon=Parameter(float, 0.15)),
    "della": _delta(True, True, True, density=_DENSITY, epsilon=Parameter(float, 0.15)),
    "breadcrumbs": _delta(False, False, False, density=_DENSITY, gamma=Parameter(float, 0.01)),
    "breadcrumbs_ties": _delta(False, True, False, density=_DENSITY, gamma=Parameter(float, 0.01)),
    "hi_merging": Method(
        {"scope": Parameter(SCOPES, "tensor"), "consensus": Parameter(("none", "sum"), "none")},
        {"weight": Parameter(float), "density": _DENSITY, "scale": Parameter(float, 1.0)},
        base=True,
    ),
}


@dataclass(frozen=True)
class Source:
    """A model of the merge, the blocks taken from it (None: all), and its own parameters."""

    model: str
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """Consecutive blocks of the output and what they are merged from."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class MergeRecipe:
    """A recipe that was read and checked as far as that goes without looking at the models."""

    method: str
    slices: tuple[Slice, ...]
    base: str | None
    parameters: Mapping[str, Any]
    dtype: str | None
    tokenizer: str | None
    text: str

    @property
    def models(self) -> list[str]:
        """Every model once, in order of appearance, the base first."""
        found = [source.model for part in self.slices for source in part.sources]
        return list(dict.fromkeys(([self.base] if self.base else []) + found))

    def shared(self, part: Slice, name: str, t: float) -> dict[str, Any]:
        """The values of the merge's parameters for the output tensor ``name`` at relative depth ``t``."""
        return _values(METHODS[self.method].shared, name, t, "", part.parameters, self.parameters)

    def each(self, part: Slice, source: Source, name: str, t: float) -> dict[str, Any]:
        """The values of a model's parameters for its tensor ``name``."""
        scopes = (source.parameters, part.parameters, self.parameters)
        return _values(METHODS[self.method].each, name, t, f" of {source.model}", *scopes)


def read(file: Path | str) -> MergeRecipe:
    """The recipe in a YAML file.

    Raises:
        RecipeError: no such file, not YAML, or something :func:`parse` refuses.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    try:
        return parse(text)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None


def parse(text: str) -> MergeRecipe:
    """The recipe in a YAML text.

    Raises:
        RecipeError: not a recipe, an unknown key, method or parameter, or a value of the wrong kind.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}") from None
    top = _mapping(content, TOP, "the recipe")
    name = top.get("merge_method")
    if not isinstance(name, str) or name not in METHODS:
        raise RecipeError(f"merge_method {name!r} is not supported; there are: {', '.join(METHODS)}")
    if ("models" in top) == ("slices" in top):
        raise RecipeError("give either models or slices")
    known = {**METHODS[name].shared, **METHODS[name].each}
    if "models" in top:
        listed = [_mapping(model, MODEL, "a model") for model in _list(top["models"], "models")]
        sources = tuple(Source(_text(m.get("model"), "model"), None, _parameters(m, known, name)) for m in listed)
        slices = (Slice(sources, {}),)
    else:
        slices = tuple(_slice(part, known, name) for part in _list(top["slices"], "slices"))
    for part in slices:
        models = [source.model for source in part.sources]
        if twice := next((model for model in models if models.count(model) > 1), None):
            raise RecipeError(f"{twice} is given twice")
    for key in ("dtype", "out_dtype"):
        if top.get(key) is not None and str(top[key]).removeprefix("torch.") not in TORCH_NAMES:
            raise RecipeError(f"{key} {top[key]!r} is not supported; there are: {', '.join(TORCH_NAMES)}")
    dtype = top.get("out_dtype") or top.get("dtype")
    base = _text(top["base_model"], "base_model") if top.get("base_model") is not None else None
    source = top.get("tokenizer_source")
    recipe = MergeRecipe(
        name,
        slices,
        base,
        _parameters(top, known, name),
        str(dtype).removeprefix("torch.") if dtype else None,
        _text(source, "tokenizer_source") if source is not None else None,
        text,
    )
    _check_models(recipe)
    return recipe


def _check_models(recipe: MergeRecipe) -> None:
    method = METHODS[recipe.method]
    if method.base and recipe.base is None:
        raise RecipeError(f"{recipe.method} needs base_model")
    for part in recipe.slices:
        models = [source.model for source in part.sources]
        whole = part.sources[0].layers is None
        if method.base and not whole and recipe.base not in models:
            raise RecipeError(f"a slice of {recipe.method} has to list its base_model {recipe.base}")
        count = len([model for model in models if not (method.base and model == recipe.base)])
        least, most = method.models
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"at least {least}"
            raise RecipeError(f"{recipe.method} merges {wanted} models besides the base, not {count}")


def _slice(part: Any, known: Mapping[str, Parameter], method: str) -> Slice:
    part = _mapping(part, SLICE, "a slice")
    sources = []
    for source in _list(part.get("sources"), "sources"):
        source = _mapping(source, SOURCE, "a source")
        layers = source.get("layer_range")
        if not isinstance(layers, list) or len(layers) != 2 or not all(type(n) is int for n in layers):
            raise RecipeError(f"layer_range {layers!r} is not [first, last + 1]")
        if not 0 <= layers[0] < layers[1]:
            raise RecipeError(f"layer_range {layers!r} is empty")
        model = _text(source.get("model"), "model")
        sources.append(Source(model, (layers[0], layers[1]), _parameters(source, known, method)))
    if len({source.layers[1] - source.layers[0] for source in sources if source.layers}) != 1:
        raise RecipeError("the sources of a slice have layer_ranges of different lengths")
    return Slice(tuple(sources), _parameters(part, known, method))


def _parameters(holder: Mapping[str, Any], known: Mapping[str, Parameter], method: str) -> dict[str, Any]:
    given = holder.get("parameters")
    if given is None:
        return {}
    for name, setting in _mapping(given, known, f"the parameters of {method}").items():
        _check_setting(known[name], name, setting)
    return given


def _check_setting(parameter: Parameter, name: str, setting: Any) -> None:
    for item in setting if isinstance(setting, list) else [setting]:
        if isinstance(item, dict):
            condition = _mapping(item, CONDITION, f"a condition of {name}")
            if "value" not in condition or not isinstance(condition.get("filter", ""), str | None):
                raise RecipeError(f"parameter {name}: a condition has a value and, but for the last, a filter")
            values = condition["value"] if isinstance(condition["value"], list) else [condition["value"]]
        else:
            values = [item]
        for value in values:
            parameter.read(name, value)
    if setting == [] or isinstance(setting, list) and len({isinstance(item, dict) for item in setting}) > 1:
        raise RecipeError(f"parameter {name}: a list holds either values or conditions")


def _values(
    parameters: Mapping[str, Parameter], tensor: str, t: float, whose: str, *scopes: Mapping[str, Any]
) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        value = parameter.default
        for scope in scopes:
            if name in scope and (here := _setting(parameter, name, scope[name], tensor, t)) is not None:
                value = here
                break
        if value is ...:
            raise RecipeError(f"parameter {name}{whose} is missing for tensor {tensor!r}")
        found[name] = value
    return found


def _setting(parameter: Parameter, name: str, setting: Any, tensor: str, t: float) -> Any:
    """The value for a tensor: of the first condition whose filter is in its name, between the points of a gradient."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return parameter.read(name, setting)
    if isinstance(setting[0], dict):
        for condition in setting:
            if condition.get("filter") in (None, "*") or condition["filter"] in tensor:
                return _setting(parameter, name, condition["value"], tensor, t)
        return None
    values = [parameter.read(name, value) for value in setting]
    place = t * (len(values) - 1)
    if parameter.kind is not float:
        return values[int(place)]
    first = int(place)
    rest = place - first
    return (1 - rest) * values[first] + rest * values[min(len(values) - 1, first + 1)]


def _mapping(value: Any, known: Mapping[str, Any] | tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{what}: {value!r} is not a mapping")
    for key in value:
        if key not in known:
            raise RecipeError(f"key {key!r} in {what} is not supported; there are: {', '.join(known)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{what} is not a list of at least one")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{what} {value!r} is not a folder")
    return value
