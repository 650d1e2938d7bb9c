"""How programs end: exit code 0, 2 with a line for the user, 1 with such a line or a traceback."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.installation import missing_package
from megatron.launcher.pmi import abort_job, leave_job
from megatron.reporting.writers import drop_standard_output
from megatron.runtime.process_life import PARENT_VARIABLE

__all__ = ["run_program"]

_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_SETTLE_SECONDS = 1.0  # as long as other launchers than ours need to end a run after rank 0 left
_PEER_SECONDS = 4.0  # our launcher ends a run 2 s after its first failure


def run_program(main: Callable[[], object]) -> None:
    """Runs ``main`` and leaves the process.

    An error ends the process at once: interpreter shutdown would wait for collectives that other
    ranks never join. The user's mistakes (also a disk that is full or read-only) are one line on
    standard error. A program error is shown by its rank, with a traceback on rank 0 and in one line
    on other ranks. A collective that fails because another rank left is neither: the launcher ends
    this process before it can report that.
    """
    try:
        main()
    except UserError as error:
        _refuse(str(error))
    except FloatingPointError as error:  # training diverged: neither a wrong input nor a defect
        _refuse(str(error), code=1)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:  # as behind `| head`
        drop_standard_output()
        _refuse("standard output was closed before the end", code=1)
    except Exception as error:
        if problem := missing_package(error):
            _refuse(problem)
        if _is_about_the_disk(error):
            _refuse(describe_error(error))
        collective = _failed_collective(error)
        rank = _rank()
        if collective and "timed out" in str(error).lower():
            sys.stderr.write(
                f"rank {rank}: {collective} timed out: another rank hangs or is stopped ({error})\n"
            )
            _leave(1)
        if collective:
            time.sleep(_PEER_SECONDS)
        if rank == 0:
            traceback.print_exc()
        else:
            sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")
        _leave(1)
    # gloo's threads may abort the interpreter's own way out
    _leave(0)


def _refuse(message: str, *, code: int = 2) -> None:
    """Reports what is wrong, once for all ranks, and exits.

    Our launcher shows the output of one rank, so every rank reports. Other launchers show all
    output: there rank 0 reports first, and ranks with the same error are ended before they report.
    """
    rank = _rank()
    if rank == 0 or PARENT_VARIABLE in os.environ:
        sys.stderr.write(f"error: {message}\n")
    else:
        time.sleep(_SETTLE_SECONDS)
        sys.stderr.write(f"rank {rank}: error: {message}\n")
    _leave(code)


def _is_about_the_disk(error: Exception) -> bool:
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL_OR_READ_ONLY or (
        isinstance(error, PermissionError) and error.filename is not None
    )


def _failed_collective(error: Exception) -> str | None:
    """Name of the collective that raised; None for other errors.

    Found from the innermost frame: gloo raises RuntimeError, nccl an error of its own.
    """
    frame = error.__traceback__
    if frame is None:
        return None
    while frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "")
    return frame.tb_frame.f_code.co_name if module.startswith("torch.distributed.") else None


def _rank() -> int:
    """This process's rank; read late, because with MPI and Slurm ``main`` sets RANK."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        abort_job(os.environ, code)
    else:
        leave_job()
    os._exit(code)
