"""What a run writes about itself, and where."""

from __future__ import annotations

from dataclasses import dataclass


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

    git_hash: str | None = None
    """Version of the code, for your own records: what is written here is kept in the resolved
    configuration. The program does not look for it."""
