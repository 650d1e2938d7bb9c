#!/usr/bin/env python
"""Changes saved files at random and reads them back: nothing but a line for the user may come.

    python tools/checks/fuzz_state.py --cases 20000
    python tools/checks/fuzz_state.py --kind index --cases 100 --seed 7

Each kind of file is made sound, then changed: a value by a hostile one, a field added or taken
away, bytes cut, flipped or moved; checksums are made right again, so that the content itself is
reached. A case is read to its end, or refused by an error that a program shows as one line. Exit
code 1 where anything else came, with the case that shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.data.errors import DataError
from megatron.errors import CheckpointError
from megatron.neox_arguments import ConfigError
from megatron.tokenizer import TokenizerError
from odm.json_data import SchemaError
from odm.replay import ReplayError
from tools.checks import data_kinds, state_kinds

KINDS = {**state_kinds.KINDS, **data_kinds.KINDS}
ALLOWED = (CheckpointError, ConfigError, DataError, TokenizerError, SchemaError, ReplayError)
"""What programs show as one line and exit code 2."""


def run_cases(
    read: Callable[[random.Random], None], *, cases: int, seed: int
) -> tuple[int, list[str]]:
    """Runs cases of a kind; returns how many were refused, and what came unexpectedly."""
    refused, unexpected = 0, []
    for number in range(cases):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(random.Random(f"{seed} {number}"))
        except ALLOWED as error:
            refused += 1
            if "\n" in str(error).strip() and not isinstance(error, ConfigError):
                unexpected.append(f"case {number}: more than one line: {error}")
        except Exception:
            unexpected.append(f"case {number}: {traceback.format_exc()}")
    return refused, unexpected


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Read saved files that were changed at random.")
    parser.add_argument("--kind", choices=sorted(KINDS), nargs="+", help="default: all")
    parser.add_argument("--cases", type=int, default=20_000, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = options.kind or sorted(KINDS)
    logging.disable(logging.CRITICAL)  # thousands of warnings about the files
    try:
        problems = [_run(name, cases=options.cases, seed=options.seed) for name in names]
    finally:
        logging.disable(logging.NOTSET)
    return int(any(problems))


def _run(kind: str, *, cases: int, seed: int) -> list[str]:
    """Runs a kind in a folder of its own and prints what came; returns what was unexpected."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        refused, unexpected = run_cases(KINDS[kind](Path(folder)), cases=cases, seed=seed)
    print(f"{kind}: {cases} cases, {refused} refused, {len(unexpected)} unexpected", flush=True)
    for problem in unexpected[:3]:
        print(problem)
    return unexpected


if __name__ == "__main__":
    sys.exit(main())
