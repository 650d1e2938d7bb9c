"""Finds and loads checkpoints of any layout; each rank reads what its part of the model needs."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.checkpoint.foreign import foreign_checkpoint_problem, is_neox_checkpoint
from megatron.checkpoint.format import (
    CheckpointReader,
    checkpoint_steps,
    latest_step,
    read_random_state,
    read_resolved_config,
    step_folder,
)
from megatron.checkpoint.fragments import load_fragments, prepare_moments
from megatron.checkpoint.index import parameter_info
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.opening import (
    ParameterReader,
    open_reader,
    other_network_problem,
    verify_files,
)
from megatron.errors import CheckpointError
from megatron.model.parameters import ParameterSpec, cut_shard, extremes, spec_of
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.mpu import Topology
from megatron.runtime import accelerator
from megatron.runtime.agreement import agree, problem_of
from megatron.sizing.model_shape import ModelShape

__all__ = [
    "find_checkpoint",
    "first_not_finite",
    "load_engine_state",
    "load_module_weights",
    "restore_random_state",
]

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def find_checkpoint(load: Path, iteration: int | None, say: Say) -> Path | None:
    """Finds the newest sound checkpoint below ``load``; all ranks call it and get the same answer.

    Args:
        load: Folder with ``latest`` and the ``global_step<N>`` folders.
        iteration: Step to load; None loads the checkpoint that ``latest`` names, or the newest
            sound one before it if that one is damaged or missing.
        say: Prints a message about each damaged checkpoint that is skipped.

    Returns:
        The folder, or None when there is no checkpoint at all.

    Raises:
        CheckpointError: If the checkpoint of ``iteration`` is missing or damaged, if all are
            damaged, or if ``load`` is a checkpoint that cannot be loaded.
    """
    shared: list[Any] = [_candidates(load, iteration) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    names, problem = shared[0]
    if problem and not names:
        raise CheckpointError(problem)
    if problem:
        say(problem)
    for name in names:
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
    return agree(problem_of(lambda: verify_files(folder, part=part, num_parts=num_parts)))


def load_module_weights(
    module: nn.Module,
    folder: Path,
    topology: Topology,
    *,
    on_other_network: Say | None = None,
    with_masters: bool = False,
    may_lack: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Fills a float32 module from a checkpoint, before the engine casts or partitions it.

    Args:
        module: A model, or this rank's part of one.
        folder: A ``global_step<N>`` folder.
        topology: The grid of ranks, and this rank's place in it.
        on_other_network: Called with a message if the weights were trained in another network of
            the same shapes; None makes that an error.
        with_masters: Whether to take the optimizer's master weights from a checkpoint of GPT-NeoX,
            if it has them, instead of the model's weights in half precision.
        may_lack: Parameters that keep their values if the checkpoint does not have them.

    Returns:
        Those of ``may_lack`` that the module has and the checkpoint lacks.

    Raises:
        CheckpointError: If names or shapes differ from the module's, or the network does.
    """
    network = _network_of(module)
    problem = None if network is None else other_network_problem(network, folder)
    if problem is not None and on_other_network is None:
        raise CheckpointError(problem)
    reader = open_reader(folder, network, with_optimizer=with_masters)
    wanted = {name: (p, spec_of(p)) for name, p in module.named_parameters()}
    absent = (may_lack & wanted.keys()) - reader.shapes.keys()
    wanted = {name: entry for name, entry in wanted.items() if name not in absent}
    if network is not None and topology.rank == 0:
        _warn_of_what_is_not_compared(reader, network)
    shapes = {name: spec.logical_shape for name, (_, spec) in wanted.items()}
    if misfit := _misfit(reader, shapes, holds_whole_model=topology.grid.pipe == 1):
        raise CheckpointError(problem or f"{folder}: {misfit}")
    if problem is not None and on_other_network is not None:
        on_other_network(problem)
    with torch.no_grad():
        for name, (parameter, spec) in wanted.items():
            length = math.prod(spec.shard_shape)
            values = _read_own(reader, spec, topology, name=name, offset=0, length=length)
            parameter.copy_(values.view(spec.shard_shape))
    return frozenset(absent)


def _network_of(module: nn.Module) -> ModelShape | None:
    network = getattr(module, "config", None)
    return network if isinstance(network, ModelShape) else None


def _warn_of_what_is_not_compared(reader: ParameterReader, network: ModelShape) -> None:
    if read_resolved_config(reader.folder) is None:
        logger.warning(
            "%s: has no configs/resolved.json, so only names and shapes were compared with "
            "this network",
            reader.folder,
        )
    if isinstance(reader, NeoxReader):
        rows, padding = reader.num_vocabulary_rows, network.make_vocab_size_divisible_by
        if rows - network.vocab_size >= padding * reader.num_parts:
            logger.warning(
                "%s: the word embedding has %d rows, the tokenizer %d tokens, which is more than "
                "padding; use the tokenizer that the model was trained with",
                reader.folder,
                rows,
                network.vocab_size,
            )


