"""Values of YAML as the types of fields."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from .bounds import LARGEST_WHOLE_NUMBER, LONGEST_NUMBER

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_WORDS = {
    **{bool: "true or false", str: "text", list: "a list"},
    **{int: "a whole number", float: "a number"},
}
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
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return _coerce_union(value, annotation)
    if origin is Literal:
        for choice in get_args(annotation):
            if type(value) is type(choice) and str(value).lower() == str(choice).lower():
                return choice
    elif origin is list and isinstance(value, (list, tuple)):
        return _coerce_list(value, annotation)
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif origin in (bool, str) and isinstance(value, origin):
        return value
    elif origin in (int, float):
        return _coerce_number(value, origin)
    raise Mismatch(describe(annotation))


def describe(annotation: Any) -> str:
    """Returns a type in words, for messages and documentation."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = [part for part in get_args(annotation) if part is not type(None)]
        if float in kinds and int in kinds:  # whole numbers stay whole; to the user both are one
            kinds.remove(int)
        return " or ".join(map(describe, kinds))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin is list:
        inner = {str: "texts", int: "whole numbers", float: "numbers"}.get(get_args(annotation)[0])
        return f"a list of {inner}" if inner else "a list"
    if annotation is dict or origin is dict:
        return "a section (key: value pairs)"
    return _WORDS.get(annotation, "any value")


def _coerce_union(value: Any, annotation: Any) -> Any:
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if len(parts) == 1:
        return coerce(value, parts[0])
    expected = describe(annotation)
    for part in parts:
        try:
            return coerce(value, part)
        except Mismatch as mismatch:
            if part is float and int in parts:  # says more, of infinity and of large numbers
                expected = str(mismatch)
    raise Mismatch(expected)


def _coerce_list(value: Sequence[Any], annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    try:
        items = [coerce(item, inner[0] if inner else Any) for item in value]
    except Mismatch:
        raise Mismatch(describe(annotation)) from None
    if inner and None in items:
        raise Mismatch(describe(annotation))
    return items


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
