"""Dates, Allen's relations by an independent definition, timelines as text, and the solver of dated facts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.reasoning.timeline import INVERSE, Interval, date, parse_timeline, read_facts, relation, solve

interval = st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda x: Interval(x[0], x[0] + x[1]))


def by_points(a, b):
    """Allen's relation from the months that each holds."""
    x, y = set(range(*a)), set(range(*b))
    if not x & y:
        return {True: "meets", False: "before"}[a.end == b.start] if a.start < b.start else (
            {True: "met by", False: "after"}[b.end == a.start])  # fmt: skip
    if x == y:
        return "equals"
    if x < y:
        return "starts" if min(x) == min(y) else "finishes" if max(x) == max(y) else "during"
    if x > y:
        return "started by" if min(x) == min(y) else "finished by" if max(x) == max(y) else "contains"
    return "overlaps" if min(x) < min(y) else "overlapped by"


@settings(deadline=None)
@given(interval, interval)
def test_relations_are_those_of_the_months_held(a, b):
    assert relation(a, b) == by_points(a, b)
    assert relation(b, a) == INVERSE[relation(a, b)]


def test_there_are_thirteen_and_inverting_twice_changes_nothing():
    assert len(INVERSE) == 13
    assert all(INVERSE[INVERSE[name]] == name for name in INVERSE)


@pytest.mark.parametrize("wrong", [Interval(3, 3), Interval(3, 2), Interval(3, None)])
def test_what_is_no_interval_has_no_relation(wrong):
    with pytest.raises(ValueError, match="no interval"):
        relation(wrong, Interval(0, 1))


@pytest.mark.parametrize(
    ("text", "month"),
    [
        ("1954", 12 * 1954),
        ("Jul, 1979", 12 * 1979 + 6),
        ("12 March 1901", 12 * 1901 + 2),
        ("March 12, 1901", 12 * 1901 + 2),
        ("Sept. 1800", 12 * 1800 + 8),
        ("1954 + 2 = 1956", 12 * 1956),
        ("the mayor 1974", 12 * 1974),  # no month
        ("soon", None),
        ("", None),
        ("123", None),
    ],
)
def test_dates_are_read(text, month):
    assert date(text) == month


def years(text):
    return [(e.parts, e.when.start // 12, e.when.end and e.when.end // 12) for e in parse_timeline(text)]


@pytest.mark.parametrize(
    ("line", "parts", "start", "end"),
    [
        ("1951 - 1954 : ada | employer | alcorp", ("ada", "employer", "alcorp"), 1951, 1954),
        ("ada | employer | alcorp : 1951 – 1954", ("ada", "employer", "alcorp"), 1951, 1954),
        ("* Jan 1951 to Jan 1954: ada | employer | alcorp", ("ada", "employer", "alcorp"), 1951, 1954),
        ("1. 1951 – ? : ada | employer | alcorp", ("ada", "employer", "alcorp"), 1951, None),
        ("1951 : ada | employer | alcorp", ("ada", "employer", "alcorp"), 1951, None),
        ("ada employer alcorp 1949 + 2 = 1951 to 1951 + 3 = 1954", ("ada employer alcorp",), 1951, 1954),
    ],
)
def test_lines_of_many_forms_are_read(line, parts, start, end):
    assert years(line) == [(parts, start, end)]


@pytest.mark.parametrize(
    "line", ["", "hello", "1954 - 1951 : a | b | c", "1951 - 1951 : a", "1951 - 1954", "a | b | c"]
)
def test_lines_that_say_nothing_are_left_out(line):
    assert parse_timeline(f"{line}\n1951 - 1954 : x") == parse_timeline("1951 - 1954 : x")


@settings(deadline=None)
@given(st.permutations([f"{1950 + 5 * i} - {1953 + 5 * i} : p{i} | r | o{i}" for i in range(5)]))
def test_order_of_lines_does_not_matter(lines):
    assert [e.parts[0] for e in parse_timeline("\n".join(lines))] == [f"p{i}" for i in range(5)]


FACTS = """Ada Lo plays for Rovers F.C. from Jan, 1901 to Jan, 1903.
Ada Lo plays for United from Jan, 1903 to Jun, 1905.

not a fact
Ada Lo plays for Stars of the East from Jan, 1908 to Jan, 1910."""


@pytest.mark.parametrize(
    ("question", "answers", "parsed"),
    [
        ("Which team did Ada Lo play for in Jul, 1902?", ("Rovers F.C.",), True),
        ("Which team did Ada Lo play for in Jan, 1903?", ("United",), True),  # half open
        ("Which team did Ada Lo play for in May, 1907?", (), True),
        ("Which team did Ada Lo play for after United?", ("Stars of the East",), True),
        ("Which team did Ada Lo play for before United?", ("Rovers F.C.",), True),
        ("Which team did Ada Lo play for before Rovers F.C.?", (), True),
        ("Which team did Ada Lo play for after Lions?", (), False),
        ("Why?", (), False),
        ("", (), False),
        ("What is the time 7 year and 11 month before Sep, 1104", ("Oct, 1096",), True),
        ("What is the time 4 year and 12 month after Aug, 1013", ("Aug, 1018",), True),
        ("What is the time 4 year after Jan, 1762", ("Jan, 1766",), True),
    ],
)
def test_questions_about_dated_facts(question, answers, parsed):
    assert solve(question, read_facts(FACTS)) == (solve(question, read_facts(FACTS)).__class__)(answers, parsed)


def test_subjects_are_asked_for_where_the_verb_says_so():
    text = "Jo Po is the chair of Guild from Jan, 1901 to Jan, 1903.\n"
    text += "Mo is the head coach of Lo from Jan, 1904 to May, 1905."
    assert [f.slot for f in read_facts(text)] == ["Jo Po", "Mo"]


def test_facts_without_text_or_verb_are_none():
    assert read_facts("") == []
    assert read_facts("Ada sings from Jan, 1901 to Jan, 1903.") == []


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text):
    parse_timeline(text)
    solve(text, read_facts(text))
