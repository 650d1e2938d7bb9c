"""Which losses move the weights, and what is measured on held-out text for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from odm.methods import Method, RewardSource

from ..sections import Batch, Data
from .by_domain import NEEDS_NAMES
from .draft import Draft
from .mixing_notes import note_late_updates

FORWARD_SHARE = 0.4
"""Cost of a forward pass as a share of a whole step with as many samples; 1/3 by arithmetic."""

MAX_COST = 0.01
"""Share of the training time that the default interval allows for held-out losses."""

OPTIONS = ("data_sampling_heldout_samples", "data_sampling_heldout_parts")
OF_RESEARCH_CODE = ("smoothed_mean", "exp3", "ema", "naive_validation")
"""Methods that learn in the research code."""
OF_GENERALIZATION = ("batch_normalized_reward", "scale_by_reward_loss_diff")


def resolve_reward(
    draft: Draft, method: str, facts: Method, data: Data, batch: Batch
) -> dict[str, Any]:
    """Returns the fields of `Mixing` about the losses that move the weights.

    Args:
        draft: The configuration.
        method: Name of the mixing method.
        facts: Facts about the method.
        data: Names of the domains of each set.
        batch: Size of the global batch, for the default interval.
    """
    source = _source(draft, method, facts)
    interval = draft["data_sampling_heldout_interval"]
    is_measured = source != "train" or interval is not None
    if not is_measured:
        for key in filter(draft.is_set, OPTIONS):
            draft.note_no_effect(key, "data_sampling_reward is train")
        note_late_updates(draft, method, facts, source=source, interval=None)
        return {"reward": source, "heldout_interval": None}
    parts, samples = draft["data_sampling_heldout_parts"], draft["data_sampling_heldout_samples"]
    if parts > samples:
        both = f"is {parts}, data_sampling_heldout_samples is {samples}"
        advice = "the samples of a domain are divided into the parts, so make it at least as large"
        draft.refuse("data_sampling_heldout_parts", f"{both}; {advice}")
    _require_held_out_text(draft, data)
    frequency = max(1, draft["data_sampling_update_frequency"])
    if interval is None:
        rows = len(data.train_domains) * -(-samples // max(1, parts))
        interval = default_interval(rows, batch.train_batch_size, frequency)
    elif source != "train" and interval % frequency:
        must = f"must be a multiple of data_sampling_update_frequency {frequency}, got {interval}"
        reason = "weights follow held-out losses when they are measured"
        draft.refuse("data_sampling_heldout_interval", f"{must}: {reason}")
    note_late_updates(draft, method, facts, source=source, interval=interval)
    return {"reward": source, "heldout_interval": interval}


def default_interval(rows: int, batch_size: int, frequency: int) -> int:
    """Smallest interval whose measurements cost at most `MAX_COST` of the training time.

    It does not depend on the layout. A measurement runs whole micro-batches on all ranks, which is
    never more than ``rows`` rounded up to global batches.

    Args:
        rows: Samples of a measurement, over all domains.
        batch_size: Samples of a global batch.
        frequency: The interval is a multiple of this number.
    """
    per_step = FORWARD_SHARE / MAX_COST
    steps = round(per_step * -(-rows // max(1, batch_size)))
    return -(-max(steps, 1) // frequency) * frequency


def no_held_out_text_problem(missing: Sequence[str]) -> str:
    """What is wrong if domains have no validation data."""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        f"data_sampling_reward: no validation data of {', '.join(missing[:5])}{more}; name data "
        "sets of all training domains in valid_data_paths, or set a share of split that fills a "
        "sample"
    )


def _require_held_out_text(draft: Draft, data: Data) -> None:
    """Checks that each training domain has validation data, as far as names tell."""
    if not data.train_domains:
        draft.refuse("data_sampling_heldout_interval", NEEDS_NAMES)
        return
    names = data.valid_domains or [PurePath(path).parent.name for path in data.valid_paths]
    missing = [name for name in data.train_domains if name not in names]
    if data.split is not None:  # the same data sets, divided
        missing = [] if data.split[1] else list(data.train_domains)
    if missing:
        draft.issues.add("data_sampling_reward", no_held_out_text_problem(missing))


def _source(draft: Draft, method: str, facts: Method) -> RewardSource:
    """Where the losses come from, as `odm.methods.RewardSource`."""
    source: RewardSource = draft["data_sampling_reward"]
    if draft["validation_based_reward"]:
        draft.keep_one("validation_based_reward", "data_sampling_reward")
        source = _source_of_research_code(draft, method, facts)
    if source != "generalization":
        needed = "validation_based_reward, mixed_minibatches and data_sampling_method: exp3"
        for key in filter(draft.__getitem__, OF_GENERALIZATION):
            draft.refuse(key, f"needs {needed}; set these, or remove it")
    if source == "train" and facts.signal == "held_out":
        problem = f"{method} learns from held-out losses; set data_sampling_reward: heldout"
        draft.issues.add("data_sampling_method", f"data_sampling_method: {problem}")
    elif source != "train" and (reason := facts.reward_problem(method, source)):
        both = f"data_sampling_reward: {source}: {reason}"
        draft.issues.add("data_sampling_reward", f"{both}; use smoothed_mean, or set train")
    return source


def _source_of_research_code(draft: Draft, method: str, facts: Method) -> RewardSource:
    """What `validation_based_reward` means there, by method and by how batches are mixed.

    Where it has no effect, fails or is not defined there, the reason is reported.
    """
    key = "validation_based_reward"
    if not facts.learns:
        draft.refuse(key, f"needs a method that learns, but {method} learns nothing; remove it")
        return "train"
    per_sample, per_micro_batch = draft["mixed_batches"], draft["mixed_minibatches"]
    if per_sample and method == "naive_validation":
        return "heldout"
    if per_micro_batch and not per_sample and method == "exp3":
        return "generalization"
    if method not in OF_RESEARCH_CODE:
        problem = f"is not defined for {method}, which the research code does not have"
    elif not per_sample and not per_micro_batch:
        problem = "trains nothing in the research code without mixed_batches or mixed_minibatches"
    elif per_sample:
        problem = f"never updates the weights of {method} in the research code with mixed_batches"
    elif method == "ema":
        problem = "gives ema rewards below 0, which it takes as weights"
    else:
        problem = f"ends the research code with an error for {method} and mixed_minibatches"
    draft.refuse(key, f"{problem}; use data_sampling_reward: heldout")
    return "heldout"
