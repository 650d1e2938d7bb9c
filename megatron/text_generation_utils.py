"""GPT-NeoX's name for :mod:`megatron.generation.program`."""

from .generation.program import generate_samples_input_from_file, generate_samples_unconditional

__all__ = ["generate_samples_input_from_file", "generate_samples_unconditional"]
