"""NeoXArgs: every key of a configuration in one flat object, as the user wrote it."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import nearest

from .bounds import check_plain
from .coerce import Mismatch, coerce
from .command_line import read_deepy_command, read_script_command
from .errors import ConfigError, IssueList, Origin, shown
from .fields import DEEPSPEED_KEYS, RUNNER_KEYS, field_table
from .hostfile import BOTH_FILTERS
from .presets import default_of
from .schema import Document, find_file, read_files, with_underscores
from .secrets import plain_secrets, redacted

REQUIRED = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")

_LONGEST_KEY = 100
"""Characters of a key that may be a known one, spelled wrongly."""

_NOT_FLAGS = ("account", "comment")
"""Keys of the runner that are no flags of DeepSpeed's."""

_FlatFields: Any = dataclasses.make_dataclass(
    "_FlatFields",
    [(f.name, f.type, dataclasses.field(default=f.default)) for f in field_table().values()],
    init=False,
    repr=False,
    eq=False,
    namespace={"__doc__": "Keys and defaults; without a docstring dataclasses would compose one."},
)


class NeoXArgs(_FlatFields):
    """The flat view of a configuration that GPT-NeoX users know.

    It holds exactly what was written: types and names are checked, values are not changed. What
    follows from them is in ``RunConfig``, see ``resolve``.

    Raises:
        ConfigError: A message for each unknown key, wrong type and missing required key.
    """

    def __init__(self, **values: Any) -> None:
        self._fill(Document(values))

    @classmethod
    def from_ymls(
        cls,
        paths_to_yml_files: Iterable[str | Path],
        overwrite_values: Mapping[str, Any] | None = None,
    ) -> NeoXArgs:
        """Reads YAML and JSON files, then replaces values by ``overwrite_values``."""
        written = read_files([find_file(str(path)) for path in paths_to_yml_files])
        return cls._overwritten(written, overwrite_values)

    @classmethod
    def from_dict(cls, args_dict: Mapping[str, Any]) -> NeoXArgs:
        """Takes values from a mapping; dashes in keys are underscores."""
        return cls.build(Document(with_underscores(args_dict)))

    @classmethod
    def consume_deepy_args(cls, input_args: Sequence[str] | None = None) -> NeoXArgs:
        """Reads the command line of ``deepy.py``: a script, configuration files and flags."""
        return cls.build(read_deepy_command(input_args).written)

    @classmethod
    def consume_neox_args(
        cls,
        overwrite_values: Mapping[str, Any] | None = None,
        input_args: Sequence[str] | None = None,
    ) -> NeoXArgs:
        """Reads the command line of ``train.py`` and others, as a launcher or a person gives it.

        It is either ``--megatron_config`` (a path, JSON or base64 of JSON) or configuration files.
        """
        return cls._overwritten(read_script_command(input_args), overwrite_values)

    @classmethod
    def validate_keys(cls) -> bool:
        """Returns True when no key is declared twice; fails otherwise."""
        return len(field_table()) == len(dataclasses.fields(cls))

    def update_value(self, key: str, value: Any) -> None:
        """Sets one value, as if it had been written in a file.

        Raises:
            ConfigError: If the key is unknown or the value has another type.
        """
        issues = IssueList()
        _check_entry(key, value, issues)
        issues.raise_if_any()
        setattr(self, key, value)

    @property
    def given(self) -> frozenset[str]:
        """Keys that were set, by a file, a flag or the program; all others have their default."""
        return frozenset(self._given)

    @property
    def origins(self) -> dict[str, Origin]:
        """File and line of the keys that came from files."""
        return dict(self._origins)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how files were merged; `resolve` passes it on."""
        return self._notes

    @property
    def megatron_config(self) -> dict[str, Any]:
        """What was set, as plain data; ``from_dict`` of it gives an equal object."""
        return {
            key: copy.deepcopy(getattr(self, key)) for key in field_table() if key in self._given
        }

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """DeepSpeed's own keys as written; the engine gets ``deepspeed_config(config)`` instead."""
        return {k: v for k, v in self.megatron_config.items() if k in DEEPSPEED_KEYS}

    def get_deepspeed_main_args(self) -> list[str]:
        """Returns arguments for ``deepspeed.launcher.runner``: flags, script, configurations.

        DLTS_HOSTFILE and MASTER_ADDR stand in for `hostfile` and `master_addr`. Flags are as the
        user wrote them. `deepy.py` does not use that runner.

        Raises:
            ConfigError: For a filter beside `num_nodes` or `num_gpus`, which the runner refuses, or
                for a secret that is written out.
        """
        values = launch_values(self)
        filters = [key for key in ("include", "exclude") if values[key]]
        counts = [key for key in ("num_nodes", "num_gpus") if values[key] not in (None, -1)]
        if filters and counts:
            problem = (
                f"{counts[0]} and {filters[0]} are both set, and DeepSpeed's runner takes one of "
                "them; start with deepy.py, or keep one"
            )
            raise placed(self, ConfigError(problem, key=counts[0]))
        return _launcher_flags(self) + script_arguments(self)

    @classmethod
    def _overwritten(
        cls, written: Document, overwrite_values: Mapping[str, Any] | None
    ) -> NeoXArgs:
        given = with_underscores(overwrite_values or {})
        return cls.build(written.replaced(given, "overwrite_values"))

    @classmethod
    def build(cls, written: Document) -> NeoXArgs:
        """Makes it from what was written, and remembers where."""
        args = cls.__new__(cls)
        args._fill(written)
        return args

    def _fill(self, written: Document) -> None:
        values, issues = dict(written.values), IssueList(written.origins)
        if written.texts:
            values.setdefault("config_files", dict(written.texts))
        for key, value in values.items():
            _check_entry(key, value, issues)
        for key in REQUIRED:
            if values.get(key) is None:
                issues.add(key, f"{key} is required; set it in one of the configuration files")
        issues.raise_if_any()
        object.__setattr__(self, "_given", set(values))
        object.__setattr__(self, "_origins", dict(written.origins))
        object.__setattr__(self, "_notes", written.notes)
        self._set_all({key: copy.deepcopy(value) for key, value in values.items()})

    def _set_all(self, values: Mapping[str, Any]) -> None:
        preset = values.get("neox_compat")
        for field in field_table().values():
            default = default_of(field.name, field.default, preset)
            object.__setattr__(self, field.name, values.get(field.name, default))

    def __setattr__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        if key in field_table():
            self._given.add(key)
            self._origins.pop(key, None)
        if key == "neox_compat":
            self._set_all({name: getattr(self, name) for name in self._given})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeoXArgs):
            return NotImplemented
        return all(getattr(self, key) == getattr(other, key) for key in field_table())

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in redacted(self.megatron_config).items())
        return f"NeoXArgs({values})"


