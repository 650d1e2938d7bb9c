"""How a task wants text to be generated: lm-eval's ``generation_kwargs`` in our terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.errors import TaskError
from megatron.generation.sampling import SamplingParameters

__all__ = ["DEFAULT_NEW_TOKENS", "GenerationSettings", "cut_at_stop", "read_settings"]

DEFAULT_NEW_TOKENS = 256
"""Default of lm-eval's own models."""

_MAXIMUM_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the same setting; the first one that is given counts."""

_SAMPLING_KEYS: dict[str, tuple[Callable[[Any], float], Callable[[float], bool], str]] = {
    "top_k": (int, lambda value: value >= -1, "a whole number of at least 0, or -1 for all"),
    "top_p": (float, lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
    "min_p": (float, lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
    "repetition_penalty": (float, lambda value: 0.0 < value < math.inf, "above 0"),
}
"""Per setting: its type, a check of its value, and the description of allowed values."""

_GREEDY_SEARCH = {"num_beams": 1, "use_cache": True}
"""Settings of transformers that are accepted if they ask for what is done anyway."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings that requests must have in common to be computed together."""

    stop_strings: tuple[str, ...]
    """A text ends before the first of these strings."""
    maximum_tokens: int
    sampling: SamplingParameters

    def longest_context(self, window: int) -> int:
        """Maximum tokens of a context that leave room for the new tokens.

        Args:
            window: Length of the model's context in tokens.

        Raises:
            TaskError: If there is no room for a context.
        """
        longest = window - self.maximum_tokens
        if longest < 1:
            raise TaskError(
                f"generation_kwargs: {_MAXIMUM_KEYS[0]} {self.maximum_tokens} leaves no room for a "
                f"prompt in the model's context of {window} tokens; set a smaller value in the task"
            )
        return longest


def read_settings(given: Mapping[str, Any]) -> GenerationSettings:
    """Reads a task's ``generation_kwargs`` as lm-eval's own models do.

    If ``do_sample`` is false, decoding is greedy at any temperature; if it is not given, a
    temperature above 0 means sampling. ``do_sample: true`` without a temperature samples at 1.

    Raises:
        TaskError: If a setting is not supported, or a value is wrong.
    """
    values = dict(given)
    until = values.pop("until", None) or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    maxima = [(key, values.pop(key)) for key in _MAXIMUM_KEYS if values.get(key) is not None]
    name, most = maxima[0] if maxima else (_MAXIMUM_KEYS[0], DEFAULT_NEW_TOKENS)
    maximum = int(_number(name, most, int, lambda value: value >= 1, "at least 1"))
    do_sample = values.pop("do_sample", None)
    temperature = _number(
        "temperature",
        values.pop("temperature", None) or 0.0,
        float,
        lambda value: 0.0 <= value < math.inf,
        "at least 0",
    )
    if do_sample is False:
        temperature = 0.0
    elif do_sample and temperature == 0.0:
        temperature = 1.0
    filters: dict[str, Any] = {
        key: _number(key, values.pop(key), *allowed)
        for key, allowed in _SAMPLING_KEYS.items()
        if values.get(key) is not None
    }
    foreign = {
        key: value
        for key, value in values.items()
        if value is not None and _GREEDY_SEARCH.get(key, object()) != value
    }
    if foreign:
        key, value = next(iter(foreign.items()))
        raise TaskError(
            f"generation_kwargs: {key}: {value} is not supported; supported: until, do_sample, "
            f"temperature, {', '.join(_SAMPLING_KEYS)} and {_MAXIMUM_KEYS[0]}"
        )
    stop_strings = tuple(str(stop) for stop in stops if stop != "")
    return GenerationSettings(
        stop_strings, maximum, SamplingParameters(temperature=temperature, **filters)
    )


def _number(
    key: str,
    value: Any,
    read: Callable[[Any], float],
    is_allowed: Callable[[float], bool],
    wanted: str,
) -> float:
    """``value`` as a number; raises a `TaskError` that describes the ``wanted`` values."""
    try:
        number = read(value)
        if is_allowed(number):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise TaskError(f"generation_kwargs: {key} must be {wanted}, got {value!r}")


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string; stop strings are searched for one by one."""
    for stop in stop_strings:
        text = text.split(stop)[0]
    return text
