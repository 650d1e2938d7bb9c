#!/usr/bin/env python
"""The main job on text that this machine already has: ``make demo``, or ``python tools/demo.py``.

Runs, one after the other, the commands that a user would type: gather and tokenize a corpus of
several domains, train a small model with online data mixing, plot the mixture, export the model,
measure it on held-out text and on a multiple-choice task made from it, write samples. Everything
is in ``demo/`` except ``mixture.png``, and nothing needs a network. A stage that is done and whose
inputs have not changed is skipped; an interrupted training continues from its last checkpoint, and
one on another text or with another configuration begins from scratch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(ROOT))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.files import write_text_atomic  # noqa: E402
from megatron.launcher.devices import count_devices  # noqa: E402
from megatron.reporting.run_log import read_run_log  # noqa: E402
from megatron.runtime.process_life import die_with_parent  # noqa: E402
from tools import demo_report  # noqa: E402

DEMO = Path("demo")
CONFIG = Path("configs/demo.yml")
CORPUS = DEMO / "data/this_machine"
DATA = CORPUS / "data.yml"
PROCESSES = DEMO / "processes.yml"
RUN = DEMO / "run"
RUN_LOG = RUN / "logs/metrics.jsonl"
PLOT = Path("mixture.png")
EXPORTED = DEMO / "exported"
RESULTS = DEMO / "results"
LOSSES = "losses_eval_results_*.json"
SCORES = "task_eval_results_*.json"
TASKS = DEMO / "tasks"
TASK = "demo_cloze"
PROMPTS = DEMO / "prompts.txt"
SAMPLES = DEMO / "samples.jsonl"

VOCAB_SIZE = 2048
PROMPT_TEXTS = ("def __init__(self", "Permission is hereby granted", "Add 4096 and 1729.")
"""Beginnings of source code, a licence and arithmetic: domains that every machine has."""

NEEDED_PACKAGES = ("lm_eval", "transformers")
"""Packages that only the last stages import, checked before the first stage."""


@dataclass(frozen=True)
class Stage:
    """One command of the demo and what it reads and writes, relative to the repository."""

    name: str
    command: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    """Paths and patterns, because evaluate.py puts the time into the names of its result files."""
    work: Path | None = None
    """A folder from which the command continues when it is run again."""

    @property
    def stamp(self) -> Path:
        """The file that records with which command and inputs the stage was done."""
        return DEMO / f".{self.name}.done"

    @property
    def begun_stamp(self) -> Path:
        """The file that records from which command and inputs `work` comes."""
        return DEMO / f".{self.name}.begun"

    def fingerprint(self) -> str:
        """A digest of the command and the bytes of every input."""
        digest = sha256(self.command.encode())
        for path in self.inputs:
            digest.update(b"\0" + path.read_bytes())
        return digest.hexdigest()

    def is_done(self) -> bool:
        """True if every output exists and nothing that it depends on has changed."""
        if self.missing() or not all(path.exists() for path in (self.stamp, *self.inputs)):
            return False
        return self.stamp.read_text(encoding="ascii") == self.fingerprint()

    def missing(self) -> list[Path]:
        """Outputs that do not exist."""
        return [path for path in self.outputs if not any(path.parent.glob(path.name))]


def stages() -> list[Stage]:
    """Lists the stages in order.

    ``processes.yml`` is not an input of the training, because the number of processes does not
    change the result. Later stages depend on the checkpoint, whose index has checksums of its
    files, and not on the run log, which grows when a task is evaluated.
    """
    return [*training_stages(), *model_stages()]


def training_stages() -> list[Stage]:
    """From text to a model and the picture of its mixture."""
    checkpoint = final_checkpoint()
    return [
        Stage(
            "data",
            f"python prepare_data.py this_machine -t HFTokenizer -d {CORPUS.parent} "
            f"--vocab-size {VOCAB_SIZE}",
            inputs=(),
            outputs=(DATA,),
        ),
        Stage(
            "training",
            f"./deepy.py train.py {CONFIG} {PROCESSES} {DATA}",
            inputs=(CONFIG, DATA),
            outputs=(checkpoint, RUN_LOG),
            work=RUN,
        ),
        Stage(
            "plot",
            f"python tools/plot_mixture.py {RUN} -o {PLOT}",
            inputs=(checkpoint / "index.json",),
            outputs=(PLOT,),
        ),
    ]


def model_stages() -> list[Stage]:
    """Stages that use the trained model."""
    model = (CONFIG, DATA, final_checkpoint() / "index.json")
    task_files = (TASKS / f"{TASK}.yaml", TASKS / f"{TASK}.jsonl")
    evaluate = f"./deepy.py evaluate.py {CONFIG} {DATA}"
    return [
        Stage(
            "export",
            f"python tools/convert_to_hf.py --input_dir {RUN} --output_dir {EXPORTED} --overwrite",
            inputs=(final_checkpoint() / "index.json",),
            outputs=(EXPORTED / "config.json", EXPORTED / "*.safetensors"),
        ),
        Stage(
            "losses",
            f"{evaluate} --eval_results_prefix {RESULTS / 'losses'}",
            inputs=model,
            outputs=(RESULTS / LOSSES,),
        ),
        Stage(
            "task",
            f"python tools/cloze_task.py {CORPUS / 'text/test'} --name {TASK} -o {TASKS}",
            inputs=(DATA,),
            outputs=task_files,
        ),
        Stage(
            "evaluation",
            f"{evaluate} --eval_tasks {TASK} --eval_results_prefix {RESULTS / 'task'}",
            inputs=(*model, *task_files),
            outputs=(RESULTS / SCORES,),
        ),
        Stage(
            "samples",
            f"./deepy.py generate.py {CONFIG} {DATA} -i {PROMPTS} -o {SAMPLES}",
            inputs=(*model, PROMPTS),
            outputs=(SAMPLES,),
        ),
    ]


def final_checkpoint() -> Path:
    """The folder that only a complete training makes; a stopped one exits with code 0 too."""
    import yaml  # comes with requirements.txt

    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return RUN / f"global_step{config['train_iters']}"


def default_num_processes(environ: Mapping[str, str]) -> int:
    """Two CPU processes where there are two cores: mixing is data parallel. One on a GPU."""
    if count_devices(environ):
        return 1
    can_ask = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    return min(2, num_cores)


def run_stage(stage: Stage, environ: Mapping[str, str]) -> int:
    """Runs one stage unless it is done.

    Returns:
        The exit code of the command; 1 where it ended with 0 but an output is not there.
    """
    print(f"\n$ {stage.command}", flush=True)
    if stage.is_done():
        print("(done already)", flush=True)
        return 0
    set_other_work_aside(stage)
    started = time.monotonic()
    exit_code = run_and_pass_signals_on(shlex.split(stage.command), environ)
    if exit_code:
        say(f"demo: {stage.name}: ended with exit code {exit_code}; run it again to continue")
        return exit_code
    if stage.missing():
        say(f"demo: {stage.name}: did not make {stage.missing()[0]}; run it again to continue")
        return 1
    write_text_atomic(stage.stamp, stage.fingerprint())
    print(f"({stage.name}: {time.monotonic() - started:.0f} s)", flush=True)
    return 0


def set_other_work_aside(stage: Stage) -> None:
    """Renames a folder that the command would continue from, though it comes from other inputs."""
    if stage.work is None:
        return
    fingerprint = stage.fingerprint()
    stamp = stage.begun_stamp
    if stage.work.exists() and not (stamp.exists() and stamp.read_text() == fingerprint):
        aside = stage.work.with_name(f"{stage.work.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        stage.work.rename(aside)
        print(f"(text or configuration have changed: the old {stage.work} is now {aside})")
    write_text_atomic(stamp, fingerprint)


def run_and_pass_signals_on(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs a command to its end, in a session of its own: it gets each signal once, from here.

    Returns:
        The exit code; 128 + the signal's number if it, or this process, was told to stop by one.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    previous = {
        number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        parent_pid = os.getpid()
        # `environ` decides which python runs, where Popen would ask this process's PATH
        program = shutil.which(command[0], path=environ["PATH"]) or command[0]
        child = subprocess.Popen(
            [program, *command[1:]],
            env=dict(environ),
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent_pid),
        )
        for number in received:  # came between the handler and the child
            child.send_signal(number)
        exit_code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        return 128 + received[0]
    return exit_code if exit_code >= 0 else 128 - exit_code


def command_environment() -> dict[str, str]:
    """The environment of the commands: this interpreter first, as in its activated venv."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


