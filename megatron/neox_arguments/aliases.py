"""Other names of keys: old ones, and keys beside a section that stand for keys inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .coerce import parse_number

if TYPE_CHECKING:
    from .rules import Draft


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


def _beside(section: str, old: str, key: str, kind: Any, default: Any = None) -> Alias:
    kind = kind | None if default is None else kind
    return Alias(old, f"{section}.{key}", kind, default, must_agree=section != "fp16")


_LLAMA_STEP = 256

ALIASES = (
    Alias("gas", "gradient_accumulation_steps", int | None),
    Alias("batch_size", "train_micro_batch_size_per_gpu", int | None),
    Alias("clip_grad", "gradient_clipping", float | None),
    Alias("save_interval", "checkpoint_factor", int | None),
    Alias("save_iters", "extra_save_iters", list[int] | None),
    Alias("train_data_path", "train_data_paths", str | list[str] | None, convert=_as_list),
    Alias("valid_data_path", "valid_data_paths", str | list[str] | None, convert=_as_list),
    Alias("test_data_path", "test_data_paths", str | list[str] | None, convert=_as_list),
    Alias("min_loss_scale", "min_scale", float | None),
    Alias("s3_path", "save_copy", str | None, convert=lambda path: f"{path.rstrip('/')}/{{save}}"),
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


def apply_aliases(draft: Draft) -> None:
    """Moves values of other names to the keys they stand for, into sections too.

    Refuses two names that disagree, notes old names, and lets messages name what the user wrote.
    """
    if draft.is_set("save_interval") and draft["checkpoint_scale"] == "log":
        draft.refuse("save_interval", "is linear, checkpoint_scale is 'log'; keep one")
    for alias in ALIASES:
        if draft.is_set(alias.old):
            move = _replace_old_name if alias.is_old_name else _write_into_section
            move(draft, alias, alias.convert(draft[alias.old]))
    if draft["mlp_type"] == "llama":
        _read_llama_mlp(draft)


def _replace_old_name(draft: Draft, alias: Alias, value: Any) -> None:
    old, new = alias.old, alias.new
    if new in draft.given and draft[new] not in (None, value):
        values = f"{value!r} and {draft[new]!r}"
        draft.refuse(old, f"is an old name of {new}, and they differ: {values}; keep {new}")
        return
    draft.values |= {new: value, old: None}
    if new not in draft.given:
        draft.issues.read_as(old, new)
    draft.given.add(new)
    draft.notes.append(f"'{old}' is an old name; read as '{new}'")


def _write_into_section(draft: Draft, alias: Alias, value: Any) -> None:
    name, _, key = alias.new.partition(".")
    section = draft[name] or {}
    written = parse_number(section.get(key))
    if written is None:
        draft.values[name] = {**section, key: value}
        draft.issues.read_as(alias.old, alias.new)
    elif alias.must_agree and written != value:
        draft.refuse(alias.old, f"is {value}, {alias.new} is {written}; keep one")


def _read_llama_mlp(draft: Draft) -> None:
    """Reads GPT-NeoX's old LLaMA MLP: SiLU-gated, of a width of its own, without biases."""
    activation = draft["activation"]
    if "activation" in draft.given and activation not in ("silu", "swish", "swiglu"):
        problem = f"llama is a SiLU-gated MLP, activation is {activation!r}; drop mlp_type"
        draft.refuse("mlp_type", problem)
        return
    read: dict[str, Any] = {"activation": "swiglu"}
    if width := _llama_width(draft):
        read["mlp_inner_size"] = width
    if "use_bias_in_mlp" not in draft.given:
        read["use_bias_in_mlp"] = False
    draft.values |= read
    listed = ", ".join(f"{key}: {str(value).lower()}" for key, value in read.items())
    draft.notes.append(f"'mlp_type: llama' is an old spelling; read as '{listed}'")


def _llama_width(draft: Draft) -> int:
    """Inner width of the LLaMA MLP: `intermediate_size`, else 8/3 of `hidden_size` in steps of 256.

    0 where other keys give the width, or where these are no sizes.
    """
    if draft["mlp_inner_size"] is not None or draft["expansion_factor"] is not None:
        return 0
    if draft["intermediate_size"] is not None:
        return max(draft["intermediate_size"], 0)
    width = int(2 * max(draft["hidden_size"] or 0, 0) * 4 / 3)
    return -(-width // _LLAMA_STEP) * _LLAMA_STEP
