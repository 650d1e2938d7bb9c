"""The weights that another method would have chosen on the losses that a run has logged.

``python -m odm.replay metrics.jsonl --mixer exp3`` prints them beside the run's own. The run's
limits, warm-up and update frequency apply to the other method too, and rewards that are divided by
the weight of a draw use the run's weights, since those drew the samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments import some
from .methods import METHODS
from .mixers import Mixer, make_mixer
from .replay_log import ReplayError, RunLog, by_domain, replayed
from .rewards import Reward
from .simplex import FloatArray
from .text_table import aligned
from .wording import shown

CAVEAT = (
    "these are answers to the losses of the run; with these weights its losses would have been "
    "others"
)


@dataclass(frozen=True, eq=False)
class OtherWeights:
    """Weights of a run and of another method on its losses."""

    method: str
    options: Mapping[str, Any]
    domains: tuple[str, ...]
    iterations: np.ndarray
    """Logged iterations, int64, shape (T,)."""
    run: FloatArray
    """Weights with which each iteration was drawn, shape (T, K)."""
    other: FloatArray
    """Weights with which the other method would have drawn it, shape (T, K)."""

    def to_dict(self) -> dict[str, Any]:
        """All weights as JSON data, by domain."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "caveat": CAVEAT,
            "iterations": self.iterations.tolist(),
            "run": dict(zip(self.domains, self.run.T.tolist(), strict=True)),
            "other": dict(zip(self.domains, self.other.T.tolist(), strict=True)),
        }

    def table(self) -> str:
        """Mean and last weights of every domain as text, with the caveat."""
        heads = ("domain", "mean: run", self.method, "last: run", self.method)
        columns = (self.run.mean(0), self.other.mean(0), self.run[-1], self.other[-1])
        rows: list[tuple[str, ...]] = [heads]
        for name, *weights in zip(self.domains, *columns, strict=True):
            rows.append((name, *(f"{weight:.4f}" for weight in weights)))
        first, last = self.iterations[[0, -1]].tolist()
        return "\n".join(
            [f"weights of iterations {first} to {last}", *aligned(rows), f"note: {CAVEAT}"]
        )


def replay_with(log: RunLog, method: str, options: Mapping[str, Any] | None = None) -> OtherWeights:
    """Lets another method observe the losses of a run.

    Args:
        log: The run log. It must have every iteration after which the method changes its weights.
        method: Name of the method.
        options: Options of the method; others have their defaults.

    Raises:
        ReplayError: If the log lacks something that the method needs.
        ValueError: If the method or an option is unknown or wrong.
    """
    given = options or {}
    mixer = make_mixer(method, **_with_sizes(log, log.sizes.get(0), method, given))
    if not log.iterations:
        raise ReplayError("the log has no training iteration")

    def changes(sizes: Mapping[str, int] | None) -> dict[str, Any]:
        return {
            "method": method,
            "options": make_mixer(method, **_with_sizes(log, sizes, method, given)).options(),
            "total_steps": log.train_iters,
            "reward": _reward(log, mixer),
        }

    iterations, run, other = [], [], []
    for iteration, record, controller in replayed(log, changes=changes):
        iterations.append(iteration)
        run.append(by_domain(record, "weights", controller.domains))
        if not np.isfinite(run[-1]).all():
            unknown = controller.domains[int(np.isfinite(run[-1]).argmin())]
            raise ReplayError(
                f"iteration {iteration}: the weight of {shown(unknown)} is not known; the log is "
                "damaged"
            )
        other.append(controller.weights)
    return OtherWeights(
        method,
        mixer.options(),
        controller.domains,
        np.array(iterations),
        np.array(run),
        np.array(other),
    )


def _with_sizes(
    log: RunLog, sizes: Mapping[str, int] | None, method: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options with the sizes of the run's domains, where they need them and do not give them.

    Args:
        log: The run log.
        sizes: Samples per epoch of each domain in this part of the log; None if it has none.
        method: Name of the method.
        options: Options of the caller.

    Raises:
        ReplayError: If the sizes are needed and not known.
    """
    found = dict(options)
    if method not in METHODS or not METHODS[method].needs_sizes(found) or "domain_sizes" in found:
        return found
    domains = log.mixture["domains"]
    if sizes is None or set(domains) != set(sizes):
        raise ReplayError(
            f"{method}: these options need the sizes of the domains, and the log has no "
            "samples_per_epoch of them; add the option domain_sizes=[...] with one number per "
            f"domain, in the order {some(domains)}"
        )
    found["domain_sizes"] = [sizes[name] for name in domains]
    return found


def _reward(log: RunLog, mixer: Mixer) -> dict[str, Any]:
    """The losses that the other method learns from: those of the run, if the method can.

    If it cannot learn from their differences, held-out losses take their place.
    """
    method = mixer.method
    if method.signal == "held_out" and not log.held_out:
        raise ReplayError(
            f"{mixer.name} learns from held-out losses, and the log has none; measure them in the "
            "run (data_sampling_heldout_interval)"
        )
    of_run = log.mixture.get("reward", Reward().options())
    if method.signal == "held_out" and of_run["source"] == "train":
        return Reward("heldout").options()
    for reward in (of_run, Reward("heldout").options()):
        if method.reward_problem(mixer.name, reward["source"]) is None:
            return reward
    return Reward().options()


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options from ``name=value``; a value is JSON, or text if it is not JSON.

    Raises:
        ValueError: If a text has another form, or a name occurs twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ValueError(f"--option: must be name=value, got {shown(text)}")
        if name in options:
            raise ValueError(f"--option {shown(name)}: is given twice; give it once")
        try:
            options[name] = json.loads(value)
        except RecursionError:
            raise ValueError(f"--option {shown(name)}: is nested too deep") from None
        except ValueError:
            options[name] = value
    return options
