"""Parallelism: the rank grid, its groups, and how a layer takes part in it."""

from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.mpu.topology import RankGrid, Topology

__all__ = ["SINGLE", "RankGrid", "TensorParallel", "Topology"]
