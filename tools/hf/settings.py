"""What a conversion must know about a run: the shape of its network and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.format import read_resolved_config
from megatron.checkpoint.schema import CONFIGS, check_resolved
from megatron.errors import CheckpointError
from megatron.neox_arguments import NeoXArgs, Purpose, RunConfig, resolve
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.resolved import in_current_form
from megatron.neox_arguments.sections.model import RopeScaling
from megatron.neox_arguments.unsupported import UNSUPPORTED
from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from odm.json_data import read_json

__all__ = ["RunSettings", "resolve_model_fields", "settings_of"]

_TOKENIZER = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_adds_special_tokens")
_PRECISION = ("precision", "fp16", "bf16")
_KEYS = (*_TOKENIZER, *_PRECISION, "padded_vocab_size", "seq_length", "neox_compat")
"""Keys outside the section of the model that count here."""
_CONFIG_SUFFIXES = (".yml", ".yaml", ".json")


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
        left_out = {*vocabulary, "soft_prompt"}  # no class of transformers has one
        names = [field.name for field in fields(ModelShape) if field.name not in left_out]
        missing = next((name for name in names if not _has(model, name)), None)
        if missing is not None:
            raise CheckpointError(
                f"configs/resolved.json: lacks {missing}; perhaps another version of this "
                "program wrote it; give the files of the run with --config_file"
            )
        values = {name: model[name] for name in names}
        if values["rope_scaling"] is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        values["attention_reach"] = tuple(
            None if reach is None else tuple(reach) for reach in values["attention_reach"]
        )
        return ModelShape(**values, **vocabulary)

    def tokenizer(self) -> AbstractTokenizer:
        """Builds the tokenizer of the run.

        Raises:
            TokenizerError: If its files are not where the configuration says.
        """
        data = self.sections.get("data", {})
        return build_tokenizer(SimpleNamespace(**{name: data.get(name) for name in _TOKENIZER}))

    @property
    def dtype(self) -> str | None:
        """Number format of training: fp16, bfloat16 or fp32; None if no file tells."""
        return self.sections.get("precision", {}).get("dtype")

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

    Without a ``resolved.json``, those in the ``configs`` of a GPT-NeoX checkpoint are taken. The
    file of the model is enough: tokenizer and precision are those of the checkpoint unless a file
    names them.

    Args:
        checkpoint: A ``global_step<N>`` folder.
        config_files: YAML files of the run. Their batch sizes, data and layout do not matter.
        overwrite_values: Fields that replace those of the files.

    Raises:
        CheckpointError: If the checkpoint has no configuration and none is given.
        ConfigError: If a file is wrong.
    """
    if not config_files and is_neox_checkpoint(checkpoint):
        config_files = _configs_of_neox(checkpoint)
    if config_files:
        args = NeoXArgs.from_ymls(config_files, overwrite_values)
        given = {key: getattr(args, key) for key in args.given if _counts(key)}
        return RunSettings(_completed(resolve_model_fields(given).to_dict(), given, checkpoint))
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


def _configs_of_neox(checkpoint: Path) -> list[Path]:
    """The files that GPT-NeoX keeps in a checkpoint, or that were published beside it."""
    for folder in (checkpoint / CONFIGS, checkpoint.parent / CONFIGS):
        if found := sorted(path for path in folder.glob("*") if path.suffix in _CONFIG_SUFFIXES):
            return found
    raise CheckpointError(
        f"{checkpoint}: has no configs; give the files of the model with --config_file"
    )


def _completed(
    sections: dict[str, Any], given: Mapping[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """Fills in tokenizer and precision of a checkpoint where the files name none."""
    saved = read_resolved_config(checkpoint) or {}
    for key in _TOKENIZER:
        if key not in given and saved.get("data", {}).get(key) is not None:
            sections["data"] = {**sections.get("data", {}), key: saved["data"][key]}
    if not any(key in given for key in _PRECISION):
        sections["precision"] = saved.get("precision", {})
    return sections


def resolve_model_fields(fields: Mapping[str, Any]) -> RunConfig:
    """Resolves fields of model and tokenizer as those of a run of one process.

    Raises:
        ConfigError: With one line per wrong field.
    """
    return resolve(NeoXArgs.from_dict(fields), world_size=1, purpose=Purpose.READING)


def _has(model: Mapping[str, Any], name: str) -> bool:
    return name in model and (model[name] is not None or name == "rope_scaling")


def _counts(key: str) -> bool:
    row = UNSUPPORTED.get(key)
    is_of_network = row.is_of_network if row else field_table()[key].section == "model"
    return is_of_network or key in _KEYS
