"""Precision, optimizer and learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..declarations import ONLY_TRAINING, Key, above, at_least, in_range


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number formats of weights and gradients."""

    dtype: Annotated[
        Literal["fp32", "fp16", "bfloat16"],
        Key("precision", Literal["fp16", "fp32", "bfloat16"] | None),
    ]
    """Number format of training. Not set: read from the `fp16` and `bf16` sections, else fp32."""

    key: str
    """The key that asks for this number format, for messages."""

    fp16_options: Mapping[str, Any]
    """The loss scale as DeepSpeed takes it; empty unless the precision is fp16."""

    communication_data_type: Annotated[
        str | None,
        Key("communication_data_type", Literal["fp32", "fp16", "bf16", "bfp16"] | None),
    ]
    """Number format in which gradients are reduced: fp32, fp16 or bf16. Not set: that of the
    gradients."""

    prescale_gradients: bool = False
    """Divides gradients before they are reduced."""

    gradient_predivide_factor: Annotated[float, above(0), ONLY_TRAINING] = 1.0
    """Divisor of `prescale_gradients`."""

    data_types: dict[str, Any] | None = None
    """`{"grad_accum_dtype": "fp32"}`: number format in which gradients are accumulated."""


class PrecisionKeys:
    """Keys that decide fields of `Precision` together."""

    fp16: dict[str, Any] | None = None
    """`{"enabled": true, "loss_scale": 0, ...}`; loss_scale 0 adapts it. Also `type: bfloat16` of
    old files."""

    bf16: dict[str, Any] | None = None
    """`{"enabled": true}`: bfloat16 with float32 master weights."""

    fp32_allreduce: bool = False
    """Reduces gradients in float32. Not together with another `communication_data_type`."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer and its numbers."""

    type: Annotated[Literal["adam", "sgd", "lion"], Key("optimizer_type", str | None)]
    """Used when the `optimizer` section names no type: adam, sgd or lion. Not set: adam, that is
    torch's fused AdamW."""

    options: Mapping[str, Any]
    """Settings of the optimizer beside those that have a name here: momentum, dampening, nesterov.
    """

    learning_rate: Annotated[float, Key("lr", float | None), at_least(0)]
    """Peak learning rate when the `optimizer` section has none. Not set anywhere: 0.001."""

    betas: tuple[float, float]
    """Decay of the two moments."""

    eps: float
    """Added to the root of the second moment."""

    weight_decay: Annotated[float, at_least(0)] = 0.1
    """Decay of matrices and embeddings; biases and norms have none."""

    use_bnb_optimizer: bool = False
    """Keeps Adam's moments in 8 bits, with AdamW8bit of the package bitsandbytes, which must be
    installed and needs a GPU. Checkpoints do not have these moments: a continued run begins with
    new ones."""

    gradient_clipping: Annotated[float, at_least(0, "0 clips nothing")] = 1.0
    """Largest global norm of the gradient. 0 clips nothing."""


class OptimizerKeys:
    """Keys that decide fields of `Optimizer` together."""

    optimizer: dict[str, Any] | None = None
    """`{"type": name, "params": {"lr", "betas", "eps", ...}}`. Adam, AdamW, cpu_adam and
    cpu_torch_adam are torch's fused AdamW; SGD is torch's, with `momentum`, `dampening` and
    `nesterov`; Lion has one moment and wants about a tenth of Adam's learning rate."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of the run and the learning rate over it."""

    train_iters: Annotated[int, Key("train_iters", int | None), at_least(1)]
    """Optimizer steps of the run. Required, unless `train_epochs` is set."""

    train_epochs: Annotated[int | None, at_least(1)] = None
    """Length of the run in epochs, in place of `train_iters`. An epoch is as many samples as all
    training data sets have together; the weights decide how many each domain gives, and
    `train_data_weights: natural` reads every sample that often. The iterations that fit are counted
    before the start, from the indexes of the data."""

    decay_style: Annotated[
        Literal["constant", "linear", "cosine", "exponential", "inverse_sqrt", "wsd"],
        Key("lr_decay_style"),
    ] = "linear"
    """Shape of the decay after warm-up. `inverse_sqrt`: the rate falls with the root of the
    iteration, `lr` x sqrt(warm-up / iteration), so that it depends on `warmup` and hardly on the
    length of the schedule. `wsd` (warm-up, stable, decay) keeps the peak rate until the last
    `lr_wsd_decay_iters` of the schedule."""

    decay_iters: Annotated[int, Key("lr_decay_iters", int | None), at_least(1)]
    """Iterations of the whole schedule. Not set: `train_iters`."""

    wsd_decay_iters: Annotated[int | None, Key("lr_wsd_decay_iters"), at_least(1)] = None
    """Iterations of the decay of `lr_decay_style: wsd`, at the end of the schedule. `wsd` needs
    this or `lr_wsd_decay_fraction`."""

    wsd_decay_style: Annotated[
        Literal["exponential", "linear", "cosine", "minus_sqrt"], Key("lr_wsd_decay_style")
    ] = "exponential"
    """How `lr_decay_style: wsd` falls from `lr` to `min_lr`, with Megatron-LM's formulas."""

    warmup_iters: float
    """Iterations of warm-up, not rounded."""

    min_lr: Annotated[float, at_least(0)] = 0.0
    """The decay stops here."""

    override_lr_scheduler: bool = False
    """On resume, takes the schedule of the configuration without a word. By default it is taken
    too, with a warning where it is another than the checkpoint's."""

    use_checkpoint_lr_scheduler: bool = False
    """On resume, takes the schedule of the checkpoint (`lr`, `min_lr`, `warmup`, `lr_decay_style`
    and the length) and ignores the configuration's."""

    exit_interval: Annotated[int | None, at_least(1)] = None
    """Saves and ends the program at every multiple of this."""


class ScheduleKeys:
    """Keys that decide fields of `Schedule` together."""

    warmup: Annotated[float, in_range("[0, 1]")] = 0.01
    """Share of the schedule during which the rate grows linearly from 0, in [0, 1]."""

    lr_decay_fraction: Annotated[float | None, in_range("(0, 1]")] = None
    """`lr_decay_iters` as a share of `train_iters`, in (0, 1]. Set one of the two."""

    lr_wsd_decay_fraction: Annotated[float | None, in_range("(0, 1]")] = None
    """`lr_wsd_decay_iters` as a share of the schedule, in (0, 1]. Set one of the two."""
