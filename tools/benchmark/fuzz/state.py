"""Reads saved files that were changed at random: only one-line messages may come out.

A sound file of each kind is made, then changed: a value is replaced by a hostile one, a field is
added or removed, bytes are cut, flipped or moved. Checksums are corrected, so that the content
itself is reached. A case is read to its end, or refused by an error that is shown as one line.
`fuzz` is the command.
"""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Callable

from megatron.errors import UserError
from megatron.neox_arguments import ConfigError
from odm.json_data import SchemaError
from odm.replay import ReplayError

ALLOWED = (UserError, SchemaError, ReplayError)
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
