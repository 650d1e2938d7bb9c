"""How a task wants text to be written: lm-eval's ``generation_kwargs`` in our terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.data.errors import DataError
from megatron.sampling import SamplingParameters

__all__ = ["DEFAULT_NEW_TOKENS", "GenerationSettings", "cut_at_stop", "read_settings"]

DEFAULT_NEW_TOKENS = 256
"""Of lm-eval's own models."""

_MAXIMUM_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the same thing; the first one that is given counts."""

_SAMPLING_KEYS = ("top_k", "top_p", "min_p", "repetition_penalty")
_GREEDY_SEARCH = {"num_beams": 1, "use_cache": True}
"""Settings of transformers that are fine where they say what is done anyway."""


@dataclass(frozen=True)
class GenerationSettings:
    """What requests must share to be computed together."""

    stop_strings: tuple[str, ...]
    """A text ends before the first of them."""
    maximum_tokens: int
    sampling: SamplingParameters


def read_settings(given: Mapping[str, Any]) -> GenerationSettings:
    """Reads a task's ``generation_kwargs`` as lm-eval's own models do.

    ``do_sample`` false is greedy whatever the temperature; where it is not given, a temperature
    above 0 samples. ``do_sample`` without a temperature samples at 1.

    Raises:
        DataError: For a key that means something we do not do, or a value that makes no sense.
    """
    values = dict(given)
    until = values.pop("until", None) or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    maxima = [values.pop(key) for key in _MAXIMUM_KEYS if values.get(key) is not None]
    do_sample = values.pop("do_sample", None)
    temperature = float(values.pop("temperature", None) or 0.0)
    if do_sample is False:
        temperature = 0.0
    elif do_sample and temperature == 0.0:
        temperature = 1.0
    filters = {key: values.pop(key) for key in _SAMPLING_KEYS if values.get(key) is not None}
    foreign = {
        key: value
        for key, value in values.items()
        if value is not None and _GREEDY_SEARCH.get(key, object()) != value
    }
    if foreign:
        key, value = next(iter(foreign.items()))
        raise DataError(
            f"generation_kwargs: {key}: {value} is not supported; known are until, do_sample, "
            f"temperature, {', '.join(_SAMPLING_KEYS)} and {_MAXIMUM_KEYS[0]}"
        )
    maximum = int(maxima[0]) if maxima else DEFAULT_NEW_TOKENS
    if maximum < 1 or not math.isfinite(temperature) or temperature < 0.0:
        raise DataError(
            f"generation_kwargs: got {_MAXIMUM_KEYS[0]} {maximum} and temperature {temperature}; "
            "the first must be at least 1, the second at least 0"
        )
    stop_strings = tuple(str(stop) for stop in stops if stop != "")
    return GenerationSettings(
        stop_strings, maximum, SamplingParameters(temperature=temperature, **filters)
    )


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string; stop strings are looked for one after the other."""
    for stop in stop_strings:
        text = text.split(stop)[0]
    return text
