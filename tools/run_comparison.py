"""Reads the held-out losses of several runs and compares them pair by pair; draws nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import UserError
from megatron.reporting.run_log import find_run_log, read_run_log
from odm.json_data import anything, fields, integer, mapping_of, optional, text
from tools.paired_runs import PairedDifference, iterations_to_target, paired_difference

__all__ = ["METRICS", "Arm", "Comparison", "RunCurves", "compare", "read_curves"]

METRICS = {
    "mean_loss": "mean loss",
    "mean_perplexity": "mean perplexity",
    "bits_per_byte": "bits per byte",
    "worst_loss": "worst loss",
}
"""What is compared -> its name for people. All are better when lower."""

_START = fields(
    {},
    {
        "mixture": optional(fields({}, {"seed": integer(0, 2**64 - 1), "method": text()})),
        "evaluation": optional(mapping_of(anything)),
        "settings": optional(mapping_of(text())),
        "tokenizer": optional(text()),
        "train_iters": optional(integer(0)),
        "parameters": optional(integer(0)),
    },
)
_RESULT = fields({}, {"num_tokens": optional(integer(0)), "num_samples": optional(integer(0))})


@dataclass(frozen=True)
class RunCurves:
    """The held-out losses of a run, and what it must share with runs that it is compared with."""

    name: str
    seed: int | None
    arm: str
    """Digest of everything that decides what is learnt, except the seed."""
    settings: Mapping[str, str]
    """Section -> digest of its settings; empty in logs of early versions."""
    train_iters: int | None
    measured: Mapping[str, Any]
    """What decides what is measured: names -> values, None where the log does not tell."""
    domains: tuple[str, ...]
    iterations: np.ndarray
    """Iterations of the validations, ascending, shape (T,)."""
    losses: np.ndarray
    """Nats per token, shape (T, K)."""
    bits_per_byte: np.ndarray
    """Shape (T, K); nan where it is not known."""

    def at(self, iteration: int) -> int:
        """Row of an iteration."""
        return int(np.flatnonzero(self.iterations == iteration)[0])

    def curve(self, metric: str) -> np.ndarray:
        """A metric of `METRICS` at each validation, shape (T,)."""
        if metric == "mean_loss":
            return self.losses.mean(axis=1)
        if metric == "mean_perplexity":  # exp overflows float64 above 709
            return np.exp(np.minimum(self.losses, 700.0)).mean(axis=1)
        if metric == "worst_loss":
            return self.losses.max(axis=1)
        return self.bits_per_byte.mean(axis=1)


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed, beside the first arm."""

    name: str
    runs: Mapping[int | None, RunCurves]
    """Seed -> run."""
    seeds: tuple[int | None, ...]
    """Seeds that both arms have; each of them is a pair."""
    differences: Mapping[str, PairedDifference]
    """Metric -> difference to the first arm; without those that are not known."""
    domains: Mapping[str, PairedDifference]
    """Domain -> difference of its loss to the first arm."""
    domains_better: float
    """Number of domains with a lower loss than in the first arm, mean over the pairs."""
    iterations_to_target: Mapping[str, tuple[float | None, ...]]
    """``mean_loss`` and ``mean_perplexity`` -> the iteration, by pair, at which the curve reaches
    the final value of the first arm's run; None if it does not."""


@dataclass(frozen=True)
class Comparison:
    """All arms at one iteration; the first one is what the others are compared with."""

    iteration: int
    domains: tuple[str, ...]
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]


def read_curves(path: Path, *, domains: Sequence[str] | None = None) -> RunCurves:
    """Reads the validations of a run log.

    Args:
        path: The log, or a folder in which it is.
        domains: Domains to keep; None keeps all.

    Raises:
        UserError: If the log has no validation, no such domain, or a loss that is not finite.
        ValueError: If the log is damaged.
    """
    log, start, validations = find_run_log(path), {}, []
    for event in read_run_log(log):
        if event["event"] in ("start", "resume"):
            _check(_START, event, log)
            start = {**start, **{key: v for key, v in event.items() if v is not None}}
        elif event["event"] == "validation":
            _check(mapping_of(_RESULT), event["domains"], log)
            validations.append(event)
    if not any(event["domains"] for event in validations):
        raise UserError(f"{log}: has no validation; there is nothing to compare yet")
    validations = sorted(_of_one_text(validations), key=lambda event: event["iteration"])
    results = validations[-1]["domains"]
    unknown = [name for name in domains or () if name not in results]
    if unknown:
        raise UserError(
            f"{log}: --domains: no validation of {unknown[0]}; has {', '.join(results)}"
        )
    names = tuple(name for name in results if domains is None or name in domains)
    losses = _table(validations, names, "loss")
    mixture, settings = start.get("mixture") or {}, start.get("settings") or {}
    rest = {key: value for key, value in mixture.items() if key != "seed"}
    arm = settings or {"mixture": rest, "parameters": start.get("parameters")}
    evaluated = (start.get("evaluation") or {}).get("validation")
    run = RunCurves(
        name=_name(log),
        seed=mixture.get("seed"),
        arm=json.dumps(arm, sort_keys=True, default=str),
        settings=settings,
        train_iters=start.get("train_iters"),
        measured={
            "validation sets": {name: _text_of(results)[name] for name in names},
            "settings of the validation": evaluated,
            "tokenizers": start.get("tokenizer"),
        },
        domains=names,
        iterations=np.array([event["iteration"] for event in validations]),
        losses=losses,
        bits_per_byte=_table(validations, names, "bits_per_byte"),
    )
    _require_finite(run, int(run.iterations[-1]), where=str(log))
    return run


