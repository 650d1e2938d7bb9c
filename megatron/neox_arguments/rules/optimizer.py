"""Optimizer, learning rate and regularisation."""

from __future__ import annotations

import math
from typing import Any

from ..coerce import parse_number
from ..sections import Optimizer, Schedule
from .draft import Draft

ADAM_NAMES = {"adam", "adamw", "cpu_adam", "cpu_torch_adam"}
REFUSED_NAMES = {
    "onebitadam": "1-bit Adam is not part of this version",
    "sm3": "SM3 is not part of this version",
    "madgrad_wd": "MADGRAD is not part of this version",
    "lion": "Lion is not part of this version",
    "muon": "Muon is not part of this version",
}
ADAM_KEYS = {
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "max_grad_norm",
    "adam_w_mode",
    "bias_correction",
    "torch_adam",
}
SGD_KEYS = {"lr", "momentum", "dampening", "nesterov", "weight_decay", "max_grad_norm"}


def resolve_optimizer(draft: Draft) -> Optimizer:
    """Returns the optimizer, from its section and the keys beside it."""
    section = draft["optimizer"] or {}
    for key in section:
        draft.require(
            key in ("type", "params"),
            "optimizer",
            f"optimizer.{key} is unknown; use type and params",
        )
    kind = _optimizer_type(draft, section.get("type"))
    params = _params(draft, section)
    learning_rate = _pick(draft, params, "lr", "lr", 1e-3)
    weight_decay = _pick(draft, params, "weight_decay", "weight_decay", draft["weight_decay"])
    clipping = _pick(
        draft, params, "max_grad_norm", "gradient_clipping", draft["gradient_clipping"]
    )
    betas, eps = _adam_numbers(draft, params)
    known = ADAM_KEYS if kind == "adam" else SGD_KEYS
    for key in params:
        draft.require(
            key in known,
            "optimizer",
            f"optimizer.params.{key} is unknown for {kind}; known: {', '.join(sorted(known))}",
        )
    for key in ("adam_w_mode", "bias_correction"):
        draft.require(
            bool(params.get(key, True)),
            "optimizer",
            f"optimizer.params.{key}: false is not supported; the optimizer is AdamW",
        )
    return draft.section(
        Optimizer,
        type=kind,
        options=_sgd_options(draft, params) if kind == "sgd" else {},
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        gradient_clipping=clipping,
    )


def _optimizer_type(draft: Draft, written: Any) -> str:
    outer = draft["optimizer_type"]
    if written is not None and outer is not None and str(written).lower() != outer.lower():
        draft.issues.add(
            "optimizer_type",
            f"optimizer_type is {outer!r}, optimizer.type is {written!r}; keep one",
        )
    if draft["optimizer"] and written is None and outer is None:
        draft.issues.add("optimizer", "optimizer needs a type, such as 'Adam'")
    name = str(written or outer or "adam")
    kind = name.lower()
    if kind in ADAM_NAMES:
        if kind in ("cpu_adam", "cpu_torch_adam"):
            draft.notes.append(f"optimizer type {name} is run as torch's fused AdamW")
        return "adam"
    if kind == "sgd":
        return "sgd"
    reason = REFUSED_NAMES.get(kind, "it is unknown")
    owner, where = ("optimizer", "optimizer.type") if written else ("optimizer_type",) * 2
    draft.issues.add(owner, f"{where} {name!r}: {reason}; use Adam or SGD")
    return "adam"


def _params(draft: Draft, section: Any) -> dict[str, Any]:
    params = section.get("params") or {}
    if not isinstance(params, dict):
        draft.issues.add("optimizer", f"optimizer.params must be a section, got {params!r}")
        return {}
    return {key: parse_number(value) for key, value in params.items() if value is not None}


def _pick(draft: Draft, params: dict[str, Any], inner: str, outer: str, default: float) -> float:
    """Returns `optimizer.params.<inner>` or the outer key; where both are set they agree."""
    value = params.get(inner)
    outer_value = draft[outer] if draft.is_set(outer) else None
    if value is None:
        number = float(outer_value if outer_value is not None else default)
        return _at_least_0(draft, outer, outer, number)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        draft.issues.add("optimizer", f"optimizer.params.{inner} must be a number, got {value!r}")
        return float(default)
    if outer_value is not None and float(outer_value) != float(value):
        draft.issues.add(
            outer, f"{outer} is {outer_value}, optimizer.params.{inner} is {value}; keep one"
        )
    return _at_least_0(draft, "optimizer", f"optimizer.params.{inner}", float(value))


def _at_least_0(draft: Draft, key: str, name: str, number: float) -> float:
    meaning = " (0 clips nothing)" if name == "gradient_clipping" else ""
    draft.require(
        math.isfinite(number) and number >= 0,
        key,
        f"{name} must be at least 0{meaning}, got {number}",
    )
    return number


