"""What a trainer must know about a mixing method before it imports one; does not import numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RewardSource = Literal["train", "heldout", "generalization"]
"""Where the losses come from that move the weights; `odm.rewards.Reward` makes them."""


@dataclass(frozen=True)
class Method:
    """Facts about a mixing method that configuration, log and replay need."""

    learns: bool = True
    """Whether losses change its weights."""
    signal: Literal["either", "training", "held_out"] = "either"
    """The losses that it can learn from: training losses of the domains in a step, losses on
    held-out data of every domain, which the trainer has to measure, or either."""
    needs_losses: bool = False
    """Whether it must learn from losses: it fits curves to them, compares them with given losses or
    takes them as weights. The generalization reward, a difference of two losses, which may be below
    0, means nothing to it."""
    sees_both: bool = False
    """Whether it gets training losses and held-out losses together where weights follow held-out
    losses; other methods get held-out losses in the place of training losses."""
    follows_steps: bool = False
    """Whether its weights change with the steps alone, whatever the losses are."""
    every_step: bool = False
    """Whether it is given the losses of every step, also of steps after which its weights stay the
    same: those of the warm-up, and between two updates. Other methods never see these losses."""
    first_estimate: tuple[int, int] = (1, 1)
    """Steps with training losses, or measurements of held-out losses, before its weights can follow
    them."""
    uses_length: bool = False
    """Whether its weights depend on the number of steps of the whole run."""
    settings: tuple[str, ...] = ()
    """Options that a trainer's configuration may set; other options keep their defaults."""
    required: tuple[str, ...] = ()
    """Those of ``settings`` that have no default."""
    sized: tuple[str, ...] = ()
    """Those of ``settings`` that need the option ``domain_sizes``, samples per epoch."""

    def needs_sizes(self, options: Mapping[str, Any]) -> bool:
        """Whether these options need ``domain_sizes`` beside them."""
        return any(options.get(name) is not None for name in self.sized)

    def reward_problem(self, name: str, source: RewardSource) -> str | None:
        """Why the method ``name`` cannot learn from rewards of a source; None if it can.

        Losses of training are not refused: a caller of the library may pass others as these.
        """
        if source == "train":
            return None
        if not self.learns:
            return f"{name} does not learn from losses"
        if self.signal == "training":
            return f"{name} learns from training losses only"
        if source == "generalization" and self.needs_losses:
            return f"{name} needs losses, not differences of losses, which may be below 0"
        return None


METHODS: dict[str, Method] = {
    "smoothed_mean": Method(settings=("smoothing_factor",)),
    "odm_paper": Method(settings=("smoothing_factor",)),
    "exp3": Method(),
    "ema": Method(needs_losses=True),
    "ado": Method(needs_losses=True, every_step=True, first_estimate=(90, 9)),
    "doremi": Method(
        needs_losses=True,
        settings=("reference_losses", "step_size"),
        required=("reference_losses",),
    ),
    "dynamic_batch_loading": Method(
        needs_losses=True,
        settings=("target_losses", "step_size"),
        required=("target_losses",),
    ),
    "skill_graph": Method(
        needs_losses=True,
        settings=("transfer_matrix", "step_size", "window"),
        required=("transfer_matrix",),
    ),
    "learning_curve": Method(
        needs_losses=True,
        sees_both=True,
        every_step=True,
        first_estimate=(7, 7),
        uses_length=True,
        settings=(
            "perplexity_share",
            "objective_weights",
            "max_ratio",
            "exponent",
            "repetition_decay",
        ),
        sized=("repetition_decay",),
    ),
    "static": Method(learns=False),
    "schedule": Method(learns=False, follows_steps=True, settings=("points", "interpolation")),
    "naive_validation": Method(signal="held_out", needs_losses=True),
}
"""One row per method; the file ``mixers/<name>.py`` registers its class under this name."""
