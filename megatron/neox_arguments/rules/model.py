"""The shape of the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..sections import Model
from ..sections.model import GATED_ACTIVATIONS, MOST_LAYERS
from .draft import Draft

_WIDEST_MLP = 2**31

ATTENTION_TYPES = ("global", "flash")
REFUSED_ATTENTION = {
    "local": "sliding windows are not part of this version",
    "sparse_fixed": "sparse attention is not part of this version",
    "sparse_variable": "sparse attention is not part of this version",
    "bigbird": "sparse attention is not part of this version",
    "bslongformer": "sparse attention is not part of this version",
    "gmlp": "gMLP layers are not part of this version",
    "amlp": "aMLP layers are not part of this version",
    "rwkv": "RWKV layers are not part of this version",
    "mamba": "Mamba layers are not part of this version",
}
_WITHOUT_HEADS = frozenset({"rwkv", "mamba", "gmlp"})
"""Refused types whose files may give a number of heads that nothing reads."""
REFUSED_VALUES = {
    "pos_emb": {
        "rpe": "use rotary, learned, sinusoidal or none",
        "alibi": "use rotary, learned, sinusoidal or none",
    },
    "norm": {
        "te_rmsnorm": "use rmsnorm",
        "te_layernorm": "use layernorm",
        "non_parametric_layernorm": "use layernorm",
    },
}


NORM_EPSILONS = {
    "layernorm": "layernorm_epsilon",
    "rmsnorm": "rms_norm_epsilon",
    "scalenorm": "scalenorm_epsilon",
}
"""The key of each norm's epsilon."""


