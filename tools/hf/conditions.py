"""What a class of transformers can express of a network: a table of conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron.sizing.model_shape import ModelShape
from odm.wording import shown

__all__ = ["Condition", "refusals_of"]

Condition = tuple[str, Callable[[ModelShape], bool], str]
"""A field of ours, whether the class can express it, and what the class has instead."""


_KEYS = {"attention_reach": "sliding_window_width and 'local' in attention_config"}
"""Field -> the keys that decide it, if they have other names."""


def refusals_of(architecture: str, conditions: Sequence[Condition], shape: ModelShape) -> list[str]:
    """What a class cannot express, as ``field: value, reason``; may be empty."""
    return [
        f"{_KEYS.get(field, field)}: {architecture} cannot express {_value(shape, field)}; {reason}"
        for field, can_express, reason in conditions
        if not can_express(shape)
    ]


def _value(shape: ModelShape, field: str) -> str:
    if field != "attention_reach":
        return shown(getattr(shape, field))
    kinds = sorted({reach for reach in shape.attention_reach if reach is not None})
    return " and ".join(
        f"a window of {blocks} tokens" if size == 1 else f"{blocks} blocks of {size} tokens"
        for blocks, size in kinds
    )
