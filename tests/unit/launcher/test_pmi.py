"""What ranks ask of Hydra: a stand-in answers as Hydra does, and Hydra itself where it is there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megatron.launcher import pmi

ROOT = Path(__file__).resolve().parents[3]
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
MPIRUN = next((name for name in ("mpirun.mpich", "mpiexec.hydra") if shutil.which(name)), None)


@pytest.fixture
def manager():
    """Answers as Hydra on the other end of a link; keeps what was put and all that was asked."""
    ours, theirs = socket.socketpair()
    asked: list[str] = []
    kept: dict[str, str] = {}

    def answer() -> None:
        with theirs, theirs.makefile("rw") as link:
            for line in link:
                asked.append(line.strip())
                words = dict(word.partition("=")[::2] for word in line.split())
                command = words["cmd"]
                if command == "put":
                    kept[words["key"]] = words["value"]
                replies = {
                    "init": "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
                    "get_my_kvsname": "cmd=my_kvsname kvsname=kvs_1",
                    "put": "cmd=put_result rc=0 msg=success",
                    "barrier_in": "cmd=barrier_out",
                    "get": f"cmd=get_result rc=0 value={kept.get(words.get('key', ''), '')}",
                    "finalize": "cmd=finalize_ack",
                }
                if command in replies:
                    link.write(replies[command] + "\n")
                    link.flush()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield ours.fileno(), asked, kept
    ours.close()
    thread.join(timeout=10)
    pmi._session, pmi._holder = None, None


def test_rank_0_publishes_a_free_port_and_leaves_in_order(manager):
    descriptor, asked, kept = manager
    found = pmi.meet_by_hydra({**HYDRA, "PMI_FD": str(descriptor)})
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert int(found["MASTER_PORT"]) > 1023
    assert list(kept.values()) == [f"{found['MASTER_PORT']}@{socket.gethostname()}"]
    pmi.leave_job()
    assert asked[-1] == "cmd=finalize"


def test_another_rank_takes_what_rank_0_published(manager):
    descriptor, asked, kept = manager
    kept["odm-neox-meeting"] = "4711@node7"
    environ = {**HYDRA, "PMI_FD": str(descriptor), "PMI_RANK": "1", "MPI_LOCALNRANKS": "1"}
    assert pmi.meet_by_hydra(environ) == {"MASTER_PORT": "4711", "MASTER_ADDR": "node7"}
    environ["MASTER_ADDR"] = "10.0.0.1"
    assert pmi.meet_by_hydra(environ) == {"MASTER_PORT": "4711", "MASTER_ADDR": "10.0.0.1"}
    assert not any(line.startswith("cmd=put") for line in asked)


def test_a_rank_that_fails_aborts_the_job_with_its_code(manager):
    descriptor, asked, _ = manager
    environ = {**HYDRA, "PMI_FD": str(descriptor), "RANK": "0"}
    pmi.abort_job(environ, 2)
    pmi.abort_job({**environ, "RANK": "1"}, 3)  # torchrun inside a job: not Hydra's own rank
    os.write(descriptor, b"cmd=finalize\n")
    os.read(descriptor, 100)
    assert asked == ["cmd=abort exitcode=2", "cmd=finalize"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**HYDRA},
        {**HYDRA, "PMI_FD": "x"},
        {**HYDRA, "PMI_FD": "7", "RANK": "0"},
        {**HYDRA, "PMI_FD": "7", "PMI_SIZE": "1"},
        {**HYDRA, "PMI_FD": "7", "MASTER_PORT": "29500"},
        {"PMI_FD": "7", "PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_PROCID": "0"},  # srun --mpi=pmi2
    ],
)
def test_without_hydra_or_with_a_port_nothing_is_asked(environ):
    assert pmi.meet_by_hydra(environ) == {}


def test_a_manager_that_answers_otherwise_leaves_the_fixed_port():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"cmd=response_to_fullinit;rc=1;\n")
        assert pmi.meet_by_hydra({**HYDRA, "PMI_FD": str(ours.fileno())}) == {}
    assert pmi._session is None


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="needs MPICH's mpirun")
def test_hydra_gives_two_jobs_two_ports_and_ends_a_job_of_which_a_rank_fails():
    program = (
        "import os, sys, time\n"
        "from megatron.launcher.pmi import abort_job, leave_job, meet_by_hydra\n"
        "print(meet_by_hydra(os.environ)['MASTER_PORT'], flush=True)\n"
        "time.sleep(1)\n"
        "if sys.argv[1] == 'fail' and os.environ['PMI_RANK'] == '1':\n"
        "    abort_job(os.environ, 2)\n"
        "    os._exit(2)\n"
        "time.sleep(60 if sys.argv[1] == 'fail' else 2)\n"
        "leave_job()\n"
    )
    assert MPIRUN is not None
    jobs = [
        subprocess.Popen(
            [MPIRUN, "-np", "2", sys.executable, "-c", program, what],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for what in ("end", "end", "fail")
    ]
    ports = [set(job.communicate(timeout=50)[0].split()) for job in jobs]
    assert [len(of_job) for of_job in ports] == [1, 1, 1]
    assert len(set.union(*ports)) == 3
    assert [job.returncode for job in jobs] == [0, 0, 2]
