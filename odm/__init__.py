"""Online data mixing: decides at every training step how much of each domain to read.

A trainer needs only ``MixtureController``; everything else is a part of it. The package needs only
numpy and the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .constraints import Ceiling, Constraint, EpochCap, Floor, GroupLimits, TrustRegion
    from .controller import MixtureController
    from .held_out import HeldOut, HeldOutRecord
    from .mixers import Mixer, known_mixers, make_mixer, register
    from .order import SampleOrder, sample_order
    from .rewards import Reward
    from .schedule import Draw, MixtureSchedule, plan_draw
    from .signal import Signal

__version__ = "0.1.0"

__all__ = [
    "MixtureController",
    "MixtureSchedule",
    "Draw",
    "plan_draw",
    "Signal",
    "HeldOut",
    "HeldOutRecord",
    "Reward",
    "Mixer",
    "make_mixer",
    "known_mixers",
    "register",
    "Constraint",
    "Floor",
    "Ceiling",
    "EpochCap",
    "GroupLimits",
    "TrustRegion",
    "SampleOrder",
    "sample_order",
]

_NAMES = {
    "controller": ("MixtureController",),
    "constraints": ("Ceiling", "Constraint", "EpochCap", "Floor", "GroupLimits", "TrustRegion"),
    "held_out": ("HeldOut", "HeldOutRecord"),
    "mixers": ("Mixer", "known_mixers", "make_mixer", "register"),
    "order": ("SampleOrder", "sample_order"),
    "rewards": ("Reward",),
    "schedule": ("Draw", "MixtureSchedule", "plan_draw"),
    "signal": ("Signal",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a name on first use, since the checks of JSON files are also used without numpy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
