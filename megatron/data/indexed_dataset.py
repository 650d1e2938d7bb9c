"""Reading and writing tokenized data sets, ``<prefix>.bin`` and ``<prefix>.idx``."""

import contextlib
import functools
import logging
import mmap
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron.data.errors import DataError
from megatron.data.index_cache import IndexCache
from megatron.data.index_format import CODE_OF_DTYPE, digest_of_sizes, read_index, write_index
from megatron.data.index_header import data_file_path, index_file_path
from megatron.files import atomic_writer, flush_to_disk, temporary_path
from odm.wording import counted

__all__ = [
    "MMapIndexedDataset",
    "MMapIndexedDatasetBuilder",
    "best_fitting_dtype",
    "data_file_path",
    "index_file_path",
    "make_builder",
    "make_dataset",
]

logger = logging.getLogger(__name__)

DATA_IMPLS = ("infer", "mmap", "cached", "lazy")
COPY_BYTES = 1 << 26
MAX_TOKENS_PER_ITEM = np.iinfo(np.int32).max  # sizes are int32 on disk


class MMapIndexedDataset:
    """A memory-mapped data set: item i is a one-dimensional array of tokens, read without a copy.

    Opening checks both files against each other, so that a damaged data set fails at once, not in
    the middle of a run.
    """

    def __init__(
        self, path: str | Path, skip_warmup: bool = True, *, cache: IndexCache | None = None
    ) -> None:
        """Maps ``<path>.bin`` and ``<path>.idx``.

        Args:
            path: Prefix of the two files.
            skip_warmup: False reads the tokens once, so that later reads come from memory.
            cache: Where the result of scanning a large index is kept; None scans it.

        Raises:
            DataError: If a file is missing, foreign, truncated or contradicts the other.
        """
        self._path, self._cache = str(path), cache
        self._index = index = read_index(path, cache)
        self._dtype, self._tokens = index.dtype, index.tokens
        self._sizes, self._pointers = index.sizes, index.pointers
        if not skip_warmup:
            _read_once(data_file_path(path))

    def __getstate__(self) -> tuple[str, IndexCache | None]:
        return self._path, self._cache  # a worker process maps the files itself

    def __setstate__(self, state: tuple[str, IndexCache | None]) -> None:
        self.__init__(state[0], cache=state[1])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        """Returns the tokens of an item, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self.get(item) for item in range(*index.indices(len(self)))]
        return self.get(index)

    def get(self, idx: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Returns ``length`` tokens of item ``idx`` from ``offset`` on, to its end by default.

        Raises:
            IndexError: If the item or the range does not exist.
        """
        item = idx + len(self) if idx < 0 else idx
        if not 0 <= item < len(self):
            raise IndexError(f"{self._path}: no item {idx}, there are {len(self)}")
        size = int(self._sizes[item])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise IndexError(
                f"{self._path}: item {idx} has {counted(size, 'token')}, asked for {length} from "
                f"{offset}"
            )
        first = int(self._pointers[item]) // self._dtype.itemsize + offset
        return self._tokens[first : first + length]

    @property
    def path(self) -> str:
        """Prefix of the two files."""
        return self._path

    @property
    def dtype(self) -> np.dtype:
        """Type of a token on disk."""
        return self._dtype

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each item, shape (n,), int32."""
        return self._sizes

    @property
    def pointers(self) -> np.ndarray:
        """First byte of each item in the ``.bin``, shape (n,), int64."""
        return self._pointers

    @property
    def doc_idx(self) -> np.ndarray:
        """First item of each document and the number of items, shape (documents + 1,), int64."""
        stored = self._index.stored_doc_idx
        return np.arange(len(self) + 1, dtype=np.int64) if stored is None else stored

    @property
    def token_map(self) -> mmap.mmap | None:
        """The memory map of ``tokens``; None if there are none."""
        return self._index.token_map

    def will_need(self, first_tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Asks the system to read stretches of tokens into memory; does not wait for them.

        Args:
            first_tokens: Where they begin in ``tokens``, shape (n,).
            lengths: Their numbers of tokens, shape (n,).
        """
        memory, advice = self.token_map, getattr(mmap, "MADV_WILLNEED", None)
        if memory is None or advice is None:
            return
        begins = first_tokens * self._dtype.itemsize
        starts = begins - begins % mmap.PAGESIZE
        sizes = begins + lengths * self._dtype.itemsize - starts
        with contextlib.suppress(OSError):  # advice, which some file systems do not take
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                memory.madvise(advice, start, size)

    @functools.cached_property
    def sizes_digest(self) -> str:
        """SHA-256 of ``sizes``, hexadecimal."""
        return self._index.recorded_digest or digest_of_sizes(self._sizes)

    def num_tokens(self, items: range | np.ndarray) -> int:
        """Returns the number of tokens of some items; of a range without looking at each."""
        if isinstance(items, range) and items.step == 1:
            return self._first_token(items.stop) - self._first_token(items.start) if items else 0
        return int(self._sizes[items].sum(dtype=np.int64))

    def _first_token(self, item: int) -> int:
        """Tokens before an item, or before the end."""
        is_end = item == len(self)
        return len(self._tokens) if is_end else int(self._pointers[item]) // self._dtype.itemsize

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, one item behind the other, shape (tokens,)."""
        return self._tokens

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Returns whether both files are there."""
        return os.path.exists(index_file_path(path)) and os.path.exists(data_file_path(path))


