#!/usr/bin/env python
"""Compares the held-out losses of runs: ``python tools/compare_runs.py A B ... [-o picture.png]``.

The first run is what the others are compared with, for example one with uniform weights. Runs that
differ only in their seed form a group; differences are then means over pairs of equal seed, with
intervals. Reads run logs (``metrics.jsonl``) and nothing else.

Runs whose validation sets, tokenizers or lengths differ are refused. ``--at ITERATION`` compares
runs of different length where all were validated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import numpy as np

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from odm.text_table import aligned
from odm.wording import counted
from tools.pictures import drawing, save_picture
from tools.plot_mixture import line_style
from tools.run_comparison import METRICS, Arm, Comparison, RunCurves, compare, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIGITS = {"mean_loss": 4, "mean_perplexity": 2, "bits_per_byte": 4, "worst_loss": 4}
_TARGETS = ("mean_loss", "mean_perplexity")


def report(comparison: Comparison) -> str:
    """The comparison as text: values, differences, domains, notes."""
    baseline = comparison.arms[0]
    seeds = sorted({str(seed) for arm in comparison.arms for seed in arm.seeds})
    parts = [
        f"iteration {comparison.iteration}, {counted(len(comparison.domains), 'domain')}, seeds: "
        f"{', '.join(seeds)}; means over pairs of equal seed",
        *aligned(_value_rows(comparison)),
        f"\ndifferences to {baseline.name}, negative is better; intervals of 95 %",
        *aligned(_difference_rows(comparison)),
        "\nloss of each domain, and its differences with Student's interval",
        *aligned(_domain_rows(comparison)),
        *(f"note: {note}" for note in comparison.notes),
    ]
    return "\n".join(parts)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON data."""
    return {
        "iteration": comparison.iteration,
        "domains": list(comparison.domains),
        "arms": [_arm_json(arm, comparison.iteration) for arm in comparison.arms],
        "notes": list(comparison.notes),
    }


def draw(comparison: Comparison, output: Path) -> None:
    """Draws curves of both means and the domains' differences; the ending chooses the format."""
    with drawing(output) as pyplot:
        height = 8.0 + 0.12 * len(comparison.domains) * len(comparison.arms)
        figure, axes = pyplot.subplots(3, 1, figsize=(10, height), layout="constrained")
        for panel, metric in zip(axes, _TARGETS, strict=False):
            _draw_curves(panel, comparison, metric)
        _draw_domains(axes[2], comparison)
        for panel in axes:
            panel.grid(color="#dddddd", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        save_picture(figure, output)


def _draw_curves(panel: Axes, comparison: Comparison, metric: str) -> None:
    for index, arm in enumerate(comparison.arms):
        for number, run in enumerate(arm.runs.values()):
            panel.plot(
                run.iterations,
                run.curve(metric),
                label=_plain(arm.name) if number == 0 else None,
                linewidth=1.2,
                **line_style(index),
            )
    panel.set_title(f"Validation: {METRICS[metric]}", loc="left", fontsize=10)
    panel.set_xlabel("iteration")
    panel.legend(fontsize=8)


def _draw_domains(panel: Axes, comparison: Comparison) -> None:
    """A point per domain and arm, with Student's interval."""
    others = comparison.arms[1:]
    for index, arm in enumerate(others, start=1):
        style = {**line_style(index), "linestyle": "none", "marker": "o"}
        heights = np.arange(len(comparison.domains)) + 0.6 * (index / len(comparison.arms) - 0.5)
        means = [difference.mean for difference in arm.domains.values()]
        reach = [
            0.0 if difference.student is None else difference.mean - difference.student[0]
            for difference in arm.domains.values()
        ]
        panel.errorbar(means, heights, xerr=reach, markersize=4, label=_plain(arm.name), **style)
    panel.axvline(0.0, color="#555555", linewidth=0.8)
    panel.set_yticks(range(len(comparison.domains)), map(_plain, comparison.domains), fontsize=8)
    panel.invert_yaxis()
    panel.set_title(
        f"Loss of each domain minus that of {_plain(comparison.arms[0].name)} (left is better)",
        loc="left",
        fontsize=10,
    )
    panel.set_xlabel("nats per token")
    panel.legend(fontsize=8)


def _plain(text: str) -> str:
    """A name in a legend, where dollar signs would begin a formula."""
    return text.replace("$", r"\$")


def _value_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    name = comparison.arms[0].name
    targets = tuple(f"{name}'s {METRICS[metric]} at iteration" for metric in _TARGETS)
    better = ("worst domain", "domains better", *targets)
    rows: list[tuple[str, ...]] = [("run", "seeds", *METRICS.values(), *better)]
    for number, arm in enumerate(comparison.arms):
        means = _means(arm, comparison.iteration)
        cells = ["-" if means[m] is None else f"{means[m]:.{_DIGITS[m]}f}" for m in METRICS]
        domains = f"{arm.domains_better:.3g} of {len(comparison.domains)}" if number else "-"
        reached = [_reached_text(arm.iterations_to_target[metric]) for metric in _TARGETS]
        worst = ", ".join(dict.fromkeys(_worst(run, comparison.iteration) for run in _pairs(arm)))
        rows.append((arm.name, str(len(arm.seeds)), *cells, worst, domains, *reached))
    return rows


def _difference_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("run", "", "difference", "bootstrap interval", "Student's interval", "pairs lower")
    ]
    for arm in comparison.arms[1:]:
        for metric, found in arm.differences.items():
            digits = _DIGITS[metric]
            intervals = (_interval_text(i, digits) for i in (found.bootstrap, found.student))
            counts = f"{found.num_lower} of {found.count}"
            rows.append(
                (arm.name, METRICS[metric], f"{found.mean:+.{digits}f}", *intervals, counts)
            )
    return rows


