"""The state of a run besides weights, optimizer and mixture."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["TrainState"]

_NOT_SAVED = ("stop", "sound_step")


@dataclass
class TrainState:
    """Counters of a run; saved with every checkpoint."""

    step: int = 0
    """Iterations done, including those whose optimizer step an fp16 overflow skipped."""
    applied_steps: int = 0
    """Optimizer steps applied; the learning rate follows these."""
    consumed_samples: int = 0
    consumed_tokens: int = 0
    consecutive_skips: int = 0
    stop: bool = False
    """Set by a hook to leave the loop after this iteration. Not saved."""
    sound_step: int | None = None
    """Newest iteration whose weights gave a finite loss; None if there is none in this process yet.
    Not saved."""

    def state_dict(self) -> dict[str, int]:
        """The counters as plain numbers, for ``state.json``."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SAVED}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the counters to those of `state_dict`."""
        for name in self.state_dict():
            setattr(self, name, int(state[name]))
