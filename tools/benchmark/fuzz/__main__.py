#!/usr/bin/env python
"""Feeds damaged and hostile input to all readers; only errors meant for users may come out.

    python -m tools.benchmark.fuzz --cases 20000
    python -m tools.benchmark.fuzz --kind index text --cases 100 --seed 7

For each kind, the unexpected cases are printed and then their number; the exit code is 1 if there
are any. A case depends only on its kind, the seed and its number. Files are made in memory
if the system offers that, and are not flushed to a disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from . import configuration, data_kinds, mixing, neox_kinds, state, state_kinds, text

_MEMORY = "/dev/shm"

Run = Callable[[int, int], Iterable[str]]
"""Runs a number of cases of a seed; yields a report of each that failed."""


def _saved_files(make: Callable[[Path], state_kinds.Read], cases: int, seed: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return state.run_cases(make(Path(folder)), cases=cases, seed=seed)[1]


def _texts(cases: int, seed: int) -> list[str]:
    return text.run_cases(seed, cases)[1]


KINDS: dict[str, Run] = {
    **{name: partial(configuration.run_cases, name) for name in configuration.KINDS},
    "mixing": mixing.run_cases,
    **{
        name: partial(_saved_files, make)
        for name, make in {**state_kinds.KINDS, **data_kinds.KINDS, **neox_kinds.KINDS}.items()
    },
    "text": _texts,
}
"""The kinds by the name that --kind takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--kind", nargs="+", action="extend", choices=sorted(KINDS), help="default: all"
    )
    parser.add_argument("--cases", type=int, default=20_000, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with _quick_and_quiet():
        found = [_run(kind, options.cases, options.seed) for kind in options.kind or KINDS]
    return int(any(found))


def _run(kind: str, cases: int, seed: int) -> int:
    """Runs a kind and prints the results; returns how many cases failed."""
    began, found = time.monotonic(), 0
    for report in KINDS[kind](cases, seed):
        found += 1
        if found <= 20:
            print(f"{kind}: {report}", flush=True)
    seconds = time.monotonic() - began
    print(f"{kind}: {cases} cases, {found} unexpected, {seconds:.0f} s", flush=True)
    return found


@contextlib.contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Avoids writes to disks, use of other cores, and thousands of warnings about the files."""
    flush, place, threads = os.fsync, tempfile.tempdir, torch.get_num_threads()
    os.fsync = lambda descriptor: None
    if os.access(_MEMORY, os.W_OK | os.X_OK):
        tempfile.tempdir = _MEMORY
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.fsync, tempfile.tempdir = flush, place
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
