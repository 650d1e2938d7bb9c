"""``deepy.py``: planning, commands, exit codes, and how soon it answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.launcher.arguments_file import arguments_folder, write_arguments
from megatron.launcher.command import main, rank_commands
from megatron.launcher.devices import count_devices, rank_device_environment
from megatron.launcher.plan import LaunchPlan, plan_launch
from megatron.launcher.rendezvous import reserve_port
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.runtime import process_life
from tests import signals
from tests.tiny import write_dataset

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "seq_length": 8,
    "max_position_embeddings": 8,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "data_path": "somewhere",
    "tokenizer_type": "CharLevelTokenizer",
    "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A script and a configuration that do nothing, in a folder with their data."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "somewhere")
    (tmp_path / "train.py").write_text("")
    (tmp_path / "run.yml").write_text(json.dumps({**CONFIG, "num_gpus": 2}))
    return str(tmp_path / "train.py"), str(tmp_path / "run.yml")


def plan(num_devices: int = 0, environ: dict[str, str] | None = None, **values) -> LaunchPlan:
    return plan_launch(
        NeoXArgs.from_dict({**CONFIG, **values}), environ or {}, num_devices=num_devices
    )


@pytest.mark.parametrize(
    ("values", "num_processes"),
    [
        ({}, 1),
        ({"num_gpus": 3}, 3),
        ({"world_size": 2}, 2),
        ({"num_gpus": 3, "world_size": 2}, 3),
        ({"include": "localhost:1"}, 1),
        ({"include": "localhost:0,1"}, 2),
        ({"hostfile": "/nowhere/hostfile", "num_gpus": 2}, 2),
        ({"hostfile": "None"}, 1),
        ({"num_gpus": "2"}, 2),
        ({"num_gpus": None, "num_nodes": None, "global_num_gpus": "3"}, 3),
        ({"include": "localhost:0,1,2", "num_gpus": 2}, 2),
        ({"exclude": "localhost:0", "num_gpus": 2}, 2),
    ],
)
def test_a_machine_without_gpus_starts_cpu_processes(values, num_processes):
    assert plan(**values) == LaunchPlan(num_processes)


@pytest.mark.parametrize(
    ("values", "indices"),
    [
        ({}, (0, 1, 2, 3)),
        ({"num_gpus": 2}, (0, 1)),
        ({"include": "localhost:1,3"}, (1, 3)),
        ({"exclude": "localhost:0"}, (1, 2, 3)),
        ({"exclude": "localhost:0", "num_gpus": 2}, (1, 2)),
        ({"exclude": f"{socket.gethostname()}:3"}, (0, 1, 2)),
        ({"include": "localhost:1,3", "num_gpus": 1}, (1,)),
        ({"include": "::1:3,1"}, (1, 3)),
        ({"include": "127.0.0.1", "num_gpus": 3}, (0, 1, 2)),
    ],
)
def test_a_machine_with_gpus_uses_those_that_were_asked_for(values, indices):
    assert plan(4, **values) == LaunchPlan(len(indices), device_indices=indices)


def test_more_processes_than_gpus_is_an_error_that_says_how_many_there_are():
    with pytest.raises(ConfigError, match="this machine shows 4 GPUs"):
        plan(4, num_gpus=5)


def test_two_hosts_are_planned_with_their_slots(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# cluster\nalpha slots=4\nbeta slots=4\n")
    slots = (0, 1, 2, 3)
    assert plan(hostfile=str(hostfile)) == LaunchPlan(8, hosts={"alpha": slots, "beta": slots})
    assert plan(environ={"DLTS_HOSTFILE": str(hostfile)}, num_nodes=1).hosts == {"alpha": slots}


def test_a_hostfile_of_this_machine_alone_needs_no_runner(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    assert plan(hostfile=str(hostfile)) == LaunchPlan(2)
    hostfile.write_text(f"{socket.gethostname()} slots=2\n")
    assert plan(4, hostfile=str(hostfile)) == LaunchPlan(2, device_indices=(0, 1))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_nodes": 1},
        {"num_gpus": 2},
        {"include": "beta:1,2@alpha"},
        {"exclude": "alpha:0"},
        {"exclude": "beta"},
    ],
)
def test_the_launcher_and_the_configuration_count_the_same_processes(tmp_path, monkeypatch, keys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=4\nbeta slots=3\n")
    neox_args = NeoXArgs.from_dict({**CONFIG, **keys, "hostfile": str(hostfile)})
    planned = plan_launch(neox_args, {}, num_devices=0).num_processes
    assert planned == resolve(neox_args).layout.world_size


def test_a_hostfile_that_is_no_text_is_refused(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_bytes(b"alpha slots=2 # caf\xe9\n")
    with pytest.raises(ConfigError, match="hosts:1: hostfile is not UTF-8 text; convert it"):
        plan(hostfile=str(hostfile))


def test_a_host_without_a_hostfile_is_refused():
    with pytest.raises(ConfigError, match="there is no hostfile"):
        plan(include="alpha:0")


def test_ranks_get_torchs_variables_and_never_deepspeeds_local_size():
    commands = rank_commands(
        ["python", "train.py"],
        plan=LaunchPlan(2),
        master_port=1234,
        environ={"LOCAL_SIZE": "2", "HOME": "/h", "DS_ACCELERATOR": "cpu"},
    )
    assert [dict(c.environ) for c in commands] == [
        {
            "HOME": "/h",
            "DS_ACCELERATOR": "cpu",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1234",
        }
        for rank in range(2)
    ]


def test_devices_are_counted_from_the_environment_or_the_device_files(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_devices({}, tmp_path) == 2
    assert count_devices({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert count_devices({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert count_devices({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, tmp_path) == 1
    assert count_devices({"DS_ACCELERATOR": "cpu"}, tmp_path) == 0
    assert count_devices({}, tmp_path / "missing") == 0


def test_chosen_devices_are_named_as_the_environment_names_them():
    assert rank_device_environment((1,), {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert rank_device_environment((1,), environ) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}


def test_a_port_in_use_is_replaced_and_said():
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        holder, port = reserve_port(wanted, said.append)
        holder.close()
    assert port != wanted
    assert said == [f"deepy.py: master_port {wanted} is in use on this machine; using {port}"]


def test_a_reserved_port_can_still_be_listened_on_by_rank_0():
    holder, port = reserve_port(None, print)
    with holder, socket.socket() as store:
        store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        store.bind(("127.0.0.1", port))
        store.listen()


def test_arguments_are_private_and_gone_afterwards():
    with arguments_folder() as folder:
        path = write_arguments(folder, "arguments", {"a": 1})
        assert json.loads(path.read_text()) == {"a": 1}
        if os.name == "posix":
            assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def ended_pid() -> int:
    """The number of a process that has ended and that nobody has taken again."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def shared_temp(tmp_path, monkeypatch):
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def named_for(folder: Path, *, pid: object) -> str:
    """The name that the launcher ``pid`` would have given to ``folder``."""
    return folder.name.replace(f"-{os.getpid()}-", f"-{pid}-")


