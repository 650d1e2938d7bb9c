"""A picture per suite: how far each arm is from uniform weights during the run and at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megatron.files import atomic_writer
from tools.benchmark.quality.measures import BASELINE, MEASURES, Results, curve, measures, pairs_of
from tools.paired_runs import paired_difference

__all__ = ["draw_suite"]

_LINEAR_BITS, _LINEAR_LOSS, _LINEAR_PERPLEXITY = 0.02, 0.05, 10.0
"""Differences up to these numbers are drawn on a linear scale, larger ones on a logarithmic one."""


def draw_suite(results: Results, output: Path) -> None:
    """Draws final bits per byte, and validation loss and perplexity, less those of uniform.

    All differences are between runs of the same seed. Final values: the mean, Student's 95 %
    interval, and a point per seed. Curves: the mean, and the range over the seeds.

    Args:
        results: Of one suite; arms without a pair are left out.
        output: The PNG file.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    arms = [arm for arm in dict.fromkeys(run.arm for run in results) if arm != BASELINE]
    arms = [arm for arm in arms if pairs_of(results, arm, BASELINE)]
    colors = {arm: colormaps["tab20"](2 * k % 20 + k // 10) for k, arm in enumerate(arms)}
    height = max(4.0, 0.35 * len(arms) + 1.5)
    figure = Figure(figsize=(14, height), layout="constrained")
    ends, *panels = figure.subplots(1, 3)
    _draw_ends(ends, results, colors)
    for axes, perplexity in zip(panels, (False, True), strict=True):
        _draw_curves(axes, results, colors, perplexity=perplexity)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(output) as stream:
        figure.savefig(stream, format="png", dpi=100)


def _draw_ends(axes: Any, results: Results, colors: dict[str, Any]) -> None:
    bits = MEASURES[0]
    for row, (arm, color) in enumerate(colors.items()):
        pairs = pairs_of(results, arm, BASELINE)
        ends = np.array([[bits.of(measures(run)) for run in pair] for pair in pairs])
        found = paired_difference(ends[:, 0], ends[:, 1])
        points = ends[:, 0] - ends[:, 1]
        axes.plot(points, np.full(points.size, row), ".", color=color, alpha=0.5)
        axes.plot(found.mean, row, "o", color=color)
        if found.student is not None:
            axes.plot(found.student, (row, row), color=color, linewidth=2)
    axes.set_yticks(range(len(colors)), list(colors))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=_LINEAR_BITS)
    axes.grid(axis="x", alpha=0.3)
    axes.set(title=f"final test bits per byte, less {BASELINE}'s")


def _draw_curves(axes: Any, results: Results, colors: dict[str, Any], *, perplexity: bool) -> None:
    for arm, color in colors.items():
        pairs = pairs_of(results, arm, BASELINE)
        gaps = np.array(
            [
                curve(one, perplexity=perplexity) - curve(other, perplexity=perplexity)
                for one, other in pairs
            ]
        )
        iterations = pairs[0][0]["iterations"]
        axes.plot(iterations, gaps.mean(axis=0), color=color)
        axes.fill_between(iterations, gaps.min(axis=0), gaps.max(axis=0), color=color, alpha=0.15)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=_LINEAR_PERPLEXITY if perplexity else _LINEAR_LOSS)
    axes.grid(alpha=0.3)
    name = "perplexity" if perplexity else "loss in nats"
    axes.set(xlabel="iteration", title=f"validation {name}, less {BASELINE}'s")
