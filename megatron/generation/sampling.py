"""Choosing the next token: pure functions of (logits, parameters, generator).

Shapes: b batch, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "GREEDY",
    "SamplingParameters",
    "filter_logits",
    "next_tokens",
    "penalize_repetition",
    "sample_generator",
]


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How a token is chosen; the defaults switch everything off."""

    temperature: float = 0.0
    """Divides the logits. 0 takes the likeliest token; filters then have no effect."""
    top_k: int = 0
    """Keeps this many of the likeliest tokens; 0 keeps all."""
    top_p: float = 0.0
    """Keeps the smallest set of tokens with at least this probability; 0 and 1 keep all."""
    min_p: float = 0.0
    """Keeps tokens with at least this share of the likeliest one's probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Makes tokens of the text so far less likely above 1, and more likely below."""

    @property
    def is_greedy(self) -> bool:
        """Returns whether no random numbers are needed."""
        return self.temperature == 0.0


GREEDY = SamplingParameters()
"""Always the likeliest token."""


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """The source of random numbers of one sample, on the CPU, for every layout and batch size.

    Args:
        seed: Seed of the run.
        sample: Number of the sample, counted from 0.
    """
    (mixed,) = np.random.SeedSequence((seed % 2**64, sample)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed))


def next_tokens(
    logits: Tensor,
    parameters: SamplingParameters,
    *,
    generators: Sequence[torch.Generator] = (),
    seen: Tensor | None = None,
) -> Tensor:
    """Next token of each row, (b, v) -> (b,) int64; -1 where logits are nan or infinite.

    Samples by the Gumbel-max rule, argmax(log p + noise). Logits of two layouts differ in the last
    bits; this changes the token only if the first two tokens are closer than that.

    Args:
        logits: (b, v); the input is not changed.
        parameters: The same for all rows.
        generators: One per row, on the CPU; not needed when greedy.
        seen: (b, v) bool, tokens of the text so far; needed for a repetition penalty.

    Source: Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030.
    """
    if parameters.repetition_penalty != 1.0:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = penalize_repetition(logits, seen, parameters.repetition_penalty)
    if parameters.is_greedy:
        return _finite_argmax(logits)
    scaled = logits.double() / parameters.temperature
    scaled = filter_logits(
        scaled, top_k=parameters.top_k, top_p=parameters.top_p, min_p=parameters.min_p
    )
    return _finite_argmax(scaled + _gumbel_noise(generators, scaled))


def _finite_argmax(scores: Tensor) -> Tensor:
    """Index of the largest score, (b, v) -> (b,), or -1; nan counts as the largest.

    A value and not an exception, which would make a GPU wait once more per token.
    """
    largest, index = scores.max(dim=-1)
    return index.where(largest.isfinite(), -1)


def filter_logits(
    logits: Tensor, *, top_k: int = 0, top_p: float = 0.0, min_p: float = 0.0
) -> Tensor:
    """Sets logits of tokens that may not be chosen to -inf; the likeliest token always stays.

    Args:
        logits: (b, v).
        top_k: Keep this many largest; 0 keeps all (Fan et al. 2018, arXiv:1805.04833).
        top_p: Keep the smallest set of tokens whose probabilities reach this mass, of those that
            ``top_k`` kept; 0 or 1 keeps all (Holtzman et al. 2019, arXiv:1904.09751).
        min_p: Keep tokens of at least ``min_p`` times the largest probability; 0 keeps all (Nguyen
            et al. 2024, arXiv:2407.01082).
    """
    if top_k > 0:
        largest, index = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter_(-1, index, largest)
    if 0.0 < top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        is_outside = mass_before >= top_p
        is_outside[..., 0] = False  # where top_p is smaller than the rounding of the sum
        ordered = ordered.masked_fill(is_outside, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    if min_p > 0.0:
        # p_i / p_max = exp(logit_i - logit_max): no softmax is needed
        smallest = logits.max(dim=-1, keepdim=True).values + float(np.log(min_p))
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return logits


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides the positive logits of seen tokens by ``penalty`` and multiplies the negative ones.

    Args:
        logits: (b, v).
        seen: (b, v) bool.
        penalty: Above 0; 1 changes nothing.

    Source: Keskar et al. 2019, arXiv:1909.05858, with the case of negative logits as transformers
    has it.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def _gumbel_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """-log(-log(u)), (b, v) float64, from a generator per row."""
    assert len(generators) == like.shape[0], "one generator per row"
    noise = torch.empty(like.shape, dtype=torch.float64)
    for row, generator in zip(noise, generators, strict=True):
        row.uniform_(generator=generator)
    # u may be 0, where the logarithm is -inf: such a token is never chosen, which is right
    noise = noise.log_().neg_().log_().neg_()
    return noise.to(like.device, non_blocking=True)
