"""Recognises checkpoints of other programs by the files in a folder."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = [
    "STEP_NAME",
    "foreign_checkpoint_problem",
    "is_neox_checkpoint",
    "neox_checkpoint_names",
]

STEP_NAME = re.compile(r"global_step(0|[1-9][0-9]{0,17})")
"""Names of checkpoints, GPT-NeoX's and ours: a step that fits into 64 bits, no leading zeros."""


_DEEPSPEED = re.compile(
    r"(mp_rank_\d+_model_states|layer_\d+(-model_\d+)?-model_states"
    r"|(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(optim|model)_states)\.pt"
)
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_MEGATRON = re.compile(r"mp_rank_\d+(_\d+)?")
_DISTRIBUTED = re.compile(r"__\d+_\d+\.distcp")


def is_neox_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is a ``global_step<N>`` folder that GPT-NeoX or DeepSpeed wrote."""
    try:
        return (
            STEP_NAME.fullmatch(folder.name) is not None
            and not (folder / "index.json").is_file()
            and any(_DEEPSPEED.fullmatch(path.name) for path in folder.iterdir())
        )
    except OSError:  # missing, or not readable: other checks report that
        return False


def neox_checkpoint_names(folder: Path) -> set[str]:
    """Names of the folders in ``folder`` that are checkpoints of GPT-NeoX."""
    return {path.name for path in folder.glob("global_step*") if is_neox_checkpoint(path)}


def foreign_checkpoint_problem(folder: Path) -> str | None:
    """Returns a message if ``folder``, or a folder in it, is another program's checkpoint.

    Those of GPT-NeoX can be loaded; the message is for callers that need one of ours, or a folder
    with checkpoints.

    Args:
        folder: The folder that `load` names, or a ``global_step<N>`` folder.
    """
    try:
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        for place in (folder, *inner):
            if (place / "index.json").is_file():  # one of ours
                continue
            names = {path.name for path in place.iterdir()}
            problem = _checkpoint_problem(place, names)
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


def _checkpoint_problem(folder: Path, names: set[str]) -> str | None:
    if any(_DEEPSPEED.fullmatch(name) for name in names):
        if STEP_NAME.fullmatch(folder.name):
            return (
                "is a checkpoint of GPT-NeoX; train.py, evaluate.py, generate.py and "
                "tools/convert_to_hf.py load it with the model's configuration (load: its parent "
                "folder); for other programs write it as one of ours with python "
                "tools/checkpoints/import_neox.py"
            )
        return (
            "is a checkpoint of GPT-NeoX or DeepSpeed under another name than global_step<N>, "
            "which is where GPT-NeoX writes them; rename the folder to its iteration"
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
