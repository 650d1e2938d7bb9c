"""Frequencies of rotary positions, plain or changed for texts longer than those of a training.

The formulas are those of ``modeling_rope_utils`` in transformers 5, in float64. r is the rotated
part of a head; frequency i of the r / 2 is ``base ** (-2 i / r)`` before it is scaled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron.neox_arguments.sections.model import RopeScaling

__all__ = ["attention_factor", "inverse_frequencies"]


def inverse_frequencies(
    rotary_dim: int,
    base: float,
    scaling: RopeScaling | None,
    *,
    length: int,
    max_positions: int,
) -> Tensor:
    """Radians per position of each pair of features, (rotary_dim / 2,) float64.

    Args:
        rotary_dim: Rotated dimensions of a head, r.
        base: Base of the wavelengths.
        scaling: What changes the frequencies; None changes nothing.
        length: Length of the text, for ``dynamic``.
        max_positions: Longest text for which ``dynamic`` changes nothing.
    """
    if scaling is not None and scaling.rope_type == "dynamic" and length > max_positions:
        # NTK-aware (bloc97 and emozilla 2023): the slowest wavelength grows with the text
        grown = scaling.factor * length / max_positions - (scaling.factor - 1)
        base = base * grown ** (rotary_dim / (rotary_dim - 2))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    frequencies = base**-exponents
    if scaling is None or scaling.rope_type == "dynamic":
        return frequencies
    if scaling.rope_type == "linear":  # Chen et al. 2023, arXiv:2306.15595
        return frequencies / scaling.factor
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(frequencies, scaling, base=base)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by; its square multiplies the scores of rotated features."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        top = _yarn_scale(scaling.factor, scaling.mscale)
        return top / _yarn_scale(scaling.factor, scaling.mscale_all_dim)
    return _yarn_scale(scaling.factor, 1.0)


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _yarn(frequencies: Tensor, scaling: RopeScaling, *, base: float) -> Tensor:
    """Divides slow frequencies by the factor, keeps fast ones, and mixes those between.

    Source: Peng et al. 2023, arXiv:2309.00071.
    """
    assert scaling.original_max_position_embeddings is not None
    trained, pairs = scaling.original_max_position_embeddings, len(frequencies)

    def pair_that_turns(rotations: float) -> float:
        """The pair that turns so often in the trained length, as a fraction of pairs."""
        return pairs * math.log(trained / (rotations * 2 * math.pi)) / math.log(base)

    low = pair_that_turns(scaling.beta_fast or 32.0)
    high = pair_that_turns(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    slow = ((torch.arange(pairs, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return frequencies * (1 - slow) + frequencies / scaling.factor * slow


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divides wavelengths beyond the trained length by the factor, with a smooth border.

    Source: Meta's Llama 3.1 reference implementation.
    """
    assert scaling.original_max_position_embeddings is not None
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)
