"""GPT-NeoX's name for :mod:`megatron.runtime.initialize`."""

from .runtime.initialize import initialize_megatron

__all__ = ["initialize_megatron"]
