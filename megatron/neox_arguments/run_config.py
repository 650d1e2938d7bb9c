"""RunConfig: the validated, frozen configuration that the program works with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from .fields import field_table
from .secrets import redacted
from .sections import (
    SECTIONS,
    Batch,
    Data,
    Evaluation,
    Generation,
    Launch,
    Layout,
    Logging,
    Mixing,
    Model,
    Optimizer,
    Precision,
    Saving,
    Schedule,
)

SCHEMA_VERSION = 2
"""Of `RunConfig.to_dict`, as in `resolved.json`; the first one had no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A validated configuration: one answer for each question, by purpose."""

    model: Model
    layout: Layout
    batch: Batch
    precision: Precision
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    mixing: Mixing
    saving: Saving
    logging: Logging
    evaluation: Evaluation
    generation: Generation
    launch: Launch
    notes: tuple[str, ...]
    """Messages for the user, to be logged once."""
    files: Mapping[str, str]
    """Texts of the configuration files by name, as given, but without secrets."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved configuration as plain data: one mapping for each section, the
        notes and the version of this form. It may be written anywhere: secrets are redacted.
        """
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        return {
            "version": SCHEMA_VERSION,
            **{name: redacted(_plain(values)) for name, values in sections.items()},
            "notes": list(self.notes),
        }

    def by_key(self) -> dict[str, Any]:
        """Returns the answers that have a key, by the key's name; secrets are redacted."""
        return redacted(
            {
                key: _plain(getattr(getattr(self, field.section), field.answer))
                for key, field in field_table().items()
                if field.answer is not None
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return copy.copy(value)
