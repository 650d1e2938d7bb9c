"""What `tools.benchmark.launchers` makes of processes, programs and losses, without a launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.benchmark.launchers import __main__ as command
from tools.benchmark.launchers.commands import LAUNCHERS, SBATCH, missing_program
from tools.benchmark.launchers.trial import Found, Outcome, is_rank


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/venv/bin/python", "train.py", "run.yml"], True),
        (["/venv/bin/python3.11", "-u", "train.py", "--local_rank=0"], True),
        (["/venv/bin/python", "deepy.py", "train.py", "run.yml"], False),
        (["/venv/bin/python", "-u", "-m", "deepspeed.launcher.launch", "train.py"], False),
        (["/usr/bin/srun", "python", "train.py"], False),
        (["/venv/bin/python", "/venv/bin/torchrun", "train.py"], False),
        ([], False),
    ],
)
def test_a_rank_is_told_from_what_started_it(argv, expected):
    assert is_rank(argv) == expected


def test_losses_are_compared_step_by_step():
    reference = {1: (4.0,), 2: (3.5,), 3: (3.25,)}
    found = Found({"start": Outcome("5 s", True)}, first={1: (4.0,), 2: (3.5,)}, second={3: (3.0,)})
    found.compare(reference)
    assert (found.outcomes["losses"].words, found.outcomes["losses"].is_good) == ("equal", True)
    assert (found.outcomes["resume"].words, found.outcomes["resume"].is_good) == ("differs", False)


def test_iterations_that_the_reference_lacks_are_not_equal():
    found = Found(first={1: (4.0,), 2: (3.5,)})
    found.compare({1: (4.0,)})
    assert not found.outcomes["losses"].is_good


def test_a_launcher_whose_program_is_missing_is_named(tmp_path):
    for launcher in LAUNCHERS:
        needs = [name for name in launcher.programs if name not in ("ssh", "slurm")]
        if needs:
            assert missing_program(launcher, str(tmp_path)) == f"{needs[0]} is not installed"


def test_without_root_the_command_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "missing_for_machines", lambda: "needs root on Linux")
    assert command.main([]) == 2
    assert capsys.readouterr().err == "launchers: needs root on Linux\n"


def test_the_documented_script_is_the_one_that_is_run():
    text = (Path(__file__).resolve().parents[3] / "docs/clusters.md").read_text()
    assert f"```\n{SBATCH.format(config='run.yml')}```" in text
