"""Reads and writes a DeepSpeed engine's float32 master weights and optimizer moments by name.

All uses of DeepSpeed's private names are in this file. Each rank sees only the fragments of
flattened parameters that it owns. No function here communicates.

| ZeRO stage | where the float32 values live |
|---|---|
| 0 (fp32)   | the module's own parameters; each data-parallel rank owns a share of them |
| 1, 2       | ``parameter._hp_mapping``: a slice of the flat partition of this rank |
| 3          | ``parameter.ds_tensor``'s partition, addressed by the rank in its process group |

Parameters that are not trained have no float32 values of their own; those of the module are taken.
Below stage 3 every data-parallel rank has all of them, and owns a share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

__all__ = [
    "Fragment",
    "iterate_fragments",
    "load_fragments",
    "load_loss_scaler",
    "loss_scaler_state",
    "optimizer_tensors",
    "prepare_moments",
]

_MAX_WRITERS = 32
"""Data-parallel ranks that share what all of them have; whoever loads opens their files."""
_LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass
class Fragment:
    """A contiguous piece of a parameter, flattened in its shape on this tensor-parallel rank.

    ``values`` are views of the engine's own memory: clone before the next step changes them. Keys
    are ``fp32`` and the optimizer's moment names.
    """

    name: str
    parameter: Any
    """Name of the parameter that this is a piece of."""
    offset: int
    values: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.values["fp32"].numel()


def iterate_fragments(
    engine: deepspeed.DeepSpeedEngine,
    moment_names: tuple[str, ...],
    *,
    dp_rank: int,
    dp_size: int,
) -> Iterator[Fragment]:
    """Yields the fragments that this rank owns; all ranks together yield each element exactly once.

    Before the first optimizer step there are no moments, so they are left out.
    """
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        _link_moments(engine.optimizer)
    shares = _shares_of_replicated(engine.module, stage, dp_rank=dp_rank, dp_size=dp_size)
    for name, parameter in _named_parameters(engine.module):
        fragment: Fragment | None
        if name in shares:
            state = engine.optimizer.state.get(parameter, {}) if parameter.requires_grad else {}
            values = {"fp32": parameter, **{k: state[k] for k in moment_names if k in state}}
            fragment = _share_of(name, parameter, values, shares[name])
        elif not parameter.requires_grad:
            fragment = _frozen_fragment(name, parameter)
        elif stage == 3:
            fragment = _stage3_fragment(name, parameter, moment_names)
        else:
            fragment = _partition_fragment(name, parameter, moment_names)
        if fragment is not None and fragment.length:
            yield fragment


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, typed Any because DeepSpeed adds attributes that torch does not declare."""
    return iter(module.named_parameters())


