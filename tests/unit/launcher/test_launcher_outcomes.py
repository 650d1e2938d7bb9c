"""How a run ends, for every way in which its ranks and its user behave; and what each switch does.

Ranks are Python without any package, which starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher import command, supervisor
from megatron.launcher.plan import plan_launch
from megatron.launcher.supervisor import RankCommand, Supervisor
from megatron.neox_arguments import NeoXArgs
from tests.tiny import write_tiny_corpus
from tests.unit.launcher.test_launcher import CONFIG

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# programs of ranks; each writes a letter to the file named by its environment when it begins
BEGIN = """
import os, signal, sys, time
def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + " ")
"""
DONE = "note('begun')"
WAITS = "note('begun'); time.sleep(60)"
FAILS = "note('begun'); sys.stderr.write('Error: broken\\n'); sys.exit(1)"
REFUSES = "note('begun'); sys.stderr.write('error: bad input\\n'); sys.exit(2)"
DIES = "note('begun'); os.kill(os.getpid(), signal.SIGKILL)"
SAVES = """
def save(number, frame):
    note(signal.Signals(number).name)
    wanted.append(number)
wanted = []
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
note('begun')
while not wanted:
    time.sleep(0.01)
time.sleep(0.3)
"""
DEAF = """
signal.signal(signal.SIGTERM, lambda number, frame: note('SIGTERM'))
note('begun')
while True:
    time.sleep(1)
"""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Run:
    """Ranks under a supervisor, with signals sent to it while it watches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.seconds = 0.0
        self.handlers: list[Any] = []

    def notes(self, rank: int) -> list[str]:
        path = self.folder / f"notes{rank}"
        return path.read_text().split() if path.exists() else []

    def start(self, *programs: str, signals=(), grace: float = 30.0, **options: Any) -> int:
        """Runs ``programs``; ``signals`` are (seconds since all have begun, number)."""
        commands = [
            RankCommand(
                [sys.executable, "-S", "-c", BEGIN + program],
                {"NOTES": str(self.folder / f"notes{rank}")},
            )
            for rank, program in enumerate(programs)
        ]

        def send() -> None:
            deadline = time.monotonic() + 30
            while not all(map(self.notes, range(len(programs)))) and time.monotonic() < deadline:
                time.sleep(0.01)
            begun = time.monotonic()
            for delay, number in signals:
                time.sleep(max(0.0, begun + delay - time.monotonic()))
                os.kill(os.getpid(), number)

        # one that comes when the run is over must not end the tests
        before = {number: signal.signal(number, _ignore) for number in STOP_SIGNALS}
        sender = threading.Thread(target=send)
        sender.start()
        began = time.monotonic()
        try:
            code = Supervisor(
                commands, grace_seconds=grace, report=self.lines.append, **options
            ).run()
        finally:
            self.seconds = time.monotonic() - began
            sender.join()
            self.handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
            for number, handler in before.items():
                signal.signal(number, handler)
        return code


def _ignore(number: int, frame: object) -> None:
    pass


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(supervisor, "_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "REPEAT_SECONDS", 0.3)
    monkeypatch.delenv(supervisor.SHOW_ALL_VARIABLE, raising=False)
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("programs", "code", "said"),
    [
        ((DONE, DONE), 0, []),
        ((DONE, FAILS), 1, ["rank 1 failed with exit code 1; the run", "[rank 1] Error: broken"]),
        ((WAITS, FAILS), 1, ["rank 1 failed with exit code 1; the run", "[rank 1] Error: broken"]),
        ((FAILS, WAITS), 1, ["rank 0 failed with exit code 1; the run"]),
        ((WAITS, REFUSES), 2, ["[rank 1] error: bad input"]),
        ((REFUSES, WAITS), 2, []),
        ((REFUSES, REFUSES), 2, []),
        ((DONE, REFUSES, FAILS), 2, ["[rank 1] error: bad input"]),
        ((WAITS, DIES), 1, ["rank 1 was killed by SIGKILL (did the machine run out of memory?)"]),
    ],
)
def test_the_exit_code_and_the_words_are_those_of_the_rank_that_ended_the_run(
    run, programs, code, said
):
    assert run.start(*programs) == code
    assert len(run.lines) == len(said)
    assert all(want in line for want, line in zip(said, run.lines, strict=True))
    assert run.seconds < 20


