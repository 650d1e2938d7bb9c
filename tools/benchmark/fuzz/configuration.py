"""Hostile configurations for `fuzz`, given to `deepy.py`, whose errors must all be messages.

Five kinds of input: YAML, JSON, hostfiles with filters, command lines, and values from Python. Each
case must be accepted, or refused with messages and exit code 2. Any other exception, a message of
several lines, or a case that takes too long is reported with its number; equal numbers give equal
cases.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.launcher.command import main as deepy
from megatron.launcher.plan import plan_launch
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.command_line import load_megatron_config
from megatron.neox_arguments.errors import shown
from megatron.neox_arguments.fields import field_table

_SLOW_SECONDS = 2.0
"""Processor time of a case that takes too long."""
_MAX_CASES = 10**9

KINDS = ("yaml", "json", "hostfile", "command", "values")

MODEL: dict[str, Any] = {
    **{"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 32},
    **{"max_position_embeddings": 128, "train_iters": 100, "train_micro_batch_size_per_gpu": 4},
    **{"pos_emb": "rotary", "optimizer": {"type": "Adam", "params": {"lr": 0.001}}},
    **{f"{name}_data_paths": ["d/a/text", "d/b/text"] for name in ("train", "valid", "test")},
    **{"data_sampling_method": "smoothed_mean", "data_domain_names": ["a", "b"]},
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32},
        **{"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    },
    **{"zero_optimization": {"stage": 1}, "save": "run", "checkpoint_factor": 5},
}
"""A configuration under which most keys are read."""

SCALARS = (
    *("0", "1", "-1", "2", "3", "0.5", "-0.0", "1.0e+308", "-1.0e+308", "5.0e-324", "1e999"),
    *(str(2**31), str(2**63 - 1), str(2**63), str(-(2**63)), str(10**30), "9" * 5000, "1" * 101),
    *(".inf", "-.inf", ".nan", "Infinity", "NaN", "0x" + "f" * 300, "0b1", "1_000", "1:30:00"),
    *("1e-8", "true", "null", "~", "None", '""', "''", "x", "' '", "=", "<<", "*", "&a 1", "-"),
    *("[]", "{}", "[1, 2]", "[null]", "[[[flash], 2]]", "{a: 1}", "{1: 2}", "{stage: 3}", "[", "}"),
    *('!!int ""', "!!float x", "!!bool x", "!!timestamp x", "!!binary a", "!!set {a}", "!!str 1"),
    *("!!python/name:os.system", "!x y", "2024-01-31", "2024-02-31 25:61:00", '"\\U00110000"'),
    *('"\\ud800"', '"\\ud83d\\ude00"', '"\\0"', '"\\x41"', '"\\', "\x00", "\ufeff", "\u2028", "é"),
    *(
        "[" * 300,
        "{a: " * 300,
        "- " * 300,
        "? " * 300,
        "a" * 5000,
        '"' * 999,
        "\t",
        "|",
        ">-",
        "# c",
    ),
    *("/dev/zero", "localhost:0", "a@b:0,1", "-x", "[::1]", "%s", "${HOME}", "../..", "type:["),
)
"""Pieces of YAML, most of them wrong for any key."""

HOSTS = ("a", "b", "localhost", "user@a", "::1", "fe80::2", "[::1]", "2001:db8::1", "-a", "a,b", "")
OBJECTS = (
    *(b"x", {1, 2}, object(), 10**400, 2**31, 2**63, -(2**64), 1e308, float("nan"), float("inf")),
    *((1, 2), range(3), "\0", "\ud800", "9" * 5000, {None: 1}, {(1,): 1}, [[[]]], True, 0, -1, 3.5),
)


@dataclass(frozen=True)
class Case:
    """One input: the texts of files by name, and what is passed with them."""

    kind: str
    files: dict[str, bytes]
    flags: tuple[str, ...] = ()
    values: dict[Any, Any] | None = None


def generate(kind: str, seed: int) -> Case:
    """Makes the case of this kind and seed."""
    rng = random.Random(f"{kind} {seed}")
    return {
        "yaml": _yaml_case,
        "json": _json_case,
        "hostfile": _hostfile_case,
        "command": _command_case,
        "values": _values_case,
    }[kind](rng)


def problem_of(case: Case, folder: Path, *, slow_seconds: float) -> str | None:
    """Runs a case in an empty folder; returns what is wrong with the answer, or None."""
    (folder / "train.py").write_text("")
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    began = time.process_time()
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            message = _answer(case, folder)
    except RecursionError as error:
        return f"RecursionError: {str(error)[:80]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - began
    if seconds > slow_seconds:
        return f"took {seconds:.1f} s"
    lines = [*message, *errors.getvalue().splitlines()] if case.kind != "command" else message
    long = [line for line in lines if len(line) > 2000 or "\n" in line or "Traceback" in line]
    return f"a message that is no short line: {long[0][:300]!r}" if long else None


def run_cases(kind: str, cases: int, seed: int) -> Iterator[str]:
    """Runs cases of a kind; yields a report of each wrong answer."""
    for number in range(cases):
        case = generate(kind, seed * _MAX_CASES + number)
        with empty_folder() as folder:
            problem = problem_of(case, folder, slow_seconds=_SLOW_SECONDS)
        if problem is not None:
            yield f"case {number}: {problem}\n  {shown(case)}"


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """Makes a folder the working one, without a launcher's environment."""
    kept, place = dict(os.environ), os.getcwd()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "DLTS_HOSTFILE", "MASTER_ADDR"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(place)
            os.environ.clear()
            os.environ.update(kept)


