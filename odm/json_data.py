"""Reads, checks and copies JSON data that may be damaged or edited.

A check is a function of a value and its place, such as ``layout.tp``. It raises a `SchemaError`
that names the place, the allowed values and the value. Larger checks are composed of small ones:
``fields({"step": integer(0), "weights": list_of(number(0, 1))})``.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from .wording import LARGEST_SHOWN, counted, shown

Check = Callable[[Any, str], None]

MAX_DEPTH = 64
"""Maximum depth of nested lists and objects; our own files have less than ten levels."""
MAX_INTEGER = 2**63 - 1
_ROUNDING = 1e-9  # of a sum of probabilities
MAX_NUMBER = 1.7e308
MAX_BYTES = 1 << 26
"""Maximum size of a file, unless its reader sets another."""


class SchemaError(ValueError):
    """A value is not allowed; the message names its place."""


def refuse(where: str, must: str, value: Any) -> NoReturn:
    """Raises the `SchemaError` for a value that is not allowed."""
    place = f"{where}: " if where else ""
    raise SchemaError(f"{place}must be {must}, got {shown(value)}")


def anything(value: Any, where: str) -> None:
    """Accepts every value."""


def boolean(value: Any, where: str) -> None:
    """Accepts true and false."""
    if not isinstance(value, bool):
        refuse(where, "true or false", value)


def integer(low: int = 0, high: int = MAX_INTEGER) -> Check:
    """Makes a check that accepts whole numbers in [low, high]."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(where, f"a whole number from {low} to {high}", value)

    return check


