"""Command lines of `deepy.py` and of the scripts that it starts."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from megatron.errors import nearest
from megatron.launcher.path_argument import not_empty

from .errors import ConfigError, shown
from .fields import field_table
from .parsing import load_json
from .schema import SUFFIXES, Document, find_file, read_files, read_text

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("train.py", "evaluate.py", "generate.py", "eval.py")
_NOT_FOR_RANKS = [ROOT / name for name in ("deepy.py", "prepare_data.py", "setup.py")]
"""Beside the programs, and no scripts of a run; nor is what `tools` holds."""


@dataclass(frozen=True)
class DeepyCommand:
    """A parsed command line of ``deepy.py``.

    ``check``: only check the configuration; ``dry_run``: only say what would be started;
    ``elsewhere``: what this machine lacks does not count for the two.
    """

    written: Document
    check: bool
    dry_run: bool
    elsewhere: bool


class _Parser(argparse.ArgumentParser):
    """Answers a wrong command line in one line: the usage would hide it."""

    def error(self, message: str) -> NoReturn:
        hint = "; keys are set in YAML files" if message.startswith("unrecognized") else ""
        self.exit(2, f"{self.prog}: {message}{hint}; --help lists all flags\n")


def deepy_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``deepy.py``."""
    purpose = "Starts train.py, evaluate.py or generate.py on all processes of a run."
    parser = _Parser("deepy.py", description=purpose, allow_abbrev=False)
    parser.add_argument("user_script", type=not_empty, help="script to start")
    _add_configuration_flags(parser)
    group = parser.add_argument_group("instead of starting")
    group.add_argument("--check", action="store_true", help="check the configuration and stop")
    group.add_argument("--dry-run", "--dry_run", action="store_true", help="say what would run")
    elsewhere = "of these two: the run starts on another machine; note what this one lacks"
    group.add_argument("--elsewhere", action="store_true", help=elsewhere)
    return parser


def script_parser(name: str = "train.py") -> argparse.ArgumentParser:
    """Returns the parser of a script that a person or torchrun starts without ``deepy.py``."""
    purpose = "Runs one process. `deepy.py` starts all processes of a run."
    parser = _Parser(name, description=purpose, allow_abbrev=False)
    _add_configuration_flags(parser)
    parser.add_argument("--megatron_config", help="path, JSON or base64 of the configuration")
    parser.add_argument("--deepspeed_config", help="not read; launchers of GPT-NeoX pass it")
    rank_flags = ("--local_rank", "--local-rank")
    parser.add_argument(*rank_flags, dest="launchers_rank", type=int, help="set by some launchers")
    return parser


def _add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    files = "YAML or JSON files; .yml may be left out"
    parser.add_argument("conf_file", nargs="*", type=not_empty, help=files)
    folder = "folder of the configuration files"
    parser.add_argument("-d", "--conf_dir", type=not_empty, help=folder)
    parser.add_argument("-H", "--hostfile", type=not_empty, help="file of lines `host slots=N`")
    parser.add_argument("--iteration", type=int, help="checkpoint to load (default: the latest)")
    add = parser.add_argument_group("Weights & Biases").add_argument
    add("--wandb_group", help="group of the run")
    add("--wandb_run_name", help="name of the run")
    add("--wandb_team", help="team that owns the run")
    add = parser.add_argument_group("evaluation").add_argument
    tasks = "lm-eval tasks: names, patterns, YAML files"
    add("--eval_tasks", "--eval-tasks", nargs="+", action="extend", help=tasks)
    add("--eval_results_prefix", "--eval-results-prefix", help="start of the result files' names")
    trust = "run the Python code that task files of your own name"
    add("--trust_task_code", "--trust-task-code", action="store_true", default=None, help=trust)
    domains = "measure losses on these configured domains, or on tokenized data at a path"
    add(
        "--domains",
        nargs="+",
        action="extend",
        dest="eval_domains",
        metavar="NAME[=PATH]",
        help=domains,
    )
    add = parser.add_argument_group("generation").add_argument
    add("-i", "--sample_input_file", type=not_empty, help="file of prompts to continue")
    add("-o", "--sample_output_file", type=not_empty, help="file for the samples")
    add = parser.add_argument_group("tuning").add_argument
    add("--autotuning", choices=["tune", "run"], dest="autotuning_run")


