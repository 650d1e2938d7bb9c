"""The shape of the network."""

from __future__ import annotations

import re
from typing import Any, get_args

from odm.wording import counted

from ..sections import Model
from ..sections.model import MOST_LAYERS, GatedActivation, UnbuiltNorm
from .attention import attention_reach, check_documents, check_relative_bias
from .draft import Draft
from .rope import resolve_rope_scaling
from .soft_prompt import resolve_soft_prompt

_WIDEST_MLP = 2**31

_ATTENTION_TYPES = ("global", "flash", "local")
_REFUSED_ATTENTION = {
    **{"gmlp": "gMLP layers are", "amlp": "aMLP layers are"},
    **{"rwkv": "RWKV layers are", "mamba": "Mamba layers are"},
    **dict.fromkeys(("sparse_fixed", "sparse_variable"), "sparse attention is"),
    **dict.fromkeys(("bigbird", "bslongformer"), "sparse attention is"),
}
_WITHOUT_HEADS = frozenset({"rwkv", "mamba", "gmlp"})
"""Refused types whose files may give a number of heads that nothing reads."""

NORM_EPSILONS = {
    "layernorm": "layernorm_epsilon",
    "rmsnorm": "rms_norm_epsilon",
    "scalenorm": "scalenorm_epsilon",
    "non_parametric_layernorm": "layernorm_epsilon",
}
"""The key of each norm's epsilon."""


