"""The run log ``metrics.jsonl``: one JSON object a line, readable after any crash.

Floats stand in their shortest exact form, so two runs are compared bit for bit. JSON has no NaN:
``"nan"``, ``"inf"`` and ``"-inf"`` stand for what a diverging run computes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odm.json_data import (
    Check,
    SchemaError,
    anything,
    fields,
    integer,
    logged_number,
    logged_numbers,
    mapping_of,
    optional,
    parse_json,
    text,
)

__all__ = ["RUN_LOG_NAME", "RunLogFile", "find_run_log", "plain_json", "read_run_log"]

RUN_LOG_NAME = "metrics.jsonl"

_MEASURED = fields(
    {
        "iteration": integer(0),
        "domains": mapping_of(
            fields(
                {"loss": logged_number},
                {"perplexity": logged_number, "bits_per_byte": logged_number},
            )
        ),
    }
)
_EVENT = fields({"event": text(must="the kind of the event")}, {"iteration": optional(integer(0))})
_EVENTS: dict[str, Check] = {
    "start": fields({}, {"samples_per_epoch": mapping_of(integer(0)), "iteration": integer(0)}),
    "resume": fields({}, {"samples_per_epoch": mapping_of(integer(0)), "iteration": integer(0)}),
    "train": fields(
        {"iteration": integer(0)},
        dict.fromkeys(
            ("weights", "losses", "tokens", "epochs", "rewards"), optional(logged_numbers)
        ),
    ),
    "validation": _MEASURED,
    "test": _MEASURED,
}
"""What is read of the events; other fields are for people."""

_ENCODER = json.JSONEncoder(allow_nan=False)
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunLogFile:
    """Appends events to a run log."""

    def __init__(self, path: Path) -> None:
        """Opens ``path``, made with its folder where missing; closes a line that a crash tore."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)
        if _ends_inside_line(path):
            self._file.write(b"\n")

    def append(self, event: Mapping[str, Any]) -> None:
        """Writes one line in one call: a kill leaves the line or its start, never a mixture.

        Raises:
            OSError: If the disk is full; a part of the line may have been written then.
        """
        line = _line(event)
        while line:  # a disk that fills up takes a part, and refuses the rest with an error
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def find_run_log(path: Path) -> Path:
    """Returns the run log that ``path`` means: the file, its folder, or a ``save`` folder.

    Raises:
        FileNotFoundError: With the places that were looked at.
    """
    places = [path, path / RUN_LOG_NAME, path / "logs" / RUN_LOG_NAME]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{path}: no run log here (looked for {RUN_LOG_NAME} and logs/{RUN_LOG_NAME}); give the "
        "run's save or log folder"
    )


def read_run_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a run log as one history.

    The later line of a repeated iteration counts. A ``start`` or ``resume`` event at iteration N
    takes back everything after N: these iterations were lost with the process that ran them. A
    line that a crash tore is left out.

    Args:
        path: The file, or a folder that `find_run_log` understands.

    Returns:
        The events, in the order of the file.

    Raises:
        FileNotFoundError: If there is no run log.
        ValueError: If a line that no crash can explain is no event; names line and field.
    """
    file = find_run_log(Path(path))
    history: dict[tuple[str, int], dict[str, Any]] = {}
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        event = _parse(line, where=f"{file}:{number}", is_last=number == len(lines))
        if event is None:
            continue
        if event["event"] in ("start", "resume"):
            first = event.get("iteration", 0)
            history = {key: old for key, old in history.items() if old.get("iteration", 0) <= first}
        is_measured = event["event"] in ("train", "validation", "test")
        key = (event["event"], event["iteration"]) if is_measured else ("line", number)
        history.pop(key, None)
        history[key] = event
    return list(history.values())


def _parse(line: bytes, *, where: str, is_last: bool) -> dict[str, Any] | None:
    """Parses a line; None for an empty one and for one that a crash cut short.

    Nothing follows the last line of a file whose process was killed, not even the line's end.
    """
    line = line.strip(b" \r\0")  # a file system may fill the end with zeros after a power cut
    if not line:
        return None
    try:
        event = parse_json(line)
    except SchemaError as error:
        if is_last or (line.startswith(b"{") and line.count(b"{") > line.count(b"}")):
            return None
        raise ValueError(
            f"{where}: no event of a run log ({error}); the file is damaged here, remove this line"
        ) from None
    try:
        _EVENT(event, "")
        _EVENTS.get(event["event"], anything)(event, "")
    except SchemaError as error:
        raise ValueError(
            f"{where}: no event of a run log: {error}; the file is damaged here, remove this line"
        ) from None
    return _restored(event)


def _line(event: Mapping[str, Any]) -> bytes:
    try:
        text = _ENCODER.encode(event)
    except (TypeError, ValueError):  # numpy's numbers, or not finite: rare, and ten times as slow
        text = _ENCODER.encode(plain_json(event))
    return text.encode() + b"\n"


def plain_json(value: Any) -> Any:
    """Turns ``value`` into what JSON can hold: numpy's numbers, NaN and the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return plain_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return str(value)


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _ends_inside_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
