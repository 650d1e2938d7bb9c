"""One measurement of `gpu_session`, in a process of its own: what it prints last is a line of JSON.

python -m tools.benchmark.gpu_sides '{"side": "ours", "shape": [12, 768, 12], "job": {...}}'
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmark.step_throughput import Job, Shape, our_run, settings_of, step_of, their_step
from tools.benchmark.turns import seconds_of

__all__ = ["measure"]

NUM_DOMAINS = 22


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Runs what ``task`` describes.

    Args:
        task: ``side`` (ours or theirs), ``shape`` (layers, width, heads), ``job`` (fields of
            `Job`), ``steps`` and ``warmup``, and ``extras``: whether to measure a checkpoint and
            the cost of mixing too.
    """
    from megatron.runtime import accelerator

    device = "cpu" if task["job"]["device"] == "cpu" else accelerator.name()
    shape, job = Shape(*task["shape"]), Job(**{**task["job"], "device": device})
    with tempfile.TemporaryDirectory() as name:
        if task["side"] == "theirs":
            return _timed(their_step(shape, job), task, job, shape)
        return _measure_ours(task, shape, job, Path(name))


def _measure_ours(task: dict[str, Any], shape: Shape, job: Job, folder: Path) -> dict[str, Any]:
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron, shutdown

    values = {**settings_of(shape, job), "train_iters": 1}
    initialize_megatron(resolve(NeoXArgs.from_dict(values), world_size=1), handle_signals=False)
    try:
        run = our_run(shape, folder, job)
        found = _timed(step_of(run), task, job, shape)
        if task.get("extras"):
            found["checkpoint"] = _checkpoint(run, folder)
            found["mixing_seconds"] = _mixing_seconds(run)
    finally:
        shutdown()
    return found


def _timed(
    step: Callable[[], None], task: dict[str, Any], job: Job, shape: Shape
) -> dict[str, Any]:
    """Seconds of a step with all that it started on the device, and the peak of the memory."""
    import torch

    is_gpu = job.device != "cpu"

    def whole_step() -> None:
        step()
        if is_gpu:
            torch.accelerator.synchronize()

    first = seconds_of(whole_step)
    for _ in range(task["warmup"]):
        whole_step()
    median = statistics.median(seconds_of(whole_step) for _ in range(task["steps"]))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "first_step_seconds": first,
        "step_seconds": median,
        "tokens_per_second": job.tokens / median,
        "peak_memory_bytes": torch.accelerator.max_memory_allocated() if is_gpu else rss,
        "flops_per_token": _flops_per_token(shape, job),
    }


def _flops_per_token(shape: Shape, job: Job) -> float:
    """The model's operations, the same for every side: causal attention counts half."""
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.sizing.flops import model_flops_per_token

    values = {**settings_of(shape, job), "train_iters": 1}
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    return model_flops_per_token(config, vocab_size=job.vocab_size)


def _checkpoint(run: Any, folder: Path) -> dict[str, float]:
    """Seconds and bytes of one checkpoint with moments, flushed to the disk of this machine."""
    from megatron.checkpointing import CheckpointContents, CheckpointSaver
    from megatron.engine.optimizers import moment_names

    save = folder / "save"
    save.mkdir()
    saver = CheckpointSaver(save, run.runner.topology, moment_names=moment_names(run.config))
    contents = CheckpointContents(
        state=run.state,
        mixture=run.mixture.state_dict(),
        config_files={},
        resolved_config=run.config.to_dict(),
        extra={"loss_scaler": run.runner.loss_scaler_state()},
    )
    seconds = seconds_of(lambda: saver.save(run.runner.engine, contents))
    size = sum(file.stat().st_size for file in save.rglob("*") if file.is_file())
    return {"seconds": seconds, "nbytes": size}


def _mixing_seconds(run: Any) -> float:
    """What plan, reduction of the sums, update and log take on the host, without the model."""
    from tools.benchmark.mixing_overhead import measure as measure_mixing

    return measure_mixing(run, NUM_DOMAINS, iterations=100, with_model=False).judged


def main() -> None:
    """Measures what the only argument describes."""
    from megatron.runtime import accelerator

    accelerator.prepare_environment()
    print("\n" + json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
