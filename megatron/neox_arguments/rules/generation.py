"""Generation: where prompts come from, how tokens are chosen, and what ends a text."""

from __future__ import annotations

from ..sections import Generation
from .draft import Draft


def resolve_generation(draft: Draft) -> Generation:
    """Returns how text is generated."""
    kind, has_file = draft["text_gen_type"], bool(draft["sample_input_file"])
    if kind is None:
        kind = "input-file" if has_file else "unconditional"
    if kind == "input-file" and not has_file:
        problem = "is input-file but there is no sample_input_file; set it or pass -i"
        draft.refuse("text_gen_type", problem)
    return draft.section(Generation, kind=kind)
