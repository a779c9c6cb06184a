import pytest

from zfu_lib.report.claims import Claim
from zfu_lib.report.statistics import Interval, exact, over_seeds
from zfu_lib.report.verdicts import Verdict, judge, rejudge


def claim(kind: str = "ordering", *, scale_free: bool = False, cannot: str = "", two: bool = False) -> Claim:
    conditions = [{"measurement": "gap", "min": 0.0}] + [{"measurement": "size", "min": 1, "max": 2}] * two
    test = {"cannot_run": cannot} if cannot else {"measures": "a gap", "conditions": conditions}
    base = {"id": "p.S1", "statement": "s", "source": "t", "metric": "m", "kind": kind, "scale_free": scale_free}
    return Claim.model_validate(base | {"test": {"quick": test, "paper": test}})


ABOVE, ACROSS, BELOW = over_seeds([1, 1.1, 0.9]), over_seeds([-1, 1, 0.2]), over_seeds([-1, -1.1, -0.9])


@pytest.mark.parametrize(
    ("kind", "scale_free", "profile", "gap", "verdict"),
    [
        ("ordering", False, "paper", ABOVE, Verdict.REPRODUCED),
        ("ordering", True, "quick", ABOVE, Verdict.REPRODUCED),
        ("ordering", False, "quick", ABOVE, Verdict.DIRECTION_HOLDS),
        ("equality", False, "quick", exact(0.5), Verdict.DIRECTION_HOLDS),
        ("ordering", False, "quick", BELOW, Verdict.NOT_REPRODUCED),
        ("ordering", False, "paper", BELOW, Verdict.NOT_REPRODUCED),
        ("ordering", True, "quick", ACROSS, Verdict.INCONCLUSIVE),
        ("audit", True, "quick", exact(-1), Verdict.DOES_NOT_ADD_UP),
        ("audit", True, "quick", exact(0), Verdict.REPRODUCED),
    ],
)
def test_data_decide(kind: str, scale_free: bool, profile: str, gap: Interval, verdict: Verdict) -> None:
    assert judge(claim(kind, scale_free=scale_free), profile, {"gap": gap}).verdict is verdict


def test_without_a_test_it_was_not_run() -> None:
    assert judge(claim(), "full", {"gap": ABOVE}).verdict is Verdict.NOT_RUN


def test_what_cannot_run_says_why() -> None:
    judged = judge(claim(cannot="needs eight GPUs"), "quick", {})
    assert (judged.verdict, judged.reason) == (Verdict.CANNOT_RUN, "needs eight GPUs")


@pytest.mark.parametrize(
    ("gap", "size", "verdict"),
    [
        (ABOVE, exact(1.5), Verdict.DIRECTION_HOLDS),
        (ABOVE, exact(2.5), Verdict.NOT_REPRODUCED),
        (ACROSS, exact(2.5), Verdict.NOT_REPRODUCED),
        (ACROSS, exact(2.0), Verdict.INCONCLUSIVE),
    ],
)
def test_every_condition_must_hold(gap: Interval, size: Interval, verdict: Verdict) -> None:
    judged = judge(claim(two=True), "quick", {"gap": gap, "size": size})
    assert judged.verdict is verdict
    assert [finding.measurement for finding in judged.findings] == ["gap", "size"]


def test_touching_the_threshold_holds() -> None:
    assert judge(claim(), "quick", {"gap": Interval(0.5, 0.0, 1.0, 3, "t")}).verdict is Verdict.DIRECTION_HOLDS


def test_a_rule_without_its_measurement_is_an_error() -> None:
    with pytest.raises(KeyError, match="gap"):
        judge(claim(), "quick", {"other": ABOVE})


def test_every_verdict_can_be_reached() -> None:
    reached = {
        judge(claim(), "paper", {"gap": ABOVE}).verdict,
        judge(claim(), "quick", {"gap": ABOVE}).verdict,
        judge(claim(), "quick", {"gap": BELOW}).verdict,
        judge(claim(), "quick", {"gap": ACROSS}).verdict,
        judge(claim("audit"), "quick", {"gap": BELOW}).verdict,
        judge(claim(), "full", {}).verdict,
        judge(claim(cannot="why"), "quick", {}).verdict,
    }
    assert reached == set(Verdict)


GATED = {
    "id": "mini.S1", "statement": "a", "source": "b", "kind": "ordering", "metric": "c",
    "test": {
        "quick": {
            "measures": "d",
            "requires": [{"measurement": "skill", "min": 0}],
            "conditions": [{"measurement": "gap", "min": 0}],
        }
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("skill", "gap", "verdict"),
    [
        ([1.0, 1.1, 0.9], [1.0, 1.1, 0.9], Verdict.DIRECTION_HOLDS),
        ([1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], Verdict.NOT_REPRODUCED),
        ([-1.0, -1.1, -0.9], [1.0, 1.1, 0.9], Verdict.INCONCLUSIVE),
        ([-1.0, 1.0, 0.1], [-1.0, -1.1, -0.9], Verdict.INCONCLUSIVE),
    ],
)
def test_what_a_comparison_requires_comes_first(skill: list[float], gap: list[float], verdict: Verdict) -> None:
    found = judge(Claim.model_validate(GATED), "quick", {"skill": over_seeds(skill), "gap": over_seeds(gap)})
    assert found.verdict == verdict
    assert [finding.required for finding in found.findings] == [True, False]


@pytest.mark.parametrize("missing", ["skill", "gap"])
def test_what_a_run_left_out_cannot_run_here(missing: str) -> None:
    found = judge(Claim.model_validate(GATED), "quick", {}, {missing: "no GPU"})
    assert found.verdict == Verdict.CANNOT_RUN
    assert found.reason == "no GPU"


def test_judging_a_sealed_run_again_keeps_what_it_could_not_measure() -> None:
    claim = Claim.model_validate(GATED)
    before = judge(claim, "quick", {}, {"gap": "no GPU", "skill": "no GPU"})
    assert rejudge(claim, "quick", {}, before) == before
    with pytest.raises(KeyError, match="skill"):
        rejudge(claim, "quick", {}, before.model_copy(update={"verdict": Verdict.INCONCLUSIVE}))
