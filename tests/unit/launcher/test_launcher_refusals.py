"""``deepy.py`` on wrong input: one line and exit code 2, or a line that says what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.launcher.command import main
from megatron.launcher.plan import plan_launch
from megatron.neox_arguments import ConfigError, NeoXArgs
from tests.tiny import write_dataset

CONFIG = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "max_position_embeddings": 8,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "data_path": "somewhere",
    "tokenizer_type": "CharLevelTokenizer",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A script and a configuration that do nothing, in a folder with their data."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "somewhere")
    (tmp_path / "train.py").write_text("")
    (tmp_path / "run.yml").write_text(json.dumps({**CONFIG, "num_gpus": 2}))
    return str(tmp_path / "train.py"), str(tmp_path / "run.yml")


@pytest.mark.parametrize("count", [-1, 0, 10**9])
def test_an_impossible_number_of_processes_is_refused_with_and_without_a_hostfile(tmp_path, count):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=4\nbeta slots=4\n")
    for keys in ({}, {"hostfile": str(hostfile)}):
        with pytest.raises(ConfigError, match=f"num_gpus must be 1 to 4096, got {count}"):
            plan_launch(NeoXArgs.from_dict({**CONFIG, **keys, "num_gpus": count}), {})
    with pytest.raises(ConfigError, match="one machine starts at most 4096 processes"):
        plan_launch(NeoXArgs.from_dict({**CONFIG, "world_size": 10**6}), {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_nodes", 3, "num_nodes is 3, the run has 2 hosts; lower it"),
        ("include", "gamma", "include names host 'gamma'; known hosts: alpha, beta"),
    ],
)
def test_hosts_that_are_not_there_are_refused_with_the_line_of_the_key(
    files, tmp_path, capsys, key, value, message
):
    script, config = files
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    lines = "".join(f"{name}: {item}\n" for name, item in {**CONFIG, key: value}.items())
    Path(config).write_text(lines)
    assert main(["--check", script, config, "-H", str(tmp_path / "hosts")]) == 2
    assert capsys.readouterr().err == f"{config}:{len(CONFIG) + 1}: {message}\n"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("type:[", "pipe_partition_method: '[' is no regular expression ("),
        ("type:foo", "pipe_partition_method: 'foo' matches none of the layers Embedding, "),
    ],
)
def test_stages_that_cannot_be_cut_are_refused_before_a_run(files, capsys, method, message):
    script, config = files
    values = {**CONFIG, "num_layers": 2, "num_gpus": 2, "pipe_parallel_size": 2}
    lines = [f"{key}: {value}\n" for key, value in values.items()]
    Path(config).write_text("".join(lines) + f"pipe_partition_method: '{method}'\n")
    for flag in ("--check", "--dry-run"):
        assert main([flag, script, config]) == 2
        assert capsys.readouterr().err.startswith(f"{config}:{len(values) + 1}: {message}")


def test_fp16_without_an_accelerator_is_refused_here_and_noted_for_elsewhere(
    files, capsys, monkeypatch
):
    script, config = files
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path(config).write_text(json.dumps({**CONFIG, "precision": "fp16"}))
    problem = (
        f"{config}:1: precision: there is no accelerator for the precision fp16; use bfloat16 or "
        "fp32\n"
    )
    assert main([script, config]) == 2
    assert capsys.readouterr().err == problem
    for flag in ("--check", "--dry-run"):
        assert main([script, config, flag]) == 2
        lines = capsys.readouterr().err.splitlines(keepends=True)
        assert lines[0] == problem
        assert "--elsewhere" in lines[1]
        assert len(lines) == 2
    assert main([script, config, "--check", "--elsewhere"]) == 0
    output = capsys.readouterr()
    assert f"not on this machine: {problem}" in output.out
    assert output.err == ""


def test_elsewhere_without_a_check_is_refused(files, capsys):
    assert main([*files, "--elsewhere"]) == 2
    assert capsys.readouterr().err.startswith("the command line: --elsewhere has no effect")


def test_a_monitor_without_its_package_is_one_line(files, capsys, monkeypatch):
    script, config = files
    Path(config).write_text(json.dumps({**CONFIG, "wandb": {"enabled": True}}))
    monkeypatch.setattr("megatron.neox_arguments.deepspeed_json.find_spec", lambda name: None)
    assert main([script, config]) == 2
    assert capsys.readouterr().err.startswith("wandb.enabled is true and the package wandb ")
    assert main([script, config, "--check"]) == 2
    assert capsys.readouterr().err.startswith("wandb.enabled is true and the package wandb ")


@pytest.mark.parametrize("backend", ["hccl", "ccl"])
def test_a_backend_that_this_pytorch_has_not_is_refused_before_a_group_is_made(
    backend, monkeypatch
):
    pytest.importorskip("deepspeed")
    import torch.distributed

    from megatron.launcher.rank_discovery import RankInfo
    from megatron.runtime.initialize import _join

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    alone = RankInfo(0, 0, 1, 1, "127.0.0.1", 29500, "test")
    with pytest.raises(ConfigError, match=f"distributed_backend: .* no backend {backend}; remove"):
        _join(alone, backend, 1.0)


def test_the_runners_flags_are_spelled_as_deepspeed_spells_them():
    values = {"launcher": "Slurm", "num_nodes": None, "master_port": "29600", "comment": "mine"}
    flags = NeoXArgs.from_dict({**CONFIG, **values}).get_deepspeed_main_args()
    assert flags[: flags.index("--deepspeed_config")] == [
        *("--master_port", "29600", "--launcher", "slurm", "--launcher_args=--comment=mine")
    ]


def test_a_run_that_nothing_here_can_start_is_one_line(files, tmp_path, monkeypatch, capsys):
    script, config = files
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    Path(config).write_text(json.dumps({**CONFIG, "hostfile": str(tmp_path / "hosts")}))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([script, config]) == 2
    assert capsys.readouterr().err.startswith(
        "launcher: pdsh cannot start processes on alpha, beta: there is no program ssh here; "
    )


def test_a_hostfile_that_is_not_there_is_told(files, tmp_path, capsys):
    hostfile = tmp_path / "hosts"
    assert main(["--check", *files, "-H", str(hostfile)]) == 0
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith(f"deepy.py: there is no hostfile {hostfile}; ")
    assert "2 on this machine" in output.out


def test_keys_of_several_machines_are_told_where_there_is_one(files, tmp_path, capsys):
    script, config = files
    keys = {"num_nodes": 2, "launcher": "slurm", "master_addr": "alpha"}
    Path(config).write_text(json.dumps({**CONFIG, **keys}))
    assert main(["--check", script, config]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deepy.py: num_nodes, launcher, master_addr: not used, ")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=1\nbeta slots=1\n")
    assert main(["--check", script, config, "-H", str(hostfile)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
def test_a_wrong_time_of_grace_is_one_line(files, monkeypatch, capsys, seconds):
    monkeypatch.setenv("ODM_NEOX_GRACE_SECONDS", seconds)
    assert main(["--check", *files]) == 2
    assert capsys.readouterr().err == (
        f"ODM_NEOX_GRACE_SECONDS: must be a number of seconds, got '{seconds}'; unset it\n"
    )


def test_a_temporary_folder_that_cannot_be_written_is_one_line(
    files, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert main(["--dry-run", *files]) == 2
    error = capsys.readouterr().err
    assert "No such file or directory" in error
    assert len(error.splitlines()) == 1


def test_numeric_text_starts_a_run_as_the_number_does(files, capsys):
    script, config = files
    Path(config).write_text(json.dumps({**CONFIG, "num_gpus": "2", "master_port": "29600"}))
    assert main(["--dry-run", script, config]) == 0
    assert "WORLD_SIZE=2" in capsys.readouterr().out
