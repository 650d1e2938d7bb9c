"""The base class of errors that a user can fix."""

from __future__ import annotations

import pytest

from megatron.errors import CheckpointError, TaskError, UserError
from megatron.neox_arguments import ConfigError


@pytest.mark.parametrize("kind", [UserError, CheckpointError, ConfigError])
def test_a_line_break_in_a_name_does_not_break_the_line(kind):
    assert str(kind("a\nb: is not\r\na key")) == r"a\nb: is not\na key"


def test_a_word_of_thousands_of_characters_is_shortened():
    assert str(UserError(f"x: {'a' * 5000} is too long")) == (
        f"x: {'a' * 100}...{'a' * 100} is too long"
    )


def test_several_messages_are_one_line_each():
    assert str(TaskError("one\n", "two")) == "one\ntwo"