def test_the_folder_of_a_launcher_that_was_killed_is_removed(shared_temp):
    with arguments_folder() as folder:
        left = shared_temp / named_for(folder, pid=ended_pid())
        living = shared_temp / named_for(folder, pid=os.getppid())
    for path in (left, living):
        path.mkdir()
        (path / "x.json").write_text("{}")
    with arguments_folder():
        assert not left.exists()
        assert living.exists()


def test_what_others_put_into_the_temporary_folder_stops_nobody_and_stays(shared_temp, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/kept").write_text("")
    with arguments_folder() as folder:
        pid = ended_pid()
        names = {n: named_for(folder, pid=n) for n in (pid, "9" * 10, "9" * 40, "0", "-1", "x", "")}
        older = f"odm-neox-{pid}-abc"
    for name in (*names.values(), older):
        (shared_temp / name).symlink_to(tmp_path / "other")
    (shared_temp / f"{names[pid]}2").write_text("a file")
    (shared_temp / f"{names[pid]}3").symlink_to("/nowhere/at/all")
    (shared_temp / f"{names[pid]}4").symlink_to(f"{names[pid]}4")
    before = sorted(path.name for path in shared_temp.iterdir())
    with arguments_folder():
        pass
    assert sorted(path.name for path in shared_temp.iterdir()) == before
    assert (tmp_path / "other/kept").exists()


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("socket.gethostname", lambda: "another-machine"),
        ("os.getuid", lambda: 4242),
        ("os.readlink", lambda path: "pid:[1]"),
        ("pathlib.Path.read_text", lambda self, encoding: "another boot"),
    ],
)
def test_another_machine_user_container_or_boot_has_other_folders(
    shared_temp, monkeypatch, target, value
):
    with arguments_folder() as folder:
        left = shared_temp / named_for(folder, pid=ended_pid())
    left.mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(target, value)
        with arguments_folder():
            assert left.exists()
    with arguments_folder():
        assert not left.exists()


