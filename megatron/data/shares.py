"""Shares of documents and weights of data sets, computed as GPT-NeoX does."""

import math
import re
from collections.abc import Sequence

from megatron.data.errors import DataError


def split_boundaries(shares: Sequence[float], size: int) -> list[int]:
    """Cuts ``size`` documents into parts, as GPT-NeoX rounds them.

    Args:
        shares: Share of each part, sum 1.
        size: Number of documents.

    Returns:
        Boundaries; part i is [boundaries[i], boundaries[i + 1]).
    """
    boundaries = [0]
    for share in shares:
        boundaries.append(boundaries[-1] + round(share * size))
    # Rounding may miss the end by a few; every boundary but the first moves by that.
    excess = boundaries[-1] - size
    # A first share of 0 would go below 0, where a document is counted from the other end.
    return [0] + [max(0, boundary - excess) for boundary in boundaries[1:]]


def get_train_valid_test_split_(splits_string: str, size: int) -> list[int]:
    """Cuts ``size`` documents into three parts by shares in a text such as "969, 30, 1".

    Raises:
        DataError: If the text is not up to three numbers >= 0 with a positive sum.
    """
    try:
        numbers = [float(number) for number in re.split("[,/]", splits_string)]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or min(numbers) < 0 or not 0 < sum(numbers) < math.inf:
        raise DataError(
            f"split: must be up to three numbers >= 0 such as '969, 30, 1', got {splits_string!r}"
        )
    numbers += [0.0] * (3 - len(numbers))
    return split_boundaries([number / sum(numbers) for number in numbers], size)


def get_normalized_weights_and_num_samples(
    weights: Sequence[float], num_samples: int
) -> tuple[list[float], list[int]]:
    """Normalises weights and gives each data set its samples with 0.5 % to spare.

    The spare samples cover the rounding of a blend. Source: GPT-NeoX.
    """
    total = sum(weights)
    if not total > 0:
        raise DataError(f"weights must have a positive sum, got {list(weights)}")
    normalized = [weight / total for weight in weights]
    return normalized, [math.ceil(num_samples * weight * 1.005) for weight in normalized]


def weights_by_num_docs(num_documents: Sequence[int], alpha: float = 0.3) -> list[float]:
    """Weighs data sets by their numbers of documents n: n^alpha (1 - n / N), normalised.

    Args:
        num_documents: Documents of each data set.
        alpha: 0 makes data sets equal before the factor (1 - n / N), 1 proportional.

    Returns:
        Weights with sum 1; a single data set has 1.

    Source: GPT-NeoX's ``weight_by_num_documents``.
    """
    if len(num_documents) == 1:
        return [1.0]
    total = sum(num_documents)
    if not total > 0:
        raise DataError(f"weight_by_num_documents: no documents in {len(num_documents)} data sets")
    shares = [n / total for n in num_documents]
    powers = [share**alpha for share in shares]
    unnormalized = [
        power / sum(powers) * (1 - share) for power, share in zip(powers, shares, strict=True)
    ]
    return [weight / sum(unnormalized) for weight in unnormalized]
