"""Words for messages."""

import pytest

from odm.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("sample",), "0 samples"),
        (1, ("sample",), "1 sample"),
        (2, ("hidden file",), "2 hidden files"),
        (1, ("entry", "entries"), "1 entry"),
        (3, ("entry", "entries"), "3 entries"),
    ],
)
def test_a_number_has_the_right_form_of_its_word(number, words, expected):
    assert counted(number, *words) == expected
