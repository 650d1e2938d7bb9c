"""Old names of keys, read as the new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import IssueList


@dataclass(frozen=True)
class Alias:
    """An old key: the key that it stands for and how its value is written there."""

    old: str
    new: str
    convert: Callable[[Any], Any] = lambda value: value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_LLAMA_STEP = 256

ALIASES = (
    Alias("gas", "gradient_accumulation_steps"),
    Alias("batch_size", "train_micro_batch_size_per_gpu"),
    Alias("clip_grad", "gradient_clipping"),
    Alias("save_interval", "checkpoint_factor"),
    Alias("save_iters", "extra_save_iters"),
    Alias("train_data_path", "train_data_paths", _as_list),
    Alias("valid_data_path", "valid_data_paths", _as_list),
    Alias("test_data_path", "test_data_paths", _as_list),
    Alias("min_loss_scale", "min_scale"),
)


def apply_aliases(
    values: dict[str, Any], given: frozenset[str], issues: IssueList
) -> tuple[dict[str, Any], frozenset[str], list[str]]:
    """Moves values of old keys to the keys they stand for.

    Args:
        values: Every key and its value.
        given: Keys that were set by the user.
        issues: Gets a message where an old and a new key disagree.

    Returns:
        The values, the keys that count as set, and one note for each old key.
    """
    result, known, notes = dict(values), set(given), []
    for alias in ALIASES:
        if alias.old not in given or values[alias.old] is None:
            continue
        new_value = alias.convert(values[alias.old])
        if alias.new in known and result[alias.new] not in (None, new_value):
            issues.add(
                alias.old,
                f"{alias.old} is an old name of {alias.new}, and they differ: "
                f"{new_value!r} and {result[alias.new]!r}; keep {alias.new}",
            )
            continue
        result[alias.new] = new_value
        result[alias.old] = None
        if alias.new not in known:
            issues.read_as(alias.old, alias.new)
        known.add(alias.new)
        notes.append(f"'{alias.old}' is an old name; read as '{alias.new}'")
    if "save_interval" in given and values["save_interval"] is not None:
        if values["checkpoint_scale"] == "log":
            issues.add(
                "save_interval", "save_interval is linear, checkpoint_scale is 'log'; keep one"
            )
    if values["mlp_type"] is not None:
        _apply_mlp_type(values, result, given, issues, notes)
    return result, frozenset(known), notes


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
