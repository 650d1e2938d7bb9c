"""The protocol's questions and what the finished runs answer: the first table of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tools.benchmark.quality.measures import (
    BASELINE,
    MEASURES,
    SECOND_BASELINE,
    Measure,
    Results,
    iterations_ratio,
    measures,
    of_arm,
    pairs_of,
)
from tools.paired_runs import PairedDifference, paired_difference

__all__ = ["Question", "answers"]

BITS, LOSS, PERPLEXITY = MEASURES[:3]

SPEED_GOAL = 0.81
"""Iterations to the baseline's perplexity, over the baseline's own: what the paper of Online Data
Mixing reports against the method that came next (19 % fewer)."""


@dataclass(frozen=True)
class Question:
    """A comparison of one arm with another on one suite."""

    suite: str
    arm: str
    baseline: str
    measure: Measure
    kind: Literal["lower", "no difference", "seed noise"]


QUESTIONS = (
    Question("X", "learning_curve", BASELINE, BITS, "lower"),
    Question("X", "learning_curve", BASELINE, LOSS, "lower"),
    Question("X", "learning_curve", BASELINE, PERPLEXITY, "lower"),
    Question("X", "learning_curve", SECOND_BASELINE, BITS, "lower"),
    Question("X", "learning_curve", SECOND_BASELINE, LOSS, "lower"),
    Question("X", "learning_curve_perplexity", SECOND_BASELINE, PERPLEXITY, "lower"),
    Question("X", SECOND_BASELINE, BASELINE, BITS, "lower"),
    Question("X", "guarded_smoothed_mean", BASELINE, BITS, "seed noise"),
    Question("X", "learning_curve_repetition", "learning_curve", BITS, "lower"),
    Question("X", "learning_curve_repetition_heldout", BASELINE, BITS, "lower"),
    Question("X", "learning_curve_repetition_heldout", "learning_curve_repetition", BITS, "lower"),
    Question("X", "learning_curve_repetition_heldout", "learning_curve_heldout", BITS, "lower"),
    Question("X", "learning_curve_three_quarters", "learning_curve", PERPLEXITY, "lower"),
    Question("X", "learning_curve_three_quarters", BASELINE, BITS, "lower"),
    Question("H", "learning_curve", BASELINE, BITS, "no difference"),
    Question("H", SECOND_BASELINE, BASELINE, BITS, "no difference"),
    Question("X10", "learning_curve", BASELINE, BITS, "lower"),
    Question("X10", "learning_curve", SECOND_BASELINE, BITS, "lower"),
    Question("X10", SECOND_BASELINE, BASELINE, BITS, "lower"),
)
"""What the protocol and its notes ask; all other comparisons are description."""

_TEXT = {
    "lower": "is {arm} below {baseline}?",
    "no difference": "is {arm} within 2 standard errors of {baseline}?",
    "seed noise": "is {arm} within 2 standard deviations of the seeds of {baseline}?",
}


def answers(results: Results) -> list[list[str]]:
    """Cells of one row per question whose runs exist.

    Args:
        results: Finished runs of all suites.

    Returns:
        Rows of suite, question, difference, Student's interval, pairs in which the arm is lower,
        and answer.
    """
    rows = [_row(question, results) for question in QUESTIONS]
    rows += [_speed_row(results, perplexity=perplexity) for perplexity in (True, False)]
    return [row for row in rows if row]


def _row(question: Question, results: Results) -> list[str]:
    of_suite = _of_suite(results, question.suite)
    pairs = pairs_of(of_suite, question.arm, question.baseline)
    if not pairs:
        return []
    measure = question.measure
    difference = paired_difference(
        [measure.of(measures(one)) for one, _ in pairs],
        [measure.of(measures(other)) for _, other in pairs],
    )
    text = _TEXT[question.kind].format(arm=question.arm, baseline=question.baseline)
    return [
        question.suite,
        f"{measure.name}: {text}",
        f"{difference.mean:+.{measure.digits}f}",
        measure.interval(difference.student),
        f"{difference.num_lower} of {difference.count}",
        _answer(question, difference, of_suite),
    ]


def _answer(question: Question, difference: PairedDifference, results: Results) -> str:
    """Yes or no; ``one pair`` where nothing tells how much of a difference is chance."""
    if difference.standard_error is None or difference.student is None:
        return "one pair"
    if question.kind == "lower":
        low, high = difference.student
        return "**yes**" if high < 0 else "**no**, it is above" if low > 0 else "not shown"
    if question.kind == "no difference":
        allowed = 2 * difference.standard_error
    else:
        values = [question.measure.of(measures(one)) for one in of_arm(results, BASELINE).values()]
        allowed = 2 * float(np.std(values, ddof=1))
    return "**yes**" if abs(difference.mean) <= allowed else "**no**"


def _speed_row(results: Results, *, perplexity: bool) -> list[str]:
    """Iterations to the baseline's last value before the decay of the learning rate."""
    pairs = pairs_of(_of_suite(results, "X"), "learning_curve", BASELINE)
    if not pairs:
        return []
    ratios = [iterations_ratio(*pair, perplexity=perplexity, at_end=False) for pair in pairs]
    reached = [ratio for ratio in ratios if ratio is not None]
    name, goal = (PERPLEXITY.name, SPEED_GOAL) if perplexity else (LOSS.name, 1.0)
    mean = float(np.mean(reached)) if len(reached) == len(pairs) else float("inf")
    return [
        "X",
        f"iterations to {BASELINE}'s {name} before the decay: at most {goal:g} times as many?",
        f"{mean:.3f}" if reached else "never",
        "-",
        f"{sum(ratio < 1 for ratio in reached)} of {len(pairs)}",
        "one pair" if len(pairs) < 2 else "**yes**" if mean <= goal else "**no**",
    ]


def _of_suite(results: Results, suite: str) -> Results:
    return {run: result for run, result in results.items() if run.suite == suite}
