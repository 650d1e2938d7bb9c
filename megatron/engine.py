"""From a configuration to a DeepSpeed engine, filled from a checkpoint where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from megatron import accelerator
from megatron.checkpointing import (
    find_checkpoint,
    load_engine_state,
    load_module_weights,
    load_run_state,
    restore_random_state,
)
from megatron.engine_state import load_loss_scaler
from megatron.errors import CheckpointError
from megatron.initialize import set_timeout_on_all_groups
from megatron.model.config import model_config
from megatron.model.gpt2_model import GPT2Model
from megatron.model.loss import DomainLossRecorder
from megatron.neox_arguments import RunConfig, deepspeed_config
from megatron.optimizers import build_optimizer, moment_names
from megatron.runners import DataParallelRunner
from megatron.state import TrainState
from megatron.tokenizer import AbstractTokenizer, padded_vocab_size

__all__ = ["LoadedRun", "build_model", "build_runner", "checkpoint_to_load"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedRun:
    """A runner and what the checkpoint said besides weights and moments."""

    runner: DataParallelRunner
    state: TrainState
    mixture_state: dict[str, Any] | None
    """State of the mixture; None for a fresh start or ``finetune``."""
    folder: Path | None
    """Checkpoint that was loaded."""


def build_model(
    config: RunConfig, tokenizer: AbstractTokenizer, *, recorder: DomainLossRecorder | None = None
) -> GPT2Model:
    """Builds the network in float32 on the CPU, with its initial values."""
    shape = model_config(
        config,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=padded_vocab_size(
            tokenizer.vocab_size, config.model.make_vocab_size_divisible_by
        ),
    )
    return GPT2Model(shape, seed=config.other.seed, recorder=recorder)


def checkpoint_to_load(config: RunConfig, say: Say) -> Path | None:
    """Finds the checkpoint that ``load`` and ``iteration`` name.

    Raises:
        CheckpointError: If ``load`` holds none, unless it is also the ``save`` folder: then the run
            starts fresh, which is how one command serves for starting and for resuming.
    """
    derived = config.derived
    if derived.load_path is None:
        return None
    folder = find_checkpoint(Path(derived.load_path), config.other.iteration, say)
    if folder is None:
        if derived.load_path != derived.save_path:
            raise CheckpointError(
                f"load: no checkpoint in {derived.load_path}; correct the path, or remove load to "
                "start from scratch"
            )
        say(f"load: no checkpoint in {derived.load_path} yet; starting from scratch")
    return folder


def build_runner(
    config: RunConfig, tokenizer: AbstractTokenizer, *, num_domains: int, say: Say
) -> LoadedRun:
    """Builds model, optimizer and engine, and continues from ``load`` where it is set."""
    recorder = DomainLossRecorder(num_domains, accelerator.device())
    say("building the model")
    model = build_model(config, tokenizer, recorder=recorder)
    folder = checkpoint_to_load(config, say)
    if folder is not None:
        say(f"loading {folder}")
        load_module_weights(model, folder)
    say("starting the engine")
    optimizer = build_optimizer(model, config)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
    )
    set_timeout_on_all_groups(config)
    accelerator.seed_everything(config.other.seed + dist.get_rank())  # dropout differs by rank
    runner = DataParallelRunner(
        engine, recorder, gradient_clipping=config.derived.gradient_clipping
    )
    state, mixture_state = TrainState(), None
    if folder is not None:
        state, mixture_state = _continue_from(config, runner, folder, say)
    return LoadedRun(runner, state, mixture_state, folder)


def _continue_from(
    config: RunConfig, runner: DataParallelRunner, folder: Path, say: Say
) -> tuple[TrainState, dict[str, Any] | None]:
    """Loads masters and moments into the engine, and returns counters and mixture."""
    training = config.training
    saved_state, mixture_state = load_run_state(folder)
    state = TrainState()
    if not training.finetune:
        state.load_state_dict(saved_state["counters"])
    skips_moments = training.finetune or training.no_load_optim
    load_engine_state(
        runner.engine,
        folder,
        moment_names=() if skips_moments else moment_names(config),
        applied_steps=state.applied_steps,
    )
    if training.finetune:
        say(f"finetune: weights of {folder}; iteration, optimizer and mixture start anew")
        return state, None
    if not skips_moments:
        load_loss_scaler(runner.engine, saved_state["loss_scaler"])
    if not training.no_load_rng:
        restore_random_state(folder, say)
    return state, mixture_state
