"""Parallelism: the rank grid, its groups, and how a layer takes part in it."""

from megatron.mpu.initialize import (
    current_topology,
    destroy_model_parallel,
    initialize_model_parallel,
    model_parallel_is_initialized,
)
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.mpu.topology import RankGrid, Topology

__all__ = [
    "SINGLE",
    "RankGrid",
    "TensorParallel",
    "Topology",
    "current_topology",
    "destroy_model_parallel",
    "initialize_model_parallel",
    "model_parallel_is_initialized",
]
