"""What a class of transformers can express of a network: a table of conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron.sizing.model_shape import ModelShape
from odm.json_data import shown

__all__ = ["Condition", "refusals_of"]

Condition = tuple[str, Callable[[ModelShape], bool], str]
"""A field of ours, whether the class can express it, and what the class has instead."""


def refusals_of(architecture: str, conditions: Sequence[Condition], shape: ModelShape) -> list[str]:
    """What a class cannot express, as ``field: value, reason``; may be empty."""
    return [
        f"{field}: {architecture} cannot express {shown(getattr(shape, field))}; {reason}"
        for field, can_express, reason in conditions
        if not can_express(shape)
    ]
