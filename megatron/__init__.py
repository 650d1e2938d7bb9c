"""ODM-NeoX: GPT-NeoX training with online data mixing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .neox_arguments import NeoXArgs
    from .reporting.run_logger import print_rank_0
    from .runtime.initialize import initialize_megatron

__version__ = "0.1.0"

__all__ = ["NeoXArgs", "__version__", "initialize_megatron", "print_rank_0"]

_LAZY = {
    "NeoXArgs": ".neox_arguments",
    "initialize_megatron": ".runtime.initialize",
    "print_rank_0": ".reporting.run_logger",
}


def __getattr__(name: str) -> Any:
    """Imports a name on first use, so that reading a configuration never loads torch."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name], __name__), name)
