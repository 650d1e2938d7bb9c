"""Learning curves of a run's domains: fitted lines, errors, and what the next gain would cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odm.curves import CurveSums, LossPoints, middle_of_block
from tools.pictures import drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tools.plot_mixture import MixtureHistory

WINDOW = 1.0
"""Points that are this much older in ln(iteration) count 1 / e: as in the method learning_curve."""

GAIN_NATS = 0.01
"""Gain whose cost in tokens is shown."""

_NORMAL_95 = 1.96
_DRAWN_POINTS = 200
_MOST_EFOLDS = 50.0
"""A gain that is further away than exp(50) times the tokens so far is never reached."""


@dataclass(frozen=True)
class DomainCurve:
    """The learning curve of a domain; numbers that the log cannot tell are None."""

    loss: float | None
    """Training loss of the line at the last iteration, in nats per token."""
    loss_error: float | None
    """Its standard error."""
    slope_per_doubling: float | None
    """Change of the loss, in nats, when the tokens of the run are doubled; negative: it falls."""
    slope_error: float | None
    """Standard error of the slope."""
    tokens_to_gain: float | None
    """Further tokens of the whole run until the loss has fallen by `GAIN_NATS`, if the line and the
    mixture continue; None if it does not fall."""
    tokens_to_gain_low: float | None
    """The same with a slope 1.96 standard errors steeper."""
    tokens_to_gain_high: float | None
    """The same with a slope 1.96 standard errors flatter; None if that does not fall."""


@dataclass(frozen=True)
class LearningCurves:
    """Fitted learning curves of all domains of a run."""

    domains: dict[str, DomainCurve]
    iteration: int
    """Last logged iteration."""
    tokens: int | None
    """Tokens trained on until then."""
    iterations: np.ndarray
    """Iterations of the lines below, shape (S,)."""
    level: np.ndarray
    """Loss of the line that was fitted up to each of these iterations, shape (S, K); nan before
    there are enough points."""
    error: np.ndarray
    """Its standard error, shape (S, K)."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON data."""
        return {
            "iteration": self.iteration,
            "tokens": self.tokens,
            "gain_nats": GAIN_NATS,
            "domains": {name: vars(curve) for name, curve in self.domains.items()},
            "curves": {
                name: {
                    "iterations": self.iterations.tolist(),
                    "loss": [_known(value) for value in self.level[:, k].tolist()],
                    "standard_error": [_known(value) for value in self.error[:, k].tolist()],
                }
                for k, name in enumerate(self.domains)
            },
        }


def fit_curves(history: MixtureHistory) -> LearningCurves:
    """Fits a line to each domain's training losses against ln(iteration), again and again.

    Each logged loss counts by the tokens that it is expected to be the mean of: those since the
    line before, times the weight of the domain.

    Args:
        history: The run log.
    """
    sums = CurveSums.empty(len(history.domains), window=WINDOW)
    last = len(history.iterations) - 1
    drawn = set(np.linspace(0, last, min(_DRAWN_POINTS, last + 1)).round().astype(int).tolist())
    iterations, levels, errors = [], [], []
    before = 0
    with np.errstate(all="ignore"):  # a diverged run has losses whose squares overflow
        for row, number in enumerate(history.iterations.tolist()):
            iteration = max(number, 1)
            losses = history.losses[row]
            counts = np.where(np.isfinite(losses), np.nan_to_num(history.weights[row]), 0.0)
            first = min(before + 1, iteration)
            points = LossPoints.of_step(losses, np.maximum(counts, 0.0) * (iteration - first + 1))
            sums = sums.add(middle_of_block(first, iteration), points)
            before = iteration
            if row in drawn:
                fit = sums.fit()
                level, error = fit.level(math.log(iteration))
                known = np.isfinite(level) & np.isfinite(error) & np.isfinite(fit.slope_error)
                iterations.append(iteration)
                levels.append(np.where(known, level, np.nan))
                errors.append(np.where(known, error, np.nan))
        domains = _domain_curves(history, sums, log_step=math.log(before))
    return LearningCurves(
        domains=domains,
        iteration=before,
        tokens=history.tokens,
        iterations=np.array(iterations),
        level=np.array(levels),
        error=np.array(errors),
    )


