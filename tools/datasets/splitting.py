"""Which documents are held out for validation and test: a function of their text alone."""

import hashlib
from collections.abc import Sequence

from megatron.data.splits import SplitName

HELD_OUT_FRACTION = 0.02
FLOOR_DOCUMENTS = 8
FLOOR_BYTES = 32_768
LARGEST_SHARE = 0.1
"""Largest share of the documents for validation, and for test, whatever the minimums are."""

DIGEST_BYTES = 16


def digest_of(text: str) -> bytes:
    """Digest of a text, 16 bytes; texts that differ only in white space have the same one."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:DIGEST_BYTES]


def assign_splits(digests: Sequence[bytes], sizes_bytes: Sequence[int]) -> list[SplitName]:
    """Splits documents by the hash of their text; their order does not matter.

    A document goes to test if its hash, read as a number in [0, 1), is below 0.02, and to valid if
    it is below 0.04, so adding documents moves no old one. A small domain would get too little text
    to measure a loss. There, test and then valid take the documents with the next higher hashes,
    until each has 8 documents and 32 KiB, or a tenth of all documents.

    Args:
        digests: Results of `digest_of`, all different.
        sizes_bytes: Size of each text.

    Returns:
        The split of each document; with 3 documents or more none of the splits is empty.
    """
    order = sorted(range(len(digests)), key=lambda place: digests[place])
    most = max(1, int(len(order) * LARGEST_SHARE))
    splits: list[SplitName] = ["train"] * len(order)
    place = 0
    held_out: tuple[tuple[SplitName, float, int], ...] = (
        ("test", HELD_OUT_FRACTION, 2),
        ("valid", 2 * HELD_OUT_FRACTION, 1),
    )
    for split, threshold, splits_to_come in held_out:
        documents = size_bytes = 0
        while place < len(order) - splits_to_come:
            is_below = int.from_bytes(digests[order[place]][:8], "big") < threshold * 2**64
            is_small = documents < FLOOR_DOCUMENTS or size_bytes < FLOOR_BYTES
            if not is_below and not (is_small and documents < most):
                break
            splits[order[place]] = split
            documents += 1
            size_bytes += sizes_bytes[order[place]]
            place += 1
    return splits
