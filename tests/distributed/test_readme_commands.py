"""Every command and program of README.md does what it says, in a copy of the repository.

They run in README's order, each as a shell runs it, on a corpus of a few kilobytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.distributed.runs import REPOSITORY
from tests.tiny_tasks import OFFLINE

pytest.importorskip("lm_eval", reason="lm-eval is not installed (requirements-eval.txt)")
pytestmark = pytest.mark.distributed

NOT_RUN = {
    "source .venv/bin/activate": "the tests' own environment stands for .venv",
    "make test": "would run this test",
    "make lint": "part of .ci/run, needs no test of its own",
    ".ci/run": "would run this test, and installs",
    "pip install -r requirements/requirements.txt": "installs",
    "pip install .": "installs",
    "pip install ./odm": "installs",
    'pip install ".[train]"': "installs",
    "docker build -t odm-neox .": "needs docker and a network",
}
"""Command -> why no test runs it."""

SLOW = {"make demo"}
"""More than a minute even on little text: `pytest -m slow` runs them."""

YAML_FILES = ("my_run.yml", "my_layout.yml")
"""The names that README gives its YAML blocks, in order."""

SMALLER = {
    "configs/cpu.yml": {
        "train_iters: 300": "train_iters: 4",
        "log_interval: 10": "log_interval: 1",
        "eval_iters: 10": "eval_iters: 1",
        "seq_length: 256": "seq_length: 64",
    },
    "configs/text_generation.yml": {"maximum_tokens: 102": "maximum_tokens: 8"},
    "configs/demo.yml": {
        "train_iters: 400": "train_iters: 8",
        "eval_interval: 50": "eval_interval: 4",
        "maximum_tokens: 64": "maximum_tokens: 8",
    },
    "tools/corpora/this_machine.py": {"= 3_000_000": "= 150_000"},
}
"""File of the copy -> what is replaced in it: sizes, nothing that a command depends on."""

LEFT_OUT = (".*", "demo", "data", "checkpoints", "logs", "build", "dist", "mixture.png")
INLINE_COMMAND = re.compile(r"`((?:python|pip|make|docker|torchrun|\./\S+) [^`]+)`")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command, or a program in Python, of README."""

    text: str
    is_program: bool = False

    @property
    def name(self) -> str:
        return " ".join(self.text.split())[:70]


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(readme) if name == language]


def steps() -> list[Step]:
    """What README says can be typed, in its order, each once."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found: list[tuple[int, Step]] = []
    for fence in FENCE.finditer(readme):
        if fence[1] == "python":
            found.append((fence.start(), Step(fence[2], is_program=True)))
        if fence[1] == "bash":
            lines = (re.sub(r"\s+#.*$", "", line) for line in fence[2].splitlines())
            found += [(fence.start(), Step(line)) for line in lines if line.strip()]
    outside = FENCE.sub(lambda fence: " " * len(fence[0]), readme)
    found += [(match.start(), Step(match[1])) for match in INLINE_COMMAND.finditer(outside)]
    found.sort(key=lambda pair: pair[0])  # stable: the lines of a block keep their order
    return list(dict.fromkeys(step for _, step in found))


STEPS = [step for step in steps() if step.text not in NOT_RUN]


@dataclass
class Workshop:
    """A copy of the repository in which steps run, each one once."""

    folder: Path
    outputs: dict[Step, str] = field(default_factory=dict)

    def output_of(self, step: Step) -> str:
        """What a step prints; those before it run first, but for slow ones."""
        for earlier in STEPS[: STEPS.index(step)]:
            if earlier not in self.outputs and earlier.text not in SLOW:
                self._run(earlier)
        if step not in self.outputs:
            self._run(step)
        return self.outputs[step]

    def _run(self, step: Step) -> None:
        command = (
            [sys.executable, "-c", step.text] if step.is_program else ["bash", "-c", step.text]
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={
                **os.environ,
                **OFFLINE,
                "PATH": path,
                "OMP_NUM_THREADS": "1",
                "HF_HOME": str(self.folder / ".huggingface"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=500 if step.text in SLOW else 120)
        finally:
            end(process)
        assert process.returncode == 0, f"{step.text}\nexit code {process.returncode}:\n{output}"
        self.outputs[step] = output


def end(process: subprocess.Popen[str]) -> None:
    """Ends what a command left running: told first, since launchers pass that on, then killed."""
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue


def write_texts(path: Path) -> None:
    """Three sources of 40 documents, long enough for questions."""
    words = {
        "letters": ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"],
        "numbers": ["one", "two", "three", "four", "five", "six", "seven"],
        "code": ["def", "return", "self", "(x)", "=", "+", "None"],
    }
    records = []
    for source, vocabulary in words.items():
        for number in range(40):
            places = [(number * 7 + k * k) % len(vocabulary) for k in range(160)]
            text = f"{source} {number}: " + " ".join(vocabulary[place] for place in places)
            records.append({"text": text, "source": source})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def stand_in_for_venv(folder: Path) -> None:
    """A .venv in which everything is installed already: the tests' own."""
    program = folder / "bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    for stamp in (".installed", ".installed-eval"):
        (folder / stamp).touch()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("readme") / "repository"
    ignored = shutil.ignore_patterns("__pycache__", ".git", "*.egg-info")

    def leave_out(path: str, names: list[str]) -> set[str]:
        top = shutil.ignore_patterns(*LEFT_OUT)(path, names) if Path(path) == REPOSITORY else set()
        return {*top, *ignored(path, names)}

    shutil.copytree(REPOSITORY, folder, ignore=leave_out)
    for name, replacements in SMALLER.items():
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in replacements.items():
            assert text.count(old) == 1, f"{name} does not hold {old!r} once; correct SMALLER"
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    for name, content in zip(YAML_FILES, blocks("yaml"), strict=True):
        (folder / name).write_text(content, encoding="utf-8")
    write_texts(folder / "my_texts.jsonl")
    stand_in_for_venv(folder / ".venv")
    return Workshop(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=[pytest.mark.slow] if step.text in SLOW else [], id=step.name)
        for step in STEPS
    ],
)
def test_what_the_readme_says_to_type_works(step, workshop):
    if step.text.startswith("make ") and shutil.which("make") is None:
        pytest.skip("make is not installed")
    workshop.output_of(step)


def test_the_list_of_commands_that_are_not_run_holds_no_others():
    known = {step.text for step in steps()}
    assert NOT_RUN.keys() <= known
    assert known >= SLOW


def test_the_readme_gives_its_yaml_blocks_the_names_that_commands_use():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name, content in zip(YAML_FILES, blocks("yaml"), strict=True):
        before = readme[: readme.index(content)]
        assert f"`{name}`" in before.rsplit("\n#", 1)[-1]


@pytest.mark.parametrize(
    "target",
    re.findall(
        r"\]\(([^)#]+)", textwrap.dedent((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    ),
)
def test_what_the_readme_links_to_is_there(target):
    assert target.startswith("https://") or (REPOSITORY / target).exists()
