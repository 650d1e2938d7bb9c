"""From a sample number to tokens: the documents of a domain in random order, cut into samples.

The stream of a domain is its documents one after the other in an order that depends on (seed,
domain) alone. Sample i is the tokens [i * seq_length, (i + 1) * seq_length] of the stream, both
ends included: neighbours share one token, and every token except the first (and a rest that is too
short) is predicted once per epoch. Only the order and its running token counts are kept; a sample
is found by binary search. A document is an item of the data set, as in GPT-NeoX.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron.data.indexed_dataset import MMapIndexedDataset, index_file_path
from megatron.files import atomic_writer, take_lock

logger = logging.getLogger(__name__)

CACHE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class DocumentStream:
    """Documents one after the other."""

    order: np.ndarray
    """Document at each position, shape (positions,), int64."""
    offsets: np.ndarray
    """Tokens before each position, and the total, shape (positions + 1,), int64."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole stream."""
        return int(self.offsets[-1])

    def num_samples(self, seq_length: int) -> int:
        """Number of whole samples of ``seq_length + 1`` tokens that share one token each."""
        return max(0, (self.num_tokens - 1) // seq_length)


def document_stream(documents: np.ndarray, sizes: np.ndarray) -> DocumentStream:
    """Lays documents one after the other.

    Args:
        documents: Documents in the desired order, repeats allowed, shape (positions,).
        sizes: Tokens of each document of the data set, shape (n,).
    """
    order = np.asarray(documents, dtype=np.int64)
    offsets = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(sizes[order], dtype=np.int64, out=offsets[1:])
    return DocumentStream(order, offsets)


def document_order(seed: int, domain: str, documents: np.ndarray) -> np.ndarray:
    """Permutes documents by (seed, domain).

    Sorting by the raw output of a counter-based generator gives the same order with every release
    of numpy, which ``Generator.permutation`` does not promise.

    Args:
        seed: Any integer.
        domain: Name of the domain.
        documents: Documents to permute, shape (n,).

    Returns:
        Shape (n,), int64.
    """
    digest = hashlib.sha256(f"document order\0{seed}\0{domain}".encode()).digest()
    generator = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    ranks = np.argsort(generator.random_raw(len(documents)), kind="stable")
    return np.asarray(documents, dtype=np.int64)[ranks]


def shuffled_stream(
    dataset: MMapIndexedDataset,
    documents: np.ndarray,
    *,
    seed: int,
    domain: str,
    cache_dir: str | Path | None = None,
) -> DocumentStream:
    """Returns the stream of a domain from the cache, or builds and caches it.

    Any number of processes may do this at the same time. On one machine they take turns, so that
    the others can use what the first has built. On other machines each process writes the same
    content under its own temporary name.

    Args:
        dataset: The data set.
        documents: Its documents that belong to the split, shape (n,).
        seed: Seed of the run.
        domain: Name of the domain.
        cache_dir: Folder for the order; by default beside the data or, if that folder cannot be
            written, in the user's cache folder.

    Returns:
        The stream; memory maps if a cache could be written.
    """
    key = _content_key(dataset, documents, seed=seed, domain=domain)
    name = f"{Path(dataset.path).name}_document_order_{key}.npy"
    paths = [folder / name for folder in cache_folders(dataset.path, cache_dir)]
    cached = _find_cached(paths, len(documents))
    if cached is not None:
        return cached
    logger.info("%s: ordering %d documents", dataset.path, len(documents))
    with _one_process_at_a_time(index_file_path(dataset.path)):
        cached = _find_cached(paths, len(documents))  # by the process that was waited for
        if cached is not None:
            return cached
        stream = document_stream(document_order(seed, domain, documents), dataset.sizes)
        for path in paths:
            try:
                _write_cached(path, stream)
            except OSError as error:
                logger.debug("%s: cannot be written (%s)", path, error)
                continue
            return _read_cached(path, len(documents)) or stream
    logger.warning(
        "%s: no folder can hold the document order (tried %s); it is computed at every start. "
        "Set data_cache_dir to a writable folder",
        dataset.path,
        ", ".join(str(path.parent) for path in paths),
    )
    return stream


def cache_folders(prefix: str | Path, cache_dir: str | Path | None) -> list[Path]:
    """Returns the folders in which the order may be kept, the preferred one first."""
    if cache_dir is not None:
        return [Path(cache_dir)]
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(prefix).parent, Path(user_cache) / "odm-neox"]


