"""Ways to divide a run among two processes, by name, as keys of a configuration."""

from __future__ import annotations

from typing import Any

Cut = dict[str, Any]

_TP: Cut = {"model_parallel_size": 2}
_PP: Cut = {"pipe_parallel_size": 2}
_GATHERED_LATE = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
}
"""Without these, ZeRO 3 would keep all of a tiny model on every process."""


def _zero(stage: int, **options: int) -> Cut:
    return {"zero_optimization": {"stage": stage, **options}}


CUTS: dict[str, Cut] = {
    "dp2": {},
    "dp2-zero1": _zero(1),
    "dp2-zero2": _zero(2),
    "dp2-zero3": _zero(3, **_GATHERED_LATE),
    "tp2": _TP,
    "tp2-zero1": {**_TP, **_zero(1)},
    "tp2-zero3": {**_TP, **_zero(3)},
    "tp2-sp": {**_TP, "sequence_parallel": True},
    "pp2": _PP,
    "pp2-zero1": {**_PP, **_zero(1)},
    "pp2-recompute": {**_PP, "checkpoint_activations": True},
}


def some_cuts(*names: str) -> dict[str, Cut]:
    """Returns the cuts of these names."""
    return {name: CUTS[name] for name in names}
