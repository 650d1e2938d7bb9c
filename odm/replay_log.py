"""Reads a run log and goes through the run once more; what the log must have is in `odm.replay`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arguments import some
from .constraints import Ceiling, Constraint, EpochCap, Floor, GroupLimits, TrustRegion
from .controller import MixtureController
from .guard import Guard
from .held_out import HeldOut
from .json_data import (
    Check,
    SchemaError,
    anything,
    fields,
    integer,
    logged_numbers,
    mapping_of,
    optional,
    parse_json,
    text,
)
from .mixers import make_mixer
from .rewards import Reward
from .saved_state import check_description
from .schedule import MAX_CURSOR, MixtureSchedule
from .signal import Signal
from .simplex import FloatArray, IntArray

__all__ = [
    "ReplayError",
    "RunLog",
    "by_domain",
    "controller_from_description",
    "find_log",
    "read_run_log",
    "replayed",
]

_MIXTURE = {
    "mixture": optional(check_description),
    "samples_per_epoch": optional(mapping_of(integer(0))),
    "train_iters": optional(integer(0)),
}
_EVENTS: dict[str, Check] = {
    "start": fields({}, _MIXTURE),
    "resume": fields({}, {"iteration": integer(0), **_MIXTURE}),
    "train": fields(
        {"iteration": integer(1)},
        {
            **dict.fromkeys(("weights", "losses", "tokens"), logged_numbers),
            "epochs": optional(logged_numbers),
            "cursors": optional(mapping_of(integer(0, MAX_CURSOR))),
        },
    ),
    "held_out": fields(
        {
            "iteration": integer(1),
            **dict.fromkeys((f.name for f in dataclasses.fields(HeldOut)), logged_numbers),
        }
    ),
}
_REPLAYABLE: dict[str, type[Constraint]] = {
    kind.name: kind for kind in (Floor, Ceiling, EpochCap, GroupLimits, Guard, TrustRegion)
}


class ReplayError(ValueError):
    """The log cannot be replayed; the message gives the reason."""


@dataclass(frozen=True)
class RunLog:
    """The part of a run log that a replay needs."""

    mixture: Mapping[str, Any]
    """Configuration of the mixture in the last start line."""
    iterations: Mapping[int, Mapping[str, Any]]
    """The valid train line of each iteration, ascending."""
    resumptions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Iteration after which a run resumed -> configuration of the resumed run, ascending."""
    sizes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Iteration after which a run began or resumed -> samples per epoch of its domains."""
    train_iters: int | None = None
    """Length of the run, if the log has it."""
    held_out: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Iteration -> the line of the measurement of held-out losses after it."""


def read_run_log(lines: Iterable[str]) -> RunLog:
    """Reads the lines of a run log.

    A line that was cut because the run was killed is left out: the last line, or one before the
    start or resume line of the next run. A second start line discards everything before it; a
    resume line with an ``iteration`` discards the earlier lines about later iterations.

    Raises:
        ReplayError: If another line is not an event, or there is no mixture; names line and field.
    """
    start: Mapping[str, Any] = {}
    iterations: dict[int, Mapping[str, Any]] = {}
    held_out: dict[int, Mapping[str, Any]] = {}
    resumptions: dict[int, Mapping[str, Any]] = {}
    torn: str | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except SchemaError as error:
            torn = torn or f"line {number}: {error}"
            continue
        try:
            fields({"event": text()})(record, "")
            _EVENTS.get(record["event"], anything)(record, "")
        except SchemaError as error:
            raise ReplayError(f"line {number}: {error}") from None
        event, iteration = record["event"], record.get("iteration")
        if event == "start":
            start, iterations, held_out, resumptions, torn = record, {}, {}, {}, None
        elif event == "resume" and iteration is not None:
            iterations = {n: kept for n, kept in iterations.items() if n <= iteration}
            held_out = {n: kept for n, kept in held_out.items() if n <= iteration}
            resumptions = {n: kept for n, kept in resumptions.items() if n < iteration}
            resumptions[iteration] = record
            torn = None
        elif event in ("train", "held_out"):
            if torn is not None:
                raise ReplayError(torn)
            (iterations if event == "train" else held_out)[iteration] = record
    if not start.get("mixture"):
        raise ReplayError("no start line with a mixture: the run had no mixture or the log is cut")
    begun = {0: start, **resumptions}
    lengths = [line["train_iters"] for line in begun.values() if line.get("train_iters")]
    return RunLog(
        start["mixture"],
        dict(sorted(iterations.items())),
        {n: line["mixture"] for n, line in resumptions.items() if line.get("mixture")},
        {
            n: line["samples_per_epoch"]
            for n, line in begun.items()
            if line.get("samples_per_epoch")
        },
        lengths[-1] if lengths else None,
        held_out,
    )


