"""One table of all fields, made from the groups."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

from .groups import GROUPS


@dataclasses.dataclass(frozen=True)
class Field:
    """A configuration key; ``group`` is its group's attribute in ``RunConfig``."""

    name: str
    group: str
    type: Any
    default: Any


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
    return table