class MMapIndexedDatasetBuilder:
    """Writes a data set under temporary names; ``finalize`` gives the files their own.

    As a context manager it removes its temporary files unless it was finalized.
    """

    def __init__(self, out_file: str | Path, dtype: Any = np.int32) -> None:
        """Opens a temporary file beside ``out_file``.

        Args:
            out_file: The ``.bin`` file to make.
            dtype: Type of a token on disk.

        Raises:
            DataError: If the format has no code for ``dtype``.
        """
        self._dtype = np.dtype(dtype).newbyteorder("<")
        if self._dtype not in CODE_OF_DTYPE:
            known = ", ".join(known.name for known in CODE_OF_DTYPE)
            raise DataError(f"{out_file}: cannot store tokens as {self._dtype}; use one of {known}")
        self._data_path = Path(out_file)
        self._temporary = temporary_path(self._data_path)
        self._stream = self._temporary.open("xb")
        self._sizes = array("i")
        self._doc_idx = array("q", [0])
        self.num_tokens = 0
        self.max_token_id = -1
        """Largest token so far; -1 before the first."""

    def __enter__(self) -> "MMapIndexedDatasetBuilder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def add_item(self, item: Any) -> None:
        """Appends an item: a list, numpy array or CPU tensor of tokens.

        Raises:
            DataError: If a token does not fit the type; it would be stored as another token.
        """
        values = np.asarray(item).reshape(-1)
        if len(values) > MAX_TOKENS_PER_ITEM:
            raise DataError(
                f"{self._data_path}: an item of {len(values)} tokens; the format can store at most "
                f"{MAX_TOKENS_PER_ITEM}, split the document"
            )
        self._append(values)
        self._sizes.append(len(values))

    def _append(self, values: np.ndarray) -> None:
        if values.size and np.issubdtype(self._dtype, np.integer):
            smallest, largest = int(values.min()), int(values.max())
            limits = np.iinfo(self._dtype)
            if smallest < limits.min or largest > limits.max or values.dtype.kind not in "iub":
                wrong = largest if largest > limits.max else smallest
                raise DataError(
                    f"{self._data_path}: token {wrong} ({values.dtype}) does not fit "
                    f"{self._dtype.name}; give the vocabulary size of the tokenizer to make_builder"
                )
            self.max_token_id = max(self.max_token_id, largest)
        self._stream.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.num_tokens += values.size

    def end_document(self) -> None:
        """Ends a document with the items added so far."""
        self._doc_idx.append(len(self._sizes))

    @property
    def num_documents(self) -> int:
        """Documents ended so far."""
        return len(self._doc_idx) - 1

    def merge_file_(self, another_file: str | Path) -> None:
        """Appends the items and documents of another data set, given by its prefix.

        Raises:
            DataError: If the other data set is damaged or stores another type.
        """
        other = MMapIndexedDataset(another_file)
        if other.dtype != self._dtype:
            raise DataError(
                f"{another_file}: stores {other.dtype.name}, {self._data_path} {self._dtype.name}; "
                "tokenize both texts with one tokenizer"
            )
        items_before = len(self._sizes)
        step = COPY_BYTES // self._dtype.itemsize
        for first in range(0, len(other.tokens), step):
            self._append(other.tokens[first : first + step])
        self._sizes.frombytes(np.asarray(other.sizes, dtype=np.int32).tobytes())
        shifted = np.asarray(other.doc_idx[1:], dtype=np.int64) + items_before
        self._doc_idx.frombytes(shifted.tobytes())

    def finalize(self, index_file: str | Path) -> None:
        """Writes the index and gives both files their names.

        Args:
            index_file: The ``.idx`` file to make.

        Raises:
            OSError: If the disk is full or the folder cannot be written; nothing is left then.
        """
        is_replacing = False
        try:
            flush_to_disk(self._stream)
            self._stream.close()
            with atomic_writer(Path(index_file)) as stream:
                write_index(
                    stream,
                    self._dtype,
                    sizes=np.frombuffer(self._sizes, dtype=np.int32),
                    doc_idx=np.frombuffer(self._doc_idx, dtype=np.int64),
                )
                flush_to_disk(stream)  # a full disk shows here, while nothing is replaced yet
                # The old index goes first: it must never stand beside the new tokens.
                is_replacing = True
                Path(index_file).unlink(missing_ok=True)
                os.replace(self._temporary, self._data_path)
        except BaseException:
            self.abort()
            if is_replacing:  # interrupted between the two names: half a data set helps nobody
                self._data_path.unlink(missing_ok=True)
                Path(index_file).unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        """Removes the temporary file; nothing to do after ``finalize``."""
        self._stream.close()
        self._temporary.unlink(missing_ok=True)


