"""How a model is cut over processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeoXArgsParallelism:
    """Degrees of pipeline, tensor and data parallelism."""

    pipe_parallel_size: int = 0
    """Pipeline stages. 0 and 1 both mean no pipeline."""

    model_parallel_size: int = 1
    """Processes that share each weight matrix (tensor parallelism)."""

    pipe_partition_method: str = "type:transformer|mlp"
    """How layers are dealt to stages: `parameters`, `uniform` or `type:REGEX` over class names."""

    world_size: int | None = None
    """Processes of the whole run. Only a hint for a machine without GPUs; the launcher knows
    better."""

    sequence_parallel: bool = False
    """Cuts activations of norms along the sequence over the tensor-parallel processes. No effect
    when `model_parallel_size` is 1."""
