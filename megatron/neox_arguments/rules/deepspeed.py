"""Sections that are handed to DeepSpeed as they are, and keys that are added to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.errors import name_hint

from ..coerce import coerce
from ..fields import DEEPSPEED_KEYS, field_table
from ..unsupported import UNSUPPORTED
from .draft import Draft

_FILES = {"enabled": bool, "output_path": str, "job_name": str}
SECTION_KEYS: Mapping[str, Mapping[str, Any]] = {
    "flops_profiler": {
        **{"enabled": bool, "detailed": bool, "recompute_fwd_factor": float, "output_file": str},
        **dict.fromkeys(("profile_step", "module_depth", "top_modules"), int),
    },
    "tensorboard": _FILES,
    "csv_monitor": _FILES,
    "wandb": {"enabled": bool, "group": str, "team": str, "project": str},
}
"""Keys and types of DeepSpeed's sections that are passed through."""

_SECTIONS = (
    *("comet", "compile", "expert_parallel", "hybrid_engine"),
    *("tensor_parallel", "timers", "torch_autocast", "weight_quantization"),
)
_SWITCHES = (
    *("dataloader_drop_last", "disable_allgather", "disable_python_gc", "memory_breakdown"),
    *("managed_gradient_accumulation", "use_data_before_expert_parallelism"),
)
_TEXTS = ("gradient_allreduce_op", "log_level", "seq_parallel_communication_data_type")
EXTRA_KEYS: Mapping[str, Any] = {
    **dict.fromkeys(_SECTIONS, dict[str, Any]),
    **dict.fromkeys(_SWITCHES, bool),
    **dict.fromkeys(_TEXTS, str),
    "vocabulary_size": int,
}
"""Keys of DeepSpeed's configuration that are none of ours, with their types."""

_COMPUTED = ("pipeline", "zero_force_ds_cpu_optimizer")
"""Keys that are computed for DeepSpeed and are none of ours."""


def typed_section(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a section with the types that DeepSpeed wants; null asks for its default."""
    kinds = SECTION_KEYS[name]
    return {k: coerce(v, kinds[k]) for k, v in section.items() if v is not None}


def check_deepspeed(draft: Draft) -> None:
    """Checks the sections that are passed through, and `deepspeed_extra_args`."""
    for name, kinds in SECTION_KEYS.items():
        draft.typed(name, draft[name], kinds)
    for key, value in (draft["deepspeed_extra_args"] or {}).items():
        _check_extra(draft, str(key), value)


def _check_extra(draft: Draft, key: str, value: Any) -> None:
    name, field, row = f"deepspeed_extra_args.{key}", field_table(), UNSUPPORTED.get(key)
    if row:
        typed = draft.typed_value(name, value, row.type)
        if typed is not None and row.verdict == "no effect":
            draft.note_no_effect(name, row.reason)
        elif typed is not None and row.is_asked_for(typed):
            draft.refuse(name, f"is not supported: {row.reason}; remove it")
    elif key in EXTRA_KEYS:
        draft.typed_value(name, value, EXTRA_KEYS[key])
    elif key in field:
        fault = "would replace a computed value" if key in DEEPSPEED_KEYS else "is no key"
        draft.refuse(name, f"{fault}; set {key} itself")
    elif key in _COMPUTED:
        draft.refuse(name, "would replace a computed value; remove it")
    else:
        draft.issues.add(name, f"unknown key '{name}'; {name_hint(key, EXTRA_KEYS)}")
