"""What a conversion must know about a run: the shape of its network and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from megatron.checkpoint.schema import CONFIGS, check_resolved
from megatron.errors import CheckpointError
from megatron.model.config import ModelConfig, model_config
from megatron.neox_arguments import NeoXArgs, Purpose, RunConfig, resolve
from megatron.neox_arguments.fields import field_table
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from odm.json_data import read_json, shown

__all__ = ["RunSettings", "resolve_model_fields", "settings_of"]

_KEYS = ("vocab_file", "merge_file", "hidden_dropout", "attention_dropout", "neox_compat")
"""Keys outside the groups of model and tokenizer that count here."""


@dataclass(frozen=True)
class RunSettings:
    """A resolved configuration as plain data, group by group, as in ``resolved.json``."""

    groups: Mapping[str, Mapping[str, Any]]

    def shape(self, vocab_size: int) -> ModelConfig:
        """Shape of the network without padding of the vocabulary.

        Raises:
            CheckpointError: If a field is missing, for example in a file of another version.
        """
        groups = {name: SimpleNamespace(**values) for name, values in self.groups.items()}
        config = cast(RunConfig, SimpleNamespace(**groups))
        try:
            shape = model_config(config, vocab_size=vocab_size, padded_vocab_size=vocab_size)
            missing = next((name for name, value in vars(shape).items() if value is None), None)
        except AttributeError as error:
            missing = error.name
        except KeyError as error:  # as a kind of norm that is not known
            missing = f"the meaning of {shown(error.args[0])}"
        if missing is not None:
            raise CheckpointError(
                f"configs/resolved.json: lacks {missing}; perhaps another version of this "
                "program wrote it; give the files of the run with --config_file"
            )
        return shape

    def tokenizer(self) -> AbstractTokenizer:
        """Builds the tokenizer of the run.

        Raises:
            TokenizerError: If its files are not where the configuration says.
        """
        names = (
            "tokenizer_type",
            "vocab_file",
            "merge_file",
            "tokenizer_adds_special_tokens",
        )
        return build_tokenizer(SimpleNamespace(**{name: self._value(name) for name in names}))

    @property
    def vocab_file(self) -> str | None:
        """The field of this name."""
        return self._value("vocab_file")

    def _value(self, key: str) -> Any:
        return next((values[key] for values in self.groups.values() if key in values), None)


def settings_of(
    checkpoint: Path,
    config_files: Sequence[str | Path] = (),
    overwrite_values: Mapping[str, Any] | None = None,
) -> RunSettings:
    """Settings of a checkpoint: from its ``resolved.json`` unless configuration files are given.

    Args:
        checkpoint: A ``global_step<N>`` folder.
        config_files: YAML files of the run. Their batch sizes, data and layout do not matter.
        overwrite_values: Fields that replace those of the files.

    Raises:
        CheckpointError: If the checkpoint has no configuration and none is given.
        ConfigError: If a file is wrong.
    """
    if config_files:
        args = NeoXArgs.from_ymls(config_files, overwrite_values)
        fields = {key: getattr(args, key) for key in args.given if _counts(key)}
        return RunSettings(resolve_model_fields(fields).to_dict())
    values = read_json(
        checkpoint / CONFIGS / "resolved.json",
        check_resolved,
        error=CheckpointError,
        what="configuration",
        advice="give the files of the run with --config_file",
    )
    for key, value in (overwrite_values or {}).items():
        if _group(key) != "tokenizer" and key not in ("vocab_file", "merge_file"):
            raise CheckpointError(
                f"{key}: only fields of the tokenizer can be replaced without --config_file"
            )
        for group in values.values():
            if key in group:
                group[key] = value
    return RunSettings(values)


def resolve_model_fields(fields: Mapping[str, Any]) -> RunConfig:
    """Resolves fields of model and tokenizer as those of a run of one process.

    Raises:
        ConfigError: With one line per wrong field.
    """
    return resolve(NeoXArgs.from_dict(fields), world_size=1, purpose=Purpose.READING)


def _counts(key: str) -> bool:
    return key in _KEYS or (_group(key) in ("model", "tokenizer") and key != "precision")


def _group(key: str) -> str | None:
    field = field_table().get(key)
    return None if field is None else field.group
