"""From what the user wrote to a validated, frozen ``RunConfig``."""

from __future__ import annotations

import copy
from pathlib import PurePath
from typing import Any

from .aliases import apply_aliases
from .coerce import Mismatch
from .errors import ConfigError, IssueList, shown
from .fields import field_table
from .groups import GROUPS
from .neox_args import NeoXArgs, typed_value
from .retired import check_retired
from .rules import Draft
from .rules.data import resolve_data, resolve_sampling, training_data_problem
from .rules.deepspeed import check_deepspeed
from .rules.evaluation import check_evaluation
from .rules.generation import resolve_generation
from .rules.layout import check_layout
from .rules.model import resolve_model
from .rules.optimizer import check_regularisation, resolve_learning_rate, resolve_optimizer
from .rules.precision import resolve_precision, resolve_zero
from .rules.run import resolve_run
from .rules.topology import check_processes, resolve_batch, resolve_topology, resolve_world_size
from .run_config import Derived, RunConfig


def resolve(neox_args: NeoXArgs, world_size: int | None = None) -> RunConfig:
    """Validates a configuration and computes everything that follows from it.

    Args:
        neox_args: What the user wrote; it is not changed.
        world_size: Processes of the run. None asks the environment, the hostfile and the keys.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: With one message for everything that is wrong.
    """
    draft = _draft(neox_args)
    draft.notes += check_retired(draft.values, draft.given, draft.issues)
    draft.issues.raise_if_any()
    derived = _derive(draft, world_size)
    if PurePath(draft["user_script"] or "").name == "train.py":
        problem = training_data_problem(derived["train_paths"])
        if problem:
            draft.issues.add("train_data_paths", problem)
    draft.issues.raise_if_any()
    groups = {name: _group(name, draft.values) for name in GROUPS}
    return RunConfig(
        **groups,
        derived=Derived(**derived, notes=tuple(dict.fromkeys(draft.notes))),
        files=dict(draft["config_files"] or {}),
    )


def require_training_data(config: RunConfig) -> None:
    """Raises ``ConfigError`` unless there is training data; scripts that train call it first."""
    problem = training_data_problem(config.derived.train_paths)
    if problem:
        raise ConfigError(problem)


def _draft(args: NeoXArgs) -> Draft:
    """Returns all values with their types and under their current names."""
    issues = IssueList(args.origins)
    values: dict[str, Any] = {}
    for field in field_table().values():
        try:
            values[field.name] = typed_value(args, field.name)
        except Mismatch as error:  # only after an assignment that went past update_value
            value = shown(getattr(args, field.name))
            issues.add(field.name, f"{field.name} must be {error}, got {value}")
    issues.raise_if_any()
    if values["seq_length"] is None:
        values["seq_length"] = values["max_position_embeddings"]
    values, given, notes = apply_aliases(values, args.given, issues)
    return Draft(values, given, issues, notes)


def _derive(draft: Draft, world_size: int | None) -> dict[str, Any]:
    check_processes(draft)
    check_regularisation(draft)
    topology = resolve_topology(draft, resolve_world_size(draft, world_size))
    batch = resolve_batch(draft, topology["data_parallel_size"])
    precision = resolve_precision(draft)
    optimizer = resolve_optimizer(draft)
    data = resolve_data(draft)
    zero = resolve_zero(draft, precision["precision"])
    model = resolve_model(draft)
    check_layout(draft, {**topology, **batch, **zero, **model})
    check_deepspeed(draft)
    check_evaluation(draft, {**topology, **zero})
    return {
        **topology,
        **batch,
        **precision,
        **zero,
        **model,
        **optimizer,
        **resolve_learning_rate(draft, optimizer["learning_rate"]),
        **data,
        **resolve_sampling(draft, data["domains"], batch),
        **resolve_run(draft),
        **resolve_generation(draft),
    }


def _group(name: str, values: dict[str, Any] | Any) -> Any:
    names = [field.name for field in field_table().values() if field.group == name]
    return GROUPS[name](**{key: copy.deepcopy(values[key]) for key in names})
