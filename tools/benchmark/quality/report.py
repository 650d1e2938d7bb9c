"""The tables of a campaign, from the small files of its finished runs, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.benchmark.quality.plan import Plan, Run
from tools.paired_runs import PairedDifference, iterations_to_target, paired_difference

__all__ = ["Measures", "curve", "measures", "report"]

BASELINE = "uniform"
SECOND_BASELINE = "smoothed_mean"

Result = Mapping[str, Any]
Results = Mapping[Run, Result]


@dataclass(frozen=True)
class Measures:
    """What a run is judged by, on test text, over the domains that are not noise."""

    bits_per_byte: float
    """Mean over domains: the primary measure."""
    loss: float
    """Mean over domains, in nats per token."""
    perplexity: float
    """Mean over domains of the perplexities."""
    worst_loss: float
    """The largest of the losses, in nats per token."""


def measures(result: Result) -> Measures:
    """Computes the measures of a result."""
    learnable = [entry for entry in result["domains"].values() if not entry["noise"]]
    losses = np.array([entry["test_loss"] for entry in learnable])
    return Measures(
        bits_per_byte=float(np.mean([entry["test_bits_per_byte"] for entry in learnable])),
        loss=float(losses.mean()),
        perplexity=float(np.exp(losses).mean()),
        worst_loss=float(losses.max()),
    )


def curve(result: Result, *, perplexity: bool) -> np.ndarray:
    """Mean validation loss, or perplexity, over the domains that are not noise, per validation."""
    entries = [entry for entry in result["domains"].values() if not entry["noise"]]
    losses = np.array([entry["validation_loss"] for entry in entries])
    return (np.exp(losses) if perplexity else losses).mean(axis=0)


def iterations_ratio(
    candidate: Result, baseline: Result, *, perplexity: bool, at_end: bool
) -> float | None:
    """Iterations of ``candidate`` to a value of ``baseline``, over the baseline's own iterations.

    Args:
        candidate: A run.
        baseline: A run of the same suite and seed.
        perplexity: Whether mean perplexity is compared, or mean loss.
        at_end: Whether the value is that after the decay of the learning rate, or the last one
            before the decay.

    Returns:
        Below 1 if the candidate is faster; None if it never gets there.
    """
    values = curve(baseline, perplexity=perplexity)
    iterations = np.array(baseline["iterations"])
    allowed = iterations if at_end else iterations[iterations <= baseline["stable_until"]]
    if not allowed.size:
        return None
    place = allowed.size - 1
    reached = iterations_to_target(
        candidate["iterations"], curve(candidate, perplexity=perplexity), values[place]
    )
    return None if reached is None else reached / float(iterations[place])


def report(plan: Plan, results: Results, *, left_out: int = 0) -> str:
    """All tables of all suites that have results.

    Args:
        plan: The plan, for the order of suites and arms.
        results: Finished runs.
        left_out: Number of results in the folder that were made with other settings or text.
    """
    lines = [
        "# Results of the benchmark of mixing methods",
        "",
        "Written by `python -m tools.benchmark.mixing_quality report`; "
        "[the protocol](mixing_protocol.md) explains every column.",
    ]
    if left_out:
        lines += ["", f"{left_out} results of other settings or another text are left out."]
    for suite in plan.suites:
        of_suite = {run: result for run, result in results.items() if run.suite == suite}
        if of_suite:
            lines += ["", f"## Suite {suite}", "", *_suite(plan, suite, of_suite)]
    return "\n".join(lines) + "\n"


def _suite(plan: Plan, suite: str, results: Results) -> list[str]:
    arms = [arm for arm in plan.suites[suite].seeds if any(run.arm == arm for run in results)]
    first = next(iter(results.values()))
    lines = [
        f"{len(results)} runs of {first['parameters']:,} parameters and {first['tokens']:,} "
        f"tokens; {_seconds(results)}; {first['machine']['processor']}, "
        f"{first['machine']['threads']} thread per run.",
        "",
        *_values(arms, results),
    ]
    for baseline in (BASELINE, SECOND_BASELINE):
        if baseline in arms:
            lines += ["", *_differences(arms, results, baseline)]
    frozen = {arm: plan.arms[arm].average_of for arm in arms if plan.arms[arm].average_of}
    if frozen:
        lines += ["", *_frozen(frozen, results)]
    if BASELINE in arms:
        lines += ["", *_speed(arms, results), "", *_domains(arms, results)]
    return [*lines, "", *_shares(arms, results)]


def _seconds(results: Results) -> str:
    minutes = [result["seconds"] / 60 for result in results.values()]
    return f"{min(minutes):.0f} to {max(minutes):.0f} minutes each"


def _of_arm(results: Results, arm: str) -> dict[int, Result]:
    return {run.seed: result for run, result in sorted(results.items()) if run.arm == arm}


def _values(arms: Sequence[str], results: Results) -> list[str]:
    rows = []
    for arm in arms:
        found = [measures(result) for result in _of_arm(results, arm).values()]
        bits = np.array([one.bits_per_byte for one in found])
        spread = f"{bits.std(ddof=1):.4f}" if bits.size > 1 else "-"
        rows.append(
            [
                arm,
                str(len(found)),
                f"{bits.mean():.4f}",
                spread,
                *(
                    f"{np.mean([getattr(one, name) for one in found]):.{digits}f}"
                    for name, digits in (("loss", 4), ("perplexity", 2), ("worst_loss", 4))
                ),
                f"{np.mean([_noise_share(r) for r in _of_arm(results, arm).values()]):.1%}",
            ]
        )
    head = ["arm", "seeds", "bits per byte", "sd over seeds", "loss", "perplexity", "worst loss"]
    return ["Means over seeds.", "", *_table([*head, "spent on noise"], rows)]


def _noise_share(result: Result) -> float:
    samples = {name: entry["samples"] for name, entry in result["domains"].items()}
    noise = sum(samples[name] for name, entry in result["domains"].items() if entry["noise"])
    return noise / sum(samples.values())


_MEASURES: tuple[tuple[str, Callable[[Measures], float], int], ...] = (
    ("bits per byte", lambda one: one.bits_per_byte, 4),
    ("loss", lambda one: one.loss, 4),
    ("perplexity", lambda one: one.perplexity, 2),
    ("worst loss", lambda one: one.worst_loss, 4),
)


def _differences(arms: Sequence[str], results: Results, baseline: str) -> list[str]:
    rows = []
    for arm in arms:
        pairs = _pairs(results, arm, baseline)
        if arm == baseline or not pairs:
            continue
        for name, of, digits in _MEASURES:
            difference = paired_difference(
                [of(measures(one)) for one, _ in pairs], [of(measures(other)) for _, other in pairs]
            )
            rows.append([arm, name, *_cells(difference, digits)])
    head = ["arm", "measure", "difference", "bootstrap 95 %", "Student 95 %", "lower in"]
    return [f"Paired differences to {baseline}; negative is better.", "", *_table(head, rows)]


def _frozen(frozen: Mapping[str, str | None], results: Results) -> list[str]:
    rows = []
    for arm, source in frozen.items():
        pairs = _pairs(results, source or "", arm)
        if pairs:
            for name, of, digits in _MEASURES[:3]:
                difference = paired_difference(
                    [of(measures(one)) for one, _ in pairs],
                    [of(measures(other)) for _, other in pairs],
                )
                rows.append([source or "", name, *_cells(difference, digits)])
    head = ["arm", "measure", "difference", "bootstrap 95 %", "Student 95 %", "lower in"]
    title = "Each method against its own average weights, kept from the first iteration on; "
    return [f"{title}negative: moving the weights helped.", "", *_table(head, rows)]


def _pairs(results: Results, arm: str, baseline: str) -> list[tuple[Result, Result]]:
    one, other = _of_arm(results, arm), _of_arm(results, baseline)
    return [(one[seed], other[seed]) for seed in one if seed in other]


def _cells(difference: PairedDifference, digits: int) -> list[str]:
    def interval(bounds: tuple[float, float] | None) -> str:
        return "-" if bounds is None else f"{bounds[0]:+.{digits}f} to {bounds[1]:+.{digits}f}"

    return [
        f"{difference.mean:+.{digits}f}",
        interval(difference.bootstrap),
        interval(difference.student),
        f"{difference.num_lower} of {difference.count}",
    ]


def _speed(arms: Sequence[str], results: Results) -> list[str]:
    rows = []
    for arm in arms:
        pairs = _pairs(results, arm, BASELINE)
        if arm == BASELINE or not pairs:
            continue
        cells = []
        for at_end in (False, True):
            for perplexity in (False, True):
                ratios = [
                    iterations_ratio(*pair, perplexity=perplexity, at_end=at_end) for pair in pairs
                ]
                cells.append(_ratio(ratios))
        rows.append([arm, *cells])
    head = ["arm", "loss before decay", "perplexity before decay", "final loss", "final perplexity"]
    return [
        f"Iterations to {BASELINE}'s validation value, over {BASELINE}'s own; below 1 is faster.",
        "",
        *_table(head, rows),
    ]


def _ratio(ratios: Sequence[float | None]) -> str:
    reached = [ratio for ratio in ratios if ratio is not None]
    mean = f"{np.mean(reached):.3f}" if reached else "-"
    missed = len(ratios) - len(reached)
    return f"{mean} (never in {missed} of {len(ratios)})" if missed else mean


def _domains(arms: Sequence[str], results: Results) -> list[str]:
    """Difference of each domain's loss to the baseline."""
    others = [arm for arm in arms if arm != BASELINE and _pairs(results, arm, BASELINE)]
    rows = []
    for name, entry in next(iter(results.values()))["domains"].items():
        cells = []
        for arm in others:
            pairs = _pairs(results, arm, BASELINE)
            losses = [
                one["domains"][name]["test_loss"] - other["domains"][name]["test_loss"]
                for one, other in pairs
            ]
            cells.append(f"{np.mean(losses):+.4f}")
        baseline = [r["domains"][name]["test_loss"] for r in _of_arm(results, BASELINE).values()]
        entropy = entry.get("entropy")
        floor = "" if entropy is None else f" (noise, entropy {entropy:.3f})"
        rows.append([f"{name}{floor}", f"{np.mean(baseline):.4f}", *cells])
    title = f"Test loss per domain: {BASELINE}'s value, and the differences to it."
    return [title, "", *_table(["domain", BASELINE, *others], rows)]


def _shares(arms: Sequence[str], results: Results) -> list[str]:
    """Share of the drawn samples, and epochs of the last result."""
    rows = []
    for name in next(iter(results.values()))["domains"]:
        cells = []
        for arm in arms:
            found = list(_of_arm(results, arm).values())
            shares = [
                result["domains"][name]["samples"]
                / math.fsum(entry["samples"] for entry in result["domains"].values())
                for result in found
            ]
            epochs = [result["domains"][name]["epochs"] for result in found]
            cells.append(f"{np.mean(shares):.1%}, {np.mean(epochs):.1f}")
        rows.append([name, *cells])
    return ["Share of the samples, and epochs.", "", *_table(["domain", *arms], rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    aligned = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (head, aligned, *rows)]
