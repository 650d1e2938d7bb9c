"""Fits the gym's learning curves to the public table of RegMix's runs.

    python -m tools.benchmark.fit_gym_worlds FOLDER --output odm/gym/pile_1m.json

FOLDER contains ``train_mixture_1m.csv`` and ``train_pile_loss_1m.csv`` of sail-sg/regmix (MIT): the
mixtures of 512 runs of a model of 1M parameters on 17 domains of The Pile, and their final
validation losses on 13. Of each of the 13 it fits

    loss(p) = floor + scale * (exposure . p) ^ -exponent

where ``exposure``, one positive number per training domain and at most 1, says what a share of
that domain is worth to this one. It prints how well the fit to five sixths of the runs predicts
the others, then fits all runs and writes the coefficients. Needs scipy, which lm-eval brings.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

FloatArray = NDArray[np.float64]

HELD_OUT_EVERY = 6
MIXTURES, LOSSES = "train_mixture_1m.csv", "train_pile_loss_1m.csv"
SOURCE = (
    "fitted by tools/benchmark/fit_gym_worlds.py to data/train_mixture_1m.csv and "
    "data/train_pile_loss_1m.csv of sail-sg/regmix at b004d3a3f39846dcec6b3740da22bcd1ba95a5d0 "
    "(MIT licence, Copyright (c) 2024 Sea AI Lab)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the two CSV files")
    parser.add_argument("--output", type=Path, help="JSON file to write (default: print alone)")
    options = parser.parse_args(arguments)
    try:
        trained, mixtures = _read(options.folder / MIXTURES)
        measured, losses = _read(options.folder / LOSSES)
    except (OSError, ValueError) as error:
        print(f"fit_gym_worlds: {error}", file=sys.stderr)
        return 2
    mixtures /= mixtures.sum(axis=1, keepdims=True)
    names = [name.removeprefix("metric/the_pile_").removesuffix("_val_loss") for name in measured]
    columns = [name.removeprefix("train_the_pile_") for name in trained]
    held_out = np.arange(len(mixtures)) % HELD_OUT_EVERY == 0
    fitted = {}
    print(f"{'domain':<20} {'R2 held out':>12} {'rmse':>7} {'floor':>7} {'exponent':>9}")
    for name, loss in zip(names, losses.T, strict=True):
        tried = fit(mixtures[~held_out], loss[~held_out])
        error = predict(tried, mixtures[held_out]) - loss[held_out]
        r2 = 1.0 - (error**2).sum() / ((loss[held_out] - loss[held_out].mean()) ** 2).sum()
        whole = fit(mixtures, loss)
        fitted[name] = _described(whole, columns)
        rmse = float(np.sqrt((error**2).mean()))
        print(f"{name:<20} {r2:12.3f} {rmse:7.3f} {whole[0]:7.3f} {whole[1]:9.4f}")
    if options.output:
        text = json.dumps({"source": SOURCE, "domains": fitted}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


def fit(mixtures: FloatArray, losses: FloatArray) -> FloatArray:
    """Fits one domain: floor, exponent, and one exposure per column of ``mixtures``.

    Args:
        mixtures: Shares of the training domains, shape (runs, columns).
        losses: Final losses in nats, shape (runs,).
    """
    columns = mixtures.shape[1]

    def residuals(point: FloatArray) -> FloatArray:
        return predict(np.exp(np.clip(point, -60.0, 5.0)), mixtures) - losses

    start = np.concatenate([[np.log(losses.min() * 0.6), np.log(0.3)], np.full(columns, -1.0)])
    best = min(
        (
            least_squares(residuals, start + shift, loss="soft_l1", f_scale=0.1, max_nfev=2000)
            for shift in (0.0, 0.3)
        ),
        key=lambda found: found.cost,
    )
    return np.exp(np.clip(best.x, -60.0, 5.0))


def _described(coefficients: FloatArray, columns: Sequence[str]) -> dict[str, object]:
    """What ``fit`` returns as JSON data, with the largest exposure moved into a scale."""
    floor, exponent, exposure = coefficients[0], coefficients[1], coefficients[2:]
    largest = exposure.max()
    shares = zip(columns, exposure / largest, strict=True)
    return {
        "floor": round(float(floor), 4),
        "scale": round(float(largest**-exponent), 5),
        "exponent": round(float(exponent), 5),
        "exposure": {column: float(f"{max(value, 1e-9):.4g}") for column, value in shares},
    }


def predict(coefficients: FloatArray, mixtures: FloatArray) -> FloatArray:
    """Losses in nats of mixtures of shape (runs, columns) by what ``fit`` returns."""
    floor, exponent, exposure = coefficients[0], coefficients[1], coefficients[2:]
    return floor + (mixtures @ exposure) ** -exponent


def _read(path: Path) -> tuple[list[str], FloatArray]:
    """The header without its index column, and the numbers of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0][1:], np.array([[float(x) for x in row[1:]] for row in rows[1:]])


if __name__ == "__main__":
    sys.exit(main())