def _shares_of_replicated(
    module: nn.Module, stage: int, *, dp_rank: int, dp_size: int
) -> dict[str, tuple[int, int]]:
    """Elements (first, end) that a rank owns of each parameter that all data-parallel ranks have.

    All these parameters, one after the other, are cut into equal parts, one per writer. So a writer
    has few parameters, and a parameter is in few files. The writers are spread over the machines.
    """
    sizes = {
        name: parameter.numel()
        for name, parameter in _named_parameters(module)
        if stage == 0 or (stage < 3 and not parameter.requires_grad)
    }
    num_writers, total = min(dp_size, _MAX_WRITERS), sum(sizes.values())
    writer = dp_rank * num_writers // dp_size
    is_writer = dp_rank == -(-writer * dp_size // num_writers)  # the first one with this number
    first, end = (total * (writer + bound) // num_writers for bound in (0, int(is_writer)))
    shares, position = {}, 0
    for name, size in sizes.items():
        low, high = (min(max(bound - position, 0), size) for bound in (first, end))
        shares[name] = (low, high)
        position += size
    return shares


def _share_of(
    name: str, parameter: Any, values: dict[str, Tensor], share: tuple[int, int]
) -> Fragment:
    first, end = share
    own = {key: value.detach().flatten()[first:end] for key, value in values.items()}
    if not parameter.requires_grad:
        own["fp32"] = own["fp32"].float()
    return Fragment(name, parameter, first, own)


def _stage3_fragment(name: str, parameter: Any, keys: tuple[str, ...]) -> Fragment:
    values = {"fp32": safe_get_local_fp32_param(parameter)}
    for key in keys:
        with contextlib.suppress(KeyError):  # raised by DeepSpeed before the first step
            values[key] = safe_get_local_optimizer_state(parameter, key)
    size = values["fp32"].numel()
    offset = size * torch.distributed.get_rank(parameter.ds_process_group)
    kept = max(0, min(size, parameter.ds_numel - offset))  # the last partition is padded
    return Fragment(
        name, parameter, offset, {key: value.flatten()[:kept] for key, value in values.items()}
    )


def _frozen_fragment(name: str, parameter: Any) -> Fragment:
    """ZeRO 3: a parameter that is not trained has no float32 copy, so its values are taken."""
    values = parameter.ds_tensor.detach().flatten().float()
    offset = values.numel() * torch.distributed.get_rank(parameter.ds_process_group)
    kept = max(0, min(values.numel(), parameter.ds_numel - offset))
    return Fragment(name, parameter, offset, {"fp32": values[:kept]})


def _partition_fragment(name: str, parameter: Any, keys: tuple[str, ...]) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # this rank owns no part of the parameter
        return None
    values = {"fp32": mapping.hp_fragment}
    state = mapping.optim_fragment or {}
    values.update({key: state[key] for key in keys if key in state})
    return Fragment(name, parameter, mapping.lp_fragment_address.start, values)


def _link_moments(optimizer) -> None:
    """Rebuilds DeepSpeed's views of the moments.

    DeepSpeed makes them after the step of the first parameter group, when other groups have no
    moments yet; with two groups most moments would be missing.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def optimizer_tensors(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The tensors that torch's optimizer updates: parameters, or flat partitions of many."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    base = engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer
    return [tensor for group in base.param_groups for tensor in group["params"]]


def prepare_moments(
    engine: deepspeed.DeepSpeedEngine, moment_names: tuple[str, ...], applied_steps: int
) -> None:
    """Creates the optimizer state that torch creates at the first step, so that it can be filled.

    Each tensor gets its own step counter; a shared one would advance several times per step.
    """
    stage = engine.zero_optimization_stage()
    base = engine.optimizer.optimizer if stage else engine.optimizer
    for tensor in optimizer_tensors(engine):
        state: dict[str, Tensor] = {key: torch.zeros_like(tensor) for key in moment_names}
        if isinstance(base, torch.optim.AdamW):
            state["step"] = torch.tensor(float(applied_steps), device=tensor.device)
        base.state[tensor] = state
    if stage in (1, 2):
        _link_moments(engine.optimizer)


@torch.no_grad()
def load_fragments(
    engine: deepspeed.DeepSpeedEngine,
    moment_names: tuple[str, ...],
    read,
    *,
    with_weights: bool = True,
    kept: frozenset[str] = frozenset(),
) -> None:
    """Overwrites the master weights and moments that this rank holds.

    Args:
        engine: DeepSpeed's engine; `prepare_moments` must have run if ``moment_names`` is not
            empty.
        moment_names: Moments to load; empty for the master weights alone.
        read: ``read(name, key, offset, length) -> Tensor``, flat float32 values in the shape of
            this tensor-parallel rank.
        with_weights: False keeps the present master weights; only for ZeRO 0.
        kept: Names of parameters that keep their present weights.
    """
    stage = engine.zero_optimization_stage()
    assert with_weights or stage == 0
    for name, parameter in _named_parameters(engine.module):
        if not parameter.requires_grad or name in kept:  # the module is right, and all there is
            continue
        if stage == 3:
            _load_stage3(name, parameter, moment_names, read)
        elif stage in (1, 2):
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            offset, length = mapping.lp_fragment_address.start, mapping.hp_fragment.numel()
            mapping.hp_fragment.copy_(read(name, "fp32", offset, length))
            for key in moment_names:
                mapping.optim_fragment[key].copy_(read(name, key, offset, length))
        else:
            count = parameter.numel()
            if with_weights:
                parameter.data.copy_(read(name, "fp32", 0, count).view_as(parameter))
            for key in moment_names:
                moment = engine.optimizer.state[parameter][key]
                moment.copy_(read(name, key, 0, count).view_as(parameter))
    if stage in (1, 2):
        engine.optimizer.update_lp_params()


def _load_stage3(name: str, parameter: Any, moment_names: tuple[str, ...], read) -> None:
    current = safe_get_local_fp32_param(parameter)
    size = current.numel()
    offset = size * torch.distributed.get_rank(parameter.ds_process_group)
    kept = max(0, min(size, parameter.ds_numel - offset))
    for key in ("fp32", *moment_names):
        values = torch.zeros_like(current).flatten()
        if kept:
            values[:kept].copy_(read(name, key, offset, kept))
        values = values.view_as(current)
        if key == "fp32":
            safe_set_local_fp32_param(parameter, values)
            parameter.ds_tensor.data.view(-1).copy_(values.flatten())
        else:
            safe_set_local_optimizer_state(parameter, values, key)


def loss_scaler_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """The numbers of the dynamic fp16 loss scale; empty in other precisions."""
    if not engine.fp16_enabled():
        return {}
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _LOSS_SCALER_FIELDS if hasattr(scaler, name)}


def load_loss_scaler(engine: deepspeed.DeepSpeedEngine, state: dict[str, float]) -> None:
    """Sets the loss scale to the numbers of `loss_scaler_state`."""
    if engine.fp16_enabled():
        for name, value in state.items():
            setattr(engine.optimizer.loss_scaler, name, value)
