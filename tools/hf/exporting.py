"""A checkpoint of any layout becomes a folder that transformers loads."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.opening import ParameterReader, verify_files
from megatron.checkpoint.tensor_files import write_tensors
from megatron.errors import CheckpointError
from megatron.files import flush_to_disk, replace_folder, write_json_atomic
from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer import AbstractTokenizer
from tools.checkpoints.single_process import groups_by_size
from tools.checkpoints.tensor_sources import TensorSource, row_blocks, source_of
from tools.hf.families import Family, family_for
from tools.hf.network import open_parameters
from tools.hf.settings import RunSettings
from tools.hf.tokenizer_files import (
    GENERATION_CONFIG,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    copied_files,
    token_ids,
    write_tokenizer,
)
from tools.hf.verification import TOLERANCE, compare, real_text, require_transformers
from tools.hf.weights import Weight

__all__ = ["DTYPES", "ExportOptions", "export"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EXPORTED = ("config.json", GENERATION_CONFIG, *TOKENIZER_FILES)
"""Beside model*.safetensors and their index."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export."""

    max_shard_size: int = 5 * 10**9
    """Maximum size of a safetensors file, except for a larger tensor; it limits the memory."""
    dtype: str = "float32"
    """A key of `DTYPES`."""
    verifies: bool = True
    """Compare logits before the folder gets its name."""
    tolerance: float = TOLERANCE
    """Largest difference of logits to accept."""
    overwrite: bool = False
    """Replace an earlier export."""
    architecture: str | None = None
    """Family to use, see `family_for`; None is the first that expresses the network."""
    saves_tokenizer: bool = True
    """Write the files of the tokenizer."""
    pad_token_id: int | None = None
    """Id that fills up a text; None is the tokenizer's."""
    copies_tokenizer: bool = False
    """Copy the folder of ``vocab_file`` as it is, with the tokens that transformers adds."""