def _answer(case: Case, folder: Path) -> list[str]:
    """Gives a case to the program; returns the messages of a refusal."""
    if case.kind == "values":
        return _answer_to_values(case.values or {}, folder)
    if case.kind == "json" and not case.flags:
        text = (folder / "run.json").read_bytes()
        for passed in (
            text.decode("utf-8", "replace"),
            base64.b64encode(text).decode(),
            "run.json",
        ):
            with contextlib.suppress(ConfigError):
                NeoXArgs.from_dict(load_megatron_config(passed))
    try:
        files = [name for name in case.files if name.startswith("run")]
        code = deepy(["train.py", *files, *case.flags, "--check"])
    except SystemExit as stop:  # argparse refuses a command line
        code = stop.code
    assert code in (0, 2), code
    return []


def _answer_to_values(values: dict[Any, Any], folder: Path) -> list[str]:
    try:
        (folder / "run.yml").write_text(json.dumps(MODEL))
        NeoXArgs.from_ymls([folder / "run.yml"], values)
        arguments = NeoXArgs.from_dict({**MODEL, **values})
        plan_launch(arguments, {}, num_devices=0)
        resolve(arguments).to_dict()
        resolve(arguments, world_size=2**31)
    except ConfigError as error:
        return list(error.messages)
    return []


def _yaml_case(rng: random.Random) -> Case:
    if rng.random() < 0.2:
        return Case("yaml", {"run.yml": _damaged(_aliases(rng).encode(), rng)})
    lines = [f"{key}: {json.dumps(value)}" for key, value in MODEL.items()]
    for _ in range(rng.randint(1, 3)):
        key, scalar = rng.choice(list(field_table())), rng.choice(SCALARS)
        lines = [line for line in lines if not line.startswith(f"{key}:")]
        written = rng.choice((key, key, key, key, scalar, f"? {scalar}\n"))
        lines.insert(rng.randrange(len(lines)), f"{written}: {_nested(scalar, rng)}")
    text = "\n".join(lines) + "\n"
    return Case("yaml", {"run.yml": _damaged(text.encode("utf-8", "surrogatepass"), rng)})


def _nested(scalar: str, rng: random.Random) -> str:
    """A scalar by itself, or inside a section or a list."""
    key = rng.choice(("enabled", "type", "params", "stage", "a", "lr"))
    return rng.choice((scalar, scalar, f"[{scalar}, {scalar}]", f"{{{key}: {scalar}}}"))


def _aliases(rng: random.Random) -> str:
    """Levels of lists or sections that repeat the level before."""
    width, levels = rng.randint(1, 12), rng.randint(1, 60)
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        target = level if rng.random() < 0.02 else level - 1
        inner = ", ".join([f"*a{target}"] * width)
        content = f"{{<<: [{inner}]}}" if rng.random() < 0.3 else f"[{inner}]"
        lines.append(f"a{level}: &a{level} {content}")
    return "\n".join(lines)