def resolve_model(draft: Draft) -> Model:
    """Returns the network."""
    hidden, heads, layers = _sizes(draft)
    head_dim = max(max(draft["head_dim"] or 0, 0) or hidden // heads, 1)
    if draft["norm"] in get_args(UnbuiltNorm):
        advice = f"use {draft['norm'].removeprefix('te_')}"
        draft.issues.add("norm", f"norm: {draft['norm']!r} is not part of this version; {advice}")
    unique = draft["num_unique_layers"]
    if unique not in (None, layers):
        draft.refuse("num_unique_layers", f"is {unique}: layers cannot share weights; remove it")
    types = _attention_types(draft, layers)
    check_relative_bias(draft)
    check_documents(draft)
    if draft["output_layer_parallelism"] == "row":
        draft.notes.append("'output_layer_parallelism: row' gave wrong losses; read as 'column'")
    if draft["gpt_j_tied"] and not draft["gpt_j_residual"]:
        draft.note_no_effect("gpt_j_tied", "gpt_j_residual is false")
    inner, is_gated = _mlp_width(draft, hidden)
    kv_heads, rotary_dim = _kv_heads(draft, heads), _rotary_dim(draft, head_dim)
    output_bias = draft["use_bias_in_attn_output"]
    reach = attention_reach(draft, types, layers=layers)
    return draft.section(
        Model,
        head_dim=head_dim,
        num_kv_heads=kv_heads,
        qk_norm=_qk_norm(draft, heads, kv_heads),
        use_bias_in_attn_output=(
            draft["use_bias_in_attn_linear"] if output_bias is None else output_bias
        ),
        rotary_dim=rotary_dim,
        rope_scaling=resolve_rope_scaling(draft, rotary_dim),
        opt_pos_emb_offset=_position_offset(draft),
        attention_reach=reach,
        mlp_inner_size=inner,
        is_gated_mlp=is_gated,
        norm_epsilon=draft[NORM_EPSILONS.get(draft["norm"], "layernorm_epsilon")],
        checkpoint_num_layers=(
            draft["checkpoint_num_layers"] if draft["checkpoint_activations"] else 0
        ),
        soft_prompt=resolve_soft_prompt(draft, has_windows=bool(reach)),
    )


def _sizes(draft: Draft) -> tuple[int, int, int]:
    for key in ("hidden_size", "num_attention_heads", "num_layers", "max_position_embeddings"):
        if draft[key] is None:
            draft.refuse(key, "must be at least 1, got None")
    hidden = max(draft["hidden_size"] or 1, 1)
    heads = max(draft["num_attention_heads"] or 1, 1)
    if hidden % heads and has_heads(draft) and draft["head_dim"] is None:
        wanted = heads * max(round(hidden / heads), 1)
        advice = f"set hidden_size to {wanted}, change the heads or set head_dim"
        problem = f"{hidden} is not a multiple of num_attention_heads {heads}; {advice}"
        draft.refuse("hidden_size", problem)
    return hidden, heads, min(max(draft["num_layers"] or 1, 1), MOST_LAYERS)


def _attention_types(draft: Draft, layers: int) -> tuple[str, ...] | None:
    """Returns the type of each layer that `attention_config` gives; None without the key.

    Types that are not built, and another number of layers, are refused.
    """
    key, written = "attention_config", draft["attention_config"]
    if written is None:
        return None
    types = _types_by_layer(draft, written, layers)
    if types is None:
        return None
    for name in dict.fromkeys(types):
        if name not in _ATTENTION_TYPES:
            refused = _REFUSED_ATTENTION.get(name)
            reason = f"{refused} not part of this version" if refused else "it is unknown"
            draft.issues.add(key, f"{key}: {name!r}: {reason}; use 'global', 'flash' or 'local'")
    if len(types) != layers:
        advice = "make them equal or write 'all'"
        draft.refuse(key, f"gives {counted(len(types), 'layer')}, num_layers is {layers}; {advice}")
    return types


def _types_by_layer(draft: Draft, written: Any, layers: int) -> tuple[str, ...] | None:
    """Returns the type of each layer, or None after noting that the form is wrong."""
    if isinstance(written, str):
        return (written,) * layers
    if written and all(isinstance(item, str) for item in written):
        return tuple(written)
    key, types = "attention_config", list[str]()
    for item in written:
        if not _is_entry(item):
            form = '[[["flash"], 12]] or [[["flash"], "all"]]'
            draft.refuse(key, f"must look like {form}, got {written!r}")
            return None
        names, repeats = item
        if repeats != "all":
            types += [*names] * min(repeats, MOST_LAYERS)
        elif layers % len(names) == 0:
            return (*names,) * (layers // len(names))
        else:
            problem = f"repeats {len(names)} types, num_layers is {layers}, which is no multiple"
            advice = "write the number of repeats"
            draft.issues.add(key, f"{key}: 'all' {problem} of it; {advice}")
            return None
    return tuple(types)


def _is_entry(item: Any) -> bool:
    """Tells whether an item has the form ``[[types...], repeats]``."""
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        return False
    names, repeats = item
    if not isinstance(names, (list, tuple)) or not names:
        return False
    is_count = isinstance(repeats, int) and not isinstance(repeats, bool) and repeats >= 1
    return all(isinstance(name, str) for name in names) and (repeats == "all" or is_count)


def has_heads(draft: Draft) -> bool:
    """Tells whether every layer that `attention_config` names divides its width among heads."""
    return _WITHOUT_HEADS.isdisjoint(re.findall(r"\w+", str(draft["attention_config"])))


def _kv_heads(draft: Draft, heads: int) -> int:
    count = draft["num_kv_heads"]
    if count is None or not has_heads(draft):
        return heads
    if not 1 <= count <= heads or heads % count:
        draft.refuse("num_kv_heads", f"must divide num_attention_heads {heads}, got {count}")
    return max(count, 1)


def _qk_norm(draft: Draft, heads: int, kv_heads: int) -> str:
    """Returns how queries and keys are normalised."""
    by_neox, wanted = draft["use_qk_layernorm"], draft["qk_norm"]
    if by_neox and wanted not in (None, "neox"):
        problem = f"is true, which is qk_norm: neox, but qk_norm is {wanted}; keep qk_norm"
        draft.refuse("use_qk_layernorm", problem)
    kind = wanted or ("neox" if by_neox else "none")
    if kind == "neox" and kv_heads < heads:
        key = "use_qk_layernorm" if by_neox else "qk_norm"
        problem = f"has a weight per head, num_kv_heads {kv_heads} is not {heads}"
        draft.issues.add(key, f"{key}: GPT-NeoX's norm {problem}; use qk_norm: head")
    return kind


def _position_offset(draft: Draft) -> int:
    """Returns the first position, after checking that the table has a row for every token."""
    offset, rows = draft["opt_pos_emb_offset"], draft["max_position_embeddings"] or 1
    if offset and draft["pos_emb"] not in ("learned", "sinusoidal"):
        reason = f"it moves learned and sinusoidal positions, pos_emb is {draft['pos_emb']}"
        draft.note_no_effect("opt_pos_emb_offset", reason)
        return 0
    needed = (draft["seq_length"] or 1) + offset
    if offset > 0 and draft["pos_emb"] == "learned" and rows < needed:
        problem = f"must be at least seq_length + opt_pos_emb_offset = {needed}, got {rows}"
        draft.refuse("max_position_embeddings", problem)
    return offset


def _rotary_dim(draft: Draft, head_dim: int) -> int:
    if draft["pos_emb"] != "rotary" or not has_heads(draft):
        return 0
    share = draft["rotary_pct"]
    if not 0 < share <= 1:
        draft.refuse("rotary_pct", f"must be above 0, at most 1, got {share:g}")
        return 0
    size = int(head_dim * share)
    if size < 2 or size % 2:
        rotated = f"{share:g} rotates {size} of {head_dim} dimensions of a head"
        draft.refuse("rotary_pct", f"{rotated}; their number must be even and at least 2")
    return size


def _mlp_width(draft: Draft, hidden: int) -> tuple[int, bool]:
    """Returns the inner width of the MLP as built, and whether it is gated.

    Without `mlp_inner_size` it is the width that GPT-NeoX builds from X = intermediate_size,
    expansion_factor * hidden or 4 * hidden: X rounded up to `mlp_multiple_of` for plain
    activations; for gated ones half of int(2X/3), rounded up, even where X was written out.
    """
    is_gated = draft["activation"] in get_args(GatedActivation)
    multiple = max(draft["mlp_multiple_of"], 1)
    if draft["mlp_inner_size"] is not None:
        return _round_up(draft["mlp_inner_size"], multiple), is_gated
    size, factor = draft["intermediate_size"], draft["expansion_factor"] or 4
    key, written = ("intermediate_size", size) if size else ("expansion_factor", factor)
    wanted = size or factor * hidden
    if abs(wanted) > _WIDEST_MLP:
        draft.refuse(key, f"{written:g} makes an MLP wider than {_WIDEST_MLP}; lower it")
        return 1, is_gated
    base = int(wanted)
    inner = _round_up(int(2 * base / 3) // 2 if is_gated else base, multiple)
    if inner < 1 and written > 0:  # else a bound is broken
        advice = "raise it, or set mlp_inner_size"
        draft.refuse(key, f"{written} makes an MLP of width 0; {advice}")
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
