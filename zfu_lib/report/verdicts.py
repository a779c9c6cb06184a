"""From measurements to verdicts. Nothing here knows a paper; nothing elsewhere types a verdict.

A condition is a region ``[min, max]`` and the measurement is an interval. The interval lies inside the region (holds),
outside it (refuted), or across its edge (open). A claim holds when every condition holds, falls when one is refuted,
and is `inconclusive` otherwise, or when something the comparison requires does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from zfu_lib.report.claims import Claim, Condition, Profile, Strict
from zfu_lib.report.statistics import Interval


class Verdict(StrEnum):
    """The only seven things this book says of a claim."""

    REPRODUCED = "reproduced"
    DIRECTION_HOLDS = "direction holds"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    DOES_NOT_ADD_UP = "does not add up"
    NOT_RUN = "not run"
    CANNOT_RUN = "cannot run here"


class Finding(Strict):
    """One condition against what was measured; ``required`` if it only says whether the comparison means anything."""

    measurement: str
    min: float | None
    max: float | None
    mean: float
    low: float
    high: float
    n: int
    method: str
    detectable: float | None
    state: str
    required: bool = False


class Judgement(Strict):
    """The verdict on one claim with the findings that led to it."""

    claim: str
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()


def state(condition: Condition, interval: Interval) -> str:
    """``holds``, ``refuted`` or ``open``: where the interval lies relative to the condition's region."""
    low = -math.inf if condition.min is None else condition.min
    high = math.inf if condition.max is None else condition.max
    if low <= interval.low and interval.high <= high:
        return "holds"
    if interval.high < low or high < interval.low:
        return "refuted"
    return "open"


def judge(
    claim: Claim, profile: Profile, measured: Mapping[str, Interval], omitted: Mapping[str, str] | None = None
) -> Judgement:
    """Decide one claim.

    Args:
        claim: the claim with its rule for ``profile``.
        profile: the profile that measured.
        measured: intervals by measurement name.
        omitted: measurements this run could not make, with the reason.

    Raises:
        KeyError: the rule names a measurement that the run did not make.
    """
    test = claim.test.get(profile)
    if test is None:
        return Judgement(claim=claim.id, verdict=Verdict.NOT_RUN, reason=f"the {profile} profile has no test for it")
    if test.cannot_run:
        return Judgement(claim=claim.id, verdict=Verdict.CANNOT_RUN, reason=test.cannot_run)
    for condition in (*test.requires, *test.conditions):
        if why := (omitted or {}).get(condition.measurement):
            return Judgement(claim=claim.id, verdict=Verdict.CANNOT_RUN, reason=why)
    required = tuple(_find(claim, condition, measured) for condition in test.requires)
    decisive = tuple(_find(claim, condition, measured) for condition in test.conditions)
    findings = tuple(finding.model_copy(update={"required": True}) for finding in required) + decisive
    states = {finding.state for finding in decisive}
    if any(finding.state != "holds" for finding in required):
        verdict = Verdict.INCONCLUSIVE
    elif "refuted" in states:
        verdict = Verdict.DOES_NOT_ADD_UP if claim.kind == "audit" else Verdict.NOT_REPRODUCED
    elif "open" in states:
        verdict = Verdict.INCONCLUSIVE
    elif claim.scale_free or profile == "paper":
        verdict = Verdict.REPRODUCED
    else:
        verdict = Verdict.DIRECTION_HOLDS
    return Judgement(claim=claim.id, verdict=verdict, reason=test.measures, findings=findings)


def rejudge(claim: Claim, profile: Profile, measured: Mapping[str, Interval], before: Judgement) -> Judgement:
    """Decide a claim again by today's rule, from what a sealed run measured.

    Args:
        before: the run's own judgement; where it says that the run could not measure something, that still holds.

    Raises:
        KeyError: as :func:`judge`.
    """
    omitted = {}
    if before.verdict == Verdict.CANNOT_RUN and profile in claim.test:
        test = claim.test[profile]
        needed = {condition.measurement for condition in (*test.requires, *test.conditions)}
        omitted = dict.fromkeys(needed - set(measured), before.reason)
    return judge(claim, profile, measured, omitted)


def _find(claim: Claim, condition: Condition, measured: Mapping[str, Interval]) -> Finding:
    if condition.measurement not in measured:
        raise KeyError(f"claim {claim.id} needs {condition.measurement!r}; the run measured {sorted(measured)}")
    interval = measured[condition.measurement]
    return Finding(
        **condition.model_dump(),
        **{field: getattr(interval, field) for field in ("mean", "low", "high", "n", "method", "detectable")},
        state=state(condition, interval),
    )
