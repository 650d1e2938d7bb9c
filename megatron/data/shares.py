"""Shares of documents and weights of data sets, computed as GPT-NeoX does."""

from collections.abc import Sequence

from megatron.data.errors import DataError
from megatron.data.index_header import leading_tokens, read_header, stored_tokens


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


def training_samples(
    prefix: str, *, split: Sequence[float] | None, seq_length: int
) -> tuple[int, int]:
    """Counts what a data set has for training, from its index alone.

    Args:
        prefix: Path of the data set without ``.bin`` and ``.idx``.
        split: Shares of training, validation and test; None if all of it is for training.
        seq_length: Tokens of a sample; consecutive samples share one more.

    Returns:
        Documents of the whole data set, and samples of an epoch.

    Raises:
        DataError: If a file is missing or damaged.
    """
    documents, tokens = read_header(prefix).num_items, stored_tokens(prefix)
    if split is not None:
        tokens = leading_tokens(prefix, split_boundaries(split, documents)[1])
    return documents, max(0, (tokens - 1) // seq_length)


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
    if not sum(powers) > 0:
        raise DataError(
            f"weighted_sampler_alpha: {alpha:g} is so large that all weights of {len(shares)} data "
            "sets are 0; make it smaller"
        )
    unnormalized = [
        power / sum(powers) * (1 - share) for power, share in zip(powers, shares, strict=True)
    ]
    return [weight / sum(unnormalized) for weight in unnormalized]