def test_the_rank_where_an_error_began_speaks_although_another_failed_before(run, monkeypatch):
    monkeypatch.setattr(supervisor, "_SETTLE_SECONDS", 20.0)
    begins = (
        "note('begun'); sys.stderr.write('Error: first\\n'); sys.stderr.flush(); "
        "note('spoke'); time.sleep(1); sys.exit(1)"
    )
    follows = (
        "note('begun'); other = os.environ['NOTES'][:-1] + '2'\n"
        "while not os.path.exists(other) or 'spoke' not in open(other).read():\n"
        "    time.sleep(0.01)\n"
        "time.sleep(0.3); sys.stderr.write('Error: second\\n'); sys.exit(1)"
    )
    assert run.start(DONE, follows, begins) == 1
    assert "rank 2 failed with exit code 1" in run.lines[0]
    assert run.lines[1:] == ["[rank 2] Error: first"]


def test_only_the_last_words_of_a_rank_that_says_much_are_kept(run):
    program = "sys.stderr.write('x' * 300_000 + '\\nError: ' + '\\n'.join(map(str, range(100))))"
    assert run.start(DONE, f"note('begun'); {program}; sys.exit(1)") == 1
    assert run.lines[1:] == [f"[rank 1] {number}" for number in range(60, 100)]
    assert run.start(DONE, "note('begun'); sys.stderr.write('x' * 300_000); sys.exit(1)") == 1
    assert len(run.lines[-1]) < 70_000


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_reaches_every_rank_once_as_sigterm(run, number):
    # the second one comes at once: a terminal and a scheduler send theirs to everybody
    assert run.start(SAVES, SAVES, signals=[(0.0, number), (0.05, number)]) == 0
    assert [run.notes(rank) for rank in range(2)] == [["begun", "SIGTERM"]] * 2
    (line,) = run.lines
    assert line.startswith(f"deepy.py: {number.name}: the run saves and stops, within 30 s")


def test_ranks_that_do_not_end_are_killed_after_the_grace_period(run):
    assert run.start(DEAF, DEAF, signals=[(0.0, signal.SIGTERM)], grace=0.5) == 1
    assert "did not end within 0.5 s of the request to stop" in run.lines[1]
    assert 0.5 <= run.seconds < 20
    assert run.notes(1) == ["begun", "SIGTERM"]


def test_a_later_second_signal_kills_at_once(run):
    signals = [(0.0, signal.SIGTERM), (0.6, signal.SIGTERM)]
    assert run.start(DEAF, DEAF, signals=signals) == 128 + signal.SIGTERM
    assert not any("did not end within" in line for line in run.lines)
    assert run.seconds < 20


def test_ranks_that_a_request_ends_unsaved_are_no_success(run):
    assert run.start(WAITS, WAITS, signals=[(0.0, signal.SIGTERM)]) == 1
    assert run.lines[1:] == ["deepy.py: stopped as requested; no checkpoint was written"]


def test_a_program_that_talks_gets_each_interrupt_itself(run):
    assert run.start(SAVES, signals=[(0.0, signal.SIGINT)], pass_interrupts=True) == 0
    assert run.notes(0) == ["begun", "SIGINT"]
    assert run.lines == []


def test_handlers_of_the_caller_are_put_back(run):
    run.start(DONE)
    assert run.handlers == [_ignore] * len(STOP_SIGNALS)


# the switches of deepy.py


STARTED, ELSEWHERE = "starts ranks", "starts other machines"


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, Any]:
    """A run whose data and checkpoint are there."""
    paths = write_tiny_corpus(tmp_path_factory.mktemp("corpus"), documents=3)
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "global_step1"
    checkpoint.mkdir()
    (checkpoint / "index.json").write_text("{}")
    data = {"data_path": paths["train"][0], "tokenizer_type": "CharLevelTokenizer"}
    return {**CONFIG, **data, "load": str(checkpoint.parent)}