def _domain_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    baseline, *others = comparison.arms
    losses = np.mean(
        [run.losses[run.at(comparison.iteration)] for run in _pairs(baseline)], axis=0
    ).tolist()
    rows: list[tuple[str, ...]] = [("domain", baseline.name, *(arm.name for arm in others))]
    for name, loss in zip(comparison.domains, losses, strict=True):
        found = [arm.domains[name] for arm in others]
        cells = [f"{one.mean:+.4f} {_interval_text(one.student, 4)}".rstrip() for one in found]
        rows.append((name, f"{loss:.4f}", *cells))
    return rows


def _interval_text(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return ""
    return f"[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def _reached_text(iterations: Sequence[float | None]) -> str:
    known = [iteration for iteration in iterations if iteration is not None]
    if not known:
        return "not reached"
    missing = len(iterations) - len(known)
    return f"{np.mean(known):.0f}" + (f" ({missing} not reached)" if missing else "")


def _pairs(arm: Arm) -> list[RunCurves]:
    return [arm.runs[seed] for seed in arm.seeds]


def _worst(run: RunCurves, iteration: int) -> str:
    return run.domains[int(run.losses[run.at(iteration)].argmax())]


def _means(arm: Arm, iteration: int) -> dict[str, float | None]:
    """Metric -> mean over the seeds that form pairs; None if it is not known."""
    means = {
        metric: float(np.mean([run.curve(metric)[run.at(iteration)] for run in _pairs(arm)]))
        for metric in METRICS
    }
    return {metric: mean if np.isfinite(mean) else None for metric, mean in means.items()}


def _arm_json(arm: Arm, iteration: int) -> dict[str, Any]:
    return {
        "name": arm.name,
        "runs": [run.name for run in arm.runs.values()],
        "seeds": list(arm.seeds),
        **_means(arm, iteration),
        "worst_domains": [_worst(run, iteration) for run in _pairs(arm)],
        "domains_better": arm.domains_better,
        "iterations_to_target": {k: list(v) for k, v in arm.iterations_to_target.items()},
        "differences": {k: dataclasses.asdict(v) for k, v in arm.differences.items()},
        "domains": {k: dataclasses.asdict(v) for k, v in arm.domains.items()},
    }


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Compare the held-out losses of runs.")
    parser.add_argument(
        "first", type=path_argument, metavar="A", help="what the others are compared with"
    )
    parser.add_argument(
        "others",
        type=path_argument,
        nargs="+",
        metavar="B",
        help="save folder, log folder or metrics.jsonl",
    )
    parser.add_argument("--at", type=int, metavar="ITERATION", help="compare at this iteration")
    parser.add_argument(
        "--domains",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="compare only these domains",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "-o", "--output", type=path_argument, help="picture to draw (PNG, SVG, PDF)"
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = get_parser().parse_args(input_args)
    try:
        runs = read_runs([args.first, *args.others], domains=args.domains)
        comparison = compare(runs, iteration=args.at)
        if args.output is not None:
            draw(comparison, args.output)
    except ImportError as error:
        print(f"compare_runs.py: {error}; pip install matplotlib", file=sys.stderr)
        return 2
    except (UserError, OSError, ValueError) as error:
        print(f"compare_runs.py: {describe_error(error)}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(as_json(comparison), allow_nan=False, indent=1))
    else:
        print(report(comparison))
    if args.output is not None:
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
