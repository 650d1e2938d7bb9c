"""What ranks ask of Hydra, the process manager of MPICH and Intel MPI: a port, the end of a job.

Hydra sets no variable that tells two jobs apart, and it leaves the others running if a process that
is no MPI program fails. Both are there in PMI-1, lines of text over the descriptor PMI_FD: rank 0
publishes a port that is free on its machine, and a rank that fails aborts the job.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from megatron.launcher.rendezvous import LOOPBACK, reserve_port

__all__ = ["HydraError", "abort_job", "hydra_descriptor", "leave_job", "meet_by_hydra"]

_KEY = "odm-neox-meeting"

_session: int | None = None
_holder: socket.socket | None = None


class HydraError(OSError):
    """Hydra answered something else than was expected."""


def hydra_descriptor(environ: Mapping[str, str]) -> int | None:
    """The descriptor of the link to Hydra; None for processes that it did not start."""
    names = ("PMI_FD", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    is_whole = all(environ.get(name, "").isdecimal() for name in names)
    return int(environ["PMI_FD"]) if is_whole and "RANK" not in environ else None


def meet_by_hydra(environ: Mapping[str, str]) -> dict[str, str]:
    """Agrees on MASTER_PORT, and MASTER_ADDR if it is not set, with all ranks of a job of Hydra.

    Returns:
        The variables to add; none if Hydra did not start this process, the job has one process, or
        MASTER_PORT is set. Waits for all ranks.
    """
    global _session, _holder
    descriptor = hydra_descriptor(environ)
    if descriptor is None or environ["PMI_SIZE"] == "1" or environ.get("MASTER_PORT"):
        return {}
    try:
        _ask(descriptor, "cmd=init pmi_version=1 pmi_subversion=1", "cmd=response_to_init")
        _session = descriptor
        name = _ask(descriptor, "cmd=get_my_kvsname", "cmd=my_kvsname")["kvsname"]
        if environ["PMI_RANK"] == "0":
            _holder, port = reserve_port(None, lambda text: None)
            place = f"{port}@{socket.gethostname()}"
            put = f"cmd=put kvsname={name} key={_KEY} value={place}"
            _ask(descriptor, put, "cmd=put_result")
        _ask(descriptor, "cmd=barrier_in", "cmd=barrier_out")
        answer = _ask(descriptor, f"cmd=get kvsname={name} key={_KEY}", "cmd=get_result")
        port_text, _, host = answer["value"].partition("@")
    except (OSError, KeyError):
        return {}  # another manager with the same variables: the fixed port remains
    is_one_machine = environ["MPI_LOCALNRANKS"] == environ["PMI_SIZE"]
    address = environ.get("MASTER_ADDR") or (LOOPBACK if is_one_machine else host)
    return {"MASTER_PORT": port_text, "MASTER_ADDR": address}


def abort_job(environ: Mapping[str, str], code: int) -> None:
    """Makes Hydra end all processes of the job and exit with ``code``; nothing without Hydra."""
    descriptor = _session if _session is not None else _link_of_a_rank(environ)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"cmd=abort exitcode={code}\n".encode())


def leave_job() -> None:
    """Tells Hydra that this rank ends as it should; after `meet_by_hydra`, else nothing."""
    global _session
    if _session is not None:
        with contextlib.suppress(OSError):
            _ask(_session, "cmd=finalize", "cmd=finalize_ack")
        _session = None


def _link_of_a_rank(environ: Mapping[str, str]) -> int | None:
    """As `hydra_descriptor`, also after RANK was set from Hydra's own variables."""
    if environ.get("RANK") != environ.get("PMI_RANK"):
        return None
    return hydra_descriptor({key: value for key, value in environ.items() if key != "RANK"})


def _ask(descriptor: int, line: str, expected: str) -> dict[str, str]:
    """Sends a line and returns the pairs of the answer."""
    os.write(descriptor, f"{line}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            raise HydraError("the link to Hydra has ended")
        answer += byte
    text = answer.decode("utf-8", "replace").strip()
    words = dict(word.partition("=")[::2] for word in text.split())
    if not text.startswith(expected) or words.get("rc", "0") != "0":
        raise HydraError(f"Hydra answered {text!r} to {line!r}")
    return words