def best_fitting_dtype(vocab_size: int | None = None) -> type[np.uint16] | type[np.int32]:
    """Returns uint16 for a known (unpadded) vocabulary of less than 65500 ids, else int32."""
    return np.uint16 if vocab_size is not None and vocab_size < 65500 else np.int32


def make_builder(
    out_file: str | Path, impl: str = "mmap", vocab_size: int | None = None
) -> MMapIndexedDatasetBuilder:
    """Opens a builder for the ``.bin`` file ``out_file``.

    Raises:
        DataError: If ``impl`` is not ``mmap``.
    """
    if impl != "mmap":
        raise DataError(f"dataset implementation {impl!r} cannot be written; use mmap")
    return MMapIndexedDatasetBuilder(out_file, best_fitting_dtype(vocab_size))


def make_dataset(
    path: str | Path,
    impl: str = "infer",
    skip_warmup: bool = True,
    *,
    cache: IndexCache | None = None,
) -> MMapIndexedDataset:
    """Opens the data set ``path``; the file itself tells its format, whatever ``impl`` says.

    Args:
        path: Prefix of the two files.
        impl: One of the values of ``data_impl``.
        skip_warmup: False reads the tokens once.
        cache: Where the result of scanning a large index is kept; None scans it.

    Raises:
        DataError: If ``impl`` is unknown, or the files are damaged or of the legacy format.
    """
    if impl not in DATA_IMPLS:
        raise DataError(f"data_impl: {impl!r} is unknown; use one of {', '.join(DATA_IMPLS)}")
    return MMapIndexedDataset(path, skip_warmup, cache=cache)


def _read_once(path: str) -> None:
    """Brings a file into the system's page cache."""
    logger.info("%s: reading once (mmap_warmup)", path)
    with open(path, "rb", buffering=0) as stream:
        while stream.read(COPY_BYTES):
            pass
