"""The bytes of an ``.idx`` file, format MMIDIDX version 1 as Megatron-LM and GPT-NeoX write it.

All little-endian: magic (9 bytes) | u64 version | u8 dtype code | u64 n | u64 d |
int32 sizes[n] (tokens) | int64 pointers[n] (bytes into the ``.bin``) | int64 doc_idx[d].
"""

import dataclasses
import logging
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron.data.errors import DataError
from megatron.data.index_header import (
    HEADER,
    MAGIC,
    VERSION,
    data_file_path,
    index_file_path,
    read_header,
)

logger = logging.getLogger(__name__)

DTYPE_OF_CODE: dict[int, np.dtype] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f4"),
    7: np.dtype("<f8"),
    8: np.dtype("<u2"),
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}
# Megatron-LM gives the codes 6 and 7 the other way round; the length of the .bin tells which it is.
SWAPPED_FLOAT_DTYPE: dict[int, np.dtype] = {6: np.dtype("<f8"), 7: np.dtype("<f4")}

ITEMS_PER_CHECK = 1 << 20  # 8 MiB of pointers at a time


@dataclasses.dataclass(frozen=True)
class Index:
    """The checked content of an ``.idx`` file; the arrays are memory maps."""

    dtype: np.dtype
    sizes: np.ndarray
    """Tokens of each item, shape (n,), int32."""
    pointers: np.ndarray
    """First byte of each item in the ``.bin``, shape (n,), int64."""
    doc_idx: np.ndarray
    """First item of each document and the number of items, shape (documents + 1,), int64."""


def write_index(
    stream: BinaryIO, dtype: np.dtype, *, sizes: np.ndarray, doc_idx: np.ndarray
) -> None:
    """Writes an index for items that lie one after the other in the ``.bin``.

    Args:
        stream: Where to write.
        dtype: Type of a token, one of ``DTYPE_OF_CODE``.
        sizes: Tokens of each item, shape (n,).
        doc_idx: First item of each document and the number of items, shape (documents + 1,).
    """
    pointers = np.zeros(len(sizes), dtype="<i8")
    np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
    pointers *= dtype.itemsize
    stream.write(HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[dtype], len(sizes), len(doc_idx)))
    stream.write(sizes.astype("<i4").tobytes())
    stream.write(pointers.tobytes())
    stream.write(doc_idx.astype("<i8").tobytes())


def read_index(prefix: str | Path) -> Index:
    """Maps the index of ``prefix`` and checks it and the length of the ``.bin`` file against it.

    Raises:
        DataError: If a file is missing, foreign, truncated or contradicts the other.
    """
    index_path, data_path = Path(index_file_path(prefix)), Path(data_file_path(prefix))
    header = read_header(prefix)
    num_items = header.num_items
    try:
        raw = np.asarray(np.memmap(index_path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise DataError(f"{index_path}: cannot be read: {error.strerror}") from error
    pointers_start = HEADER.size + 4 * num_items
    doc_idx_start = pointers_start + 8 * num_items
    sizes = raw[HEADER.size : pointers_start].view("<i4")
    pointers = raw[pointers_start:doc_idx_start].view("<i8")
    doc_idx = raw[doc_idx_start:].view("<i8")
    if num_items and sizes.min() < 0:
        item = int(np.argmin(sizes))
        raise DataError(
            f"{index_path}: item {item} has a negative size, {sizes[item]}; make it again"
        )
    dtype = _matching_dtype(header.code, int(sizes.sum(dtype=np.int64)), data_path)
    _check_pointers(index_path, sizes, pointers, dtype.itemsize)
    return Index(dtype, sizes, pointers, _repaired_doc_idx(index_path, doc_idx, num_items))


def _matching_dtype(code: int, num_tokens: int, data_path: Path) -> np.dtype:
    """Returns the type with which the sizes match the length of the ``.bin``."""
    found = os.path.getsize(data_path)
    dtype = DTYPE_OF_CODE[code]
    if found == num_tokens * dtype.itemsize:
        return dtype
    if code in SWAPPED_FLOAT_DTYPE:
        swapped = SWAPPED_FLOAT_DTYPE[code]
        if found == num_tokens * swapped.itemsize:
            return swapped
    expected = num_tokens * dtype.itemsize
    state = "truncated" if found < expected else "longer than its index says"
    raise DataError(
        f"{data_path}: {num_tokens} tokens of {dtype.name} need {expected} bytes, found {found}; "
        f"the file is {state}, copy or make the data set again"
    )


def _check_pointers(path: Path, sizes: np.ndarray, pointers: np.ndarray, itemsize: int) -> None:
    """Refuses pointers that are not the running sum of the sizes: reads would be wrong."""
    start = 0
    for first in range(0, len(sizes), ITEMS_PER_CHECK):
        part = slice(first, first + ITEMS_PER_CHECK)
        ends = start + np.cumsum(sizes[part], dtype=np.int64) * itemsize
        expected = np.concatenate(([start], ends[:-1]))
        wrong = np.flatnonzero(pointers[part] != expected)
        if wrong.size:
            item = first + int(wrong[0])
            raise DataError(
                f"{path}: item {item} points to byte {pointers[item]}, its predecessors end at "
                f"byte {expected[wrong[0]]}; the index is damaged, make it again"
            )
        start = int(ends[-1])


def _repaired_doc_idx(path: Path, doc_idx: np.ndarray, num_items: int) -> np.ndarray:
    """Returns ``doc_idx``, or one document per item if it does not cover the items."""
    covers = len(doc_idx) > 0 and doc_idx[0] == 0 and doc_idx[-1] == num_items
    if covers and np.all(doc_idx[1:] >= doc_idx[:-1]):
        return doc_idx
    # GPT-NeoX's merge copies the items of every part but the document index of the first alone.
    logger.warning(
        "%s: the document index does not cover the %d items (as in files of some other programs); "
        "each item is taken as one document",
        path,
        num_items,
    )
    return np.arange(num_items + 1, dtype=np.int64)
