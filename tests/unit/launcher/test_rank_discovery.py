"""Ranks from made-up environments of every launcher."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.launcher import rank_discovery
from megatron.launcher.rank_discovery import (
    RankDiscoveryError,
    RankInfo,
    discover,
    expand_nodes,
    local_counts,
)

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29501",
    "TORCHELASTIC_RUN_ID": "none",
}
DEEPSPEED = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-4711@1",
}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "3",
    "MV2_COMM_WORLD_SIZE": "4",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "node1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}


def place(environ: dict[str, str]) -> tuple[int, int, int, int, str]:
    info = discover(environ)
    return info.rank, info.local_rank, info.world_size, info.local_world_size, info.source


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, (5, 1, 8, 4, "torchrun")),
        (DEEPSPEED, (1, 1, 2, 2, "torchrun")),
        # how many there are here is not said: all, unless rank 0 is on another machine
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (1, 1, 4, 4, "torchrun")),
        (
            {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"},
            (1, 1, 4, 2, "torchrun"),
        ),
        (OPENMPI, (1, 1, 2, 2, "openmpi")),
        (MVAPICH, (3, 1, 4, 2, "mvapich")),
        (HYDRA, (1, 1, 2, 2, "pmi")),
        (SLURM, (6, 2, 7, 3, "slurm")),
        ({}, (0, 0, 1, 1, "single process")),
    ],
)
def test_every_launcher_tells_rank_and_size(environ, expected):
    assert place(environ) == expected


def test_the_master_of_one_machine_is_the_loopback_address():
    assert discover(OPENMPI).master_address == "127.0.0.1"
    one_node = {
        **SLURM,
        "SLURM_STEP_TASKS_PER_NODE": "7",
        "SLURM_NODEID": "0",
        "SLURM_LOCALID": "6",
    }
    assert discover(one_node).master_address == "127.0.0.1"


def test_the_master_of_a_slurm_step_is_its_first_node():
    assert discover(SLURM).master_address == "gpu08"


def test_a_master_address_that_is_given_wins():
    assert discover({**OPENMPI, "MASTER_ADDR": "10.9.8.7"}).master_address == "10.9.8.7"
    assert discover(TORCHRUN).master_address == "10.0.0.1"


def test_ranks_of_one_job_agree_on_a_port_and_jobs_differ():
    first = discover(OPENMPI).master_port
    peer = {**OPENMPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert discover(peer).master_port == first
    assert discover({**OPENMPI, "PMIX_NAMESPACE": "prterun-host-4712@1"}).master_port != first
    assert discover({**SLURM, "SLURM_STEP_ID": "1"}).master_port != discover(SLURM).master_port
    assert 20000 <= first < 30000


def test_a_lone_process_gets_a_free_port():
    assert discover({}).master_port > 1023


def test_a_lone_process_keeps_its_port_from_others_until_it_listens_there():
    rank_discovery._own_port.cache_clear()  # a group of another file may listen there
    port = discover({}).master_port
    assert discover({}).master_port == port
    for address in ("127.0.0.1", "127.0.0.2", ""):
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((address, port))
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        own.bind(("", port))
        own.listen()


def test_mpirun_inside_a_slurm_allocation_is_mpi():
    # Slurm's variables describe the step that holds mpirun's daemons, one per node
    outer = {**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert place({**outer, **OPENMPI}) == (1, 1, 2, 2, "openmpi")


def test_torchrun_inside_a_slurm_step_is_torchrun():
    assert place({**SLURM, **TORCHRUN}) == (5, 1, 8, 4, "torchrun")


def test_srun_with_pmi2_takes_the_local_rank_from_slurm():
    environ = {**SLURM, "PMI_RANK": "6", "PMI_SIZE": "7"}
    assert place(environ) == (6, 2, 7, 3, "pmi")


def test_a_batch_script_outside_srun_is_one_process():
    batch = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert place(batch) == (0, 0, 1, 1, "single process")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE: not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK: not set"),
        ({**TORCHRUN, "RANK": "eight"}, "RANK: must be a whole number, got 'eight'"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 is outside a run of 8 processes"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "local rank 4 is outside the 4 processes"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9", "RANK": "0"}, "9 processes on this machine"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT: must be between 1 and 65535"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set and RANK is not"),
        ({**OPENMPI, "PMI_SIZE": "5"}, "contradict each other"),
        ({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "4"}, "MASTER_ADDR: not set"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID: not set"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4;3"}, "expected a list as 4(x2),3"),
        ({**SLURM, "SLURM_NODEID": "5"}, "SLURM_NODEID=5 is outside"),
        ({**SLURM, "SLURM_NODEID": "-3"}, "SLURM_NODEID=-3 is outside"),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[08-x]"}, "expected a list as a[08-10,12],b"),
    ],
)
def test_a_contradictory_environment_is_one_clear_line(environ, words):
    with pytest.raises(RankDiscoveryError) as error:
        discover(environ)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_deepspeeds_local_size_is_never_handed_on():
    assert "LOCAL_SIZE" not in discover(DEEPSPEED).variables()


@pytest.mark.parametrize("text", ["a[1-x]", "a[1-2", "a]", "a[]", "a[1,,2]", ""])
def test_a_malformed_node_list_is_one_clear_line(text):
    with pytest.raises(RankDiscoveryError, match=r"expected a list as a\[08-10,12\],b, got"):
        expand_nodes(text)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        ("a[08-10,12],b", ("a08", "a09", "a10", "a12", "b")),
        ("r[1-2]n[3-4]", ("r1n3", "r1n4", "r2n3", "r2n4")),
        ("n[1,3]-ib", ("n1-ib", "n3-ib")),
    ],
)
def test_slurms_node_lists_expand_in_order(text, nodes):
    assert expand_nodes(text) == nodes


def test_slurms_task_counts_expand():
    assert local_counts("4(x2),3") == (4, 4, 3)


@given(size=st.integers(1, 64), data=st.data())
def test_what_was_found_describes_the_same_place_to_torchruns_reader(size, data):
    local_size = data.draw(st.integers(1, size))
    rank = data.draw(st.integers(0, size - 1))
    local_rank = data.draw(st.integers(0, local_size - 1))
    info = RankInfo(rank, local_rank, size, local_size, "10.0.0.1", 29500, "torchrun")
    assert discover(info.variables()) == info


NAMES = sorted({*TORCHRUN, *DEEPSPEED, *OPENMPI, *MVAPICH, *HYDRA, *SLURM, "SLURM_TASKS_PER_NODE"})
TEXTS = ("0", "1", "2", "-1", "", "x", "\u00b2", "4(x2),3", "a[1-3]", "a[", "9" * 5000)


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS)))
def test_any_environment_is_a_place_or_one_clear_line(environ):
    try:
        info = discover(environ)
    except RankDiscoveryError as error:
        line = str(error)
        assert "\n" not in line
        return
    assert 0 <= info.rank < info.world_size
    assert 0 <= info.local_rank < info.local_world_size <= info.world_size
