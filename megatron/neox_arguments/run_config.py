"""RunConfig: the validated, frozen configuration that the program works with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from .groups import (
    NeoXArgsDataSampling,
    NeoXArgsDeepspeedConfig,
    NeoXArgsDeepspeedRunner,
    NeoXArgsLogging,
    NeoXArgsLRScheduler,
    NeoXArgsModel,
    NeoXArgsOptimizer,
    NeoXArgsOther,
    NeoXArgsParallelism,
    NeoXArgsTextgen,
    NeoXArgsTokenizer,
    NeoXArgsTraining,
)
from .secrets import redacted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived:
    """Everything that follows from the fields; never None unless said."""

    world_size: int
    """Processes of the run."""

    data_parallel_size: int
    """Processes that see different samples."""

    model_parallel_size: int
    """Processes that share each weight matrix."""

    pipe_parallel_size: int
    """Pipeline stages, at least 1."""

    train_batch_size: int
    """Samples of one optimizer step over all processes: micro batch * accumulation * data-parallel
    size."""

    micro_batch_size: int
    """Samples of one forward pass of one process."""

    gradient_accumulation_steps: int
    """Micro-batches of one optimizer step of one process."""

    precision: str
    """fp32, fp16 or bfloat16."""

    fp16_options: Mapping[str, Any]
    """The loss scale as DeepSpeed takes it; empty unless the precision is fp16."""

    zero_stage: int
    """Effective ZeRO stage."""

    zero_options: Mapping[str, Any]
    """The ZeRO section as DeepSpeed takes it, with the effective stage."""

    seq_length: int
    """Tokens of a training sample."""

    head_dim: int
    """Width of an attention head."""

    num_kv_heads: int
    """Heads of keys and values."""

    rotary_dim: int
    """Rotated dimensions of a head; 0 without rotary positions."""

    mlp_inner_size: int
    """Inner width of the MLP; a gated MLP has two input projections of this width."""

    is_gated_mlp: bool
    """The activation multiplies two projections."""

    activation: str
    """Nonlinearity of the MLP, one spelling for each."""

    optimizer_type: str
    """adam (torch's fused AdamW) or sgd."""

    optimizer_options: Mapping[str, Any]
    """Settings of the optimizer beside those that have a name here: momentum, dampening, nesterov.
    """

    learning_rate: float
    """Peak learning rate."""

    adam_betas: tuple[float, float]
    """Decay of the two moments."""

    adam_eps: float
    """Added to the root of the second moment."""

    weight_decay: float
    """Decay of matrices and embeddings."""

    gradient_clipping: float
    """Largest global gradient norm; 0 clips nothing."""

    lr_decay_iters: int
    """Iterations of the learning-rate schedule."""

    warmup_iters: float
    """Iterations of warm-up, not rounded."""

    domains: tuple[str, ...]
    """Names of the training domains in order; empty for unnamed data."""

    valid_domains: tuple[str, ...]
    """Names of the validation datasets in order; empty for unnamed data."""

    test_domains: tuple[str, ...]
    """Names of the test datasets in order; empty for unnamed data."""

    train_paths: tuple[str, ...]
    """Prefixes of training data; those that `split` divides are in all three."""

    valid_paths: tuple[str, ...]
    """Prefixes of validation data; empty where there is none, as the next."""

    test_paths: tuple[str, ...]
    """Prefixes of test data."""

    train_weights: tuple[float, ...]
    """Weights of the training datasets, as given (they need not sum to 1)."""

    valid_weights: tuple[float, ...]
    """Weights of the validation datasets."""

    test_weights: tuple[float, ...]
    """Weights of the test datasets."""

    split: tuple[float, float, float] | None
    """Shares of each data set for training, validation and test, summing to 1; None when the three
    have their own paths."""

    named_eval_iters: int | None
    """`eval_iters` where it was written: it limits named held-out data too. None: it was not."""

    sampling_method: str
    """Mixing method; `static` keeps the initial weights."""

    mixing_run_length: int
    """Consecutive samples of the global batch that share a domain: 1, the micro-batch size or the
    whole batch."""

    min_weights: tuple[float, ...]
    """Smallest weight of each training domain; empty without such a limit."""

    max_weights: tuple[float, ...]
    """Largest weight of each training domain; empty without such a limit."""

    max_epochs: tuple[float | None, ...]
    """Largest number of passes over each training domain, None where it is not limited; empty
    without such a limit."""

    save_path: str | None
    """Checkpoint folder; None saves nothing."""

    load_path: str | None
    """Folder to load from; None loads nothing."""

    log_dir: str | None
    """Folder of the run log; None without `save` and `log_dir`: no log file is written."""

    train_iters: int
    """Optimizer steps of the run."""

    save_scale: str
    """linear or log."""

    save_factor: float | None
    """Distance or ratio of saved iterations; None saves only the extra ones and the last."""

    extra_save_steps: tuple[int, ...]
    """More iterations to save, sorted."""

    text_gen_type: str
    """unconditional, input-file or interactive."""

    notes: tuple[str, ...]
    """Messages for the user, to be logged once."""

    def is_save_step(self, step: int) -> bool:
        """Tells whether a checkpoint is due after iteration ``step`` (0: before training).

        The last iteration is always due. Linear: multiples of the factor. Log: 1 and the whole
        parts of the factor's powers.
        """
        if self.save_path is None:
            return False
        if step in self.extra_save_steps or (step == self.train_iters and step > 0):
            return True
        if self.save_factor is None or step < 1:
            return False
        if self.save_scale == "linear":
            return step % int(self.save_factor) == 0
        power = 1.0
        while power < step:
            power *= self.save_factor
            if int(power) == step:
                return True
        return step == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A validated configuration: the groups of fields, what follows from them, and the files they
    came from.
    """

    runner: NeoXArgsDeepspeedRunner
    deepspeed: NeoXArgsDeepspeedConfig
    parallelism: NeoXArgsParallelism
    model: NeoXArgsModel
    optimizer: NeoXArgsOptimizer
    lr_scheduler: NeoXArgsLRScheduler
    logging: NeoXArgsLogging
    other: NeoXArgsOther
    tokenizer: NeoXArgsTokenizer
    training: NeoXArgsTraining
    data_sampling: NeoXArgsDataSampling
    text_generation: NeoXArgsTextgen
    derived: Derived
    files: Mapping[str, str]
    """Texts of the configuration files by name, as given, but without secrets."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved configuration as plain data: one mapping for each group, and
        `derived`. It may be written anywhere: secrets are redacted.
        """
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name == "files":
                continue
            values = dataclasses.asdict(getattr(self, field.name))
            values.pop("config_files", None)
            result[field.name] = redacted({key: _plain(value) for key, value in values.items()})
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return copy.copy(value)
