"""What is to become small: a mix of mean loss and mean perplexity over the domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .simplex import FloatArray

MAX_PERPLEXITY_RATIO = 2.5
"""A perplexity counts as this many medians at most."""
_MAX_LOG = 50.0
"""Larger losses would overflow as perplexities."""


def worth_of_a_nat(
    losses: FloatArray, *, perplexity_share: float, weights: Sequence[float] = ()
) -> FloatArray:
    """Gradient of the objective: what a nat of each domain is worth, shape (K,).

    ``w_i (1 - b + b P_i / mean P)`` with the perplexities P, weights w of the domains and the share
    b of the mean perplexity.

    Args:
        losses: Nats, shape (K,), nan for domains without one, not for all.
        perplexity_share: b, in [0, 1].
        weights: What each domain counts, shape (K,); empty if all count alike.
    """
    counts = np.array(weights or np.ones(losses.size))
    known = np.where(np.isnan(losses), np.nanmedian(losses), losses)
    perplexity = np.exp(np.clip(known, -_MAX_LOG, _MAX_LOG))
    perplexity = np.minimum(perplexity, MAX_PERPLEXITY_RATIO * np.median(perplexity))
    mean = (counts * perplexity).sum() / counts.sum()
    return counts * (1.0 - perplexity_share + perplexity_share * perplexity / mean)
