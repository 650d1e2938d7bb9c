"""What is to become small: a mix of mean loss and mean perplexity over the domains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .simplex import FloatArray

MAX_PERPLEXITY_RATIO = 2.5
"""A perplexity counts as this many medians at most."""
_MAX_LOG = 50.0
"""Larger losses would overflow as perplexities."""


def relative_weights(weights: ArrayLike, num_domains: int) -> FloatArray:
    """Weights of the domains in the objective, shape (K,), of which the largest is 1.

    Args:
        weights: Finite numbers, at least one above 0, shape (K,); empty if all count alike.
        num_domains: Number of domains K.
    """
    counts = np.asarray(weights, dtype=np.float64)
    return counts / counts.max() if counts.size else np.ones(num_domains)


def worth_of_a_nat(
    losses: FloatArray, *, perplexity_share: float, weights: ArrayLike = ()
) -> FloatArray:
    """Gradient of the objective: what a nat of each domain is worth, shape (K,).

    ``w_i (1 - b + b P_i / mean P)`` with the perplexities P, the share b of the mean perplexity,
    and weights w of the domains, of which the largest counts 1.

    Args:
        losses: Nats, shape (K,), nan for domains without one, not for all.
        perplexity_share: b, in [0, 1].
        weights: What each domain counts, shape (K,); empty if all count alike.
    """
    counts = relative_weights(weights, losses.size)
    known = np.where(np.isnan(losses), np.nanmedian(losses), losses)
    perplexity = np.exp(np.clip(known, -_MAX_LOG, _MAX_LOG))
    perplexity = np.minimum(perplexity, MAX_PERPLEXITY_RATIO * np.median(perplexity))
    mean = (counts * perplexity).sum() / counts.sum()
    return counts * (1.0 - perplexity_share + perplexity_share * perplexity / mean)
