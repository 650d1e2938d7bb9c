"""Notes about settings of online data mixing that change nothing in this run."""

from __future__ import annotations

import math

from odm.methods import METHODS, Method, RewardSource
from odm.wording import counted

from .draft import Draft
from .objective import OBJECTIVE

_SCHEDULE = ("data_sampling_warmup_steps", "data_sampling_update_frequency")
"""Keys whose 0 asks for nothing."""

_LATE = 0.25
"""Share of the run from which on it is noted how long a method has no estimate."""


def note_unused_settings(draft: Draft, method: str | None, facts: Method) -> None:
    """Notes settings that the method does not read.

    Args:
        draft: The configuration.
        method: Name of the mixing method; None if there is none.
        facts: Facts about it.
    """
    unused = [
        f"data_sampling_{name}"
        for name in sorted({name for other in METHODS.values() for name in other.settings})
        if name not in facts.settings
    ]
    if "objective_weights" not in facts.settings and not draft["data_sampling_guard"]:
        unused.append(OBJECTIVE)
    if not facts.learns:
        unused += _SCHEDULE
        if not facts.follows_steps and draft["data_sampling_max_epochs"] is None:
            unused.append("data_sampling_trust_region")
    reason = f"{method} does not use it" if method else "there is no data_sampling_method"
    for key in unused:
        if draft.is_set(key) and (draft[key] or key not in _SCHEDULE):
            draft.note_no_effect(key, reason)


def note_late_updates(
    draft: Draft, method: str, facts: Method, *, source: RewardSource, interval: int | None
) -> None:
    """Notes if the weights never change, or only after the guard has decided, or late.

    Args:
        draft: The configuration.
        method: Name of the mixing method.
        facts: Facts about it.
        source: Where its losses come from.
        interval: Iterations from one measurement of held-out losses to the next.
    """
    total = draft["train_iters"]
    if not facts.learns or not total:
        return
    if source == "train":
        interval = None
    # a method that sees both follows training losses until it has been measured
    waits = interval is not None and facts.sees_both
    if interval is not None and interval > total:
        follows = "follows training losses" if waits else "never changes the weights"
        draft.notes.append(
            f"data_sampling_heldout_interval {interval}: held-out losses are never measured in "
            f"{counted(total, 'iteration')}, so {method} {follows}"
        )
        return
    first, is_slow, cause = _first_update(draft, method, facts, interval)
    decision = _decision(total)
    if first >= total:
        never = "follows held-out losses" if waits else "changes the weights"
        note = f"{method} never {never} in {counted(total, 'iteration')}"
    elif draft["data_sampling_guard"] and first >= decision:
        note = (
            f"data_sampling_guard decides at iteration {decision}, and no weight follows held-out "
            f"losses before iteration {first}"
            if waits
            else "data_sampling_guard keeps the initial weights, since it decides at iteration "
            f"{decision} and no weight changes before iteration {first}"
        )
    elif is_slow and first >= _LATE * total:
        note = (
            f"no weight follows held-out losses before iteration {first}"
            if waits
            else f"the initial weights are kept until iteration {first}"
        )
    else:
        return
    draft.notes.append(f"{cause}: {note}")


def _first_update(
    draft: Draft, method: str, facts: Method, interval: int | None
) -> tuple[int, bool, str]:
    """When weights follow losses for the first time.

    Args:
        draft: The configuration.
        method: Name of the mixing method.
        facts: Facts about it.
        interval: Iterations between measurements of held-out losses, which it follows; None if it
            follows training losses.

    Returns:
        The iteration, whether the method itself needs more than one loss, and why it is no earlier.
    """
    warmup = draft["data_sampling_warmup_steps"]
    every = max(1, draft["data_sampling_update_frequency"])
    needed, what, known = facts.first_estimate[0], "iterations with losses", 1
    if interval is not None:
        needed, known = facts.first_estimate[1], max(1, interval)
        what = f"measurements, one in {counted(interval, 'iteration')}"
        if not facts.sees_both:
            every = known
    known *= needed
    first = -(-max(warmup + 1, known) // every) * every
    if known > warmup + 1 and needed > 1:
        return first, True, f"{method} needs {needed} {what}"
    cause = f"data_sampling_warmup_steps {warmup}"
    if first > warmup + 1:
        cause = f"the first update after {cause} is at iteration {first}"
    return first, needed > 1, cause


def _decision(total: int) -> int:
    """Iteration after which the guard has decided."""
    from odm.guard import Guard

    return math.ceil(Guard.decision_point * total)
