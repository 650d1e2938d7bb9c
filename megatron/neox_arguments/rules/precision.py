"""Number format, loss scale and ZeRO."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from megatron.errors import name_hint

from ..aliases import ALIASES
from ..coerce import parse_number
from ..errors import shown
from ..sections import Precision
from .draft import Draft

FP16_KEYS = frozenset(
    {
        "enabled",
        "type",
        "fp16",  # published Pythia files repeat the name of the section inside it
        "loss_scale",
        "loss_scale_window",
        "initial_scale_power",
        "hysteresis",
        "consecutive_hysteresis",
        "min_loss_scale",
        "min_scale",
        "auto_cast",
    }
)
_LOSS_SCALE_KEYS = FP16_KEYS - {"enabled", "type"}
"""Keys that GPT-NeoX's files also write into the section bf16, where they do nothing."""
_FP16_TYPES = {"fp16": "fp16", "float16": "fp16", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_LOSS_SCALE: Mapping[str, Any] = {
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000.0,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1.0,
    "auto_cast": False,
}
BF16_KEYS = frozenset({"enabled", "bf16", "immediate_grad_update", "check_grad_overflow"})

ZERO_DEFAULTS: Mapping[str, Any] = {
    "stage": 0,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_partitions": True,
    "allgather_bucket_size": 500_000_000,
    "overlap_comm": False,
}
ZERO_STAGE_3 = frozenset(
    "stage3_" + name
    for name in (
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "model_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "gather_16bit_weights_on_model_save",
        "gather_fp16_weights_on_model_save",
        "module_granularity_threshold",
        "use_all_reduce_for_fetch_params",
        "allgather_sequential",
    )
)
ZERO_KEYS = (
    frozenset(ZERO_DEFAULTS)
    | ZERO_STAGE_3
    | {
        "sub_group_size",
        "round_robin_gradients",
        "ignore_unused_parameters",
        "elastic_checkpoint",
        "load_from_fp32_weights",
        "cpu_offload",
        "offload_optimizer",
        "offload_param",
    }
)
COMMUNICATION_FORMATS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "bfp16": "bf16"}
"""`communication_data_type` as DeepSpeed spells it; GPT-NeoX's reference says bfp16."""
_ACCUMULATED = {
    **{"fp32": "fp32", "float32": "fp32", "float": "fp32"},
    **{"fp16": "fp16", "float16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16"},
}
_SIZES = ("_size", "_threshold", "max_live_parameters", "max_reuse_distance")
"""Ends of the keys of the ZeRO section that count elements."""


def resolve_precision(draft: Draft) -> Precision:
    """Returns number formats and the loss scale from `precision`, `fp16`, `bf16` and others."""
    fp16 = _section(draft, "fp16", FP16_KEYS)
    bf16 = _section(draft, "bf16", BF16_KEYS | _LOSS_SCALE_KEYS)
    unused = [f"bf16.{key}" for key in bf16 if key in _LOSS_SCALE_KEYS]
    if unused:
        draft.notes.append(f"{', '.join(unused)}: no effect, they belong to fp16")
    enabled = {}
    if fp16.get("enabled"):
        kind = str(fp16.get("type") or "fp16").lower()
        draft.require(
            kind in _FP16_TYPES,
            "fp16",
            f"fp16.type must be one of {', '.join(_FP16_TYPES)}, got {fp16.get('type')!r}",
        )
        enabled["fp16"] = _FP16_TYPES.get(kind, "fp16")
    if bf16.get("enabled"):
        enabled["bf16"] = "bfloat16"
    wanted = set(enabled.values()) | ({draft["precision"]} if draft["precision"] else set())
    if len(wanted) > 1:
        sections = [f"{name}.enabled gives {value}" for name, value in enabled.items()]
        if draft["precision"]:
            sections.append(f"precision is {draft['precision']}")
        key = "precision" if draft["precision"] else "bf16"
        draft.issues.add(key, f"{' but '.join(sections)}; keep one of them")
    precision = next(iter(wanted)) if len(wanted) == 1 else "fp32"
    with draft.training_rules():
        options = _loss_scale(draft, fp16) if precision == "fp16" else {}
        if precision != "fp16":
            _note_unused_loss_scale(draft, precision)
    reduced = "fp32" if draft["fp32_allreduce"] else draft["communication_data_type"]
    if reduced is not None:
        reduced = COMMUNICATION_FORMATS.get(reduced.lower())
    return draft.section(
        Precision,
        dtype=precision,
        key=next(iter(enabled), "precision"),
        fp16_options=options,
        communication_data_type=reduced,
    )


def _note_unused_loss_scale(draft: Draft, precision: str) -> None:
    for alias in ALIASES:
        if alias.new.startswith("fp16.") and draft.is_set(alias.old):
            if draft[alias.old] != alias.default:
                draft.notes.append(f"{alias.old} does nothing in {precision}; it belongs to fp16")