def read_deepy_command(input_args: Sequence[str] | None = None) -> DeepyCommand:
    """Parses the command line of ``deepy.py`` (default: ``sys.argv``) and reads its files.

    Raises:
        ConfigError: If the script or a file is missing or cannot be read.
        SystemExit: If the command line itself is wrong (code 2), or for ``--help``.
    """
    parsed = deepy_parser().parse_intermixed_args(input_args)
    _check_script(parsed.user_script, parsed.conf_dir)
    if parsed.elsewhere and not (parsed.check or parsed.dry_run):
        problem = "--elsewhere has no effect on a run that starts here"
        advice = "add --check or --dry-run, or remove it"
        raise ConfigError(f"the command line: {problem}; {advice}")
    written = _read_configuration(parsed)
    return DeepyCommand(written, parsed.check, parsed.dry_run, parsed.elsewhere)


def read_script_command(input_args: Sequence[str] | None = None) -> Document:
    """Parses the command line of a script, and reads its files.

    Raises:
        ConfigError: If there is no configuration or it cannot be read.
    """
    arguments = list(sys.argv[1:] if input_args is None else input_args)
    parser = script_parser(Path(sys.argv[0]).name or "train.py")
    if any(a.partition("=")[0] == "--megatron_config" for a in arguments):
        # a launcher's whole command line may be here, with flags that are its own
        parsed, _ = parser.parse_known_args(arguments)
        return Document(load_megatron_config(parsed.megatron_config))
    return _read_configuration(parser.parse_intermixed_args(arguments))


def _check_script(script: str, conf_dir: str | None) -> None:
    """Refuses what is no script; most often ``train.py`` was forgotten before the files."""
    path, name = Path(script), script[:200]
    problem = None
    if path.suffix in SUFFIXES or (not os.path.isfile(script) and _finds_file(script, conf_dir)):
        example = f"./deepy.py train.py {name}"
        problem = f"is a configuration file; name the program before it, as in {example}"
    elif not os.path.isfile(script):
        raise ConfigError(f"the command line: there is no script {name}; {_script_hint(name)}")
    elif ROOT / "tools" in path.resolve().parents or path.resolve() in _NOT_FOR_RANKS:
        advice = f"start it by itself: python {name} --help"
        problem = f"takes no configuration files; {advice}"
    if problem:
        raise ConfigError(f"the command line: {name} {problem}")


def _script_hint(script: str) -> str:
    if os.path.isfile(f"{script}.py"):
        return f"did you mean {script}.py?"
    for folder in (Path(script).parent, ROOT):
        names = [name for name in PROGRAMS if os.path.isfile(folder / name)]
        if near := nearest(Path(script).name, names):
            return f"did you mean {folder / near[0]}?"
    return "check its path"


def _finds_file(name: str, conf_dir: str | None) -> bool:
    try:
        find_file(name, conf_dir)
    except ConfigError:
        return False
    return True


def load_megatron_config(text: str) -> dict[str, Any]:
    """Reads what a launcher passes: the path of a JSON file, JSON itself or base64 of it.

    Raises:
        ConfigError: If it is none of these.
    """
    source = "--megatron_config"
    if text.lstrip().startswith("{"):
        written = text
    elif os.path.isfile(text):
        source, written = text, read_text(text)
    else:
        written = _decoded(text)
        if not written.lstrip().startswith("{"):
            given = shown(text if len(text) <= 60 else text[:57] + "...")
            problem = "is no file, no JSON object and no base64 of one; pass a path"
            raise ConfigError(f"{source}: {given} {problem}")
    content = load_json(written, source)
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: must be a JSON object, got {shown(content)}")
    return content


def _decoded(text: str) -> str:
    """The text in base64; empty if it is none."""
    try:
        return base64.urlsafe_b64decode(text.encode()).decode()
    except ValueError:
        return ""


def _read_configuration(parsed: argparse.Namespace) -> Document:
    if not parsed.conf_file:
        raise ConfigError("the command line: name at least one configuration file")
    if programs := [name for name in parsed.conf_file if name.endswith(".py")]:
        advice = "name one program, before the files"
        problem = f"is a program, not a configuration file; {advice}"
        raise ConfigError(f"the command line: {programs[0]} {problem}")
    document = read_files([find_file(name, parsed.conf_dir) for name in parsed.conf_file])
    flags = {k: v for k, v in vars(parsed).items() if k in field_table() and v is not None}
    if flags.get("sample_input_file"):
        # GPT-NeoX's text_generation.yml says unconditional, and its README passes -i beside it
        flags["text_gen_type"] = "input-file"
    return document.replaced(flags, "the command line")
