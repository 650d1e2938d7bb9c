"""Recognises checkpoints of other programs by the files in a folder."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["foreign_checkpoint_problem"]

_DEEPSPEED = re.compile(
    r"(mp_rank_\d+_model_states|layer_\d+-model_\d+-model_states"
    r"|(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(optim|model)_states)\.pt"
)
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_MEGATRON = re.compile(r"mp_rank_\d+(_\d+)?")
_DISTRIBUTED = re.compile(r"__\d+_\d+\.distcp")


def foreign_checkpoint_problem(folder: Path) -> str | None:
    """Returns a message if ``folder``, or a folder in it, is another program's checkpoint.

    Args:
        folder: The folder that `load` names, or a ``global_step<N>`` folder.
    """
    try:
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        for place in (folder, *inner):
            if (place / "index.json").is_file():  # one of ours
                continue
            names = {path.name for path in place.iterdir()}
            problem = _checkpoint_problem(names)
            if place == folder:  # an export may be in a folder of our checkpoints
                problem = problem or _model_problem(place, names)
            if problem:
                return f"{place}: {problem}"
    except OSError:  # missing, or not readable: other checks report that
        return None
    return None


def _model_problem(folder: Path, names: set[str]) -> str | None:
    if "config.json" in names and any(_WEIGHTS.fullmatch(name) for name in names):
        return (
            "is a Hugging Face model; import it with python tools/convert_from_hf.py "
            f"--input_dir {folder}"
        )
    return None


def _checkpoint_problem(names: set[str]) -> str | None:
    if any(_DEEPSPEED.fullmatch(name) for name in names):
        return (
            "is a checkpoint of GPT-NeoX or DeepSpeed, which this program cannot load; export it "
            "with GPT-NeoX's tools/ckpts/convert_neox_to_hf.py, then import that folder with "
            "tools/convert_from_hf.py"
        )
    if any(_DISTRIBUTED.fullmatch(name) for name in names) or (
        names and all(_MEGATRON.fullmatch(name) for name in names)
    ):
        return (
            "is a checkpoint of Megatron-LM or torch.distributed, which this program cannot load; "
            "export it to Hugging Face's GPT-NeoX format, then import that folder with "
            "tools/convert_from_hf.py"
        )
    return None