def _domain_curves(
    history: MixtureHistory, sums: CurveSums, *, log_step: float
) -> dict[str, DomainCurve]:
    fit = sums.fit()
    level, error = fit.level(log_step)
    found = {}
    for k, name in enumerate(history.domains):
        slope, slope_error = fit.slope[k].item(), fit.slope_error[k].item()
        if not (math.isfinite(slope) and math.isfinite(slope_error)):
            found[name] = DomainCurve(_known(level[k].item()), *(None,) * 6)
            continue
        reach = _NORMAL_95 * slope_error
        found[name] = DomainCurve(
            loss=_known(level[k].item()),
            loss_error=_known(error[k].item()),
            slope_per_doubling=slope * math.log(2),
            slope_error=slope_error * math.log(2),
            tokens_to_gain=_tokens_to_gain(slope, history.tokens),
            tokens_to_gain_low=_tokens_to_gain(slope - reach, history.tokens),
            tokens_to_gain_high=_tokens_to_gain(slope + reach, history.tokens),
        )
    return found


def _tokens_to_gain(slope: float, tokens: int | None) -> float | None:
    """Further tokens until a loss that changes by ``slope`` per e-fold has fallen by the gain."""
    if slope >= 0 or not tokens or GAIN_NATS / -slope > _MOST_EFOLDS:
        return None
    return tokens * math.expm1(GAIN_NATS / -slope)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def draw_curves(
    history: MixtureHistory, curves: LearningCurves, output: Path, *, title: str
) -> None:
    """Draws a panel per domain: logged losses, the fitted line with its error band, validation."""
    with drawing(output) as pyplot:
        columns = min(4, len(history.domains))
        rows = -(-len(history.domains) // columns)
        figure, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(4.2 * columns, 3.0 * rows + 0.6),
            layout="constrained",
            squeeze=False,
        )
        figure.suptitle(title, fontsize=12, parse_math=False)
        for panel in axes.flat[len(history.domains) :]:
            panel.set_visible(False)
        for k, panel in enumerate(axes.flat[: len(history.domains)]):
            _draw_domain(panel, history, curves, k)
        figure.supxlabel("iteration", fontsize=9)
        figure.supylabel(
            "training loss (nats per token), fitted line with 95 % band; open marks: validation",
            fontsize=9,
        )
        save_picture(figure, output)


def _draw_domain(panel: Axes, history: MixtureHistory, curves: LearningCurves, k: int) -> None:
    name = history.domains[k]
    panel.plot(history.iterations, history.losses[:, k], ".", color="#bbbbbb", markersize=2.5)
    line, reach = curves.level[:, k], _NORMAL_95 * curves.error[:, k]
    style = {"color": "#1f77b4", "linewidth": 1.3}
    panel.fill_between(
        curves.iterations, line - reach, line + reach, **{**style, "alpha": 0.25, "linewidth": 0}
    )
    panel.plot(curves.iterations, line, **style)
    places, losses = history.validation.get(name, ([], []))
    marks = {"color": "#d62728", "markersize": 4, "markerfacecolor": "white"}
    panel.plot(places, np.array(losses, dtype=np.float64), "o", **marks)
    panel.set_xscale("log")
    heading = f"{name}\n{_curve_text(curves.domains[name])}"
    panel.set_title(heading, loc="left", fontsize=8, parse_math=False)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _curve_text(curve: DomainCurve) -> str:
    if curve.slope_per_doubling is None or curve.slope_error is None:
        return "too few points for a slope"
    slope = f"{curve.slope_per_doubling:+.3f} +- {curve.slope_error:.3f} nats per doubling"
    if curve.tokens_to_gain is None:
        return f"{slope}; does not fall"
    high = "never" if curve.tokens_to_gain_high is None else _amount(curve.tokens_to_gain_high)
    low = _amount(curve.tokens_to_gain_low or 0.0)
    return (
        f"{slope}\nnext {GAIN_NATS} nats: {_amount(curve.tokens_to_gain)} tokens ({low} to {high})"
    )


def _amount(number: float) -> str:
    """A number of tokens with a unit, such as 1.3M."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.{1 if number < 10 * factor else 0}f}{unit}"
    return f"{number:.0f}"
