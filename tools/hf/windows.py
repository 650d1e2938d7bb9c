"""How far back each layer sees: our reaches, and the windows of a config.json.

A window of transformers counts the position itself; `sliding_window_width`, as in GPT-NeoX, does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.sizing.model_shape import ModelShape
from odm.wording import counted, shown

__all__ = [
    "FULL",
    "SLIDING",
    "layers_of_windows",
    "one_window",
    "read_windows",
    "window_of",
    "write_layer_types",
]

FULL, SLIDING = "full_attention", "sliding_attention"


def _reaches(shape: ModelShape) -> tuple[Any, ...]:
    """(blocks, tokens per block) of each layer, None if it sees all; empty: all layers do."""
    return shape.attention_reach


def window_of(shape: ModelShape) -> int | None:
    """The window of the layers that have one, as transformers counts; None if none has."""
    return next((reach[0] + 1 for reach in _reaches(shape) if reach is not None), None)


def one_window(shape: ModelShape) -> bool:
    """Whether all layers with a window have the same, token by token."""
    limits = {reach for reach in _reaches(shape) if reach is not None}
    return len(limits) <= 1 and all(size == 1 for _, size in limits)


def layers_of_windows(shape: ModelShape) -> int:
    """How many layers have a window."""
    return sum(reach is not None for reach in _reaches(shape))


def write_layer_types(shape: ModelShape) -> list[str]:
    """The kind of attention of each layer, as transformers 5 writes it."""
    reaches = _reaches(shape) or (None,) * shape.num_layers
    return [FULL if reach is None else SLIDING for reach in reaches]


def read_windows(config: Mapping[str, Any], width: int | None, positions: int) -> dict[str, Any]:
    """Our fields for a window.

    Args:
        config: The file, with ``num_hidden_layers`` and maybe ``layer_types``.
        width: The window; None if no layer has one.
        positions: The longest text; a window as long hides nothing.

    Raises:
        ValueError: If ``layer_types`` is wrong, or the window too small.
    """
    layers = config["num_hidden_layers"]
    types = config.get("layer_types") or [FULL if width is None else SLIDING] * layers
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise ValueError(
                f"layer_types: {shown(kind)} is not supported; known: {FULL}, {SLIDING}"
            )
    if len(types) != layers:
        raise ValueError(
            f"layer_types: has {counted(len(types), 'value')}, num_hidden_layers is {layers}"
        )
    if SLIDING not in types or (width is not None and width >= positions):
        return {}
    if width is None:
        raise ValueError(f"layer_types: has {SLIDING}, but sliding_window is null")
    if width == 1:
        raise ValueError(
            "sliding_window: is 1, so a token would see only itself; windows of 2 and more are "
            "supported"
        )
    window = {"sliding_window_width": width - 1}
    if FULL not in types:
        return window
    ours = ["flash" if kind == SLIDING else "global" for kind in types]
    return {**window, "attention_config": ours}
