"""The configuration system: files to ``NeoXArgs``, ``NeoXArgs`` to a frozen ``RunConfig``.

It imports neither torch nor numpy, so that any machine checks a configuration at once.
"""

from __future__ import annotations

from .deepspeed_json import deepspeed_config
from .errors import ConfigError
from .neox_args import NeoXArgs
from .purpose import Purpose
from .resolve import require_training_data, resolve
from .run_config import RunConfig

__all__ = [
    "ConfigError",
    "NeoXArgs",
    "Purpose",
    "RunConfig",
    "deepspeed_config",
    "require_training_data",
    "resolve",
]
