"""Optimizer, learning rate and regularisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from odm.wording import counted

from ..declarations import Bound, at_least, in_range
from ..sections import Optimizer, Schedule
from .draft import Draft

_TYPES = {
    **dict.fromkeys(("adam", "adamw", "cpu_adam", "cpu_torch_adam"), "adam"),
    **{"sgd": "sgd", "lion": "lion"},
}
_REFUSED_NAMES = {
    **{"onebitadam": "1-bit Adam", "sm3": "SM3", "madgrad_wd": "MADGRAD"},
    "muon": "Muon",
}
_NUMBER = (float, at_least(0))
_SHARE = (float, in_range("[0, 1)"))
_PARAMS: Mapping[str, Any] = dict.fromkeys(("lr", "weight_decay", "max_grad_norm"), _NUMBER)
_IS_BETAS = Bound("two in [0, 1)", lambda b: len(b) == 2 and all(0 <= beta < 1 for beta in b))
_PARAMS_OF: Mapping[str, Mapping[str, Any]] = {
    "adam": {
        **{**_PARAMS, "betas": (list[float], _IS_BETAS), "eps": _NUMBER},
        **dict.fromkeys(("adam_w_mode", "bias_correction", "torch_adam"), Any),
    },
    "lion": {**_PARAMS, "betas": (list[float], _IS_BETAS)},
    "sgd": {**_PARAMS, "momentum": _SHARE, "dampening": _SHARE, "nesterov": Any},
}
"""Keys of `optimizer.params` with their types and bounds, by optimizer."""


def resolve_optimizer(draft: Draft) -> Optimizer:
    """Returns the optimizer, from its section and the keys beside it."""
    section = draft.typed("optimizer", draft["optimizer"], {"type": Any, "params": dict[str, Any]})
    kind = _optimizer_type(draft, section.get("type"))
    params = draft.typed("optimizer.params", section.get("params"), _PARAMS_OF[kind])
    for key in ("adam_w_mode", "bias_correction"):
        if not params.get(key, True):
            name = f"optimizer.params.{key}"
            problem = f"{name}: false is not supported; the optimizer is AdamW"
            draft.issues.add(name, problem)
    if draft["use_bnb_optimizer"] and kind != "adam":
        draft.refuse("use_bnb_optimizer", f"is for Adam, the optimizer is {kind}; remove the key")
    return draft.section(
        Optimizer,
        type=kind,
        options=_sgd_options(draft, params) if kind == "sgd" else {},
        learning_rate=_pick(draft, params, "lr", "lr"),
        betas=tuple(params.get("betas", (0.9, 0.99 if kind == "lion" else 0.999))),
        eps=params.get("eps", 1e-8),
        weight_decay=_pick(draft, params, "weight_decay", "weight_decay"),
        gradient_clipping=_pick(draft, params, "max_grad_norm", "gradient_clipping"),
    )


def _optimizer_type(draft: Draft, written: Any) -> str:
    outer = draft["optimizer_type"]
    if written is not None and outer is not None and str(written).lower() != outer.lower():
        draft.refuse("optimizer_type", f"is {outer!r}, optimizer.type is {written!r}; keep one")
    if draft["optimizer"] and written is None and outer is None:
        draft.refuse("optimizer", "needs a type, such as 'Adam'")
    name = str(written or outer or "adam")
    kind = name.lower()
    if kind in ("cpu_adam", "cpu_torch_adam"):
        draft.notes.append(f"optimizer type {name} is run as torch's fused AdamW")
    if kind in _TYPES:
        return _TYPES[kind]
    known = _REFUSED_NAMES.get(kind)
    reason = f"{known} is not part of this version" if known else "it is unknown"
    where = "optimizer.type" if written else "optimizer_type"
    draft.refuse(where, f"{name!r}: {reason}; use Adam, Lion or SGD")
    return "adam"


def _pick(draft: Draft, params: Mapping[str, Any], inner: str, outer: str) -> float:
    """Returns `optimizer.params.<inner>` or the outer key; where both are set they agree."""
    value, beside = params.get(inner), draft[outer]
    if value is None:
        return 1e-3 if beside is None else beside  # only `lr` has no default
    if draft.is_set(outer) and beside != value:
        draft.refuse(outer, f"is {beside}, optimizer.params.{inner} is {value}; keep one")
    return value


def _sgd_options(draft: Draft, params: Mapping[str, Any]) -> dict[str, Any]:
    options = {"momentum": 0.0, "dampening": 0.0, "nesterov": False}
    options |= {key: params[key] for key in options if key in params}
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        draft.refuse("optimizer.params.nesterov", "needs momentum above 0 and dampening 0")
    return options


def resolve_schedule(draft: Draft, learning_rate: float) -> Schedule:
    """Returns the length of the run, of the schedule and of its warm-up."""
    if draft["train_iters"] is None:
        advice = "set the number of optimizer steps, or train_epochs"
        draft.refuse("train_iters", f"is required; {advice}")
    train_iters = draft["train_iters"] or 1
    decay_iters, fraction = draft["lr_decay_iters"], draft["lr_decay_fraction"]
    draft.keep_one("lr_decay_fraction", "lr_decay_iters")
    if fraction is not None:
        decay_iters = max(math.floor(train_iters * _within_bounds(fraction)), 1)
        if 0 < train_iters * fraction < 1:  # below: a broken bound
            problem = f"{fraction} of train_iters {train_iters} is less than one iteration"
            draft.refuse("lr_decay_fraction", f"{problem}; raise it")
    decay_iters = max(train_iters if decay_iters is None else decay_iters, 1)
    if draft["min_lr"] > max(learning_rate, 0.0):
        problem = f"must be at most the learning rate {learning_rate:g}, got {draft['min_lr']:g}"
        draft.refuse("min_lr", problem)
    draft.keep_one("override_lr_scheduler", "use_checkpoint_lr_scheduler")
    warmup_iters = float(draft["warmup"] * decay_iters)
    return draft.section(
        Schedule,
        train_iters=train_iters,
        decay_iters=decay_iters,
        warmup_iters=warmup_iters,
        wsd_decay_iters=_wsd_decay_iters(draft, decay_iters, warmup_iters),
    )


def _within_bounds(fraction: float) -> float:
    """A fraction that can be computed with; one outside [0, 1] is refused by its declaration."""
    return min(max(fraction, 0.0), 1.0)


def _wsd_decay_iters(draft: Draft, schedule_iters: int, warmup_iters: float) -> int | None:
    """Length of the decay of ``lr_decay_style: wsd``; None with another style."""
    iters, fraction = draft["lr_wsd_decay_iters"], draft["lr_wsd_decay_fraction"]
    if draft["lr_decay_style"] != "wsd":
        for key in ("lr_wsd_decay_iters", "lr_wsd_decay_fraction", "lr_wsd_decay_style"):
            if draft.is_set(key):
                other = f"needs lr_decay_style wsd, got {draft['lr_decay_style']}"
                draft.refuse(key, f"{other}; remove the key")
        return None
    if (iters is None) == (fraction is None):
        both = "needs one of lr_wsd_decay_iters and lr_wsd_decay_fraction, got"
        problem = f"lr_decay_style wsd {both} {'neither' if iters is None else 'both'}"
        draft.issues.add("lr_wsd_decay_iters", problem)
        return iters
    key = "lr_wsd_decay_fraction" if iters is None else "lr_wsd_decay_iters"
    if iters is None:
        iters = max(round(schedule_iters * _within_bounds(fraction)), 1)
    if warmup_iters + iters > schedule_iters and max(fraction or 0, draft["warmup"]) <= 1:
        both = f"the decay of {counted(iters, 'iteration')} and the warm-up of {warmup_iters:g}"
        schedule = f"the schedule of {schedule_iters} (lr_decay_iters)"
        draft.issues.add(key, f"{key}: {both} are longer than {schedule}; shorten one")
    return iters
