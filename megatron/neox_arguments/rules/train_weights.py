"""What `train_data_weights` says besides a list: rules by size, a file, a schedule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odm.json_data import SchemaError, anything, fields, is_number, mapping_of, text

from ..coerce import parse_number
from ..declarations import Bound, above, at_least
from ..errors import ConfigError, shown
from ..parsing import parse_text
from ..schema import read_text
from ..sections import TrainWeighting
from .by_domain import NEEDS_NAMES, by_domain, wrong_sum
from .draft import Draft
from .saved_run import saved_sections

KEY = "train_data_weights"
_FILE = (str, Bound("the name of a file", lambda name: bool(name.strip())))
_RULES = {
    **dict.fromkeys(("temperature", "unimax"), (float, above(0))),
    **dict.fromkeys(("file", "schedule"), _FILE),
}
_UNITS = ("iterations", "tokens")
_INTERPOLATIONS = ("constant", "linear")

Point = tuple[float, tuple[float, ...]]
"""Iterations before the point, and one weight per domain."""


def resolve_weighting(draft: Draft, domains: Sequence[str]) -> TrainWeighting:
    """Returns how the training weights are found; a list or nothing is the rule `list`."""
    written = draft[KEY]
    if written is None or isinstance(written, list):
        return TrainWeighting()
    if draft["data_path"]:
        draft.refuse(KEY, "has no meaning with data_path; use train_data_paths")
        return TrainWeighting()
    if isinstance(written, str):
        return TrainWeighting(rule=written)
    if len(written) != 1 or next(iter(written)) not in _RULES or None in written.values():
        one = f"must have one of the keys {', '.join(_RULES)}, got {shown(written)}"
        draft.refuse(KEY, f"{one}; write a file of weights by domain as {{file: FILE}}")
        return TrainWeighting()
    ((rule, given),) = written.items()
    value = draft.typed_value(f"{KEY}.{rule}", given, _RULES[rule])
    if value is None:
        return TrainWeighting()
    if rule in ("file", "schedule"):
        return _of_file(draft, rule, value, domains)
    return TrainWeighting(rule=rule, value=value)


def weights_of_file(
    draft: Draft, weighting: TrainWeighting, domains: Sequence[str]
) -> tuple[float, ...]:
    """Returns the weights of a file, or those at the start of a schedule."""
    content = weighting.content
    if content is None:  # its issue is noted
        return (1.0,) * len(domains)
    if weighting.rule == "schedule":
        points = schedule_points(draft, weighting, domains, tokens_per_iteration=1.0)
        return points[0][1] if points else (1.0,) * len(domains)
    given = content.get("weights")
    weights = given if isinstance(given, Mapping) else content
    return _weights(draft, weights, domains, where=str(weighting.file))


def schedule_points(
    draft: Draft,
    weighting: TrainWeighting,
    domains: Sequence[str],
    *,
    tokens_per_iteration: float,
) -> tuple[Point, ...]:
    """Returns the points of a schedule, at iterations that need not be whole; empty without one."""
    if weighting.rule != "schedule" or weighting.content is None:
        return ()
    where, points = str(weighting.file), list[Point]()
    for number, entry in enumerate(weighting.content["schedule"], start=1):
        place = f"{where}: point {number}"
        at, weights = _point(draft, entry, place, tokens_per_iteration)
        if at is None:
            return ()
        if (points and at <= points[-1][0]) or (not points and at != 0):
            rule = "must be after the one before it" if points else "must be at 0"
            draft.issues.add(KEY, f"{place} {rule}, got {shown(entry)}; sort the points from 0 on")
            return ()
        points.append((at, _weights(draft, weights, domains, where=place)))
    return tuple(points)


def _of_file(draft: Draft, rule: str, name: str, domains: Sequence[str]) -> TrainWeighting:
    if not domains:
        draft.refuse(f"{KEY}.{rule}", NEEDS_NAMES)
        return TrainWeighting()
    saved = None if Path(name).exists() else _saved_by_run(draft, rule, domains)
    if saved is not None:
        draft.notes.append(
            f"{KEY}: {name} is missing; its content is that of the checkpoint in {draft['load']}"
        )
    try:
        digest, content = saved or _read(name)
        if rule == "schedule":
            _check_schedule(content, name)
    except ConfigError as error:
        draft.issues.add(KEY, f"{KEY}: {'; '.join(error.messages)}")
        return TrainWeighting(rule=rule, file=name)
    return TrainWeighting(rule=rule, file=name, sha256=digest, content=content)


def _read(name: str) -> tuple[str, dict[str, Any]]:
    """Digest and content of a file."""
    written = read_text(name)
    content = {key: value for key, value, _ in parse_text(written, name)}
    return hashlib.sha256(written.encode()).hexdigest(), content


def _saved_by_run(
    draft: Draft, rule: str, domains: Sequence[str]
) -> tuple[str, dict[str, Any]] | None:
    """Digest and content of the file as the newest checkpoint in `load` has them, or None."""
    weighting = fields({"rule": text(rule), "sha256": text(), "content": mapping_of(anything)})
    check = fields({"data": fields({"train_weighting": weighting, "train_domains": anything})})
    sections = saved_sections(draft)
    try:
        check(sections, "")
    except SchemaError:  # no checkpoint of such a run: the file itself is missed
        return None
    saved = sections["data"]
    if list(saved["train_domains"]) != list(domains):
        return None
    return saved["train_weighting"]["sha256"], saved["train_weighting"]["content"]


def _check_schedule(values: Mapping[str, Any], where: str) -> None:
    """Refuses a file that is no schedule at all."""
    points, kind = values.get("schedule"), values.get("interpolation", _INTERPOLATIONS[0])
    if not isinstance(points, list) or not points:
        raise ConfigError(
            f"{where}: must have schedule, a list of {{tokens or iterations, weights}}, got "
            f"{shown(points)}"
        )
    if kind not in _INTERPOLATIONS:
        raise ConfigError(
            f"{where}: interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {shown(kind)}"
        )


def _point(
    draft: Draft, entry: Any, where: str, tokens_per_iteration: float
) -> tuple[float | None, Any]:
    """Iteration and weights of a point; no iteration if the point is wrong."""
    units = [unit for unit in _UNITS if isinstance(entry, Mapping) and unit in entry]
    at: Any = parse_number(entry[units[0]]) if len(units) == 1 else None
    if not is_number(at) or at < 0 or set(entry) != {units[0], "weights"}:
        must = "must have weights and either tokens or iterations, at least 0"
        draft.issues.add(KEY, f"{where} {must}, got {shown(entry)}")
        return None, None
    return at / (tokens_per_iteration if units[0] == "tokens" else 1), entry["weights"]


def _weights(draft: Draft, given: Any, domains: Sequence[str], *, where: str) -> tuple[float, ...]:
    """One weight per domain from a section ``domain: weight``."""
    weights = by_domain(draft, KEY, given, domains, (float, at_least(0)), where=where)
    if weights and (problem := wrong_sum(weights)):
        draft.issues.add(KEY, f"{where}: the weights {problem}")
    return weights or (1.0,) * len(domains)