def _require_finite(run: RunCurves, iteration: int, *, where: str) -> None:
    is_finite = np.isfinite(run.losses[run.at(iteration)])
    if not is_finite.all():
        raise UserError(
            f"{where}: the loss of {run.domains[int(is_finite.argmin())]} at iteration "
            f"{iteration} is not finite; the run diverged"
        )


def _in_order(run: RunCurves, domains: Sequence[str]) -> RunCurves:
    """The run with its domains in another order; a log has them in the order of the YAML."""
    if run.domains == tuple(domains):
        return run
    columns = [run.domains.index(name) for name in domains]
    return replace(
        run,
        domains=tuple(domains),
        losses=run.losses[:, columns],
        bits_per_byte=run.bits_per_byte[:, columns],
    )


def read_runs(paths: Sequence[Path], *, domains: Sequence[str] | None = None) -> list[RunCurves]:
    """Reads run logs; runs whose folders have the same name get the paths as their names.

    Raises:
        UserError: If a run is given twice, or one cannot be compared; see ``read_curves``.
    """
    logs = [find_run_log(path).resolve() for path in paths]
    for number, log in enumerate(logs):
        if log in logs[:number]:
            raise UserError(f"{paths[number]}: this run is given twice; give each run once")
    runs = [read_curves(path, domains=domains) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=str(path)) if names.count(run.name) > 1 else run
        for path, run in zip(paths, runs, strict=True)
    ]


def compare(runs: Sequence[RunCurves], *, iteration: int | None = None) -> Comparison:
    """Compares runs with the first one, or groups of runs that differ only in their seed.

    Args:
        runs: At least two; the first one is of the arm that the others are compared with.
        iteration: Where to compare; None: at the end, or, if a run has not got there yet, at the
            last iteration that all have.

    Raises:
        UserError: If what was measured differs, or no runs form a pair.
    """
    first = runs[0]
    for run in runs[1:]:
        _require_same_measure(first, run)
    runs = [_in_order(run, first.domains) for run in runs]
    place, notes = _common_iteration(runs, iteration)
    for run in runs:
        _require_finite(run, place, where=run.name)
    groups: dict[str, dict[int | None, RunCurves]] = {}
    for run in runs:
        group = groups.setdefault(run.arm, {})
        if run.seed in group:
            raise UserError(
                f"{run.name}: has the settings and the seed {run.seed} of {group[run.seed].name}; "
                "compare runs with other seeds or other settings"
            )
        group[run.seed] = run
    baseline, *others = groups.values()
    arms = tuple(_arm(group, baseline, place) for group in groups.values())
    notes += [note for group in others for note in _notes_of(group, baseline)]
    if all(len(arm.seeds) == 1 for arm in arms):
        notes.append(
            "one seed: differences below the noise between seeds mean nothing; give runs with "
            "other seeds too"
        )
    elif min(len(arm.seeds) for arm in arms[1:]) < 5:
        notes.append(
            "fewer than five pairs: the bootstrap interval is too narrow; Student's is not"
        )
    return Comparison(place, first.domains, arms, tuple(notes))


def _arm(
    group: Mapping[int | None, RunCurves], baseline: Mapping[int | None, RunCurves], place: int
) -> Arm:
    seeds = tuple(seed for seed in group if seed in baseline)
    run = next(iter(group.values()))
    if not seeds:
        raise UserError(
            f"{run.name}: has seed {run.seed}, and {next(iter(baseline.values())).name} "
            f"{', '.join(map(str, baseline))}; only runs of equal seed form a pair"
        )
    pairs = [(group[seed], baseline[seed]) for seed in seeds]
    final = {
        metric: np.array([[run.curve(metric)[run.at(place)] for run in pair] for pair in pairs])
        for metric in METRICS
    }
    losses = np.array([[run.losses[run.at(place)] for run in pair] for pair in pairs])
    return Arm(
        name=_arm_name([run.name for run in group.values()]),
        runs=group,
        seeds=seeds,
        differences={
            metric: paired_difference(*values.T)
            for metric, values in final.items()
            if np.isfinite(values).all()
        },
        domains={name: paired_difference(*losses[:, :, k].T) for k, name in enumerate(run.domains)},
        domains_better=float((losses[:, 0] < losses[:, 1]).sum(axis=1).mean()),
        iterations_to_target={
            metric: tuple(
                _reached(run, metric, final[metric][number, 1], place)
                for number, (run, _) in enumerate(pairs)
            )
            for metric in ("mean_loss", "mean_perplexity")
        },
    )


