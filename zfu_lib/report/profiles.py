"""Profiles: what a run does, as data. A paper's experiments module subclasses :class:`Profile` with its own fields."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError


class ParameterError(ValueError):
    """A parameter that does not exist or has the wrong type or value."""


@dataclass(frozen=True)
class Download:
    """Something a run fetches: ``id`` on the hub or a catalogue name, ``gigabytes`` on disk."""

    id: str
    gigabytes: float


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take on the machine its profile is meant for (``machine`` says which).

    ``minutes`` wall time, ``memory_gb`` peak host memory, ``gpu_memory_gb`` peak device memory, ``disk_gb`` written.
    """

    machine: str
    minutes: float
    memory_gb: float
    disk_gb: float = 0.1
    gpu_memory_gb: float = 0.0
    downloads: tuple[Download, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Fields every paper's profile has. ``seeds`` is how many random seeds each stochastic measurement takes."""

    profile: str
    cost: Cost
    seeds: int


FIXED = ("profile", "cost")


def resolve(profiles: Mapping[str, Profile], parameters: Mapping[str, object]) -> Profile:
    """The profile that ``parameters`` name, with every other parameter laid over it.

    Args:
        profiles: a paper's profiles by name.
        parameters: ``profile`` and any fields to change; None keeps what the profile says.

    Raises:
        ParameterError: unknown profile or field, a value of the wrong type, or fewer than two seeds.
    """
    changes = {name: value for name, value in parameters.items() if value is not None}
    name = changes.pop("profile", "quick")
    if name not in profiles:
        raise ParameterError(f"unknown profile {name!r}; there are: {', '.join(profiles)}")
    base = profiles[name]
    types = typing.get_type_hints(type(base))
    for field, value in changes.items():
        if field not in types or field in FIXED:
            close = difflib.get_close_matches(field, types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(set(types) - set(FIXED)))
            raise ParameterError(f"unknown parameter {field!r}{hint} (known: profile, {known})")
        changes[field] = _typed(field, value, types[field])
    resolved = dataclasses.replace(base, **changes)
    if resolved.seeds < 2:
        raise ParameterError(f"seeds = {resolved.seeds}: an interval needs at least 2")
    return resolved


def _typed(field: str, value: object, kind: type) -> object:
    """``value`` if it already is of type ``kind`` (a list is taken for a tuple): nothing is parsed from a string."""
    check = TypeAdapter(kind, config=ConfigDict(strict=True))
    for candidate in (value, _tuples(value)):
        with contextlib.suppress(ValidationError):
            return check.validate_python(candidate)
    name = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    raise ParameterError(f"{field} = {value!r} is {type(value).__name__}, not {name}")


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
