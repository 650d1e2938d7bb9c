"""Values of YAML as the types of fields."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from .bounds import LARGEST_WHOLE_NUMBER, LONGEST_NUMBER

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d+")


class Mismatch(ValueError):
    """A value is not of the expected type; the message says what was expected."""


def parse_number(value: Any) -> Any:
    """Reads text such as ``1e-8`` as a number; returns everything else as it is.

    YAML 1.1 takes a number without a dot but with an exponent for text. Text of a number that no
    float can hold, or of more than ``LONGEST_NUMBER`` characters, stays text.
    """
    if not isinstance(value, str) or len(value) > LONGEST_NUMBER:
        return value
    if not _NUMBER.fullmatch(value.strip()):
        return value
    number = float(value)
    if not math.isfinite(number):
        return value
    return int(value) if _WHOLE.fullmatch(value.strip()) else number


def coerce(value: Any, annotation: Any) -> Any:
    """Returns ``value`` as the type ``annotation``; ``None`` is allowed everywhere.

    Whole numbers become floats where a float is wanted, numeric text becomes a number, choices are
    found without regard to case, a bool is never a number, and neither is infinity.

    Raises:
        Mismatch: If the value has another type.
    """
    if value is None or annotation is Any:
        return value
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, annotation)
    if origin is Literal:
        return _coerce_choice(value, get_args(annotation))
    if annotation is list or origin is list:
        return _coerce_list(value, annotation)
    if annotation is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise Mismatch(describe(annotation))
        return dict(value)
    if annotation is bool or annotation is str:
        if not isinstance(value, annotation):
            raise Mismatch(describe(annotation))
        return value
    return _coerce_number(value, annotation)


def describe(annotation: Any) -> str:
    """Returns a type in words, for messages and documentation."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [describe(part) for part in get_args(annotation) if part is not type(None)]
        return " or ".join(parts)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin is list:
        inner = {str: "texts", int: "whole numbers", float: "numbers"}.get(get_args(annotation)[0])
        return f"a list of {inner}" if inner else "a list"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
    }
    if annotation is dict or origin is dict:
        return "a section (key: value pairs)"
    return words.get(annotation, "any value")


def _coerce_union(value: Any, annotation: Any) -> Any:
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if len(parts) == 1:
        return coerce(value, parts[0])
    for part in parts:
        try:
            return coerce(value, part)
        except Mismatch:
            continue
    raise Mismatch(describe(annotation))


def _coerce_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        same_type = isinstance(value, type(choice))
        if same_type and (value == choice or str(value).lower() == str(choice).lower()):
            return choice
    raise Mismatch("one of " + ", ".join(str(choice) for choice in choices))


def _coerce_list(value: Any, annotation: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Mismatch(describe(annotation))
    inner = get_args(annotation)
    if not inner:
        return list(value)
    if any(item is None for item in value):
        raise Mismatch(describe(annotation))
    try:
        return [coerce(item, inner[0]) for item in value]
    except Mismatch:
        raise Mismatch(describe(annotation)) from None


def _coerce_number(value: Any, annotation: type) -> int | float:
    number = parse_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Mismatch(describe(annotation))
    if isinstance(number, float) and not math.isfinite(number):
        raise Mismatch("a finite number")
    if abs(number) > LARGEST_WHOLE_NUMBER and (annotation is int or isinstance(number, int)):
        raise Mismatch(f"a number of at most {LARGEST_WHOLE_NUMBER}")
    if annotation is float:
        return float(number)
    if isinstance(number, float) and not number.is_integer():
        raise Mismatch(describe(annotation))
    return int(number)
