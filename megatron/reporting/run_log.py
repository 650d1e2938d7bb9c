"""The run log ``metrics.jsonl``: one JSON object per line, readable after any crash.

Floats are written in their shortest exact form, so two runs can be compared bit for bit. JSON has
no NaN and no infinity: a diverging run's are written as ``"nan"``, ``"inf"`` and ``"-inf"``.
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
            ("weights", "losses", "mean_losses", "tokens", "epochs", "rewards"),
            optional(logged_numbers),
        ),
    ),
    "held_out": fields({"iteration": integer(0)}, {"mean_loss": logged_numbers}),
    "validation": _MEASURED,
    "test": _MEASURED,
}
"""The fields of events that programs read; other fields are for people."""

_ENCODER = json.JSONEncoder(allow_nan=False)
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunLogFile:
    """Appends events to a run log."""

    def __init__(self, path: Path) -> None:
        """Opens ``path``, and creates it if it is missing; ends a line that a crash cut."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)
        if _ends_inside_line(path):
            self._file.write(b"\n")

    def append(self, event: Mapping[str, Any]) -> None:
        """Writes one line in one call: after a kill, the line or only its beginning is in the file.

        Raises:
            OSError: If the disk is full; part of the line may have been written.
        """
        line = _line(event)
        while line:  # a full disk accepts part of the line, and raises an error for the rest
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def find_run_log(path: Path) -> Path:
    """Returns the run log that ``path`` means: the file, its folder, or a ``save`` folder.

    Raises:
        FileNotFoundError: If there is none; names the places where it was looked for.
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
    """Reads a run log, and removes what a later line replaces.

    If an iteration is repeated, its later line counts. A ``start`` or ``resume`` event at iteration
    N cancels every earlier event after N: these iterations were lost with the process that ran
    them. A line that a crash cut is left out.

    Args:
        path: The file, or a folder in which `find_run_log` finds it.

    Returns:
        The events, in the order of the file.

    Raises:
        FileNotFoundError: If there is no run log.
        ValueError: If a line is not an event and no crash explains it; names line and field.
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
        is_measured = event["event"] in ("train", "held_out", "validation", "test")
        key = (event["event"], event["iteration"]) if is_measured else ("line", number)
        history.pop(key, None)
        history[key] = event
    return list(history.values())


def _parse(line: bytes, *, where: str, is_last: bool) -> dict[str, Any] | None:
    """Parses a line; None if it is empty or was cut by a crash.

    A killed process leaves at most one cut line: the last one, without a line end.
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
            f"{where}: not an event of a run log ({error}); the file is damaged: remove this line"
        ) from None
    try:
        _EVENT(event, "")
        _EVENTS.get(event["event"], anything)(event, "")
    except SchemaError as error:
        raise ValueError(
            f"{where}: not an event of a run log: {error}; the file is damaged: remove this line"
        ) from None
    if event.get("iteration", 0) is None:
        del event["iteration"]
    return _restored(event)


def _line(event: Mapping[str, Any]) -> bytes:
    try:
        text = _ENCODER.encode(event)
    except (TypeError, ValueError):  # numpy's numbers, or not finite: rare, and ten times slower
        text = _ENCODER.encode(plain_json(event))
    return text.encode() + b"\n"


def plain_json(value: Any) -> Any:
    """Turns ``value`` into JSON data: numpy's numbers into Python's, NaN and the rest into text."""
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