def _section(draft: Draft, name: str, known: Collection[str]) -> dict[str, Any]:
    """Returns a section, numbers as numbers; refuses unknown keys and a missing `enabled`."""
    written = draft[name] or {}
    section = {key: parse_number(value) for key, value in written.items() if value is not None}
    for key in section:
        draft.require(key in known, name, f"unknown key '{name}.{key}'; {name_hint(key, known)}")
    is_written = any(not draft.issues.is_read_as(f"{name}.{key}") for key in section)
    if is_written and "enabled" not in section:
        draft.issues.add(name, f"{name} needs 'enabled: true' or 'enabled: false'")
    if not isinstance(section.get("enabled", False), bool):
        draft.issues.add(name, f"{name}.enabled must be true or false, got {section['enabled']!r}")
        section["enabled"] = False
    return section


def _loss_scale(draft: Draft, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the loss scale as DeepSpeed takes it."""
    options = {**_LOSS_SCALE, **{key: section[key] for key in _LOSS_SCALE if key in section}}
    if "min_scale" in section:
        beside = "min_loss_scale" not in section or draft.issues.is_read_as("fp16.min_loss_scale")
        options["min_loss_scale"] = section["min_scale" if beside else "min_loss_scale"]
    for key in ("consecutive_hysteresis", "auto_cast"):
        draft.require(isinstance(options[key], bool), "fp16", f"fp16.{key} must be true or false")
    for key in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"):
        value, name = options[key], f"fp16.{key}"
        if not _is_number(value) or value < 0:
            draft.issues.add(name, f"{name} must be a number of at least 0, got {value!r}")
        else:
            options[key] = max(int(value), 1) if key == "min_loss_scale" else int(value)
    scale = options["loss_scale"]
    if not _is_number(scale) or scale < 0:
        name = "fp16.loss_scale"
        draft.issues.add(name, f"{name} must be 0 (adapts) or above, got {scale!r}")
    return options


def resolve_zero(draft: Draft, precision: str) -> tuple[int, dict[str, Any]]:
    """Returns the effective ZeRO stage and DeepSpeed's section for it."""
    section = {k: parse_number(v) for k, v in (draft["zero_optimization"] or {}).items()}
    for key in section:
        draft.require(
            key in ZERO_KEYS,
            "zero_optimization",
            f"unknown key 'zero_optimization.{key}'; {name_hint(key, ZERO_KEYS)}",
        )
    section = {key: value for key, value in section.items() if value is not None}
    _refuse_offloading(draft, section)
    stage = section.pop("stage", 0)
    _check_zero_types(draft, section)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        name = "zero_optimization.stage"
        draft.issues.add(name, f"{name} must be 0, 1, 2 or 3, got {stage!r}")
        stage = 0
    stage = int(stage)
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
    draft.require(
        reduced is None or reduced.lower() in COMMUNICATION_FORMATS,
        "communication_data_type",
        f"communication_data_type must be fp32, fp16 or bf16, got {reduced!r}",
    )
    draft.require(
        not draft["fp32_allreduce"] or reduced is None or reduced.lower() == "fp32",
        "communication_data_type",
        f"communication_data_type is {reduced}, and fp32_allreduce reduces in fp32; keep one",
    )
    section = draft["data_types"] or {}
    for key in section:
        draft.require(
            key == "grad_accum_dtype",
            "data_types",
            f"unknown key 'data_types.{key}'; the only one is grad_accum_dtype",
        )
    written = section.get("grad_accum_dtype")
    kind = _ACCUMULATED.get(str(written).lower())
    draft.require(
        written is None or kind is not None,
        "data_types",
        f"data_types.grad_accum_dtype must be fp32, fp16 or bf16, got {written!r}",
    )
    draft.require(
        kind in (None, "fp32") or stage > 0,
        "data_types",
        f"data_types.grad_accum_dtype {written} does not work with fp32 weights and ZeRO 0; use "
        "fp32, or set zero_optimization.stage",
    )


def _check_zero_types(draft: Draft, section: Mapping[str, Any]) -> None:
    """Refuses values that DeepSpeed could not take: most keys are switches, the others sizes."""
    for key, value in section.items():
        if str(key).endswith(_SIZES):
            smallest = 1 if key == "reduce_bucket_size" else 0
            is_good = _is_number(value) and value >= smallest and float(value).is_integer()
            wanted = f"a whole number of at least {smallest}"
        else:
            is_good, wanted = isinstance(value, bool) or key not in ZERO_KEYS, "true or false"
        name = f"zero_optimization.{key}"
        draft.require(is_good, name, f"{name} must be {wanted}, got {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_offloading(draft: Draft, section: dict[str, Any]) -> None:
    """Takes out `cpu_offload` and `offload_*` where they are off; refuses them otherwise."""
    on = bool(section.pop("cpu_offload", False))
    for key in ("offload_optimizer", "offload_param"):
        target = section.pop(key, None)
        device = target.get("device", "none") if isinstance(target, Mapping) else target
        on = on or device not in ("none", None, False)
    draft.require(
        not on,
        "zero_optimization",
        "zero_optimization: offloading to the CPU or NVMe is not part of this version; "
        "remove cpu_offload, offload_optimizer and offload_param",
    )
