"""The place of each rank: one pure grid, and one frozen object with its process groups.

Axes, slowest first: pipeline stage, data, model (tensor). Ranks of a tensor group are neighbours,
since they communicate most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

__all__ = ["RankGrid", "Topology"]


@dataclass(frozen=True)
class RankGrid:
    """Arithmetic between a global rank and its place; needs no process group."""

    pipe: int
    """Number of pipeline stages."""
    data: int
    """Number of data-parallel replicas."""
    model: int
    """Number of ranks that share each weight matrix."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.pipe * self.data * self.model

    def place(self, rank: int) -> tuple[int, int, int]:
        """(stage, data rank, model rank) of a global rank."""
        rest, model = divmod(rank, self.model)
        pipe, data = divmod(rest, self.data)
        return pipe, data, model

    def rank(self, pipe: int, data: int, model: int) -> int:
        """Global rank at a place."""
        return (pipe * self.data + data) * self.model + model

    def model_groups(self) -> list[list[int]]:
        """Ranks that hold parts of the same matrices of the same stage and see the same samples."""
        return [
            [self.rank(p, d, m) for m in range(self.model)]
            for p in range(self.pipe)
            for d in range(self.data)
        ]

    def data_groups(self) -> list[list[int]]:
        """Ranks that hold the same parameters and see different samples."""
        return [
            [self.rank(p, d, m) for d in range(self.data)]
            for p in range(self.pipe)
            for m in range(self.model)
        ]

    def replica_groups(self) -> list[list[int]]:
        """Ranks that together hold one whole model: all stages, all parts of matrices."""
        return [
            [self.rank(p, d, m) for p in range(self.pipe) for m in range(self.model)]
            for d in range(self.data)
        ]


@dataclass(frozen=True)
class Topology:
    """This rank's place in the grid, and its groups."""

    grid: RankGrid
    rank: int
    model_group: Any
    """Tensor-parallel group; None when its size is 1."""
    data_group: Any
    """Data-parallel group."""
    replica_group: Any
    """One whole model; None when its size is 1."""

    @property
    def pipe_rank(self) -> int:
        """Pipeline stage of this rank."""
        return self.grid.place(self.rank)[0]

    @property
    def data_rank(self) -> int:
        """Number that decides which samples this rank sees."""
        return self.grid.place(self.rank)[1]

    @property
    def model_rank(self) -> int:
        """Number that decides which part of each matrix this rank holds."""
        return self.grid.place(self.rank)[2]

    @property
    def is_last_stage(self) -> bool:
        """Returns whether this rank computes the loss."""
        return self.pipe_rank == self.grid.pipe - 1

    @classmethod
    def create(cls, grid: RankGrid) -> Topology:
        """Makes the process groups; all ranks call it together.

        Raises:
            ValueError: If the grid does not have as many places as there are ranks.
        """
        if grid.size != dist.get_world_size():
            raise ValueError(
                f"topology: {grid.pipe} stages x {grid.data} replicas x {grid.model} parts need "
                f"{grid.size} ranks, there are {dist.get_world_size()}"
            )
        return cls(
            grid=grid,
            rank=dist.get_rank(),
            model_group=_my_group(grid.model_groups()),
            data_group=_my_group(grid.data_groups(), keep_single=True),
            replica_group=_my_group(grid.replica_groups()),
        )


def _my_group(groups: list[list[int]], *, keep_single: bool = False) -> Any:
    """Makes every group (a collective of all ranks) and returns the one this rank is in."""
    mine = None
    for ranks in groups:
        if len(ranks) == 1 and not keep_single:
            continue
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = group
    return mine
