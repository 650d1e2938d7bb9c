"""RunConfig: the validated, frozen configuration that the program works with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from . import sections
from .fields import field_table
from .secrets import redacted

SCHEMA_VERSION = 2
"""Of `RunConfig.to_dict`, as in `resolved.json`; the first one had no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A validated configuration: one answer for each question, by purpose."""

    model: sections.Model
    layout: sections.Layout
    batch: sections.Batch
    precision: sections.Precision
    optimizer: sections.Optimizer
    schedule: sections.Schedule
    data: sections.Data
    mixing: sections.Mixing
    saving: sections.Saving
    logging: sections.Logging
    evaluation: sections.Evaluation
    generation: sections.Generation
    launch: sections.Launch
    notes: tuple[str, ...]
    """Messages for the user, to be logged once."""
    files: Mapping[str, str]
    """Texts of the configuration files by name, as given, but without secrets."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved configuration as plain data: one mapping for each section, the
        notes and the version of this form. It may be written anywhere: secrets are redacted.
        """
        answers = {
            name: redacted(dataclasses.asdict(getattr(self, name))) for name in sections.SECTIONS
        }
        return {"version": SCHEMA_VERSION, **answers, "notes": list(self.notes)}

    def by_key(self) -> dict[str, Any]:
        """Returns the answers that have a key, by the key's name; secrets are redacted."""
        answers = {
            key: getattr(getattr(self, field.section), field.answer)
            for key, field in field_table().items()
            if field.answer is not None
        }
        return redacted(answers)
