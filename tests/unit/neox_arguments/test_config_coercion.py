from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.coerce import Mismatch, coerce, describe, parse_number

CHOICES = Literal["HFTokenizer", "CharLevelTokenizer"]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("1e-8", float, 1e-8),
        ("6e-4", float | None, 6e-4),
        ("12", int, 12),
        ("1e5", int, 100_000),
        (3, float, 3.0),
        ("hftokenizer", CHOICES, "HFTokenizer"),
        ([1, "2e-1"], list[float], [1.0, 0.2]),
        ((1, 2), list[int], [1, 2]),
        ("global", list | str | None, "global"),
        (2.5, int | float | None, 2.5),
        (True, bool, True),
        (None, int, None),
        (None, bool, None),
        ("anything", Any, "anything"),
    ],
)
def test_a_value_takes_the_type_of_its_field(value, annotation, expected):
    result = coerce(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, int, "a whole number"),
        (True, float, "a number"),
        (1, bool, "true or false"),
        (2.5, int, "a whole number"),
        ("many", int, "a whole number"),
        ("nan", float, "a number"),
        ("1e400", float, "a number"),
        ("data", list[str], "a list of texts"),
        ([1, "x"], list[float], "a list of numbers"),
        ([1.0, None], list[float], "a list of numbers"),
        (5, str, "text"),
        ("x", dict[str, Any], "a section (key: value pairs)"),
        ("gpt", CHOICES, "one of HFTokenizer, CharLevelTokenizer"),
        (True, Literal["fp16", "fp32"], "one of fp16, fp32"),
        ("x", int | float | None, "a number"),
    ],
)
def test_another_type_is_refused_with_the_expected_one_in_words(value, annotation, expected):
    with pytest.raises(Mismatch) as caught:
        coerce(value, annotation)
    assert str(caught.value) == expected
    assert describe(annotation) == expected


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (float("inf"), float, "a finite number"),
        (float("inf"), int | float | None, "a finite number"),
        (10**20, int | float | None, "a number of at most 9223372036854775807"),
        (float("nan"), float | None, "a finite number"),
        (2**63, int, "a number of at most 9223372036854775807"),
        (10**400, float, "a number of at most 9223372036854775807"),
        ("1" + "0" * 400, int, "a whole number"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(value, annotation, expected):
    with pytest.raises(Mismatch) as caught:
        coerce(value, annotation)
    assert str(caught.value) == expected


def test_long_whole_numbers_keep_all_their_digits():
    assert coerce("9007199254740993", int) == 2**53 + 1  # the first that no float holds


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_text_of_a_number_is_that_number(number):
    assert parse_number(repr(number)) == number


@given(st.text(alphabet="abcxyz_ /", max_size=8))
def test_text_that_is_no_number_stays_text(text):
    assert parse_number(text) == text
