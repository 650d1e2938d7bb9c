"""What a user can get wrong: one line on standard error, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader, checkpoint_steps
from megatron.checkpoint.verification import verify
from tests.distributed.fork_server import run_script
from tests.distributed.runs import (
    REPOSITORY,
    curve,
    log_of,
    output_of,
    start,
    train,
    train_events,
    write_config,
)
from tests.distributed.spawn import run_ranks
from tests.tiny import DOMAINS, write_tiny_corpus

pytestmark = pytest.mark.distributed

ITERATIONS = 40
Result = subprocess.CompletedProcess[str]


def run(command: list[str], **variables: str) -> Result:
    """Runs a script of the repository to its end."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_training(config: Path, **options: Any) -> Result:
    return run(["deepy.py", "train.py", str(config)], **options)


def run_rank(config: Path, target: str | Path = REPOSITORY / "train.py") -> Result:
    """Runs ``train.py`` as ``deepy.py`` starts its only rank."""
    keywords = {} if isinstance(target, Path) else {"config": str(config)}
    (rank,) = run_ranks(target, 1, arguments=[str(config)], keywords=keywords, check=False)
    return Result([str(config)], rank.exit_code, rank.stdout, rank.stderr)


def assert_refused(result: Result, *parts: str) -> None:
    """Exit code 2 and one line that holds ``parts``."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    for part in parts:
        assert part in result.stderr


def assert_nothing_half_written(folder: Path) -> None:
    """No temporary file or folder; every checkpoint is whole, and ``latest`` names one."""
    left = [path for path in folder.rglob("*") if ".tmp" in path.name]
    assert left == []
    for save in folder.glob("**/run"):
        steps = checkpoint_steps(save)
        for step in steps:
            verify(save / f"global_step{step}")
        assert (save / "latest").exists() == bool(steps)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    """The configuration of a finished run with checkpoints at 10, 20, 30 and 40."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(corpus, folder, train_iters=ITERATIONS, checkpoint_factor=10)
    train(config)
    return config


@pytest.fixture
def resumable(corpus, trained, tmp_path) -> Callable[..., Path]:
    """Makes a run of its own out of a copy of ``trained``; keywords change its configuration."""

    def make(**changes: Any) -> Path:
        shutil.copytree(trained.parent / "run", tmp_path / "run")
        options = {"train_iters": ITERATIONS, "checkpoint_factor": 10, **changes}
        return write_config(corpus, tmp_path, **options)

    return make


# the configuration: found by the launcher, before torch is loaded


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory) -> dict[str, str]:
    """Variables under which loading torch or deepspeed ends a program with a traceback."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "deepspeed"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} was loaded')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"hiden_size": 32}, ("run.yml:", "hiden_size", "hidden_size")),
        ({"train_batch_size": 7}, ("run.yml:", "train_batch_size", "7")),
        (
            {"data_domain_names": ["letters", "digits", "letters"]},
            ("run.yml:", "'letters' names two datasets", "data_domain_names"),
        ),
    ],
    ids=["unknown key", "impossible batch size", "duplicate domain name"],
)
def test_a_wrong_configuration_is_refused_before_torch_is_loaded(
    corpus, tmp_path, without_torch, changes, parts
):
    config = write_config(corpus, tmp_path, **changes)
    assert_refused(run_training(config, **without_torch), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yml"]


def test_malformed_yaml_is_refused_with_its_line_before_torch_is_loaded(tmp_path, without_torch):
    config = tmp_path / "run.yml"
    config.write_text('{"num_layers": 2,\n"hidden_size": [32\n')
    assert_refused(run_training(config, **without_torch), "run.yml:")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yml"]


def test_a_malformed_record_is_refused_with_its_line_before_torch_is_loaded(
    tmp_path, without_torch
):
    (tmp_path / "text.jsonl").write_text('{"text": "good"}\n{"text": "cut\n{"text": "good"}\n')
    command = ["tools/preprocess_data.py", "--input", str(tmp_path / "text.jsonl")]
    command += ["--tokenizer-type", "CharLevelTokenizer", "--output-prefix", str(tmp_path / "out")]
    result = run(command, **without_torch)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"{tmp_path}/text.jsonl:2: malformed JSON")
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


# the data


def cut_tokens(prefix: Path) -> None:
    os.truncate(f"{prefix}.bin", os.path.getsize(f"{prefix}.bin") - 3)


def change_magic(prefix: Path) -> None:
    index = Path(f"{prefix}.idx")
    index.write_bytes(b"NOTANIDX" + index.read_bytes()[8:])


def remove_tokens(prefix: Path) -> None:
    os.unlink(f"{prefix}.bin")


def empty(prefix: Path) -> None:
    from megatron.data.indexed_dataset import make_builder

    builder = make_builder(f"{prefix}.bin", "mmap", vocab_size=512)
    builder.finalize(f"{prefix}.idx")


def raise_token_id(prefix: Path) -> None:
    tokens = Path(f"{prefix}.bin")
    tokens.write_bytes((512).to_bytes(2, "little") * (tokens.stat().st_size // 2))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove_tokens, ("digits_text_document.bin: no such file",)),
        (cut_tokens, ("digits_text_document.bin", "truncated")),
        (change_magic, ("digits_text_document.idx", "NOTANIDX")),
        (empty, ("domain digits is empty",)),
        (raise_token_id, ("domain digits", "512")),
    ],
    ids=["missing file", "truncated tokens", "wrong magic", "empty domain", "token id"],
)
def test_wrong_data_are_refused_in_one_line(tmp_path, damage, parts):
    paths = write_tiny_corpus(tmp_path / "corpus")
    damage(Path(paths["train"][DOMAINS.index("digits")]))
    assert_refused(run_training(write_config(paths, tmp_path)), *parts)
    assert_nothing_half_written(tmp_path)


def test_wrong_data_that_one_rank_alone_meets_are_refused_in_one_line(tmp_path):
    paths = write_tiny_corpus(tmp_path / "corpus")
    prefix = paths["train"][DOMAINS.index("digits")]
    with open(f"{prefix}.bin", "r+b") as tokens:
        tokens.seek(200)
        tokens.write((512).to_bytes(2, "little"))
    # two epochs of every domain: some rank reads the token at some time
    config = write_config(paths, tmp_path, processes=2, train_iters=200)
    assert_refused(run_training(config), "error: domain digits: token id 512 is not in")
    assert_nothing_half_written(tmp_path)


# the save folder


def test_a_save_folder_below_a_file_is_refused(corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = write_config(corpus, tmp_path, save=str(tmp_path / "file/run"), load=None)
    assert_refused(run_training(config), "save:", "file/run cannot be written", "Not a directory")
    assert (tmp_path / "file").read_text() == "in the way"


def train_on_a_full_disk(config: str) -> None:
    """What a rank does: the disk takes no file of more than 100 kB; the checkpoint has 0.8 MB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run_script(str(REPOSITORY / "train.py"), [config])


