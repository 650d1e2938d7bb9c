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
    written = {key: value for key, value in (draft[_KEY] or {}).items() if value is not None}
    kind = _type(draft, written) if written else None
    if kind is None:
        return None
    if draft["pos_emb"] != "rotary":
        problem = f"needs pos_emb: rotary, got {draft['pos_emb']}; remove the section"
        draft.refuse(_KEY, problem)
        return None
    required = _REQUIRED[kind]
    kinds = {**required, **_OPTIONAL.get(kind, {})}
    for key in written:
        if key not in kinds:
            _refuse_key(draft, kind, key, [*kinds])
    values = draft.typed(_KEY, {key: written[key] for key in kinds if key in written}, kinds)
    missing = [name for name in required if name not in written]
    if missing and written.keys() <= kinds.keys():
        draft.refuse(f"{_KEY}.{missing[0]}", f"is missing; {kind} needs {', '.join(required)}")
    if missing or len(values) < len(written):
        return None  # a value was refused
    scaling = RopeScaling(rope_type=kind, **values)
    _check_together(draft, scaling, rotary_dim)
    return scaling


def _type(draft: Draft, written: dict[str, Any]) -> Any:
    """Takes the type out of ``written``; None if nothing is scaled, or it is refused."""
    kind, old = (written.pop(key, None) for key in ("rope_type", "type"))
    if None not in (kind, old) and kind != old:
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
    elif written:
        problem = f"is default, which has no {next(iter(written))}; remove the section"
        draft.refuse(f"{_KEY}.rope_type", problem)
    return None


def _refuse_key(draft: Draft, kind: str, key: str, known: list[str]) -> None:
    """Refuses a field that is a key of its own here, or that the type does not have."""
    if key in _ELSEWHERE:
        problem = f"is a key of its own; write {_ELSEWHERE[key]} beside {_KEY}"
    elif key in RopeScaling.__dataclass_fields__:
        problem = f"has no meaning for {kind}, which takes {', '.join(known)}; remove it"
    else:
        problem = f"is unknown; {name_hint(key, known)}"
    draft.refuse(f"{_KEY}.{key}", problem)


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
