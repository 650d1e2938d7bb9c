"""Default values of other code bases, chosen by `neox_compat`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # the research code of Online Data Mixing, a fork of GPT-NeoX of March 2023
    "odm2024": {
        "weight_decay": 0.01,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
        "gradient_clipping": 0.0,
        "weighted_sampler_alpha": 0.3,
    },
}


def default_of(name: str, default: Any, preset: str | None) -> Any:
    """Returns the default of ``name`` under a preset; ``default`` where the preset is silent."""
    return PRESETS.get((preset or "").lower(), {}).get(name, default)
