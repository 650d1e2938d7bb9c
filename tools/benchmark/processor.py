"""The processor that a figure belongs to."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["processor"]

_FAST_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def processor(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name and generation as far as known, its instructions for bfloat16, and the cores."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    lines = [line.partition(":")[::2] for line in text.splitlines()]
    facts = {key.strip(): value.strip() for key, value in lines}
    flags = set(facts.get("flags", "").split())
    fast = [name for flag, name in _FAST_BF16.items() if flag in flags]
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:  # virtual machines of several generations have one name
        name += f" (family {facts['cpu family']} model {facts.get('model', '?')})"
    return ", ".join([name, *fast, f"{os.cpu_count()} cores"])
