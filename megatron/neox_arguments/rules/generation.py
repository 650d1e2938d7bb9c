"""Generation: where prompts come from, how tokens are chosen, and what ends a text."""

from __future__ import annotations

import math
from typing import Any

from .draft import Draft

_KINDS = ("unconditional", "input-file", "interactive")


def resolve_generation(draft: Draft) -> dict[str, Any]:
    """Checks how text is generated and returns the source of prompts."""
    _check_sampling(draft)
    _check_ends(draft)
    kind = draft["text_gen_type"]
    if kind is None:
        kind = "input-file" if draft["sample_input_file"] else "unconditional"
    draft.require(
        kind in _KINDS,
        "text_gen_type",
        f"text_gen_type must be one of {', '.join(_KINDS)}, got {kind!r}",
    )
    draft.require(
        kind != "input-file" or bool(draft["sample_input_file"]),
        "text_gen_type",
        "text_gen_type is input-file but there is no sample_input_file; set it or pass -i",
    )
    return {"text_gen_type": str(kind)}


def _check_sampling(draft: Draft) -> None:
    temperature, penalty = draft["temperature"], draft["repetition_penalty"]
    draft.require(
        math.isfinite(temperature) and temperature >= 0,
        "temperature",
        f"temperature must be at least 0, got {temperature}",
    )
    for key in ("top_p", "min_p"):
        draft.require(0 <= draft[key] <= 1, key, f"{key} must be in [0, 1], got {draft[key]}")
    draft.require(draft["top_k"] >= 0, "top_k", f"top_k must be at least 0, got {draft['top_k']}")
    draft.require(
        math.isfinite(penalty) and penalty > 0,
        "repetition_penalty",
        f"repetition_penalty must be above 0, got {penalty}; 1 switches it off",
    )


def _check_ends(draft: Draft) -> None:
    for key in ("maximum_tokens", "num_samples", "generation_batch_size"):
        draft.require(draft[key] >= 1, key, f"{key} must be at least 1, got {draft[key]}")
    draft.require(
        bool(draft["prompt_end"]),
        "prompt_end",
        "prompt_end is empty; give the text that ends a prompt, such as '\\n'",
    )
    draft.require(
        all(draft["stop_strings"] or ()),
        "stop_strings",
        "stop_strings holds an empty text, which would end every sample at once; remove it",
    )
    draft.require(
        all(token >= 0 for token in draft["stop_tokens"] or ()),
        "stop_tokens",
        f"stop_tokens must be token ids of at least 0, got {draft['stop_tokens']}",
    )