def sample_tokens(
    dataset: MMapIndexedDataset, stream: DocumentStream, samples: np.ndarray, *, seq_length: int
) -> np.ndarray:
    """Reads samples together; the cost does not depend on the length of the documents.

    Args:
        dataset: The data set.
        stream: Order of its documents.
        samples: Numbers of samples in the stream, each below ``num_samples``, shape (n,).
        seq_length: Tokens of a sample less one.

    Returns:
        Tokens, shape (n, seq_length + 1), int64.
    """
    starts = np.asarray(samples, dtype=np.int64) * seq_length
    offsets = stream.offsets
    first_places = np.searchsorted(offsets, starts, side="right") - 1
    last_places = np.searchsorted(offsets, starts + seq_length, side="right") - 1
    pieces_per_sample = last_places - first_places + 1
    owner = np.repeat(np.arange(len(starts)), pieces_per_sample)
    piece_in_sample = np.arange(len(owner)) - np.repeat(
        np.cumsum(pieces_per_sample) - pieces_per_sample, pieces_per_sample
    )
    places = first_places[owner] + piece_in_sample
    begins = np.maximum(offsets[places], starts[owner])
    ends = np.minimum(offsets[places + 1], starts[owner] + seq_length + 1)
    lengths = ends - begins
    document_starts = dataset.pointers[stream.order[places]] // dataset.dtype.itemsize
    # Position in the .bin less position in the output, constant inside a piece.
    shifts = document_starts + (begins - offsets[places]) - (np.cumsum(lengths) - lengths)
    sources = np.repeat(shifts, lengths) + np.arange(len(starts) * (seq_length + 1))
    return dataset.tokens[sources].astype(np.int64).reshape(len(starts), seq_length + 1)


def _content_key(
    dataset: MMapIndexedDataset, documents: np.ndarray, *, seed: int, domain: str
) -> str:
    """Names what the order depends on, so that a changed data set never uses an old cache."""
    digest = hashlib.sha256()
    facts = (CACHE_VERSION, dataset.tokens.nbytes, dataset.dtype.str, seed, domain)
    digest.update(repr(facts).encode())
    digest.update(np.ascontiguousarray(dataset.sizes, dtype="<i4").data)
    digest.update(np.ascontiguousarray(documents, dtype="<i8").data)
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def _one_process_at_a_time(path: str) -> Iterator[None]:
    """Locks an existing file, so that no lock file is left; the lock ends with the process.

    NFS locks only files that are open for writing, other file systems also those that may only be
    read.
    """
    file: BinaryIO
    try:
        file = open(path, "rb+")
    except OSError:
        file = open(path, "rb")
    with file:
        with contextlib.suppress(OSError):  # without locks every process builds
            take_lock(file, waits=True)
        yield


def _write_cached(path: Path, stream: DocumentStream) -> None:
    """Writes [checksum, order, offsets] as one array, because one file is complete or missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [np.ascontiguousarray(part, dtype="<i8") for part in (stream.order, stream.offsets)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.data, checksum)
    shape = (1 + sum(map(len, parts)),)
    with atomic_writer(path, durable=False) as file:  # who reads it checks it
        # what numpy.save writes, without a copy of the whole
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<i8", "fortran_order": False, "shape": shape}
        )
        for part in (np.array([checksum], dtype="<i8"), *parts):
            file.write(part.data)


def _find_cached(paths: Sequence[Path], num_documents: int) -> DocumentStream | None:
    """Maps the first cached order that is complete."""
    found = (_read_cached(path, num_documents) for path in paths)
    return next((stream for stream in found if stream is not None), None)


def _read_cached(path: Path, num_documents: int) -> DocumentStream | None:
    """Maps a cached order; None if it is absent, torn or damaged."""
    try:
        content = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s: cannot be read (%s), building it again", path, error.strerror)
        return None
    except (ValueError, EOFError) as error:
        logger.warning("%s: damaged (%s), building it again", path, error)
        return None
    body = content[1:]
    is_whole = content.dtype == np.int64 and content.shape == (2 * num_documents + 2,)
    if not is_whole or zlib.crc32(np.ascontiguousarray(body).data) != content[0]:
        logger.warning("%s: damaged (wrong length or checksum), building it again", path)
        return None
    return DocumentStream(order=body[:num_documents], offsets=body[num_documents:])
