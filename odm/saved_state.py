"""Checks a controller's saved state before any part of it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arguments import some
from .guard import check_guard_state
from .json_data import (
    Check,
    SchemaError,
    anything,
    boolean,
    fields,
    integer,
    list_of,
    mapping_of,
    number,
    optional,
    probabilities,
    refuse,
    text,
)
from .methods import METHODS
from .mixers import Mixer, known_mixers, make_mixer
from .rewards import check_reward
from .schedule import MAX_CURSOR, MAX_KEY
from .simplex import FloatArray, check_domains, check_weights, normalize
from .wording import shown

__all__ = [
    "SCHEMA_VERSION",
    "check_description",
    "check_saved_state",
    "check_stored_state",
    "count_updates",
]

SCHEMA_VERSION = 1

_ROUNDING = 1e-9
"""Tolerance for a sum of K probabilities, and for weights recomputed on another machine."""

_DESCRIPTION = fields(
    {"domains": list_of(text(must="a name")), "method": text(must="the name of a method")},
    {
        "options": mapping_of(anything),
        "initial_weights": list_of(number(0)),
        "warmup_steps": integer(0),
        "update_frequency": integer(1),
        "total_steps": optional(integer(1)),
        "reward": check_reward,
        "constraints": list_of(fields({"name": text(must="the name of a constraint")})),
        "seed": integer(0, MAX_KEY - 1),
        "stratified": boolean,
    },
)


def check_description(description: Any, where: str) -> None:
    """Checks a description by ``MixtureController.describe``; see `odm.json_data.Check`."""
    _DESCRIPTION(description, where)
    domains = description["domains"]
    try:
        check_domains(domains)
        if "initial_weights" in description:
            check_weights(description["initial_weights"], len(domains), where="initial_weights")
    except ValueError as error:
        raise SchemaError(f"{where}.{error}") from None


def check_saved_state(state: Any, domains: Sequence[str], mixer: Mixer) -> Mapping[str, Any]:
    """Raises an error for a state that a controller cannot continue from.

    Args:
        state: A state, as ``MixtureController.state_dict`` returns it.
        domains: Names of the controller's domains, in its order.
        mixer: The controller's mixer.

    Returns:
        The configuration with which the state was made.

    Raises:
        SchemaError: If the state is of another schema, method or list of domains, or damaged.
    """
    configuration = _configuration(state)
    _refuse_other_domains(configuration["domains"], domains)
    if configuration["method"] != mixer.name:
        raise SchemaError(
            f"the state was made by method {configuration['method']!r}, this run uses "
            f"{mixer.name!r}; continue with the same method or start without the state"
        )
    _check_numbers(state, configuration, mixer)
    return configuration


def check_stored_state(state: Any) -> None:
    """Checks a state alone, before it is known which controller will continue from it.

    If the method is not registered (the user's own module may not be loaded), its part of the state
    is not checked.

    Raises:
        SchemaError: If the state is of another schema or damaged.
    """
    configuration = _configuration(state)
    is_known = configuration["method"] in known_mixers()
    _check_numbers(state, configuration, _saved_mixer(configuration) if is_known else None)


def count_updates(state: Mapping[str, Any], mixer: Mixer) -> int:
    """Number of updates of the mixer in a checked state; 0 before the first.

    Early versions did not count updates; for their states, 1 means that the mixer has changed.

    Args:
        state: A state that has passed `check_saved_state`.
        mixer: The controller's mixer.
    """
    if "updates" in state:
        return state["updates"]
    configuration = state["configuration"]
    if "initial_weights" not in configuration:
        return 1
    initial = np.array(configuration["initial_weights"], dtype=np.float64)
    is_fresh = state["mixer"] == mixer.init(configuration["domains"], initial)
    return int(not (is_fresh and np.array_equal(state["proposal"], normalize(initial))))


def _saved_mixer(configuration: Mapping[str, Any]) -> Mixer:
    """The mixer of a state; options that have defaults do not matter for its checks."""
    method, options = configuration["method"], configuration.get("options", {})
    required = METHODS[method].required if method in METHODS else ()
    try:
        return make_mixer(method, **{name: options[name] for name in required if name in options})
    except ValueError as error:
        raise SchemaError(f"configuration.options: {error}") from None


def _configuration(state: Any) -> Mapping[str, Any]:
    """The configuration of a state, after a check that all fields exist."""
    fields({"schema_version": anything})(state, "")
    if state["schema_version"] != SCHEMA_VERSION or state["schema_version"] is True:
        raise SchemaError(
            f"schema_version: is {shown(state['schema_version'])}, this version supports "
            f"{SCHEMA_VERSION}; load it with the version that wrote it"
        )
    fields({"configuration": check_description, "step": integer(0)})(state, "")
    return state["configuration"]


def _check_numbers(
    state: Mapping[str, Any], configuration: Mapping[str, Any], mixer: Mixer | None
) -> None:
    """Checks types and ranges of all numbers, and that they can belong to the same state."""
    num_domains = len(configuration["domains"])
    weights = probabilities(num_domains)
    check = fields(
        {
            "weights": weights,
            "proposal": weights,
            "mixer": mapping_of(anything),
            "cursors": list_of(integer(0, MAX_CURSOR), num_domains),
        },
        {  # not written by early versions
            "planned": mapping_of(weights, _later_step(state["step"])),
            "updates": integer(0),
            "guard": check_guard_state(num_domains),
        },
    )
    check(state, "")
    if sum(state["cursors"]) > MAX_CURSOR:
        raise SchemaError(f"cursors: must sum to {MAX_CURSOR} at most")
    if not configuration.get("constraints", True):
        _refuse_difference(state["weights"], [state["proposal"]], "weights", "proposal")
    if mixer is not None:
        initial = np.array(configuration.get("initial_weights", [1.0] * num_domains))
        initial = initial.astype(np.float64)
        fields(mixer.state_fields(initial, state["step"]), closed=True)(state["mixer"], "mixer")
        follows = mixer.proposals(state["mixer"], initial)
        _refuse_difference(state["proposal"], follows, "proposal", "mixer")


def _later_step(step: int) -> Check:
    """Checks the key of a plan that was read ahead: a step after that of the state."""
    is_number = text("[1-9][0-9]{0,18}", must="a step")

    def check(value: Any, where: str) -> None:
        is_number(value, where)
        if not step < int(value) < MAX_KEY:
            refuse(where, f"a step after {step}", value)

    return check


def _refuse_difference(
    values: Sequence[float], candidates: Sequence[FloatArray | Sequence[float]], *names: str
) -> None:
    """Raises an error if ``values`` are none of the candidates; not if there are none."""
    if not candidates:
        return
    if not any(np.allclose(values, known, rtol=0.0, atol=_ROUNDING) for known in candidates):
        raise SchemaError(f"{names[0]}: does not follow from {names[1]}; the state is damaged")


def _refuse_other_domains(saved: Sequence[str], current: Sequence[str]) -> None:
    if list(saved) == list(current):
        return
    gone = sorted(set(saved) - set(current))
    new = sorted(set(current) - set(saved))
    parts = [
        f"{who} has {some(names)}"
        for who, names in (("the state", gone), ("this run", new))
        if names
    ]
    what = ", ".join(f"only {part}" for part in parts)
    if not parts:
        what = f"the order was {some(saved)}, now {some(current)}"
    raise SchemaError(f"the state is for other domains: {what}")
