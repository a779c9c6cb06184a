"""Answers found and compared: conventions of MATH and GSM8K, and laws that hold for any text."""

import string
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.reasoning.answers import equivalent, extract, key, last_boxed

INTEGERS = st.integers(-(10**6), 10**6)
TEXT = st.text(st.sampled_from(string.ascii_letters + string.digits + "\\{}()[],.$%^_ -+/=#\n"), max_size=60)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\fbox {5}", "5"),
        ("48/2 = <<48/2=24>>24\n#### 1,872\n", "1,872"),
        (r"#### 4 but \boxed{5}", "5"),
        (r"\boxed{} ", ""),
        ("nothing", None),
        (r"\boxed", None),
        ("####", None),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac12", "1/2"),
        (r"\frac{1}2", r"\tfrac 12"),
        (r"-\frac{3}{4}", "-.75"),
        (r"\frac{-3}{4}", r"-\frac34"),
        (r"1\frac{1}{2}", "3/2"),
        (r"-1\frac12", "-1.5"),
        (r"2.50", r"2\frac{2}{4}"),
        ("1,000", "1000"),
        (r"12{,}345", "12345"),
        (r"\$18.00", "18"),
        ("18.", "18"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90°"),
        (r"5\text{ cm}", "5"),
        (r"5\text{ cm}^2", "5"),
        ("5 square miles", "5"),
        (r"x = 4", "4"),
        (r"x \in [0,1)", "[0, 1)"),
        (r"\left( 1, \frac{1}{2} \right)", "(1,0.5)"),
        (r"\{2, 1\}", r"\left\{1,2\right\}"),
        ("2, 1", "1,2"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"x^{2}+1", "x^2 + 1"),
        (r"\text{Even}", "even"),
        (r"\text{(B)}", "B"),
        (r"3 \times 10^{2}", "300"),
        (r"2\cdot10^{-1}", "1/5"),
        (r"\mathrm{A}", "A"),
        ("−3", "-3"),
    ],
)
def test_the_same_answer_written_twice(a, b):
    assert equivalent(a, b)
    assert equivalent(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1", "2"),
        (r"\frac{1}{3}", "0.3333"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(0,1]", "(0,1)"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        ("1,1", "1"),
        ("1,2", "12"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        ("x", "y"),
        ("2x", "2"),
        (r"\sqrt{2}", "2"),
        (r"\leftarrow", "arrow"),
        (r"2\pi", "2"),
        ("a", "A"),
        (None, None),
        (None, "1"),
        ("", "0"),
    ],
)
def test_different_answers(a, b):
    assert not equivalent(a, b)
    assert not equivalent(b, a)


@given(TEXT)
def test_any_text_has_a_key_and_equals_itself(text):
    assert equivalent(text, text)
    hash(key(text))


@given(TEXT, TEXT)
def test_equivalence_is_symmetric(a, b):
    assert equivalent(a, b) == equivalent(b, a)


@given(INTEGERS, st.integers(1, 10**4))
def test_fractions_are_compared_exactly(p, q):
    latex = rf"\frac{{{p}}}{{{q}}}"
    assert equivalent(latex, f"{p}/{q}")
    assert key(latex) == Fraction(p, q)
    assert not equivalent(latex, rf"\frac{{{p * 10 + 1}}}{{{q * 10}}}")


@given(INTEGERS, st.integers(0, 6))
def test_decimals_are_fractions(p, places):
    decimal = f"{p / 10**places:.{places}f}"
    assert equivalent(decimal, f"{p}/{10**places}")


@given(st.lists(INTEGERS, min_size=2, max_size=5), st.randoms())
def test_order_counts_in_tuples_alone(numbers, random):
    mixed = random.sample(numbers, len(numbers))
    row, other = ",".join(map(str, numbers)), ", ".join(map(str, mixed))
    assert equivalent(rf"\{{{row}\}}", rf"\left\{{ {other} \right\}}")
    assert equivalent(f"({row})", f"({other})") == (numbers == mixed)


@given(TEXT)
def test_a_balanced_text_survives_its_box(text):
    body = text.replace("{", "").replace("}", "").replace("\\", "")
    assert last_boxed(rf"first \boxed{{0}}, last \boxed{{{{{body}}}}} end") == f"{{{body}}}"


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 20_000, "(" * 20_000, "(1," * 99, "\\{" * 149, "9" * 5000, "1e999999999"]
)
def test_hostile_texts_end_quickly(text):
    extract(text)
    assert equivalent(text, text)
