"""One table of all fields, made from the groups."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

from .groups import GROUPS, NeoXArgsDeepspeedConfig
from .unsupported import UNSUPPORTED


@dataclasses.dataclass(frozen=True)
class Field:
    """A configuration key; ``group`` is its group's attribute in ``RunConfig``, or unsupported."""

    name: str
    group: str
    type: Any
    default: Any


DEEPSPEED_KEYS = frozenset(
    {field.name for field in dataclasses.fields(NeoXArgsDeepspeedConfig)}
    | {
        *("activation_checkpointing", "aio", "amp", "autotuning", "autotuning_config"),
        *("checkpoint", "comms_logger", "compression_training", "curriculum_learning"),
        *("curriculum_seqlen", "data_efficiency", "dump_state", "elasticity", "load_universal"),
        *("scheduler", "sparse_attention", "sparse_gradients", "steps_per_print"),
        "zero_allow_untested_optimizer",
    }
)
"""Keys of DeepSpeed's own configuration."""


@functools.cache
def field_table() -> Mapping[str, Field]:
    """Returns every field by name, in the order of the groups.

    Raises:
        AssertionError: If two groups declare one key; a mistake of ours.
    """
    table: dict[str, Field] = {}
    for group, group_class in GROUPS.items():
        hints = get_type_hints(group_class)
        for field in dataclasses.fields(group_class):
            assert field.name not in table, (
                f"{field.name} is in {table[field.name].group} and {group}"
            )
            table[field.name] = Field(field.name, group, hints[field.name], field.default)
    for row in UNSUPPORTED.values():
        assert row.key not in table, f"{row.key} is in {table[row.key].group} and unsupported"
        table[row.key] = Field(row.key, "unsupported", row.type, row.default)
    return table


def nearest_key(key: str) -> str | None:
    """Returns the known key that looks most like ``key``, or None when nothing is near."""
    matches = difflib.get_close_matches(key, list(field_table()), n=1, cutoff=0.7)
    return matches[0] if matches else None
