"""Number format, loss scale and ZeRO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..aliases import ALIASES
from ..declarations import at_least, between
from ..sections import Precision
from .draft import Draft

_NUMBER = (float, at_least(0))
_SIZE = (int, at_least(0))
_LOSS_SCALE: Mapping[str, Any] = {
    "loss_scale": 0,  # 0 adapts it
    "initial_scale_power": 16,
    "loss_scale_window": 1000.0,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1.0,
    "auto_cast": False,
}
_LOSS_SCALE_KINDS: Mapping[str, Any] = {
    **dict.fromkeys((*_LOSS_SCALE, "min_scale"), _NUMBER),
    **dict.fromkeys(("consecutive_hysteresis", "auto_cast"), bool),
}
_LOSS_SCALE_WORDS = dict.fromkeys(("fp16", *_LOSS_SCALE_KINDS), Any)
"""Keys of the section fp16, which published files have in it twice and in the section bf16 too."""
_FP16_KINDS = {"enabled": bool, "type": Any, **_LOSS_SCALE_WORDS}
_BF16_KINDS = {
    **dict.fromkeys(("bf16", "immediate_grad_update", "check_grad_overflow"), Any),
    **{"enabled": bool, **_LOSS_SCALE_WORDS},
}
_FP16_TYPES = {"fp16": "fp16", "float16": "fp16", "bfloat16": "bfloat16", "bf16": "bfloat16"}

ZERO_DEFAULTS: Mapping[str, Any] = {
    "stage": 0,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_partitions": True,
    "allgather_bucket_size": 500_000_000,
    "overlap_comm": False,
}
ZERO_STAGE_3: Mapping[str, Any] = {
    "stage3_prefetch_bucket_size": _SIZE,
    "stage3_param_persistence_threshold": _SIZE,
    "stage3_model_persistence_threshold": _SIZE,
    "stage3_max_live_parameters": _SIZE,
    "stage3_max_reuse_distance": _SIZE,
    "stage3_gather_16bit_weights_on_model_save": bool,
    "stage3_gather_fp16_weights_on_model_save": bool,
    "stage3_module_granularity_threshold": _SIZE,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "stage3_allgather_sequential": bool,
}
_OFFLOADING = ("cpu_offload", "offload_optimizer", "offload_param")
ZERO_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(ZERO_DEFAULTS, bool),
    "stage": (int, between(0, 3)),
    "reduce_bucket_size": (int, at_least(1)),
    **dict.fromkeys(("allgather_bucket_size", "sub_group_size"), _SIZE),
    **dict.fromkeys(("round_robin_gradients", "ignore_unused_parameters"), bool),
    **dict.fromkeys(("elastic_checkpoint", "load_from_fp32_weights"), bool),
    **dict.fromkeys(_OFFLOADING, Any),
    **ZERO_STAGE_3,
}
_ACCUMULATED = {
    **{"fp32": "fp32", "float32": "fp32", "float": "fp32"},
    **{"fp16": "fp16", "float16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16"},
}


def resolve_precision(draft: Draft) -> Precision:
    """Returns number formats and the loss scale from `precision`, `fp16`, `bf16` and others."""
    fp16 = _section(draft, "fp16", _FP16_KINDS)
    bf16 = _section(draft, "bf16", _BF16_KINDS)
    unused = [f"bf16.{key}" for key in bf16 if key in _LOSS_SCALE_WORDS]
    if unused:
        draft.notes.append(f"{', '.join(unused)}: no effect, they belong to fp16")
    enabled = {}
    if fp16.get("enabled"):
        kind = str(fp16.get("type") or "fp16").lower()
        if kind not in _FP16_TYPES:
            words = f"must be one of {', '.join(_FP16_TYPES)}"
            draft.refuse("fp16.type", f"{words}, got {fp16.get('type')!r}")
        enabled["fp16"] = _FP16_TYPES.get(kind, "fp16")
    if bf16.get("enabled"):
        enabled["bf16"] = "bfloat16"
    sources = {f"{name}.enabled gives {value}": value for name, value in enabled.items()}
    if draft["precision"]:
        sources[f"precision is {draft['precision']}"] = draft["precision"]
    wanted = set(sources.values())
    if len(wanted) > 1:
        key = "precision" if draft["precision"] else "bf16"
        draft.issues.add(key, f"{' but '.join(sources)}; keep one of them")
    precision = wanted.pop() if len(wanted) == 1 else "fp32"
    with draft.training_rules():
        options = _loss_scale(draft, fp16) if precision == "fp16" else {}
        if precision != "fp16":
            _note_unused_loss_scale(draft, precision)
    reduced = "fp32" if draft["fp32_allreduce"] else draft["communication_data_type"]
    return draft.section(
        Precision,
        dtype=precision,
        key=next(iter(enabled), "precision"),
        fp16_options=options,
        communication_data_type="bf16" if reduced == "bfp16" else reduced,
    )


def _note_unused_loss_scale(draft: Draft, precision: str) -> None:
    for alias in ALIASES:
        is_of_fp16 = alias.new.startswith("fp16.") and draft.is_set(alias.old)
        if is_of_fp16 and draft[alias.old] != alias.default:
            draft.note_no_effect(alias.old, f"it belongs to fp16, and precision is {precision}")


def _section(draft: Draft, name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a section, in which the user's own keys need `enabled` beside them."""
    section = draft.typed(name, draft[name], kinds)
    written = [key for key, value in (draft[name] or {}).items() if value is not None]
    is_own = any(not draft.issues.is_read_as(f"{name}.{key}") for key in written)
    if is_own and "enabled" not in written:
        draft.issues.add(name, f"{name} needs 'enabled: true' or 'enabled: false'")
    return section


