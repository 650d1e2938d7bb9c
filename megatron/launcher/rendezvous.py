"""The TCP port where the ranks of a run on one machine meet."""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["LOOPBACK", "reserve_port"]

LOOPBACK = "127.0.0.1"


def reserve_port(wanted: int | None, report: Callable[[str], None]) -> tuple[socket.socket, int]:
    """Finds a free port and keeps others from getting it by chance until the socket is closed.

    The socket is bound but does not listen, so rank 0, which sets SO_REUSEADDR as the store of
    torch does, can still listen there; the kernel gives the port to nobody else.

    Args:
        wanted: Port that the user asked for; if it is in use, another one is taken and reported.
        report: Receives a message for the user.

    Returns:
        The socket to keep open, and the port.
    """
    if wanted is not None:
        try:
            return _bind(wanted)
        except OSError:
            holder, port = _bind(0)
            report(f"deepy.py: master_port {wanted} is in use on this machine; using {port}")
            return holder, port
    return _bind(0)


def _bind(port: int) -> tuple[socket.socket, int]:
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # at all addresses, as the store: else a peer's listener at another one could be in its way
        holder.bind(("", port))
    except OSError:
        holder.close()
        raise
    return holder, holder.getsockname()[1]
