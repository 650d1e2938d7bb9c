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
        for_training: False makes replicas of pipeline stages: a model that is only read needs an
            eighth of the memory, and has no micro-batches to fill a pipeline with.
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
    """What layers need of a topology."""
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


_current: list[Topology] = []
"""The topology of `initialize_model_parallel`, for code written against GPT-NeoX's getters."""


def initialize_model_parallel(
    model_parallel_size: int, topology: Any = None, fp32_allreduce: bool = False
) -> Topology:
    """Makes the groups under GPT-NeoX's name; all ranks call it together.

    The project itself hands a `Topology` from function to function and does not use this.

    Args:
        model_parallel_size: Size of a tensor-parallel group.
        topology: DeepSpeed's process topology, for its number of pipeline stages; None for one.
        fp32_allreduce: Taken for the old signature; sums are always in the tensor's own precision
            unless DeepSpeed's configuration says otherwise, and True is refused.

    Raises:
        ValueError: If the groups exist already, or the sizes do not divide the number of ranks.
    """
    if fp32_allreduce:
        raise ValueError("fp32_allreduce: set the configuration key fp32_allreduce instead")
    if _current:
        raise ValueError("model parallelism is initialized already; destroy_model_parallel first")
    pipe = 1 if topology is None else max(1, topology.get_dim("pipe"))
    data = dist.get_world_size() // (model_parallel_size * pipe)
    _current.append(Topology.create(RankGrid(pipe=pipe, data=data, model=model_parallel_size)))
    return _current[0]


def model_parallel_is_initialized() -> bool:
    """Whether `initialize_model_parallel` has run."""
    return bool(_current)


def destroy_model_parallel() -> None:
    """Forgets the groups; destroying them is left to the process group itself."""
    _current.clear()


def current_topology() -> Topology:
    """The topology of `initialize_model_parallel`.

    Raises:
        ValueError: If there is none.
    """
    if not _current:
        raise ValueError("call initialize_model_parallel first")
    return _current[0]
