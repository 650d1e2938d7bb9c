"""The tables of a campaign, from the small files of its finished runs, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tools.benchmark.quality.answers import answers
from tools.benchmark.quality.measures import (
    BASELINE,
    MEASURES,
    SECOND_BASELINE,
    Measure,
    Result,
    Results,
    iterations_ratio,
    measures,
    of_arm,
    pairs_of,
    processor_of,
)
from tools.benchmark.quality.plan import Plan, Run
from tools.paired_runs import PairedDifference, paired_difference

__all__ = ["report"]

OWN_METHOD = "learning_curve"
"""Arms whose names begin with this and an underscore are its variants: other losses or settings."""


def report(
    plan: Plan, results: Results, *, repeats: Results | None = None, left_out: int = 0
) -> str:
    """All tables of all suites that have results.

    Args:
        plan: The plan, for the order of suites and arms.
        results: Finished runs.
        repeats: Runs of ``results`` that were made a second time, on another processor.
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
    lines += ["", *_summary(plan, results)]
    for suite in plan.suites:
        of_suite = {run: result for run, result in results.items() if run.suite == suite}
        if of_suite:
            lines += ["", f"## Suite {suite}", "", *_suite(plan, suite, of_suite)]
    repeated = [run for run in sorted(repeats or {}) if run in results]
    if repeats and repeated:
        rows = [_repeat_row(run, results[run], repeats[run]) for run in repeated]
        lines += ["", "## Runs made on two processors", "", *_repeats(rows)]
    return "\n".join(lines) + "\n"


def _summary(plan: Plan, results: Results) -> list[str]:
    """How far the campaign is, and the protocol's questions."""
    main = plan.runs()
    done = sum(run in results for run in main)
    rows = answers(results)
    if not rows:
        return [f"{done} of {len(main)} main runs are finished."]
    head = ["suite", "question", "difference", "Student 95 %", "lower in", "answer"]
    return [
        "## Questions and answers",
        "",
        f"{done} of {len(main)} main runs are finished"
        + ("." if done == len(main) else "; the answers may change until all are."),
        "",
        *_table(head, rows),
    ]


def _suite(plan: Plan, suite: str, results: Results) -> list[str]:
    arms = [arm for arm in plan.suites[suite].arms if any(run.arm == arm for run in results)]
    first = next(iter(results.values()))
    lines = [
        f"{len(results)} runs of {first['parameters']:,} parameters and {first['tokens']:,} "
        f"tokens; {_seconds(results)}; {_processors(results)}, "
        f"{first['machine']['threads']} thread per run.",
        "",
    ]
    if added := [arm for arm in arms if arm in plan.suites[suite].added]:
        lines += [f"Added after the main runs: {', '.join(added)}.", ""]
    lines += _values(arms, results)
    variants = [arm for arm in arms if arm.startswith(f"{OWN_METHOD}_")]
    for baseline, others in ((BASELINE, arms), (SECOND_BASELINE, arms), (OWN_METHOD, variants)):
        if baseline in arms and others:
            lines += ["", *_differences(others, results, baseline)]
    frozen = {arm: plan.arms[arm].average_of for arm in arms if plan.arms[arm].average_of}
    if frozen:
        lines += ["", *_frozen(frozen, results)]
    if BASELINE in arms:
        lines += ["", *_speed(arms, results), "", *_domains(arms, results)]
    return [*lines, "", *_shares(arms, results)]


def _processors(results: Results) -> str:
    return " and ".join(sorted({processor_of(result) for result in results.values()}))


def _seconds(results: Results) -> str:
    minutes = [result["seconds"] / 60 for result in results.values()]
    return f"{min(minutes):.0f} to {max(minutes):.0f} minutes each"


def _values(arms: Sequence[str], results: Results) -> list[str]:
    rows = []
    for arm in arms:
        found = [measures(result) for result in of_arm(results, arm).values()]
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
                f"{np.mean([_noise_share(r) for r in of_arm(results, arm).values()]):.1%}",
            ]
        )
    head = ["arm", "seeds", "bits per byte", "sd over seeds", "loss", "perplexity", "worst loss"]
    return ["Means over seeds.", "", *_table([*head, "spent on noise"], rows)]


def _noise_share(result: Result) -> float:
    samples = {name: entry["samples"] for name, entry in result["domains"].items()}
    noise = sum(samples[name] for name, entry in result["domains"].items() if entry["noise"])
    return noise / sum(samples.values())


def _differences(arms: Sequence[str], results: Results, baseline: str) -> list[str]:
    rows = []
    for arm in arms:
        pairs = pairs_of(results, arm, baseline)
        if arm == baseline or not pairs:
            continue
        for measure in MEASURES:
            difference = paired_difference(
                [measure.of(measures(one)) for one, _ in pairs],
                [measure.of(measures(other)) for _, other in pairs],
            )
            rows.append([arm, measure.name, *_cells(difference, measure)])
    head = ["arm", "measure", "difference", "bootstrap 95 %", "Student 95 %", "lower in"]
    return [f"Paired differences to {baseline}; negative is better.", "", *_table(head, rows)]


def _frozen(frozen: Mapping[str, str | None], results: Results) -> list[str]:
    rows = []
    for arm, source in frozen.items():
        pairs = pairs_of(results, source or "", arm)
        if pairs:
            for measure in MEASURES[:3]:
                difference = paired_difference(
                    [measure.of(measures(one)) for one, _ in pairs],
                    [measure.of(measures(other)) for _, other in pairs],
                )
                rows.append([source or "", measure.name, *_cells(difference, measure)])
    head = ["arm", "measure", "difference", "bootstrap 95 %", "Student 95 %", "lower in"]
    title = "Each method against its own average weights, kept from the first iteration on; "
    return [f"{title}negative: moving the weights helped.", "", *_table(head, rows)]


def _repeat_row(run: Run, first: Result, second: Result) -> list[str]:
    ends = [(measure, measure.of(measures(first))) for measure in MEASURES[:3]]
    return [
        run.name,
        processor_of(first),
        processor_of(second),
        *(f"{measure.of(measures(second)) - end:+.{measure.digits}f}" for measure, end in ends),
    ]


def _repeats(rows: Sequence[Sequence[str]]) -> list[str]:
    names = [measure.name for measure in MEASURES[:3]]
    return [
        "The same run with the same numbers to start from, made again on another processor, which "
        "rounds differently: the second less the first. Everything above counts only the first.",
        "",
        *_table(["run", "first", "second", *names], rows),
    ]


def _cells(difference: PairedDifference, measure: Measure) -> list[str]:
    return [
        f"{difference.mean:+.{measure.digits}f}",
        measure.interval(difference.bootstrap),
        measure.interval(difference.student),
        f"{difference.num_lower} of {difference.count}",
    ]


def _speed(arms: Sequence[str], results: Results) -> list[str]:
    rows = []
    for arm in arms:
        pairs = pairs_of(results, arm, BASELINE)
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
    others = [arm for arm in arms if arm != BASELINE and pairs_of(results, arm, BASELINE)]
    rows = []
    for name, entry in next(iter(results.values()))["domains"].items():
        cells = []
        for arm in others:
            pairs = pairs_of(results, arm, BASELINE)
            losses = [
                one["domains"][name]["test_loss"] - other["domains"][name]["test_loss"]
                for one, other in pairs
            ]
            cells.append(f"{np.mean(losses):+.4f}")
        baseline = [r["domains"][name]["test_loss"] for r in of_arm(results, BASELINE).values()]
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
            found = list(of_arm(results, arm).values())
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
