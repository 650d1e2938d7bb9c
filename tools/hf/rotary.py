"""Rotary positions in a config.json, as transformers 4 and 5 write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron.sizing.model_shape import ModelShape
from odm.json_data import MAX_NUMBER, boolean, fields, integer, number, optional, refuse, text
from odm.wording import shown
from tools.hf.windows import FULL, SLIDING

__all__ = ["ROPE_FIELDS", "read_rope", "rotary_share", "write_rope"]

SHARE = number(0, 1)


def _positive(value: Any, where: str) -> None:
    if type(value) not in (int, float) or not 0 < value <= MAX_NUMBER:
        refuse(where, "a finite number above 0", value)


BASE = _positive

_ROPE = optional(
    fields(
        {},
        {
            "rope_theta": BASE,
            "partial_rotary_factor": SHARE,
            "rope_type": optional(text()),
            "type": optional(text()),
            "original_max_position_embeddings": optional(integer(1, 1 << 31)),
            "truncate": optional(boolean),
            **dict.fromkeys(
                (
                    *("factor", "low_freq_factor", "high_freq_factor", "attention_factor"),
                    *("mscale", "mscale_all_dim", "beta_fast", "beta_slow"),
                ),
                optional(number()),
            ),
        },
    )
)
_TRAINED = "original_max_position_embeddings"
ROPE_FIELDS = {
    "rope_scaling": _ROPE,
    "rope_parameters": _ROPE,
    _TRAINED: optional(integer(1, 1 << 31)),
}
"""Checks of the fields that every family has."""

_LARGEST_EXACT = 2**53
_TAKEN = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", _TRAINED, "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", _TRAINED, "attention_factor", "mscale", "mscale_all_dim"),
        *("beta_fast", "beta_slow", "truncate"),
    ),
}
"""Fields that each type of scaling takes."""
_TYPE = ("rope_type", "type")


def read_rope(
    config: Mapping[str, Any], *, base: float, share: float, positions: int
) -> dict[str, Any]:
    """Our fields for the rotary positions of a config.json.

    Args:
        config: The file, after `ROPE_FIELDS` were checked.
        base: Base of the wavelengths unless the two sections name another.
        share: Rotated share of a head unless they name another.
        positions: The longest text.

    Raises:
        ValueError: Naming the value that this program has no equivalent of.
    """
    rope = _section(config, {"rope_theta": base, "partial_rotary_factor": share})
    theta = float(rope["rope_theta"])
    is_whole = theta.is_integer() and theta <= _LARGEST_EXACT
    return {
        "pos_emb": "rotary",
        "rotary_pct": rope["partial_rotary_factor"],
        "rotary_emb_base": int(theta) if is_whole else theta,
        **_read_scaling(rope, positions),
    }


def _section(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The section that counts, completed by ``defaults``.

    Both versions of transformers take the whole of ``rope_scaling`` unless it is empty, and then
    nothing of ``rope_parameters``.
    """
    scaling, parameters = (config.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    rope = {**defaults, **(scaling or parameters)}
    for name, value in parameters.items():
        same = ("default", _type_of(rope)) if name in _TYPE else (rope.get(name),)
        if value is not None and value not in same:
            raise ValueError(
                f"rope_parameters.{name}: is {shown(value)}, but transformers reads only "
                "rope_scaling where a file has both; keep one section, with all fields"
            )
    outside = config.get(_TRAINED)
    if outside is not None and _TRAINED in _TAKEN.get(_type_of(rope), ()):
        if rope.get(_TRAINED) not in (None, outside):
            raise ValueError(
                f"{_TRAINED}: is {outside}, and {rope[_TRAINED]} in the section; keep one of them"
            )
        rope[_TRAINED] = outside
    return rope


def _type_of(rope: Mapping[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _read_scaling(rope: Mapping[str, Any], positions: int) -> dict[str, Any]:
    """Our section `rope_scaling`; transformers ignores fields that a type does not take."""
    for name in (FULL, SLIDING):
        if name in rope:
            raise ValueError(f"rope_parameters.{name}: must be the same for all layers; remove it")
    kind = _type_of(rope)
    if kind == "default":
        return {}
    if kind not in _TAKEN:
        known = ", ".join(("default", *_TAKEN))
        raise ValueError(
            f"rope_parameters: rope_type {shown(kind)} is not supported; known are {known}"
        )
    scaling = {name: rope[name] for name in _TAKEN[kind] if rope.get(name) is not None}
    if _TRAINED in _TAKEN[kind]:
        scaling.setdefault(_TRAINED, positions)
    return {"rope_scaling": {"rope_type": kind, **scaling}}


def write_rope(shape: ModelShape) -> dict[str, Any]:
    """The section of version 5, and that of version 4, which has fields of its own beside it."""
    scaling = shape.rope_scaling
    written: dict[str, Any] = {} if scaling is None else scaling.written()
    return {
        "rope_scaling": written or None,
        "rope_parameters": {
            "rope_type": "default",
            **written,
            "rope_theta": float(shape.rotary_emb_base),
            "partial_rotary_factor": rotary_share(shape),
        },
    }


def rotary_share(shape: ModelShape) -> float:
    """The share whose product with the head size, rounded down, is the rotated size."""
    share = shape.rotary_dim / shape.head_dim
    is_exact = int(shape.head_dim * share) == shape.rotary_dim
    return share if is_exact else math.nextafter(share, 1.0)
