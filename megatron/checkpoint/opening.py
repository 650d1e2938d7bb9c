"""Opens a ``global_step<N>`` folder, whether this program or GPT-NeoX wrote it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.format import (
    CheckpointReader,
    read_content,
    read_resolved_config,
)
from megatron.checkpoint.neox.folder import NeoxFolder
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.neox.run_state import (
    neox_run_state,
    neox_schedule,
    network_of_args_problem,
)
from megatron.checkpoint.network_comparison import network_problem
from megatron.checkpoint.schema import RUN_FILES
from megatron.checkpoint.verification import verify
from megatron.sizing.model_shape import ModelShape

__all__ = [
    "ParameterReader",
    "load_run_state",
    "open_reader",
    "other_network_problem",
    "saved_configuration",
    "verify_files",
]

logger = logging.getLogger(__name__)


class ParameterReader(Protocol):
    """Parameters by our names, whatever files they are in."""

    folder: Path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of each parameter."""

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Moments of the optimizer that there are."""

    def read_logical(self, name: str, kind: str = "fp32") -> Tensor:
        """One whole parameter or moment in its logical shape, float32."""


def open_reader(
    folder: Path, network: ModelShape | None, *, with_optimizer: bool = False
) -> CheckpointReader | NeoxReader:
    """A reader of the parameters of a checkpoint.

    Args:
        folder: A ``global_step<N>`` folder.
        network: The network of the run, which GPT-NeoX's files do not describe.
        with_optimizer: Whether moments and master weights of GPT-NeoX's files are wanted; ours
            always have them.

    Raises:
        CheckpointError: If the folder is damaged or incomplete, or of another program.
    """
    if network is not None and is_neox_checkpoint(folder):
        return NeoxReader(folder, network, with_optimizer=with_optimizer)
    return CheckpointReader(folder)


def verify_files(
    folder: Path, *, part: int = 0, num_parts: int = 1, reads_tensors: bool = True
) -> None:
    """Checks the files of a checkpoint as far as they allow; see `verification.verify`.

    GPT-NeoX writes no checksums: its files are opened, and their tensors are not read.

    Raises:
        CheckpointError: If a file is missing, cut, changed or wrong; names the first such file.
    """
    if is_neox_checkpoint(folder):
        NeoxFolder(folder).check(part=part, num_parts=num_parts)
    else:
        verify(folder, part=part, num_parts=num_parts, reads_tensors=reads_tensors)


def load_run_state(
    folder: Path, *, seq_length: int = 0
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the contents of ``state.json`` and ``mixture.json``.

    Args:
        folder: A ``global_step<N>`` folder. One of GPT-NeoX has no mixture.
        seq_length: Tokens per sample, to count those of a GPT-NeoX run.

    Raises:
        CheckpointError: If one of them cannot be read or is wrong; names the field.
    """
    if is_neox_checkpoint(folder):
        return neox_run_state(folder, seq_length=seq_length), None
    state, mixture = (read_content(folder, name) for name in RUN_FILES)
    return state, mixture


def saved_configuration(folder: Path) -> dict[str, Any] | None:
    """``resolved.json`` of a checkpoint, or of GPT-NeoX's the sections of the schedule; or None."""
    return neox_schedule(folder) if is_neox_checkpoint(folder) else read_resolved_config(folder)


def other_network_problem(network: ModelShape, folder: Path) -> str | None:
    """A message if a checkpoint's weights were trained in another network, otherwise None.

    Raises:
        CheckpointError: If the description of the network cannot be read.
    """
    if is_neox_checkpoint(folder):
        return network_of_args_problem(folder, network)
    return network_problem(network, folder)