def activation() -> str | None:
    """The command that activates this interpreter's virtual environment; nothing without one."""
    if sys.prefix == sys.base_prefix:
        return None
    folder = Path(sys.prefix)
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return f"source {shown}/bin/activate"


def say(text: str) -> None:
    """Writes a message about the demo itself."""
    print(text, file=sys.stderr, flush=True)


def report() -> str:
    """What came out: the domains, the task, samples, and where everything is."""
    table = demo_report.domain_table(read_run_log(RUN_LOG), demo_report.newest(RESULTS, LOSSES))
    accuracy = demo_report.task_line(demo_report.newest(RESULTS, SCORES), TASK)
    places = {
        "mixture over time": PLOT,
        "run log": RUN_LOG,
        "checkpoint": final_checkpoint(),
        "for transformers": EXPORTED,
        "results": RESULTS,
        "task": TASKS / f"{TASK}.yaml",
        "samples": SAMPLES,
    }
    lines = [f"{name:<18} {place}" for name, place in places.items()]
    return "\n\n".join([table, accuracy, demo_report.samples(SAMPLES), "\n".join(lines)])


def missing_packages() -> list[str]:
    """Packages that a later stage needs and that are missing."""
    return [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code of the first command that failed, else 0."""
    description = "Runs the whole demo, from text to a model, in demo/ of the repository."
    argparse.ArgumentParser(description=description).parse_args(arguments)
    os.chdir(ROOT)
    started = time.monotonic()
    if missing_packages():
        say(
            f"demo: {missing_packages()[0]} is not installed; use `make demo`, or "
            "pip install -r requirements/requirements.txt -r requirements/requirements-eval.txt"
        )
        return 2
    environ = command_environment()
    num_processes = default_num_processes(environ)
    DEMO.mkdir(exist_ok=True)
    write_text_atomic(PROCESSES, json.dumps({"num_gpus": num_processes}) + "\n")
    write_text_atomic(PROMPTS, "".join(f"{text}\n" for text in PROMPT_TEXTS))
    print(f"Everything goes to {DEMO}/ and {PLOT}; processes: {num_processes}", flush=True)
    if activation():
        print(f"\n$ {activation()}", flush=True)
    for stage in stages():
        exit_code = run_stage(stage, environ)
        if exit_code:
            return exit_code
    print(f"\n{report()}\ntotal time         {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