def resolve_model(draft: Draft) -> Model:
    """Returns the network."""
    hidden, heads, layers = _sizes(draft)
    head_dim = max(hidden // heads, 1)
    for key, refused in REFUSED_VALUES.items():
        if draft[key] in refused:
            draft.issues.add(
                key, f"{key}: {draft[key]!r} is not part of this version; {refused[draft[key]]}"
            )
    _check_unbuilt(draft, layers)
    _check_attention(draft, layers)
    if draft["output_layer_parallelism"] == "row":
        draft.notes.append("'output_layer_parallelism: row' gave wrong losses; read as 'column'")
    if draft["gpt_j_tied"] and not draft["gpt_j_residual"]:
        draft.notes.append("gpt_j_tied does nothing without gpt_j_residual")
    inner, is_gated = _mlp_width(draft, hidden)
    return draft.section(
        Model,
        head_dim=head_dim,
        num_kv_heads=_kv_heads(draft, heads),
        rotary_dim=_rotary_dim(draft, head_dim),
        mlp_inner_size=inner,
        is_gated_mlp=is_gated,
        norm_epsilon=draft[NORM_EPSILONS.get(draft["norm"], "layernorm_epsilon")],
        checkpoint_num_layers=(
            draft["checkpoint_num_layers"] if draft["checkpoint_activations"] else 0
        ),
    )


def _sizes(draft: Draft) -> tuple[int, int, int]:
    for key in ("hidden_size", "num_attention_heads", "num_layers", "max_position_embeddings"):
        draft.require(draft[key] is not None, key, f"{key} must be at least 1, got None")
    hidden = max(draft["hidden_size"] or 1, 1)
    heads = max(draft["num_attention_heads"] or 1, 1)
    draft.require(
        hidden % heads == 0 or not has_heads(draft),
        "hidden_size",
        f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; "
        f"set hidden_size to {heads * max(round(hidden / heads), 1)} or change the heads",
    )
    layers = draft["num_layers"] or 1
    return hidden, heads, min(max(layers, 1), MOST_LAYERS)


def _check_unbuilt(draft: Draft, layers: int) -> None:
    """Refuses parts of the network that have a key but are not built."""
    unique = draft["num_unique_layers"]
    draft.require(
        unique in (None, layers),
        "num_unique_layers",
        f"num_unique_layers is {unique}: layers cannot share weights; remove it",
    )
    _check_window(draft)


def _check_window(draft: Draft) -> None:
    """Takes a sliding window that is as wide as a sample: it hides nothing."""
    width, length = draft["sliding_window_width"], draft["seq_length"]
    if width is None:
        return
    if width < (length or 1):
        draft.issues.add(
            "sliding_window_width",
            f"sliding_window_width {width} is less than seq_length {length}: sliding windows are "
            "not part of this version; remove it, or lower seq_length",
        )
        return
    positions = draft["max_position_embeddings"] or length
    beyond = " (longer texts are read without a window)" if positions > width else ""
    draft.notes.append(
        f"'sliding_window_width' has no effect: {width} is not less than seq_length {length}"
        f"{beyond}"
    )


def _check_attention(draft: Draft, layers: int) -> None:
    """Checks that `attention_config` gives each layer a type that is built."""
    written = draft["attention_config"]
    types = None if written is None else _expand(draft, written, layers)
    if types is None:
        return
    for name in dict.fromkeys(types):
        if name in ATTENTION_TYPES:
            continue
        reason = REFUSED_ATTENTION.get(name, "it is unknown")
        draft.issues.add(
            "attention_config", f"attention_config: {name!r}: {reason}; use 'global' or 'flash'"
        )
    draft.require(
        len(types) == layers,
        "attention_config",
        f"attention_config gives {len(types)} layers, num_layers is {layers}; "
        "make them equal or write 'all'",
    )


def _expand(draft: Draft, written: Any, layers: int) -> list[str] | None:
    """Returns the list of types, or None after noting that the form is wrong."""
    if isinstance(written, str):
        return [written] * layers
    if written and all(isinstance(item, str) for item in written):
        return list(written)
    types: list[str] = []
    for item in written:
        entry = _parse_entry(item)
        if entry is None:
            draft.issues.add(
                "attention_config",
                'attention_config must look like [[["flash"], 12]] or [[["flash"], "all"]], '
                f"got {written!r}",
            )
            return None
        names, repeats = entry
        if repeats is not None and repeats > MOST_LAYERS:
            draft.issues.add(
                "attention_config",
                f"attention_config repeats types {repeats} times, num_layers is {layers}; make "
                "them equal or write 'all'",
            )
            return None
        if repeats is not None:
            types += names * repeats
            continue
        if layers % len(names):
            draft.issues.add(
                "attention_config",
                f"attention_config: 'all' repeats {len(names)} types, num_layers is {layers}, "
                "which is no multiple of it; write the number of repeats",
            )
            return None
        return names * (layers // len(names))
    return types


def _parse_entry(item: Any) -> tuple[list[str], int | None] | None:
    """Returns types and repeats of ``[[types...], repeats]``, None repeats for `all`; else None."""
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        return None
    names, repeats = item
    if not isinstance(names, (list, tuple)) or not names:
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    if repeats == "all":
        return list(names), None
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        return None
    return list(names), repeats


def has_heads(draft: Draft) -> bool:
    """Tells whether every layer that `attention_config` names divides its width among heads."""
    return _WITHOUT_HEADS.isdisjoint(_words(draft["attention_config"]))


def _words(written: Any) -> Iterator[str]:
    if isinstance(written, str):
        yield written
    elif isinstance(written, (list, tuple)):
        for item in written:
            yield from _words(item)


def _kv_heads(draft: Draft, heads: int) -> int:
    count = draft["num_kv_heads"]
    if count is None or not has_heads(draft):
        return heads
    draft.require(
        1 <= count <= heads and heads % count == 0,
        "num_kv_heads",
        f"num_kv_heads must divide num_attention_heads {heads}, got {count}",
    )
    return max(count, 1)


def _rotary_dim(draft: Draft, head_dim: int) -> int:
    if draft["pos_emb"] != "rotary" or not has_heads(draft):
        return 0
    share = draft["rotary_pct"]
    if not draft.require(
        0 < share <= 1, "rotary_pct", f"rotary_pct must be above 0, at most 1, got {share:g}"
    ):
        return 0
    size = int(head_dim * share)
    draft.require(
        size >= 2 and size % 2 == 0,
        "rotary_pct",
        f"rotary_pct {share:g} rotates {size} of {head_dim} dimensions of a head; "
        "their number must be even and at least 2",
    )
    return size


def _mlp_width(draft: Draft, hidden: int) -> tuple[int, bool]:
    """Returns the inner width of the MLP as built, and whether it is gated.

    Without `mlp_inner_size` it is the width that GPT-NeoX builds from X = intermediate_size,
    expansion_factor * hidden or 4 * hidden: X rounded up to `mlp_multiple_of` for plain
    activations; for gated ones half of int(2X/3), rounded up, even where X was written out.
    """
    is_gated = draft["activation"] in GATED_ACTIVATIONS
    exact, size, factor = (
        draft["mlp_inner_size"],
        draft["intermediate_size"],
        draft["expansion_factor"],
    )
    multiple = max(draft["mlp_multiple_of"], 1)
    if exact is not None:
        return _round_up(exact, multiple), is_gated
    key = "intermediate_size" if size else "expansion_factor"
    wanted = size or (factor * hidden if factor else 4 * hidden)
    if not draft.require(
        abs(wanted) <= _WIDEST_MLP,
        key,
        f"{key} {size or factor or 4:g} makes an MLP wider than {_WIDEST_MLP}; lower it",
    ):
        return 1, is_gated
    base = int(wanted)
    inner = _round_up(int(2 * base / 3) // 2 if is_gated else base, multiple)
    draft.require(
        inner >= 1 or min(size or 1, factor or 1) <= 0,  # those have an issue above
        key,
        f"{key} {size or factor} makes an MLP of width 0; raise it, or set mlp_inner_size",
    )
    if is_gated:
        _explain_gated_width(draft, inner, base, hidden)
    return max(inner, 1), is_gated


def _explain_gated_width(draft: Draft, inner: int, base: int, hidden: int) -> None:
    """Prints the width of a gated MLP, which is seldom the one that was meant."""
    if draft.is_set("intermediate_size"):
        source, advice = f"intermediate_size {base}", f"Set mlp_inner_size: {base} if {base}"
    else:
        source = f"{base}, {draft['expansion_factor'] or 4:g} times hidden_size"
        wide = _round_up(int(8 * hidden / 3), 256)
        advice = f"Set mlp_inner_size: {wide} if Llama's {wide}"
    draft.notes.append(
        f"the gated MLP is {inner} wide: GPT-NeoX builds a third of {source}. {advice} was meant"
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
