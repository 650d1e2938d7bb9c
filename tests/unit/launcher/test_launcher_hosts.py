"""Hostfiles and filters: what we read, what DeepSpeed's filters choose, and what launchers take."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from megatron.launcher.command import main
from megatron.launcher.elsewhere import exported, orders_of
from megatron.launcher.native import native_command
from megatron.launcher.plan import plan_launch
from megatron.launcher.several_machines import ssh_command
from megatron.neox_arguments import ConfigError, NeoXArgs
from megatron.neox_arguments.hostfile import read_hostfile, select_slots
from megatron.neox_arguments.neox_args import launch_values

CONFIG = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "max_position_embeddings": 8,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "data_path": "somewhere",
    "user_script": "train.py",
}
TWO = "alpha slots=4\nbeta slots=3\n"
MARKED = b"\xef\xbb\xbf# cluster\r\nalpha slots=4 # first\r\n\r\n  beta\tslots=3\r\n"
NAMED = "root@alpha slots=2\nfe80::1 slots=4\n[::2] slots=2\n"


@pytest.fixture
def arguments(tmp_path):
    def make(hostfile: str | bytes, **keys) -> NeoXArgs:
        path = tmp_path / "hosts"
        path.write_bytes(hostfile if isinstance(hostfile, bytes) else hostfile.encode())
        return NeoXArgs.from_dict({**CONFIG, "hostfile": str(path), **keys})

    return make


CASES = [
    (TWO, {}, {"alpha": (0, 1, 2, 3), "beta": (0, 1, 2)}),
    (MARKED, {}, {"alpha": (0, 1, 2, 3), "beta": (0, 1, 2)}),
    (TWO, {"num_nodes": 1}, {"alpha": (0, 1, 2, 3)}),
    (TWO, {"num_gpus": 2}, {"alpha": (0, 1), "beta": (0, 1)}),
    (TWO, {"include": "beta:2,0@alpha"}, {"alpha": (0, 1, 2, 3), "beta": (0, 2)}),
    (TWO, {"include": "beta"}, {"beta": (0, 1, 2)}),
    (TWO, {"include": "beta:0,2@alpha", "num_gpus": 1}, {"alpha": (0,), "beta": (0,)}),
    (TWO, {"include": "beta:1,2@alpha", "num_gpus": 2}, {"alpha": (0, 1), "beta": (1, 2)}),
    (TWO, {"include": " beta : 0, 2 @ alpha "}, {"alpha": (0, 1, 2, 3), "beta": (0, 2)}),
    (NAMED, {"exclude": "root@alpha @ fe80::1 : 3"}, {"fe80::1": (0, 1, 2), "::2": (0, 1)}),
    (TWO, {"exclude": "alpha", "num_nodes": 1}, {"beta": (0, 1, 2)}),
    (TWO, {"exclude": "alpha:0@beta:1", "num_gpus": 2}, {"alpha": (1, 2), "beta": (0, 2)}),
    (TWO, {"exclude": "alpha:0,1,2,3"}, {"beta": (0, 1, 2)}),
    (NAMED, {"include": "root@alpha"}, {"root@alpha": (0, 1)}),
    (NAMED, {"include": "root@alpha:0@fe80::1"}, {"root@alpha": (0,), "fe80::1": (0, 1, 2, 3)}),
    (NAMED, {"include": "[fe80::1]:0,1@root@alpha"}, {"root@alpha": (0, 1), "fe80::1": (0, 1)}),
    (NAMED, {"exclude": "fe80::1:3@root@alpha"}, {"fe80::1": (0, 1, 2), "::2": (0, 1)}),
    (NAMED, {"exclude": "fe80::1@::2", "num_gpus": 1}, {"root@alpha": (0,)}),
]


@pytest.mark.parametrize(("hostfile", "keys", "expected"), CASES)
def test_hostfile_filters_and_numbers_leave_these_slots(arguments, hostfile, keys, expected):
    assert plan_launch(arguments(hostfile, **keys), {}, num_devices=0).hosts == expected


@pytest.mark.parametrize("keys", [{"include": "beta:0,2@alpha"}, {"exclude": "alpha:1@beta"}, {}])
def test_our_filters_choose_what_deepspeeds_choose(keys):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    theirs = runner.parse_inclusion_exclusion(
        {"alpha": 4, "beta": 3}, keys.get("include", ""), keys.get("exclude", "")
    )
    ours = select_slots({"alpha": (0, 1, 2, 3), "beta": (0, 1, 2)}, **keys)
    assert {name: list(numbers) for name, numbers in ours.items()} == theirs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-oProxyCommand=x slots=1", "host '-oProxyCommand=x' is no name of a machine"),
        ("me@-oProxyCommand=x slots=1", "host 'me@-oProxyCommand=x' is no name of a machine"),
        ("-me@alpha slots=1", "host '-me@alpha' is no name of a machine"),
        ("[-alpha] slots=1", "host '-alpha' is no name of a machine"),
        ("a,b slots=1", "host 'a,b' is no name of a machine"),
        ("node[1-3] slots=1", "host 'node[1-3]' is no name of a machine"),
        ("a;b slots=1", "host 'a;b' is no name of a machine"),
        ("alpha", "must be 'host slots=N', N from 1 to 4096, got 'alpha'"),
        ("alpha slots=0", "must be 'host slots=N', N from 1 to 4096, got 'alpha slots=0'"),
        ("[beta] slots=2", "host 'beta' is named twice"),
    ],
)
def test_a_line_that_names_no_machine_is_refused_with_its_place(tmp_path, line, message):
    path = tmp_path / "hosts"
    path.write_text(f"beta slots=1\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("hostfile", "keys", "message"),
    [
        (TWO, {"include": "beta:0", "num_gpus": 2}, "num_gpus is 2, host 'beta' has 1 slot after"),
        (TWO, {"exclude": "beta", "num_nodes": 2}, "num_nodes is 2, the run has 1 host after excl"),
        (TWO, {"exclude": "alpha@beta"}, "exclude leaves no slot"),
        (TWO, {"exclude": "-alpha"}, "exclude names host '-alpha'; known hosts: alpha, beta"),
        (NAMED, {"include": "root@beta"}, "include names host 'root'; known hosts: root@alpha"),
        (
            "a slots=1\nb slots=1\na@b slots=1\n",
            {"include": "a@b"},
            "include can be read in two ways, got 'a@b'; write hosts in brackets",
        ),
        (
            TWO,
            {"launcher": "mpich"},
            "launcher: mpich starts the same number of processes on every machine, got alpha 4, be",
        ),
        (
            TWO,
            {"launcher": "openmpi", "include": "alpha:1"},
            "launcher: openmpi takes the first slots of a machine, got 1 of alpha",
        ),
    ],
)
def test_what_a_launcher_would_fail_on_is_one_line_before_the_start(
    arguments, tmp_path, monkeypatch, capsys, hostfile, keys, message
):
    args = arguments(hostfile, **keys)
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    Path("run.yml").write_text(json.dumps({**args.megatron_config, "user_script": None}))
    for flags in (["--check"], ["--dry-run"], []):
        assert main([*flags, "train.py", "run.yml"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_hostfile_of_more_slots_than_a_run_has_is_refused_before_they_are_counted(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("".join(f"a{number} slots=4096\n" for number in range(20_000)))
    with pytest.raises(ConfigError, match=r"hosts:257: has more than 1048576 slots up to this"):
        read_hostfile(path)


def test_brackets_say_where_an_address_ends(arguments):
    args = arguments("::1 slots=1\n::1:0 slots=1\nb slots=1\n", include="[::1:0]@b")
    assert plan_launch(args, {}, num_devices=0).hosts == {"::1:0": (0,), "b": (0,)}


def test_the_slots_of_a_machine_become_its_ranks(arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = arguments(TWO, include="alpha:1,3@beta:2")
    first, second = orders_of(args, plan_launch(args, {}, num_devices=0), 60.0).values()
    assert (first["slots"], first["first_rank"], first["world_size"]) == ([1, 3], 0, 3)
    assert (second["slots"], second["first_rank"], second["world_size"]) == ([2], 2, 3)
    assert first["config"]["include"] == "alpha:1,3@beta:2"
    assert first["master_port"] is None


def test_ssh_gets_the_host_behind_its_options_and_no_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    *_, end_of_options, host, there = ssh_command("me@fe80::1", {"PDSH_SSH_ARGS_APPEND": "-p 2222"})
    assert (end_of_options, host) == ("--", "me@fe80::1")
    assert there.startswith(f"cd {tmp_path} && exec ")
    assert there.endswith(" -u -m megatron.launcher.machine")
    command = ssh_command("alpha", {"PDSH_SSH_ARGS_APPEND": "-p 2222"})
    assert command[command.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in command


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"launcher": "openmpi"},
            "mpirun -np 7 --host alpha:4,beta:3 --bind-to none -x MASTER_ADDR=alpha "
            "-x WANDB_API_KEY python train.py",
        ),
        (
            {"launcher": "mpich", "num_gpus": 2, "master_addr": "10.0.0.1"},
            "mpirun -np 4 -ppn 2 -hosts alpha,beta -genv MASTER_ADDR 10.0.0.1 python train.py",
        ),
        (
            {"launcher": "slurm", "num_gpus": 3, "account": "a", "comment": "two words"},
            "srun --account=a '--comment=two words' --nodelist=alpha,beta --nodes=2 --ntasks=6 "
            "--ntasks-per-node=3 --gpus-per-node=3 --kill-on-bad-exit=1 "
            "--export=ALL,MASTER_ADDR=alpha python train.py",
        ),
    ],
)
def test_a_launcher_of_the_machines_gets_a_command_of_its_own(arguments, tmp_path, keys, expected):
    for name in ("mpirun", "srun"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    args = arguments(TWO, **keys)
    command = native_command(
        plan_launch(args, {}, num_devices=0).hosts,
        launch_values(args),
        script=["python", "train.py"],
        variables={"WANDB_API_KEY": "secret"},
        environ={"PATH": str(tmp_path)},
    )
    assert shlex.join(command) == expected


def test_a_port_that_is_given_reaches_the_ranks_of_mpi(arguments, tmp_path):
    (tmp_path / "mpirun").write_text("")
    (tmp_path / "mpirun").chmod(0o755)
    args = arguments(TWO, launcher="openmpi")
    slots, values = plan_launch(args, {}, num_devices=0).hosts, launch_values(args)
    common = {"script": ["x"], "variables": (), "environ": {"PATH": str(tmp_path)}}
    assert "MASTER_PORT=4711" in native_command(slots, values, port=4711, **common)
    assert not any("MASTER_PORT" in word for word in native_command(slots, values, **common))


def test_a_launcher_that_is_not_installed_is_one_line(arguments):
    args = arguments(TWO, launcher="openmpi")
    slots, values = plan_launch(args, {}, num_devices=0).hosts, launch_values(args)
    with pytest.raises(ConfigError, match=r"openmpi cannot start .* there is no program mpirun"):
        native_command(slots, values, script=["x"], variables=(), environ={"PATH": "/none"})


def test_variables_of_libraries_and_lines_of_the_settings_file_reach_other_machines(tmp_path):
    (tmp_path / ".deepspeed_env").write_text("# mine\n\nNCCL_DEBUG=WARN\nA_B=c=d e\n")
    environ = {"NCCL_DEBUG": "INFO", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "HF_HOME": "/h"}
    found = exported(environ, (tmp_path,))
    assert found == {"NCCL_DEBUG": "WARN", "HF_HOME": "/h", "A_B": "c=d e"}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"A=1\nexport\n", ":2: must be NAME=value, got 'export'"),
        (b"export A=1\n", ":1: must be NAME=value, got 'export A'"),
        (b"=1\n", ":1: must be NAME=value, got ''"),
        (b"A=x\0y\n", ":1: must be NAME=value, got 'A'"),
        (b"A=1\nB=caf\xe9\n", ":2: file of variables is not UTF-8 text"),
    ],
)
def test_a_malformed_settings_file_is_one_line_without_its_values(tmp_path, lines, problem):
    path = tmp_path / ".deepspeed_env"
    path.write_bytes(lines)
    with pytest.raises(ConfigError) as caught:
        exported({}, (tmp_path,))
    assert str(caught.value).startswith(f"{path}{problem}")


def test_a_hostfile_that_is_no_ordinary_file_is_refused(tmp_path):
    for path in (str(tmp_path), "/dev/zero"):
        with pytest.raises(ConfigError, match=f"^{path}: hostfile is no ordinary file"):
            plan_launch(NeoXArgs.from_dict({**CONFIG, "hostfile": path}), {}, num_devices=0)
