"""Where the ranks of a run meet, and who else can reach it.

Torch's store accepts keys from anybody, and ranks exchange Python objects as pickle: anyone who can
reach its port can run code in the run. On one machine it listens only on the loopback interface;
torch itself would listen on all interfaces.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron.launcher.rank_discovery import LOOPBACK, RankDiscoveryError, RankInfo

if TYPE_CHECKING:
    from torch.distributed import Store

__all__ = ["has_own_store", "loopback_store", "network_note", "require_names"]

_RETRY_SECONDS = 2.0

_AGENT_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun has a store of its own for its ranks


def has_own_store(info: RankInfo) -> bool:
    """Returns whether the ranks of this run meet at a store that `loopback_store` makes."""
    return info.is_on_loopback and os.name == "posix" and not _is_agents(os.environ)


def loopback_store(info: RankInfo, *, timeout: timedelta) -> Store:
    """Makes the store of a run on one machine, which cannot be reached from outside.

    A single rank has nobody to meet, so it does not listen at all.

    Raises:
        RankDiscoveryError: On rank 0, if another program has the port.
    """
    from torch.distributed import HashStore, TCPStore

    if info.world_size == 1:
        return HashStore()
    return TCPStore(
        LOOPBACK,
        info.master_port,
        info.world_size,
        is_master=info.rank == 0,
        timeout=timeout,
        multi_tenant=True,  # as torch's own; programs may join and leave several times
        master_listen_fd=_listener(info.master_port) if info.rank == 0 else None,
    )


def require_names(
    info: RankInfo, environ: Mapping[str, str], *, uses_gloo: bool, seconds: float = 60.0
) -> None:
    """Waits until the names that a run over several machines uses have addresses.

    Torch would retry for many minutes, with a warning each time. gloo would take the loopback
    interface for a machine whose own name has no address, which no other machine can reach.

    Raises:
        RankDiscoveryError: If a name still has no address after ``seconds``.
    """
    names = {"MASTER_ADDR": info.master_address}
    if uses_gloo and not environ.get("GLOO_SOCKET_IFNAME"):
        names["this machine's own name"] = socket.gethostname()
    end = time.monotonic() + seconds
    for what, name in names.items():
        while reason := _why_unknown(name):
            if time.monotonic() > end:
                advice = (
                    "set MASTER_ADDR to an address that all machines know"
                    if what == "MASTER_ADDR"
                    else "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME to a network interface"
                )
                raise RankDiscoveryError(
                    f"{what}: {name} has no address on machine {socket.gethostname()} ({reason}, "
                    f"tried for {seconds:g} s); {advice}"
                )
            time.sleep(min(_RETRY_SECONDS, seconds))


def _why_unknown(name: str) -> str | None:
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def network_note(info: RankInfo, environ: Mapping[str, str]) -> str:
    """One-line warning about who can reach a run, and what follows from that."""
    store = "torchrun's store" if _is_agents(environ) else "the store"
    name = next((n for n in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if environ.get(n)), None)
    interface = (
        f"interface {environ[name]} ({name})"
        if name
        else f"the interface of {socket.gethostname()} (GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME "
        "names another)"
    )
    return (
        f"{store} at {info.master_address}:{info.master_port} listens on all interfaces, and ranks "
        f"talk over {interface}; anyone who can reach them can run code in this run; see "
        "docs/clusters.md, Network"
    )


def _is_agents(environ: Mapping[str, str]) -> bool:
    return environ.get(_AGENT_VARIABLE) == "True"


def _listener(port: int) -> int:
    """File descriptor of a socket bound to the loopback interface; the store closes it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise RankDiscoveryError(
            f"MASTER_PORT: cannot listen at port {port} of this machine ({error.strerror}); set "
            "another, the same for all ranks"
        ) from None
    return listener.detach()