def _misfit(
    reader: ParameterReader, shapes: Mapping[str, tuple[int, ...]], *, holds_whole_model: bool
) -> str | None:
    """The first parameter that is unknown, missing or of another shape; None if all fit."""
    unknown = sorted(reader.shapes.keys() - shapes.keys())
    if SOFT_PROMPT_NAME in unknown and holds_whole_model:
        length = reader.shapes[SOFT_PROMPT_NAME][0]
        return f"has a soft prompt; set soft_prompt_tuning: {{num_tokens: {length}}}"
    if SOFT_PROMPT_NAME in shapes and SOFT_PROMPT_NAME not in reader.shapes:
        return "has no soft prompt; set finetune: true to begin one on this model"
    if unknown and holds_whole_model:
        return f"has {unknown[0]!r}, which this model lacks; the configuration differs"
    for name, shape in shapes.items():
        if name not in reader.shapes:
            return f"no parameter {name!r}; the checkpoint belongs to another model"
        saved = reader.shapes[name]
        if saved != shape and name.endswith("word_embeddings.weight") and saved[1:] == shape[1:]:
            return (
                f"the model has {saved[0]} tokens, the tokenizer of this run has {shape[0]}; use "
                "the tokenizer that the model was trained with (tokenizer_type, vocab_file)"
            )
        if saved != shape:
            return f"{name} has shape {saved}, this model needs {shape}; the configuration differs"
    return None


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
    folder: Path,
    topology: Topology,
    *,
    moment_names: tuple[str, ...] | None,
    applied_steps: int,
    absent: frozenset[str] = frozenset(),
    say: Say = lambda line: None,
) -> None:
    """Overwrites master weights and moments of this rank's part.

    The module must have been filled by `load_module_weights` before the engine was made. Without
    ZeRO the module's parameters are the master weights, which are not read again.

    Args:
        engine: DeepSpeed's engine, whose state is overwritten.
        folder: A ``global_step<N>`` folder.
        topology: The grid of ranks, and this rank's place in it.
        moment_names: Names of the optimizer's moments; None starts the optimizer from zero.
        applied_steps: Optimizer steps that the saved run had applied.
        absent: Parameters that the checkpoint lacks and that keep their values.
        say: Prints a message if moments of a GPT-NeoX checkpoint are wanted and cannot be read.

    Raises:
        CheckpointError: If optimizer steps were applied and the checkpoint has other moments.
    """
    wants_moments = moment_names is not None
    reader = open_reader(folder, _network_of(engine.module), with_optimizer=wants_moments)
    if wants_moments and isinstance(reader, NeoxReader) and reader.why_no_moments is not None:
        say(
            f"optimizer states are not read: {reader.why_no_moments}; the run starts with fresh "
            "ones"
        )
        moment_names = None
    if moment_names is None or (applied_steps == 0 and not reader.moment_names):
        moment_names = ()  # not wanted, or not existing before the first step
    elif set(moment_names) != set(reader.moment_names):
        raise CheckpointError(
            f"{folder}: has the moments {list(reader.moment_names)}, the optimizer needs "
            f"{list(moment_names)}; set no_load_optim to start the optimizer from zero"
        )
    if moment_names:
        prepare_moments(engine, moment_names, applied_steps)
    specs = {name: spec_of(p) for name, p in engine.module.named_parameters()}

    def read(name: str, kind: str, offset: int, length: int) -> Tensor:
        return _read_own(
            reader, specs[name], topology, name=name, kind=kind, offset=offset, length=length
        )

    load_fragments(
        engine,
        moment_names,
        read,
        with_weights=engine.zero_optimization_stage() != 0,
        kept=absent,
    )


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

    If the parameter was saved in the same shards, only these elements are read.
    """
    tp_rank, tp_size = topology.model_rank, topology.grid.model
    if spec.tp_dim is None:
        tp_rank, tp_size = 0, 1
    if isinstance(reader, NeoxReader):
        shard = reader.read_shard(name, spec, kind=kind, tp_rank=tp_rank, tp_size=tp_size)
        return shard.flatten()[offset : offset + length]
    saved = reader.info(name)
    shape = saved.shard_shape(tp_rank, tp_size)
    is_saved_so = saved == parameter_info(spec, tp_size) and (
        spec.tp_dim is None or reader.layout["tp"] == tp_size
    )
    # padding must follow the saved elements, which is so if rows are cut
    if not is_saved_so or shape[1:] != spec.shard_shape[1:]:
        shard = cut_shard(reader.read_logical(name, kind), spec, tp_rank)
        return shard.flatten()[offset : offset + length]
    kept = max(0, min(length, math.prod(shape) - offset))
    own = reader.read_shard_range(name, kind, tp_rank, offset, kept)
    return own if kept == length else torch.cat((own, own.new_zeros(length - kept)))


def restore_random_state(folder: Path, topology: Topology, say: Say | None) -> None:
    """Restores this rank's random state if the checkpoint has it and the layout is the same.

    ``say`` prints a message if the run's random numbers do not continue. It is None if the run
    needs no random numbers, for example without dropout.
    """
    if is_neox_checkpoint(folder):
        if say is not None:
            say(f"{folder}: random states of GPT-NeoX are not used: dropout's masks will differ")
        return
    path = folder / f"rng_{topology.rank:05d}.safetensors"
    grid = topology.grid
    layout = {"dp": grid.data, "tp": grid.model, "pp": grid.pipe}
    reader = CheckpointReader(folder)
    saved = reader.layout
    if saved == layout and path.name in reader.files:
        accelerator.set_rng_state(read_random_state(path))
        return
    reason = (
        "random states were not saved (no_save_rng)"
        if saved == layout
        else f"saved on {saved}, now {layout}"
    )
    if say is not None:
        say(f"{folder}: {reason}: dropout's masks will differ from those of the uninterrupted run")
