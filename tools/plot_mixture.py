#!/usr/bin/env python
"""Draws a run's mixture: ``python tools/plot_mixture.py RUN_OR_LOG [-o mixture.png]``.

Reads the run log (``metrics.jsonl``) and nothing else. Three panels against iterations: the weight
of every domain, its training loss with its validation points, and the epochs of its data.
``--replay OTHER`` adds the weights that another method would have chosen on the logged losses.

``--curves`` draws a learning curve per domain instead: a line fitted to the newest losses, its
error, and the tokens that the next 0.01 nats will take; ``--json`` prints these numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import numpy as np

from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from megatron.reporting.run_log import find_run_log, read_run_log
from odm import replay_log
from odm.other_method import OtherWeights, parse_options, replay_with
from tools.learning_curves import draw_curves, fit_curves
from tools.pictures import drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING_POINTS = 5
"""Training losses are shown as the mean over this many logged values of the domain."""

_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#6f6f6f", "#a8a100", "#17becf"),
)
"""Ten colours that differ clearly."""

_TURNS = (
    (0.0, 0.0, "-", "o"),
    (0.45, 0.0, (0, (4, 1.5)), "s"),
    (0.3, 1.0, (0, (1, 1)), "^"),
)
"""Past ten domains the colours come again: how far mixed with which grey, dash, validation mark."""

_LINE_MARKS = ("", "x", "+", "1", "2", "3", "4")
"""Marks along the line, a new one after every thirty domains."""


@dataclass(frozen=True)
class MixtureHistory:
    """What the run log says about the domains, in the order of the log."""

    domains: tuple[str, ...]
    iterations: np.ndarray
    """Logged training iterations, shape (T,)."""
    weights: np.ndarray
    """Shape (T, K)."""
    losses: np.ndarray
    """Shape (T, K), nats; NaN where a domain was not drawn. Means since the line before, which an
    older log does not have: there of the logged iteration alone."""
    epochs: np.ndarray
    """Shape (T, K)."""
    validation: Mapping[str, tuple[list[int], list[float]]]
    """Domain -> iterations and losses."""
    tokens: int | None = None
    """Tokens trained on up to the last logged iteration; None if the log does not tell."""


def read_history(path: Path) -> MixtureHistory:
    """Reads a run log.

    Raises:
        ValueError: If it has no training iteration with domains.
    """
    events = read_run_log(path)
    train = [event for event in events if event["event"] == "train" and event.get("weights")]
    if not train:
        raise ValueError(
            f"{find_run_log(path)}: has no training iteration with domains; nothing to draw yet"
        )
    domains = tuple(dict.fromkeys(name for event in train for name in event["weights"]))
    validation: dict[str, tuple[list[int], list[float]]] = {}
    for event in events:
        if event["event"] == "validation":
            for name, result in event["domains"].items():
                iterations, losses = validation.setdefault(name, ([], []))
                iterations.append(event["iteration"])
                losses.append(result["loss"])
    return MixtureHistory(
        domains=domains,
        iterations=np.array([event["iteration"] for event in train]),
        weights=_table(train, "weights", domains),
        losses=_losses(train, domains),
        epochs=_table(train, "epochs", domains),
        validation=validation,
        tokens=train[-1].get("consumed_tokens"),
    )


def read_other(path: Path, method: str, options: Mapping[str, Any]) -> OtherWeights:
    """Replays a run log with another method; see `odm.other_method`.

    Raises:
        ValueError: If the log cannot be replayed, or the method or an option is wrong.
    """
    file = find_run_log(path)
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        try:
            return replay_with(replay_log.read_run_log(lines), method, options)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


def smooth(values: np.ndarray, *, points: int) -> np.ndarray:
    """Means over a centred window of ``points`` values; NaN is left out.

    The window is centred because one that only looks back shows a falling loss too late. At the
    ends it is cut on both sides alike.

    Args:
        values: Shape (T,).
        points: Width of the window, odd.

    Returns:
        Shape (T,); NaN where the value itself is.
    """
    present = np.flatnonzero(~np.isnan(values))
    smoothed = np.full_like(values, math.nan)
    sums = np.concatenate(([0.0], np.cumsum(values[present])))
    places = np.arange(present.size)
    reach = np.minimum(points // 2, np.minimum(places, places[::-1]))
    starts, ends = places - reach, places + reach + 1
    smoothed[present] = (sums[ends] - sums[starts]) / (ends - starts)
    return smoothed


def spread(wanted: np.ndarray, *, gap: float) -> np.ndarray:
    """Moves positions apart until neighbours are ``gap`` apart, as little as least squares allows.

    Args:
        wanted: Positions in ascending order, shape (N,).
        gap: Smallest distance.

    Returns:
        Positions in ascending order, shape (N,), kept within [0, 1] where they fit.
    """
    offsets = gap * np.arange(wanted.size)
    blocks: list[tuple[float, int]] = []  # isotonic regression of wanted - offsets: mean and size
    for target in wanted - offsets:
        blocks.append((float(target), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, n), (high, m) = blocks[-2:]
            blocks[-2:] = [((low * n + high * m) / (n + m), n + m)]
    placed = np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
    top = max(0.0, 1.0 - offsets[-1])
    return np.clip(placed, 0.0, top) + offsets


def draw_mixture(
    history: MixtureHistory, output: Path, *, title: str, other: OtherWeights | None = None
) -> None:
    """Draws the panels into ``output``; its ending chooses the format, PNG without one.

    Args:
        history: The run log.
        output: The file to write.
        title: Title of the picture.
        other: Weights of another method, for a fourth panel.
    """
    with drawing(output) as pyplot:
        smoothed = np.stack(
            [smooth(column, points=SMOOTHING_POINTS) for column in history.losses.T], axis=1
        )
        num_panels = 3 if other is None else 4
        height = max(9.0, 0.5 * len(history.domains) + 2.5) * num_panels / 3
        figure, axes = pyplot.subplots(
            num_panels, 1, figsize=(11, height), sharex=True, layout="constrained"
        )
        figure.suptitle(title, fontsize=12, parse_math=False)
        _draw_panel(axes[0], history, 100 * history.weights, "Sampling weight", "weight (%)")
        _draw_panel(
            axes[1],
            history,
            smoothed,
            f"Training loss, mean of {SMOOTHING_POINTS} logged values; open marks: validation",
            "loss (nats per token)",
        )
        _draw_validation(axes[1], history)
        _draw_panel(axes[2], history, history.epochs, "Passes over the domain's data", "epochs")
        answer = None if other is None else _with_weights_of(history, other)
        if other is not None and answer is not None:
            heading = f"Weights of {other.method} on these losses (its own would have been others)"
            _draw_panel(axes[3], answer, 100 * answer.weights, heading, "weight (%)")
        for panel in (axes[0], *axes[2:]):
            panel.set_ylim(bottom=0)
        axes[-1].set_xlabel("iteration")
        figure.canvas.draw()  # labels need the final limits and size of the panels
        if answer is not None:
            _label_curves(axes[3], answer, 100 * answer.weights, form="{:.1f} %".format)
        _label_curves(axes[0], history, 100 * history.weights, form="{:.1f} %".format)
        _label_curves(axes[1], history, smoothed, form="{:.2f}".format)
        _label_curves(axes[2], history, history.epochs, form=epochs_text)
        save_picture(figure, output)


def _with_weights_of(history: MixtureHistory, other: OtherWeights) -> MixtureHistory:
    columns = [other.domains.index(name) for name in history.domains]
    return replace(history, iterations=other.iterations, weights=other.other[:, columns])


def iteration_limits(history: MixtureHistory) -> tuple[int, int]:
    """First and last iteration to show: validation may be outside those that were logged."""
    validated = [place for places, _ in history.validation.values() for place in places]
    shown = [int(history.iterations[0]), int(history.iterations[-1]), *validated]
    return min(shown), max(max(shown), min(shown) + 1)


def _draw_panel(
    panel: Axes, history: MixtureHistory, table: np.ndarray, title: str, y_label: str
) -> None:
    for index, values in enumerate(table.T):
        drawn = ~np.isnan(values)  # joined over iterations that did not draw the domain
        style = line_style(index)
        if drawn.sum() == 1:
            style["marker"] = "."  # a line of one point is not seen
        panel.plot(
            history.iterations[drawn],
            values[drawn],
            linewidth=1.4,
            markersize=4,
            markevery=max(1, int(drawn.sum()) // 12),
            **style,
        )
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_ylabel(y_label)
    panel.set_xlim(*iteration_limits(history))
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_validation(panel: Axes, history: MixtureHistory) -> None:
    for index, name in enumerate(history.domains):
        iterations, losses = history.validation.get(name, ([], []))
        if not np.isfinite(np.array(losses, dtype=np.float64)).any():
            continue  # an unclipped curve without a point has no extent: the layout would collapse
        panel.plot(
            iterations,
            losses,
            linestyle="none",
            marker=_TURNS[index // len(_COLOURS) % len(_TURNS)][3],
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=line_style(index)["color"],
            clip_on=False,
            zorder=3,
        )


def _label_curves(
    panel: Axes, history: MixtureHistory, table: np.ndarray, *, form: Callable[[float], str]
) -> None:
    """Writes name and last value beside the end of each curve, as near as the others allow."""
    font_points = 8
    low, high = panel.get_ylim()
    last: dict[int, float] = {}
    for index, values in enumerate(table.T):
        known = values[~np.isnan(values)]
        if known.size:
            last[index] = known[-1]
    order = sorted(last, key=lambda index: last[index])
    if not order:
        return
    heights = np.array([(last[index] - low) / (high - low) for index in order])
    points = panel.get_window_extent().height * 72 / panel.figure.dpi
    places = spread(heights, gap=1.25 * font_points / points)
    for index, height, place in zip(order, heights, places, strict=True):
        style = line_style(index)
        panel.plot(
            (1.0, 1.02, 1.05),
            (height, place, place),
            transform=panel.transAxes,
            clip_on=False,
            linewidth=1.2,
            markevery=(2, 1),
            markersize=4,
            **style,
        )
        panel.text(
            1.055,
            place,
            f"{history.domains[index]}  {form(last[index])}",
            transform=panel.transAxes,
            color=style["color"],
            parse_math=False,  # a name may hold a dollar sign
            fontsize=font_points,
            verticalalignment="center",
        )


def _losses(events: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> np.ndarray:
    """Losses by iteration and domain: means since the last line; early versions log none."""
    rows = [{"losses": event.get("mean_losses") or event.get("losses")} for event in events]
    return _table(rows, "losses", domains)


def _table(events: Sequence[Mapping[str, Any]], key: str, domains: Sequence[str]) -> np.ndarray:
    rows = [[(event.get(key) or {}).get(name) for name in domains] for event in events]
    return np.array(rows, dtype=np.float64)  # None becomes NaN


def line_style(index: int) -> dict[str, Any]:
    """Colour, dash and mark of a domain's line: no two domains of a run share all three."""
    turn, place = divmod(index, len(_COLOURS))
    cycle, turn = divmod(turn, len(_TURNS))
    share, grey, dash, _ = _TURNS[turn]
    base = (int(_COLOURS[place][at : at + 2], 16) / 255 for at in (1, 3, 5))
    colour = tuple((1 - share) * part + share * grey for part in base)
    return {
        "color": colour,
        "linestyle": dash,
        "marker": _LINE_MARKS[cycle % len(_LINE_MARKS)],
    }


