"""Generation: where prompts come from, how tokens are chosen, and what ends a text."""

from __future__ import annotations

from ..sections import Generation
from .draft import Draft

_KINDS = ("unconditional", "input-file", "interactive")


def resolve_generation(draft: Draft) -> Generation:
    """Returns how text is generated."""
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
    return draft.section(Generation, kind=kind)


def _check_ends(draft: Draft) -> None:
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
