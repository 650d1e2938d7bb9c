"""Processes and batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from ..bounds import MOST_PROCESSES
from ..declarations import Bound, Key, at_least

_IS_COUNT = Bound(
    f"1 to {MOST_PROCESSES}",
    lambda count: 0 <= count <= MOST_PROCESSES,  # 0 of old files is as not set
    "remove it to count processes",
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the run is cut over processes: data, tensor and pipeline parallelism, and ZeRO."""

    world_size: Annotated[int, Key("world_size", int | None), _IS_COUNT]
    """Processes of the whole run. Only a hint for a machine without GPUs; the launcher knows
    better."""

    data_parallel_size: int
    """Processes that see different samples."""

    model_parallel_size: Annotated[int, at_least(0)] = 1
    """Processes that share each weight matrix (tensor parallelism)."""

    pipe_parallel_size: Annotated[int, at_least(0)] = 0
    """Pipeline stages. 0 and 1 both mean no pipeline."""

    pipe_partition_method: str = "type:transformer|mlp"
    """How layers are dealt to stages: `parameters`, `uniform` or `type:REGEX` over class names."""

    sequence_parallel: bool = False
    """Cuts activations of norms along the sequence over the tensor-parallel processes. No effect
    when `model_parallel_size` is 1."""

    zero_stage: int
    """ZeRO stage of the run, 0 to 3."""

    zero_options: Mapping[str, Any]
    """The ZeRO section as DeepSpeed takes it, with the effective stage."""


class LayoutKeys:
    """Keys that decide fields of `Layout` together."""

    global_num_gpus: Annotated[int | None, _IS_COUNT] = None
    """Processes of the whole run, where neither a launcher nor a hostfile says it."""

    zero_optimization: dict[str, Any] | None = None
    """ZeRO: `{"stage": 0..3, ...}`. 0 copies everything, 1 cuts optimizer states, 2 also gradients,
    3 also weights."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of an optimizer step: train = micro * accumulation * data-parallel size."""

    train_batch_size: Annotated[int, Key("train_batch_size", int | None), at_least(1)]
    """Samples of one optimizer step over all processes. Any one or two of the three batch sizes
    give the rest."""

    micro_batch_size: Annotated[int, Key("train_micro_batch_size_per_gpu", int | None), at_least(1)]
    """Samples of one forward pass of one process."""

    gradient_accumulation_steps: Annotated[
        int, Key("gradient_accumulation_steps", int | None), at_least(1)
    ]
    """Micro-batches of one optimizer step of one process. Not set: computed, or 1."""
