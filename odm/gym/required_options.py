"""What methods cannot do without, as one who knows a world would give it to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..methods import METHODS
from .laws import PowerLaws
from .worlds import World


def required_options(
    method: str, world: World, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the required options of a method in a world, and those that the given ones need.

    Losses of a reference model, and losses to reach, are those at the end of a run with uniform
    weights. The transfer matrix is the world's own.
    """
    required = METHODS[method].required
    if METHODS[method].needs_sizes(given or {}):
        required += ("domain_sizes",)
    uniform = np.full(world.num_domains, world.num_samples / world.num_domains)
    losses = world.held_out(uniform).tolist()
    learns_from = world.laws.exposure if isinstance(world.laws, PowerLaws) else None
    matrix = np.eye(world.num_domains) if learns_from is None else learns_from.T
    known = {
        "reference_losses": losses,
        "target_losses": losses,
        "transfer_matrix": matrix.tolist(),
        "domain_sizes": _samples_per_epoch(world),
    }
    return {name: known[name] for name in required}


def _samples_per_epoch(world: World) -> list[int]:
    """Domains without an end are as large as the run, which then never repeats them."""
    share = np.minimum(np.broadcast_to(world.unique, world.num_domains), 1.0)
    return np.maximum(np.rint(share * world.num_samples), 1).astype(int).tolist()
