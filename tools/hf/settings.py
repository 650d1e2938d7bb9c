"""What a conversion must know about a run: the shape of its network and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.checkpoint.schema import CONFIGS, check_resolved
from megatron.errors import CheckpointError
from megatron.neox_arguments import NeoXArgs, Purpose, RunConfig, resolve
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.resolved import in_current_form
from megatron.neox_arguments.unsupported import UNSUPPORTED
from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from odm.json_data import read_json

__all__ = ["RunSettings", "resolve_model_fields", "settings_of"]

_TOKENIZER = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_adds_special_tokens")
_KEYS = (*_TOKENIZER, "padded_vocab_size", "seq_length", "neox_compat")
"""Keys outside the section of the model that count here."""

_NEWER = {
    *("attention_reach", "rpe_num_buckets", "rpe_max_distance"),
    *("reset_attention_mask", "reset_position_ids"),
}
"""Fields of the network that files of earlier versions lack: they then have their defaults."""


@dataclass(frozen=True)
class RunSettings:
    """A resolved configuration as plain data, section by section, as in ``resolved.json``."""

    sections: Mapping[str, Any]

    def shape(self, vocab_size: int) -> ModelShape:
        """Shape of the network without padding of the vocabulary.

        Raises:
            CheckpointError: If a field is missing, for example in a file of another version.
        """
        model = self.sections["model"]
        vocabulary = {"vocab_size": vocab_size, "padded_vocab_size": vocab_size}
        expected = [field.name for field in fields(ModelShape) if field.name not in vocabulary]
        names = [name for name in expected if model.get(name) is not None]
        missing = next((n for n in expected if n not in names and n not in _NEWER), None)
        if missing is not None:
            raise CheckpointError(
                f"configs/resolved.json: lacks {missing}; perhaps another version of this "
                "program wrote it; give the files of the run with --config_file"
            )
        return ModelShape(**{name: model[name] for name in names}, **vocabulary)

    def tokenizer(self) -> AbstractTokenizer:
        """Builds the tokenizer of the run.

        Raises:
            TokenizerError: If its files are not where the configuration says.
        """
        data = self.sections.get("data", {})
        return build_tokenizer(SimpleNamespace(**{name: data.get(name) for name in _TOKENIZER}))

    @property
    def vocab_file(self) -> str | None:
        """The field of this name."""
        return self.sections.get("data", {}).get("vocab_file")


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
        given = {key: getattr(args, key) for key in args.given if _counts(key)}
        return RunSettings(resolve_model_fields(given).to_dict())
    values = read_json(
        checkpoint / CONFIGS / "resolved.json",
        check_resolved,
        error=CheckpointError,
        what="configuration",
        advice="give the files of the run with --config_file",
    )
    sections = in_current_form(values)
    for key, value in (overwrite_values or {}).items():
        if key not in _TOKENIZER:
            raise CheckpointError(
                f"{key}: only fields of the tokenizer can be replaced without --config_file"
            )
        sections.setdefault("data", {})[key] = value
    return RunSettings(sections)


def resolve_model_fields(fields: Mapping[str, Any]) -> RunConfig:
    """Resolves fields of model and tokenizer as those of a run of one process.

    Raises:
        ConfigError: With one line per wrong field.
    """
    return resolve(NeoXArgs.from_dict(fields), world_size=1, purpose=Purpose.READING)


def _counts(key: str) -> bool:
    row = UNSUPPORTED.get(key)
    is_of_network = row.is_of_network if row else field_table()[key].section == "model"
    return is_of_network or key in _KEYS
