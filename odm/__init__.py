"""Online data mixing: decide at every training step how much of each domain to read.

``MixtureController`` is the object a trainer needs; everything else is a part of it. numpy and
the standard library only.
"""

from .constraints import Ceiling, Constraint, EpochCap, Floor, TrustRegion
from .controller import MixtureController
from .mixers import Mixer, known_mixers, make_mixer, register
from .order import SampleOrder, sample_order
from .schedule import Draw, MixtureSchedule, plan_draw
from .signal import Signal

__version__ = "0.1.0"

__all__ = [
    "MixtureController",
    "MixtureSchedule",
    "Draw",
    "plan_draw",
    "Signal",
    "Mixer",
    "make_mixer",
    "known_mixers",
    "register",
    "Constraint",
    "Floor",
    "Ceiling",
    "EpochCap",
    "TrustRegion",
    "SampleOrder",
    "sample_order",
]
