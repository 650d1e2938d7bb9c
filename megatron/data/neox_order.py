"""The sample order of GPT-NeoX and of the research code, to reproduce their runs.

It depends on how many samples a run asks for and shuffles all epochs as one, so training with
mixing does not use it; ``index_maps`` has the order of this project.
"""

from collections.abc import Iterable

import numpy as np

FIRST_INT64_SAMPLE_COUNT = 2**32 - 2  # from here on the shuffle is stored as int64


def neox_num_epochs(tokens_per_epoch: int, *, seq_length: int, num_samples: int) -> int:
    """Returns the smallest number of epochs that holds ``num_samples`` overlapping samples."""
    tokens_needed = num_samples * seq_length + 1
    return max(1, -(-tokens_needed // tokens_per_epoch))


def neox_document_index(
    documents: Iterable[int], *, num_epochs: int, random_state: np.random.RandomState
) -> np.ndarray:
    """Shuffles the documents of all epochs jointly.

    Args:
        documents: Documents of one epoch.
        num_epochs: How often they are repeated before the shuffle.
        random_state: Advanced by one shuffle; hand it on to ``neox_shuffle_index``.

    Returns:
        Shape (documents * num_epochs,), int32.
    """
    order = np.tile(np.asarray(documents, dtype=np.int32), num_epochs)
    random_state.shuffle(order)
    return order


def neox_sample_index(
    sizes: np.ndarray, document_index: np.ndarray, *, seq_length: int
) -> np.ndarray:
    """Finds where each sample begins in the stream of shuffled documents.

    Args:
        sizes: Tokens of each document of the data set, shape (n,).
        document_index: From ``neox_document_index``.
        seq_length: Samples are that long plus one token, which the next one shares.

    Returns:
        Rows (place in ``document_index``, token in that document), shape (samples + 1, 2), int32.
    """
    offsets = np.zeros(len(document_index) + 1, dtype=np.int64)
    np.cumsum(sizes[document_index], dtype=np.int64, out=offsets[1:])
    num_samples = max(0, (int(offsets[-1]) - 1) // seq_length)
    starts = np.arange(num_samples + 1, dtype=np.int64) * seq_length
    places = np.searchsorted(offsets, starts, side="right") - 1
    return np.stack([places, starts - offsets[places]], axis=1).astype(np.int32)


def neox_shuffle_index(num_samples: int, *, random_state: np.random.RandomState) -> np.ndarray:
    """Shuffles the samples, with the random state that shuffled the documents.

    Returns:
        Shape (num_samples,), uint32, or int64 where that is too small.
    """
    dtype = np.int64 if num_samples >= FIRST_INT64_SAMPLE_COUNT else np.uint32
    order = np.arange(num_samples, dtype=dtype)
    random_state.shuffle(order)
    return order