def controller_from_description(mixture: Mapping[str, Any]) -> MixtureController:
    """Builds a controller from a description by ``MixtureController.describe``.

    Raises:
        ReplayError: If a constraint is unknown, or an option has another type.
        ValueError: If the method or an option is unknown or wrong.
    """
    try:
        check_description(mixture, "mixture")
        return _controller_from(mixture)
    except TypeError as error:  # the class does not accept an option's name or type
        raise ReplayError(f"mixture: options that do not fit: {error}") from error


def _controller_from(mixture: Mapping[str, Any]) -> MixtureController:
    constraints = []
    for options in mixture.get("constraints", ()):
        kind = _REPLAYABLE.get(options["name"])
        if kind is None:
            raise ReplayError(
                f"constraint {options['name']!r} is not known; replay supports "
                f"{', '.join(sorted(_REPLAYABLE))}"
            )
        constraints.append(kind(**{key: v for key, v in options.items() if key != "name"}))
    domains = mixture["domains"]
    return MixtureController(
        domains,
        make_mixer(mixture["method"], **mixture.get("options", {})),
        MixtureSchedule(mixture.get("seed", 0), len(domains)),
        constraints,
        reward=Reward(**mixture.get("reward", {})),
        initial_weights=mixture.get("initial_weights"),
        warmup_steps=mixture.get("warmup_steps", 0),
        update_frequency=mixture.get("update_frequency", 1),
        total_steps=mixture.get("total_steps"),
    )


def replayed(
    log: RunLog,
    *,
    changes: Callable[[Mapping[str, int] | None], Mapping[str, Any]] | None = None,
) -> Iterator[tuple[int, Mapping[str, Any], MixtureController]]:
    """Goes through a run once more, with a controller that observes the logged losses.

    Args:
        log: The run log.
        changes: Makes entries that replace those of the run's configuration, for another method,
            from the sizes of the domains (samples per epoch, None if the log has none). Both may
            change where the run was resumed. The weights with which a step was drawn are then those
            of the log.

    Yields:
        Iteration, train line, and the controller before it observes the losses of this line: its
        weights are those of this iteration's draw.

    Raises:
        ReplayError: If an iteration with a due update is missing, or a line lacks a domain.
    """
    previous, sizes = 0, log.sizes.get(0)
    changed = changes(sizes) if changes else {}
    controller = controller_from_description({**log.mixture, **changed})
    resumptions = list(log.resumptions.items())
    for iteration, record in log.iterations.items():
        while resumptions and resumptions[0][0] < iteration:
            resumed_after, mixture = resumptions.pop(0)
            _require_no_gap(controller, previous, resumed_after + 1)
            previous, sizes = resumed_after, log.sizes.get(resumed_after, sizes)
            changed = changes(sizes) if changes else {}
            controller = _continued(controller, {**mixture, **changed})
        _require_no_gap(controller, previous, iteration)
        yield iteration, record, controller
        cursors = _cursors(record, sizes, controller)
        drawn_with = by_domain(record, "weights", controller.domains) if changes else None
        controller.adopt_draw(iteration, weights=drawn_with, cursors=cursors)
        measured = _measured(log.held_out.get(iteration), controller.domains)
        controller.observe(iteration, _observed(record, controller), held_out=measured)
        previous = iteration


