"""Training with online data mixing, from the configuration to the last checkpoint.

Read `train` first: it is the only loop. The weights of the domains decide the plan of a step, the
step yields one loss per domain, and these losses decide the weights of the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from megatron.checkpoint.copies import fetch_checkpoint
from megatron.checkpoint.lock import lock_save_folder
from megatron.checkpointing import undo_interrupted_replacement
from megatron.data.data_utils import SplitName, build_evaluation_source, build_train_source
from megatron.data.evaluation_batches import EvaluationBatches
from megatron.data.mixed_batches import MixedBatches
from megatron.engine.build import LoadedRun, build_runner
from megatron.engine.continuing import refuse_to_replace, restore_mixture
from megatron.engine.learning_rates import continued_schedule
from megatron.engine.optimizers import moment_names
from megatron.engine.runners import StepResult, StepRunner
from megatron.engine.state import TrainState
from megatron.eval_tasks.in_training import TaskEvaluationHook, tasks_of_training
from megatron.evaluation.held_out import Measure, build_held_out_meter, measure_nothing
from megatron.hooks.base import Hook, StepReport
from megatron.hooks.checkpoint import CheckpointHook
from megatron.hooks.evaluation import EvaluationHook
from megatron.hooks.logging import LoggingHook
from megatron.hooks.measured import evaluation_settings, measured_at
from megatron.hooks.periodic import is_due
from megatron.hooks.profile import profile_hooks
from megatron.hooks.statistics import statistics_hooks
from megatron.hooks.timeouts import TimeoutHook
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.reporting.announcement import announce
from megatron.reporting.run_logger import RunLogger
from megatron.runtime import accelerator
from megatron.runtime.initialize import stop_requested
from megatron.sizing.flops import model_flops_per_token
from megatron.sizing.gpus import peak_flops
from megatron.tokenizer import AbstractTokenizer, build_tokenizer
from odm import MixtureController, Signal

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict

__all__ = ["pretrain", "train"]

MAX_CONSECUTIVE_SKIPS = 50
EVALUATION_SPLITS: tuple[SplitName, SplitName] = ("valid", "test")


def train(
    runner: StepRunner,
    source: MixedBatches,
    mixture: MixtureController,
    hooks: Sequence[Hook],
    state: TrainState,
    *,
    last_step: int,
    learning_rate_of: Callable[[int], float],
    measure: Measure = measure_nothing,
    run_length: int = 1,
    exit_interval: int | None = None,
) -> TrainState:
    """Runs optimizer steps until ``last_step``; the only training loop of the project.

    Args:
        runner: Runs an optimizer step on the engine.
        source: Turns a plan into this rank's micro-batches.
        mixture: Has the weights of the domains and plans the batches.
        hooks: Called at the start and before and after each step, in this order, on every rank.
        state: Counters of the run, advanced in place.
        last_step: Iteration after which to stop.
        learning_rate_of: Learning rate as a function of the applied optimizer steps.
        measure: Measures the held-out losses that the mixture learns from, when it is time.
        run_length: Consecutive samples of a plan that share a domain.
        exit_interval: Stop after each iteration that is a multiple of this; its hooks run first.

    Raises:
        FloatingPointError: On every rank, if training diverged; see `require_finite` and `advance`.
    """
    clock = start(hooks, state)
    while state.step < last_step and not state.stop:
        state.step, began = state.step + 1, before_step(hooks, state.step + 1)
        draw = mixture.draw(state.step, source.global_batch_size, run_length)  # the plan
        runner.set_learning_rate(learning_rate := learning_rate_of(state.applied_steps))
        result = runner.train_step(source.batches(draw))
        signal, lm_loss, grad_norm, state.stop = reduce_step(result, mixture)  # one all-reduce
        clock, before = time.perf_counter(), clock
        report = StepReport(
            draw=draw,
            weights=mixture.weights,  # from the losses of earlier steps
            signal=signal,
            lm_loss=lm_loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            loss_scale=runner.loss_scale,
            skipped=result.skipped,
            seconds=clock - before,
            step_seconds=clock - began,
        )
        require_finite(state, report, mixture, is_last=state.step == last_step)
        held_out = measure(runner, state.step, report.step_seconds)
        mixture.observe(state.step, signal, held_out=held_out)  # decides the next step's weights
        advance(state, report, tokens=source.global_batch_size * source.seq_length)
        for hook in hooks:
            hook.after_step(state, report)
        if exit_interval and state.step % exit_interval == 0 and state.step < last_step:
            state.stop = True  # after the hooks, which skip what takes long once state.stop is set
    return state


def start(hooks: Sequence[Hook], state: TrainState) -> float:
    """Tells the hooks from where the run begins; returns the time after that, in seconds."""
    for hook in hooks:
        hook.at_start(state)
    return time.perf_counter()


def before_step(hooks: Sequence[Hook], step: int) -> float:
    """Tells the hooks which iteration is next; returns the time at which it begins, in seconds."""
    for hook in hooks:
        hook.before_step(step)
    return time.perf_counter()


def reduce_step(
    result: StepResult, mixture: MixtureController
) -> tuple[Signal, float, float | None, bool]:
    """Sums a step's losses over all ranks, and reads the result: the only wait for the device.

    Returns the per-domain signal, the mean loss over all tokens of the global batch that count, the
    gradient norm, and whether to stop.

    A request to stop (some rank got SIGTERM) is sent in the same vector, so that all ranks leave
    the loop after the same step. So is a fingerprint of the mixture, which must be the same on
    every rank.

    Raises:
        RuntimeError: On every rank, if weights or cursors differ between ranks.
    """
    fingerprint, norm = mixture.fingerprint(), result.grad_norm
    sums, (num_stopping, fingerprints, *read) = result.sums.all_reduce(
        stop_requested(), fingerprint, same=[norm] if isinstance(norm, Tensor) else []
    )
    grad_norm = float(read[0]) if read else None if norm is None else float(norm)
    if fingerprints != fingerprint * dist.get_world_size():
        raise RuntimeError(
            f"rank {dist.get_rank()}: weights or cursors of the mixture differ between ranks; "
            "the checkpoints before this step are sound: continue from the newest one"
        )
    signal, _ = sums.signal().drop_nonfinite()
    return signal, sums.mean_loss(), grad_norm, bool(num_stopping)


def require_finite(
    state: TrainState, report: StepReport, mixture: MixtureController, *, is_last: bool
) -> None:
    """Ends a run whose loss or gradients are not finite, before a hook can save its weights.

    A step that the optimizer skipped does not end the run, unless it is the last step.

    Args:
        state: Counters of the run; ``sound_step`` is updated if the loss is finite.
        report: Report of the step. A gradient norm that is not finite is nan, infinite, or -1 if
            DeepSpeed computes it.
        mixture: Has the names of the domains.
        is_last: Whether this is the last step of the run.

    Raises:
        FloatingPointError: On every rank.
    """
    is_finite = math.isfinite(report.lm_loss)
    if is_finite:
        state.sound_step = state.step - 1  # the loss is that of the weights after that step
    if report.skipped and (is_finite or not is_last):
        return
    if not is_finite:
        drawn = np.unique(report.draw.domains)
        names = [mixture.domains[k] for k in drawn if report.signal.token_count[k] == 0]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        what = f"the loss is {report.lm_loss} (domains: {', '.join(names[:5])}{more})"
    elif report.grad_norm is not None and not 0.0 <= report.grad_norm < math.inf:
        what = f"the loss is {report.lm_loss:.4g}, but its gradients are not finite"
    else:
        return
    raise FloatingPointError(f"iteration {state.step}: {what}: training diverged; {_remedy(state)}")


def _remedy(state: TrainState) -> str:
    """What to do after a run has diverged."""
    changes = "with a lower learning rate, gradient_clipping or another seed"
    if state.sound_step is None:
        return (
            "no loss since this program started was finite: start again, or from an older "
            f"checkpoint (iteration: N), {changes}"
        )
    if state.sound_step == 0:
        return f"start again {changes}"
    return (
        f"checkpoints up to iteration {state.sound_step} are sound: continue from one of them "
        f"(iteration: N) {changes}"
    )


def advance(state: TrainState, report: StepReport, *, tokens: int) -> None:
    """Counts a finished step.

    Raises:
        FloatingPointError: If overflows made the optimizer skip too many steps in a row.
    """
    state.consumed_samples += len(report.draw.domains)
    state.consumed_tokens += tokens
    state.applied_steps += not report.skipped
    state.consecutive_skips = state.consecutive_skips + 1 if report.skipped else 0
    if state.consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
        raise FloatingPointError(
            f"iteration {state.step}: the gradients of {MAX_CONSECUTIVE_SKIPS} steps in a row were "
            "not finite, and no weight has changed since; if precision is fp16, use bf16; "
            f"{_remedy(state)}"
        )


def pretrain(config: RunConfig) -> TrainState:
    """Runs a whole training job: data, model, engine, loop, final evaluation and checkpoint.

    Needs the process group of `initialize_megatron`. All ranks call it.

    Returns:
        The counters at the end; ``stop`` is true if the run was asked to stop early.
    """
    if not accelerator.supports(config.precision.dtype):
        raise ConfigError(
            f"precision: no {config.precision.dtype} on this device; use bfloat16 or fp32"
        )
    lock = None  # held until this function returns: one run at a time in a save folder
    if dist.get_rank() == 0 and config.saving.save_path is not None:
        lock = lock_save_folder(Path(config.saving.save_path))
        undo_interrupted_replacement(Path(config.saving.save_path))
    tokenizer = build_tokenizer(config)
    logger = RunLogger(
        config,
        dist.get_rank(),
        train_iters=config.schedule.train_iters,
        flops_per_token=model_flops_per_token(config, vocab_size=tokenizer.vocab_size),
        device_kind=accelerator.label(),
        peak_flops=peak_flops(config, accelerator.device_name()),
    )
    try:
        fetch_checkpoint(config, logger.say, for_training=True)
        logger.say("opening the data")
        return _pretrain(config, tokenizer, logger)
    finally:
        logger.close()
        if lock is not None:
            lock.close()


def _pretrain(config: RunConfig, tokenizer: AbstractTokenizer, logger: RunLogger) -> TrainState:
    tasks, topology = tasks_of_training(config), make_topology(config)
    ranks = {"dp_rank": topology.data_rank, "dp_size": topology.grid.data}
    source, mixture = build_train_source(config, tokenizer_info=tokenizer, **ranks)
    validation, test = (
        build_evaluation_source(config, split, tokenizer_info=tokenizer, **ranks)
        if config.evaluation.iters
        else None
        for split in EVALUATION_SPLITS
    )
    meter = build_held_out_meter(config, mixture.domains, logger, tokenizer_info=tokenizer, **ranks)
    loaded = build_runner(
        config, tokenizer, topology, num_domains=mixture.num_domains, say=logger.say
    )
    runner, state = loaded.runner, loaded.state
    refuse_to_replace(config, loaded)
    restore_mixture(mixture, loaded, source.samples_by_domain, warn=logger.warning)
    if meter is not None:
        meter.continue_from(loaded.mixture_state)
    learning_rate_of = continued_schedule(config, loaded.saved_config, logger.warning)
    last_step = config.schedule.train_iters
    saving = CheckpointHook(
        runner,
        source,
        mixture,
        config,
        logger,
        moment_names=moment_names(config),
        held_out=meter,
        is_saved=loaded.is_saved_in(config.saving.save_path),
    )
    hooks: list[Hook] = [
        LoggingHook(logger, source, mixture, interval=config.logging.interval, last_step=last_step),
        *_watching_hooks(runner, config, logger),
        saving,  # before hooks that take long or may fail
        *_evaluating_hooks(loaded, config, tokenizer, logger, (validation, test), tasks),
    ]
    announce(logger, config, source, mixture.describe(), loaded, tokenizer=tokenizer)
    try:
        train(
            runner,
            source,
            mixture,
            hooks,
            state,
            last_step=last_step,
            learning_rate_of=learning_rate_of,
            measure=meter.after_step if meter else measure_nothing,
            run_length=config.mixing.run_length,
            exit_interval=config.schedule.exit_interval,
        )
    except FloatingPointError as error:
        logger.warning(str(error), iteration=state.step)
        saving.wait()  # a save in the background is of an earlier step, so it is sound
        raise
    for hook in hooks:
        hook.at_end(state)
    logger.stop(state.step, "asked to stop" if state.stop else "done")
    return state


def _evaluating_hooks(
    loaded: LoadedRun,
    config: RunConfig,
    tokenizer: AbstractTokenizer,
    logger: RunLogger,
    sources: tuple[EvaluationBatches | None, EvaluationBatches | None],
    tasks: TaskDict | None,
) -> list[Hook]:
    """Hooks that measure on validation and test sets, and with lm-eval's tasks if there are any."""
    interval, measured = config.evaluation.interval, _measured_before(config, loaded.state)
    validation, test = sources
    hooks: list[Hook] = [
        EvaluationHook(
            loaded.runner,
            logger,
            validation=validation,
            test=test,
            interval=interval,
            measured=measured,
        )
    ]
    if tasks is not None:
        hooks.append(
            TaskEvaluationHook(loaded.runner, config, tokenizer, tasks, logger, measured=measured)
        )
    return hooks


def _watching_hooks(runner: StepRunner, config: RunConfig, logger: RunLogger) -> list[Hook]:
    """Hooks that look at the run and change nothing in it."""
    profile = profile_hooks(config, dist.get_rank(), logger.say)
    return [TimeoutHook(config), *statistics_hooks(runner, config, logger), *profile]


def _measured_before(config: RunConfig, state: TrainState) -> dict[str, dict[str, Any]] | None:
    """Finds the evaluations of the loaded iteration in the run log; None if there is no log.

    The log of a long run takes seconds to read, so it is read only if evaluations are due.
    """
    intervals = (config.evaluation.interval, config.evaluation.tasks_interval)
    may_be_missing = any(is_due(state.step, interval) for interval in intervals if interval)
    if not (may_be_missing or state.step >= config.schedule.train_iters):
        return None
    settings = evaluation_settings(config.to_dict())
    return measured_at(config.logging.log_dir, state.step, settings)
