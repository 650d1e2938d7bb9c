"""What ``resolved.json`` of a checkpoint contains, in today's form.

The first form had GPT-NeoX's groups of keys as they were written, and a group `derived` of what
followed from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .fields import field_table
from .rules.model import NORM_EPSILONS
from .sections import SECTIONS

_RENAMED: Mapping[str, str] = {
    "precision": "precision.dtype",
    "optimizer_type": "optimizer.type",
    "optimizer_options": "optimizer.options",
    "adam_betas": "optimizer.betas",
    "adam_eps": "optimizer.eps",
    "lr_decay_iters": "schedule.decay_iters",
    "domains": "data.train_domains",
    "named_eval_iters": "evaluation.named_iters",
    "sampling_method": "mixing.method",
    "mixing_run_length": "mixing.run_length",
    "save_scale": "saving.scale",
    "save_factor": "saving.factor",
    "extra_save_steps": "saving.extra_steps",
    "text_gen_type": "generation.kind",
}
"""Names in `derived` -> section and field; other names there are those of the fields."""


def in_current_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of a resolved configuration of any version.

    Args:
        values: What ``resolved.json`` contains, group by group or section by section.

    Returns:
        By section. Fields of the network that are younger than the file have the value that was
        the only one then; others that the file does not tell are missing, and never null instead.
    """
    if "version" in values:
        return _with_later_fields(dict(values))
    sections: dict[str, dict[str, Any]] = {}
    written = {
        k: v for name, group in values.items() if name != "derived" for k, v in group.items()
    }
    for key, field in field_table().items():
        if field.answer and not field.is_computed and key in written:
            sections.setdefault(field.section, {})[field.answer] = written[key]
    homes = {
        answer.name: f"{section}.{answer.name}"
        for section, declared in SECTIONS.items()
        for answer in dataclasses.fields(declared.answers)
    }
    homes.update(_RENAMED)
    for name, value in values.get("derived", {}).items():
        section, _, answer_name = homes.get(name, "").partition(".")
        if section:
            sections.setdefault(section, {})[answer_name] = value
    model = sections.get("model", {})
    epsilon = NORM_EPSILONS.get(str(model.get("norm")), "")
    if epsilon in written:
        model["norm_epsilon"] = written[epsilon]
    if not written.get("checkpoint_activations", True):
        model["checkpoint_num_layers"] = 0
    return _with_later_fields(sections)


def _with_later_fields(sections: dict[str, Any]) -> dict[str, Any]:
    """Adds fields of the network that versions before them could not set."""
    model = sections.get("model")
    if model:  # what an imported or damaged file lacks altogether stays missing
        then: dict[str, Any] = {"qk_norm": "none", "rope_scaling": None, "opt_pos_emb_offset": 0}
        then |= {"attention_reach": [], "rpe_num_buckets": 32, "rpe_max_distance": 128}
        then |= {"reset_attention_mask": False, "reset_position_ids": False}
        if "use_bias_in_attn_linear" in model:
            then["use_bias_in_attn_output"] = model["use_bias_in_attn_linear"]
        sections["model"] = {**then, **model}
    return sections
