"""What a trainer must know about a mixing method before it imports one; does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    sees_both: bool = False
    """Whether it gets training losses and held-out losses together where weights follow held-out
    losses; other methods get held-out losses in the place of training losses."""
    follows_steps: bool = False
    """Whether its weights change with the steps alone, whatever the losses are."""
    every_step: bool = False
    """Whether it is given the losses of every step, also of steps after which its weights stay the
    same: those of the warm-up, and between two updates. Other methods never see these losses."""
    uses_length: bool = False
    """Whether its weights depend on the number of steps of the whole run."""
    settings: tuple[str, ...] = ()
    """Options that a trainer's configuration may set; other options keep their defaults."""
    required: tuple[str, ...] = ()
    """Those of ``settings`` that have no default."""

    def held_out_problem(self, name: str) -> str | None:
        """Why the method ``name`` cannot learn from losses on held-out data; None if it can."""
        if not self.learns:
            return f"{name} does not learn from losses"
        if self.signal == "training":
            return f"{name} learns from training losses only"
        return None


METHODS: dict[str, Method] = {
    "smoothed_mean": Method(settings=("smoothing_factor",)),
    "odm_paper": Method(settings=("smoothing_factor",)),
    "exp3": Method(),
    "ema": Method(),
    "ado": Method(every_step=True),
    "doremi": Method(settings=("reference_losses", "step_size"), required=("reference_losses",)),
    "dynamic_batch_loading": Method(
        settings=("target_losses", "step_size"), required=("target_losses",)
    ),
    "skill_graph": Method(
        settings=("transfer_matrix", "step_size", "window"), required=("transfer_matrix",)
    ),
    "learning_curve": Method(
        sees_both=True,
        every_step=True,
        uses_length=True,
        settings=("perplexity_share", "objective_weights", "max_ratio", "exponent"),
    ),
    "static": Method(learns=False),
    "schedule": Method(learns=False, follows_steps=True, settings=("points", "interpolation")),
    "naive_validation": Method(signal="held_out"),
}
"""One row per method; the file ``mixers/<name>.py`` registers its class under this name."""