def _reached(run: RunCurves, metric: str, target: float, place: int) -> float | None:
    rows = run.iterations <= place
    return iterations_to_target(run.iterations[rows], run.curve(metric)[rows], target)


def _require_same_measure(first: RunCurves, run: RunCurves) -> None:
    for what, value in first.measured.items():
        other = run.measured[what]
        if value != other and (value is not None and other is not None):
            raise UserError(
                f"{run.name}: its {what} differ from those of {first.name} "
                f"({_first_difference(value, other)}); losses can only be compared on the same "
                "text, cut into the same tokens"
            )


def _first_difference(one: Any, other: Any) -> str:
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{len(other)} and {len(one)} entries"
        one, other = ({f"entry {n}": v for n, v in enumerate(x, 1)} for x in (one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
        return f"{name}: {_first_difference(one.get(name), other.get(name))}"
    return f"{str(other)[:120]} and {str(one)[:120]}"


def _common_iteration(runs: Sequence[RunCurves], wanted: int | None) -> tuple[int, list[str]]:
    common = set(runs[0].iterations.tolist()).intersection(*(r.iterations.tolist() for r in runs))
    reached = "; ".join(f"{run.name}: up to {run.iterations[-1]}" for run in runs)
    if wanted is not None and wanted not in common:
        found = ", ".join(map(str, sorted(common)[-8:])) or "none"
        raise UserError(f"--at {wanted}: not all runs were validated then; all were at {found}")
    if not common:
        raise UserError(f"the runs were never validated at the same iteration ({reached})")
    lengths = {run.train_iters for run in runs if run.train_iters is not None}
    if wanted is None and len(lengths) > 1:
        raise UserError(
            f"train_iters differ ({', '.join(map(str, sorted(lengths)))}), and so do the learning "
            f"rates on the way; --at {max(common)} compares the runs at that iteration all the same"
        )
    place = max(common) if wanted is None else wanted
    notes = []
    if any(run.iterations[-1] != place for run in runs):
        notes.append(f"compared at iteration {place}, which all runs have ({reached})")
    if len(lengths) > 1:
        notes.append("train_iters differ: the learning rates at this iteration differ too")
    return place, notes


def _notes_of(
    group: Mapping[int | None, RunCurves], baseline: Mapping[int | None, RunCurves]
) -> list[str]:
    """What weakens the comparison of two arms."""
    run, first = next(iter(group.values())), next(iter(baseline.values()))
    other = [
        name
        for name, digest in run.settings.items()
        if name != "mixing" and first.settings.get(name, digest) != digest
    ]
    notes = []
    if other:
        notes.append(
            f"{run.name} and {first.name} differ in more than the mixing: settings of "
            f"{', '.join(other)}"
        )
    alone = sorted(str(seed) for seed in {*group} ^ {*baseline})
    if alone:
        notes.append(f"{run.name}: seeds that only one arm has are left out: {', '.join(alone)}")
    return notes


def _arm_name(names: Sequence[str]) -> str:
    """What the names of an arm's runs begin with, without the number of the seed."""
    if len(names) == 1:
        return names[0]
    shared = "".join(
        letters[0]
        for place, letters in enumerate(zip(*names, strict=False))
        if len({name[: place + 1] for name in names}) == 1
    )
    return (
        shared.removesuffix("seed").rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]
    )


def _name(log: Path) -> str:
    folder = log.resolve().parent
    return folder.parent.name if folder.name == "logs" else folder.name


def _check(check: Any, value: Any, log: Path) -> None:
    try:
        check(value, "")
    except ValueError as error:
        raise ValueError(f"{log}: {error}; the file is damaged") from None


def _of_one_text(validations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The validations on the text that most of them have: evaluate.py may have added others."""
    keys = [json.dumps(_text_of(event["domains"])) for event in validations]
    most = max(reversed(keys), key=keys.count)
    return [event for event, key in zip(validations, keys, strict=True) if key == most]


def _text_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a validation was measured on: domain -> numbers of samples and tokens."""
    return {
        name: (result.get("num_samples"), result.get("num_tokens"))
        for name, result in results.items()
    }


def _table(events: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> np.ndarray:
    rows = [[event["domains"][name].get(key) for name in names] for event in events]
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    return np.array(numbers, dtype=np.float64)