def epochs_text(epochs: float) -> str:
    """Writes a number of passes with two digits, and all of those before the point."""
    if 0 < epochs < 0.01:
        return "< 0.01"
    return f"{epochs:.2g}" if epochs < 9.95 else f"{epochs:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Draws the mixture of a run from its run log.")
    parser.add_argument("run", type=path_argument, help="save folder, log folder or metrics.jsonl")
    parser.add_argument("-o", "--output", type=path_argument, help="mixture.png, or curves.png")
    parser.add_argument("--title", help="title (default: the run's folder)")
    parser.add_argument("--curves", action="store_true", help="draw a learning curve per domain")
    parser.add_argument("--json", action="store_true", help="print the learning curves as JSON")
    parser.add_argument("--replay", metavar="METHOD", help="add the weights of another method")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of --replay"
    )
    arguments = parser.parse_args(argv)
    if arguments.replay is None and arguments.option:
        parser.error("--option needs --replay")
    if arguments.replay is not None and (arguments.curves or arguments.json):
        parser.error("--replay does not go with --curves and --json")
    try:
        _run(arguments)
    except ImportError as error:
        print(f"plot_mixture.py: {error}; pip install matplotlib", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"plot_mixture.py: {describe_error(error)}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    history = read_history(arguments.run)
    is_of_curves = arguments.curves or arguments.json
    what = "Learning curves" if is_of_curves else "Data mixture"
    output = arguments.output or Path("curves.png" if is_of_curves else "mixture.png")
    title = arguments.title or f"{what} of {arguments.run.resolve().name}"
    if is_of_curves:
        curves = fit_curves(history)
        if not arguments.json or arguments.output is not None:
            draw_curves(history, curves, output, title=title)
        if arguments.json:
            print(json.dumps(curves.to_dict(), allow_nan=False))
        if arguments.json and arguments.output is None:
            return
    else:
        other = None
        if arguments.replay is not None:
            other = read_other(arguments.run, arguments.replay, parse_options(arguments.option))
        draw_mixture(history, output, title=title, other=other)
    print(f"wrote {output}", file=sys.stderr if arguments.json else sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
