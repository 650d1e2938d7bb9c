"""Which checkpoint a run continues from, and another one if that is found damaged."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from megatron.checkpoint.loading import find_checkpoint
from megatron.errors import CheckpointError, DamagedCheckpointError
from megatron.files import is_same_path
from megatron.neox_arguments import ConfigError, RunConfig

__all__ = ["checkpoint_to_load", "with_checkpoint"]

Say = Callable[[str], None]
T = TypeVar("T")


def with_checkpoint(
    config: RunConfig, say: Say, use: Callable[[Path | None], T], *, for_training: bool = True
) -> T:
    """Loads the checkpoint that `checkpoint_to_load` finds, or an earlier one if it is damaged.

    Args:
        config: The resolved configuration.
        say: Prints a message for the user.
        use: Loads the checkpoint of a folder. Tensors are compared with their checksums when they
            are read, so it may find damage; then it is called again, and begins from scratch.
        for_training: Whether a run may begin without a checkpoint.

    Raises:
        CheckpointError: As `checkpoint_to_load`; or if the checkpoint of ``iteration`` is damaged.
    """
    damaged: frozenset[str] = frozenset()
    while True:
        folder = checkpoint_to_load(config, say, for_training=for_training, damaged=damaged)
        try:
            return use(folder)
        except DamagedCheckpointError as error:
            if folder is None or config.saving.iteration is not None:
                raise
            say(f"skipping a damaged checkpoint: {error}")
            damaged |= {folder.name}
        gc.collect()  # the engine, before there is a second one


def checkpoint_to_load(
    config: RunConfig,
    say: Say,
    *,
    for_training: bool = True,
    damaged: frozenset[str] = frozenset(),
) -> Path | None:
    """Finds the checkpoint that ``load`` and ``iteration`` name.

    Args:
        config: The resolved configuration.
        say: Prints a message for the user.
        for_training: Whether a run may begin without a checkpoint.
        damaged: Names of folders that are not taken.

    Raises:
        CheckpointError: If ``load`` contains no checkpoint. But if ``load`` is also the ``save``
            folder, the run starts from scratch, so that one command can start and resume a run.
        ConfigError: If a key that says how to load is set, but ``load`` is not.
    """
    if config.saving.load_path is None:
        if config.saving.finetune or config.saving.iteration is not None:
            key = "finetune" if config.saving.finetune else "iteration"
            raise ConfigError(
                f"{key}: needs load, which is not set; set load to the folder of the checkpoints, "
                f"or remove {key}"
            )
        return None
    load = Path(config.saving.load_path)
    folder = find_checkpoint(load, config.saving.iteration, say, damaged=damaged)
    if folder is None:
        if (load / "index.json").is_file():
            raise CheckpointError(
                f"load: {load} is itself a checkpoint; set load to its parent, {load.parent}"
                f", and choose it with iteration: {load.name.removeprefix('global_step')}"
            )
        if _is_hugging_face_model(load):
            raise CheckpointError(
                f"load: {load} is a Hugging Face model; convert it to a checkpoint with python "
                f"tools/convert_from_hf.py --input_dir {load} --output_dir FOLDER, and load FOLDER"
            )
        if not for_training:
            raise CheckpointError(
                f"load: no checkpoint in {load}; correct the path, or train the model first"
            )
        if config.saving.save_path is None or not is_same_path(
            config.saving.load_path, config.saving.save_path
        ):
            raise CheckpointError(
                f"load: no checkpoint in {load}; correct the path, or remove load to start from "
                "scratch"
            )
        say(f"load: no checkpoint in {config.saving.load_path} yet; starting from scratch")
    return folder


def _is_hugging_face_model(folder: Path) -> bool:
    weights = ("*.safetensors", "pytorch_model*.bin")
    return (folder / "config.json").is_file() and any(any(folder.glob(name)) for name in weights)
