"""A picture per suite: how far each arm is from uniform weights during the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron.files import atomic_writer
from tools.benchmark.quality.measures import BASELINE, curve
from tools.benchmark.quality.plan import Run

__all__ = ["draw_suite"]


def draw_suite(results: Mapping[Run, Mapping[str, Any]], output: Path) -> None:
    """Draws mean validation loss and perplexity, less those of uniform of the same seed.

    Lines are means over seeds, bands the range over seeds.

    Args:
        results: Of one suite; arms without a pair are left out.
        output: The PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    arms = dict.fromkeys(run.arm for run in results if run.arm != BASELINE)
    for axes, perplexity in zip(panels, (False, True), strict=True):
        for arm in arms:
            pairs = [
                (result, results[base])
                for run, result in results.items()
                if run.arm == arm and (base := Run(run.suite, BASELINE, run.seed)) in results
            ]
            if not pairs:
                continue
            gaps = np.array(
                [
                    curve(one, perplexity=perplexity) - curve(other, perplexity=perplexity)
                    for one, other in pairs
                ]
            )
            iterations = pairs[0][0]["iterations"]
            (line,) = axes.plot(iterations, gaps.mean(axis=0), label=f"{arm} ({len(pairs)})")
            axes.fill_between(
                iterations, gaps.min(axis=0), gaps.max(axis=0), color=line.get_color(), alpha=0.15
            )
        axes.axhline(0, color="black", linewidth=0.8)
        name = "perplexity" if perplexity else "loss, nats per token"
        axes.set(xlabel="iteration", title=f"mean validation {name}, less {BASELINE}'s")
    panels[0].legend(fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(output) as stream:
        figure.savefig(stream, format="png", dpi=100)