def _json_case(rng: random.Random) -> Case:
    values: dict[str, Any] = dict(MODEL)
    for _ in range(rng.randint(1, 3)):
        values[rng.choice(list(field_table()))] = "@"
    text = json.dumps(values, indent=rng.choice((None, "\t", 1)))
    while '"@"' in text:
        text = text.replace('"@"', rng.choice(SCALARS), 1)
    flags = ("--iteration", "1") if rng.random() < 0.5 else ()
    content = _damaged(text.encode("utf-8", "surrogatepass"), rng)
    return Case("json", {"run.json": content}, flags)


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Changes some bytes, cuts, repeats or converts; leaves half of the files as they are."""
    choice = rng.random()
    if choice < 0.5:
        return content
    if choice < 0.6:
        encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"))
        return content.decode("utf-8", "replace").encode(encoding, "replace")
    place = rng.randrange(len(content) + 1)
    if choice < 0.7:
        return content[:place]
    if choice < 0.8:
        return content[:place] + content[max(place - 20, 0) : place] * rng.randint(1, 200)
    piece = (
        rng.choice(SCALARS).encode("utf-8", "surrogatepass") if choice < 0.9 else rng.randbytes(2)
    )
    return content[:place] + piece + content[place:]


def _hostfile_case(rng: random.Random) -> Case:
    lines = []
    for _ in range(rng.randint(0, 4)):
        if rng.random() < 0.3:
            gap, count = rng.choice((" ", "\t", "")), rng.choice((1, 2, 4, 0, -1, "", "x", 9**9))
            lines.append(f"{rng.choice(HOSTS)}{gap}slots={count}")
        else:
            lines.append(f"{rng.choice(HOSTS[:6])} slots={rng.randint(1, 4)}")
    values = dict(MODEL)
    for key in ("include", "exclude"):
        if rng.random() < 0.5:
            parts = [
                f"{rng.choice(HOSTS)}{rng.choice(('', ':0', ':0,1', ':3', ':', ':x', ':1,0'))}"
                for _ in range(rng.randint(1, 3))
            ]
            values[key] = "@".join(parts)
    for key, choices in {
        "num_nodes": (1, 2, 0, 9),
        "num_gpus": (1, 2, 0, 2**40),
        "launcher": ("pdsh", "openmpi", "mpich", "slurm", "x"),
        "master_addr": ("a", "-a", ""),
        "force_multi": (True, False),
        "world_size": (1, 2**31),
    }.items():
        if rng.random() < 0.25:
            values[key] = rng.choice(choices)
    files = {
        "hosts": _damaged("\n".join(lines).encode(), rng),
        "run.yml": json.dumps(values).encode(),
    }
    return Case("hostfile", files, ("-H", "hosts"))


def _command_case(rng: random.Random) -> Case:
    names = ("-d", "--conf_dir", "-H", "--hostfile", "--iteration", "--wandb_group", "--eval_tasks")
    names += ("--domains", "-i", "-o", "--autotuning", "--dry-run", "--x", "--wandb_team", "-")
    words = (
        *SCALARS,
        *HOSTS,
        "run",
        "run.yml",
        ".",
        "/",
        "/dev/null",
        "/dev/zero",
        "no",
        "x" * 9999,
    )
    flags = [rng.choice(words if rng.random() < 0.5 else names) for _ in range(rng.randint(1, 5))]
    # a word with NUL cannot be on a command line
    kept = tuple(flag for flag in flags if "\0" not in flag and flag not in ("-h", "--help"))
    return Case("command", {"run.yml": json.dumps(MODEL).encode()}, kept)


def _values_case(rng: random.Random) -> Case:
    def value(depth: int) -> Any:
        choice = rng.random()
        if depth > 3 or choice < 0.6:
            return rng.choice((*OBJECTS, *SCALARS))
        if choice < 0.8:
            return [value(depth + 1) for _ in range(rng.randint(0, 3))]
        keys = ("enabled", "type", "params", "stage", "a", 1, None, "\0")
        return {rng.choice(keys): value(depth + 1) for _ in range(rng.randint(0, 3))}

    chosen = {rng.choice(list(field_table())): value(0) for _ in range(rng.randint(1, 3))}
    if rng.random() < 0.1:
        own: list[Any] = []
        own.append(own)
        chosen[rng.choice(list(field_table()))] = own
    if rng.random() < 0.1:
        chosen[rng.choice((5, None, "x" * 5000, "a\nb", 10**5000))] = 1
    return Case("values", {}, values=chosen)