def test_the_folders_name_says_whose_it_is(shared_temp, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a-b/c d")
    with arguments_folder() as folder:
        assert folder.parent == shared_temp
        assert folder.name.startswith(f"odm-neox-{os.getuid()}-a_b_c_d-")
        assert f"-{os.getpid()}-" in folder.name


def test_check_summarises_the_run_and_starts_nothing(files, capsys):
    assert main(["--check", *files]) == 0
    output = capsys.readouterr().out
    assert "configuration is valid" in output
    assert "2 on this machine" in output


def test_dry_run_prints_every_ranks_command(files, capsys):
    assert main(["--dry-run", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "RANK=1" in lines[1]
    assert "--megatron_config" in lines[1]


def test_dry_run_of_a_training_prints_layers_and_memory(files, tmp_path, capsys):
    assert main(["--dry-run", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:5] == ["layers:", "  every rank: Embedding, TransformerLayer 2, FinalNorm"]
    assert "estimated memory per rank, in MiB:" in lines
    (tmp_path / "generate.py").write_text("")
    assert main(["--dry-run", str(tmp_path / "generate.py"), files[1], "--elsewhere"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_unknown_key_is_one_line_and_exit_code_2(files, capsys):
    script, config = files
    Path(config).write_text(json.dumps({**CONFIG, "num_layerz": 3}))
    assert main([script, config]) == 2
    output = capsys.readouterr()
    assert "num_layerz" in output.err
    assert len(output.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--check", "train.py", "run.yml"],
        ["--dry-run", "train.py", "run.yml"],
        ["train.py", "bad.yml"],
        ["train.py", "no.yml"],
    ],
)
def test_deepy_answers_without_torch_within_half_a_second(files, tmp_path, arguments):
    (tmp_path / "bad.yml").write_text("{num_layers: 1")
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['deepy.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'deepy.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'deepspeed'} & set(sys.modules)\n"
    )
    seconds = []
    for _ in range(3):  # the best of three, of its own processor time: the machine may be busy
        before = os.times()
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        after = os.times()
        used = after.children_user + after.children_system
        seconds.append(used - before.children_user - before.children_system)
    assert "Error" not in run.stderr, run.stderr
    assert run.returncode == (2 if arguments[-1] in ("bad.yml", "no.yml") else 0)
    assert min(seconds) < 0.5


def run_deepy_without(*blocked: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs ``deepy.py`` where importing ``blocked`` fails, as in a bare installation."""
    code = (
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.argv = ['deepy.py', *{arguments!r}]\n"
        f"runpy.run_path({str(ROOT / 'deepy.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_an_installation_without_torch_is_told_before_a_run_starts(files):
    run = run_deepy_without("torch", "deepspeed", arguments=list(files))
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("deepy.py: this Python (")
    assert "lacks torch, deepspeed; " in run.stderr


def test_a_configuration_can_be_checked_without_torch(files):
    run = run_deepy_without("torch", "deepspeed", arguments=["--check", *files])
    assert (run.returncode, run.stderr) == (0, "")


def test_dry_run_on_several_hosts_prints_the_commands_and_the_ranks(files, tmp_path, capsys):
    script, config = files
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    Path(config).write_text(json.dumps({**CONFIG, "hostfile": str(tmp_path / "hosts")}))
    assert main(["--dry-run", script, config]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, host in zip(lines[:2], ("alpha", "beta"), strict=True):
        assert line.startswith("ssh -T ")
        assert f" -- {host} " in line
    assert lines[2:4] == ["alpha: ranks 0 on slots 0", "beta: ranks 1 on slots 0"]


@pytest.fixture
def stop_handlers(monkeypatch):
    """Installs the handlers and takes them away again; a request to stop is forgotten too."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(process_life, "_stop_since", None)
    with signals.defaults():
        process_life.handle_stop_signals()
        yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_a_wish_and_its_echo_is_not_a_second(stop_handlers, number):
    assert not process_life.stop_requested()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert process_life.stop_requested()


def test_a_later_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time\n"
        "from megatron.runtime import process_life\n"
        "process_life.REPEAT_SECONDS = 0.0\n"
        "process_life.handle_stop_signals()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(5)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 143
    assert run.stderr == "SIGTERM again: ended at once, without a checkpoint\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_kills_a_run_and_the_launcher_tells_so(number, code):
    rank = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(60)"
    )
    program = (
        "import os, sys\n"
        "from megatron.launcher import supervisor\n"
        "supervisor.REPEAT_SECONDS = 0.0\n"
        f"command = supervisor.RankCommand([sys.executable, '-c', {rank!r}], os.environ)\n"
        "sys.exit(supervisor.Supervisor([command], grace_seconds=60, report=print).run())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=signals.take_defaults,
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "up\n"
        launcher.send_signal(number)
        assert "a second signal ends it now" in launcher.stdout.readline()
        launcher.send_signal(number)
        assert f"{number.name} again: the run is killed" in launcher.stdout.readline()
        assert launcher.wait(timeout=20) == code


def test_a_process_without_our_launcher_is_bound_to_nobody(monkeypatch):
    for name in (process_life.PARENT_VARIABLE, "TORCHELASTIC_RUN_ID", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert process_life.bind_to_launcher() is False
