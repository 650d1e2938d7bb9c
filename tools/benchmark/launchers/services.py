"""The services that launchers need on the two machines: sshd, and Slurm's daemons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .machines import NAMES, Machines, wait_until

__all__ = ["environment", "has_slurm", "has_ssh", "start_services"]

_SSHD = "/usr/sbin/sshd"
_SLURM = ("slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol")


def has_ssh() -> bool:
    """Returns whether this machine can start sshd."""
    return os.path.exists(_SSHD) and bool(shutil.which("ssh") and shutil.which("ssh-keygen"))


def has_slurm() -> bool:
    """Returns whether this machine can start Slurm."""
    return all(shutil.which(name, path=_path()) for name in _SLURM)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a user of the machines; nothing of this process's own but paths."""
    return {
        "PATH": _path(),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "SLURM_CONF": str(folder / "slurm.conf"),
        **_MACHINE_VARIABLES,
    }


_MACHINE_VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def _path() -> str:
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/bin"])


def start_services(machines: Machines, folder: Path) -> None:
    """Starts what is installed, waits until it answers, and marks it as there to stay."""
    environ = environment(folder)
    if has_ssh():
        _start_ssh(machines, folder, environ)
    if has_slurm():
        _start_slurm(machines, folder, environ)
    machines.take_services()


def _start_ssh(machines: Machines, folder: Path, environ: Mapping[str, str]) -> None:
    for name in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"{','.join(NAMES)} {host_key}")
    server = {
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",  # the folder of temporary files is everybody's
        "PidFile": "none",
        "SetEnv": " ".join(f"{key}={value}" for key, value in _MACHINE_VARIABLES.items()),
    }
    client = {
        "IdentityFile": folder / "user_key",
        "GlobalKnownHostsFile": folder / "known_hosts",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
    }
    for index, name in enumerate(NAMES):
        own = folder / name / "ssh"
        (own / "sshd_config").write_text(_lines(server))
        (own / "ssh_config").write_text("Host *\n" + _lines(client))
        machines.start(
            index, [_SSHD, "-D", "-e"], environ=environ, output=folder / f"{name}.sshd.log"
        )
    for index, other in enumerate(reversed(NAMES)):
        _await(machines, index, ["ssh", other, "true"], environ, what=f"sshd of {other}")


def _start_slurm(machines: Machines, folder: Path, environ: Mapping[str, str]) -> None:
    cpus = os.cpu_count() or 1
    configuration = {
        "ClusterName": "trial",
        "SlurmctldHost": NAMES[0],
        "AuthType": "auth/none",
        "AuthInfo": "cred_expire=5",  # a job that is queued again waits this long
        "CredType": "cred/none",
        "SlurmUser": "root",
        "StateSaveLocation": folder / "slurm_state",
        "SlurmdSpoolDir": f"{folder}/slurmd_%n",
        "SlurmctldPidFile": "/run/slurmctld.pid",
        "SlurmdPidFile": "/run/slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "sched_interval=2,batch_sched_delay=1",
        "KillWait": 30,  # Slurm's own default
        "ReturnToService": 2,
        "SlurmdTimeout": 300,
    }
    text = "".join(f"{key}={value}\n" for key, value in configuration.items())
    text += f"NodeName={','.join(NAMES)} CPUs={cpus} State=UNKNOWN\n"
    text += f"PartitionName=all Nodes={','.join(NAMES)} Default=YES MaxTime=INFINITE State=UP\n"
    (folder / "slurm.conf").write_text(text)
    (folder / "slurm_state").mkdir()
    start = {"environ": environ, "output": folder / "slurm.log"}
    machines.start(0, ["slurmctld", "-D"], **start)  # type: ignore[arg-type]
    for index in range(len(NAMES)):
        machines.start(index, ["slurmd", "-D"], **start)  # type: ignore[arg-type]
    _await(machines, 0, ["srun", "-N", "2", "-t", "1", "true"], environ, what="Slurm")


def _await(
    machines: Machines, index: int, argv: list[str], environ: Mapping[str, str], *, what: str
) -> None:
    words = ""

    def answers() -> bool:
        nonlocal words
        try:
            machines.run(index, argv, environ)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            words = str(error)
            return False
        return True

    if wait_until(answers, seconds=60, pause=0.5) is None:
        raise RuntimeError(f"{what} does not answer: {words}")


def _lines(values: Mapping[str, object]) -> str:
    return "".join(f"{key} {value}\n" for key, value in values.items())
