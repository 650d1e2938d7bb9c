"""Finds and loads checkpoints of any layout; each rank reads what its part of the model needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.checkpoint.fit import misfit_of, warn_of_what_is_not_compared
from megatron.checkpoint.foreign import foreign_checkpoint_problem, is_neox_checkpoint
from megatron.checkpoint.format import (
    CheckpointReader,
    checkpoint_steps,
    latest_step,
    step_folder,
)
from megatron.checkpoint.fragments import load_fragments, prepare_moments
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.opening import (
    open_reader,
    other_network_problem,
    verify_files,
)
from megatron.errors import CheckpointError, DamagedCheckpointError
from megatron.model.parameters import (
    ParameterSpec,
    allocate,
    blocks_of_shard,
    extremes,
    spec_of,
)
from megatron.mpu import Topology
from megatron.runtime import accelerator
from megatron.runtime.agreement import agree, from_first, problem_of
from megatron.sizing.model_shape import ModelShape

__all__ = [
    "SavedWeights",
    "find_checkpoint",
    "first_not_finite",
    "load_engine_state",
    "load_module_weights",
    "open_weights",
    "restore_random_state",
]

Say = Callable[[str], None]

_PIECE = 1 << 24
"""Elements that are read before they are copied to their place: 64 MiB."""


def find_checkpoint(
    load: Path, iteration: int | None, say: Say, *, damaged: frozenset[str] = frozenset()
) -> Path | None:
    """Finds the newest sound checkpoint below ``load``; all ranks call it and get the same answer.

    Args:
        load: Folder with ``latest`` and the ``global_step<N>`` folders.
        iteration: Step to load; None loads the checkpoint that ``latest`` names, or the newest
            sound one before it if that one is damaged or missing.
        say: Prints a message about each damaged checkpoint that is skipped.
        damaged: Names of folders that were found damaged while they were loaded: tensors are
            compared with their checksums only when they are read.

    Returns:
        The folder, or None when there is no checkpoint at all.

    Raises:
        CheckpointError: If the checkpoint of ``iteration`` is missing or damaged, if all are
            damaged, or if ``load`` is a checkpoint that cannot be loaded.
    """
    chosen = _candidates(load, iteration) if dist.get_rank() == 0 else ([], None)
    names, problem = from_first(chosen)
    if problem and not names:
        raise CheckpointError(problem)
    if problem:
        say(problem)
    for name in names:
        if name in damaged:
            continue
        problem = _verify_together(load / name)
        if problem is None:
            return load / name
        if iteration is not None:
            raise CheckpointError(problem)
        say(f"skipping a damaged checkpoint: {problem}")
    if names:
        raise CheckpointError(f"{load}: every checkpoint is damaged: {', '.join(names)}")
    return None


def _candidates(load: Path, iteration: int | None) -> tuple[list[str], str | None]:
    """Names of folders to try, in order, and a problem with the choice itself."""
    steps = checkpoint_steps(load) if load.is_dir() else []
    folders = [step_folder(load, step) for step in steps]
    if not any((path / "index.json").is_file() or is_neox_checkpoint(path) for path in folders):
        if problem := foreign_checkpoint_problem(load):
            return [], f"load: {problem}"
    if iteration is not None:
        if iteration in steps:
            return [step_folder(load, iteration).name], None
        found = ", ".join(map(str, steps)) or "none"
        return [], f"{load}: no checkpoint of iteration {iteration}; found: {found}"
    newest_first = [step_folder(load, step).name for step in reversed(steps)]
    latest = latest_step(load)
    if latest is None and newest_first and os.path.lexists(load / "latest"):
        return newest_first, (
            f"{load / 'latest'}: names no checkpoint; taking the newest sound one instead"
        )
    if latest is None or not steps:
        return newest_first, None
    # checkpoints after ``latest`` were left by a run that then went back to an earlier iteration
    earlier = [step_folder(load, step).name for step in reversed(steps) if step < latest]
    return [step_folder(load, latest).name, *earlier], None


def _verify_together(folder: Path) -> str | None:
    """Verifies a checkpoint on all ranks together; returns the first problem that one found."""
    part, num_parts = dist.get_rank(), dist.get_world_size()
    return agree(
        problem_of(
            lambda: verify_files(folder, part=part, num_parts=num_parts, reads_tensors=False)
        )
    )


@dataclass(frozen=True)
class SavedWeights:
    """A checkpoint whose parameters fit a model; reads what this rank has of them.

    If a rank finds that something is damaged, it continues with zeros, since others may wait for
    it. `raise_if_damaged` then raises the error on all of them.
    """

    reader: CheckpointReader | NeoxReader
    topology: Topology
    absent: frozenset[str]
    """Parameters of the model that the checkpoint lacks, as it may."""
    _problems: list[str] = field(default_factory=list)

    def copy_into(
        self, flat: Tensor, name: str, spec: ParameterSpec, *, offset: int, kind: str = "fp32"
    ) -> None:
        """Reads the elements of this rank's flat shard from ``offset`` on; padding becomes zero."""
        size = flat.numel() if isinstance(self.reader, NeoxReader) else _PIECE
        for first in range(0, flat.numel(), size or 1):
            place = flat[first : first + size]
            start, length = offset + first, place.numel()
            place.copy_(self.read(name, spec, offset=start, length=length, kind=kind))

    def read(
        self, name: str, spec: ParameterSpec, *, offset: int, length: int, kind: str = "fp32"
    ) -> Tensor:
        """Elements [offset, offset + length) of this rank's flat shard; padding is zero."""
        if not self._problems:
            try:
                return _read_own(
                    self.reader,
                    spec,
                    self.topology,
                    name=name,
                    offset=offset,
                    length=length,
                    kind=kind,
                )
            except CheckpointError as error:
                self._problems.append(str(error))
        return torch.zeros(length)

    def raise_if_damaged(self) -> None:
        """Raises the first problem that a rank has found; all ranks call it.

        Raises:
            DamagedCheckpointError: On every rank, if one of them could not read all that it needs.
        """
        problem = next(iter(self._problems), None)
        if dist.is_initialized():
            problem = agree(problem)
        if problem is not None:
            raise DamagedCheckpointError(problem)


