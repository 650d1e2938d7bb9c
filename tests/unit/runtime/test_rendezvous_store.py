"""Where ranks meet, and from where that can be reached."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from megatron.launcher.rank_discovery import RankDiscoveryError, RankInfo
from megatron.launcher.rendezvous import reserve_port
from megatron.runtime.rendezvous_store import (
    has_own_store,
    loopback_store,
    network_note,
    require_names,
)


def info_of(
    address: str = "127.0.0.1", *, port: int = 29500, size: int = 1, local: int = 1
) -> RankInfo:
    return RankInfo(0, 0, size, local, address, port, "torchrun")


def listening_addresses() -> set[str]:
    """Addresses at which this process listens, from Linux's own table."""
    sockets = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            sockets.add(os.readlink(entry))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_run_on_one_machine_listens_at_the_loopback_interface_alone():
    before = listening_addresses()
    holder, port = reserve_port(None, print)
    join = {"world_size": 2, "is_master": False, "timeout": timedelta(seconds=20)}
    with holder, ThreadPoolExecutor() as other:
        joined = other.submit(TCPStore, "127.0.0.1", port, **join)
        store = loopback_store(info_of(port=port, size=2, local=2), timeout=timedelta(seconds=20))
        opened = listening_addresses() - before
        joined.result()
    assert opened == {f"0100007F:{port:04X}"}  # 127.0.0.1, its bytes in the order of the machine
    store.set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_single_rank_listens_nowhere():
    before = listening_addresses()
    store = loopback_store(info_of(), timeout=timedelta(seconds=5))
    assert listening_addresses() == before
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_port_that_another_program_has_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RankDiscoveryError, match=rf"MASTER_PORT: .* port {port} .*in use"):
            loopback_store(info_of(port=port, size=2, local=2), timeout=timedelta(seconds=5))


@pytest.mark.parametrize(
    ("info", "agent", "is_own"),
    [
        (info_of(), None, True),
        (info_of("localhost", size=2, local=2), None, True),
        (info_of("localhost", size=2, local=2), "True", False),
        (info_of("localhost", size=4, local=2), None, False),
        (info_of("node1", size=2, local=2), None, False),
    ],
)
def test_a_store_of_our_own_is_for_one_machine(monkeypatch, info, agent, is_own):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if agent:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    assert has_own_store(info) == is_own


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth7"}, "over interface eth7 (GLOO_SOCKET_IFNAME)"),
        ({"NCCL_SOCKET_IFNAME": "ib0"}, "over interface ib0 (NCCL_SOCKET_IFNAME)"),
        ({}, f"the interface of {socket.gethostname()}"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, "torchrun's store at node1:29500"),
    ],
)
def test_between_machines_the_interface_is_named(environ, words):
    note = network_note(info_of("node1", size=4, local=2), environ)
    assert words in note
    assert "node1:29500 listens on all interfaces" in note


def test_a_master_without_an_address_is_one_line_after_a_while():
    info = info_of("machine.invalid", size=4, local=2)
    with pytest.raises(RankDiscoveryError) as caught:
        require_names(info, {}, uses_gloo=False, seconds=0.1)
    assert str(caught.value).startswith("MASTER_ADDR: machine.invalid has no address on machine ")
    assert "tried for 0.1 s); set MASTER_ADDR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_gets_an_address_in_time_is_waited_for(monkeypatch):
    answers = [socket.gaierror(-3, "Temporary failure in name resolution")]

    def look_up(name: str, port: None) -> list:
        if answers:
            raise answers.pop()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("megatron.runtime.rendezvous_store._RETRY_SECONDS", 0.01)
    require_names(info_of("node1", size=4, local=2), {}, uses_gloo=True, seconds=30)
    assert answers == []


def test_gloo_needs_the_own_name_unless_an_interface_is_set(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "lonely.invalid")
    info = info_of("127.0.0.1", size=4, local=2)
    with pytest.raises(RankDiscoveryError, match=r"own name: lonely\.invalid .* GLOO_SOCKET_IFN"):
        require_names(info, {}, uses_gloo=True, seconds=0.1)
    require_names(info, {"GLOO_SOCKET_IFNAME": "eth0"}, uses_gloo=True, seconds=0.1)
    require_names(info, {}, uses_gloo=False, seconds=0.1)
