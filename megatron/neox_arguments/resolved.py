"""What ``resolved.json`` of a checkpoint holds, in today's form.

The first form had GPT-NeoX's groups of keys as they were written, and a group `derived` of what
followed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import field_table
from .rules.model import NORM_EPSILONS

_DERIVED: Mapping[str, str] = {
    **{f"{what}_parallel_size": "layout" for what in ("data", "model", "pipe")},
    **dict.fromkeys(("world_size", "zero_stage", "zero_options"), "layout"),
    **dict.fromkeys(("train_batch_size", "micro_batch_size"), "batch"),
    "gradient_accumulation_steps": "batch",
    "precision": "precision.dtype",
    "fp16_options": "precision",
    **dict.fromkeys(("num_kv_heads", "head_dim", "rotary_dim"), "model"),
    **dict.fromkeys(("mlp_inner_size", "is_gated_mlp"), "model"),
    "optimizer_type": "optimizer.type",
    "optimizer_options": "optimizer.options",
    "adam_betas": "optimizer.betas",
    "adam_eps": "optimizer.eps",
    **dict.fromkeys(("learning_rate", "weight_decay", "gradient_clipping"), "optimizer"),
    "lr_decay_iters": "schedule.decay_iters",
    **dict.fromkeys(("warmup_iters", "train_iters"), "schedule"),
    "domains": "data.train_domains",
    **dict.fromkeys(("valid_domains", "test_domains", "split", "seq_length"), "data"),
    **{f"{s}_{what}": "data" for s in ("train", "valid", "test") for what in ("paths", "weights")},
    "named_eval_iters": "evaluation.named_iters",
    "sampling_method": "mixing.method",
    "mixing_run_length": "mixing.run_length",
    **dict.fromkeys(("min_weights", "max_weights", "max_epochs"), "mixing"),
    **dict.fromkeys(("save_path", "load_path"), "saving"),
    "save_scale": "saving.scale",
    "save_factor": "saving.factor",
    "extra_save_steps": "saving.extra_steps",
    "log_dir": "logging",
    "text_gen_type": "generation.kind",
}
"""Names in `derived` -> section, or section and field where that has another name."""


def in_current_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of a resolved configuration of any version.

    Args:
        values: What ``resolved.json`` holds, group by group or section by section.

    Returns:
        By section; a field that the file does not tell is missing, and is never null instead.
    """
    if "version" in values:
        return dict(values)
    sections: dict[str, dict[str, Any]] = {}
    written = {
        k: v for name, group in values.items() if name != "derived" for k, v in group.items()
    }
    for key, field in field_table().items():
        if field.answer and not field.is_computed and key in written:
            sections.setdefault(field.section, {})[field.answer] = written[key]
    for name, value in values.get("derived", {}).items():
        section, _, field_name = _DERIVED.get(name, "").partition(".")
        if section:
            sections.setdefault(section, {})[field_name or name] = value
    model = sections.get("model", {})
    epsilon = NORM_EPSILONS.get(str(model.get("norm")), "")
    if epsilon in written:
        model["norm_epsilon"] = written[epsilon]
    if not written.get("checkpoint_activations", True):
        model["checkpoint_num_layers"] = 0
    return sections