def export(
    source: Path,
    output: Path,
    *,
    settings: RunSettings,
    options: ExportOptions,
    say: Callable[[str], None],
) -> None:
    """Writes the checkpoint ``source`` as a model folder of transformers.

    The folder gets its name when it is complete and verified; until then it is ``<output>.tmp``,
    which is removed when something fails.

    Args:
        source: A ``global_step<N>`` folder of ours or of GPT-NeoX; its files are verified first.
        output: The folder to make; it may exist if it is empty.
        settings: Configuration of the run.
        options: How to export.
        say: Receives each message for the user.

    Raises:
        ConfigError: With one line per field that no class of transformers can express.
        CheckpointError: If the source is damaged or belongs to another configuration, if the output
            exists, or if the verification fails.
        TokenizerError: If the tokenizer cannot be built.
    """
    _check_output(output, options.overwrite)
    if options.verifies:
        require_transformers("use --no-verify")
    opened = _open_source(source, settings, options)
    verify_files(source)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_weights(opened, temporary, options)
        _write_configs(opened, temporary, options)
        if options.copies_tokenizer:
            _copy_tokenizer(opened.tokenizer, settings.vocab_file, temporary, say)
            if options.pad_token_id is not None:
                say("--pad-token-id: is in config.json alone; the copied files are as they are")
        elif options.saves_tokenizer:
            _save_tokenizer(opened, settings.vocab_file, temporary, options.pad_token_id, say)
        for path in temporary.iterdir():
            with path.open("rb+") as stream:
                flush_to_disk(stream)
        if options.verifies:
            _verify(opened, temporary, options, say)
        replace_folder(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save_tokenizer(
    export: _Source,
    vocab_file: str | None,
    folder: Path,
    pad: int | None,
    say: Callable[[str], None],
) -> None:
    tokenizer = export.tokenizer
    longest = export.shape.max_position_embeddings
    if not write_tokenizer(tokenizer, folder, vocab_file=vocab_file, max_length=longest, pad=pad):
        kind = tokenizer.name
        say(f"tokenizer: transformers has no {kind}; the folder has no tokenizer files")
    elif told := tokenizer.describe_own_added():
        say(_added_tokens_line(told, is_kept=bool(tokenizer.added)))


def _copy_tokenizer(
    tokenizer: AbstractTokenizer,
    vocab_file: str | None,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Copies what there is beside ``vocab_file`` as it is."""
    if tokenizer.name != "HFTokenizer" or Path(vocab_file or "").name != TOKENIZER_FILE:
        raise CheckpointError(
            f"--vocab-is-hf-tokenizer: vocab_file {vocab_file} of {tokenizer.name} is no "
            f"{TOKENIZER_FILE} in the folder of a tokenizer; leave the flag out"
        )
    for path in copied_files(Path(vocab_file or "").parent):
        shutil.copyfile(path, folder / path.name)
    told = tokenizer.describe_own_added()
    if told and not tokenizer.added:
        say(f"tokenizer: transformers adds {told} each text, though training added none")


def _added_tokens_line(told: str, *, is_kept: bool) -> str:
    if is_kept:
        return f"tokenizer: transformers adds {told} each text, as training did"
    return (
        f"tokenizer: {told} each text is no longer added, since training added none; the "
        "post_processor of tokenizer.json was changed for that"
    )


@dataclass(frozen=True)
class _Source:
    """What is exported."""

    reader: ParameterReader
    shape: ModelShape
    family: Family
    tokenizer: AbstractTokenizer

    def weights(self) -> list[Weight]:
        """The parameters that exist."""
        weights = self.family.weights_of(self.shape)
        return [weight for weight in weights if weight.ours in self.reader.shapes]


def _open_source(folder: Path, settings: RunSettings, options: ExportOptions) -> _Source:
    """Opens a checkpoint and refuses what cannot be exported."""
    reader, shape = open_parameters(folder, settings)
    family = family_for(shape, options.architecture)
    tokenizer = settings.tokenizer()
    if tokenizer.vocab_size > shape.vocab_size:
        raise CheckpointError(
            f"{folder}: has {shape.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}; "
            "correct vocab_file"
        )
    pad = options.pad_token_id
    if pad is not None and not 0 <= pad < shape.vocab_size:
        raise CheckpointError(
            f"--pad-token-id: must be from 0 to {shape.vocab_size - 1}, got {pad}"
        )
    return _Source(reader, shape, family, tokenizer)


def _write_weights(export: _Source, folder: Path, options: ExportOptions) -> None:
    source, dtype = source_of(export.reader), DTYPES[options.dtype]
    parts = {
        name: (weight, part)
        for weight in export.weights()
        for part, name in enumerate(weight.theirs)
    }
    sizes = {
        name: dtype.itemsize * math.prod(weight.their_shape(part, source.shapes[weight.ours]))
        for name, (weight, part) in parts.items()
    }
    groups = list(groups_by_size(sizes, options.max_shard_size))
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        if len(groups) == 1:
            file = "model.safetensors"
        tensors = {name: _read_as(dtype, source, *parts[name]) for name in group}
        write_tensors(folder / file, tensors, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        del tensors  # the next shard must not be read beside it
    if len(groups) > 1:
        metadata = {"total_size": sum(sizes.values())}
        index = {"metadata": metadata, "weight_map": weight_map}
        write_json_atomic(folder / "model.safetensors.index.json", index)


def _read_as(dtype: torch.dtype, source: TensorSource, weight: Weight, part: int) -> Tensor:
    """One tensor of theirs, read a few rows at a time, so that there is never a second copy."""
    name, shape = weight.ours, source.shapes[weight.ours]
    ranges = weight.ranges(part, shape)
    num_rows = sum(end - first for first, end in ranges)
    result = torch.empty((num_rows, *shape[1:]) if shape else (), dtype=dtype)
    start = 0
    for range_start, range_end in ranges:
        for first, end in row_blocks((range_end - range_start, *shape[1:])):
            block = source.rows(name, "fp32", range_start + first, range_start + end)
            place = result[start : start + end - first] if shape else result
            place.copy_(block)
            start += end - first
            if not place.isfinite().all():
                raise CheckpointError(_not_finite(source.folder, name, block, dtype))
    return result.view(weight.their_shape(part, shape))


def _not_finite(folder: Path, name: str, block: Tensor, dtype: torch.dtype) -> str:
    if not block.isfinite().all():
        return (
            f"{folder}: {name} contains values that are not finite, so the run has diverged; "
            "export an earlier one with --iteration"
        )
    return (
        f"--dtype: {name} has values up to {block.abs().max().item():g}, which {dtype} cannot "
        "hold; use float32"
    )


def _write_configs(export: _Source, folder: Path, options: ExportOptions) -> None:
    ids = token_ids(export.tokenizer, options.pad_token_id)
    config: dict[str, Any] = {
        "architectures": [export.family.architecture],
        "model_type": export.family.model_type,
        **export.family.write_config(export.shape),
        **ids,
        "torch_dtype": options.dtype,  # transformers 4
        "dtype": options.dtype,
    }
    write_json_atomic(folder / "config.json", config)
    write_json_atomic(folder / GENERATION_CONFIG, ids)


def _verify(
    export: _Source, folder: Path, options: ExportOptions, say: Callable[[str], None]
) -> None:
    result = compare(
        folder,
        export.shape,
        export.tokenizer,
        read=export.reader.read_logical,
        dtype=DTYPES[options.dtype],
        text=real_text(),
        with_special_tokens=not options.copies_tokenizer or bool(export.tokenizer.added),
    )
    if not result.difference <= options.tolerance:
        raise CheckpointError(
            f"verification: logits differ by {result.difference:.2e} from transformers "
            f"{result.version}, more than --tolerance {options.tolerance:g}; nothing was written"
        )
    say(
        f"verified with transformers {result.version} on {result.num_tokens} tokens: logits differ "
        f"by {result.difference:.2e} at most (tolerance {options.tolerance:g})"
    )
    if result.rounding:
        say(f"rounding to {options.dtype} itself moved logits by {result.rounding:.2e} at most")


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuses to replace anything but an export, and that only when asked to."""
    if not output.exists():
        return
    if not output.is_dir():
        raise CheckpointError(f"{output}: is a file; choose another --output_dir")
    names = sorted(path.name for path in output.iterdir())
    if names and not overwrite:
        raise CheckpointError(
            f"{output}: exists and is not empty; choose another --output_dir or use --overwrite"
        )
    for name in names:
        is_weights = name.startswith("model") and ".safetensors" in name
        if name not in EXPORTED and not is_weights:
            raise CheckpointError(
                f"{output}: contains {name!r}, which no export writes; --overwrite replaces only "
                "exports; choose another --output_dir"
            )