def _adam_numbers(draft: Draft, params: dict[str, Any]) -> tuple[tuple[float, float], float]:
    betas = params.get("betas", [0.9, 0.999])
    numbers = [parse_number(beta) for beta in betas] if isinstance(betas, (list, tuple)) else []
    is_good = len(numbers) == 2 and all(
        isinstance(beta, (int, float)) and not isinstance(beta, bool) and 0 <= beta < 1
        for beta in numbers
    )
    if not is_good:
        draft.issues.add(
            "optimizer", f"optimizer.params.betas must be two numbers in [0, 1), got {betas!r}"
        )
        numbers = [0.9, 0.999]
    eps = params.get("eps", 1e-8)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        draft.issues.add("optimizer", f"optimizer.params.eps must be at least 0, got {eps!r}")
        eps = 1e-8
    return (float(numbers[0]), float(numbers[1])), float(eps)


def _sgd_options(draft: Draft, params: dict[str, Any]) -> dict[str, Any]:
    options = {
        "momentum": params.get("momentum", 0.0),
        "dampening": params.get("dampening", 0.0),
        "nesterov": params.get("nesterov", False),
    }
    for key in ("momentum", "dampening"):
        value = options[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            draft.issues.add(
                "optimizer", f"optimizer.params.{key} must be in [0, 1), got {value!r}"
            )
            options[key] = 0.0
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        draft.issues.add(
            "optimizer", "optimizer.params.nesterov needs momentum above 0 and dampening 0"
        )
    return options


def resolve_schedule(draft: Draft, learning_rate: float) -> Schedule:
    """Returns the length of the run, of the schedule and of its warm-up."""
    if draft["train_iters"] is None:
        draft.issues.add(
            "train_iters", "train_iters is required; set the number of optimizer steps"
        )
    train_iters = draft["train_iters"] or 1
    decay_iters, fraction = draft["lr_decay_iters"], draft["lr_decay_fraction"]
    if decay_iters is not None and fraction is not None:
        draft.issues.add(
            "lr_decay_fraction", "lr_decay_iters and lr_decay_fraction are both set; keep one"
        )
    if fraction is not None:
        decay_iters = max(math.floor(train_iters * fraction), 1)
        draft.require(
            train_iters * fraction >= 1 or fraction <= 0 or train_iters < 1,
            "lr_decay_fraction",
            f"lr_decay_fraction {fraction} of train_iters {train_iters} is less than one "
            "iteration; raise it",
        )
    decay_iters = max(train_iters if decay_iters is None else decay_iters, 1)
    draft.require(
        0 <= draft["min_lr"] <= max(learning_rate, 0.0),
        "min_lr",
        f"min_lr must be between 0 and the learning rate {learning_rate:g}, got "
        f"{draft['min_lr']:g}",
    )
    if draft["override_lr_scheduler"] and draft["use_checkpoint_lr_scheduler"]:
        draft.issues.add(
            "override_lr_scheduler",
            "override_lr_scheduler and use_checkpoint_lr_scheduler are both true; keep one",
        )
    warmup_iters = float(draft["warmup"] * decay_iters)
    return draft.section(
        Schedule,
        train_iters=train_iters,
        decay_iters=decay_iters,
        warmup_iters=warmup_iters,
        wsd_decay_iters=_wsd_decay_iters(draft, decay_iters, warmup_iters),
    )


def _wsd_decay_iters(draft: Draft, schedule_iters: int, warmup_iters: float) -> int | None:
    """Length of the decay of ``lr_decay_style: wsd``; None with another style."""
    iters, fraction = draft["lr_wsd_decay_iters"], draft["lr_wsd_decay_fraction"]
    if draft["lr_decay_style"] != "wsd":
        for key in ("lr_wsd_decay_iters", "lr_wsd_decay_fraction", "lr_wsd_decay_style"):
            draft.require(
                not draft.is_set(key),
                key,
                f"{key} needs lr_decay_style wsd, got {draft['lr_decay_style']}; remove the key",
            )
        return None
    if not draft.require(
        (iters is None) != (fraction is None),
        "lr_wsd_decay_iters",
        "lr_decay_style wsd needs one of lr_wsd_decay_iters and lr_wsd_decay_fraction, got "
        f"{'neither' if iters is None else 'both'}",
    ):
        return iters
    key = "lr_wsd_decay_fraction" if iters is None else "lr_wsd_decay_iters"
    if iters is None:
        iters = max(round(schedule_iters * fraction), 1)
    draft.require(
        warmup_iters + iters <= schedule_iters or max(fraction or 0, draft["warmup"]) > 1,
        key,
        f"{key}: the decay of {iters} iterations and the warm-up of {warmup_iters:g} are longer "
        f"than the schedule of {schedule_iters} (lr_decay_iters); shorten one",
    )
    return iters