def _loss_scale(draft: Draft, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the loss scale as DeepSpeed takes it."""
    written = {key: value for key, value in section.items() if key in _LOSS_SCALE_KINDS}
    options = {**_LOSS_SCALE, **draft.typed("fp16", written, _LOSS_SCALE_KINDS)}
    smallest = options.pop("min_scale", None)
    outer = draft.issues.is_read_as("fp16.min_loss_scale")  # the section wins over the key beside
    if smallest is not None and (outer or "min_loss_scale" not in section):
        options["min_loss_scale"] = smallest
    for key in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"):
        options[key] = int(options[key])
    return {**options, "min_loss_scale": max(options["min_loss_scale"], 1)}


def resolve_zero(draft: Draft, precision: str) -> tuple[int, dict[str, Any]]:
    """Returns the effective ZeRO stage and DeepSpeed's section for it."""
    section = draft.typed("zero_optimization", draft["zero_optimization"], ZERO_KINDS)
    _refuse_offloading(draft, section)
    stage = section.pop("stage", 0)
    if stage == 0 and precision != "fp32":
        # DeepSpeed's plain engine starts Adam one step ahead in half precision (seen in bfloat16)
        stage = 1
        draft.notes.append(
            f"{precision} with ZeRO 0 is run as ZeRO 1: DeepSpeed's engine without ZeRO starts "
            "Adam one step ahead in half precision"
        )
    _check_formats(draft, stage)
    options = {**ZERO_DEFAULTS, **section, "stage": stage}
    if stage == 3 and "overlap_comm" not in section:
        options["overlap_comm"] = True
    if stage < 3:
        options = {key: value for key, value in options.items() if key not in ZERO_STAGE_3}
    return stage, options


def _check_formats(draft: Draft, stage: int) -> None:
    """Checks the number formats in which gradients are reduced and accumulated."""
    reduced = draft["communication_data_type"]
    if draft["fp32_allreduce"] and reduced not in (None, "fp32"):
        problem = f"is {reduced}, and fp32_allreduce reduces in fp32; keep one"
        draft.refuse("communication_data_type", problem)
    section = draft.typed("data_types", draft["data_types"], {"grad_accum_dtype": Any})
    written, name = section.get("grad_accum_dtype"), "data_types.grad_accum_dtype"
    kind = _ACCUMULATED.get(str(written).lower())
    if written is not None and kind is None:
        draft.refuse(name, f"must be fp32, fp16 or bf16, got {written!r}")
    elif kind not in (None, "fp32") and stage == 0:
        advice = "use fp32, or set zero_optimization.stage"
        draft.refuse(name, f"{written} does not work with fp32 weights and ZeRO 0; {advice}")


def _refuse_offloading(draft: Draft, section: dict[str, Any]) -> None:
    """Takes out `cpu_offload` and `offload_*` where they are off; refuses them otherwise."""
    targets = [section.pop(key, None) for key in _OFFLOADING]
    devices = [t.get("device", "none") if isinstance(t, Mapping) else t for t in targets]
    if any(device not in ("none", None, False) for device in devices):
        advice = "remove cpu_offload, offload_optimizer and offload_param"
        problem = f"offloading to the CPU or NVMe is not part of this version; {advice}"
        draft.issues.add("zero_optimization", f"zero_optimization: {problem}")
