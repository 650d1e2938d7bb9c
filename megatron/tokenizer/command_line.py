"""Runs a command: a mistake of the user is one line, an interrupt ends without a traceback."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.tokenizer.records import DEFAULT_LIMIT_BYTES


def add_max_record_mb(parser: Any) -> None:
    """Adds the limit for one record to a parser, or to a group of one; ``max_record_bytes``."""
    parser.add_argument(
        "--max-record-mb",
        "--max_record_mb",
        dest="max_record_bytes",
        type=_megabytes,
        default=DEFAULT_LIMIT_BYTES,
        metavar="MB",
        help="maximum size of one record (a line, a row, a file of text or code) in 10^6 bytes; it "
        f"limits memory (default {DEFAULT_LIMIT_BYTES / 1e6:g})",
    )


def _megabytes(text: str) -> int:
    try:
        size_bytes = round(float(text) * 1e6)
    except (ValueError, OverflowError):
        size_bytes = 0
    if not 1 <= size_bytes <= 10**15:
        raise argparse.ArgumentTypeError(f"must be from 0.000001 to 1000000000, got {text}")
    return size_bytes


def exit_code(command: Callable[[], Any]) -> int:
    """Runs a command and returns the exit code of its process.

    0: done; 2: wrong input, one line on stderr; 130, 143 and 129: stopped by Ctrl-C, SIGTERM and
    the end of the terminal, after the command cleaned up. Anything else raises, with its traceback.
    """
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores
                signal.signal(number, _stop)
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing half-written was left\n")
        return 130
    except (UserError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        return 2
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
