"""Recomputes a run's mixture weights from its run log, and compares them with the logged ones.

``python -m odm.replay metrics.jsonl`` prints the largest difference. The exit code is 0 if it is
within the tolerance, 1 if it is not, and 2 if the log cannot be replayed.

The log has one JSON object per line. A line with ``"event": "start"`` has ``"mixture"`` (what
``MixtureController.describe`` returns). Lines with ``"event": "train"`` have ``iteration``,
``weights`` (those of its draw) and ``losses`` (null for absent domains), the last two by domain
name, and ``tokens`` of the iteration for methods that count them. Limits that depend on what has
been drawn need ``cursors``, samples drawn so far by domain, or ``epochs`` with
``samples_per_epoch`` in the start line. Where weights follow held-out losses, lines with ``"event":
"held_out"`` have what ``HeldOut.by_domain`` returns. If an iteration appears twice, the later line
counts. A line with ``"event": "resume"`` and a different ``"mixture"`` changes the settings from
there on, as ``load_state_dict`` does.

With ``--mixer OTHER`` it shows the weights that another method would have chosen on these losses;
see `odm.other_method`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .other_method import parse_options, replay_with
from .replay_log import (
    ReplayError,
    RunLog,
    by_domain,
    controller_from_description,
    find_log,
    read_run_log,
    replayed,
)
from .wording import counted

__all__ = [
    "ReplayError",
    "ReplayResult",
    "RunLog",
    "controller_from_description",
    "find_log",
    "main",
    "read_run_log",
    "replay",
]


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


def replay(log: RunLog) -> ReplayResult:
    """Recomputes the weights of every logged iteration from the logged losses.

    Raises:
        ReplayError: If an iteration with a due update is missing, or a line lacks a domain.
    """
    result = ReplayResult(0, 0.0, 0, "")
    for iteration, record, controller in replayed(log):
        logged = by_domain(record, "weights", controller.domains)
        difference = np.abs(controller.weights - logged)
        worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
        largest = math.inf if np.isnan(difference[worst]) else float(difference[worst])
        if largest > result.largest_difference:
            result = ReplayResult(0, largest, iteration, controller.domains[worst])
    return ReplayResult(
        len(log.iterations), result.largest_difference, result.iteration, result.domain
    )


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
    parser.add_argument("--mixer", metavar="NAME", help="show what another method would have done")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of --mixer"
    )
    parser.add_argument("--json", action="store_true", help="of --mixer: print all weights as JSON")
    options = parser.parse_args(arguments)
    if not options.tolerance >= 0:  # also nan
        parser.error(f"--tolerance must be at least 0, got {options.tolerance}")
    if not options.log.strip():
        parser.error("log is empty; give the run's metrics.jsonl or its folder")
    if options.mixer is None and (options.option or options.json):
        parser.error("--option and --json need --mixer")
    try:
        path = find_log(options.log)
        # a file that was saved by an editor may begin with a byte order mark
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            log = read_run_log(lines)
        answer = _replay_own if options.mixer is None else _replay_other
        with np.errstate(all="ignore"):  # numbers of a damaged log may overflow
            return answer(log, options)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.stderr.write(f"{options.log}: {reason}\n")
        return 2


def _replay_own(log: RunLog, options: argparse.Namespace) -> int:
    result = replay(log)
    if not result.num_iterations:
        raise ReplayError("the log has no training iteration, so there is nothing to compare")
    where = f" (iteration {result.iteration}, domain {result.domain})" if result.domain else ""
    sys.stdout.write(
        f"{counted(result.num_iterations, 'iteration')} replayed, largest difference "
        f"{result.largest_difference:.3g}{where}\n"
    )
    return 0 if result.largest_difference <= options.tolerance else 1


def _replay_other(log: RunLog, options: argparse.Namespace) -> int:
    found = replay_with(log, options.mixer, parse_options(options.option))
    text = json.dumps(found.to_dict(), allow_nan=False) if options.json else found.table()
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