def test_a_full_disk_while_saving_leaves_the_checkpoint_before_it_in_force(resumable, tmp_path):
    config = resumable(train_iters=ITERATIONS + 1)
    result = run_rank(config, "tests.distributed.test_bad_input:train_on_a_full_disk")
    assert_refused(result, "global_step41: could not save", "stays valid")
    assert_nothing_half_written(tmp_path)
    assert (tmp_path / "run/latest").read_text() == "global_step40"
    assert 41 not in checkpoint_steps(tmp_path / "run")


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(resumable, tmp_path):
    from megatron.checkpoint.lock import lock_save_folder

    config = resumable()
    with lock_save_folder(tmp_path / "run"):
        result = run_rank(config)
    assert_refused(result, "run is in use by process", f"{os.getpid()} on ")
    assert_nothing_half_written(tmp_path)


# checkpoints


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(trained, resumable, tmp_path):
    config = resumable()
    flip_a_byte(tmp_path / "run/global_step40/rank_00000.safetensors")
    result = run_rank(config)
    assert result.returncode == 0, result.stderr
    assert "a damaged checkpoint" in result.stdout
    assert f"loading {tmp_path}/run/global_step30" in result.stdout
    assert curve(config) == curve(trained)
    assert_nothing_half_written(tmp_path)
    assert_same_weights(tmp_path / "run/global_step40", trained.parent / "run/global_step40")


def test_when_every_checkpoint_is_damaged_nothing_starts(resumable, tmp_path):
    config = resumable()
    for step in checkpoint_steps(tmp_path / "run"):
        (tmp_path / f"run/global_step{step}/state.json").unlink()
    assert_refused(run_rank(config), "every checkpoint is damaged", "global_step10")
    assert checkpoint_steps(tmp_path / "run") == [10, 20, 30, 40]


def test_load_without_a_checkpoint_is_refused_where_it_is_not_save(corpus, tmp_path):
    config = write_config(corpus, tmp_path, load=str(tmp_path / "elsewhere"))
    assert_refused(run_training(config), "load: no checkpoint in", "elsewhere")
    assert_nothing_half_written(tmp_path)


def test_other_domains_than_the_checkpoint_has_are_refused(resumable, tmp_path):
    names = ["letters", "digits", "hiss"]
    config = resumable(data_domain_names=names)
    assert_refused(run_rank(config), "mixture.json", "noise", "hiss")
    assert_nothing_half_written(tmp_path)


def test_another_model_than_the_checkpoint_has_is_refused(resumable, tmp_path):
    config = resumable(hidden_size=16)
    assert_refused(run_rank(config), "hidden_size is 32, this run has 16")
    assert_nothing_half_written(tmp_path)


def test_fp16_on_a_cpu_is_refused_before_training(corpus, tmp_path):
    config = write_config(corpus, tmp_path, fp16={"enabled": True})
    result = run_training(config, DS_ACCELERATOR="cpu")
    assert_refused(result, "precision", "fp16", "bfloat16")
    assert_nothing_half_written(tmp_path)


# asked to stop


def test_a_run_that_sigterm_ends_goes_on_as_if_it_had_not(corpus, trained, tmp_path):
    config = write_config(corpus, tmp_path, train_iters=ITERATIONS)
    process = start(config)
    try:
        wait_for_iteration(config, 3, process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code == 0, output_of(config)
    (stopped_at,) = checkpoint_steps(tmp_path / "run")
    assert 3 <= stopped_at < ITERATIONS
    assert max(train_events(config)) == stopped_at
    train(config)
    assert curve(config) == curve(trained)
    assert_same_weights(tmp_path / "run/global_step40", trained.parent / "run/global_step40")


def wait_for_iteration(config: Path, iteration: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    needle = json.dumps({"iteration": iteration})[1:-1].encode()
    while not (log_of(config).exists() and needle in log_of(config).read_bytes()):
        assert process.poll() is None, output_of(config)
        assert time.monotonic() < deadline, output_of(config)
        time.sleep(0.005)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = CheckpointReader(one), CheckpointReader(other)
    assert first.parameters.keys() == second.parameters.keys()
    for name in first.parameters:
        for kind in ("fp32", *first.moment_names):
            assert torch.equal(first.read_logical(name, kind), second.read_logical(name, kind))
