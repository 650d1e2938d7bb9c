"""From what the user wrote to a validated, frozen ``RunConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .aliases import apply_aliases
from .errors import ConfigError, IssueList
from .fields import field_table
from .neox_args import NeoXArgs, typed_values
from .purpose import Purpose, is_training_script, purpose_of
from .rules import Draft
from .rules.compilation import check_compilation
from .rules.data import resolve_data, resolve_mixing
from .rules.deepspeed import check_deepspeed
from .rules.epochs import count_iterations
from .rules.evaluation import check_evaluation_in_training, resolve_evaluation
from .rules.generation import resolve_generation
from .rules.layout import check_layout
from .rules.model import resolve_model
from .rules.optimizer import resolve_optimizer, resolve_schedule
from .rules.output import check_load, resolve_logging, resolve_saving
from .rules.precision import resolve_precision, resolve_zero
from .rules.topology import check_processes, resolve_batch, resolve_topology, resolve_world_size
from .run_config import RunConfig
from .sections import Launch, Layout
from .unsupported import check_unsupported

_NO_TRAINING_DATA = "there is no training data; set data_path or train_data_paths"


def resolve(
    neox_args: NeoXArgs, world_size: int | None = None, *, purpose: Purpose | None = None
) -> RunConfig:
    """Validates a configuration and computes everything that follows from it.

    Args:
        neox_args: What the user wrote; it is not changed.
        world_size: Processes of the run. None asks the environment, the hostfile and the keys.
        purpose: What it is for; None asks `user_script`. For reading a model, rules that only
            training needs do not count, and what follows from their keys has no meaning.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: With one message for everything that is wrong.
    """
    config, issues = resolve_with_issues(neox_args, world_size, purpose=purpose)
    issues.raise_if_any()
    return config


def resolve_with_issues(
    neox_args: NeoXArgs, world_size: int | None = None, *, purpose: Purpose | None = None
) -> tuple[RunConfig, IssueList]:
    """As `resolve`, and goes on where something is wrong, so that more can be told with it.

    Returns:
        The configuration, with defaults in place of what is wrong, and all that is wrong.

    Raises:
        ConfigError: If a value has a wrong type.
    """
    draft = _draft(neox_args, purpose)
    check_unsupported(draft)
    draft.check_bounds()
    config = _resolved(draft, world_size)
    if is_training_script(draft["user_script"]) and not config.data.train_paths:
        draft.issues.add("train_data_paths", _NO_TRAINING_DATA)
    return config, draft.issues


def require_training_data(config: RunConfig) -> None:
    """Raises ``ConfigError`` unless there is training data; scripts that train call it first."""
    if not config.data.train_paths:
        raise ConfigError(_NO_TRAINING_DATA)


def _draft(args: NeoXArgs, purpose: Purpose | None) -> Draft:
    """Returns all values with their types and under their current names."""
    values = typed_values(args, field_table())
    if values["seq_length"] is None:
        values["seq_length"] = _longest_text(values)
    purpose = purpose or purpose_of(values["user_script"])
    draft = Draft(values, set(args.given), IssueList(args.origins), [*args.notes], purpose)
    apply_aliases(draft)
    return draft


def _longest_text(values: Mapping[str, Any]) -> int | None:
    """The tokens for which there are positions; see `Model.longest_text`."""
    rows, offset = values["max_position_embeddings"], values["opt_pos_emb_offset"] or 0
    if rows is None or values["pos_emb"] != "learned":
        return rows
    return rows - offset if 0 < offset < rows else rows


def _resolved(draft: Draft, world_size: int | None) -> RunConfig:
    check_processes(draft)
    topology = resolve_topology(draft, resolve_world_size(draft, world_size))
    precision = resolve_precision(draft)
    data = resolve_data(draft)
    model = resolve_model(draft)
    evaluation = resolve_evaluation(draft)
    generation = resolve_generation(draft)
    with draft.training_rules():  # for a model that is read, what follows has no meaning
        check_deepspeed(draft)
        batch = resolve_batch(draft, topology["data_parallel_size"])
        zero_stage, zero_options = resolve_zero(draft, precision.dtype)
        layout = draft.section(
            Layout,
            **topology,
            zero_stage=zero_stage,
            zero_options=zero_options,
            sequence_parallel=draft["sequence_parallel"] and topology["model_parallel_size"] > 1,
        )
        count_iterations(draft, data, batch)
        optimizer = resolve_optimizer(draft)
        schedule = resolve_schedule(draft, optimizer.learning_rate)
        check_evaluation_in_training(draft, layout)
        mixing = resolve_mixing(draft, data, batch)
        saving = resolve_saving(draft)
        logging = resolve_logging(draft, saving.save_path)
        check_compilation(draft, layout, model)
    check_load(draft)
    check_layout(draft, layout, model, batch.gradient_accumulation_steps)
    return RunConfig(
        model=model,
        layout=layout,
        batch=batch,
        precision=precision,
        optimizer=optimizer,
        schedule=schedule,
        data=data,
        mixing=mixing,
        saving=saving,
        logging=logging,
        evaluation=evaluation,
        generation=generation,
        launch=draft.section(Launch),
        notes=tuple(dict.fromkeys(draft.notes)),
        files=dict(draft["config_files"] or {}),
    )
