"""Builds a DeepSpeed engine from a configuration, and loads a checkpoint if there is one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
from torch import Tensor

from megatron.checkpoint.foreign import is_neox_checkpoint
from megatron.checkpoint.fragments import load_loss_scaler
from megatron.checkpoint.loading import (
    SavedWeights,
    load_engine_state,
    open_weights,
    restore_random_state,
)
from megatron.checkpoint.opening import load_run_state, saved_configuration
from megatron.engine.chosen_checkpoint import with_checkpoint
from megatron.engine.gradient_norm import GradientClipper, clips_itself
from megatron.engine.optimizers import build_optimizer, moment_names
from megatron.engine.placement import place_parameters
from megatron.engine.runners import DataParallelRunner, PipelineRunner, StepRunner
from megatron.engine.state import TrainState
from megatron.files import is_same_path
from megatron.model.compiling import compile_model, compiler_problem
from megatron.model.gpt2_model import GPT2Model
from megatron.model.pipeline_model import GPT2PipelineModel
from megatron.model.soft_prompt import (
    SOFT_PROMPT_NAME,
    freeze_all_but_prompt,
    prompt_of_embeddings,
)
from megatron.model.word_embeddings import WORD_EMBEDDINGS
from megatron.mpu import Topology
from megatron.mpu.initialize import DeepSpeedMpu, make_tensor_parallel
from megatron.neox_arguments import ConfigError, RunConfig, deepspeed_config
from megatron.neox_arguments.deepspeed_json import missing_monitor_problem, passed_sections
from megatron.neox_arguments.rules.compilation import compilation_obstacles
from megatron.runtime import accelerator
from megatron.runtime.initialize import set_timeout_on_all_groups
from megatron.sizing.model_shape import ModelShape, model_shape
from megatron.tokenizer import AbstractTokenizer, padded_vocab_size
from odm.wording import counted

__all__ = ["LoadedRun", "build_model", "build_runner"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedRun:
    """A runner, and what the checkpoint contained besides weights and moments."""

    runner: StepRunner
    state: TrainState
    mixture_state: dict[str, Any] | None = None
    """State of the mixture; None for a fresh start or ``finetune``."""
    samples_per_epoch: dict[str, int] = field(default_factory=dict)
    """Domain -> samples per epoch in the saved run; empty if `mixture_state` is None."""
    folder: Path | None = None
    """Folder of the checkpoint that was loaded."""
    saved_config: dict[str, Any] | None = None
    """The resolved configuration in the checkpoint; None if there is none, for a fresh start, and
    for ``finetune``."""

    def is_saved_in(self, save: str | None) -> bool:
        """Whether ``save`` contains a checkpoint of exactly this state."""
        if self.folder is None or save is None or self.state.step == 0:
            return False
        return is_same_path(self.folder.parent, save)


def build_model_config(config: RunConfig, tokenizer: AbstractTokenizer) -> ModelShape:
    """Shape of the network for a run; the vocabulary is padded so that the layout can divide it."""
    divisor = math.lcm(config.model.make_vocab_size_divisible_by, config.layout.model_parallel_size)
    return model_shape(
        config,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=padded_vocab_size(tokenizer.vocab_size, divisor),
    )


def build_model(
    config: RunConfig,
    tokenizer: AbstractTokenizer,
    topology: Topology,
    *,
    for_training: bool = True,
) -> GPT2Model | GPT2PipelineModel:
    """Builds this rank's part of the network, whose parameters have no memory yet.

    Args:
        config: The resolved configuration.
        tokenizer: Its vocabulary size is the model's.
        topology: The grid of ranks, and this rank's place in it.
        for_training: False keeps whole sequences on every rank (no sequence parallelism), so that
            inputs of any length work.
    """
    shape = build_model_config(config, tokenizer)
    sequence_parallel = config.layout.sequence_parallel and for_training
    tp = make_tensor_parallel(topology, sequence_parallel=sequence_parallel)
    if topology.grid.pipe == 1:
        model = GPT2Model(shape, seed=None, tp=tp)
        if for_training and model.soft_prompt is not None:
            freeze_all_but_prompt(model)
        return model
    return GPT2PipelineModel(
        shape,
        topology,
        tp,
        partition_method=config.layout.pipe_partition_method,
    )


def build_runner(
    config: RunConfig,
    tokenizer: AbstractTokenizer,
    topology: Topology,
    *,
    num_domains: int,
    say: Say,
) -> LoadedRun:
    """Builds model, optimizer and engine, and continues from ``load`` if it is set.

    Raises:
        ConfigError: If DeepSpeed refuses a section that is passed to it unchanged.
    """
    mpu = DeepSpeedMpu(topology)
    _check_deepspeed_sections(config, mpu)  # first, since the values of a model take longer

    def build(folder: Path | None) -> LoadedRun:
        return _build_runner(
            config, tokenizer, topology, mpu, num_domains=num_domains, folder=folder, say=say
        )

    return with_checkpoint(config, say, build)


def _build_runner(
    config: RunConfig,
    tokenizer: AbstractTokenizer,
    topology: Topology,
    mpu: DeepSpeedMpu,
    *,
    num_domains: int,
    folder: Path | None,
    say: Say,
) -> LoadedRun:
    say("building the model")
    model = build_model(config, tokenizer, topology)
    saved: SavedWeights | None = None
    given: dict[str, Tensor] = {}
    if folder is not None:
        say(f"loading {folder}")
        may_differ = config.saving.finetune  # for example, a rotary base for longer texts
        saved = open_weights(
            model,
            folder,
            topology,
            on_other_network=say if may_differ else None,
            with_masters=not (may_differ or config.saving.no_load_optim),
            may_lack=frozenset([SOFT_PROMPT_NAME]) if may_differ else frozenset(),
        )
        if saved.absent:
            given = _new_prompt(config, tokenizer, saved, say)
    place_parameters(model, config, topology, mpu, saved=saved, given=given)
    if saved is not None:
        saved.raise_if_damaged()
    compile_if_wanted(model, config, say)
    say("starting the engine")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, config),
        config=deepspeed_config(config),
        mpu=mpu if topology.grid.pipe == 1 else None,
        dist_init_required=False,
    )
    if topology.grid.data == 1 and config.layout.zero_stage == 0:
        # one rank has nothing to sum, and DeepSpeed would copy all gradients into buckets and back
        engine.enable_backward_allreduce = False
    set_timeout_on_all_groups(config, is_start=True)  # until the first step is made
    accelerator.seed_everything(_dropout_seed(config.launch.seed, topology))
    runner = _make_runner(config, engine, topology, num_domains=num_domains)
    if saved is None:
        return LoadedRun(runner, TrainState())
    return _continue_from(config, runner, saved, say)


def compile_if_wanted(model: GPT2Model | GPT2PipelineModel, config: RunConfig, say: Say) -> None:
    """Makes blocks and loss run compiled, as ``torch_compile`` asks.

    Raises:
        ConfigError: If it is true, and this machine cannot compile.
    """
    wanted = config.launch.torch_compile
    if not wanted or (wanted == "auto" and accelerator.is_cpu()):
        return
    parts = config.layout, config.model, config.logging.flops_profiler
    obstacles = compilation_obstacles(*parts)
    problem = compiler_problem(accelerator.name())
    if wanted == "auto" and (obstacles or problem):
        reason = f"it does not work with {', '.join(obstacles)}" if obstacles else problem
        say(f"torch_compile: nothing is compiled: {reason}")
        return
    if problem:
        raise ConfigError(f"torch_compile: {problem}, or set torch_compile to false")
    compile_model(model, output=model.output_layer)
    say("torch_compile: the first iteration compiles the blocks and the loss, and takes longer")


def _new_prompt(
    config: RunConfig, tokenizer: AbstractTokenizer, saved: SavedWeights, say: Say
) -> dict[str, Tensor]:
    """The first values of a new soft prompt, by its name; none if they are drawn.

    Raises:
        ConfigError: If the text has no token.
    """
    settings = config.model.soft_prompt
    assert settings is not None
    given: dict[str, Tensor] = {}
    if settings.init_string:
        tokens = tokenizer.tokenize(settings.init_string)
        if not tokens:
            raise ConfigError(
                f"soft_prompt_tuning.init_string: {settings.init_string!r} has no token; write "
                "another text, or none for random values"
            )
        name = next(name for name in saved.reader.shapes if name.endswith(WORD_EMBEDDINGS))
        table = saved.reader.read_logical(name)
        given[SOFT_PROMPT_NAME] = prompt_of_embeddings(settings.num_tokens, table, tokens)
    say(
        f"soft_prompt_tuning: a new prompt of {counted(settings.num_tokens, 'vector')}; all else "
        "is frozen"
    )
    return given


def _check_deepspeed_sections(config: RunConfig, mpu: DeepSpeedMpu) -> None:
    """Raises an error of one line if DeepSpeed refuses a section of the user."""
    if problem := missing_monitor_problem(config):
        raise ConfigError(problem)
    values = deepspeed_config(config)
    refusal = _refusal_of(values, mpu)
    if refusal is None:
        return
    for section, name in passed_sections(config).items():
        others = {key: value for key, value in values.items() if key != section}
        if _refusal_of(others, mpu) is None:
            raise ConfigError(
                f"{name}: DeepSpeed refuses it: {_in_one_line(refusal)}; fix or remove it"
            )
    raise refusal


def _in_one_line(error: Exception) -> str:
    """Text of an error; of pydantic's only the parts, without its advice for programmers."""
    parts = getattr(error, "errors", None)
    if callable(parts):
        return ", ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in parts())
    return " ".join(str(error).split())


