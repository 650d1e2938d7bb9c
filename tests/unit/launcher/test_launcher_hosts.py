"""Hostfiles and filters: what we read, what DeepSpeed's runner reads, and what launchers take."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from megatron.launcher.command import main, prepared_runner
from megatron.launcher.plan import plan_launch
from megatron.neox_arguments import ConfigError, NeoXArgs
from megatron.neox_arguments.hostfile import read_hostfile, select_slots

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


@pytest.mark.parametrize(("hostfile", "keys", "expected"), CASES)
def test_deepspeeds_runner_reads_the_same_slots(arguments, hostfile, keys, expected):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    args = arguments(hostfile, **keys)
    with prepared_runner(args, plan_launch(args, {}, num_devices=0)) as command:
        parsed = runner.parse_args(command[3:])
        pool = runner.fetch_hostfile(parsed.hostfile)
    assert (parsed.num_nodes, parsed.num_gpus, parsed.include) == (-1, -1, "")
    assert parsed.force_multi
    slots = runner.parse_inclusion_exclusion(pool, parsed.include, parsed.exclude)
    assert {name: tuple(numbers) for name, numbers in slots.items()} == expected


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
        (TWO, {"include": "beta:0", "num_gpus": 2}, "num_gpus is 2, host 'beta' has 1 slots after"),
        (TWO, {"exclude": "beta", "num_nodes": 2}, "num_nodes is 2, there are 1 hosts after excl"),
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
        (
            NAMED,
            {"exclude": "root@alpha:0"},
            "slots 1 of root@alpha: DeepSpeed's runner cannot choose slots of a name with '@'",
        ),
        ("2001:db8::1 slots=1\n", {}, "host 2001:db8::1: pdsh takes the part before ':' for"),
    ],
)
def test_what_the_runner_would_fail_on_is_one_line_before_the_start(
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


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        ({"include": "beta"}, ["--nodelist=beta", "--nodes=1"]),
        ({"num_nodes": 1}, ["--nodes=1"]),
        ({"num_gpus": 3, "account": "a"}, ["--account=a", "--gpus-per-node=3"]),
    ],
)
def test_slurm_gets_the_filters_as_its_own_arguments(arguments, keys, expected):
    args = arguments("alpha slots=4\nbeta slots=4\n", launcher="slurm", **keys)
    with prepared_runner(args, plan_launch(args, {}, num_devices=0)) as command:
        given = [text for text in command if text.startswith("--launcher_args=")]
    assert shlex.split("".join(given).removeprefix("--launcher_args=")) == expected


def test_a_hostfile_that_is_no_ordinary_file_is_refused(tmp_path):
    for path in (str(tmp_path), "/dev/zero"):
        with pytest.raises(ConfigError, match=f"^{path}: hostfile is no ordinary file"):
            plan_launch(NeoXArgs.from_dict({**CONFIG, "hostfile": path}), {}, num_devices=0)
