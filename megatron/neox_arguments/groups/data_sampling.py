"""Online data mixing: how domain weights are learnt while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDataSampling:
    """The mixing method, its schedule and how a batch is drawn."""

    data_sampling_method: (
        Literal["smoothed_mean", "odm_paper", "exp3", "ema", "static", "naive_validation"] | None
    ) = None
    """How domain weights follow the losses. `smoothed_mean` is the released method of Online Data
    Mixing, `odm_paper` its published equation; `static` or nothing keeps `train_data_weights`;
    `naive_validation` is refused."""

    data_sampling_warmup_steps: int = 0
    """Iterations during which the initial weights are kept. 0 updates from the first iteration."""

    data_sampling_update_frequency: int = 1
    """Iterations from one update of the weights to the next; losses in between are not used. At
    least 1 for methods that learn."""

    data_sampling_smoothing_factor: float = 0.9
    """Share of the old estimate that a new observation keeps, in [0, 1). 0 forgets at once. For
    smoothed_mean and odm_paper."""

    mixed_batches: bool = False
    """Every sample of a batch draws its own domain."""

    mixed_minibatches: bool = False
    """Every micro-batch of every data-parallel process draws its own domain: Online Data Mixing as
    published. With neither this nor `mixed_batches`, named datasets give one domain to a whole
    iteration."""

    data_sampling_stratified: bool = False
    """Draws domains with as little chance as possible: counts differ from weight times draws by
    less than one."""

    data_sampling_min_weight: float | dict | None = None
    """Smallest weight, in [0, 1]: one number for all domains, or a section of domain: number (other
    domains have no such limit). Holds from the first iteration on, whatever the method."""

    data_sampling_max_weight: float | dict | None = None
    """Largest weight, in [0, 1], as `data_sampling_min_weight`."""

    data_sampling_max_epochs: float | dict | None = None
    """Times that a domain is read at most in the `train_iters` of the run, above 0, as
    `data_sampling_min_weight`, over which it wins. Draws are random: the last iterations may
    overshoot it a little."""
