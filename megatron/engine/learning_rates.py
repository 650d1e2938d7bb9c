"""Learning-rate schedules as a pure function of the number of applied optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megatron.neox_arguments import RunConfig

__all__ = [
    "LearningRateSchedule",
    "continued_schedule",
    "learning_rate_at",
    "learning_rate_schedule",
]


def learning_rate_at(
    applied_steps: int,
    *,
    peak: float,
    minimum: float,
    decay_style: str,
    warmup_steps: float,
    decay_steps: int,
    wsd_decay_style: str = "exponential",
    wsd_decay_steps: int | None = None,
) -> float:
    """Learning rate of the next optimizer step.

    The formulas are GPT-NeoX's; those of ``wsd`` and ``inverse_sqrt`` are Megatron-LM's.

    Args:
        applied_steps: Optimizer steps taken so far; steps skipped by fp16 overflow do not count.
        peak: Rate at the end of the warm-up.
        minimum: Floor after the warm-up.
        decay_style: ``constant``, ``linear``, ``cosine``, ``exponential``, ``inverse_sqrt`` or
            ``wsd``.
        warmup_steps: Length of the linear warm-up; may be fractional.
        decay_steps: Step at which the decay ends; the rate stays there afterwards.
        wsd_decay_style: How ``wsd`` falls from ``peak`` to ``minimum``: ``exponential``,
            ``linear``, ``cosine`` or ``minus_sqrt``.
        wsd_decay_steps: Length of that fall, which ends at ``decay_steps``; the rate is ``peak``
            before it. Needed by ``wsd`` alone.
    """
    if warmup_steps > 0 and applied_steps <= warmup_steps:
        return peak * max(1, applied_steps) / max(1.0, warmup_steps)
    if decay_style == "constant":
        return peak
    if decay_style == "wsd":
        assert wsd_decay_steps is not None, "wsd needs the length of its decay"
        progress = (applied_steps - (decay_steps - wsd_decay_steps)) / wsd_decay_steps
        left = _wsd_share_left(min(1.0, max(0.0, progress)), wsd_decay_style)
        return minimum + (peak - minimum) * left
    span = max(1e-9, decay_steps - warmup_steps)
    progress = min(1.0, (applied_steps - warmup_steps) / span)
    if decay_style == "linear":
        rate = peak * (1.0 - progress)
    elif decay_style == "cosine":
        rate = minimum + (peak - minimum) / 2.0 * (math.cos(math.pi * progress) + 1.0)
    elif decay_style == "inverse_sqrt":
        first = max(warmup_steps, 1.0)  # the last step that has the peak
        rate = peak * math.sqrt(first / max(min(applied_steps, decay_steps), first))
    else:  # exponential: half of the peak at the end
        rate = peak * math.exp(-0.693 * progress)
    return max(rate, minimum)


def _wsd_share_left(progress: float, style: str) -> float:
    """The part of (peak - minimum) that remains after ``progress`` of the decay, both in [0, 1]."""
    if style == "linear":
        return 1.0 - progress
    if style == "cosine":
        return (math.cos(math.pi * progress) + 1.0) / 2.0
    if style == "minus_sqrt":
        return 1.0 - math.sqrt(progress)
    return 2.0 * 0.5**progress - 1.0  # exponential, shifted so that it ends at 0


@dataclass(frozen=True)
class LearningRateSchedule:
    """`learning_rate_at` with the settings of a run; called with the number of applied steps."""

    peak: float
    minimum: float
    decay_style: str
    warmup_steps: float
    decay_steps: int
    wsd_decay_style: str = "exponential"
    wsd_decay_steps: int | None = None

    def __call__(self, applied_steps: int) -> float:
        return learning_rate_at(applied_steps, **vars(self))

    def differences(self, other: LearningRateSchedule) -> list[str]:
        """Settings that differ from ``other`` and change a rate, as ``name here, there``."""
        ours, theirs = asdict(self), asdict(other)
        if self.decay_style == other.decay_style == "constant":
            without_use = ("minimum", "decay_steps")
            ours, theirs = (
                {k: v for k, v in d.items() if k not in without_use} for d in (ours, theirs)
            )
        return [f"{key} {ours[key]}, {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def learning_rate_schedule(config: RunConfig) -> LearningRateSchedule:
    """The schedule that the configuration asks for."""
    return LearningRateSchedule(
        peak=config.optimizer.learning_rate,
        minimum=config.schedule.min_lr,
        decay_style=config.schedule.decay_style,
        warmup_steps=config.schedule.warmup_iters,
        decay_steps=config.schedule.decay_iters,
        wsd_decay_style=config.schedule.wsd_decay_style,
        wsd_decay_steps=config.schedule.wsd_decay_iters,
    )


def continued_schedule(
    config: RunConfig, saved_config: Mapping[str, Any] | None, say: Callable[[str], None]
) -> LearningRateSchedule:
    """The schedule of a run that continues from a checkpoint.

    Args:
        config: The configuration of this run. ``use_checkpoint_lr_scheduler`` selects the
            checkpoint's schedule. Otherwise this run's own schedule is used; if it differs from the
            checkpoint's, a message reports it unless ``override_lr_scheduler`` is set.
        saved_config: The resolved configuration in the checkpoint; None if it has none.
        say: Prints a message if the schedule differs from the checkpoint's, or that one is not
            known.
    """
    own = learning_rate_schedule(config)
    takes_saved = config.schedule.use_checkpoint_lr_scheduler
    saved = None if saved_config is None else _saved_schedule(saved_config)
    if saved is None:
        if takes_saved:
            say(
                "use_checkpoint_lr_scheduler: the checkpoint does not contain its schedule; the "
                "configuration's schedule is used"
            )
        return own
    if takes_saved:
        return saved
    changed = own.differences(saved)
    if changed and not config.schedule.override_lr_scheduler:
        say(
            "the learning-rate schedule differs from the checkpoint's (now, checkpoint): "
            f"{'; '.join(changed)}; override_lr_scheduler: true confirms the new schedule, "
            "use_checkpoint_lr_scheduler: true keeps the checkpoint's"
        )
    return own


def _saved_schedule(saved_config: Mapping[str, Any]) -> LearningRateSchedule | None:
    try:
        schedule = saved_config["schedule"]
        return LearningRateSchedule(
            peak=saved_config["optimizer"]["learning_rate"],
            minimum=schedule["min_lr"],
            decay_style=schedule["decay_style"],
            warmup_steps=schedule["warmup_iters"],
            decay_steps=schedule["decay_iters"],
            wsd_decay_style=schedule.get("wsd_decay_style", "exponential"),  # not in older files
            wsd_decay_steps=schedule.get("wsd_decay_iters"),
        )
    except (KeyError, TypeError):  # written by another version
        return None
