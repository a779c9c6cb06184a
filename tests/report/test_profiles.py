from dataclasses import dataclass

import pytest

from zfu_lib.report.profiles import Cost, ParameterError, Profile, resolve


@dataclass(frozen=True)
class Mini(Profile):
    scale: float = 1.0
    flag: bool = False
    ratio: float | None = None
    sizes: tuple[int, ...] = (1,)
    grid: tuple[tuple[str, int], ...] = ()


KNOWN = {name: Mini(name, Cost("any", 1, 1), 3) for name in ("quick", "full")}


def test_none_keeps_what_the_profile_says() -> None:
    assert resolve(KNOWN, {"profile": "full", "seeds": None}) == KNOWN["full"]
    assert resolve(KNOWN, {}) == KNOWN["quick"]


@pytest.mark.parametrize(
    ("field", "value", "becomes"),
    [
        ("seeds", 5, 5),
        ("scale", 2.5, 2.5),
        ("scale", 2, 2.0),
        ("flag", True, True),
        ("ratio", 0.5, 0.5),
        ("sizes", [1, 2], (1, 2)),
        ("sizes", (3,), (3,)),
        ("grid", [["a", 1]], (("a", 1),)),
    ],
)
def test_typed_values_are_laid_over(field: str, value: object, becomes: object) -> None:
    found = getattr(resolve(KNOWN, {field: value}), field)
    assert found == becomes
    assert type(found) is type(becomes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", "5"),
        ("seeds", 5.0),
        ("seeds", True),
        ("scale", "1.5"),
        ("scale", True),
        ("flag", "false"),
        ("flag", 0),
        ("ratio", "0.5"),
        ("sizes", ["1"]),
        ("sizes", [1.5]),
        ("sizes", 3),
        ("sizes", "12"),
        ("grid", [["a", "1"]]),
    ],
)
def test_nothing_is_parsed_from_a_string(field: str, value: object) -> None:
    with pytest.raises(ParameterError, match=field):
        resolve(KNOWN, {field: value})


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"sead": 9}, "did you mean 'seeds'"),
        ({"nonsense": 1}, "known: profile, flag"),
        ({"profile": "slow"}, "there are: quick, full"),
        ({"cost": 1}, "unknown parameter 'cost'"),
        ({"seeds": 1}, "at least 2"),
    ],
)
def test_refuses(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        resolve(KNOWN, parameters)
    assert says in str(caught.value)
