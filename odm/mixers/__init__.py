"""Mixing methods, one file per method, registered by name."""

from .base import Mixer, State, known_mixers, make_mixer, register
from .ema import Ema
from .exp3 import Exp3
from .learning_curve import LearningCurve
from .naive_validation import NaiveValidation
from .odm_paper import OdmPaper
from .schedule import Schedule
from .smoothed_mean import SmoothedMean
from .static import Static

__all__ = [
    "Mixer",
    "State",
    "register",
    "make_mixer",
    "known_mixers",
    "SmoothedMean",
    "LearningCurve",
    "OdmPaper",
    "Exp3",
    "Ema",
    "Static",
    "Schedule",
    "NaiveValidation",
]