def _check_entry(key: str, value: Any, issues: IssueList) -> None:
    field = field_table().get(key)
    if field is None:
        near = nearest(key, field_table(), likeness=0.7) if len(key) <= _LONGEST_KEY else []
        reference = "see configs/neox_arguments.md for all keys"
        hint = f"did you mean '{near[0]}'?" if near else reference
        issues.add(key, f"unknown key {shown(key)}; {hint}")
        return
    try:
        if isinstance(value, (Mapping, list, tuple)):
            check_plain(value, key)  # first: it may be too large to look at
        coerce(value, field.type)
        check_plain(value, key)
    except ConfigError as error:
        issues.add_error(ConfigError(*error.messages, key=key))
    except Mismatch as error:
        issues.add(key, f"{key} must be {error}, got {shown(value)}{_advice(value, field.type)}")


def _advice(value: Any, annotation: Any) -> str:
    """Says what to do about the two spellings that YAML takes for something else."""
    if value in ("None", "none"):
        return "; write null for no value"
    is_text = str in (annotation, *_parts(annotation))
    is_one_word = not isinstance(value, (str, Mapping, list, tuple, bytes))
    return "; put it in quotes" if is_text and is_one_word else ""


def typed_values(args: NeoXArgs, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the values of ``keys`` with the types of their fields; null asks for the default.

    Raises:
        ConfigError: If an assignment gave one another type; files and `update_value` cannot.
    """
    issues, values = IssueList(args.origins), dict[str, Any]()
    for key in keys:
        field, written = field_table()[key], getattr(args, key)
        try:
            values[key] = coerce(copy.deepcopy(written), field.type)
        except Mismatch as error:
            issues.add(key, f"{key} must be {error}, got {shown(written)}")
            continue
        if values[key] is None and field.type is not Any and type(None) not in _parts(field.type):
            values[key] = default_of(key, field.default, args.neox_compat)
    issues.raise_if_any()
    return values


def _parts(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def placed(args: NeoXArgs, error: ConfigError) -> ConfigError:
    """Returns ``error`` with the file and line of the key that it blames."""
    issues = IssueList(args.origins)
    issues.add_error(error)
    return issues.as_error()


def launch_values(args: NeoXArgs) -> dict[str, Any]:
    """Returns the typed values of the keys that say where a run starts.

    Raises:
        ConfigError: If a number of processes or machines is impossible.
    """
    values = typed_values(args, (*RUNNER_KEYS, "world_size", "global_num_gpus"))
    issues = IssueList(args.origins)
    for key, value in values.items():
        for problem in field_table()[key].problems(value):
            issues.add(key, problem)
    if values["include"] and values["exclude"]:
        issues.add("exclude", BOTH_FILTERS)
    issues.raise_if_any()
    return values


def script_arguments(args: NeoXArgs) -> list[str]:
    """Returns the script and its configuration as words of a command line.

    Raises:
        ConfigError: If a secret is written out: every user of a machine sees command lines.
    """
    if secrets := plain_secrets(args.megatron_config):
        problem = (
            f"{secrets[0]}: would be on the command line of every machine; write ${{NAME}} there "
            "and set NAME in the environment of each"
        )
        raise placed(args, ConfigError(problem, key=secrets[0].partition(".")[0]))
    arguments: list[str] = []
    if args.user_script is not None:
        arguments.append(args.user_script)
    for flag, content in (
        ("--deepspeed_config", args.deepspeed_config),
        ("--megatron_config", args.megatron_config),
    ):
        text = json.dumps(content).encode()  # unsorted: keys of sections may be numbers
        arguments += [flag, base64.urlsafe_b64encode(text).decode()]
    return arguments


def _launcher_flags(args: NeoXArgs) -> list[str]:
    flags: list[str] = []
    typed = launch_values(args)
    values = {key: typed[key] for key in RUNNER_KEYS}
    values["hostfile"] = values["hostfile"] or os.environ.get("DLTS_HOSTFILE")
    values["master_addr"] = values["master_addr"] or os.environ.get("MASTER_ADDR")
    for name, value in values.items():
        is_default = value in (None, False) or value == field_table()[name].default
        if is_default or name in _NOT_FLAGS:
            continue
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    slurm = [f"--{name}={values[name]}" for name in ("account", "comment") if values[name]]
    if slurm and values["launcher"] == "slurm":
        flags.append(f"--launcher_args={shlex.join(slurm)}")  # apart, argparse takes it for a flag
    return flags


__all__ = ["NeoXArgs", "launch_values", "placed", "script_arguments", "typed_values"]
