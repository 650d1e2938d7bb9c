"""The DeepSpeed engine: batch sizes, precision, ZeRO and sections that are passed through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedConfig:
    """What GPT-NeoX puts into DeepSpeed's own configuration."""

    deepspeed: bool = True
    """Always true: the engine is DeepSpeed's."""

    train_batch_size: int | None = None
    """Samples of one optimizer step over all processes. Any one or two of the three batch sizes
    give the rest."""

    train_micro_batch_size_per_gpu: int | None = None
    """Samples of one forward pass of one process."""

    gradient_accumulation_steps: int | None = None
    """Micro-batches of one optimizer step of one process. Not set: computed, or 1."""

    optimizer: dict[str, Any] | None = None
    """`{"type": name, "params": {"lr", "betas", "eps", ...}}`. Adam, AdamW, cpu_adam and
    cpu_torch_adam are torch's fused AdamW; SGD is torch's, with `momentum`, `dampening` and
    `nesterov`."""

    fp32_allreduce: bool = False
    """Reduces gradients in float32. Not together with another `communication_data_type`."""

    prescale_gradients: bool = False
    """Divides gradients before they are reduced."""

    gradient_predivide_factor: float = 1.0
    """Divisor of `prescale_gradients`."""

    fp16: dict[str, Any] | None = None
    """`{"enabled": true, "loss_scale": 0, ...}`; loss_scale 0 adapts it. Also `type: bfloat16` of
    old files."""

    bf16: dict[str, Any] | None = None
    """`{"enabled": true}`: bfloat16 with float32 master weights."""

    gradient_clipping: float = 1.0
    """Largest global norm of the gradient. 0 clips nothing."""

    zero_optimization: dict[str, Any] | None = None
    """ZeRO: `{"stage": 0..3, ...}`. 0 copies everything, 1 cuts optimizer states, 2 also gradients,
    3 also weights."""

    wall_clock_breakdown: bool = False
    """DeepSpeed's timers."""

    flops_profiler: dict[str, Any] | None = None
    """DeepSpeed's profiler, passed through."""

    communication_data_type: str | None = None
    """Number format in which gradients are reduced: fp32, fp16 or bf16. Not set: that of the
    gradients."""

    tensorboard: dict[str, Any] | None = None
    """DeepSpeed's own TensorBoard monitor, passed through. See `tensorboard_dir` for ours."""

    wandb: dict[str, Any] | None = None
    """DeepSpeed's own Weights & Biases monitor, passed through. See `use_wandb` for ours."""

    csv_monitor: dict[str, Any] | None = None
    """DeepSpeed's own CSV monitor, passed through."""

    data_types: dict[str, Any] | None = None
    """`{"grad_accum_dtype": "fp32"}`: number format in which gradients are accumulated."""

    deepspeed_extra_args: dict[str, Any] | None = None
    """More keys for DeepSpeed's configuration, added as they are; only such as have no key of
    their own here. A secret, as `comet.api_key`, is better written `${COMET_API_KEY}`, which takes
    it from the environment; what a run writes never holds one."""
