"""What each position may attend to: windows, local layers, relative biases, documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..declarations import between
from .draft import Draft

WINDOW = "sliding_window_width"
_LOCAL = {
    "block": (int, between(1, 1024)),
    **dict.fromkeys(("num_local_blocks", "num_sliding_window_blocks"), (int, between(1, 1 << 20))),
}
_OTHERS = {
    **dict.fromkeys(("different_layout_per_head", "horizontal_global_attention"), bool),
    **dict.fromkeys(("num_global_blocks", "num_different_global_patterns"), int),
    **dict.fromkeys(("local_window_blocks", "global_block_indices"), list),
    **dict.fromkeys(("global_block_end_indices",), list),
    **{"num_random_blocks": int, "attention": str, "mode": str},
}
"""Keys of `sparsity_config` that belong to types that are not built."""

Reaches = tuple[tuple[int, int] | None, ...]


def attention_reach(draft: Draft, types: Sequence[str] | None, *, layers: int) -> Reaches:
    """Returns `Model.attention_reach` for ``layers`` of the given types, None for one type.

    A window of GPT-NeoX is the left side of flash attention's, which does not count the token
    itself; `local` is the unidirectional layout of DeepSpeed's ``LocalSlidingWindowSparsityConfig``
    with a causal mask inside it.
    """
    local = _local_reach(draft, types or ())
    window = _window(draft, types)
    kinds = {"flash": window, "local": local}
    if types is None and window:
        reason = "all layers have it, while GPT-NeoX gives it to 'flash' layers of attention_config"
        draft.notes.append(f"'{WINDOW}': {reason}")
        return (window,) * layers
    if types is None:
        return ()
    reaches = tuple(kinds.get(name) for name in types)
    return reaches if any(reaches) else ()


def _window(draft: Draft, types: Sequence[str] | None) -> tuple[int, int] | None:
    """The reach of a layer with a window; None, and a note, where no layer has one."""
    width = draft[WINDOW]
    if width is None or width < 1:
        return None
    positions = draft["max_position_embeddings"] or width + 2
    if types is not None and "flash" not in types:
        reason = "attention_config has no 'flash' layer, and other layers have no window"
        draft.note_no_effect(WINDOW, reason)
        return None
    if width >= positions - 1:
        reason = f"{width} is not less than max_position_embeddings {positions} - 1"
        draft.note_no_effect(WINDOW, reason)
        return None
    if width >= (draft["seq_length"] or positions) - 1:
        reason = f"{width} is not less than seq_length {draft['seq_length']} - 1"
        draft.notes.append(f"'{WINDOW}' has no effect in training: {reason}")
    return width, 1


def _local_reach(draft: Draft, types: Sequence[str]) -> tuple[int, int] | None:
    """The reach of `local` layers; None, and a note, where there are none."""
    key, written = "sparsity_config", draft["sparsity_config"]
    blocks: dict[str, Any] = draft.typed(key, written, {**_LOCAL, **_OTHERS})
    if "local" not in types:
        if written:
            draft.note_no_effect(key, "attention_config has no 'local' layer")
        return None
    for name in sorted(blocks.keys() & _OTHERS.keys()):
        draft.notes.append(f"'{key}.{name}' has no effect on 'local' layers")
    count = blocks.get("num_local_blocks", blocks.get("num_sliding_window_blocks", 4))
    return count // 2, blocks.get("block", 16)


def check_relative_bias(draft: Draft) -> None:
    """Checks the keys of T5's relative bias."""
    buckets, distance = draft["rpe_num_buckets"], draft["rpe_max_distance"]
    if draft["pos_emb"] != "rpe":
        for key in filter(draft.is_set, ("rpe_num_buckets", "rpe_max_distance")):
            draft.note_no_effect(key, f"pos_emb is {draft['pos_emb']!r}")
    elif distance <= buckets // 2:
        problem = f"must be above half of rpe_num_buckets {buckets}, got {distance}"
        draft.refuse("rpe_max_distance", problem)


def check_documents(draft: Draft) -> None:
    """Notes where `reset_position_ids` has no effect."""
    if draft["reset_position_ids"] and draft["pos_emb"] in ("alibi", "rpe", "none"):
        reason = f"pos_emb {draft['pos_emb']!r} counts no positions from the start of a sample"
        draft.note_no_effect("reset_position_ids", reason)
