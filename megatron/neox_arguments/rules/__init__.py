"""Rules by topic: each function checks some fields and returns what follows from them.

They take a ``Draft``, add what is wrong to its issues and return a section or parts of one.
After a mistake they return harmless values, so that the other rules can still be checked.
"""

from __future__ import annotations

from .draft import Draft

__all__ = ["Draft"]