def _refusal_of(values: dict[str, Any], mpu: DeepSpeedMpu) -> Exception | None:
    """Returns what DeepSpeed raises for a configuration, which may be of any class."""
    try:
        deepspeed.DeepSpeedConfig(copy.deepcopy(values), mpu)
    except Exception as error:
        return error
    return None


def _dropout_seed(seed: int, topology: Topology) -> int:
    """Differs between replicas and stages; equal in a tensor group, which shares activations."""
    return seed + topology.data_rank + topology.grid.data * topology.pipe_rank


def _make_runner(config: RunConfig, engine, topology: Topology, *, num_domains: int) -> StepRunner:
    clipper = None
    if clips_itself(zero_stage=config.layout.zero_stage, precision=config.precision.dtype):
        clipper = GradientClipper(engine, topology, config.optimizer.gradient_clipping)
    kind = DataParallelRunner if topology.grid.pipe == 1 else PipelineRunner
    has_masks = config.data.eod_mask_loss
    return kind(engine, topology, clipper, num_domains=num_domains, has_masks=has_masks)


def _continue_from(
    config: RunConfig, runner: StepRunner, saved: SavedWeights, say: Say
) -> LoadedRun:
    """Loads master weights and moments into the engine; returns it with counters and mixture."""
    folder = saved.reader.folder
    saved_state, mixture_state = load_run_state(folder, seq_length=config.data.seq_length)
    state = TrainState()
    if not config.saving.finetune:
        state.load_state_dict(saved_state["counters"])
    skips_moments = config.saving.finetune or config.saving.no_load_optim
    load_engine_state(
        runner.engine,
        saved,
        moment_names=None if skips_moments else moment_names(config),
        applied_steps=state.applied_steps,
        say=say,
    )
    if config.saving.finetune:
        say(f"finetune: weights of {folder}; iteration, optimizer and mixture start from zero")
        return LoadedRun(runner, state, folder=folder)
    if is_neox_checkpoint(folder):
        say(
            f"{folder}: GPT-NeoX's checkpoint of iteration {state.step}; data and mixture start "
            "from their beginning, since GPT-NeoX's order of the samples is another one"
        )
    if config.optimizer.use_bnb_optimizer and state.applied_steps:
        say("use_bnb_optimizer: checkpoints have no 8-bit moments; they begin at zero")
    if not skips_moments:
        load_loss_scaler(runner.engine, saved_state["loss_scaler"])
    if not config.saving.no_load_rng:
        has_dropout = config.model.hidden_dropout > 0 or config.model.attention_dropout > 0
        restore_random_state(folder, runner.topology, say if has_dropout else None)
    samples_per_epoch = saved_state.get("samples_per_epoch", {})
    saved_config = saved_configuration(folder)
    return LoadedRun(runner, state, mixture_state, samples_per_epoch, folder, saved_config)
