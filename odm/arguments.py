"""Checks what a caller passes: whole numbers, lists of names and arrays of numbers."""

from __future__ import annotations

import reprlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .json_data import MAX_INTEGER, is_number, plain
from .wording import counted, shown

__all__ = [
    "check_kind",
    "check_one_per_domain",
    "new_step",
    "number_array",
    "refuse_argument",
    "some",
    "whole_number",
    "whole_numbers",
    "wrong_values",
]

_MOST_SHOWN = 10


def refuse_argument(where: str, must: str, value: Any) -> NoReturn:
    """Raises the error for an argument that is not allowed; the value is shortened."""
    raise ValueError(f"{where} must be {must}, got {shown(value)}")


def whole_number(where: str, value: Any, low: int = 0, high: int = MAX_INTEGER) -> int:
    """Returns an argument as an int; 2.0 and numpy's integers count, True and '2' do not.

    Args:
        where: Beginning of the message, with the name of the argument.
        value: The argument.
        low: The smallest value allowed.
        high: The largest value allowed.

    Raises:
        ValueError: If it is not a whole number in [low, high].
    """
    if type(value) is int and low <= value <= high:  # the common case, in every step
        return value
    number = plain(value) if is_number(value) else value
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int or not low <= number <= high:
        is_open = high == MAX_INTEGER and not (type(number) is int and number > high)
        limits = f"of at least {low}" if is_open else f"from {low} to {high}"
        refuse_argument(where, f"a whole number {limits}", value)
    return number


def new_step(where: str, step: Any, *, after: int) -> int:
    """Returns a step as an int, after a check that it is not one that has ended.

    A step that is observed twice would count twice, and a method would take its number of steps for
    another one.

    Args:
        where: Beginning of the message.
        step: The step, counted from 1.
        after: The last step that has ended.
    """
    number = whole_number(f"{where}: step", step, 1)
    if number <= after:
        raise ValueError(
            f"{where}: step {number} comes after step {after}, which has ended; draw and observe "
            f"each step once, in ascending order: the next one is {after + 1}"
        )
    return number


def whole_numbers(where: str, values: Any, low: int = 0) -> tuple[int, ...]:
    """Returns a list, tuple or array of whole numbers as a tuple; see ``whole_number``."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        refuse_argument(where, "a list of whole numbers", values)
    return tuple(whole_number(f"{where}[{place}]", item, low) for place, item in enumerate(values))


def number_array(where: str, values: ArrayLike) -> NDArray[np.float64]:
    """Copies numbers into a float64 array; its shape is for the caller to check.

    Raises:
        ValueError: If they are not real numbers. Its cause is numpy's or torch's own error, which
            tells what to do with a tensor on a GPU.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where} must be numbers, got {shown(values)}") from error


def check_one_per_domain(where: str, given: int, num_domains: int) -> None:
    """Raises a ``ValueError`` unless a list that a caller gave has one number per domain.

    Args:
        where: Names the list.
        given: Its length.
        num_domains: Number of domains K of the run.
    """
    if given != num_domains:
        raise ValueError(
            f"{where} has {counted(given, 'number')}, the run has "
            f"{counted(num_domains, 'domain')}; give one per domain"
        )


def check_kind(where: str, value: Any, kind: type, *, example: str) -> None:
    """Raises a ``ValueError`` for an argument that is not an object of a class of this library."""
    if not isinstance(value, kind):
        refuse_argument(where, f"a {kind.__name__}, such as {example}", value)


def some(values: Any) -> str:
    """A list for a message: the first ten values, and how many there are."""
    values = list(values)
    text = ", ".join(map(reprlib.repr, values[:_MOST_SHOWN]))
    return f"[{text}]" if len(values) <= _MOST_SHOWN else f"[{text}, ... ({len(values)} in all)]"


def wrong_values(values: NDArray[Any], is_right: NDArray[np.bool_]) -> str:
    """Values of shape (n,) for a message: all if they are few, else the first wrong one."""
    if values.size <= _MOST_SHOWN:
        return str(values.tolist())
    wrong = np.flatnonzero(~is_right)
    return f"{values[wrong[0]]} at place {wrong[0]} ({wrong.size} of {values.size} are wrong)"
