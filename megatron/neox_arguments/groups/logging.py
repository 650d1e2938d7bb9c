"""What a run writes about itself, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NeoXArgsLogging:
    """The run log, TensorBoard, Weights & Biases, Comet and profiling."""

    log_dir: str | None = None
    """Folder of `metrics.jsonl`. Not set: `<save>/logs`; without `save` no log file is written."""

    log_interval: int = 100
    """Iterations from one logged iteration to the next."""

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

    wandb_init_all_ranks: bool = False
    """Opened a run on every process. A hint: metrics are reduced and rank 0 logs them."""

    use_comet: bool | None = None
    """Logs to Comet. Refused when true."""

    comet_workspace: str | None = None
    """Belongs to `use_comet`."""

    comet_project: str | None = None
    """Belongs to `use_comet`."""

    comet_experiment_name: str | None = None
    """Belongs to `use_comet`."""

    comet_tags: list[Any] | None = None
    """Belongs to `use_comet`."""

    comet_others: dict[str, Any] | None = None
    """Belongs to `use_comet`."""

    comet_experiment: Any = None
    """A running program's object in GPT-NeoX. Cannot be set in a file."""

    tensorboard_writer: Any = None
    """A running program's object in GPT-NeoX. Cannot be set in a file."""

    git_hash: str | None = None
    """Version of the code, for your own records: what is written here is kept in the resolved
    configuration. The program does not look for it."""

    log_grad_norm: bool = False
    """Logs the norm of every parameter's gradient."""

    log_grad_pct_zeros: bool = False
    """Logs the share of zeros in every parameter's gradient."""

    log_param_norm: bool = False
    """Logs the norm of every parameter."""

    log_optimizer_states: bool = False
    """Logs the norms of the optimizer's moments."""

    log_gradient_noise_scale: bool = False
    """Logs the gradient noise scale. Refused."""

    gradient_noise_scale_n_batches: int = 5
    """Belongs to `log_gradient_noise_scale`."""

    gradient_noise_scale_cpu_offload: bool = False
    """Belongs to `log_gradient_noise_scale`."""

    memory_profiling: bool = False
    """Records a memory snapshot of the GPU."""

    memory_profiling_path: str | None = None
    """File of the memory snapshot."""

    profile: bool = False
    """Profiles the iterations from `profile_step_start` to `profile_step_stop`."""

    profile_step_start: int = 10
    """First profiled iteration."""

    profile_step_stop: int = 12
    """First iteration that is no longer profiled."""

    peak_theoretical_tflops: float | None = None
    """Peak TFLOPS of one device, to log the share of it that is reached. Not set: known devices
    only."""
