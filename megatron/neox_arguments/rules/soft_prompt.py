"""Training of a prompt in front of a frozen model."""

from __future__ import annotations

from odm.wording import counted

from ..declarations import at_least, in_range
from ..purpose import Purpose
from ..sections.model import SoftPrompt
from .draft import Draft

KEY = "soft_prompt_tuning"
_LENGTH = (int, at_least(1))
_KINDS = {
    **{"enabled": bool, "num_tokens": _LENGTH, "n_tokens": _LENGTH},
    **{"init_string": str, "init_range": (float, in_range("[0, 1e6]"))},
}


def resolve_soft_prompt(draft: Draft, *, has_windows: bool) -> SoftPrompt | None:
    """Returns the prompt, or None where the section is missing, empty or not enabled.

    Args:
        draft: The configuration.
        has_windows: Whether some layers do not see all earlier tokens.
    """
    written = draft[KEY]
    section = draft.typed(KEY, written, _KINDS)
    if not written or not section.get("enabled", True):
        return None
    # GPT-NeoX documents num_tokens and reads n_tokens
    length, other = (section.get(key) for key in ("num_tokens", "n_tokens"))
    if None not in (length, other) and length != other:
        problem = f"{other} and num_tokens {length} are two lengths of the prompt; keep one"
        draft.refuse(f"{KEY}.n_tokens", problem)
    prompt = SoftPrompt(
        num_tokens=length or other or 10,
        init_string=section.get("init_string", ""),
        init_range=section.get("init_range", 0.5),
    )
    _check_length(draft, prompt.num_tokens)
    _check_attention(draft, has_windows=has_windows)
    with draft.training_rules():
        _check_training(draft)
    return prompt


def _check_length(draft: Draft, length: int) -> None:
    """The prompt takes positions of the model."""
    positions = draft["max_position_embeddings"] or 0
    text = draft["seq_length"] or 1 if draft.purpose is Purpose.TRAINING else 1
    if positions and text + length > positions:
        advice = f"set seq_length to {positions - length} or less" if positions > length else ""
        problem = (
            f"{counted(length, 'vector')} and {counted(text, 'token')} of text (seq_length) are "
            f"more than max_position_embeddings {positions}; {advice or 'shorten the prompt'}"
        )
        draft.refuse(f"{KEY}.num_tokens", problem)


def _check_attention(draft: Draft, *, has_windows: bool) -> None:
    """Refuses what counts distances or documents: the prompt is no part of them."""
    if draft["pos_emb"] in ("alibi", "rpe"):
        draft.refuse(KEY, f"does not work with pos_emb {draft['pos_emb']}; use another model")
    if has_windows:
        reason = "layers with a window do not see the prompt; use another model"
        draft.refuse(KEY, f"does not work with sliding_window_width and 'local' layers: {reason}")
    for key in ("reset_attention_mask", "reset_position_ids"):
        if draft[key]:
            draft.refuse(KEY, f"does not work with {key}; set {key}: false")


def _check_training(draft: Draft) -> None:
    stages = draft["pipe_parallel_size"] or 1
    if stages > 1:
        reason = "stages without the prompt would have nothing to train; use pipe_parallel_size 1"
        draft.refuse(KEY, f"does not work with pipe_parallel_size {stages}: {reason}")
    if draft["sequence_parallel"] and (draft["model_parallel_size"] or 1) > 1:
        reason = "the prompt is not cut along the sequence; set sequence_parallel: false"
        draft.refuse(KEY, f"does not work with sequence_parallel: {reason}")
    if not draft["load"]:
        reason = "set load to the checkpoints of a trained model, and finetune: true at the start"
        draft.refuse(KEY, f"trains nothing but the prompt, so it needs a model; {reason}")
