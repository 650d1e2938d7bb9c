"""Recomputes a run's mixture weights from its run log, and compares them with the logged ones.

``python -m odm.replay metrics.jsonl`` prints the largest difference. The exit code is 0 if it is
within the tolerance, 1 if it is not, and 2 if the log cannot be replayed.

The log has one JSON object per line. A line with ``"event": "start"`` has ``"mixture"`` (what
``MixtureController.describe`` returns). Lines with ``"event": "train"`` have ``iteration``,
``weights`` (those of its draw) and ``losses`` (null for absent domains), the last two by domain
name, and ``tokens`` of the iteration for methods that count them. Where weights follow held-out
losses, lines with ``"event": "held_out"`` have what ``HeldOut.by_domain`` returns. If an iteration
appears twice, the later line counts. A line with ``"event": "resume"`` and a different
``"mixture"`` changes the settings from there on, as ``load_state_dict`` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .constraints import Ceiling, Constraint, Floor, GroupLimits, TrustRegion
from .controller import MixtureController
from .held_out import HeldOut
from .json_data import (
    Check,
    SchemaError,
    anything,
    fields,
    integer,
    logged_numbers,
    optional,
    parse_json,
    text,
)
from .mixers import make_mixer
from .rewards import Reward
from .saved_state import check_description
from .schedule import MixtureSchedule
from .signal import Signal
from .simplex import FloatArray

_MIXTURE = {"mixture": optional(check_description)}
_EVENTS: dict[str, Check] = {
    "start": fields({}, _MIXTURE),
    "resume": fields({}, {"iteration": integer(0), **_MIXTURE}),
    "train": fields(
        {"iteration": integer(1)},
        {"weights": logged_numbers, "losses": logged_numbers, "tokens": logged_numbers},
    ),
    "held_out": fields(
        {
            "iteration": integer(1),
            **dict.fromkeys((f.name for f in dataclasses.fields(HeldOut)), logged_numbers),
        }
    ),
}
_REPLAYABLE: dict[str, type[Constraint]] = {
    kind.name: kind for kind in (Floor, Ceiling, GroupLimits, TrustRegion)
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
    held_out: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Iteration -> the line of the measurement of held-out losses after it."""
    resumptions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Iteration after which a run resumed -> configuration of the resumed run, ascending."""


@dataclass(frozen=True)
class ReplayResult:
    """How much recomputed and logged weights differ."""

    num_iterations: int
    """Number of iterations that were compared."""
    largest_difference: float
    """Largest absolute difference of a weight."""
    iteration: int
    """Iteration of the largest difference; 0 if there is no difference."""
    domain: str
    """Domain of the largest difference; empty if there is no difference."""


def read_run_log(lines: Iterable[str]) -> RunLog:
    """Reads the lines of a run log.

    A line that was cut because the run was killed is left out: the last line, or one before the
    start or resume line of the next run. A second start line discards everything before it; a
    resume line with an ``iteration`` discards the earlier lines about later iterations.

    Raises:
        ReplayError: If another line is not an event, or there is no mixture; names line and field.
    """
    mixture: Mapping[str, Any] | None = None
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
            mixture, iterations, resumptions, torn = record.get("mixture"), {}, {}, None
            held_out = {}
        elif event == "resume" and iteration is not None:
            iterations = {n: kept for n, kept in iterations.items() if n <= iteration}
            held_out = {n: kept for n, kept in held_out.items() if n <= iteration}
            resumptions = {n: kept for n, kept in resumptions.items() if n < iteration}
            if record.get("mixture"):
                resumptions[iteration] = record["mixture"]
            torn = None
        elif event in ("train", "held_out"):
            if torn is not None:
                raise ReplayError(torn)
            (iterations if event == "train" else held_out)[iteration] = record
    if not mixture:
        raise ReplayError("no start line with a mixture: the run had no mixture or the log is cut")
    return RunLog(mixture, dict(sorted(iterations.items())), held_out, resumptions)


def controller_from_description(mixture: Mapping[str, Any]) -> MixtureController:
    """Builds a controller from a description by ``MixtureController.describe``.

    Raises:
        ReplayError: If a constraint depends on cursors, which are not in the log.
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
                f"constraint {options['name']!r} depends on the cursors of the run, which the log "
                f"does not contain; replay supports {', '.join(sorted(_REPLAYABLE))}"
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


def replay(log: RunLog) -> ReplayResult:
    """Recomputes the weights of every logged iteration from the logged losses.

    Raises:
        ReplayError: If an iteration with a due update is missing, or a line lacks a domain.
    """
    controller = controller_from_description(log.mixture)
    result = ReplayResult(0, 0.0, 0, "")
    previous = 0
    resumptions = list(log.resumptions.items())
    for iteration, record in log.iterations.items():
        while resumptions and resumptions[0][0] < iteration:
            resumed_after, mixture = resumptions.pop(0)
            _require_no_gap(controller, previous, resumed_after + 1)
            controller = _continued(controller, mixture)
            previous = resumed_after
        _require_no_gap(controller, previous, iteration)
        logged = _by_domain(record, "weights", controller.domains)
        difference = np.abs(controller.weights - logged)
        worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
        largest = math.inf if np.isnan(difference[worst]) else float(difference[worst])
        if largest > result.largest_difference:
            result = ReplayResult(0, largest, iteration, controller.domains[worst])
        measured = _measured(log.held_out.get(iteration), controller.domains)
        controller.observe(iteration, _observed(record, controller), held_out=measured)
        previous = iteration
    return ReplayResult(
        len(log.iterations), result.largest_difference, result.iteration, result.domain
    )


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
    every_step = controller.constraints or controller.mixer.method.every_step
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
    losses = _by_domain(record, "losses", controller.domains)
    losses[np.isinf(losses)] = np.nan  # after an overflow; the trainer dropped them too
    if "tokens" not in record or not controller.mixer.method.every_step:
        return losses
    tokens = _by_domain(record, "tokens", controller.domains)
    return Signal.from_means(losses, np.where(np.isnan(losses), 0.0, tokens))


def _measured(record: Mapping[str, Any] | None, domains: Sequence[str]) -> HeldOut | None:
    """The held-out losses that the trainer measured after a logged iteration, if it did."""
    if record is None:
        return None
    try:
        return HeldOut.from_domains(record, domains)
    except ValueError as error:
        raise ReplayError(f"iteration {record['iteration']}: held_out: {error}") from None


def _by_domain(record: Mapping[str, Any], field: str, domains: Sequence[str]) -> FloatArray:
    """Values of a ``{domain: number or null}`` field, shape (K,), nan for null."""
    values = record.get(field)
    if not isinstance(values, dict) or set(values) != set(domains):
        raise ReplayError(
            f"iteration {record['iteration']}: {field} must name the domains {list(domains)}"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m odm.replay",
        description="Recompute a run's mixture weights from its run log and compare.",
    )
    parser.add_argument("log", help="the run's metrics.jsonl, or its folder")
    parser.add_argument(
        "--tolerance", type=float, default=1e-12, help="largest difference allowed (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        path = find_log(options.log)
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            result = replay(read_run_log(lines))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.stderr.write(f"{options.log}: {reason}\n")
        return 2
    where = f" (iteration {result.iteration}, domain {result.domain})" if result.domain else ""
    sys.stdout.write(
        f"{result.num_iterations} iterations replayed, largest difference "
        f"{result.largest_difference:.3g}{where}\n"
    )
    return 0 if result.largest_difference <= options.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
