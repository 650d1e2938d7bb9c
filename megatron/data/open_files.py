"""Room for the files of many domains: a memory map holds a file descriptor as long as it lives."""

import contextlib
import os

from megatron.data.errors import DataError

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

SPARE_FILES = 512
"""For sockets between ranks, libraries and logs."""


def reserve_open_files(count: int) -> None:
    """Raises this process's limit of open files if ``count`` more would exceed it.

    Shells commonly start programs with a soft limit of 1024, less than the maps of 350 domains; up
    to the hard limit every process may raise it.

    Raises:
        DataError: If the hard limit is too low.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _count_open_files() + count
    if soft == resource.RLIM_INFINITY or needed + SPARE_FILES <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise DataError(
            f"data: {count} files of data sets must be open at once, this process may open {hard}; "
            "raise the limit (ulimit -n) or merge small domains"
        )
    wanted = needed + SPARE_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has a second limit; opening tells then
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _count_open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return SPARE_FILES
