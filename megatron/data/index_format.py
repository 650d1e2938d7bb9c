"""The bytes of an ``.idx`` file, format MMIDIDX version 1 as Megatron-LM and GPT-NeoX write it.

All little-endian: magic (9 bytes) | u64 version | u8 dtype code | u64 n | u64 d |
int32 sizes[n] (tokens) | int64 pointers[n] (bytes into the ``.bin``) | int64 doc_idx[d].
"""

import dataclasses
import hashlib
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron.data.errors import DataError
from megatron.data.index_cache import RECORDED_DOCUMENTS, IndexCache, file_facts, record_name
from megatron.data.index_header import (
    HEADER,
    MAGIC,
    VERSION,
    data_file_path,
    header_of,
    index_file_path,
    open_file,
)
from odm.json_data import boolean, fields, one_of, text
from odm.wording import counted

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
    """The checked content of an ``.idx`` file and its ``.bin``; the arrays are memory maps."""

    dtype: np.dtype
    sizes: np.ndarray
    """Tokens of each item, shape (n,), int32."""
    pointers: np.ndarray
    """First byte of each item in the ``.bin``, shape (n,), int64."""
    stored_doc_idx: np.ndarray | None
    """First item of each document and the number of items, shape (documents + 1,), int64; None if
    the stored ones do not cover the items, so that each item is a document."""
    tokens: np.ndarray
    """All tokens, one item behind the other, shape (tokens,)."""
    token_map: mmap.mmap | None
    """The memory of ``tokens``; None if there are none."""
    recorded_digest: str | None
    """`digest_of_sizes` if a scan kept it, else None."""


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


def read_index(prefix: str | Path, cache: IndexCache | None = None) -> Index:
    """Maps the two files of ``prefix`` and checks them against each other.

    Args:
        prefix: Prefix of the two files.
        cache: Where the result of scanning a large index is kept, and found by other processes;
            None scans it.

    Raises:
        DataError: If a file is missing, foreign, truncated or contradicts the other.
    """
    index_path, data_path = Path(index_file_path(prefix)), Path(data_file_path(prefix))
    with open_file(index_path) as index_file, open_file(data_path) as data_file:
        header = header_of(index_path, index_file)
        raw, _ = _mapped(index_path, index_file)
        data, token_map = _mapped(data_path, data_file)
        pointers_start = HEADER.size + 4 * header.num_items
        doc_idx_start = pointers_start + 8 * header.num_items
        parts = _Parts(
            index_path,
            data_path,
            code=header.code,
            sizes=raw[HEADER.size : pointers_start].view("<i4"),
            pointers=raw[pointers_start:doc_idx_start].view("<i8"),
            doc_idx=raw[doc_idx_start:].view("<i8"),
            data_bytes=len(data),
        )
        if cache is None or header.num_items < RECORDED_DOCUMENTS:
            scan = _scan(parts)
        else:
            scan = _recorded_scan(cache, prefix, parts, files=(index_file, data_file))
    if not scan.has_documents:
        # GPT-NeoX's merge copies the items of every part but the document index of the first alone.
        logger.warning(
            "%s: the document index does not cover the %d items (as in files of some other "
            "programs); each item is taken as one document",
            index_path,
            header.num_items,
        )
    return Index(
        scan.dtype,
        parts.sizes,
        parts.pointers,
        parts.doc_idx if scan.has_documents else None,
        data.view(scan.dtype),
        token_map,
        scan.digest,
    )


def digest_of_sizes(sizes: np.ndarray) -> str:
    """SHA-256 of the sizes of the items, hexadecimal; the pointers follow from the sizes."""
    return hashlib.sha256(np.ascontiguousarray(sizes, dtype="<i4").data).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The arrays of an index, not checked."""

    index_path: Path
    data_path: Path
    _: dataclasses.KW_ONLY
    code: int
    sizes: np.ndarray
    pointers: np.ndarray
    doc_idx: np.ndarray
    data_bytes: int
    """Length of the ``.bin``."""


@dataclasses.dataclass(frozen=True)
class _Scan:
    """What only reading the whole index tells."""

    dtype: np.dtype
    has_documents: bool
    """Whether the document index covers the items."""
    digest: str | None = None


_RECORD = fields(
    {"dtype": one_of(*(t.str for t in CODE_OF_DTYPE)), "has_documents": boolean, "sizes": text()}
)


def _recorded_scan(
    cache: IndexCache, prefix: str | Path, parts: _Parts, *, files: Sequence[BinaryIO]
) -> _Scan:
    """Finds what another process has found in the same files, or scans and records it."""
    facts = [file_facts(os.fstat(file.fileno())) for file in files]
    if None in facts:
        return _scan(parts)
    name = record_name(prefix, facts)
    record = cache.find(prefix, name, _RECORD)
    if record is None:
        with cache.one_process_at_a_time(prefix):
            record = cache.find(prefix, name, _RECORD)  # by the process that was waited for
            if record is None:
                scan = dataclasses.replace(_scan(parts), digest=digest_of_sizes(parts.sizes))
                if facts == [file_facts(os.fstat(file.fileno())) for file in files]:
                    content = {"dtype": scan.dtype.str, "has_documents": scan.has_documents}
                    cache.keep(prefix, name, {**content, "sizes": scan.digest})
                return scan
    return _Scan(np.dtype(record["dtype"]), record["has_documents"], record["sizes"])


def _scan(parts: _Parts) -> _Scan:
    sizes = parts.sizes
    if len(sizes) and sizes.min() < 0:
        item = int(np.argmin(sizes))
        raise DataError(
            f"{parts.index_path}: item {item} has a negative size, {sizes[item]}; make it again"
        )
    num_tokens = int(sizes.sum(dtype=np.int64))
    dtype = _matching_dtype(parts.code, num_tokens, parts.data_path, found=parts.data_bytes)
    _check_pointers(parts.index_path, sizes, parts.pointers, dtype.itemsize)
    return _Scan(dtype, _covers_items(parts.doc_idx, len(sizes)))


def _mapped(path: Path, file: BinaryIO) -> tuple[np.ndarray, mmap.mmap | None]:
    """Maps a file as bytes; an empty one cannot be mapped and has none."""
    try:
        if not os.fstat(file.fileno()).st_size:
            return np.empty(0, dtype=np.uint8), None
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(memory, dtype=np.uint8), memory
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _matching_dtype(code: int, num_tokens: int, data_path: Path, *, found: int) -> np.dtype:
    """Returns the type with which the sizes match the ``found`` bytes of the ``.bin``."""
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
        f"{data_path}: must have {expected} bytes for {counted(num_tokens, 'token')} of "
        f"{dtype.name}, found {found}; the file is {state}, copy or make the data set again"
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


def _covers_items(doc_idx: np.ndarray, num_items: int) -> bool:
    """Whether the documents are all items, in order."""
    ends_right = len(doc_idx) > 0 and doc_idx[0] == 0 and doc_idx[-1] == num_items
    return bool(ends_right and np.all(doc_idx[1:] >= doc_idx[:-1]))
