"""GPT-NeoX's package of CUDA kernels. Here torch's own kernels are used, and nothing is built."""

import sys

__all__ = ["NOTHING_TO_BUILD", "load"]

NOTHING_TO_BUILD = "fused kernels: nothing has to be built; the kernels of torch are used"


def load() -> None:
    """Prints that there is nothing to load, for the commands in GPT-NeoX's README."""
    sys.stdout.write(f"{NOTHING_TO_BUILD}\n")
