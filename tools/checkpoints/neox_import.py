"""A checkpoint of GPT-NeoX becomes one of ours, of one process."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.opening import load_run_state, saved_configuration, verify_files
from megatron.errors import CheckpointError
from megatron.files import write_json_atomic
from megatron.model.parameters import extremes
from megatron.tokenizer import padded_vocab_size
from odm.wording import counted
from tools.checkpoints.single_process import find_source, step_folder_to_make, write_checkpoint
from tools.hf.network import open_parameters, parameter_infos
from tools.hf.settings import RunSettings, settings_of

__all__ = ["import_neox"]

MAX_FILE_SIZE = 5 * 10**9


def import_neox(
    folder: Path,
    output: Path,
    *,
    config_files: Sequence[str | Path],
    iteration: int | None = None,
    with_optimizer: bool = True,
    say: Callable[[str], None],
) -> Path:
    """Writes a checkpoint of GPT-NeoX as one of ours; memory: a file of 5 GB, or one tensor.

    Args:
        folder: Folder with ``global_step<N>`` folders (the latest, or ``iteration``), or one of
            these.
        output: Folder of the run to make, or the ``global_step<N>`` folder.
        config_files: Configuration of the model; empty takes the files in ``configs``.
        iteration: Which checkpoint.
        with_optimizer: Whether to take moments and master weights too, if they can be read.
        say: Receives each message for the user.

    Returns:
        The new ``global_step<N>`` folder.

    Raises:
        CheckpointError: If the checkpoint is damaged or of another configuration, or if the result
            exists.
        ConfigError: If a configuration file is wrong.
        TokenizerError: If the tokenizer, which tells the size of the vocabulary, cannot be built.
    """
    source = find_source(folder, iteration, reads_neox=True)
    if not is_neox_checkpoint(source):
        raise CheckpointError(f"{source}: {_why_no_import(source)}")
    if (final := step_folder_to_make(output, source.name)).exists():
        raise CheckpointError(f"{final}: exists already; choose another output")
    settings = settings_of(source, config_files)
    verify_files(source)
    reader, shape = open_parameters(source, settings, with_optimizer=with_optimizer)
    assert isinstance(reader, NeoxReader)
    state, _ = load_run_state(source, seq_length=settings.sections["data"]["seq_length"])
    for line in _description(source, reader, state["counters"]["step"], shape.vocab_size):
        say(line)

    def add_files(target: Path) -> tuple[str, ...]:
        _write_configs(source, target, settings, config_files)
        write_json_atomic(target / "state.json", state)
        write_json_atomic(target / "mixture.json", None)  # a mixture that starts from zero
        return "state.json", "mixture.json"

    divisor = settings.sections["model"]["make_vocab_size_divisible_by"]
    padded = replace(shape, padded_vocab_size=padded_vocab_size(shape.vocab_size, divisor))
    return write_checkpoint(
        output,
        source.name,
        parameters=parameter_infos(padded),
        read=lambda name, kind: _read_finite(reader, name, kind),
        moment_names=reader.moment_names,
        max_file_size=MAX_FILE_SIZE,
        add_files=add_files,
    )


def _why_no_import(source: Path) -> str:
    is_ours = (source / "index.json").exists()
    is_what = "is a checkpoint of this program; it needs no import"
    return is_what if is_ours else "contains no checkpoint; copy it again"


def _read_finite(reader: NeoxReader, name: str, kind: str) -> Tensor:
    tensor = reader.read_logical(name, kind)
    if tensor.numel() and not extremes(tensor).isfinite().all():
        raise CheckpointError(
            f"{reader.folder}: {kind} of {name} has values that are not finite; choose an earlier "
            "checkpoint with --iteration"
        )
    return tensor


def _description(source: Path, reader: NeoxReader, step: int, vocab_size: int) -> list[str]:
    count = sum(math.prod(shape) for shape in reader.shapes.values())
    padding = reader.num_vocabulary_rows - vocab_size
    lines = [
        f"{source}: iteration {step}, {count:,} parameters in "
        f"{counted(reader.num_parts, 'model-parallel part')}; {counted(padding, 'padding row')} of "
        "the vocabulary are left out"
    ]
    if reader.why_no_moments is None:
        lines.append(f"optimizer states: {', '.join(reader.moment_names) or 'before any step'}")
    else:
        lines.append(f"optimizer states are not read: {reader.why_no_moments}")
    return lines


def _write_configs(
    source: Path, target: Path, settings: RunSettings, config_files: Sequence[str | Path]
) -> None:
    """The files of the user, and ``resolved.json`` with the network and the saved schedule."""
    (target / "configs").mkdir()
    for file in config_files:
        shutil.copyfile(file, target / "configs" / Path(file).name)
    sections: dict[str, Any] = dict(settings.sections)
    schedule = saved_configuration(source)
    for name in ("optimizer", "schedule"):  # of the default values nothing is known
        sections.pop(name, None)
        if schedule is not None:
            sections[name] = schedule[name]
    write_json_atomic(target / "configs" / "resolved.json", sections)
