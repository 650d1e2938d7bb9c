"""How programs end: exit code and what standard error says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.runtime.process_life import PARENT_VARIABLE

ROOT = Path(__file__).resolve().parents[3]


def end(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs ``body`` as the main function of a program."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"from megatron.runtime.entry_point import *\ndef main():\n{lines}run_program(main)\n"
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", PARENT_VARIABLE)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environ, **variables},
        capture_output=True,
        text=True,
    )


def raises(error: str, module: str = "builtins") -> str:
    return f"import {module}\nraise {module}.{error}"


def test_a_program_that_returns_ends_with_0_and_in_silence():
    result = end("return 5")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("megatron.neox_arguments", "ConfigError"),
        ("megatron.data.errors", "DataError"),
        ("megatron.errors", "CheckpointError"),
        ("megatron.errors", "NotFiniteError"),
        ("megatron.errors", "TaskError"),
        ("megatron.tokenizer", "TokenizerError"),
        ("megatron.tokenizer", "DocumentError"),
        ("megatron.launcher.rank_discovery", "RankDiscoveryError"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_code_2(module, name):
    result = end(raises(f"{name}('key: wrong, got 3; do better')", module))
    assert (result.returncode, result.stderr) == (2, "error: key: wrong, got 3; do better\n")


def test_a_mistake_of_the_program_is_a_traceback_and_exit_code_1():
    result = end(raises("ZeroDivisionError('ours')"), RANK="0")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ZeroDivisionError: ours\n")


def test_a_mistake_of_the_program_is_one_line_on_other_ranks():
    result = end(raises("ZeroDivisionError('ours')"), RANK="3")
    assert (result.returncode, result.stderr) == (1, "rank 3: ZeroDivisionError: ours\n")


def test_under_our_launcher_a_rank_alone_with_the_users_mistake_is_heard():
    body = raises("DataError('bad')", "megatron.data.errors")
    result = end(body, RANK="3", **{PARENT_VARIABLE: "1"})
    assert (result.returncode, result.stderr) == (2, "error: bad\n")


def test_under_other_launchers_rank_0_speaks_first_and_the_others_name_themselves():
    body = raises("DataError('bad')", "megatron.data.errors")
    result = end(f"import time; time.sleep = print\n{body}", RANK="3")
    assert (result.returncode, result.stdout) == (2, "1.0\n")
    assert result.stderr == "rank 3: error: bad\n"


def test_a_collective_that_fails_gives_the_launcher_time_to_name_the_rank_that_left():
    body = (
        "import time; time.sleep = print\n"
        "space = {'__name__': 'torch.distributed.distributed_c10d'}\n"
        "exec('def wait(): raise RuntimeError(\"reset by peer\")', space)\n"
        "space['wait']()"
    )
    result = end(body, RANK="1")
    assert (result.returncode, result.stdout) == (1, "4.0\n")
    assert result.stderr == "rank 1: RuntimeError: reset by peer\n"


def test_the_rank_that_the_program_itself_finds_out_counts():
    # mpirun and srun set other variables; prepare_process translates them
    result = end("import os; os.environ['RANK'] = '2'\nraise ZeroDivisionError('ours')")
    assert result.stderr == "rank 2: ZeroDivisionError: ours\n"


def test_a_rank_that_is_no_number_does_not_hide_the_message():
    body = raises("RankDiscoveryError('RANK: x')", "megatron.launcher.rank_discovery")
    result = end(body, RANK="x")
    assert (result.returncode, result.stderr) == (2, "error: RANK: x\n")


@pytest.mark.parametrize(
    "error", ["OSError(28, 'No space left on device')", "PermissionError(13, 'Denied', 'there')"]
)
def test_a_disk_that_is_full_or_closed_is_the_users_to_mend(error):
    result = end(raises(error))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "check the path, the permissions and the free space" in result.stderr


@pytest.mark.parametrize(
    "error", ["ConnectionResetError(104, 'reset')", "FileNotFoundError(2, 'No such file', 'x')"]
)
def test_other_errors_of_the_system_keep_their_traceback(error):
    result = end(raises(error))
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")


def test_ctrl_c_ends_with_130_and_in_silence():
    result = end(raises("KeyboardInterrupt()"))
    assert (result.returncode, result.stderr) == (130, "")


def test_a_reader_that_has_gone_is_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from megatron.runtime.entry_point import run_program\n"
        "def main():\n    while True:\n        print('text' * 1000, flush=True)\n"
        "run_program(main)\n"
    )
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} {program} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == "error: standard output was closed before the end\n"


def test_what_was_printed_is_not_lost_when_the_process_ends_at_once():
    body = "print('said')\n" + raises("DataError('bad')", "megatron.data.errors")
    assert end(body).stdout == "said\n"


def test_loads_neither_torch_nor_deepspeed():
    result = end("import sys; print({'torch', 'deepspeed'} & set(sys.modules))")
    assert result.stdout == "set()\n"