def number(low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> Check:
    """Makes a check that accepts finite numbers in [low, high]."""

    def check(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            refuse(where, f"a number from {low:g} to {high:g}", value)

    return check


def logged_number(value: Any, where: str) -> None:
    """Accepts a number of a run log: null, a number, or NaN and infinity as text."""
    if value is None or (type(value) in (int, float) and abs(value) <= MAX_NUMBER):
        return
    if not (isinstance(value, str) and value in ("nan", "inf", "-inf")):
        refuse(where, "a number, null, 'nan', 'inf' or '-inf'", value)


def text(pattern: str = ".+", *, must: str = "text", as_file: bool = False) -> Check:
    """Makes a check that accepts valid Unicode text that a regular expression matches as a whole.

    Args:
        pattern: The regular expression; a dot also matches line ends.
        must: Description of the text, for the message.
        as_file: Whether to accept file names that are not UTF-8, in Python's form.
    """
    expression = re.compile(pattern, re.DOTALL)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not expression.fullmatch(value):
            refuse(where, must, value)
        try:
            value.encode("utf-8", "surrogateescape" if as_file else "strict")
        except UnicodeEncodeError:
            refuse(where, must, value)

    return check


def one_of(*values: Any) -> Check:
    """Makes a check that accepts one of the given JSON values, of the same type."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            refuse(where, " or ".join(map(repr, values)), value)

    return check


def optional(inner: Check) -> Check:
    """Makes a check that accepts null and what ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def list_of(inner: Check, length: int | None = None) -> Check:
    """Makes a check for lists, optionally of ``length``, whose values ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)):
            refuse(where, "a list", value)
        if length is not None and len(value) != length:
            raise SchemaError(f"{where}: must have {counted(length, 'value')}, got {len(value)}")
        for place, item in enumerate(value):
            inner(item, f"{where}[{place}]")

    return check


def probabilities(count: int) -> Check:
    """Makes a check for lists of ``count`` numbers, 0 or more, that sum to 1."""
    numbers = list_of(number(0, 1 + _ROUNDING), count)

    def check(value: Any, where: str) -> None:
        numbers(value, where)
        if abs(sum(value) - 1.0) > _ROUNDING:
            raise SchemaError(f"{where}: must sum to 1, got {sum(value):.12g}; it is damaged")

    return check


def mapping_of(inner: Check, key: Check | None = None) -> Check:
    """Makes a check for objects whose keys and values two checks accept."""
    of_key = text(must="a name") if key is None else key

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            refuse(where, "an object", value)
        for name, item in value.items():
            of_key(name, f"{where}: a key" if where else "a key")
            inner(item, _inside(where, name))

    return check


def fields(
    required: Mapping[str, Check], more: Mapping[str, Check] | None = None, *, closed: bool = False
) -> Check:
    """Makes a check for objects with certain fields.

    Args:
        required: Checks of required fields.
        more: Checks of optional fields.
        closed: Whether other fields are refused.
    """
    known = {**required, **(more or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            refuse(where, "an object", value)
        missing = [_inside(where, name) for name in required if name not in value]
        if missing:
            raise SchemaError(f"lacks {', '.join(missing)}")
        unknown = [name for name in value if name not in known]
        if closed and unknown:
            raise SchemaError(f"{_inside(where, shown(unknown[0]))}: not a field of this version")
        for name, inner in known.items():
            if name in value:
                inner(value[name], _inside(where, name))

    return check


def logged_numbers(value: Any, where: str) -> None:
    """Accepts objects whose values are `logged_number`; fast: run logs have millions of them."""
    if not isinstance(value, dict) or not all(map(_is_plain_entry, value, value.values())):
        mapping_of(logged_number)(value, where)


def _is_plain_entry(name: str, value: Any) -> bool:
    is_number = value is None or (type(value) in (int, float) and abs(value) <= MAX_NUMBER)
    return is_number and name != "" and name.isprintable()


def parse_json(content: str | bytes) -> Any:
    """Parses JSON of bounded depth, without NaN and without repeated names in an object.

    Raises:
        SchemaError: If the content is not such JSON.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_object_of)
    except RecursionError:
        raise SchemaError(f"is nested more than {MAX_DEPTH} levels deep") from None
    except SchemaError:
        raise
    except ValueError as error:  # also for bytes that are not text, and numbers of 5000 digits
        raise SchemaError(f"is not JSON ({error})") from None
    if _is_deeper(value, MAX_DEPTH):
        raise SchemaError(f"is nested more than {MAX_DEPTH} levels deep")
    return value


def read_json(
    path: str | os.PathLike[str],
    check: Check = anything,
    *,
    error: type[Exception] = SchemaError,
    what: str = "JSON file",
    advice: str = "the file is damaged",
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Reads a JSON file and checks it.

    Args:
        path: The file.
        check: Check of its content.
        error: Class of the error to raise; its message has one line.
        what: What the file is, for the message.
        advice: What to do, for the message.
        max_bytes: Larger files are refused.

    Raises:
        Exception: An ``error``, if the file cannot be read or its content is wrong.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise SchemaError(f"is larger than {max_bytes} bytes")
        value = parse_json(content)
        check(value, "")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: not a readable {what} ({reason}); {advice}") from problem
    return value


def copied(value: Any) -> Any:
    """Copies JSON data for every record, several times faster than ``copy.deepcopy``."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) if isinstance(item, (list, dict)) else item for item in value]
    return value


def plain(value: Any) -> Any:
    """Turns numpy's numbers, also inside tuples, into Python's numbers, which JSON can store."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    # does not import numpy, so that a configuration is checked before anything large is loaded
    return value.item() if type(value).__module__ == "numpy" and not value.shape else value


def is_number(value: Any) -> bool:
    """Whether a value of Python or numpy is a finite real number and not a bool."""
    value = plain(value)
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _refuse_constant(name: str) -> NoReturn:
    raise SchemaError(f"contains {name}, which is not valid JSON")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses repeated names, of which readers may take either value."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise SchemaError(f"contains {shown(twice)} twice in one object")
    return value


def _inside(where: str, name: Any) -> str:
    is_plain = isinstance(name, str) and name.isprintable() and len(name) <= LARGEST_SHOWN
    name = name if is_plain else shown(name)
    return f"{where}.{name}" if where else name


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, (dict, list))
        ]
    return bool(level)