def open_weights(
    module: nn.Module,
    folder: Path,
    topology: Topology,
    *,
    on_other_network: Say | None = None,
    with_masters: bool = False,
    may_lack: frozenset[str] = frozenset(),
) -> SavedWeights:
    """Opens a checkpoint for a model, whose parameters need no memory yet.

    Args:
        module: A model, or this rank's part of one.
        folder: A ``global_step<N>`` folder.
        topology: The grid of ranks, and this rank's place in it.
        on_other_network: Called with a message if the weights were trained in another network of
            the same shapes; None makes that an error.
        with_masters: Whether to take the optimizer's master weights from a checkpoint of GPT-NeoX,
            if it has them, instead of the model's weights in half precision.
        may_lack: Parameters that the checkpoint need not have.

    Raises:
        CheckpointError: If names or shapes differ from the module's, or the network does.
    """
    network = _network_of(module)
    problem = None if network is None else other_network_problem(network, folder)
    if problem is not None and on_other_network is None:
        raise CheckpointError(problem)
    reader = open_reader(folder, network, with_optimizer=with_masters)
    shapes = {name: spec_of(p).logical_shape for name, p in module.named_parameters()}
    absent = (may_lack & shapes.keys()) - reader.shapes.keys()
    shapes = {name: shape for name, shape in shapes.items() if name not in absent}
    if network is not None and topology.rank == 0:
        warn_of_what_is_not_compared(reader, network)
    if misfit := misfit_of(reader, shapes, holds_whole_model=topology.grid.pipe == 1):
        raise CheckpointError(problem or f"{folder}: {misfit}")
    if problem is not None and on_other_network is not None:
        on_other_network(problem)
    return SavedWeights(reader, topology, frozenset(absent))


def load_module_weights(
    module: nn.Module,
    folder: Path,
    topology: Topology,
    *,
    on_other_network: Say | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Fills a module from a checkpoint; allocates parameters that have no memory yet.

    Args:
        module: A model, or this rank's part of one.
        folder: A ``global_step<N>`` folder.
        topology: The grid of ranks, and this rank's place in it.
        on_other_network: As for `open_weights`.
        dtype: Precision of the parameters that are allocated.
        device: Where these are.

    Raises:
        CheckpointError: If names or shapes differ from the module's, or the network does.
        DamagedCheckpointError: On every rank, if one of them could not read all that it needs.
    """
    weights = open_weights(module, folder, topology, on_other_network=on_other_network)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            allocate(parameter, dtype=dtype, device=device)
            weights.copy_into(parameter.data.view(-1), name, spec_of(parameter), offset=0)
    weights.raise_if_damaged()


def _network_of(module: nn.Module) -> ModelShape | None:
    network = getattr(module, "config", None)
    return network if isinstance(network, ModelShape) else None


@torch.no_grad()
def first_not_finite(module: nn.Module) -> str | None:
    """Name of this rank's first parameter with a nan or an infinity; waits for the GPU once.

    Without this check nobody would notice: such a model generates text and scores, but at random.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.numel()}
    ends = torch.stack([extremes(p) for p in parameters.values()])
    for name, is_finite in zip(parameters, ends.isfinite().all(dim=1).tolist(), strict=True):
        if not is_finite:
            return name
    return None


