"""From a configuration to this rank's topology, in the forms that our layers and DeepSpeed take."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from megatron.mpu.tensor_parallel import TensorParallel
from megatron.mpu.topology import RankGrid, Topology

__all__ = ["DeepSpeedMpu", "make_tensor_parallel", "make_topology"]


def make_topology(config: Any, *, for_training: bool = True) -> Topology:
    """Makes the process groups of a run; all ranks call it together.

    Args:
        config: The ``RunConfig``; reads the degrees of parallelism of ``layout``.
        for_training: False turns pipeline stages into replicas: inference needs an eighth of the
            memory, and has no micro-batches to fill a pipeline.
    """
    grid = RankGrid(
        pipe=config.layout.pipe_parallel_size,
        data=config.layout.data_parallel_size,
        model=config.layout.model_parallel_size,
    )
    if not for_training:
        grid = RankGrid(pipe=1, data=grid.data * grid.pipe, model=grid.model)
    return Topology.create(grid)


def make_tensor_parallel(topology: Topology, *, sequence_parallel: bool) -> TensorParallel:
    """What layers need from a topology."""
    size = topology.grid.model
    return TensorParallel(
        size=size,
        rank=topology.model_rank,
        group=topology.model_group,
        sequence_parallel=sequence_parallel and size > 1,
    )


class DeepSpeedMpu:
    """The interface under which DeepSpeed's plain engine looks for groups."""

    def __init__(self, topology: Topology):
        self._topology = topology

    def get_model_parallel_group(self) -> Any:
        """Ranks over which the gradient norm is summed beside the data-parallel ones."""
        group = self._topology.model_group
        return dist.new_group([self._topology.rank]) if group is None else group

    def get_model_parallel_world_size(self) -> int:
        """Size of the tensor-parallel group."""
        return self._topology.grid.model

    def get_model_parallel_rank(self) -> int:
        """Rank in the tensor-parallel group."""
        return self._topology.model_rank

    def get_data_parallel_group(self) -> Any:
        """Ranks that hold the same parameters."""
        return self._topology.data_group

    def get_data_parallel_world_size(self) -> int:
        """Number of data-parallel replicas."""
        return self._topology.grid.data

    def get_data_parallel_rank(self) -> int:
        """Rank in the data-parallel group."""
        return self._topology.data_rank

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of the data-parallel group."""
        grid = self._topology.grid
        place = (self._topology.pipe_rank, self._topology.model_rank)
        return [grid.rank(place[0], d, place[1]) for d in range(grid.data)]
