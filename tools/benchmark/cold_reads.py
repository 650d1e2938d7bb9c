"""What a step waits for its samples when the data are on a disk and not in memory.

Before each read the pages of the data set are taken out of memory. The same number of samples is
then read in three ways, which take turns:

- ``as touched``: each page is read when it is touched
- ``asked for``: the system is told all samples of the step first (`MixedBatches` does this for the
  steps after one that had to wait)
- ``in memory``: once more without emptying the memory, with and without asking

    python -m tools.benchmark.cold_reads [--megabytes 2000] [--samples 32] [--folder DISK]

The data set is written into ``--folder`` (a temporary folder by default) and removed.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron.data.gpt2_dataset import GPT2Dataset
from megatron.data.indexed_dataset import MMapIndexedDataset, make_builder

_DOCUMENT = 1000
WAYS = ("as touched", "asked for", "in memory", "in memory, asked for")


def main(arguments: list[str] | None = None) -> None:
    """Prints median milliseconds of each way, and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=32, help="of a step")
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", help="a folder on the disk to measure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        dataset = _write(Path(folder) / "text", options.megabytes, options.seq_length)
        seconds = measure(dataset, options.samples, options.repeats)
    for way in WAYS:
        print(f"{way:<22} {1e3 * statistics.median(seconds[way]):9.2f} ms")
    for one, other in (WAYS[:2], WAYS[3:1:-1]):
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        print(f"{one} / {other}: {statistics.median(ratios):.2f}")


def measure(dataset: GPT2Dataset, samples: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each read, by way; each way reads other samples."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    empty = _emptying(dataset.indexed_dataset)
    position = 0
    for _ in range(repeats):
        for way in WAYS:
            positions = np.arange(position, position + samples)
            position += samples
            if way.startswith("in memory"):
                dataset.get_many(positions)
            else:
                empty()
            began = time.perf_counter()
            if way.endswith("asked for"):
                dataset.will_need(positions)
            dataset.get_many(positions)
            seconds[way].append(time.perf_counter() - began)
    return seconds


def _emptying(dataset: MMapIndexedDataset) -> Callable[[], None]:
    """A function that takes the tokens out of memory."""
    memory = dataset.token_map
    assert memory is not None

    def empty() -> None:
        memory.madvise(mmap.MADV_DONTNEED)  # mapped pages would stay
        descriptor = os.open(f"{dataset.path}.bin", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    return empty


def _write(prefix: Path, megabytes: int, seq_length: int) -> GPT2Dataset:
    with make_builder(f"{prefix}.bin", vocab_size=50_000) as builder:
        block = np.random.default_rng(0).integers(0, 50_000, _DOCUMENT).astype(np.uint16)
        for _ in range(megabytes * 1_000_000 // (2 * _DOCUMENT)):
            builder.add_item(block)
            builder.end_document()
        builder.finalize(f"{prefix}.idx")
    return GPT2Dataset("text", prefix, None, MMapIndexedDataset(prefix), None, seq_length, 1)


if __name__ == "__main__":
    main()
