"""Gives a model its memory and its values: each rank allocates, draws and reads only what it keeps.

A model is built without memory. Here each parameter gets it, in the precision of the run and on the
device; under ZeRO 3 only the partition of this rank stays. Values that a checkpoint overwrites
later are neither drawn nor read here, since the engine copies them from its master weights.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from megatron.checkpoint.loading import SavedWeights
from megatron.model.init_functions import fill_range
from megatron.model.parameters import DTYPES, allocate, spec_of
from megatron.model.random_numbers import NumberStream
from megatron.mpu import Topology
from megatron.mpu.initialize import DeepSpeedMpu
from megatron.neox_arguments import RunConfig, deepspeed_config
from megatron.runtime import accelerator

__all__ = ["place_parameters"]

_KEEP_COPIES = ("zero_hpz_partition_size", "zero_quantized_nontrainable_weights")
"""Options of ZeRO 3 that copy or change partitions as they are made, so values must come before."""


def place_parameters(
    model: nn.Module,
    config: RunConfig,
    topology: Topology,
    mpu: DeepSpeedMpu,
    *,
    saved: SavedWeights | None,
    given: dict[str, Tensor],
) -> None:
    """Allocates the parameters of this rank, and fills those that nothing fills later.

    Args:
        model: A model without memory; which parameters are trained must be decided.
        config: The resolved configuration.
        topology: The grid of ranks, and this rank's place in it.
        mpu: The same for DeepSpeed.
        saved: The checkpoint from which `load_engine_state` will load; None: initial values.
        given: Values of parameters that are neither drawn nor read, in their logical shape.
    """
    # fp32 is torch's default, which tests of the arithmetic set to float64
    precision = config.precision.dtype
    dtype = torch.get_default_dtype() if precision == "fp32" else DTYPES[precision]
    device = accelerator.device()
    values = _Values(config, topology, saved, given)
    stage = config.layout.zero_stage
    if stage == 3:
        partition = _Partitioning(config, mpu, dtype)
        for name, parameter in model.named_parameters():
            partition.place(name, parameter, values)
        return
    for name, parameter in model.named_parameters():
        allocate(parameter, dtype=dtype, device=device)
        if stage == 0 or not values.are_loaded_later(name, parameter):
            values.fill(parameter.data.view(-1), name, parameter, offset=0)


class _Values:
    """Where the values of each parameter come from."""

    def __init__(
        self,
        config: RunConfig,
        topology: Topology,
        saved: SavedWeights | None,
        given: dict[str, Tensor],
    ):
        self._seed = config.launch.seed
        self._tp_rank = topology.model_rank
        self._saved = saved
        self._given = given

    def are_loaded_later(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether master weights of a checkpoint overwrite the parameter when an engine exists."""
        is_saved = self._saved is not None and name not in self._saved.absent
        return is_saved and parameter.requires_grad

    @torch.no_grad()
    def fill(self, flat: Tensor, name: str, parameter: nn.Parameter, *, offset: int) -> None:
        """Writes the elements from ``offset`` on of this rank's shard into ``flat``."""
        spec = spec_of(parameter)
        if name in self._given:
            flat.copy_(self._given[name].flatten()[offset : offset + flat.numel()])
        elif self._saved is not None and name not in self._saved.absent:
            self._saved.copy_into(flat, name, spec, offset=offset)
        else:
            numbers = NumberStream(self._seed, name)
            fill_range(flat, spec, numbers, tp_rank=self._tp_rank, offset=offset)


class _Partitioning:
    """ZeRO 3: keeps one partition of each parameter, and fills it without its neighbours.

    `deepspeed.zero.Init` would send all values of each parameter from the first rank to the others.
    """

    def __init__(self, config: RunConfig, mpu: DeepSpeedMpu, dtype: torch.dtype):
        self._initializer: Any = deepspeed.zero.Init(
            data_parallel_group=mpu.get_data_parallel_group(),
            dtype=dtype,
            config_dict_or_path=deepspeed_config(config),
            mpu=mpu,
        )
        self._dtype = dtype
        self._fills_whole = any(config.layout.zero_options.get(key) for key in _KEEP_COPIES)

    def place(self, name: str, parameter: Any, values: _Values) -> None:
        """Allocates a parameter, cuts it, and fills the partition of this rank."""
        allocate(parameter, dtype=self._dtype, device=self._initializer.local_device)
        if self._fills_whole:
            values.fill(parameter.data.view(-1), name, parameter, offset=0)
        self._initializer._convert_to_deepspeed_param(parameter)
        parameter.partition()
        if self._fills_whole or values.are_loaded_later(name, parameter):
            return
        own = parameter.ds_tensor.data.view(-1)
        offset = own.numel() * torch.distributed.get_rank(parameter.ds_process_group)
        kept = max(0, min(own.numel(), parameter.ds_numel - offset))  # the rest is padding
        values.fill(own[:kept], name, parameter, offset=offset)
