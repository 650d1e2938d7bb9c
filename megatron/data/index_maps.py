"""From a sample number to tokens: the documents of a domain in random order, cut into samples.

The stream of a domain is its documents one after the other in an order that depends on (seed,
domain) alone. Sample i is the tokens [i * seq_length, (i + 1) * seq_length] of the stream, both
ends included: neighbours share one token, and every token except the first (and a rest that is too
short) is predicted once per epoch. Only the order and its running token counts are kept; a sample
is found by binary search. A document is an item of the data set, as in GPT-NeoX.
"""

import dataclasses
import hashlib
import logging
import os
import zlib
from pathlib import Path

import numpy as np

from megatron.data.index_cache import (
    RECORDED_DOCUMENTS,
    SMALL_INDEX,
    IndexCache,
    file_facts,
    record_name,
)
from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.files import atomic_writer
from odm.json_data import fields, text

logger = logging.getLogger(__name__)

CACHE_VERSION = 2


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
    documents: range | np.ndarray,
    *,
    seed: int,
    domain: str,
    cache: IndexCache,
) -> DocumentStream:
    """Returns the stream of a domain from the cache, or builds and caches it.

    Any number of processes may do this at the same time. Where file systems have locks, they take
    turns, so that the others can use what the first has built. Otherwise each process writes the
    same content under its own temporary name. A few documents are ordered faster than a file is
    opened, so no file is made for them.

    Args:
        dataset: The data set.
        documents: Its documents that belong to the split: a range, or shape (n,).
        seed: Seed of the run.
        domain: Name of the domain.
        cache: Where the order is kept.

    Returns:
        The stream; memory maps if a file of it was found or could be written.
    """
    if len(documents) < SMALL_INDEX:
        return _build(dataset, documents, seed=seed, domain=domain)
    key = _content_key(dataset, documents, seed=seed, domain=domain)
    name = f"{Path(dataset.path).name}_document_order_{key}.npy"
    order = _OrderFile(dataset.path, name, len(documents), cache)
    found = order.find()
    if found is not None:
        return found
    with cache.one_process_at_a_time(dataset.path):
        found = order.find()  # by the process that was waited for
        if found is not None:
            return found
        logger.info("%s: ordering %d documents", dataset.path, len(documents))
        stream = _build(dataset, documents, seed=seed, domain=domain)
        return order.write(stream) or stream


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
    first_tokens, lengths = sample_pieces(dataset, stream, samples, seq_length=seq_length)
    # Position in the .bin less position in the output, constant inside a piece.
    shifts = first_tokens - (np.cumsum(lengths) - lengths)
    sources = np.repeat(shifts, lengths) + np.arange(len(samples) * (seq_length + 1))
    return dataset.tokens[sources].astype(np.int64).reshape(len(samples), seq_length + 1)


def sample_pieces(
    dataset: MMapIndexedDataset, stream: DocumentStream, samples: np.ndarray, *, seq_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the stretches of the ``.bin`` that samples are made of, in their order.

    Args:
        dataset: The data set.
        stream: Order of its documents.
        samples: Numbers of samples in the stream, shape (n,).
        seq_length: Tokens of a sample less one.

    Returns:
        First token and number of tokens of each piece, shape (pieces,), int64.
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
    document_starts = dataset.pointers[stream.order[places]] // dataset.dtype.itemsize
    return document_starts + (begins - offsets[places]), ends - begins


def _build(
    dataset: MMapIndexedDataset, documents: range | np.ndarray, *, seed: int, domain: str
) -> DocumentStream:
    return document_stream(document_order(seed, domain, as_array(documents)), dataset.sizes)


def as_array(documents: range | np.ndarray) -> np.ndarray:
    """The numbers of documents, shape (n,), int64."""
    if isinstance(documents, range):  # without making a Python object of each
        return np.arange(documents.start, documents.stop, documents.step, dtype=np.int64)
    return np.asarray(documents, dtype=np.int64)


def _content_key(
    dataset: MMapIndexedDataset, documents: range | np.ndarray, *, seed: int, domain: str
) -> str:
    """Names what the order depends on, so that a changed data set never uses an old cache."""
    if isinstance(documents, range):
        chosen = repr(documents)
    else:
        chosen = hashlib.sha256(np.ascontiguousarray(documents, dtype="<i8").data).hexdigest()
    sizes, kind = dataset.sizes_digest, dataset.dtype.str
    facts = (CACHE_VERSION, dataset.tokens.nbytes, kind, seed, domain, sizes, chosen)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class _OrderFile:
    """The file of an order: [checksum, order, offsets] as one array, complete or missing."""

    prefix: str
    name: str
    num_documents: int
    cache: IndexCache

    def find(self) -> DocumentStream | None:
        """Maps the first file that is complete."""
        folders = self.cache.folders(self.prefix)
        found = (self._read(folder / self.name) for folder in folders)
        return next((stream for stream in found if stream is not None), None)

    def write(self, stream: DocumentStream) -> DocumentStream | None:
        """Writes the order and maps it; None, which is noted, if no folder can be written."""
        for folder in self.cache.folders(self.prefix):
            path = folder / self.name
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write_array(path, stream, durable=self._is_recorded)
            except OSError as error:
                logger.debug("%s: cannot be written (%s)", path, error)
                continue
            return self._read(path)
        self.cache.note_without_room(self.prefix)
        return None

    @property
    def _is_recorded(self) -> bool:
        return self.num_documents >= RECORDED_DOCUMENTS

    def _read(self, path: Path) -> DocumentStream | None:
        """Maps a file; None if it is absent, torn or damaged."""
        try:
            facts = file_facts(os.stat(path)) if self._is_recorded else None
            content = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s: cannot be read (%s), building it again", path, error.strerror)
            return None
        except (ValueError, EOFError) as error:
            logger.warning("%s: damaged (%s), building it again", path, error)
            return None
        num_documents = self.num_documents
        if content.dtype != np.int64 or content.shape != (2 * num_documents + 2,):
            logger.warning("%s: damaged (wrong length), building it again", path)
            return None
        body = np.asarray(content)[1:]
        if not self._is_checked(int(content[0]), body, path, facts):
            logger.warning("%s: damaged (wrong checksum), building it again", path)
            return None
        return DocumentStream(order=body[:num_documents], offsets=body[num_documents:])

    def _is_checked(
        self, checksum: int, body: np.ndarray, path: Path, facts: list[int] | None
    ) -> bool:
        """Checks the content; if another process has checked the same file, its record is enough.

        A record outlives a power cut only together with the file, which was written durably.
        """
        name = record_name(self.prefix, os.path.abspath(path), facts, checksum)
        if facts is not None and self.cache.find(self.prefix, name, _RECORD) is not None:
            return True
        if zlib.crc32(np.ascontiguousarray(body).data) != checksum:
            return False
        if facts is not None and facts == file_facts(os.stat(path)):
            self.cache.keep(self.prefix, name, {"checked": self.name})
        return True


_RECORD = fields({"checked": text()})


def _write_array(path: Path, stream: DocumentStream, *, durable: bool) -> None:
    parts = [np.ascontiguousarray(part, dtype="<i8") for part in (stream.order, stream.offsets)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.data, checksum)
    shape = (1 + sum(map(len, parts)),)
    with atomic_writer(path, durable=durable) as file:
        # what numpy.save writes, without a copy of the whole
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<i8", "fortran_order": False, "shape": shape}
        )
        for part in (np.array([checksum], dtype="<i8"), *parts):
            file.write(part.data)