@pytest.mark.parametrize("switch", ["", "--check", "--dry-run"])
@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "generate.py"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("devices", [0, 2])
@pytest.mark.parametrize("hosts", [1, 2])
def test_what_a_command_does(
    switch, script, precision, devices, hosts, settings, tmp_path, monkeypatch, capsys
):
    """A check and a dry run start nothing; what cannot start on this machine is refused by all."""
    (tmp_path / script).write_text("")
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    where = {"num_gpus": 1} if hosts == 1 else {"hostfile": str(tmp_path / "hosts")}
    (tmp_path / "run.yml").write_text(json.dumps({**settings, **where, "precision": precision}))
    done: list[str] = []
    monkeypatch.setattr(command, "missing_packages_problem", lambda *names: None)
    monkeypatch.setattr(command, "_run_here", lambda *_, **__: done.append(STARTED) or 0)
    monkeypatch.setattr("megatron.launcher.plan.count_devices", lambda environ: devices)
    monkeypatch.setattr(
        "megatron.launcher.elsewhere.run_elsewhere", lambda *_: done.append(ELSEWHERE) or 0
    )
    arguments = [str(tmp_path / script), str(tmp_path / "run.yml"), *([switch] if switch else [])]
    code = command.main(arguments)
    output = capsys.readouterr()
    lacks_accelerator = (script, precision, devices) == ("train.py", "fp16", 0)
    cannot_start = lacks_accelerator and hosts == 1  # of other machines nothing is known
    assert ("no accelerator" in output.err) == cannot_start
    assert ("--elsewhere" in output.err) == (cannot_start and bool(switch))
    commands = output.out.count("--megatron_config" if hosts == 1 else " -- alpha ")
    assert commands == (switch == "--dry-run")
    if cannot_start:
        assert (code, done) == (2, [])
    elif switch:
        assert (code, done) == (0, [])
        assert ("configuration is valid" in output.out) == (switch == "--check")
    else:
        assert (code, done) == (0, [STARTED if hosts == 1 else ELSEWHERE])


@pytest.mark.parametrize(
    ("script", "kind", "talks"),
    [
        ("generate.py", "interactive", True),
        ("generate.py", "unconditional", False),
        ("train.py", "interactive", False),
    ],
)
def test_interrupts_are_handed_on_to_a_conversation_alone(
    script, kind, talks, settings, tmp_path, monkeypatch
):
    (tmp_path / script).write_text("")
    (tmp_path / "run.yml").write_text(json.dumps({**settings, "text_gen_type": kind}))
    given: list[bool] = []

    def run_here(*_: Any, pass_interrupts: bool) -> int:
        given.append(pass_interrupts)
        return 0

    monkeypatch.setattr(command, "missing_packages_problem", lambda *names: None)
    monkeypatch.setattr(command, "_run_here", run_here)
    assert command.main([str(tmp_path / script), str(tmp_path / "run.yml")]) == 0
    assert given == [talks]


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 60.0), ("0", 0.0), ("2.5", 2.5), ("1e3", 1000.0)]
)
def test_the_time_of_grace_is_what_the_environment_says(text, seconds):
    environ = {} if text is None else {command.GRACE_VARIABLE: text}
    assert command._grace_seconds(environ) == seconds


@pytest.mark.parametrize(
    ("hosts", "keys", "expected", "processes"),
    [
        (["localhost slots=2"], {}, (), 2),
        (["localhost slots=2"], {"force_multi": True}, ("localhost",), 2),
        (["alpha slots=2"], {}, ("alpha",), 2),
        (["localhost slots=2", "alpha slots=2"], {}, ("localhost", "alpha"), 4),
        (["localhost slots=2", "alpha slots=2"], {"num_nodes": 1}, (), 2),
        (["localhost slots=2", "alpha slots=2"], {"exclude": "alpha"}, (), 2),
        (["alpha slots=2", "beta slots=2"], {"include": "beta:1"}, ("beta",), 1),
    ],
)
def test_the_machines_of_a_run(hosts, keys, expected, processes, tmp_path):
    (tmp_path / "hosts").write_text("\n".join(hosts))
    values = {**CONFIG, "hostfile": str(tmp_path / "hosts"), **keys}
    plan = plan_launch(NeoXArgs.from_dict(values), {}, num_devices=0)
    assert (tuple(plan.hosts), plan.num_processes) == (expected, processes)
