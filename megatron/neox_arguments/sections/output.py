"""What a run writes: checkpoints and logs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..declarations import Key, above, at_least, each


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Checkpoints: where they are, when they are written, what is loaded."""

    save_path: Annotated[str | None, Key("save", str | None)]
    """Folder for checkpoints. Needs `checkpoint_factor` or `extra_save_iters`. An address such as
    `s3://bucket/run` is that of `save_copy`; the folder is then one below `checkpoints`."""

    save_copy: Annotated[str | None, Key("save_copy", str | None)]
    """Address to which each checkpoint is copied in the background after it was saved, as fsspec
    takes it (`s3://bucket/run`). `{save}` in it is the last part of `save`."""

    load_path: Annotated[str | None, Key("load", str | None)]
    """Folder to load a checkpoint from. An empty one means a fresh start only when it is `save`
    itself. From an address, the checkpoint is first copied to this machine."""

    load_copy: str | None
    """Address from which `load_path` is filled."""

    iteration: int | None = None
    """Checkpoint to load, by its iteration. Not set: the latest."""

    scale: Annotated[Literal["linear", "log"], Key("checkpoint_scale")] = "linear"
    """`linear` saves every `checkpoint_factor` iterations; `log` at its powers."""

    factor: Annotated[float | None, Key("checkpoint_factor", int | float | None)]
    """Distance between checkpoints, or the ratio of their iterations with `log` (then above 1, and
    1 is saved too)."""

    extra_steps: Annotated[
        tuple[int, ...],
        Key("extra_save_iters", list[int] | None),
        each("at least 0", lambda step: step >= 0),
    ]
    """More iterations to save. 0 saves the model before training. Never deleted by
    `keep_last_n_checkpoints`."""

    keep_last_n_checkpoints: Annotated[int | None, at_least(1)] = None
    """Deletes older checkpoints. Not set: keeps all."""

    async_save: bool = False
    """Copies weights and optimizer to memory and writes the checkpoint while training continues.
    False: training waits until the files are on disk."""

    no_save_optim: bool = False
    """Leaves the optimizer out of checkpoints. Training cannot continue exactly from them."""

    no_save_rng: bool = False
    """Leaves random states out of checkpoints."""

    no_load_optim: bool = False
    """Loads weights without the optimizer."""

    no_load_rng: bool = False
    """Keeps the random states of the start."""

    finetune: bool = False
    """Loads weights alone and starts at iteration 0."""

    def is_save_step(self, step: int, *, last_step: int) -> bool:
        """Tells whether a checkpoint is due after iteration ``step`` (0: before training).

        The last iteration is always due. Linear: multiples of the factor. Log: 1 and the whole
        parts of the factor's powers.
        """
        if self.save_path is None:
            return False
        if step in self.extra_steps or (step == last_step and step > 0):
            return True
        if self.factor is None or step < 1:
            return False
        if self.scale == "linear":
            return step % int(self.factor) == 0
        power = 1.0
        while power < step:
            power *= self.factor
            if int(power) == step:
                return True
        return step == 1


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What a run writes about itself, and where."""

    log_dir: str | None = None
    """Folder of `metrics.jsonl`. Not set: `<save>/logs`; without `save` no log file is written."""

    interval: Annotated[int, Key("log_interval"), at_least(1)] = 100
    """Iterations from one logged iteration to the next."""

    log_grad_norm: bool = False
    """Logs the norm of every parameter's gradient before clipping, as `gradient_norms/<parameter>`,
    with the logged iterations."""

    log_param_norm: bool = False
    """Logs the norm of every parameter, as `parameter_norms/<parameter>`, with the logged
    iterations."""

    log_grad_pct_zeros: bool = False
    """Logs the percentage of zeros in every parameter's gradient, as
    `pct_grad_zeros/<parameter>`, with the logged iterations."""

    log_optimizer_states: bool = False
    """Logs the norms of the optimizer's moments, as `optimizer_state_norms/<parameter>_<moment>`,
    with the logged iterations."""

    log_gradient_noise_scale: bool = False
    """Logs the gradient noise scale in samples, as `train/noise_scale`: batches much smaller than
    it are mostly noise, much larger ones hardly help. Needs memory for one more copy of the
    gradients in float32."""

    gradient_noise_scale_n_batches: Annotated[int, at_least(2)] = 5
    """Iterations that `log_gradient_noise_scale` compares with a single one. It assumes that the
    weights hardly change meanwhile."""

    gradient_noise_scale_cpu_offload: bool = False
    """Keeps the copy of the gradients of `log_gradient_noise_scale` in the CPU's memory."""

    tensorboard_dir: str | None = None
    """Folder of TensorBoard's event files. Not set: none."""

    use_wandb: bool | None = None
    """Logs to Weights & Biases. Not set: yes when a key is found, else no."""

    wandb_group: str | None = None
    """Groups runs in Weights & Biases."""

    wandb_run_name: str | None = None
    """Name of the run in Weights & Biases."""

    wandb_team: str | None = None
    """Team that owns the run in Weights & Biases."""

    wandb_project: str = "neox"
    """Project of the run in Weights & Biases."""

    wandb_host: str = "https://api.wandb.ai"
    """Server of Weights & Biases."""

    git_hash: str | None = None
    """Version of the code, for your own records: what is written here is kept in the resolved
    configuration. The program does not look for it."""

    peak_theoretical_tflops: Annotated[float | None, above(0)] = None
    """Peak of one device in 10^12 operations per second, of which the log reports the share that is
    used (MFU). Not set: that of the GPU, if it is in the table of `megatron/sizing/gpus.py`; on
    CPUs no share is logged."""

    profile: bool = False
    """Profiles the iterations `profile_step_start` to `profile_step_stop` on rank 0 with torch's
    profiler. Their trace is written to `profile/` in `tensorboard_dir`, or in `log_dir`, for
    `chrome://tracing` or Perfetto."""

    profile_step_start: Annotated[int, at_least(1)] = 10
    """First iteration that `profile` and `memory_profiling` see."""

    profile_step_stop: Annotated[int, at_least(1)] = 12
    """Last iteration that `profile` and `memory_profiling` see."""

    memory_profiling: bool = False
    """Records the allocations of the same iterations on rank 0, for pytorch.org/memory_viz. Only on
    GPUs."""

    memory_profiling_path: str | None = None
    """Folder of the snapshot of `memory_profiling`. Not set: where the trace of `profile` is."""

    wall_clock_breakdown: bool = False
    """DeepSpeed's timers."""

    flops_profiler: dict[str, Any] | None = None
    """DeepSpeed's profiler, passed through."""

    tensorboard: dict[str, Any] | None = None
    """DeepSpeed's own TensorBoard monitor, passed through. See `tensorboard_dir` for ours."""

    wandb: dict[str, Any] | None = None
    """DeepSpeed's own Weights & Biases monitor, passed through. See `use_wandb` for ours."""

    csv_monitor: dict[str, Any] | None = None
    """DeepSpeed's own CSV monitor, passed through."""

    def is_beside_checkpoints(self, save_path: str | None) -> bool:
        """Tells whether the run log is in its default place, beside the checkpoints."""
        return save_path is not None and self.log_dir == str(Path(save_path) / "logs")
