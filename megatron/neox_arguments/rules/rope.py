"""Scaling of rotation frequencies: which fields each type takes, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from megatron.errors import name_hint

from ..declarations import Bound, at_least, in_range
from ..errors import shown
from ..sections.model import RopeScaling, RopeType
from .draft import Draft

_KEY = "rope_scaling"
_FACTOR = (float, in_range("[1, 1e6]"))
_LENGTH = (int, at_least(1))
_POSITIVE = (float, in_range("(0, 1e6]"))
_NOT_NEGATIVE = (float, in_range("[0, 1e6]"))

_YARN: Mapping[str, tuple[Any, Bound]] = {
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), _POSITIVE),
    **dict.fromkeys(("mscale", "mscale_all_dim"), _NOT_NEGATIVE),
}
_REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "linear": {"factor": _FACTOR},
    "dynamic": {"factor": _FACTOR},
    "yarn": {"factor": _FACTOR, "original_max_position_embeddings": _LENGTH},
    "llama3": {
        "factor": _FACTOR,
        "original_max_position_embeddings": _LENGTH,
        "low_freq_factor": _POSITIVE,
        "high_freq_factor": _POSITIVE,
    },
}
_OPTIONAL: Mapping[str, Mapping[str, Any]] = {"yarn": {**_YARN, "truncate": bool}}

_ELSEWHERE = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""Fields of transformers' section that are keys of their own here."""


def resolve_rope_scaling(draft: Draft, rotary_dim: int) -> RopeScaling | None:
    """Returns how rotation frequencies are scaled; None leaves them as they are.

    Args:
        draft: The configuration.
        rotary_dim: Rotated dimensions of a head.
    """
    written = dict(draft[_KEY] or {})
    if not written:
        return None
    kind = _type(draft, written)
    if kind is None:
        return None
    if draft["pos_emb"] != "rotary":
        problem = f"needs pos_emb: rotary, got {draft['pos_emb']}; remove the section"
        draft.refuse(_KEY, problem)
        return None
    required, optional = _REQUIRED[kind], _OPTIONAL.get(kind, {})
    if not _has_known_keys(draft, kind, written, [*required, *optional]):
        return None
    values = draft.typed(_KEY, written, {**required, **optional})
    missing = [name for name in required if written.get(name) is None]
    if missing:
        draft.refuse(f"{_KEY}.{missing[0]}", f"is missing; {kind} needs {', '.join(required)}")
    if missing or len(values) < sum(value is not None for value in written.values()):
        return None  # a value was refused
    scaling = RopeScaling(rope_type=kind, **values)
    _check_together(draft, scaling, rotary_dim)
    return scaling


def _type(draft: Draft, written: dict[str, Any]) -> Any:
    """Takes the type out of ``written``; None if nothing is scaled, or it is refused."""
    names = [written.pop(key, None) for key in ("rope_type", "type")]
    kind, old = names
    if None not in names and kind != old:
        draft.refuse(_KEY, f"has rope_type {shown(kind)} and type {shown(old)}; keep rope_type")
        return None
    kind = old if kind is None else kind
    known = get_args(RopeType)
    if kind in known:
        return kind
    listed = ", ".join(known)
    if kind is None:
        draft.refuse(f"{_KEY}.rope_type", f"is missing; use one of {listed}")
    elif kind != "default":
        draft.refuse(f"{_KEY}.rope_type", f"must be one of {listed}, got {shown(kind)}")
    elif rest := [key for key, value in written.items() if value is not None]:
        problem = f"is default, which has no {rest[0]}; remove the section"
        draft.refuse(f"{_KEY}.rope_type", problem)
    return None


def _has_known_keys(draft: Draft, kind: str, written: Mapping[str, Any], known: list[str]) -> bool:
    """Refuses fields that are keys of their own here, or that the type has not."""
    is_good = True
    for key in written:
        if key in known:
            continue
        if key in _ELSEWHERE:
            problem = f"is a key of its own; write {_ELSEWHERE[key]} beside {_KEY}"
        elif key in RopeScaling.__dataclass_fields__:
            problem = f"has no meaning for {kind}, which takes {', '.join(known)}; remove it"
        else:
            problem = f"is unknown; {name_hint(key, known)}"
        draft.refuse(f"{_KEY}.{key}", problem)
        is_good = False
    return is_good


def _check_together(draft: Draft, scaling: RopeScaling, rotary_dim: int) -> None:
    """Checks fields against each other, and against the rotation."""
    kind = scaling.rope_type
    if kind == "llama3":
        low, high = scaling.low_freq_factor or 0.0, scaling.high_freq_factor or 0.0
        if high <= low:
            problem = f"must be above low_freq_factor {low:g}, got {high:g}"
            draft.refuse(f"{_KEY}.high_freq_factor", problem)
    if kind == "yarn":
        fast, slow = scaling.beta_fast or 32.0, scaling.beta_slow or 1.0
        if fast < slow:
            problem = f"must be at least beta_slow {slow:g}, got {fast:g}"
            draft.refuse(f"{_KEY}.beta_fast", problem)
        base = draft["rotary_emb_base"]
        if 0 < base <= 1:
            draft.refuse("rotary_emb_base", f"must be above 1 with {_KEY}: yarn, got {base:g}")
    if kind == "dynamic":
        if rotary_dim == 2:
            problem = (
                "dynamic needs at least 4 rotated dimensions per head, got 2; raise rotary_pct"
            )
            draft.issues.add(_KEY, f"{_KEY}: {problem}")
        limit = draft["max_position_embeddings"]
        draft.notes.append(
            f"'{_KEY}: dynamic' changes nothing up to max_position_embeddings {limit}, and "
            "longer texts are not read"
        )
