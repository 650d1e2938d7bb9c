"""A model folder of transformers becomes a checkpoint of ours and a YAML file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from megatron.checkpoint.format import checkpoint_steps
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.files import atomic_writer, write_json_atomic, write_text_atomic
from megatron.model.parameters import extremes
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer import padded_vocab_size
from megatron.tokenizer.byte_pair import HFTokenizer
from odm.json_data import fields, read_json
from odm.wording import counted
from tools.checkpoints.single_process import (
    all_or_nothing,
    step_folder_to_make,
    write_checkpoint,
)
from tools.checkpoints.tensor_sources import row_blocks
from tools.datasets.added_tokens import added_tokens_lines
from tools.hf.families import Family, family_of_config
from tools.hf.network import parameter_infos
from tools.hf.settings import RunSettings, resolve_model_fields
from tools.hf.tokenizer_files import TOKENIZER_CONFIG, TOKENIZER_FILE, copied_files
from tools.hf.verification import verify_import
from tools.hf.weight_files import WeightFiles
from tools.hf.weights import Weight

__all__ = ["convert_from_hf", "write_model_checkpoint"]

MAX_FILE_SIZE = 5 * 10**9
_SENTENCEPIECE = "tokenizer.model"


def convert_from_hf(
    source: Path,
    output: Path,
    *,
    config_out: Path,
    seq_length: int | None = None,
    verifies: bool = False,
    say: Callable[[str], None],
) -> Path:
    """Writes a model folder of transformers as the checkpoint of iteration 0 of a run.

    Args:
        source: A folder with config.json and weights of a family in `FAMILIES`.
        output: Folder of the run; gets ``global_step0``, ``latest``, and the files of tokenizer and
            generation.
        config_out: YAML file to write: network, tokenizer and ``load``.
        seq_length: Length of the samples that the YAML file names; not given: the longest text.
        verifies: Whether transformers must compute the same logits from ``source``.
        say: Receives each message for the user.

    Returns:
        The ``global_step0`` folder.

    Raises:
        ConfigError: If the network cannot be expressed here.
        CheckpointError: If weights are missing, unknown, of another shape or not finite, if a
            result exists, if ``output`` is the folder of another run, which would begin again
            from these weights, or if the verification fails, before anything is written.
    """
    copied = {output / path.name: path for path in copied_files(source)}
    _check_output(output, *copied)
    _check_config_out(config_out, output, *copied)
    config = _read_json(source / "config.json")
    family = family_of_config(config)
    fields, rows = _model_fields(family, config, source / "config.json")
    vocab_size, tokenizer_fields = _vocabulary(source, output, rows, say)
    fields.update(tokenizer_fields)
    run_config = _resolved(fields, seq_length, source)
    shape = RunSettings(run_config.to_dict()).shape(vocab_size)
    files = WeightFiles(source)
    read = _reader(files, family, shape, rows)
    if verifies:
        say(verify_import(source, shape, read=read))
    text = _yaml_text(source, {**fields, "load": str(output)})
    with all_or_nothing(output, *copied, config_out):
        config_out.parent.mkdir(parents=True, exist_ok=True)
        for copy, path in copied.items():
            with atomic_writer(copy) as stream:
                stream.write(path.read_bytes())
        write_text_atomic(config_out, text)
        return write_model_checkpoint(
            output, shape, run_config=run_config, read=read, files={config_out.name: text}
        )


def write_model_checkpoint(
    output: Path,
    shape: ModelShape,
    *,
    run_config: RunConfig,
    read: Callable[[str], Tensor],
    files: dict[str, str],
) -> Path:
    """Writes weights alone as a checkpoint of iteration 0, before the first optimizer step.

    Args:
        output: Folder of the run, or the ``global_step<N>`` folder to make.
        shape: Shape of the network, without padding of the vocabulary.
        run_config: Content of ``configs/resolved.json``.
        read: Returns each parameter by our name, float32, in its logical shape.
        files: {name: text} of the configuration files to keep beside it.
    """

    def add_files(folder: Path) -> tuple[str, ...]:
        (folder / "configs").mkdir()
        for name, text in files.items():
            write_text_atomic(folder / "configs" / name, text)
        write_json_atomic(folder / "configs" / "resolved.json", run_config.to_dict())
        state = {"loss_scaler": {}, "counters": TrainState().state_dict()}
        write_json_atomic(folder / "state.json", state)
        write_json_atomic(folder / "mixture.json", None)  # a mixture that starts from zero
        return "state.json", "mixture.json"

    divisor = run_config.model.make_vocab_size_divisible_by
    padded = replace(shape, padded_vocab_size=padded_vocab_size(shape.vocab_size, divisor))
    return write_checkpoint(
        output,
        "global_step0",
        parameters=parameter_infos(padded),
        read=lambda name, kind: read(name),
        max_file_size=MAX_FILE_SIZE,
        add_files=add_files,
    )


def _check_output(output: Path, *files: Path) -> None:
    """Refuses to replace existing files."""
    if step_folder_to_make(output, "global_step0") == output:
        raise CheckpointError(
            f"{output}: is the name of a checkpoint; give the folder of a run as --output_dir"
        )
    steps = checkpoint_steps(output)
    if steps and steps != [0]:
        raise CheckpointError(
            f"{output}: contains a run, at iteration {steps[-1]}; choose another --output_dir"
        )
    for path in (output / "global_step0", *files):
        if path.exists():
            raise CheckpointError(f"{path}: exists already; choose another name")


def _check_config_out(config_out: Path, output: Path, *copied: Path) -> None:
    """Refuses a name that exists or that another file of the import will have."""
    if config_out.exists():
        raise CheckpointError(f"{config_out}: exists already; choose another name")
    path, folder, *files = (Path(os.path.realpath(p)) for p in (config_out, output, *copied))
    others = [folder, folder / "latest", *files]
    is_inside = folder / "global_step0" in (path, *path.parents)
    if is_inside or path in others or path.name == "resolved.json":
        raise CheckpointError(
            f"--config_out: {config_out} is the name of another file or folder of the run; choose "
            "another name"
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise CheckpointError(
            f"{path.parent}: there is no such folder; `hf download OWNER/NAME --local-dir FOLDER` "
            "fetches a model from the Hub"
        )
    if not path.is_file():
        is_ours = checkpoint_steps(path.parent) or (path.parent / "index.json").is_file()
        raise CheckpointError(
            f"{path.parent}: "
            + (
                "is a run of this program, not a model of transformers; export it with "
                "tools/convert_to_hf.py --input_dir"
                if is_ours
                else "contains no config.json; give the folder of a model of transformers"
            )
        )
    return read_json(
        path,
        fields({}),
        error=CheckpointError,
        what="model configuration",
        advice="get the file again",
    )


def _model_fields(family: Family, config: dict[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """Fields of our YAML files, and the rows of the embedding."""
    try:
        return family.read_config(config), config["vocab_size"]
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _resolved(fields: dict[str, Any], seq_length: int | None, source: Path) -> RunConfig:
    """Checks our fields, of which ``seq_length`` is set if it is given."""
    longest = fields["max_position_embeddings"]
    if seq_length is not None:
        if not 1 <= seq_length <= longest:
            raise CheckpointError(f"--seq_length: must be from 1 to {longest}, got {seq_length}")
        fields["seq_length"] = seq_length
    try:
        return resolve_model_fields(fields)
    except ConfigError as error:
        where = source / "config.json"
        raise ConfigError(*(f"{where}: {message}" for message in error.messages)) from error


def _vocabulary(
    source: Path, output: Path, rows: int, say: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """The real size of the vocabulary, and the fields that name the tokenizer.

    Models are often published with padding rows, which no token selects. We add our own padding.
    """
    path = source / TOKENIZER_FILE
    if not path.is_file():
        say(f"{source}: no {TOKENIZER_FILE}; all {rows} rows of the embedding count as tokens")
        if (source / _SENTENCEPIECE).is_file():
            say(f"{source}: for its {_SENTENCEPIECE}, set tokenizer_type: SPMTokenizer")
        return rows, {}
    tokenizer = HFTokenizer(str(path))
    vocab_size = tokenizer.vocab_size
    for line in (*added_tokens_lines(tokenizer), *_settings_that_add(source)):
        say(f"{source}: {line}")
    if vocab_size > rows:
        raise CheckpointError(
            f"{path}: {vocab_size} tokens, but the embedding has {rows} rows; the tokenizer "
            "belongs to another model"
        )
    if vocab_size < rows:
        say(f"{source}: {counted(rows - vocab_size, 'padding row')} of the embedding left out")
    fields = {"tokenizer_type": "HFTokenizer", "vocab_file": str(output / TOKENIZER_FILE)}
    return vocab_size, fields


def _settings_that_add(source: Path) -> list[str]:
    """A message about settings with which transformers 4 adds tokens to texts."""
    path = source / TOKENIZER_CONFIG
    settings = _read_json(path) if path.is_file() else {}
    keys = [key for key in ("add_bos_token", "add_eos_token") if settings.get(key) is True]
    if not keys:
        return []
    return [f"{path.name} sets {' and '.join(keys)}; training here reads tokenizer.json alone"]


def _reader(
    files: WeightFiles, family: Family, shape: ModelShape, rows: int
) -> Callable[[str], Tensor]:
    """Checks the names in ``files``; returns a function that reads a parameter by our name."""
    if shape.num_layers > len(files.names):
        raise CheckpointError(
            f"{files.folder / 'config.json'}: num_hidden_layers: is {shape.num_layers}, but there "
            f"are {len(files.names)} tensors; the weights belong to another model"
        )
    infos = parameter_infos(shape)
    weights: dict[str, Weight] = {}
    for weight in family.weights_of(shape):
        if weight.ours in infos:
            stored = family.stored_names(weight, files.names)
            for name, found in zip(weight.theirs, stored, strict=True):
                if found not in files.names:
                    raise CheckpointError(f"{files.folder}: no tensor {name!r}")
            weights[weight.ours] = replace(weight, theirs=stored)
    known = {name for weight in weights.values() for name in weight.theirs}
    known |= {*family.other_names, *family.other_names.values()}
    for name in sorted(files.names - known):
        if not family.is_ignored(name):
            raise CheckpointError(
                f"{files.folder}: contains {name!r}, which config.json does not mention"
            )
    if not shape.no_weight_tying:
        _check_tied(files, family)

    def read(ours: str) -> Tensor:
        weight, info = weights[ours], infos[ours]
        tensors = []
        for part, name in enumerate(weight.theirs):
            where = f"{files.folder}: {name}"
            wanted = weight.their_shape(part, info.shape)
            tensor = _without_padding(files.read(name), wanted, rows, where)
            if tensor.numel() and not extremes(tensor).isfinite().all():
                raise CheckpointError(
                    f"{where} has values that are not finite; such a model generates and scores "
                    "at random; use a sound one"
                )
            tensors.append(tensor)
        return weight.joined(tensors)

    return read


def _check_tied(files: WeightFiles, family: Family) -> None:
    """Refuses an output matrix that is not the embedding, though config.json ties them."""
    names = dict(family.weights)
    embedding, output = (
        str(names[ours])
        for ours in ("{embedding}.word_embeddings.weight", "{output}.final_linear.weight")
    )
    for name in sorted({output, family.other_names.get(output, output)} & files.names):
        shape = files.shape(embedding)
        if files.shape(name) != shape or not all(
            torch.equal(*(files.read_rows(each, *rows).float() for each in (embedding, name)))
            for rows in row_blocks(shape)
        ):
            raise CheckpointError(
                f"{files.folder}: {name} is not {embedding}, though tie_word_embeddings is true, "
                "and would be lost; set tie_word_embeddings: false in config.json to keep it"
            )


def _without_padding(tensor: Tensor, wanted: tuple[int, ...], rows: int, where: str) -> Tensor:
    """In float32, without padding rows of the vocabulary; only their number may differ."""
    stored = tuple(tensor.shape)
    is_vocabulary = len(wanted) == 2 and stored == (rows, *wanted[1:])
    if is_vocabulary and rows >= wanted[0]:
        tensor = tensor[: wanted[0]]
    if tuple(tensor.shape) != wanted:
        raise CheckpointError(f"{where} has shape {stored}, config.json says {wanted}")
    return tensor.float().contiguous()


def _yaml_text(source: Path, fields: dict[str, Any]) -> str:
    return (
        f"# Network, tokenizer and weights of {source.name}; add data, optimizer and batch size.\n"
        + yaml.safe_dump(fields, sort_keys=False)
    )