def _cursors(
    record: Mapping[str, Any], sizes: Mapping[str, int] | None, controller: MixtureController
) -> IntArray | None:
    """Samples of each domain that had been drawn after a logged iteration, shape (K,).

    ``epochs`` are the quotients of cursors and sizes; below 2^50 samples the product is less than
    half a sample off.

    Raises:
        ReplayError: If the log does not tell although a limit depends on it.
    """
    domains = controller.domains
    if record.get("cursors") is not None:
        return by_domain(record, "cursors", domains).astype(np.int64)
    if record.get("epochs") is not None and sizes is not None and set(sizes) == set(domains):
        drawn = by_domain(record, "epochs", domains) * [sizes[name] for name in domains]
        if ((drawn >= 0) & (drawn <= MAX_CURSOR)).all():
            return np.rint(drawn).astype(np.int64)
    parts = [f"constraint {x.name!r}" for x in controller.constraints if x.depends_on_cursors]
    if controller.mixer.depends_on_cursors:
        parts.append(f"method {controller.mixer.name!r} with these options")
    if parts:
        raise ReplayError(
            f"iteration {record['iteration']}: {parts[0]} depends on the cursors of the run, which "
            "the log does not contain (cursors, or epochs and samples_per_epoch)"
        )
    return None


def _continued(controller: MixtureController, mixture: Mapping[str, Any]) -> MixtureController:
    """The controller of a resumed run: its settings, with the state of the previous controller."""
    if mixture == controller.describe():
        return controller
    resumed = controller_from_description(mixture)
    resumed.load_state_dict(controller.state_dict())
    return resumed


def _require_no_gap(controller: MixtureController, previous: int, iteration: int) -> None:
    method = controller.mixer.method
    if not (method.learns or method.follows_steps or controller.constraints):
        return  # its weights never move
    skipped = previous + 1
    every_step = controller.constraints or method.every_step
    if not every_step:  # the next step whose losses change the weights
        frequency = controller.update_frequency
        skipped = -(-max(skipped, controller.warmup_steps + 1) // frequency) * frequency
    if skipped < iteration:
        raise ReplayError(
            f"iteration {skipped} changed the weights but is not in the log (it goes from "
            f"{previous} to {iteration}); to replay a run, log every iteration (log_interval 1)"
        )


def _observed(record: Mapping[str, Any], controller: MixtureController) -> Signal | FloatArray:
    """What the trainer observed in a logged iteration."""
    losses = by_domain(record, "losses", controller.domains)
    losses[np.isinf(losses)] = np.nan  # after an overflow; the trainer dropped them too
    is_guarded = any(isinstance(limit, Guard) for limit in controller.constraints)
    if "tokens" not in record or not (controller.mixer.method.every_step or is_guarded):
        return losses
    tokens = by_domain(record, "tokens", controller.domains)
    return Signal.from_means(losses, np.where(np.isnan(losses), 0.0, tokens))


def _measured(record: Mapping[str, Any] | None, domains: Sequence[str]) -> HeldOut | None:
    """The held-out losses that the trainer measured after a logged iteration, if it did."""
    if record is None:
        return None
    try:
        return HeldOut.from_domains(record, domains)
    except ValueError as error:
        raise ReplayError(f"iteration {record['iteration']}: held_out: {error}") from None


def by_domain(record: Mapping[str, Any], field: str, domains: Sequence[str]) -> FloatArray:
    """Values of a ``{domain: number or null}`` field, shape (K,), nan for null.

    Raises:
        ReplayError: If the field does not name exactly these domains.
    """
    values = record.get(field)
    if not isinstance(values, dict) or set(values) != set(domains):
        raise ReplayError(
            f"iteration {record['iteration']}: {field} must name the domains {some(domains)}"
        )
    return np.array(
        [math.nan if values[name] is None else values[name] for name in domains], dtype=np.float64
    )


def find_log(path: str) -> str:
    """Returns the run log that ``path`` means: the file itself, or the one in a log or save folder.

    Raises:
        ReplayError: If the folder contains no run log.
    """
    if not os.path.isdir(path):
        return path
    places = [os.path.join(path, *parts) for parts in (("metrics.jsonl",), ("logs/metrics.jsonl",))]
    for place in places:
        if os.path.isfile(place):
            return place
    raise ReplayError("no run log here, nor in logs; give the run's metrics.jsonl or its folder")
