"""How every program ends: exit code 0, 2 with one line for the user, or 1 with a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from megatron.data.errors import DataError
from megatron.distributed_environment import RankDiscoveryError
from megatron.errors import CheckpointError
from megatron.neox_arguments import ConfigError
from megatron.tokenizer import DocumentError, TokenizerError

__all__ = ["USER_ERRORS", "run_program"]

USER_ERRORS = (
    ConfigError,
    DataError,
    CheckpointError,
    TokenizerError,
    DocumentError,
    RankDiscoveryError,
)


def run_program(main: Callable[[], object]) -> None:
    """Runs ``main`` and leaves the process.

    An error ends the process at once: interpreter shutdown would wait for collectives that other
    ranks never join. Rank 0 speaks for all ranks when the user's input is wrong; a program error
    is shown by the rank that had it, in full on rank 0 and in one line elsewhere.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        main()
    except USER_ERRORS as error:
        if rank == 0:
            sys.stderr.write(f"error: {error}\n")
        _leave(2)
    except KeyboardInterrupt:
        _leave(130)
    except Exception as error:
        if rank == 0:
            traceback.print_exc()
        else:
            sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")
        _leave(1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
