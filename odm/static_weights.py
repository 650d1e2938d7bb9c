"""Constant weights that follow from the sizes of the domains; does not import numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .json_data import is_number

_ROUNDING = 1e-9


def temperature_shares(sizes: Sequence[float], temperature: float) -> list[float]:
    """Shares in proportion to ``size ** (1 / temperature)``.

    1 is proportional to the sizes, larger temperatures are closer to equal shares. Multilingual
    models are often described by the exponent alpha = 1 / temperature instead.

    Args:
        sizes: Samples or tokens of each domain, not negative, at least one positive.
        temperature: Above 0.

    Raises:
        ValueError: If a size or the temperature is out of range.

    Source: Arivazhagan et al. 2019, arXiv:1907.05019.
    """
    _check_sizes("temperature", sizes)
    if not (is_number(temperature) and temperature > 0):
        raise ValueError(f"temperature: must be a number above 0, got {temperature}")
    largest = max(sizes)
    # of logarithms, since a small temperature makes powers that no float can hold
    powers = [math.exp(math.log(s / largest) / temperature) if s > 0 else 0.0 for s in sizes]
    total = sum(powers)
    return [power / total for power in powers]


def unimax_shares(
    sizes: Sequence[float], max_epochs: float, *, total_samples: float
) -> list[float]:
    """The most equal shares that read no domain more than ``max_epochs`` times in a run.

    Args:
        sizes: Samples of each domain, not negative, at least one positive.
        max_epochs: Passes over a domain, above 0.
        total_samples: Samples that the whole run draws, above 0.

    Raises:
        ValueError: If a value is out of range, or the run draws more than ``max_epochs`` passes
            over all domains.

    Source: UniMax, Chung et al. 2023, arXiv:2304.09151. There a run ends when all domains are used
    up; here such a run is refused.
    """
    _check_sizes("unimax", sizes)
    if not (is_number(max_epochs) and max_epochs > 0 and total_samples > 0):
        raise ValueError(f"unimax: must be a number of epochs above 0, got {max_epochs}")
    available = max_epochs * sum(sizes)
    if available < total_samples * (1 - _ROUNDING):
        raise ValueError(
            f"unimax: {max_epochs:g} epochs of the domains are {available:.0f} samples, the run "
            f"draws {total_samples:.0f}; raise it to at least "
            f"{total_samples / sum(sizes):.4g} or train for fewer steps"
        )
    samples = [0.0] * len(sizes)
    left = float(total_samples)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    for position, domain in enumerate(smallest_first):
        samples[domain] = min(max_epochs * sizes[domain], left / (len(sizes) - position))
        left -= samples[domain]
    total = sum(samples)
    return [count / total for count in samples]


def _check_sizes(where: str, sizes: Sequence[float]) -> None:
    if not (all(is_number(size) and size >= 0 for size in sizes) and sum(sizes) > 0):
        raise ValueError(f"{where}: sizes must be at least 0 and not all 0, got {list(sizes)}")