def load_engine_state(
    engine,
    saved: SavedWeights,
    *,
    moment_names: tuple[str, ...] | None,
    applied_steps: int,
    say: Say = lambda line: None,
) -> None:
    """Overwrites master weights and moments of this rank's part.

    Without ZeRO the module's parameters are the master weights, which must have been filled before
    the engine was made, and are not read again.

    Args:
        engine: DeepSpeed's engine, whose state is overwritten.
        saved: The checkpoint. Parameters that it lacks keep their values.
        moment_names: Names of the optimizer's moments; None starts the optimizer from zero.
        applied_steps: Optimizer steps that the saved run had applied.
        say: Prints a message if moments of a GPT-NeoX checkpoint are wanted and cannot be read.

    Raises:
        CheckpointError: If optimizer steps were applied and the checkpoint has other moments.
        DamagedCheckpointError: On every rank, if one of them could not read all that it needs.
    """
    reader = saved.reader
    why_none = reader.why_no_moments if isinstance(reader, NeoxReader) else None
    if moment_names is not None and why_none is not None:
        say(f"optimizer states are not read: {why_none}; the run starts with fresh ones")
        moment_names = None
    if moment_names is None or (applied_steps == 0 and not reader.moment_names):
        moment_names = ()  # not wanted, or not existing before the first step
    elif set(moment_names) != set(reader.moment_names):
        raise CheckpointError(
            f"{reader.folder}: has the moments {list(reader.moment_names)}, the optimizer needs "
            f"{list(moment_names)}; set no_load_optim to start the optimizer from zero"
        )
    if moment_names:
        prepare_moments(engine, moment_names, applied_steps)
    specs = {name: spec_of(p) for name, p in engine.module.named_parameters()}

    def read(name: str, kind: str, offset: int, length: int) -> Tensor:
        return saved.read(name, specs[name], kind=kind, offset=offset, length=length)

    load_fragments(
        engine,
        moment_names,
        read,
        with_weights=engine.zero_optimization_stage() != 0,
        kept=saved.absent,
    )
    saved.raise_if_damaged()


def _read_own(
    reader: CheckpointReader | NeoxReader,
    spec: ParameterSpec,
    topology: Topology,
    *,
    name: str,
    offset: int,
    length: int,
    kind: str = "fp32",
) -> Tensor:
    """Elements [offset, offset + length) of this rank's flat shard; padding is zero.

    Only these elements are read, whatever the number of shards in which they were saved.
    """
    tp_rank, tp_size = topology.model_rank, topology.grid.model
    if spec.tp_dim is None:
        tp_rank, tp_size = 0, 1
    if isinstance(reader, NeoxReader):
        shard = reader.read_shard(name, spec, kind=kind, tp_rank=tp_rank, tp_size=tp_size)
        return shard.flatten()[offset : offset + length]
    values = torch.zeros(length)
    for block in blocks_of_shard(spec, tp_rank, offset=offset, length=length):
        part = block.source
        size = part.num_rows * block.width
        place = values[block.start : block.start + size].view(part.num_rows, block.width)
        reader.read_rectangle(name, kind, part, out=place[:, : part.num_columns])
    return values


def restore_random_state(folder: Path, topology: Topology, say: Say | None) -> None:
    """Restores this rank's random state if the checkpoint has it and the layout is the same.

    ``say`` prints a message if the run's random numbers do not continue. It is None if the run
    needs no random numbers, for example without dropout.
    """
    if is_neox_checkpoint(folder):
        if say is not None:
            say(f"{folder}: random states of GPT-NeoX are not used: dropout's masks will differ")
        return
    grid = topology.grid
    layout = {"dp": grid.data, "tp": grid.model, "pp": grid.pipe}
    reader = CheckpointReader(folder)
    saved = reader.layout
    if saved == layout and (state := reader.random_state(topology.rank)):
        accelerator.set_rng_state(state)
        return
    reason = (
        "random states were not saved (no_save_rng)"
        if saved == layout
        else f"saved on {saved}, now {layout}"
    )
    if say is not None:
        say(f"{folder}: {reason}: dropout's masks will differ from those of the uninterrupted run")
