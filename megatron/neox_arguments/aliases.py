"""Other names of keys: old ones, and keys beside a section that stand for keys inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .coerce import parse_number
from .errors import IssueList


@dataclass(frozen=True)
class Alias:
    """Another name of a key, or a key beside a section that stands for one inside it."""

    old: str
    new: str
    """A key, or ``section.key``."""
    type: Any
    default: Any = None
    convert: Callable[[Any], Any] = lambda value: value
    """From its value to that of ``new``."""
    must_agree: bool = True
    """Whether two different values are refused; else the new key wins."""

    @property
    def is_old_name(self) -> bool:
        """Whether the name is out of use, which is noted; keys beside a section are not."""
        return "." not in self.new


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _old(old: str, new: str, kind: Any, convert: Callable[[Any], Any] | None = None) -> Alias:
    return Alias(old, new, kind | None, None, convert or (lambda value: value))


def _beside(section: str, old: str, key: str, kind: Any, default: Any = None) -> Alias:
    kind = kind | None if default is None else kind
    return Alias(old, f"{section}.{key}", kind, default, must_agree=section != "fp16")


_LLAMA_STEP = 256

ALIASES = (
    _old("gas", "gradient_accumulation_steps", int),
    _old("batch_size", "train_micro_batch_size_per_gpu", int),
    _old("clip_grad", "gradient_clipping", float),
    _old("save_interval", "checkpoint_factor", int),
    _old("save_iters", "extra_save_iters", list[int]),
    _old("train_data_path", "train_data_paths", str | list[str], _as_list),
    _old("valid_data_path", "valid_data_paths", str | list[str], _as_list),
    _old("test_data_path", "test_data_paths", str | list[str], _as_list),
    _old("min_loss_scale", "min_scale", float),
    _beside("fp16", "loss_scale", "loss_scale", float),
    _beside("fp16", "loss_scale_window", "loss_scale_window", float, 1000.0),
    _beside("fp16", "hysteresis", "hysteresis", int, 2),
    _beside("fp16", "min_scale", "min_loss_scale", float, 1.0),
    _beside("zero_optimization", "zero_stage", "stage", int),
    _beside("zero_optimization", "zero_reduce_scatter", "reduce_scatter", bool),
    _beside("zero_optimization", "zero_contiguous_gradients", "contiguous_gradients", bool),
    _beside("zero_optimization", "zero_reduce_bucket_size", "reduce_bucket_size", int),
    _beside("zero_optimization", "zero_allgather_bucket_size", "allgather_bucket_size", int),
)


def apply_aliases(
    values: dict[str, Any], given: frozenset[str], issues: IssueList
) -> tuple[dict[str, Any], frozenset[str], list[str]]:
    """Moves values of other names to the keys they stand for, into sections too.

    Args:
        values: Every key and its value.
        given: Keys that were set by the user.
        issues: Gets a message where two names disagree, and learns which one the user wrote.

    Returns:
        The values, the keys that count as set, and one note for each old name.
    """
    result, known = dict(values), set(given)
    notes: list[str] = []
    for alias in ALIASES:
        if alias.old not in known or result[alias.old] is None:
            continue
        value = alias.convert(result[alias.old])
        if alias.is_old_name:
            _replace_old_name(alias, value, result, known, issues, notes)
        else:
            _write_into_section(alias, value, result, issues)
    if "save_interval" in given and values["save_interval"] is not None:
        if values["checkpoint_scale"] == "log":
            issues.add(
                "save_interval", "save_interval is linear, checkpoint_scale is 'log'; keep one"
            )
    if values["mlp_type"] is not None:
        _apply_mlp_type(values, result, given, issues, notes)
    return result, frozenset(known), notes


def _replace_old_name(
    alias: Alias,
    value: Any,
    result: dict[str, Any],
    known: set[str],
    issues: IssueList,
    notes: list[str],
) -> None:
    if alias.new in known and result[alias.new] not in (None, value):
        issues.add(
            alias.old,
            f"{alias.old} is an old name of {alias.new}, and they differ: {value!r} and "
            f"{result[alias.new]!r}; keep {alias.new}",
        )
        return
    result |= {alias.new: value, alias.old: None}
    if alias.new not in known:
        issues.read_as(alias.old, alias.new)
    known.add(alias.new)
    notes.append(f"'{alias.old}' is an old name; read as '{alias.new}'")


def _write_into_section(
    alias: Alias, value: Any, result: dict[str, Any], issues: IssueList
) -> None:
    name, _, key = alias.new.partition(".")
    section = result[name] or {}
    written = parse_number(section.get(key))
    if written is None:
        result[name] = {**section, key: value}
        issues.read_as(alias.old, alias.new)
    elif alias.must_agree and written != value:
        issues.add(alias.old, f"{alias.old} is {value}, {alias.new} is {written}; keep one")


def _apply_mlp_type(
    values: dict[str, Any],
    result: dict[str, Any],
    given: frozenset[str],
    issues: IssueList,
    notes: list[str],
) -> None:
    """Reads GPT-NeoX's old LLaMA MLP: SiLU-gated, of a width of its own, without biases."""
    kind, activation = str(values["mlp_type"]).lower(), values["activation"]
    if kind not in ("regular", "llama"):
        issues.add("mlp_type", f"mlp_type must be regular or llama, got {values['mlp_type']!r}")
    elif (
        kind == "llama" and "activation" in given and activation not in ("silu", "swish", "swiglu")
    ):
        issues.add(
            "mlp_type",
            f"mlp_type llama is a SiLU-gated MLP, activation is {activation!r}; drop mlp_type",
        )
    elif kind == "llama":
        read = {"activation": "swiglu", "mlp_inner_size": _llama_width(values)}
        if "use_bias_in_mlp" not in given:
            read["use_bias_in_mlp"] = False
        read = {key: value for key, value in read.items() if value is not None}
        result.update(read)
        listed = ", ".join(f"{key}: {str(value).lower()}" for key, value in read.items())
        notes.append(f"'mlp_type: llama' is an old spelling; read as '{listed}'")
    result["mlp_type"] = None


def _llama_width(values: dict[str, Any]) -> int | None:
    """Inner width of the LLaMA MLP: `intermediate_size`, else 8/3 of `hidden_size` in steps of 256.

    None where other keys give the width, or where these are no sizes.
    """
    if values["mlp_inner_size"] is not None or values["expansion_factor"] is not None:
        return None
    size, hidden = values["intermediate_size"], values["hidden_size"] or 0
    if size is not None:
        return int(size) if size > 0 else None
    width = int(2 * hidden * 4 / 3)
    return -(-width // _LLAMA_STEP) * _LLAMA_STEP if width > 0 else None
