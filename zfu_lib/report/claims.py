"""What a paper says, one record per claim, and the rule that will decide it: ``book/claims/<slug>.yml``."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zfu_lib.report import papers, paths

Profile = Literal["quick", "full", "paper"]
Kind = Literal["equality", "ordering", "trend", "existence", "audit"]


class Strict(BaseModel):
    """Unknown keys are errors: a typo must not silently drop a condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reported(Strict):
    """One number as the paper prints it."""

    label: str
    value: float | str
    unit: str = ""
    n: int | None = None


class Condition(Strict):
    """``measurement`` must lie in ``[min, max]``; a missing end is open."""

    measurement: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> Condition:
        if self.min is None and self.max is None:
            raise ValueError(f"condition on {self.measurement!r} needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"condition on {self.measurement!r}: min {self.min} > max {self.max}")
        return self


class Test(Strict):
    """How one profile decides a claim: what is measured and the conditions that must all hold, or why it cannot.

    ``requires`` are conditions without which the comparison means nothing (models with skill, a phenomenon to
    explain): where one does not hold the verdict is `inconclusive`, whatever the other numbers say.
    """

    measures: str = ""
    requires: tuple[Condition, ...] = ()
    conditions: tuple[Condition, ...] = ()
    cannot_run: str = ""

    @model_validator(mode="after")
    def _decides_or_says_why_not(self) -> Test:
        if bool(self.conditions) == bool(self.cannot_run):
            raise ValueError("a test has either conditions or cannot_run")
        if self.conditions and not self.measures:
            raise ValueError("a test says in words what it measures")
        return self


class Claim(Strict):
    """One claim. ``scale_free`` marks what holds at any size (arithmetic, exact properties of the method): only such
    a claim can be `reproduced` by a profile smaller than the paper's."""

    id: Annotated[str, Field(pattern=r"^[a-z_0-9]+\.[A-Z]+[0-9]+[a-z]?$")]
    statement: str
    source: str
    kind: Kind
    metric: str
    reported: tuple[Reported, ...] | None = None
    confirmed: bool = True
    scale_free: bool = False
    test: dict[Profile, Test] = {}
    deviations: tuple[str, ...] = ()


class ClaimsFile(Strict):
    """All claims of one paper, and ``bands``: where each measured number of a profile should fall on any machine.
    A band is a check of our code (wide, two-sided), not of the paper."""

    claims: tuple[Claim, ...]
    bands: dict[Profile, dict[str, tuple[float, float]]] = {}

    @model_validator(mode="after")
    def _ids_are_unique(self) -> ClaimsFile:
        ids = [claim.id for claim in self.claims]
        if twice := {i for i in ids if ids.count(i) > 1}:
            raise ValueError(f"claim ids used twice: {sorted(twice)}")
        return self


class ClaimsError(ValueError):
    """A claims file that cannot be used; the message names file and place."""


def load(slug: str) -> ClaimsFile:
    """Claims of one paper. An appendix without a file has none.

    Raises:
        ClaimsError: missing file, invalid YAML, a record that breaks the schema, or an id of another paper.
    """
    file = paths.claims(slug)
    if slug in papers.APPENDICES and not file.exists():
        return ClaimsFile(claims=())
    try:
        found = ClaimsFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ClaimsError(f"no claims file {file.relative_to(paths.root())}") from None
    except (yaml.YAMLError, ValidationError) as error:
        raise ClaimsError(f"{file.relative_to(paths.root())}: {error}") from None
    for claim in found.claims:
        if not claim.id.startswith(f"{slug}."):
            raise ClaimsError(f"{file.relative_to(paths.root())}: id {claim.id!r} does not start with {slug!r}")
    return found
