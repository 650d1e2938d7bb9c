"""Checks of a controller's saved state before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
_STATE_KEYS = ("configuration", "step", "weights", "proposal", "mixer", "cursors")


def check_saved_state(
    state: Mapping[str, Any], domains: Sequence[str], *, method: str, fresh: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Refuses a state that a controller cannot continue from.

    Args:
        state: What ``MixtureController.state_dict`` gave.
        domains: Names of the controller, in its order.
        method: Name of the controller's mixer.
        fresh: State of this mixer before its first update, for names, lengths and numbers.

    Returns:
        The configuration that made the state.

    Raises:
        ValueError: If the state is of another schema, method or list of domains, or torn.
    """
    if state.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"controller: the state has schema version {state.get('schema_version')!r}, this "
            f"version reads {SCHEMA_VERSION}; load it with the version that wrote it"
        )
    _refuse_torn(state)
    step = state["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"controller: the state is of step {step!r}, must be a number from 0 on")
    configuration: Mapping[str, Any] = state["configuration"]
    _refuse_other_domains(configuration["domains"], domains)
    if configuration["method"] != method:
        raise ValueError(
            f"controller: the state was made by method {configuration['method']!r}, this run uses "
            f"{method!r}; go on with the same method or start without the state"
        )
    mixer_state = state["mixer"]
    for key in sorted(set(fresh) | set(mixer_state)):
        known = key in fresh and key in mixer_state
        if not known or not _fits(fresh[key], mixer_state[key]):
            raise ValueError(
                f"controller: field {key!r} of the {method} state does not fit "
                f"{len(domains)} domains; the state is torn or from another version"
            )
    return configuration


def copied(value: Any) -> Any:
    """Copies JSON data; several times as fast as ``copy.deepcopy``, and called for every record."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) if isinstance(item, (list, dict)) else item for item in value]
    return value


def plain(value: Any) -> Any:
    """Turns numpy's numbers, also within tuples, into Python's, which JSON takes."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _refuse_torn(state: Mapping[str, Any]) -> None:
    missing = [key for key in _STATE_KEYS if key not in state]
    for key in ("configuration", "mixer"):
        if key in state and not isinstance(state[key], Mapping):
            missing.append(f"fields of {key}")
    if not missing:
        configuration = state["configuration"]
        needed = ("domains", "method")
        missing = [f"configuration.{key}" for key in needed if key not in configuration]
    if missing:
        raise ValueError(f"controller: the state lacks {', '.join(missing)}; it is torn")


def _refuse_other_domains(saved: Sequence[str], current: Sequence[str]) -> None:
    if list(saved) == list(current):
        return
    gone = sorted(set(saved) - set(current))
    new = sorted(set(current) - set(saved))
    if gone or new:
        what = f"the state has {gone} that this run lacks, this run has {new} that it lacks"
    else:
        what = f"the order was {list(saved)}, now {list(current)}"
    raise ValueError(f"controller: the state is for other domains: {what}")


def _fits(fresh: Any, saved: Any) -> bool:
    """Whether a saved value has the length of a fresh one, and finite numbers where it has some."""
    if isinstance(fresh, list):
        return (
            isinstance(saved, list) and len(saved) == len(fresh) and all(map(_fits, fresh, saved))
        )
    if isinstance(fresh, float):
        is_number = isinstance(saved, (int, float)) and not isinstance(saved, bool)
        return is_number and math.isfinite(saved)
    return True
