"""What online data mixing is to make small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..declarations import at_least, in_range
from .by_domain import by_domain, wrong_sum
from .draft import Draft

OBJECTIVE = "data_sampling_objective"
_WEIGHTS = f"{OBJECTIVE}.weights"
_KINDS = {"perplexity": (float, in_range("[0, 1]")), "weights": dict[str, Any]}
_NUMBER = (float, at_least(0))


def resolve_objective(draft: Draft, domains: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of `Mixing` that ``data_sampling_objective`` decides.

    The weights are one number per domain, 1 for those that are not named; none if none is.
    """
    section, weights = draft.typed(OBJECTIVE, draft[OBJECTIVE], _KINDS), None
    if written := section.get("weights"):
        weights = by_domain(draft, _WEIGHTS, written, domains, _NUMBER, default=1.0)
        if weights and (problem := wrong_sum(weights)):
            draft.refuse(_WEIGHTS, problem)
    return {"perplexity_share": section.get("perplexity", 0.5), "objective_weights": weights or ()}
