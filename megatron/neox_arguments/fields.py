"""One table of all keys, made from the sections, the old names and what is not supported."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from .aliases import ALIASES
from .declarations import ONLY_TRAINING, SAME, Bound, Key
from .sections import SECTIONS
from .unsupported import UNSUPPORTED

DEEPSPEED_KEYS = frozenset(
    (
        *("deepspeed", "train_batch_size", "train_micro_batch_size_per_gpu", "optimizer"),
        *("gradient_accumulation_steps", "scheduler", "fp32_allreduce", "prescale_gradients"),
        *("gradient_predivide_factor", "sparse_gradients", "fp16", "bf16", "amp", "aio"),
        *("gradient_clipping", "zero_optimization", "steps_per_print", "wall_clock_breakdown"),
        *("dump_state", "flops_profiler", "communication_data_type", "curriculum_learning"),
        *("curriculum_seqlen", "autotuning", "autotuning_config", "activation_checkpointing"),
        *("sparse_attention", "data_efficiency", "tensorboard", "wandb", "csv_monitor"),
        *("elasticity", "comms_logger", "compression_training", "checkpoint", "data_types"),
        *("deepspeed_extra_args", "load_universal", "zero_allow_untested_optimizer"),
    )
)
"""Keys of DeepSpeed's own configuration."""

RUNNER_KEYS = (
    *("hostfile", "include", "exclude", "num_nodes", "num_gpus", "master_port", "master_addr"),
    *("launcher", "force_multi", "no_ssh_check", "comment", "account"),
)
"""Keys of DeepSpeed's runner."""


_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Field:
    """A configuration key.

    ``section`` is the attribute of ``RunConfig`` that it belongs to, empty for other names and what
    is not supported. ``answer`` is the name of the field there, None where the key only decides
    others. ``is_computed``: the answer has another form than the written value.
    """

    name: str
    section: str
    answer: str | None
    type: Any
    default: Any
    bounds: tuple[Bound, ...] = ()
    only_training: bool = False
    is_computed: bool = False

    def problems(self, value: Any) -> list[str]:
        """Returns what is wrong with a value of its type."""
        found = (bound.problem(self.name, value) for bound in self.bounds)
        return [problem for problem in found if problem]


@functools.cache
def field_table() -> Mapping[str, Field]:
    """Returns every key by name, in the order of the sections.

    Raises:
        AssertionError: If a key is declared twice; a mistake of ours.
    """
    table: dict[str, Field] = {}
    for field in _all_fields():
        assert field.name not in table, f"{field.name} is declared twice"
        table[field.name] = field
    return table


def _all_fields() -> Iterator[Field]:
    for name, section in SECTIONS.items():
        for declared in (section.answers, section.keys):
            if declared is not None:
                yield from _fields_of(name, declared)
    for alias in ALIASES:
        yield Field(alias.old, "", None, alias.type, alias.default)
    for row in UNSUPPORTED.values():
        yield Field(row.key, "", None, row.type, row.default)


def _fields_of(name: str, declared: type[Any]) -> Iterator[Field]:
    hints = get_type_hints(declared, include_extras=True)
    is_answer = declared is SECTIONS[name].answers
    for attribute in declared.__annotations__:
        kind, extras = hints[attribute], list[Any]()
        if get_origin(kind) is Annotated:
            kind, *extras = get_args(kind)
        key = next((extra for extra in extras if isinstance(extra, Key)), None)
        default = vars(declared).get(attribute, _MISSING)
        has_default = default is not _MISSING
        if key is None and not has_default:
            continue  # a rule gives it
        is_written_otherwise = key is not None and key.type is not SAME
        yield Field(
            name=key.name if key else attribute,
            section=name,
            answer=attribute if is_answer else None,
            type=key.type if key and is_written_otherwise else kind,
            default=default if has_default else key.default if key else None,
            bounds=tuple(extra for extra in extras if isinstance(extra, Bound)),
            only_training=SECTIONS[name].only_training or ONLY_TRAINING in extras,
            is_computed=is_written_otherwise,
        )
